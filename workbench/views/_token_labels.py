"""What each token of a map is: its expert, task and kind, its place, and how sure the router was of it."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import xarray as xr

from widgets.token_map import Colouring, palette
from workbench import theme
from workbench.views._base import only

BINS = 6
# Yellow-green to violet, none so dark or so light that it vanishes on a dark or a light page.
RAMP = ("#8a4fd0", "#5b6fd6", "#2b8fc0", "#1ba38c", "#5cb04a", "#b9a81e")
AT = ("prompt", "pos")


def labels(ds: xr.Dataset) -> list[Colouring]:
    """What tells tokens apart by name: expert, task, kind; of these, those the result has, task only if of several."""
    return list(_labels(ds))


def _labels(ds: xr.Dataset) -> Iterator[Colouring]:
    if "first_expert" in ds and (expert := only(ds, "first_expert", *AT).values.ravel()).max() >= 0:
        names = [f"E{number}" for number in range(expert.max() + 1)]
        some = ["no expert"] if expert.min() < 0 else []
        yield Colouring("expert", expert + len(some), some + names, [theme.QUIET] * len(some) + palette(len(names)))
    tasks = [str(name) for name in json.loads(ds.attrs.get("tasks", "[]"))]
    if "task_index" in ds and len(tasks) > 1:
        codes = np.repeat(ds["task_index"].values, ds.sizes["pos"])
        yield Colouring("task", codes, tasks, theme.TASKS[: len(tasks)] if len(tasks) <= len(theme.TASKS) else ())
    if "kind" in ds:
        yield Colouring("kind", only(ds, "kind", *AT).values.ravel(), json.loads(ds.attrs["kinds"]))


def ranges(ds: xr.Dataset) -> list[Colouring]:
    """What tells tokens apart by a number, cut into ranges: position, and the router's probability and entropy."""
    return [_places(ds), *(_cut(name, only(ds, name, *AT).values) for name in ("probability", "entropy") if name in ds)]


def _cut(name: str, values: np.ndarray) -> Colouring:
    """Ranges with about as many tokens each."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1), method="nearest"))
    codes = np.searchsorted(edges[1:-1], values.ravel(), side="right")
    ends = [f"{edge:.3g}" for edge in edges]
    return _ramped(name, codes, [f"{low} to {high}" for low, high in itertools.pairwise(ends)] or ends)


def _places(ds: xr.Dataset) -> Colouring:
    """Positions in so many parts of one length."""
    parts = np.array_split(ds["pos"].values, min(BINS, ds.sizes["pos"]))
    codes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    names = [f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts]
    return _ramped("position", np.tile(codes, ds.sizes["prompt"]), names)


def _ramped(name: str, codes: np.ndarray, names: list[str]) -> Colouring:
    colours = [RAMP[round(place)] for place in np.linspace(0, len(RAMP) - 1, len(names))]
    return Colouring(name, codes, names, colours)
