"""The repair experiment: chosen heads are made to attend where they should, and accuracy is seen to move."""

import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._patching import Group, Heads, groups, heads_by_layer, named, other_heads
from workbench.models.heads import head_name, parse_head
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

PATTERN, VALUE, Z = (f"blocks.{{}}.attn.hook_{name}" for name in ("pattern", "v", "z"))
TOLERANCE = 1e-3  # of the largest z; bfloat16 gets ten times as much


@analysis(
    about="Chosen heads' attention at one position is replaced by weights on named tokens; random heads as control.",
    sign="accuracy and metric as they are, before and after; right = an answer is the most likely next token",
    primary="accuracy",
    paper="2310.08744 (Merullo et al.), section 5: inhibition heads made to attend to the wrong colours repair a task",
)
def repair(
    model: "Model",
    task: Task,
    *,
    heads: str = "",
    weights: str = "",
    position: str = "END",
    draws: int = 20,
    batch: int = 64,
) -> xr.Dataset:
    """Accuracy and metric of the clean prompts when chosen heads attend to named tokens instead of where they would.

    At the position the heads' attention rows become the weights given, scaled to sum 1; all else is computed as usual.
    The edit is believed only after each edited head's output was seen to be that mixture of its values.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its clean prompts.
        heads: which rows are edited, like `L2H3,L2H5`.
        weights: relative weights on named positions, like `color_other_1=1, color_other_2=1`, or on token indices.
        position: whose rows (the query) are edited.
        draws: controls: as many random heads of the same layers, the chosen ones left out.
        batch: prompts in one forward pass.

    Returns:
        `accuracy` and `metric` [component], unchanged and edited; `accuracy_random`, `metric_random` [seed] of the
        controls; `right` [component, prompt]. Attributes: `p` (share of controls at least as accurate as the edit,
        (1 + count) / (1 + draws)), `broken` and `mended` (prompts that turned wrong, or right). When stopped early:
        with the controls that were finished.

    Raises:
        AnalysisError: for heads or positions that are not there, or when the edit does not take effect in this family.
    """
    at_least_one(draws=draws)
    chosen = _heads(heads, model)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    rows = _rows(prompts, weights, _index(prompts, position))
    parts, place = groups(prompts, task.metric, batch), _index(prompts, position)
    run = _runner(model, parts, rows, place, len(prompts))
    _prove(model, parts[0], chosen, rows, place)
    before, after = run([]), run(chosen)
    rng, controls = np.random.default_rng(task.seed), []
    for _ in track(range(draws), f"repair {task.name}, random heads", draws):
        controls.append(run(other_heads(chosen, model.n_heads, rng)))
    if not controls:
        raise Cancelled("Stopped before the first control was finished, so there is no result to keep.")
    ds = _dataset(before, after, controls, prompts)
    ds.attrs |= {
        "corruption": "none: clean text",
        "metric_name": task.metric,
        "edited": ",".join(head_name(*head) for head in chosen),
        "weights": weights,
        "position": position,
    }
    return ds


def _heads(text: str, model: "Model") -> Heads:
    found = [parse_head(name) for name in re.split(r"[,\s]+", text.strip()) if name]
    if not found:
        raise AnalysisError("No heads were given; name those whose attention is edited, like heads='L2H3,L2H5'.")
    for layer, head in found:
        if layer >= model.n_layers or head >= model.n_heads:
            raise AnalysisError(f"There is no head {head_name(layer, head)} in this model.")
    return sorted(set(found))


def _index(prompts: Prompts, name: str) -> np.ndarray:
    """Token index [prompt] of a named position or of a number."""
    if name.isdecimal():
        index = int(name)
        if index >= prompts.lengths.min():
            raise AnalysisError(f"There is no token {index} in every prompt; the shortest has {prompts.lengths.min()}.")
        return np.full(len(prompts), index)
    known = named(prompts)
    if name not in known:
        raise AnalysisError(f"These prompts have no position '{name}'; they have: {', '.join(known)}.")
    return known[name]


def _rows(prompts: Prompts, text: str, query: np.ndarray) -> list[np.ndarray]:
    """The attention row of each prompt, float64 [key], summing to 1."""
    found = [np.zeros(length) for length in prompts.lengths]
    for part in filter(None, re.split(r"[,;]\s*", text.strip())):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"\d*\.?\d+", weight):
            raise AnalysisError(f"'{part}' is no weight; write a position and a number, like color_other_1=1.")
        for row, index in enumerate(_index(prompts, name)):
            found[row][index] += float(weight)
    for row, end in zip(found, query, strict=True):
        if not row.sum():
            raise AnalysisError("No weight was given; put some on named positions, like weights='color_other_1=1'.")
        if row[end + 1 :].any():
            raise AnalysisError("A weight lies on a token after the query, which attention cannot see; choose another.")
    return [row / row.sum() for row in found]


def _edit(heads: list[int], rows: list[np.ndarray], place: np.ndarray):
    """An edit of a pattern [row, head, query, key]."""

    def edit(value: "torch.Tensor") -> "torch.Tensor":
        value = value.clone()
        for index, (row, query) in enumerate(zip(rows, place, strict=True)):
            value[index, heads, query] = value.new_tensor(row)
        return value

    return edit


def _edits(group: Group, heads: Heads, rows: list[np.ndarray], place: np.ndarray) -> dict:
    mine, where = [rows[i] for i in group.rows], place[group.rows]
    return {PATTERN.format(layer): _edit(some, mine, where) for layer, some in heads_by_layer(heads).items()}


def _runner(model: "Model", parts: list[Group], rows: list[np.ndarray], place: np.ndarray, count: int) -> Callable:
    """A function from heads to (metric [prompt], whether an answer is the most likely token [prompt])."""

    def run(heads: Heads) -> tuple[np.ndarray, np.ndarray]:
        metric, right = np.empty(count), np.empty(count, bool)
        for group in parts:
            last = model.logits(group.clean, _edits(group, heads, rows, place))[:, -1]
            metric[group.rows] = group.meter(last)[0]
            best = last.argmax(-1).cpu().numpy()
            right[group.rows] = [token in answers for token, answers in zip(best, group.meter.answers, strict=True)]
        return metric, right

    return run


def _prove(model: "Model", group: Group, heads: Heads, rows: list[np.ndarray], place: np.ndarray) -> None:
    """Check that each edited head's z is the mixture of values asked for.

    Raises:
        AnalysisError: when it is not: the family ignores the edit, or does not give its values.
    """
    edits, kept = _edits(group, heads, rows, place), {}
    layers = sorted({layer for layer, _ in heads})

    def keep(name: str):
        return lambda value: kept.setdefault(name, value)

    for name, layer in itertools.product((VALUE, Z), layers):
        edits[name.format(layer)] = keep(name.format(layer))
    model.logits(group.clean, edits)
    for layer, head in heads:
        value, z = kept.get(VALUE.format(layer)), kept.get(Z.format(layer))
        if value is None or z is None:
            raise AnalysisError("This family does not give its heads' values, so an attention edit cannot be proved.")
        shared = head * value.shape[2] // model.n_heads
        for index, row in enumerate(group.rows):
            wanted = (value[index, :, shared].T @ value.new_tensor(rows[row])).float()
            gap = (z[index, place[row], head].float() - wanted).abs().max().item()
            if gap > TOLERANCE * (10 if z.element_size() < 4 else 1) * max(1.0, wanted.abs().max().item()):
                raise AnalysisError(
                    f"The edit of {head_name(layer, head)}'s attention did not take effect in this family (its output "
                    f"is off by {gap:.1e}), so nothing was measured; trace a family whose attention can be edited."
                )


def _dataset(before: tuple, after: tuple, controls: list[tuple], prompts: Prompts) -> xr.Dataset:
    accuracy = np.array([before[1].mean(), after[1].mean()])
    drawn = np.array([right.mean() for _, right in controls])
    share, raw = {"long_name": "accuracy", "units": "share"}, {"long_name": "metric", "units": "logits"}
    random = {"long_name": "accuracy with random heads edited", "units": "share"}
    ds = xr.Dataset(
        {
            "accuracy": ("component", accuracy, share),
            "metric": ("component", np.array([before[0].mean(), after[0].mean()]), raw),
            "accuracy_random": ("seed", drawn, random),
            "metric_random": ("seed", np.array([metric.mean() for metric, _ in controls]), raw),
            "right": (("component", "prompt"), np.stack([before[1], after[1]]).astype(np.int8), {"long_name": "right"}),
        },
        coords={
            "component": ["unchanged", "edited"],
            "seed": np.arange(len(controls)),
            "prompt": np.arange(len(prompts)),
            "text": ("prompt", prompts.texts),
        },
    )
    ds.attrs = {
        "n": len(prompts),
        "p": float((1 + (drawn >= accuracy[1] - 1e-12).sum()) / (1 + len(drawn))),
        "broken": int((before[1] & ~after[1]).sum()),
        "mended": int((~before[1] & after[1]).sum()),
    }
    return ds
