"""What the MLPs of a pass do stage by stage, in a few numbers a token."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._sinks import FIRST, array, cosines, single

if TYPE_CHECKING:
    import torch

    Told = Callable[[dict[str, torch.Tensor]], None]

STAGES = ("input", "gate", "activated gate", "up", "product", "output")


@dataclass(frozen=True)
class Heard:
    """Of one layer's MLP: cosines of each stage to the first tokens [row, first, key], output norms [row, key]."""

    cosines: dict[str, np.ndarray]
    norm: np.ndarray


@contextlib.contextmanager
def listening(mlps: list[Any], shape: tuple[int, ...]) -> Iterator[list[Heard]]:
    """Within the block, the list fills with what each MLP of a pass over tokens [row, key] shows; no stage is kept."""
    heard: list[Heard] = []

    def told(stages: dict[str, "torch.Tensor"]) -> None:
        whole = {name: value.reshape(*shape, -1) for name, value in stages.items()}  # some families join the rows
        near = {name: array(cosines(value, value[:, :FIRST])) for name, value in whole.items()}
        heard.append(Heard(near, array(single(whole["output"]).norm(dim=-1))))

    with contextlib.ExitStack() as stack:
        for mlp in mlps:
            for handle in _hooks(mlp, told):
                stack.callback(handle.remove)
        yield heard


def _hooks(mlp: Any, told: "Told") -> Iterator[Any]:
    """Hooks that tell the stages of one MLP after each of its calls."""
    from workbench.models.blocks import first

    calls: list[tuple] = []

    def on_child(module: Any, args: tuple, kwargs: dict, out: Any) -> None:
        calls.append((any(True for _ in module.parameters()), _given(args, kwargs), first(out)))

    def on_mlp(module: Any, args: tuple, kwargs: dict, out: Any) -> None:
        stages = _stages(_given(args, kwargs), calls, first(out))
        calls.clear()
        told(stages)

    for child in mlp.children():
        yield child.register_forward_hook(on_child, with_kwargs=True)
    yield mlp.register_forward_hook(on_mlp, with_kwargs=True)


def _given(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _stages(given: Any, calls: list[tuple], out: Any) -> dict[str, Any]:
    """The stages of an MLP by what its parts were given: no family's names are known here.

    Projections read the MLP's own input, the activation reads the gate (or the only projection), and the last
    projection reads the product. Experts and fused projections show their input and output, and what else fits.
    """
    if not calls:  # the last projection alone, where a family has no module for the MLP
        return {"product": given, "output": out}
    found = {"input": given, "output": out}
    projected = [result for weights, x, result in calls if weights and x is given]
    active = [(x, result) for weights, x, result in calls if not weights and any(x is p for p in projected)]
    last = [x for weights, x, _ in calls if weights and x is not given]
    if not projected or not last:
        return found
    if len(active) == 1 and len(projected) == 2:
        gate, activated = active[0]
        up = next(result for result in projected if result is not gate)
        found |= {"gate": gate, "activated gate": activated, "up": up}
    elif len(active) == 1:
        found["up"] = active[0][0]
    return found | {"product": last[-1]}
