"""When in training heads begin to park their attention."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, listed, only, pick, view
from workbench.views._strips import level, named_heads, whiskers
from workbench.views._training import in_order, model_of

RATE = ("sink_rate_mean", "sink_rate_mean_low", "sink_rate_mean_high")


@view(
    requires={"checkpoint", "layer", "head", "key_pos"},
    variables={"alpha", "alpha_low", "alpha_high", "alpha_null", *RATE},
    about="Over training: the sink rate of the first token (or another), and alpha of the heads that rest on it most.",
)
def sink_emergence(ds: xr.Dataset, heads: int = 6, key: int = 0) -> go.Figure:
    """Two panels over the checkpoints: the sink rate over all heads, and alpha, head by head.

    The `heads` with the largest alpha at any checkpoint are named and have their intervals; the others are thin.
    """
    ds, x, _, numeric = in_order(ds)
    epsilon = float(listed(ds, "epsilon", len(x))[-1])
    at = pick(ds, key_pos=key)
    titles = (f"Sink rate: share of heads and sequences with alpha > {epsilon:g}", "Alpha, head by head")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.12, row_heights=[1, 2], subplot_titles=titles)
    figure.update_annotations(font_size=13)
    _rate(figure, at, x)
    _heads(figure, at, x, heads)
    null = float(np.ravel(at["alpha_null"].values)[-1])
    line = {"color": theme.QUIET, "width": 3}
    name, say = f"uniform attention: {null:.2f}", "%{y:.3f}<extra>uniform attention</extra>"
    figure.add_scatter(
        x=[x[0], x[-1]], y=[null, null], mode="lines", line=line, name=name, hovertemplate=say, row=2, col=1
    )
    level(figure, epsilon, f"ε = {epsilon:g}", "2")
    token = "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"
    title = f"When heads come to rest on {token}: {ds.attrs['task']} in {model_of(ds)}"
    note = "bars: 95 % intervals; the thick grey line: uniform attention"
    figure.update_layout(**heading(ds, title, note, room=20, height=560), legend={"y": 0, "yanchor": "bottom"})
    figure.update_xaxes(type="linear" if numeric else "category")
    figure.update_xaxes(title="training step" if numeric else "checkpoint", row=2, col=1)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _rate(figure: go.Figure, at: xr.Dataset, x: list) -> None:
    rate, low, high = (only(at, name, "checkpoint").values for name in RATE)
    figure.add_scatter(
        x=x,
        y=rate,
        mode="lines+markers",
        line={"color": theme.TASKS[0], "width": 2.5},
        error_y=whiskers(rate, low, high),
        showlegend=False,
        hovertemplate="step %{x}: %{y:.3f}<extra>sink rate</extra>",
        row=1,
        col=1,
    )
    figure.update_yaxes(title="sink rate", row=1, col=1)


def _heads(figure: go.Figure, at: xr.Dataset, x: list, most: int) -> None:
    """A line a head; those that ever have the largest alpha come last, so that they lie on top."""
    alpha, low, high = (
        only(at, f"alpha{end}", "checkpoint", "layer", "head").values.reshape(len(x), -1)
        for end in ("", "_low", "_high")
    )
    names = named_heads(at).ravel()
    order = np.argsort(-alpha.max(0), kind="stable")
    for place in order[most:]:
        figure.add_scatter(
            x=x,
            y=alpha[:, place],
            mode="lines",
            line={"color": theme.QUIET, "width": 0.8},
            opacity=0.6,
            showlegend=False,
            hovertemplate=f"{names[place]}: %{{y:.3f}}<extra></extra>",
            row=2,
            col=1,
        )
    for rank, place in enumerate(order[:most]):
        figure.add_scatter(
            x=x,
            y=alpha[:, place],
            mode="lines+markers",
            line={"color": theme.TASKS[rank % len(theme.TASKS)], "width": 2},
            error_y=whiskers(alpha[:, place], low[:, place], high[:, place]),
            name=str(names[place]),
            hovertemplate=f"{names[place]}: %{{y:.3f}}<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_yaxes(title="alpha", row=2, col=1)
