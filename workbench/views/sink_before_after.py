"""Loss, sink score and lifetime before and after an intervention on the sinks."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view

PANELS = {
    "loss": "Next-token loss (nats)",
    "score": "Attention received (sink score)",
    "lifetime": "Layers as a sink (lifetime)",
}
SIDES = ("before", "after")


@view(
    requires={"component", "measured"},
    variables={*PANELS, "loss_change_null_low", "loss_change_null_high"},
    about="Loss, sink score and lifetime of each kind of sink before and after it was masked, removed or rescaled.",
)
def sink_before_after(ds: xr.Dataset) -> go.Figure:
    """Three panels with a line a kind of sink; the loss has the band that the same does to ordinary tokens."""
    figure = make_subplots(cols=3, subplot_titles=list(PANELS.values()), horizontal_spacing=0.08)
    figure.update_annotations(font_size=13)
    for index, kind in enumerate(ds["component"].values):
        at, colour = ds.sel(component=kind), theme.TASKS[index % len(theme.TASKS)]
        _band(figure, at, -0.04 * (index + 1))
        for column, name in enumerate(PANELS, 1):
            _line(
                figure, only(at, name, "measured").sel(measured=list(SIDES)).values, theme.plain(kind), colour, column
            )
    title = f"Before and after: {ds.attrs['task']}, {ds.attrs['model']}"
    notes = (str(ds.attrs["meaning"]), "grey bar: 95 % of what the same does to random ordinary tokens")
    figure.update_layout(**heading(ds, title, *notes, height=380, room=16), legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(tickvals=[0, 1], ticktext=list(SIDES), range=[-0.4, 1.4], showgrid=False, zeroline=False)
    for column, name in enumerate(("score", "lifetime"), 2):
        figure.update_yaxes(range=[0, 1.15 * float(ds[name].max()) or 1], row=1, col=column)
    return figure


def _line(figure: go.Figure, values: np.ndarray, kind: str, colour: str, column: int) -> None:
    figure.add_scatter(
        x=[0, 1],
        y=values,
        mode="lines+markers+text",
        line={"color": colour, "width": 2},
        marker={"size": 9},
        text=[f"{value:.5g}" for value in values],
        textposition=["middle left", "middle right"],
        cliponaxis=False,
        name=f"{kind} sink" if kind != "own" else "named tokens",
        legendgroup=kind,
        showlegend=column == 1,
        hovertemplate=f"{kind}, %{{x}}: %{{y:.4f}}<extra></extra>",
        row=1,
        col=column,
    )


def _band(figure: go.Figure, at: xr.Dataset, aside: float) -> None:
    """Where the loss would end after the same was done to random ordinary tokens."""
    before = float(only(at, "loss", "measured").sel(measured="before"))
    ends = [before + float(at[f"loss_change_null_{end}"]) for end in ("low", "high")]
    figure.add_scatter(
        x=[1 + aside] * 2,
        y=ends,
        mode="lines",
        line={"color": theme.QUIET, "width": 6},
        showlegend=False,
        hovertemplate="random ordinary tokens: %{y:.4f}<extra></extra>",
        row=1,
        col=1,
    )
