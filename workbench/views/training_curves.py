"""What a fine-tune does while it learns: losses, held-out accuracy, and what was measured in the model meanwhile."""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from widgets.training_curves import Line, Panel, TrainingCurves, pack
from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import Drawing, caption, only, view

SHOWN = 240  # parts of the run whose extremes are drawn
MOVED = 3  # cells a task that are followed


@view(
    requires={"step", "task", "checkpoint"},
    variables={"loss", "accuracy", "accuracy_low", "accuracy_high"},
    about="A fine-tune's loss of each task over its steps, accuracy on held-out rows, and what was measured in it.",
)
def training_curves(
    ds: xr.Dataset,
    *,
    telemetry: Mapping[str, Mapping[str, xr.Dataset]] | None = None,
    log: bool = False,
    span: float = 0.05,
) -> Drawing:
    """One panel of losses, one of accuracy, and one for each analysis in `telemetry`, on one axis of steps.

    Args:
        ds: what `Run.curves` gives.
        telemetry: by analysis, and within it by task, what `Run.telemetry` gives.
        log: draw the losses on a logarithmic axis.
        span: share of all steps over which the strong lines are a mean.

    Faint is the loss of each step, strong its exponential mean, which the page computes. A colour is a task. Of an
    analysis the cells (heads, say) are drawn that have moved most since it was first measured.
    """
    measured = dict(telemetry or {})
    tasks = [str(task) for task in ds["task"].values]
    panels = [Panel("Training loss", "nats", "loss"), Panel("Held-out rows answered rightly", "share", "share")]
    panels += [_panel(name, parts) for name, parts in measured.items()]
    lines = [*_losses(ds, tasks), *_accuracies(ds, tasks)]
    for row, parts in enumerate(measured.values(), 2):
        lines += [line for of, found in parts.items() for line in _measured(of, found, tasks, row)]
    colours = {task: theme.TASKS[number % len(theme.TASKS)] for number, task in enumerate(tasks)}
    said = {"heading": str(ds.attrs["title"]), "note": _note(ds)}
    return Drawing(TrainingCurves, pack(panels, lines, colours) | said | {"logarithmic": log, "span": span})


def _note(ds: xr.Dataset) -> str:
    count = ds.sizes["step"]
    parts = f" (of {count:,} the extremes of {SHOWN} parts)" if count > 2 * SHOWN else ""
    how = f"faint: each step{parts}; strong: exponential mean; bars: 95 % Wilson intervals"
    return " · ".join(filter(None, (caption(ds), how)))


def _panel(name: str, parts: Mapping[str, xr.Dataset]) -> Panel:
    ds = next(iter(parts.values()))
    attrs = ds[ds.attrs["primary"]].attrs
    return Panel(f"{name}: {attrs['long_name']}, where it moved most", str(attrs.get("units", "")))


def _losses(ds: xr.Dataset, tasks: list[str]) -> Iterator[Line]:
    """Of each task the steps themselves, and means of them for the page to smooth."""
    steps, losses = ds["step"].values, only(ds, "loss", "step", "task").values
    for number, task in enumerate(tasks):
        raw = losses[:, number]
        kept = extremes(raw)
        yield Line(0, number, task, steps[kept], raw[kept], role="raw")
        ends, means, counts = part_means(raw)
        yield Line(0, number, task, steps[ends], means, counts=counts, role="mean")


def _accuracies(ds: xr.Dataset, tasks: list[str]) -> Iterator[Line]:
    right, low, high = (
        only(ds, name, "checkpoint", "task").values for name in ("accuracy", "accuracy_low", "accuracy_high")
    )
    for number, task in enumerate(tasks):
        yield Line(1, number, task, ds["checkpoint"].values, right[:, number], low[:, number], high[:, number])


def _measured(of: str, ds: xr.Dataset, tasks: list[str], row: int) -> Iterator[Line]:
    """The cells of an analysis that moved most, a line each, of their task."""
    primary = str(ds.attrs["primary"])
    for task, part in _by_task(of, ds):
        values = part[primary].transpose("step", ...)
        flat = values.values.reshape(len(values), -1)
        ends = [part[end] for end in (f"{primary}_low", f"{primary}_high") if end in part]
        bounded = len(ends) == 2 and all(set(end.dims) == set(values.dims) for end in ends)
        flats = [end.transpose(*values.dims).values.reshape(flat.shape) for end in ends if bounded]
        for cell in _moved(flat):
            name = " ".join(filter(None, (task, _cell(values, cell))))
            low, high = (end[:, cell] for end in flats) if flats else (None, None)
            yield Line(row, _owner(task, tasks), name, ds["step"].values, flat[:, cell], low, high)


def _owner(task: str, tasks: list[str]) -> int:
    """Number of a measured task among those that are learned; -1 for another."""
    return next((tasks.index(name) for name in (task, task.partition(" (")[0]) if name in tasks), -1)


def _by_task(of: str, ds: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """A result of one task, or the parts of one that compares tasks."""
    if "task" not in ds[ds.attrs["primary"]].dims:
        yield of, ds
        return
    for task in ds["task"].values:
        yield str(task), ds.sel(task=task)


def _moved(flat: np.ndarray) -> list[int]:
    """The columns of values [step, cell] that moved most; before the second measurement, the largest ones."""
    moved = np.ptp(flat, axis=0) if len(flat) > 1 else np.abs(flat[0])
    return [int(cell) for cell in np.argsort(-moved, kind="stable")[:MOVED]]


def _cell(values: xr.DataArray, cell: int) -> str:
    """What a column of values [step, …] is called: L2H3, or its labels."""
    dims = [str(dim) for dim in values.dims[1:]]
    places = np.unravel_index(cell, values.shape[1:]) if dims else ()
    labels = {dim: values[dim].values[place] for dim, place in zip(dims, places, strict=True)}
    head = head_name(int(labels.pop("layer")), int(labels.pop("head"))) if {"layer", "head"} <= labels.keys() else ""
    rest = [str(label) if isinstance(label, str) else f"{dim} {label}" for dim, label in labels.items()]
    return " ".join(filter(None, (head, *rest)))


def extremes(values: np.ndarray) -> np.ndarray:
    """Places of the least and the largest of values [step] in each of `SHOWN` parts, and both ends, in order."""
    if len(values) <= 2 * SHOWN:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), SHOWN)
    found = [part[pick(values[part])] for part in parts for pick in (np.argmin, np.argmax)]
    return np.unique([0, *found, len(values) - 1])


def part_means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [step] as means of at most `2 * SHOWN` parts: the place of each part's last step, its mean, its size."""
    parts = np.array_split(np.asarray(values, dtype=float), min(len(values), 2 * SHOWN))
    counts = np.array([len(part) for part in parts])
    return np.cumsum(counts) - 1, np.array([part.mean() for part in parts]), counts
