"""Activation patching of attention heads: which heads, restored to their clean output, restore the answer."""

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, batches, interval, measure, resamples
from workbench.progress import Cancelled, track
from workbench.schema import SIGN
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.load import Model

Z = "blocks.{}.attn.hook_z"
SMALLEST_GAP = 1e-6  # between clean and corrupted metric; under it the effect is 0/0


@analysis(
    about="Denoising activation patching: each head's output z, put back to its clean value in the corrupted run.",
    sign=SIGN,
    primary="effect",
    paper="2309.16042 (Zhang and Nanda): activation patching, the normalised logit difference of section 2",
)
def head_patching(
    model: "Model",
    task: Task,
    *,
    positions: Literal["all", "named", "each"] = "all",
    batch: int = 64,
    draws: int = 1000,
) -> xr.Dataset:
    """The share of the clean-minus-corrupted metric that each head's clean output recovers.

    effect = (m_patched - m_corrupted) / (m_clean - m_corrupted), each m a mean over prompts: 0 = corrupted run,
    1 = clean run, never clipped. The interval is the central 95 % of a bootstrap over prompts.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its corruption is part of what is measured.
        positions: `all` patches z at all positions at once; `named` at each of the task's named positions (S2, END,
            ...); `each` at every token index, for prompts of one length.
        batch: rows in one forward pass; where prompts are few, several heads are patched side by side.
        draws: bootstrap resamples.

    Returns:
        `effect`, `effect_low`, `effect_high` [layer, head] (or [pos, layer, head]), the raw `metric` of every prompt,
        and `metric_clean`, `metric_corrupted` [prompt]. When stopped early: the layers that were finished.

    Raises:
        AnalysisError: when corrupted and clean prompts give the same metric, or `each` meets several lengths.
    """
    prompts = task.encode(model.tokenizer, bos=model.bos)
    places = _places(prompts, positions)
    groups = list(batches(prompts, batch))
    clean, corrupted, states = _two_runs(model, task, prompts, groups)
    if abs(clean.mean() - corrupted.mean()) < SMALLEST_GAP:
        raise AnalysisError(
            f"The corruption '{task.corruption}' leaves the metric of '{task.name}' as it is in this model, "
            "so there is nothing to recover; use another corruption or a model that solves the task."
        )
    patched = np.empty((len(prompts), len(places), model.n_layers, model.n_heads))
    work = _work(model, groups, list(places.values()), batch)
    left = Counter(layer for layer, *_ in work)
    for layer, group, index, heads in track(work, f"head_patching {task.name}", len(work)):
        rows, place = groups[group], list(places.values())[index]
        edit = _restore(states[group][layer], heads, None if place is None else place[rows])
        tokens = np.tile(np.stack([prompts.corrupted[i] for i in rows]), (len(heads), 1))
        values = measure(model.logits(tokens, {Z.format(layer): edit}), prompts, np.tile(rows, len(heads)), task.metric)
        patched[rows[:, None], index, layer, heads] = values.reshape(len(heads), len(rows)).T
        left[layer] -= 1
    finished = sum(left[layer] == 0 for layer in range(model.n_layers))
    if not finished:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    return _dataset(patched[:, :, :finished], clean, corrupted, places, prompts, task, draws)


def _places(prompts: Prompts, positions: str) -> dict[str | int, np.ndarray | None]:
    """Label -> token index in each prompt [prompt]; one label without an index where all are patched at once."""
    if positions == "all":
        return {"all": None}
    if positions == "named":
        shared = set.intersection(*(set(marks) for marks in prompts.positions))
        found = {name: np.array([marks[name] for marks in prompts.positions]) for name in shared}
        return {name: found[name] for name in sorted(found, key=lambda name: (found[name].mean(), name))}
    lengths = set(prompts.lengths.tolist())
    if len(lengths) > 1:
        raise AnalysisError(
            f"positions='each' needs prompts of one length, but these have {min(lengths)} to {max(lengths)} tokens; "
            "use positions='named'."
        )
    return {index: np.full(len(prompts), index) for index in range(lengths.pop())}


def _two_runs(
    model: "Model", task: Task, prompts: Prompts, groups: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[list["torch.Tensor"]]]:
    """Metric of the clean and the corrupted prompts [prompt], and clean z of each group and layer."""
    clean, corrupted, states = np.empty(len(prompts)), np.empty(len(prompts)), []
    names = [Z.format(layer) for layer in range(model.n_layers)]
    for rows in groups:
        logits, kept = model.capture(np.stack([prompts.clean[i] for i in rows]), names)
        clean[rows] = measure(logits, prompts, rows, task.metric)
        logits = model.logits(np.stack([prompts.corrupted[i] for i in rows]))
        corrupted[rows] = measure(logits, prompts, rows, task.metric)
        states.append([kept[name] for name in names])
    return clean, corrupted, states


def _work(model: "Model", groups: list[np.ndarray], places: list, batch: int) -> list[tuple[int, int, int, range]]:
    """(layer, group of prompts, place, heads patched side by side) of every forward pass, layer by layer."""
    work = []
    for layer, (group, rows), place in itertools.product(range(model.n_layers), enumerate(groups), range(len(places))):
        step = max(1, batch // len(rows))
        for first in range(0, model.n_heads, step):
            work.append((layer, group, place, range(first, min(first + step, model.n_heads))))
    return work


def _restore(state: "torch.Tensor", heads: range, place: np.ndarray | None):
    """An edit that puts clean z [row, pos, head, d_head] back: head `heads[i]` in the i-th repeat of the rows.

    `place` is the token index in each row, or None for all positions.
    """
    count = len(state)

    def edit(value: "torch.Tensor") -> "torch.Tensor":
        value = value.clone()
        for repeat, head in enumerate(heads):
            part = value[repeat * count : (repeat + 1) * count]
            rows = slice(None) if place is None else list(range(count))
            where = slice(None) if place is None else place.tolist()
            part[rows, where, head] = state[rows, where, head]
        return value

    return edit


def _dataset(
    patched: np.ndarray,
    clean: np.ndarray,
    corrupted: np.ndarray,
    places: dict[str | int, np.ndarray | None],
    prompts: Prompts,
    task: Task,
    draws: int,
) -> xr.Dataset:
    whole = any(place is None for place in places.values())  # `None in` would compare arrays
    gap, gain = clean - corrupted, patched - corrupted[:, None, None, None]
    weights = resamples(len(gap), draws, task.seed)
    samples = np.tensordot(weights, gain, 1) / (weights @ gap)[:, None, None, None]
    low, high = interval(samples)
    dims = ("pos", "layer", "head")
    say = {"long_name": "recovered " + task.metric.replace("_", " "), "units": "share", "signed": 1}
    values = {"effect": gain.mean(0) / gap.mean(), "effect_low": low, "effect_high": high}
    raw = {"long_name": task.metric.replace("_", " "), "units": "logits" if task.metric == "logit_diff" else "1"}
    ds = xr.Dataset(
        {name: (dims, value, say) for name, value in values.items()}
        | {"metric": (("prompt", *dims), patched, raw)}
        | {"metric_clean": ("prompt", clean, raw), "metric_corrupted": ("prompt", corrupted, raw)},
        coords={
            "prompt": np.arange(len(gap)),
            "pos": list(places),
            "layer": np.arange(patched.shape[2]),
            "head": np.arange(patched.shape[3]),
            "text": ("prompt", prompts.texts),
        },
    )
    ds.attrs = {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "positions": "all" if whole else "by position",
        "n": len(prompts),
        "dropped": sum(prompts.dropped.values()),
        "accuracy": float((clean > 0).mean()),
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
    }
    return ds.isel(pos=0, drop=True) if whole else ds
