"""Ablation of sets of heads: what a task loses without them, beside random sets of the same layers."""

import functools
import re
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._patching import (
    Group,
    Heads,
    Runs,
    Z,
    gap_between,
    groups,
    heads_by_layer,
    other_heads,
    share,
    two_runs,
)
from workbench.models.heads import head_name, parse_head
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

LEVEL = 0.95
ABLATIONS = {
    "resample": "each head ablated gives its output in the corrupted run",
    "mean": "each head ablated gives its mean output over all clean prompts and positions",
    "zero": "each head ablated gives zero",
}


@analysis(
    about="What a task loses when sets of heads are ablated together, beside random sets of the same layers.",
    sign="share of the clean-to-corrupted drop: 0 = nothing lost, 1 = as lost as in the corrupted run, not clipped",
    primary="lost",
    paper="2605.08348 (Li and Subramani): beside an overlap, ablate one task's circuit and measure the other",
)
def ablation(
    model: "Model",
    task: Task,
    *,
    sets: str = "",
    ablation: Literal["resample", "mean", "zero"] = "resample",
    draws: int = 20,
    batch: int = 64,
) -> xr.Dataset:
    """How much of the clean prompts' metric goes when all heads of a set are ablated at all positions.

    lost = (m_clean - m_ablated) / (m_clean - m_corrupted), m means over prompts.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: whose clean prompts are measured; `resample` takes the corrupted ones.
        sets: named sets of heads, `ioi=L0H1,L2H3; shared=L2H3`; an empty set (`only ioi=`) loses nothing.
        ablation: see `ABLATIONS`. Zero ablation depends on how biases are folded.
        draws: random sets with as many heads in each layer, the set's own left out where there are enough others.
        batch: prompts in one forward pass.

    Returns:
        `lost` [component] with its bootstrap interval, `lost_random` [component, seed] and its mean and 95 % point
        `lost_null`, `lost_null_high`; `accuracy` and `accuracy_null` [component] (share of prompts whose answer has a
        larger logit than the wrong one; the first is without ablation, attribute `accuracy_clean`). When stopped
        early: the sets that were finished.
    """
    at_least_one(draws=draws)
    named = parse_sets(sets, model.n_layers, model.n_heads)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    parts = groups(prompts, task.metric, batch)
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "keys", "values")
    gap_between(clean, corrupted, task)
    run = functools.cache(_Ablated(model, parts, runs, ablation))  # equal sets are ablated once
    clean, right = run(())
    found: dict[str, list] = {}
    controls = {name: _controls(heads, model.n_heads, draws, task.seed) for name, heads in named.items()}
    work = [(name, heads) for name in named for heads in (named[name], *controls[name])]
    for name, heads in track(work, f"ablation {task.name}", len(work)):
        found.setdefault(name, []).append(run(tuple(sorted(heads))))
    done = {name: values for name, values in found.items() if len(values) == draws + 1}
    if not done:
        raise Cancelled("Stopped before the first set was finished, so there is no result to keep.")
    ds = _dataset(done, named, clean, corrupted, task)
    ds.attrs |= {
        "ablation": ablation,
        "meaning": ABLATIONS[ablation],
        "accuracy_clean": float(right.mean()),
        "way": model.way,
    }
    return ds


def parse_sets(text: str, n_layers: int, n_heads: int) -> dict[str, Heads]:
    """Named sets of heads from `name=L0H1,L2H3; other=L1H0`.

    Raises:
        AnalysisError: for text in another form, a name given twice, or a head the model does not have.
    """
    found: dict[str, Heads] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, heads = part.partition("=")
        name = name.strip()
        if not equals or not name or name in found:
            raise AnalysisError(f"'{part}' is not a set of heads of its own; write it like shared=L0H1,L2H3.")
        listed = (parse_head(head) for head in re.split(r"[,\s]+", heads.strip()) if head)
        found[name] = list(dict.fromkeys(listed))
        for layer, head in found[name]:
            if layer >= n_layers or head >= n_heads:
                raise AnalysisError(
                    f"There is no head {head_name(layer, head)}: the model has {n_layers} layers of {n_heads} heads."
                )
    if not found:
        raise AnalysisError("No heads were given; name the sets to ablate, like sets='shared=L0H1,L2H3'.")
    return found


class _Ablated:
    """The clean runs of a task's prompts, to be repeated with heads ablated: from the first of them on, or whole."""

    def __init__(self, model: "Model", parts: list[Group], runs: list[Runs], ablation: str) -> None:
        self.model, self.parts, self.runs, self.ablation = model, parts, runs, ablation
        side = "corrupted" if ablation == "resample" else "clean"
        self.z = [] if ablation == "zero" else [self._outputs(index, side) for index in range(len(parts))]
        self.means = _mean(parts, self.z) if ablation == "mean" else []

    def _outputs(self, index: int, side: str) -> "list[torch.Tensor]":
        """Head outputs of one group's runs of one side, a list entry a layer."""
        if self.runs:
            return getattr(self.runs[index], side).z
        names = [Z.format(layer) for layer in range(self.model.n_layers)]
        kept = self.model.capture(getattr(self.parts[index], side), names)[1]
        return [kept[name] for name in names]

    def __call__(self, heads: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
        """Metric, and whether an answer's logit is above every wrong's, [prompt]."""
        count, by_layer = sum(len(group.rows) for group in self.parts), heads_by_layer(heads)
        values, right = np.empty(count), np.empty(count, bool)
        for index, group in enumerate(self.parts):
            logits = self._logits(index, by_layer)
            values[group.rows], right[group.rows] = group.meter(logits)[0], group.meter.right(logits)[0]
        return values, right

    def _logits(self, index: int, by_layer: dict[int, list[int]]) -> "torch.Tensor":
        group, trunk = self.parts[index], self.model.trunk
        # What is resampled can differ only from the first token on that the two prompts of a pair do not share.
        start = group.start if self.runs and self.ablation == "resample" else 0
        edits = {layer: _without(some, self._instead(layer, index, start)) for layer, some in by_layer.items()}
        if trunk is None:
            return self.model.logits(group.clean, {Z.format(layer): edit for layer, edit in edits.items()})[:, -1]
        recorded = self.runs[index].clean
        last = recorded.inputs[-1][:, -1]
        if edits:
            last = trunk.run_on(min(edits), recorded.inputs[min(edits)][:, start:], recorded, start, edits=edits)
        return trunk.logits(last, group.columns(trunk.device))

    def _instead(self, layer: int, index: int, start: int) -> "torch.Tensor | None":
        if self.ablation == "resample":
            return self.z[index][layer][:, start:]
        return self.means[layer] if self.ablation == "mean" else None


def _mean(parts: list[Group], outputs: "list[list[torch.Tensor]]") -> "list[torch.Tensor]":
    """Mean z of each layer over all prompts and positions, [head, d_head]."""
    count = sum(group.clean.size for group in parts)
    return [sum(z.sum((0, 1)) for z in layer) / count for layer in zip(*outputs, strict=True)]  # type: ignore[misc]


def _without(heads: list[int], instead: "torch.Tensor | None"):
    def edit(value: "torch.Tensor") -> "torch.Tensor":
        value = value.clone()
        value[:, :, heads] = 0 if instead is None else instead[..., heads, :]
        return value

    return edit


def _controls(heads: Heads, n_heads: int, draws: int, seed: int) -> list[Heads]:
    """Random sets of heads, the same ones for the same heads."""
    rng = np.random.default_rng([seed, *(number for head in sorted(heads) for number in head)])
    return [other_heads(heads, n_heads, rng) for _ in range(draws)]


def _dataset(done: dict, named: dict[str, Heads], clean: np.ndarray, corrupted: np.ndarray, task: Task) -> xr.Dataset:
    gap = clean - corrupted
    metric = np.stack([[values for values, _ in runs] for runs in done.values()])  # [set, draw, prompt]
    right = np.stack([[found.mean() for _, found in runs] for runs in done.values()])
    lost, low, high = share((clean - metric[:, 0]).T, gap, 1000, task.seed)
    drawn = (clean.mean() - metric[:, 1:].mean(-1)) / gap.mean()
    say, chance = {"long_name": "lost metric", "units": "share", "signed": 1}, {"long_name": "lost by random heads"}
    part, random = "component", say | chance
    return xr.Dataset(
        {
            "lost": (part, lost, say),
            "lost_low": (part, low, say),
            "lost_high": (part, high, say),
            "lost_random": ((part, "seed"), drawn, random),
            "lost_null": (part, drawn.mean(1), random),
            "lost_null_high": (part, np.quantile(drawn, LEVEL, axis=1), random),
            "accuracy": (part, right[:, 0], {"long_name": "accuracy", "units": "share"}),
            "accuracy_null": (part, right[:, 1:].mean(1), {"long_name": "accuracy, random heads", "units": "share"}),
        },
        coords={
            part: list(done),
            "seed": np.arange(drawn.shape[1]),
            "heads": (part, [",".join(head_name(*head) for head in named[name]) for name in done]),
        },
        attrs={
            "corruption": task.corruption,
            "metric_name": task.metric,
            "n": len(clean),
            "clean": float(clean.mean()),
            "corrupted": float(corrupted.mean()),
        },
    )
