"""Gradient alignment over training: every two tasks' cosine, and how well each task's own gradient is known."""

import itertools
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, pick, view
from workbench.views._gradients import NEEDED
from workbench.views._strips import level, whiskers
from workbench.views._training import in_order, model_of

POINT = "step %{x}: %{y:.3f}"
ENDS = ("cosine", "cosine_low", "cosine_high")


@view(
    requires={"checkpoint", "module", "task", "receiver"},
    variables={*NEEDED, "norm"},
    about="Gradient cosine of every two tasks over training with its interval; below: each task's ceiling.",
)
def gradient_training(ds: xr.Dataset, module: str = "all") -> go.Figure:
    """A line for every pair of tasks on one `module`; the lower panel says what the noise leaves room for."""
    part, x, _, numeric = in_order(pick(ds, module=module))
    found = [only(part, name, "checkpoint", "task", "receiver").values for name in ENDS]
    ceiling, norm = (only(part, name, "checkpoint", "task").values for name in ("ceiling", "norm"))
    names = [theme.plain(task) for task in part["task"].values]
    titles = ["Cosine of two tasks' gradients", "Ceiling: cosine of two independent gradients of one task"]
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=titles)
    figure.update_annotations(font_size=13)
    for place, (i, j) in enumerate(itertools.combinations(range(len(names)), 2)):
        seen, low, high = (values[:, i, j] for values in found)
        name = f"{names[i]} and {names[j]}"
        _line(figure, x, seen, name, place, 1, error_y=whiskers(seen, low, high), hovertemplate=f"{POINT}<extra>{name}")
    for place, name in enumerate(names):
        said = f"{POINT}, norm %{{customdata:.2g}}<extra>{name}"
        _line(figure, x, ceiling[:, place], name, place, 2, customdata=norm[:, place], hovertemplate=said)
    for axes in ("", "2"):
        level(figure, 0.0, axes=axes)
    notes = "bars: 95 % intervals, jackknife over batches"
    title = f"Gradient alignment over training, {module}: {model_of(ds)}"
    figure.update_layout(**heading(ds, title, notes, room=20, height=620))
    figure.update_xaxes(type="linear" if numeric else "category")
    figure.update_xaxes(title="training step" if numeric else "checkpoint", row=2, col=1)
    return figure


def _line(figure: go.Figure, x: list, y: Any, name: str, place: int, row: int, **more: Any) -> None:
    hue = theme.TASKS[place % len(theme.TASKS)]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": hue, "width": 2, "dash": "solid" if row == 1 else "dot"},
        name=name,
        **more,
        row=row,
        col=1,
    )
