"""What single experts add to a layer's output, and a pass in which something is added to that output."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.analyses._base import AnalysisError

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model


@dataclass(frozen=True)
class Heard:
    """What one layer's experts were called with: hidden [token, d], chosen and weights [token, k]; out [token, d]."""

    hidden: "torch.Tensor"
    chosen: "torch.Tensor"
    weights: "torch.Tensor"
    out: "torch.Tensor"


def hear(model: "Model", tokens: "torch.Tensor", layer: int) -> Heard:
    """One layer's experts in a pass over tokens [row, pos]."""
    calls: list[Heard] = []

    def on_experts(module: Any, args: tuple, out: "torch.Tensor") -> None:
        hidden, chosen, weights = args
        calls.append(Heard(hidden, chosen, weights, out))

    with model.routers.lock, _experts(model, layer).register_forward_hook(on_experts):
        model.routers.run(tokens)
    return calls[0]


def part_of(model: "Model", layer: int, heard: Heard, expert: int) -> "torch.Tensor":
    """What one expert added, its weight times its output, [token, d]; 0 where it is not among those chosen."""
    import torch

    token, slot = (heard.chosen == expert).nonzero(as_tuple=True)
    found = torch.zeros_like(heard.out)
    if len(token):
        alone = (heard.hidden[token], heard.chosen[token, slot, None], heard.weights[token, slot, None])
        with model.routers.lock, torch.no_grad():
            found[token] = _experts(model, layer)(*alone)
    return found


def refuse_other_sum(layer: int, parts: "torch.Tensor", heard: Heard) -> None:
    """Raise AnalysisError where the experts' parts, [token, d] in all, are not what the layer's experts gave."""
    from workbench.models.checks import TOLERANCE

    off, largest = (parts - heard.out).abs().max().item(), heard.out.abs().max().item()
    if off > TOLERANCE[heard.out.dtype] * largest:
        raise AnalysisError(
            f"The experts of layer {layer}, each called alone, are off by {off:.2g} from what they gave together "
            f"(largest {largest:.2g}), so they cannot be patched one by one; trace another family."
        )


def run_with(model: "Model", tokens: "torch.Tensor", layer: int, more: "torch.Tensor") -> "torch.Tensor":
    """Normed last residuals of a pass in which `more` [token, d] is added to what a layer's experts give."""
    with model.routers.lock, _experts(model, layer).register_forward_hook(lambda module, args, out: out + more):
        return model.routers.run(tokens)


def _experts(model: "Model", layer: int) -> Any:
    return model.routers.parts[layer][1]
