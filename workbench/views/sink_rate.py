"""How often a key position is a sink: the sink rate of each position over all heads and sequences."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import caption, view

FEW = 8  # queries; the mean over fewer says little about a key


@view(
    requires={"key_pos"},
    variables={"sink_rate_mean", "sink_rate_mean_low", "sink_rate_mean_high"},
    about="Sink rate of every key position with its interval, one line a task.",
)
def sink_rate(ds: xr.Dataset) -> go.Figure:
    """Sink_k of each key position k, over all heads and sequences; bars are bootstrap intervals over sequences."""
    many = "task" in ds.dims
    parts = [ds.sel(task=label) for label in ds["task"].values] if many else [ds]
    names = [theme.plain(label) for label in ds["task"].values] if many else [theme.plain(ds.attrs["task"])]
    figure = go.Figure()
    for index, (part, name) in enumerate(zip(parts, names, strict=True)):
        rate = part["sink_rate_mean"].values
        figure.add_scatter(
            x=part["key_pos"].values,
            y=rate,
            mode="lines+markers",
            name=name,
            line={"color": theme.TASKS[index % len(theme.TASKS)]},
            error_y={
                "array": part["sink_rate_mean_high"].values - rate,
                "arrayminus": rate - part["sink_rate_mean_low"].values,
                "thickness": 1,
            },
        )
    last = float(ds["key_pos"].values[-1])
    figure.add_vrect(
        x0=last - FEW + 1.5,
        x1=last + 0.5,
        fillcolor=theme.BAND,
        line_width=0,
        annotation_text=f"seen by fewer than {FEW} queries",
        annotation_position="top right",
    )
    title = f"Sink rate by key position in {theme.plain(ds.attrs['model'])}"
    figure.update_layout(**theme.layout(f"{title}<br><sup>{caption(ds)}</sup>"))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.3})
    figure.update_xaxes(title="key position (0 is the first token)")
    figure.update_yaxes(title="sink rate", rangemode="tozero")
    return figure
