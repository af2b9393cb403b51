"""What analyses that change routing share: passes with it changed, their metric, and effects beside controls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError, interval, resamples
from workbench.analyses._patching import Group
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.routers import Routed

ENOUGH = 20  # draws: with fewer no control band leaves 5 % outside
RESAMPLES = 1000


def refuse_few(draws: int) -> None:
    """Raise AnalysisError for fewer controls than a 95 % band needs."""
    if draws < ENOUGH:
        raise AnalysisError(f"draws is {draws}; a 95 % band needs {ENOUGH} controls or more.")


def routes(model: "Model", tokens: "torch.Tensor", **options: Any) -> "tuple[torch.Tensor, dict[int, Routed]]":
    """Normed last residuals [row, pos, d_model] of a pass over tokens, and how each layer routed in it.

    Args:
        model: whose routers run.
        tokens: int64 [row, pos].
        options: what `Routers.run` takes: `rescore` and `reroute`.
    """
    heard: dict[int, Routed] = {}
    last = model.routers.run(tokens, lambda routed: heard.__setitem__(routed.layer, routed), **options)
    return last, heard


def last_logits(model: "Model", normed: "torch.Tensor") -> "torch.Tensor":
    """Logits of the last position, float32 at least [row, vocab], of normed last residuals [row, pos, d_model]."""
    import torch

    from workbench.models.ends import unembed

    with torch.no_grad():
        return unembed(model.routers.module, normed[:, -1])


def metric_of(model: "Model", group: Group, normed: "torch.Tensor") -> np.ndarray:
    """The task's metric [row] of a group's prompts."""
    return group.meter(last_logits(model, normed))[0]


def plain_metrics(model: "Model", prompts: Prompts, parts: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Metric of the clean and of the corrupted prompts, float64 [prompt], of passes with nothing changed."""
    clean, corrupted = np.empty((2, len(prompts)))
    for group in parts:
        for values, tokens in ((clean, group.clean), (corrupted, group.corrupted)):
            values[group.rows] = metric_of(model, group, model.routers.run(model.tensor(tokens)))
    return clean, corrupted


def weight_of(routed: "Routed", expert: int) -> "torch.Tensor":
    """The weight each token gives an expert, [row, pos]; 0 where it is not among those chosen."""
    return (routed.weights * (routed.chosen == expert)).sum(-1)


def controls(
    name: str, dims: tuple[str, ...], drawn: np.ndarray, seen: np.ndarray, say: dict, *, both: bool = False
) -> dict[str, tuple]:
    """Variables that set an effect beside its controls.

    Args:
        name: of the effect; the variables are `{name}_random`, `_null` (their mean), `_null_low`, `_null_high` (their
            central 95 %) and `_p`, the share of controls that reach the effect, counted with the effect itself.
        dims: of the effect.
        drawn: effects of the controls, float64 [..., draw].
        seen: the effect, float64 [...].
        say: attributes of the effect.
        both: whether controls reach it on either side of 0.
    """
    low, high = interval(np.moveaxis(drawn, -1, 0))
    reached = abs(drawn) >= abs(seen)[..., None] if both else drawn >= seen[..., None]
    p = (1 + reached.sum(-1)) / (1 + drawn.shape[-1])
    random = say | {"long_name": f"{say['long_name']}, random experts"}
    reach = {"long_name": "share of controls that reach the effect", "units": "share"}
    return {
        f"{name}_random": ((*dims, "seed"), drawn, random),
        f"{name}_null": (dims, drawn.mean(-1), random),
        f"{name}_null_low": (dims, low, random),
        f"{name}_null_high": (dims, high, random),
        f"{name}_p": (dims, p, reach),
    }


def ends(
    name: str, dims: tuple[str, ...], found: tuple[np.ndarray, np.ndarray, np.ndarray], say: dict
) -> dict[str, tuple]:
    """An effect and the ends of its interval as variables `{name}`, `{name}_low`, `{name}_high`."""
    return {f"{name}{end}": (dims, values, say) for end, values in zip(("", "_low", "_high"), found, strict=True)}


def mean_of(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis, and the ends of its bootstrap interval."""
    return values.mean(0), *interval(np.tensordot(resamples(len(values), RESAMPLES, seed), values, 1))


def unit_of(task: Task) -> str:
    """What the task's metric is measured in."""
    return "logits" if task.metric == "logit_diff" else "1"
