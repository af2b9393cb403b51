"""Massive activations: entries of the residual stream that dwarf all others, and what the model loses by them."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Layer

DRAWS = 1000
METHODS = {
    "zero": "massive activations set to 0",
    "mean": "massive activations set to their mean over all sequences, dimension by dimension",
    "zero, other dimensions": "as many random dimensions of the same tokens set to 0",
    "zero, other tokens": "the largest activations of as many random ordinary tokens set to 0",
}


@dataclass(frozen=True)
class Rule:
    """What counts as massive: |x| above `threshold` and at least `ratio` times the median |x| of its sequence."""

    ratio: float
    threshold: float

    def __call__(self, hidden: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Which entries of hidden states [row, pos, d_model] are massive, and the median |x| of each row."""
        size = hidden.abs().float()
        median = size.flatten(1).median(-1).values
        least = (self.ratio * median)[:, None, None]
        return (size > self.threshold) & (size >= least), median

    def __str__(self) -> str:
        alone = f"|x| at least {self.ratio:g} times the median of its sequence"
        return f"{alone} and above {self.threshold:g}" if self.threshold else f"{alone} (no absolute threshold)"


@dataclass
class Survey:
    """What was seen in the sequences so far, lists of one batch each.

    largest, dimension and position [row, layer, rank]; median and count [row, layer]; dimensions [row, layer, d_model]
    and positions [row, layer, pos], where something massive is; loss [row]. Over all batches: sum and number of the
    massive values of every layer and dimension.
    """

    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    total: np.ndarray | float = 0.0
    number: np.ndarray | float = 0.0

    def whole(self) -> dict[str, np.ndarray]:
        """Everything by name, all batches together."""
        return {name: np.concatenate(batches) for name, batches in self.rows.items()}

    def means(self, layer: int) -> np.ndarray:
        """Mean massive value of each dimension of a layer [d_model]; 0 where there is none."""
        total, number = np.asarray(self.total)[layer], np.asarray(self.number)[layer]
        return total / np.maximum(number, 1)


@analysis(
    about="The largest activations of every layer beside their median, and the loss when massive ones are overwritten.",
    sign="|x|; loss change above 0 = the model predicts the next token worse",
    primary="magnitude",
    paper="2402.17762 (Sun et al.): massive activations, section 2, and their intervention, section 3",
)
def massive_activations(
    model: "Model",
    task: Task,
    *,
    length: int = 64,
    sequences: int = 32,
    ratio: float = 1000.0,
    threshold: float = 100.0,
    top: int = 3,
    draws: int = 5,
    batch: int = 8,
) -> xr.Dataset:
    """The largest |activations| of each block's output, which of them are massive, and what they are needed for.

    Massive is an activation with |x| > threshold and |x| >= ratio x median |x| of its sequence at that layer. Small
    models are narrow and their numbers small: give them threshold=0, so that the ratio alone counts. Where there are
    massive activations, they are overwritten in the output of the block in which they first appear (the first in which
    at least half as many sequences have one as in any), by 0 or by their mean, and the next-token loss is taken anew.
    With BOS in front, an activation of the first token is the same in every sequence and is its own mean: `moved` says
    how far the values were moved.

    Args:
        model: raw weights, since folding changes the residual stream.
        task: whose text is read.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        ratio: how many times the median a massive activation is at least.
        threshold: what it is above in any case; 0 for none.
        top: how many of the largest activations of a sequence are kept, layer by layer.
        draws: random controls of each kind, for every sequence.
        batch: sequences in one forward pass.

    Returns:
        Means over sequences with intervals: `magnitude` [layer, measured], the largest |x| by rank, beside
        `magnitude_null` (as many Gaussian numbers of that median), `median` and `limit` [layer] (from where on an
        activation is massive); `massive_share` and `massive_count` [layer]; `massive_dimension` [layer, component] and
        `massive_position` [layer, pos], the share of sequences with a massive activation there; `dimension`,
        `position` and `top_token` [layer, measured], the most frequent ones of each rank, with the share of sequences
        that have that dimension and position; `magnitude_prompt`, `dimension_prompt`, `position_prompt`
        [prompt, layer, measured]; `loss` [prompt]; `loss_change` [method] in nats a token, `edited` (activations
        overwritten in a sequence) and `moved` (mean |change| of one) [method]. Attribute `layer_edited` is -1 where
        nothing is massive. When stopped early: the sequences done, without the methods.

    Raises:
        AnalysisError: for a length the model does not take, a ratio or threshold out of range, or when an edit does
            not take effect in this family.
        ModelError: when the family's layers cannot be read, or its weights are folded.
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    if not ratio > 1 or not threshold >= 0:
        raise AnalysisError(f"ratio is {ratio} and threshold {threshold}; use ratio > 1 and threshold >= 0.")
    at_least_one(sequences=sequences, top=top, draws=draws, batch=batch)
    rule, survey = Rule(ratio, threshold), Survey()
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    starts = range(0, sequences, batch)
    for start in track(starts, f"massive_activations {task.name}", len(starts)):
        _look(model, tokens[start : start + batch], rule, top, survey)
    if not survey.rows:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    found = survey.whole()
    tokens = tokens[: len(found["loss"])]
    layer = _first(found["count"])
    ds = _dataset(found, rule, np.array([model.tokens(row) for row in tokens]), length, task.seed)
    if len(tokens) == sequences:
        overwriting = Overwriting(model, rule, layer, survey.means(layer))
        changed = _interventions(overwriting, tokens, found["loss"], draws, batch, task)
        ds = ds.assign(changed.data_vars).assign_coords(changed.coords)
    ds.attrs = {
        "rule": str(rule),
        "layer_edited": layer,
        "length": length,
        "n": len(tokens),
        "loss": float(found["loss"].mean()),
        "corruption": "none: clean text",
        "task": task.name,
    }
    return ds


def _look(model: "Model", tokens: np.ndarray, rule: Rule, top: int, survey: Survey) -> None:
    """Add what one batch of sequences shows, layer by layer."""
    seen: dict[str, list[np.ndarray]] = {}
    total, number = [], []

    def read(layer: "Layer") -> None:
        mask, median = rule(layer.hidden)
        largest, place = layer.hidden.abs().float().flatten(1).topk(top)
        width = layer.hidden.shape[-1]
        for name, value in {
            "largest": largest,
            "dimension": place % width,
            "position": place // width,
            "median": median,
            "count": mask.sum((1, 2)),
            "dimensions": mask.any(1),
            "positions": mask.any(2),
        }.items():
            seen.setdefault(name, []).append(value.cpu().numpy())
        total.append(layer.hidden.masked_fill(~mask, 0).double().sum((0, 1)).cpu().numpy())
        number.append(mask.sum((0, 1)).cpu().numpy())

    ids = model.tensor(tokens)
    normed = model.scanner.run(ids, read)
    for name, layers in seen.items():
        survey.rows.setdefault(name, []).append(np.stack(layers, 1))
    survey.rows.setdefault("loss", []).append(model.scanner.losses(normed, ids).double().mean(1).cpu().numpy())
    survey.total, survey.number = survey.total + np.stack(total), survey.number + np.stack(number)


def _first(count: np.ndarray) -> int:
    """The layer in which massive activations first appear, from their number [row, layer]; -1 where there is none."""
    having = (count > 0).sum(0)
    return int(np.argmax(having >= having.max() / 2)) if having.any() else -1


@dataclass(frozen=True)
class Overwriting:
    """Runs in which one block's output is overwritten where a method says, and seen to be."""

    model: "Model"
    rule: Rule
    layer: int
    means: np.ndarray

    def __call__(self, tokens: np.ndarray, method: str, rng: np.random.Generator) -> np.ndarray:
        """Loss, number of activations overwritten and mean |change| of one, float64 [3, row]."""
        import torch

        ids, kept = self.model.tensor(tokens), {}

        def edit(hidden: "torch.Tensor") -> "torch.Tensor":
            chosen = _chosen(hidden, self.rule(hidden)[0], method, rng)
            value = torch.zeros_like(hidden)
            if method == "mean":
                value += self.model.tensor(self.means).to(hidden.dtype)
            kept.update(before=hidden, chosen=chosen, wanted=torch.where(chosen, value, hidden))
            return kept["wanted"]

        def read(found: "Layer") -> None:
            if found.index == self.layer:
                kept["seen"] = found.hidden

        normed = self.model.scanner.run(ids, read, streams={self.layer: edit})
        if not torch.equal(kept["seen"], kept["wanted"]):
            raise AnalysisError(f"Block {self.layer} of '{self.model.reference}' does not give on what it was set to.")
        moved = (kept["wanted"] - kept["before"]).abs().double().sum((1, 2))
        number = kept["chosen"].sum((1, 2))
        loss = self.model.scanner.losses(normed, ids).double().mean(1)
        return torch.stack([loss, number.double(), moved / number.clamp_min(1)]).cpu().numpy()


def _interventions(
    overwritten: Overwriting, tokens: np.ndarray, before: np.ndarray, draws: int, batch: int, task: Task
) -> xr.Dataset:
    """What each method does to the loss; nothing when it was stopped."""
    changed = np.zeros((3, len(METHODS), len(tokens)))  # loss change, activations overwritten, how far each was moved
    if overwritten.layer < 0:
        return _methods(changed, task.seed)
    rng, starts, done = np.random.default_rng(task.seed), range(0, len(tokens), batch), 0
    for start in track(starts, f"massive_activations {task.name}, overwritten", len(starts)):
        rows = slice(start, start + batch)
        for index, method in enumerate(METHODS):
            runs = [overwritten(tokens[rows], method, rng) for _ in range(draws if "other" in method else 1)]
            changed[:, index, rows] = np.mean(runs, axis=0)
        done += 1
    changed[0] -= before
    return _methods(changed, task.seed) if done == len(starts) else xr.Dataset()


def _chosen(hidden: "torch.Tensor", mask: "torch.Tensor", method: str, rng: np.random.Generator) -> "torch.Tensor":
    """The entries [row, pos, d_model] that a method overwrites: the massive ones, or the control's."""
    import torch

    if "other" not in method:
        return mask
    chosen, number = torch.zeros_like(mask), mask.sum(-1)
    for row, pos in torch.nonzero(number).tolist():
        count = int(number[row, pos])
        if method == "zero, other dimensions":
            free = np.flatnonzero(~mask[row, pos].cpu().numpy())
            chosen[row, pos, rng.choice(free, min(count, len(free)), replace=False).tolist()] = True
        elif len(ordinary := np.flatnonzero(number[row].cpu().numpy() == 0)):
            other = int(rng.choice(ordinary))
            chosen[row, other, hidden[row, other].abs().topk(count).indices] = True
    return chosen


def _methods(changed: np.ndarray, seed: int) -> xr.Dataset:
    loss, edited, moved = changed
    low, high = interval(resamples(loss.shape[1], DRAWS, seed) @ loss.T)
    say = {"long_name": "change of the next-token loss", "units": "nats", "signed": 1}
    variables = {
        "loss_change": ("method", loss.mean(1), say),
        "loss_change_low": ("method", low, say),
        "loss_change_high": ("method", high, say),
        "edited": ("method", edited.mean(1), {"long_name": "activations overwritten in a sequence", "units": "1"}),
        "moved": ("method", moved.mean(1), {"long_name": "mean |change| of one of them", "units": "residual units"}),
    }
    return xr.Dataset(variables, coords={"method": list(METHODS), "meaning": ("method", list(METHODS.values()))})


def gaussian_ratio(count: int, top: int) -> np.ndarray:
    """How many times the median the largest of `count` Gaussian |numbers| are expected to be, by rank [top].

    By Blom's approximation of expected order statistics.
    """
    at = (count - np.arange(top) - 0.375) / (count + 0.25)
    return np.array([NormalDist().inv_cdf((1 + p) / 2) for p in at]) / NormalDist().inv_cdf(0.75)


def _dataset(found: dict[str, np.ndarray], rule: Rule, words: np.ndarray, length: int, seed: int) -> xr.Dataset:
    weights = resamples(len(words), DRAWS, seed)
    top, width = found["largest"].shape[-1], found["dimensions"].shape[-1]
    by_rank, size = ("layer", "measured"), {"units": "residual units"}
    at_position = np.take_along_axis(words[:, None], found["position"], axis=-1)
    median = found["median"].astype(float)
    least = np.maximum(rule.threshold, rule.ratio * median)
    null = gaussian_ratio(length * width, top)[None] * median.mean(0)[:, None]
    variables = {
        **_mean("magnitude", by_rank, found["largest"], weights, {"long_name": "largest |activations|"} | size),
        **_mean("median", "layer", median, weights, {"long_name": "median |activation|"} | size),
        **_mean("limit", "layer", least, weights, {"long_name": "massive from here on"} | size),
        **_mean("massive_share", "layer", found["count"] > 0, weights, _share("a massive activation")),
        **_mean("massive_count", "layer", found["count"], weights, {"long_name": "massive activations in a sequence"}),
        "magnitude_null": (by_rank, null, {"long_name": "largest of as many Gaussian |numbers|"} | size),
        "massive_dimension": (("layer", "component"), found["dimensions"].mean(0), _share("one in this dimension")),
        "massive_position": (("layer", "pos"), found["positions"].mean(0), _share("one at this position")),
    }
    for name, place in (("dimension", found["dimension"]), ("position", found["position"])):
        mode, share = _mode(place)
        variables[name] = (by_rank, mode.astype(np.int64), {"long_name": f"most frequent {name}"})
        variables[f"{name}_share"] = (by_rank, share, _share(f"this {name}"))
        variables[f"{name}_prompt"] = (("prompt", *by_rank), place.astype(np.int32), {"long_name": name})
    variables["top_token"] = (by_rank, _mode(at_position)[0].astype(str), {"long_name": "most frequent token"})
    variables["magnitude_prompt"] = (("prompt", *by_rank), found["largest"], {"long_name": "|activation|"} | size)
    variables["loss"] = ("prompt", found["loss"], {"long_name": "next-token loss", "units": "nats"})
    coords: dict[str, Any] = {
        **{dim: np.arange(count) for dim, count in zip(("prompt", "pos"), words.shape, strict=True)},
        "layer": np.arange(median.shape[1]),
        "component": np.arange(width),
        "measured": [f"largest {rank + 1}" for rank in range(top)],
        "token": (("prompt", "pos"), words),
    }
    return xr.Dataset(variables, coords=coords)


def _mean(name: str, dims: Any, values: np.ndarray, weights: np.ndarray, say: dict[str, str]) -> dict[str, tuple]:
    """A variable, the mean over the first axis, with the ends of its bootstrap interval."""
    means = (values.mean(0, dtype=float), *interval(np.tensordot(weights, values, 1)))
    return {name + end: (dims, part, say) for end, part in zip(("", "_low", "_high"), means, strict=True)}


def _share(what: str) -> dict[str, str]:
    return {"long_name": f"share of sequences with {what}", "units": "share"}


def _mode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent value along the first axis (of equally frequent ones, the first seen), and its share."""
    mode, share = np.empty(values.shape[1:], object), np.empty(values.shape[1:])
    for at in np.ndindex(mode.shape):
        (mode[at], count), *_ = Counter(values[(slice(None), *at)].tolist()).most_common(1)
        share[at] = count / len(values)
    return mode, share
