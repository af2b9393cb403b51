"""Full fine-tuning: every weight."""

from typing import Any

from workbench.methods._base import Attached, method


@method(about="every weight of the model is trained")
def full(module: Any, tasks: list[str]) -> Attached:
    """Train all parameters; a checkpoint is a whole model."""
    module.requires_grad_(True)
    return Attached(module, module.save_pretrained)
