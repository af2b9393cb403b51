"""How often a key position is a sink: the sink rate of each position over all heads and sequences."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import caption, view


@view(
    requires={"key_pos"},
    variables={"sink_rate_mean", "sink_rate_mean_low", "sink_rate_mean_high"},
    about="Sink rate of every key position with its interval, one line a task.",
)
def sink_rate(ds: xr.Dataset) -> go.Figure:
    """Sink_k of each key position k, over all heads and sequences; bars are bootstrap intervals over sequences."""
    many = "task" in ds.dims
    parts = [ds.sel(task=label) for label in ds["task"].values] if many else [ds]
    names = [str(label) for label in ds["task"].values] if many else [str(ds.attrs["task"])]
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
    title = f"Sink rate by key position in {ds.attrs['model']}"
    figure.update_layout(**theme.layout(f"{title}<br><sup>{caption(ds)}</sup>"))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.3})
    figure.update_xaxes(title="key position (0 is the first token)")
    figure.update_yaxes(title="sink rate", rangemode="tozero")
    return figure
