"""Activation patching of attention heads: which heads, restored to their clean output, restore the answer."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.analyses._patching import (
    Group,
    Runs,
    Z,
    chunks,
    gap_between,
    groups,
    named,
    plain_metric,
    share,
    two_runs,
)
from workbench.progress import Cancelled, track
from workbench.schema import SIGN
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

Patch = Callable[[int, int, np.ndarray | None], np.ndarray | None]  # layer, group, place -> metric [head, row]


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
        batch: prompts recorded together; how many heads are patched side by side follows from the memory at hand.
        draws: bootstrap resamples.

    Returns:
        `effect`, `effect_low`, `effect_high` [layer, head] (or [pos, layer, head]), the raw `metric` of every prompt,
        and `metric_clean`, `metric_corrupted` [prompt]. When stopped early: the layers that were finished.

    Raises:
        AnalysisError: when corrupted and clean prompts give the same metric, or `each` meets several lengths.
    """
    prompts = task.encode(model.tokenizer, bos=model.bos)
    places = _places(prompts, positions)
    parts = groups(prompts, task.metric, batch)
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "keys", "values")
    gap_between(clean, corrupted, task)
    patched = np.empty((len(prompts), len(places), model.n_layers, model.n_heads))
    work = list(itertools.product(range(model.n_layers), range(len(parts)), range(len(places))))
    left = Counter(layer for layer, *_ in work)
    patch = _fast(model, parts, runs) if model.trunk else _plain(model, parts, batch)
    for layer, index, which in track(work, f"head_patching {task.name}", len(work)):
        rows, place = parts[index].rows, list(places.values())[which]
        values = patch(layer, index, None if place is None else place[rows])
        patched[rows, which, layer] = corrupted[rows, None] if values is None else values.T
        left[layer] -= 1
    finished = sum(left[layer] == 0 for layer in range(model.n_layers))
    if not finished:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    ds = _dataset(patched[:, :, :finished], clean, corrupted, places, prompts, task, draws)
    ds.attrs["way"] = model.way
    return ds


def _places(prompts: Prompts, positions: str) -> dict[str | int, np.ndarray | None]:
    """Label -> token index in each prompt [prompt]; one label without an index where all are patched at once."""
    if positions == "all":
        return {"all": None}
    if positions == "named":
        return {**named(prompts)}
    lengths = set(prompts.lengths.tolist())
    if len(lengths) > 1:
        raise AnalysisError(
            f"positions='each' needs prompts of one length, but these have {min(lengths)} to {max(lengths)} tokens; "
            "use positions='named'."
        )
    return {index: np.full(len(prompts), index) for index in range(lengths.pop())}


def _fast(model: "Model", parts: list[Group], runs: list[Runs]) -> Patch:
    """Every head of a layer in one folded run of what comes after it, from the first position that differs."""
    trunk = model.trunk
    assert trunk is not None

    def patch(layer: int, index: int, place: np.ndarray | None) -> np.ndarray | None:
        run, group = runs[index], parts[index]
        length, count = group.clean.shape[1], len(group.rows)
        start = group.start if place is None else max(group.start, int(place.min()))
        if place is not None and place.max() < start:
            return None  # both runs are the same up to there
        columns, found = group.columns(trunk.device), []
        for heads in chunks(model.n_heads, trunk.rows(length - start, length) // count):
            z = run.corrupted.z[layer][:, start:].repeat(len(heads), 1, 1, 1)
            _restore(run.clean.z[layer][:, start:], heads, None if place is None else place - start)(z)
            hidden = run.corrupted.inputs[layer][:, start:].repeat(len(heads), 1, 1)
            last = trunk.run_on(layer, hidden, run.corrupted, start, attention=trunk.out(layer, z))
            found.append(group.meter(trunk.logits(last, columns)))
        return np.concatenate(found)

    return patch


def _plain(model: "Model", parts: list[Group], batch: int) -> Patch:
    """The same by whole forward passes with a hook, several heads side by side where prompts are few."""
    names = [Z.format(layer) for layer in range(model.n_layers)]
    states = [model.capture(group.clean, names)[1] for group in parts]

    def patch(layer: int, index: int, place: np.ndarray | None) -> np.ndarray:
        group, state, found = parts[index], states[index][Z.format(layer)], []
        for heads in chunks(model.n_heads, batch // len(group.rows)):
            restore = _restore(state, heads, place)
            edits = {Z.format(layer): lambda value, restore=restore: restore(value.clone())}
            found.append(plain_metric(model, group, np.tile(group.corrupted, (len(heads), 1)), edits))
        return np.concatenate(found)

    return patch


def _restore(state: "torch.Tensor", heads: range, place: np.ndarray | None):
    """A function that puts clean z [row, pos, head, d_head] into a value: head `heads[i]` in the i-th repeat of rows.

    `place` is the token index in each row, or None for all positions; a row whose index is negative is left alone.
    """
    count = len(state)
    rows = slice(None) if place is None else np.flatnonzero(place >= 0).tolist()
    where = slice(None) if place is None else place[place >= 0].tolist()

    def put(value: "torch.Tensor") -> "torch.Tensor":
        for repeat, head in enumerate(heads):
            value[repeat * count : (repeat + 1) * count][rows, where, head] = state[rows, where, head]
        return value

    return put


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
    gap = clean - corrupted
    effect, low, high = share(patched - corrupted[:, None, None, None], gap, draws, task.seed)
    dims = ("pos", "layer", "head")
    say = {"long_name": "recovered " + task.metric.replace("_", " "), "units": "share", "signed": 1}
    values = {"effect": effect, "effect_low": low, "effect_high": high}
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
