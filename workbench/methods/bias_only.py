"""Bias-only fine-tuning (BitFit)."""

from typing import Any

from workbench.methods._base import Attached, MethodError, method


@method(about="only the biases are trained", paper="2106.10199 (Ben Zaken et al., BitFit): bias terms alone")
def bias_only(module: Any, tasks: list[str]) -> Attached:
    """Train the biases, of norms too; a checkpoint is a whole model."""
    module.requires_grad_(False)
    biases = [value for name, value in module.named_parameters() if name.endswith(".bias")]
    if not biases:
        raise MethodError(f"{type(module).__name__} has no biases to train; use the method lora.")
    for value in biases:
        value.requires_grad_(True)
    return Attached(module, module.save_pretrained)
