"""What the MLP that makes sinks gives for each direction of their inputs, beside random directions."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import ViewError, heading, only, view
from workbench.views._strips import level

NULL = ("cosine_null_low", "cosine_null_high", "norm_null_low", "norm_null_high")
PANELS = {"cosine": "cosine to the primary sink", "norm": "norm of the output"}


@view(
    requires={"module", "component", "measured", "size"},
    variables={*PANELS, *NULL, "explained", "extent", "sink_cosine", "sink_norm"},
    about="Cosine and norm of the MLP's output for each direction of the sinks' inputs, beside random directions.",
)
def sink_directions_plot(ds: xr.Dataset, to: str = "block output") -> go.Figure:
    """Two panels over +-alpha, a line a direction: cosine `to` the primary's block output or MLP output, and norm.

    The bands hold 95 % of random directions; dotted: the median of what the sinks themselves get.
    """
    known = ds["module"].values.tolist()
    if to not in known:
        raise ViewError(f"There is no cosine to '{to}'; this result has those to: {', '.join(known)}.")
    here, figure = ds.sel(module=to), make_subplots(1, 2, horizontal_spacing=0.1)
    for column, name in enumerate(PANELS, 1):
        _band(figure, column, here, name)
        _lines(figure, column, here, name)
        level(figure, float(only(here, f"sink_{name}")), "the sinks themselves", "" if column == 1 else "2")
    title = f"Directions of sinks' inputs through MLP {ds.attrs['layer']}: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, *_notes(here), height=480), showlegend=True)
    figure.update_xaxes(title="± α, in mean input norms of the sinks", zeroline=True)
    figure.update_yaxes(title=f"{PANELS['cosine']}: {theme.plain(to)}", range=[-1.08, 1.08], col=1)
    figure.update_yaxes(title=PANELS["norm"], rangemode="tozero", col=2)
    return figure


def _band(figure: go.Figure, column: int, ds: xr.Dataset, name: str) -> None:
    """Where 95 % of random directions lie, on either side of 0."""
    alpha = ds["alpha"].values
    low, high = (only(ds, f"{name}_null_{end}", "size").values for end in ("low", "high"))
    for side in (-1, 1):
        figure.add_scatter(
            x=np.concatenate([side * alpha, side * alpha[::-1]]),
            y=np.concatenate([low, high[::-1]]),
            fill="toself",
            fillcolor=theme.BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name="random directions (95 %)",
            legendgroup="null",
            showlegend=column == 1 and side == 1,
            row=1,
            col=column,
        )


def _lines(figure: go.Figure, column: int, ds: xr.Dataset, name: str) -> None:
    """A line a direction, broken at 0."""
    alpha, values = ds["alpha"].values, only(ds, name, "component", "measured", "size")
    x = [*-alpha[::-1], None, *alpha]
    for number, label in enumerate(ds["component"].values):
        minus, plus = (values.sel(component=label, measured=sign).values for sign in ("-", "+"))
        colour = theme.TASKS[number % len(theme.TASKS)]
        said = _said(ds.sel(component=label), str(label))
        figure.add_scatter(
            x=x,
            y=[*minus[::-1], None, *plus],
            mode="lines+markers",
            line={"color": colour, "dash": "dash" if number >= len(theme.TASKS) else "solid"},
            marker={"size": 6, "symbol": "diamond" if label == "mean" else "circle"},
            name=said,
            legendgroup=str(number),
            showlegend=column == 1,
            hovertemplate=f"{said}<br>α = %{{x:+.3~g}}: {name} %{{y:.3~g}}<extra></extra>",
            row=1,
            col=column,
        )


def _said(ds: xr.Dataset, label: str) -> str:
    """A direction with its share of the variance and the α that the inputs themselves have along it."""
    share, extent = float(only(ds, "explained")), float(only(ds, "extent"))
    if label == "mean":
        return f"mean (its own α {extent:.2f})"
    return f"{theme.plain(label)} ({100 * share:.0f} %, SD {extent:.2f})"


def _notes(ds: xr.Dataset) -> list[str]:
    sample = "the sinks" if ds.attrs["among"] == "sinks" else f"the sinks and others ({ds.attrs['sample']} tokens)"
    return [
        f"{ds.attrs['sinks']} sinks ({ds.attrs['kind']}) created in layer {ds.attrs['layer']}; {ds.attrs['rule']}",
        f"principal components of the MLP inputs of {sample}, mean taken out; each direction alone is the input",
    ]
