"""One low-rank adapter for each task: nothing is shared, so nothing can conflict."""

from typing import Any

from workbench.methods._base import Attached, linear_names, method, saves, with_adapter


@method(about="one low-rank adapter for each task, none shared", per_task=True)
def separate_lora(module: Any, tasks: list[str], *, r: int = 8, alpha: int = 16, dropout: float = 0.0) -> Attached:
    """Train one LoRA a task; a checkpoint has one folder a task, `task_0` and so on, each a PEFT adapter."""
    from peft import LoraConfig

    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear_names(module), task_type="CAUSAL_LM"
    )
    names = [f"task_{number}" for number in range(len(tasks))]
    tuned = with_adapter(module, config, names[0])
    for name in names[1:]:
        tuned.add_adapter(name, config)

    def select(task: int) -> None:
        tuned.set_adapter(names[task])
        for name, value in tuned.named_parameters():
            value.requires_grad_("lora_" in name)  # PEFT freezes the adapters that are not active

    select(0)
    return Attached(tuned, saves(tuned, selected_adapters=names), select=select)
