"""How tasks and the heads they share come about in training."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, listed, only, view
from workbench.views._training import in_order, model_of

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PANELS = ("Accuracy of each task", "Overlap of the circuits", "Effect of the heads shared at the last checkpoint")


@view(
    requires={"checkpoint", "size", "layer", "head"},
    variables={"iou", "iou_null_high", "accuracy", "effect", "shared"},
    about="Over training: each task's accuracy, the overlap of their circuits, and the effect of the heads they share.",
)
def emergence(ds: xr.Dataset, heads: int = 6) -> go.Figure:
    """Three panels over the checkpoints; the last follows the `heads` strongest shared ones, a line a head and task.

    In all panels a dash is a task; in the last a colour is a head.
    """
    ds, x, order, numeric = in_order(ds)
    chosen = [int(size) for size in np.array(listed(ds, "chosen", len(x)))[order]]
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=PANELS)
    _accuracies(figure, ds, x)
    _overlaps(figure, ds, x, chosen)
    note = _effects(figure, ds, x, heads)
    size = f"circuits of {' / '.join(map(str, dict.fromkeys(chosen)))} heads"
    tasks = " and ".join(map(str, ds["task"].values))
    title = f"Emergence of {tasks} in {model_of(ds)}"
    figure.update_layout(**heading(ds, title, f"{size} · {note}", room=20, height=760))
    for row, (legend, y) in enumerate((("legend", 1), ("legend2", 0.64), ("legend3", 0.28)), start=1):
        figure.update_layout({legend: {"y": y, "yanchor": "top", "x": 1.01}})
        figure.update_traces(legend=legend, row=row, col=1)
    figure.update_xaxes(type="linear" if numeric else "category")
    figure.update_xaxes(title="training step" if numeric else "checkpoint", row=3, col=1)
    return figure


def _accuracies(figure: go.Figure, ds: xr.Dataset, x: list) -> None:
    accuracy = only(ds, "accuracy", "task", "checkpoint").values
    for index, (task, values) in enumerate(zip(ds["task"].values, accuracy, strict=True)):
        line = {"color": theme.QUIET, "width": 2.5, "dash": DASHES[index % len(DASHES)]}
        figure.add_scatter(x=x, y=values, mode="lines+markers", line=line, name=theme.plain(task), row=1, col=1)
    figure.update_yaxes(title="accuracy", range=[0, 1.05], row=1, col=1)


def _overlaps(figure: go.Figure, ds: xr.Dataset, x: list, chosen: list[int]) -> None:
    """IoU at each checkpoint's chosen size, with the null's 95 % point and the ceiling."""
    lines = {"iou_null_high": ("chance, 95 % point", {"color": theme.QUIET, "dash": "dash", "width": 1.5})}
    lines["iou_ceiling"] = ("ceiling: halves of one task", {"color": theme.TASKS[2], "dash": "dot", "width": 1.5})
    lines["iou"] = ("intersection over union", {"color": theme.TASKS[0], "width": 2.5})
    for variable, (name, line) in lines.items():
        if variable not in ds:
            continue
        curves = only(ds, variable, "checkpoint", "size")
        values = [float(curve.sel(size=size)) for curve, size in zip(curves, chosen, strict=True)]
        fill = {"fill": "tozeroy", "fillcolor": theme.BAND} if variable == "iou_null_high" else {}
        figure.add_scatter(x=x, y=values, mode="lines+markers", line=line, name=name, row=2, col=1, **fill)
    figure.update_yaxes(title="IoU", range=[0, 1.05], row=2, col=1)


def _effects(figure: go.Figure, ds: xr.Dataset, x: list, most: int) -> str:
    """A line for each head and task; says which heads are followed."""
    effect = only(ds, "effect", "checkpoint", "task", "layer", "head").values
    shared = np.argwhere(only(ds, "shared", "checkpoint", "layer", "head").values[-1] > 0).tolist()
    figure.update_yaxes(title="effect", row=3, col=1)
    if not shared:
        return "no head is shared at the last checkpoint"
    strongest = sorted(shared, key=lambda at: -np.abs(effect[-1, :, at[0], at[1]]).mean())[:most]
    for number, (row, column) in enumerate(strongest):
        name = f"L{ds['layer'].values[row]}H{ds['head'].values[column]}"
        for index, task in enumerate(ds["task"].values):
            colour, dash = theme.TASKS[number % len(theme.TASKS)], DASHES[index % len(DASHES)]
            figure.add_scatter(
                x=x,
                y=effect[:, index, row, column],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2},
                name=name,
                legendgroup=name,
                showlegend=index == 0,
                hovertemplate=f"{name}, {theme.plain(task)}: %{{y:.3f}}<extra></extra>",
                row=3,
                col=1,
            )
    return f"followed: {len(strongest)} of {len(shared)} heads shared at the last checkpoint"
