"""What it costs to take sinks away, beside the same done to random ordinary tokens."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._strips import aside, whiskers

NAMES = ("loss_change", "loss_change_low", "loss_change_high", "loss_change_null_low", "loss_change_null_high", "p")
DONE = {"mask": "masked", "remove": "removed", "rescale": "rescaled"}
VERDICTS = {1: ("load-bearing", theme.TASKS[1], "diamond"), 0: ("idle", theme.TASKS[0], "circle")}
HALF = 0.28  # of a row's height


@view(
    requires={"component", "seed", "measured"},
    variables={*NAMES, "loss_change_random", "load_bearing", "loss"},
    about="Change of loss without each kind of sink, with its interval, on the band of random ordinary tokens.",
)
def sink_effects(ds: xr.Dataset) -> go.Figure:
    """One row a kind of sink: its change of loss with its interval, and the controls as dots on their central 95 %."""
    found = {name: only(ds, name, "component").values for name in (*NAMES, "load_bearing")}
    kinds, figure = [theme.plain(name) for name in ds["component"].values], go.Figure()
    figure.add_vline(x=0, line={"color": theme.QUIET, "width": 1})
    _controls(figure, only(ds, "loss_change_random", "component", "seed").values, found)
    for verdict in VERDICTS:
        _changes(figure, verdict, found, kinds, only(ds, "loss", "component", "measured").values)
    said = [f"{k} {c:+.3f} (p = {p:.2g})" for k, c, p in zip(kinds, found["loss_change"], found["p"], strict=True)]
    title = f"Loss with sinks {DONE[str(ds.attrs['what'])]}: {ds.attrs['task']}, {ds.attrs['model']}"
    notes = (str(ds.attrs["meaning"]), f"mean over sequences, bars: 95 % interval; {', '.join(said)}")
    figure.update_layout(**heading(ds, title, *notes, height=230 + 70 * len(kinds)))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.4})
    figure.update_xaxes(title="change of next-token loss (nats)", zeroline=False)
    figure.update_yaxes(tickvals=list(range(len(kinds))), ticktext=kinds, range=[len(kinds) - 0.5, -0.5])
    figure.update_yaxes(title="kind of sink", showgrid=False, zeroline=False)
    return figure


def _controls(figure: go.Figure, drawn: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """A dot a draw, on the band that holds their central 95 %."""
    rows, line = np.arange(len(drawn)), {"color": theme.QUIET, "width": 1}
    for row, low, high in zip(rows, found["loss_change_null_low"], found["loss_change_null_high"], strict=True):
        place = {"x0": low, "x1": high, "y0": row - HALF, "y1": row + HALF}
        figure.add_shape(type="rect", fillcolor=theme.BAND, line=line, layer="below", **place)
    figure.add_scatter(
        x=drawn.ravel(),
        y=(rows[:, None] + aside(drawn.shape[1], 1.6 * HALF)).ravel(),
        mode="markers",
        marker={"size": 5, "color": theme.QUIET, "opacity": 0.7},
        name=f"random ordinary tokens ({drawn.shape[1]} draws, band: 95 %)",
        hovertemplate="random ordinary tokens: %{x:+.3f} nats<extra></extra>",
    )


def _changes(figure: go.Figure, verdict: int, found: dict[str, np.ndarray], kinds: list[str], loss: np.ndarray) -> None:
    """The kinds of one verdict."""
    mine = np.flatnonzero(found["load_bearing"] == verdict)
    if not mine.size:
        return
    name, colour, symbol = VERDICTS[verdict]
    change, low, high = (found[key][mine] for key in NAMES[:3])
    figure.add_scatter(
        x=change,
        y=mine,
        mode="markers",
        marker={"size": 13, "color": colour, "symbol": symbol},
        error_x=whiskers(change, low, high),
        name=name,
        text=[f"{kinds[i]}: {loss[i][0]:.3f}, then {loss[i][1]:.3f} nats, p = {found['p'][i]:.2g}" for i in mine],
        hovertemplate=f"%{{text}}<br>change %{{x:+.3f}}<extra>{name}</extra>",
    )
