"""Low-rank adapters shared by all tasks: LoRA and DoRA."""

from typing import Any

from workbench.methods._base import Attached, linear_names, method, saves, with_adapter


@method(
    about="one low-rank adapter shared by all tasks",
    paper="2106.09685 (Hu et al., LoRA); with dora 2402.09353 (Liu et al., DoRA)",
)
def lora(
    module: Any, tasks: list[str], *, r: int = 8, alpha: int = 16, dropout: float = 0.0, dora: bool = False
) -> Attached:
    """Train W + alpha / r B A for every linear map of the blocks; with `dora`, its direction and magnitude apart."""
    from peft import LoraConfig

    names = linear_names(module)
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, use_dora=dora, target_modules=names, task_type="CAUSAL_LM"
    )
    tuned = with_adapter(module, config)
    return Attached(tuned, saves(tuned))
