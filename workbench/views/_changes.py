"""What figures of a comparison share: its cells as a table, how states are coloured, and what is said of a cell."""

import json
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench import theme
from workbench.models.cell_names import cell_name
from workbench.views._base import ViewError

STATES = ("absent", "kept", "lost", "gained", "flipped")
COLOURS = ("rgba(138, 143, 152, 0.18)", theme.QUIET, theme.TASKS[0], theme.TASKS[1], theme.TASKS[3])
MUTED = COLOURS[0]
ENDS = ("difference_low", "difference_high")
NEEDED = ("before", "after", "difference", *ENDS, "band", "p", "state", "rank")
PAIR = ("task", "receiver")  # together the columns of a table, where both are there
NOTE = "in colour: outside the simultaneous 95 % band of the noise; grey: inside it"


@dataclass(frozen=True)
class Table:
    """Some cells of a comparison in rows and columns: names of both, and how an array becomes [row, column]."""

    rows: list[str]
    columns: list[str]
    dims: tuple[str, ...]
    chosen: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]
    left_out: int  # cells that no row and column shows

    def of(self, values: xr.DataArray) -> np.ndarray:
        """The values of the cells shown, [row, column]."""
        return values.transpose(*self.dims).values.reshape(self.shape)[np.ix_(*self.chosen)]


def table_of(ds: xr.Dataset, most: int) -> Table:
    """The rows and columns with the largest changes, `most` of either, in the order they have."""
    dims = [str(dim) for dim in ds["difference"].dims]
    if not dims:
        raise ViewError("This comparison is of one number; read it with workbench.analyses.top_changes.")
    across = [dim for dim in PAIR if dim in dims] if set(PAIR) <= set(dims) else dims[-1:]
    down = [dim for dim in dims if dim not in across]
    sizes = [int(np.prod([ds.sizes[dim] for dim in part])) for part in (down, across)]
    rank = ds["rank"].transpose(*down, *across).values.reshape(sizes)
    worst = np.iinfo(rank.dtype).max
    place = np.where(rank < 0, worst, rank)
    chosen = tuple(_best(place.min(axis), worst, most) for axis in (1, 0))
    names = [_labels(ds, part, list(kept)) for part, kept in zip((down, across), chosen, strict=True)]
    shown = int((rank[np.ix_(*chosen)] >= 0).sum())
    left_out = int((rank >= 0).sum()) - shown
    return Table(names[0], names[1], (*down, *across), (chosen[0], chosen[1]), (sizes[0], sizes[1]), left_out)


def _best(place: np.ndarray, worst: int, most: int) -> np.ndarray:
    """Indices of the `most` lines with the best places, in their order; lines without a cell are left out."""
    kept = np.argsort(place, kind="stable")[:most]
    return np.sort(kept[place[kept] < worst])


def _labels(ds: xr.Dataset, dims: list[str], places: list[int]) -> list[str]:
    shape = [ds.sizes[dim] for dim in dims]
    found = []
    for place in places:
        at = np.unravel_index(place, shape) if dims else ()
        found.append(theme.plain(cell_name({d: ds[d].values[i] for d, i in zip(dims, at, strict=True)})))
    return found


def ranked(ds: xr.Dataset, count: int) -> list[tuple[tuple[int, ...], str]]:
    """Places and names of the first `count` cells by rank."""
    rank, dims = ds["rank"].values, [str(dim) for dim in ds["rank"].dims]
    cells = sorted((int(rank[tuple(at)]), tuple(at)) for at in np.argwhere((rank >= 0) & (rank < count)).tolist())
    named = []
    for _, at in cells:
        labels = {dim: ds[dim].values[place] for dim, place in zip(dims, at, strict=True)}
        named.append((at, theme.plain(cell_name(labels))))
    return named


def hover(name: str, numbers: dict[str, float]) -> str:
    """What is said of one cell, from its variables."""
    low, high = (numbers[end] for end in ENDS)
    return "<br>".join(
        [
            f"{name}: {STATES[int(numbers['state'])]}",
            f"before {numbers['before']:.4g}, after {numbers['after']:.4g}",
            f"difference {numbers['difference']:+.4g} ({low:+.4g} to {high:+.4g}, all cells at once)",
            f"p = {numbers['p']:.2g}, corrected for all cells",
        ]
    )


def title_of(ds: xr.Dataset) -> str:
    """Which checkpoints of what."""
    task = str(ds.attrs["task"])
    tasks = json.loads(task) if task.startswith("[") else [task]
    what = f"{ds.attrs['compared']}, {ds.attrs['after_model']} against {ds.attrs['before_model']}"
    return f"{what}: {', '.join(tasks)}"


def counted(ds: xr.Dataset) -> str:
    """How many cells are in which state, and how far the circuits agree."""
    states = ", ".join(f"{ds.attrs[name]} {name}" for name in STATES[1:])
    line = (
        f"{ds.attrs['changed']} of {ds.attrs['cells']} outside the noise · {states} · Jaccard {ds.attrs['jaccard']:.2f}"
    )
    if "jaccard_retest" in ds.attrs:
        line += f" (on other prompts {ds.attrs['jaccard_retest']:.2f})"
    return line
