"""Prompt tuning: vectors in front of the prompt, the model itself frozen."""

from typing import Any

from workbench.methods._base import Attached, method, saves, with_adapter


@method(about="trained vectors in front of every prompt", paper="2104.08691 (Lester et al., prompt tuning)")
def prompt_tuning(module: Any, tasks: list[str], *, tokens: int = 8) -> Attached:
    """Train `tokens` input vectors; such a checkpoint can be used and evaluated, but not traced head by head."""
    from peft import PromptTuningConfig

    tuned = with_adapter(module, PromptTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM"))
    return Attached(tuned, saves(tuned))
