"""What a fine-tune does while it learns: losses, held-out accuracy, and what was measured in the model meanwhile."""

from collections.abc import Iterator, Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import heading, only, view

DASHES = ("solid", "dash", "dot", "dashdot")  # of tasks for which there is no further colour
FEW = 30
SHOWN = 240  # parts of the run whose extremes are drawn
MOVED = 3  # cells a task that are followed
ROW, GAP = 250, 60  # pixels


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
) -> go.Figure:
    """One panel of losses, one of accuracy, and one for each analysis in `telemetry`, on one axis of steps.

    Args:
        ds: what `Run.curves` gives.
        telemetry: by analysis, and within it by task, what `Run.telemetry` gives.
        log: draw the losses on a logarithmic axis.
        span: share of all steps over which the strong lines are a mean.

    Faint is the loss of each step, strong its exponential mean over the share `span` of all steps. A colour is a task.
    Of an analysis the cells (heads, say) are drawn that have moved most since it was first measured.
    """
    measured = dict(telemetry or {})
    titles = [
        "Training loss",
        "Held-out rows answered rightly",
        *(_named(name, parts) for name, parts in measured.items()),
    ]
    rows = len(titles)
    height = ROW * rows + GAP
    figure = make_subplots(
        rows=rows, shared_xaxes=True, vertical_spacing=GAP / (ROW * rows), subplot_titles=[*map(theme.plain, titles)]
    )
    width = max(1.0, span * ds.sizes["step"])
    looks = {str(task): _look(number) for number, task in enumerate(ds["task"].values)}
    _losses(figure, ds, looks, width, log)
    _accuracies(figure, ds, looks)
    for row, parts in enumerate(measured.values(), 3):
        for task, of in parts.items():
            _measured(figure, task, of, looks, row)
    mean = f"strong: exponential mean over {width:.0f} steps; " if width >= 1.5 else ""
    note = f"{mean}bars: 95 % Wilson intervals"
    layout = heading(ds, str(ds.attrs["title"]), note, room=20, height=height)
    figure.update_layout(**layout, hovermode="x unified", uirevision=str(ds.attrs.get("run", "")))
    figure.update_xaxes(title="training step", row=rows, col=1)
    last = max(int(ds["step"].values.max()), 1)
    figure.update_xaxes(range=[-0.012 * last, 1.012 * last])
    return figure


def _named(name: str, parts: Mapping[str, xr.Dataset]) -> str:
    ds = next(iter(parts.values()))
    return f"{name}: {ds[ds.attrs['primary']].attrs['long_name']}, where it moved most"


def _look(number: int) -> dict[str, str]:
    colours = len(theme.TASKS)
    return {"color": theme.TASKS[number % colours], "dash": DASHES[number // colours % len(DASHES)]}


def _losses(figure: go.Figure, ds: xr.Dataset, looks: dict, width: float, log: bool) -> None:
    steps, losses = ds["step"].values, only(ds, "loss", "step", "task").values
    mode = "lines" if len(steps) > FEW else "lines+markers"  # a line of one point could not be seen
    for number, (task, look) in enumerate(looks.items()):
        raw, mean = losses[:, number], smoothed(losses[:, number], width)
        kept = extremes(raw)
        shared = {"name": theme.plain(task), "legendgroup": task, "mode": mode, "row": 1, "col": 1}
        faint = {"opacity": 0.4, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=steps[kept], y=raw[kept], line={**look, "width": 1, "dash": "solid"}, **faint, **shared)
        kept = extremes(mean)
        figure.add_scatter(x=steps[kept], y=mean[kept], line={**look, "width": 2.5}, hovertemplate="%{y:.3g}", **shared)
    figure.update_yaxes(title="nats", type="log" if log else "linear", row=1, col=1)
    if not log:
        figure.update_yaxes(rangemode="tozero", row=1, col=1)


def _accuracies(figure: go.Figure, ds: xr.Dataset, looks: dict) -> None:
    right, low, high = (
        only(ds, name, "checkpoint", "task").values for name in ("accuracy", "accuracy_low", "accuracy_high")
    )
    for number, (task, look) in enumerate(looks.items()):
        y, under = right[:, number], min(len(looks) - 1 - number, 4)  # wider, so as to be seen under the next one
        figure.add_scatter(
            x=ds["checkpoint"].values,
            y=y,
            error_y=_bars(y, low[:, number], high[:, number]),
            mode="lines+markers",
            line={**look, "width": 2 + under},
            marker={"size": 6 + 3 * under},
            name=theme.plain(task),
            legendgroup=task,
            showlegend=False,
            customdata=np.stack([low[:, number], high[:, number]], -1),
            hovertemplate="%{y:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})",
            row=2,
            col=1,
        )
    figure.update_yaxes(title="share", range=[0, 1.04], tickformat=".0%", row=2, col=1)


def _bars(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    ends = {"array": np.maximum(high - y, 0), "arrayminus": np.maximum(y - low, 0)}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 3, **ends}


def _measured(figure: go.Figure, of: str, ds: xr.Dataset, looks: dict, row: int) -> None:
    """The cells of an analysis that moved most, a line each, in the colour of their task."""
    primary = str(ds.attrs["primary"])
    for task, part in _by_task(of, ds):
        values = part[primary].transpose("step", ...)
        flat = values.values.reshape(len(values), -1)
        look = looks.get(task) or looks.get(task.partition(" (")[0]) or {"color": theme.QUIET}
        for cell in _moved(flat):
            name = " ".join(filter(None, (task, _cell(values, cell))))
            ends = [part[end] for end in (f"{primary}_low", f"{primary}_high") if end in part]
            bars = {}
            if len(ends) == 2 and all(set(end.dims) == set(values.dims) for end in ends):
                low, high = (end.transpose(*values.dims).values.reshape(len(values), -1)[:, cell] for end in ends)
                bars = {"error_y": _bars(flat[:, cell], low, high)}
            figure.add_scatter(
                x=ds["step"].values,
                y=flat[:, cell],
                mode="lines+markers",
                line={**look, "width": 1.5},
                name=theme.plain(name),
                legendgroup=task or None,
                showlegend=False,
                hovertemplate="%{y:.3f}",
                **bars,
                row=row,
                col=1,
            )
    figure.update_yaxes(title=theme.plain(ds[primary].attrs.get("units", "")), row=row, col=1)


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


def smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Exponential mean of values [step] over about `width` steps, its beginning weighed by what there is."""
    keep, total, weight = 1 - 1 / width, 0.0, 0.0
    found = np.empty(len(values))
    for place, value in enumerate(values.tolist()):
        total, weight = keep * total + value, keep * weight + 1
        found[place] = total / weight
    return found


def extremes(values: np.ndarray) -> np.ndarray:
    """Places of the least and the largest of values [step] in each of `SHOWN` parts, and both ends, in order."""
    if len(values) <= 2 * SHOWN:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), SHOWN)
    found = [part[pick(values[part])] for part in parts for pick in (np.argmin, np.argmax)]
    return np.unique([0, *found, len(values) - 1])
