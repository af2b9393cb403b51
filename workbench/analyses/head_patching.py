"""Activation patching of attention heads: which heads, restored to their clean output, restore the answer."""

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.analyses._one_head import OneHead
from workbench.analyses._patching import gap_between, groups, named, share, two_runs
from workbench.progress import Cancelled, track
from workbench.schema import SIGN
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    from workbench.models.model import Model


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
    one = OneHead(model, parts, runs, batch)
    for layer, index, which in track(work, f"head_patching {task.name}", len(work)):
        rows, place = parts[index].rows, list(places.values())[which]
        values = _patched(one, layer, index, None if place is None else place[rows])
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


def _patched(one: OneHead, layer: int, index: int, place: np.ndarray | None) -> np.ndarray | None:
    """Metric [head, row] with each head's clean z in the corrupted run; None where both runs are the same there."""
    group, clean = one.parts[index], one.z("clean", layer, index)
    if place is None:
        return one.metric("corrupted", layer, index, clean, group.start)
    start = max(group.start, int(place.min()))
    if place.max() < start:
        return None
    z, rows = one.z("corrupted", layer, index).clone(), range(len(place))
    z[rows, place.tolist()] = clean[rows, place.tolist()]
    return one.metric("corrupted", layer, index, z, start)


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
