"""What the exact analyses share: pairs of prompts of one length, the metric on few logits, and their two plain runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.analyses._base import AnalysisError, batches, interval, resamples
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.blocks import Recording
    from workbench.models.model import Model
    from workbench.models.trunk import Trunk

Z = "blocks.{}.attn.hook_z"
Heads = list[tuple[int, int]]  # (layer, head)
SMALLEST_GAP = 1e-6  # between clean and corrupted metric; under it the effect is 0/0


class Meter:
    """The task's metric of a group's prompts, from logits at the vocabulary columns it needs.

    logit_diff: mean logit of the answers minus mean logit of the wrongs. prob_diff: their probability masses.
    """

    def __init__(self, answers: Sequence[np.ndarray], wrongs: Sequence[np.ndarray], metric: str) -> None:
        self.metric, self.answers = metric, answers
        used = np.unique(np.concatenate([*answers, *wrongs]))
        self.columns = None if metric == "prob_diff" else used
        self._places = [
            (np.searchsorted(used, a), np.searchsorted(used, w)) for a, w in zip(answers, wrongs, strict=True)
        ]
        self.used = used
        self.weights = np.zeros((len(answers), len(used)))
        for row, (right, wrong) in enumerate(self._places):
            mass = metric == "prob_diff"
            self.weights[row, right] = 1 if mass else 1 / len(right)
            self.weights[row, wrong] = -1 if mass else -1 / len(wrong)

    def __call__(self, logits: "torch.Tensor") -> np.ndarray:
        """Values float64 [..., prompt] from logits [... x prompt, column or vocab], prompts fastest."""
        if self.metric == "prob_diff":
            logits = logits.float().softmax(-1)
        if logits.shape[-1] != len(self.used):
            logits = logits[:, self.used.tolist()]
        table = logits.detach().cpu().double().numpy().reshape(-1, *self.weights.shape)
        return (table * self.weights).sum(-1)

    def right(self, logits: "torch.Tensor") -> np.ndarray:
        """Whether an answer's logit is above every wrong's, bool [..., prompt]; logits as above."""
        if logits.shape[-1] != len(self.used):
            logits = logits[:, self.used.tolist()]
        table = logits.detach().cpu().numpy().reshape(-1, *self.weights.shape)
        found = [table[:, row, a].max(-1) > table[:, row, w].max(-1) for row, (a, w) in enumerate(self._places)]
        return np.stack(found, -1)


@dataclass(frozen=True)
class Group:
    """Pairs of one length: indices into the prompts, tokens int64 [row, pos], and the first position that differs."""

    rows: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    start: int
    meter: Meter

    def columns(self, device: "torch.device") -> "torch.Tensor | None":
        """The vocabulary columns that are read, int64 [column] on a device; None for all."""
        import torch

        return None if self.meter.columns is None else torch.as_tensor(self.meter.columns, device=device)


def groups(prompts: Prompts, metric: str, size: int) -> list[Group]:
    """The prompts by length, at most `size` of them a group; those that differ late are together."""
    differ = np.array([np.flatnonzero(a != b)[0] for a, b in zip(prompts.clean, prompts.corrupted, strict=True)])
    return [_group(prompts, rows, metric, int(differ[rows].min())) for rows in batches(prompts, size, differ)]


def _group(prompts: Prompts, rows: np.ndarray, metric: str, start: int) -> Group:
    clean, corrupted = (np.stack([side[i] for i in rows]) for side in (prompts.clean, prompts.corrupted))
    meter = Meter([prompts.answers[i] for i in rows], [prompts.wrongs[i] for i in rows], metric)
    return Group(rows, clean, corrupted, start, meter)


@dataclass(frozen=True)
class Runs:
    """The two runs of a group, recorded on the fast way."""

    clean: "Recording"
    corrupted: "Recording"


def plain_metric(model: "Model", group: Group, tokens: np.ndarray, edits: dict | None = None) -> np.ndarray:
    """The metric [..., row] of a plain forward pass with hooks; tokens are the group's, or several copies of them."""
    return group.meter(model.logits(tokens, edits)[:, -1])


def two_runs(
    model: "Model", prompts: Prompts, parts: Sequence[Group], *kinds: str
) -> tuple[np.ndarray, np.ndarray, list[Runs]]:
    """Metric of the clean and of the corrupted prompts, float64 [prompt], and each group's two runs.

    On the fast way the runs are recorded (see `Recording` for the kinds); on the plain one there are none.
    """
    clean, corrupted, runs = np.empty(len(prompts)), np.empty(len(prompts)), []
    for group in parts:
        if model.trunk is None:
            clean[group.rows] = plain_metric(model, group, group.clean)[0]
            corrupted[group.rows] = plain_metric(model, group, group.corrupted)[0]
            continue
        recorded = [model.trunk.record(model.tensor(side), "inputs", *kinds) for side in (group.clean, group.corrupted)]
        for values, run in zip((clean, corrupted), recorded, strict=True):
            logits = model.trunk.logits(run.inputs[-1][:, -1], group.columns(model.trunk.device))
            values[group.rows] = group.meter(logits)[0]
        runs.append(Runs(*recorded))
    return clean, corrupted, runs


def gap_between(clean: np.ndarray, corrupted: np.ndarray, task: Task) -> float:
    """Mean clean minus mean corrupted metric.

    Raises:
        AnalysisError: when they are the same, so that a share of the gap is 0/0.
    """
    gap = float(clean.mean() - corrupted.mean())
    if abs(gap) < SMALLEST_GAP:
        raise AnalysisError(
            f"The corruption '{task.corruption}' leaves the metric of '{task.name}' as it is in this model, "
            "so there is nothing to recover; use another corruption or a model that solves the task."
        )
    return gap


def share(gain: np.ndarray, gap: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean gain [prompt, ...] over mean gap [prompt], and the ends of its bootstrap interval over prompts.

    A resample without a gap says nothing and is left out.
    """
    weights = resamples(len(gap), draws, seed)
    weights = weights[np.abs(weights @ gap) > SMALLEST_GAP]
    below = (weights @ gap).reshape(-1, *[1] * (gain.ndim - 1))
    low, high = interval(np.tensordot(weights, gain, 1) / below)
    return gain.mean(0) / gap.mean(), low, high


def place_of(prompts: Prompts, name: str) -> np.ndarray | None:
    """Token index of a named position in each prompt, int64 [prompt]; None for `all`.

    Raises:
        AnalysisError: when not every prompt has a position of that name.
    """
    if name == "all":
        return None
    shared = named(prompts)
    if name not in shared:
        raise AnalysisError(f"These prompts have no position '{name}'; they have: all, {', '.join(shared)}.")
    return shared[name]


def named(prompts: Prompts) -> dict[str, np.ndarray]:
    """The positions every prompt has, by place and then by name: token index int64 [prompt]."""
    shared = set.intersection(*(set(marks) for marks in prompts.positions))
    found = {name: np.array([marks[name] for marks in prompts.positions]) for name in shared}
    return {name: found[name] for name in sorted(found, key=lambda name: (found[name].mean(), name))}


def slopes_of(trunk: "Trunk", group: Group) -> "Callable[[torch.Tensor], torch.Tensor]":
    """The metric [row] of last residuals [row, d_model], to be differentiated."""
    import torch

    columns, meter = group.columns(trunk.device), group.meter

    def metric(last: "torch.Tensor") -> "torch.Tensor":
        logits = trunk.logits(last, columns)
        if columns is None:
            logits = logits.softmax(-1)[:, meter.used.tolist()]
        return (logits * torch.as_tensor(meter.weights, dtype=logits.dtype, device=logits.device)).sum(-1)

    return metric


def heads_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """The heads of each layer that has any."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


def other_heads(chosen: Heads, n_heads: int, rng: np.random.Generator) -> Heads:
    """As many random heads of each layer, none of those chosen where there are enough others."""
    found: Heads = []
    for layer, taken in sorted(heads_by_layer(chosen).items()):
        free = [head for head in range(n_heads) if head not in taken]
        pool = free if len(free) >= len(taken) else list(range(n_heads))
        found += [(layer, int(head)) for head in rng.choice(pool, len(taken), replace=False)]
    return found


def chunks(count: int, size: int) -> Iterator[range]:
    """Ranges of at most `size` (and at least one) that cover 0 to count - 1."""
    size = max(1, size)
    return (range(first, min(first + size, count)) for first in range(0, count, size))
