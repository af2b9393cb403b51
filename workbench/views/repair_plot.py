"""Accuracy before and after heads' attention was edited, beside the same edit in random heads."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, pick, view

GOLDEN = 0.6180339887  # spreads neighbours of a strip apart


@view(
    requires={"component", "seed"},
    variables={"accuracy", "accuracy_random"},
    about="Accuracy unchanged, with random heads edited, and with the chosen heads edited.",
)
def repair_plot(ds: xr.Dataset) -> go.Figure:
    """Markers for unchanged and edited, a strip of dots with its range for the controls."""
    accuracy = only(ds, "accuracy", "component")
    before, after = (float(pick(accuracy, component=name)) for name in ("unchanged", "edited"))
    drawn = only(ds, "accuracy_random", "seed").values
    figure = go.Figure()
    for level, colour in ((before, theme.QUIET), (after, theme.TASKS[1])):
        figure.add_hline(y=level, line={"color": colour, "dash": "dot", "width": 1})
    _strip(figure, drawn)
    for place, value, name, colour in ((0, before, "unchanged", theme.TASKS[0]), (2, after, "edited", theme.TASKS[1])):
        figure.add_scatter(
            x=[place],
            y=[value],
            mode="markers+text",
            marker={"size": 16, "color": colour, "symbol": "diamond"},
            text=[f"{value:.2f}"],
            textposition="top center",
            name=name,
            hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
        )
    changed = f"{ds.attrs['mended']} prompts mended, {ds.attrs['broken']} broken"
    edit = f"{ds.attrs['edited']} at {ds.attrs['position']} made to attend to {ds.attrs['weights']}"
    figure.update_layout(**heading(ds, ds.attrs["title"], edit, f"p = {float(ds.attrs['p']):.3g} · {changed}"))
    figure.update_layout(showlegend=False, height=440)
    ticks = ["unchanged", f"random heads ({len(drawn)} draws)", f"edited ({theme.plain(ds.attrs['edited'])})"]
    figure.update_xaxes(tickvals=[0, 1, 2], ticktext=ticks, range=[-0.5, 2.5], showgrid=False, zeroline=False)
    figure.update_yaxes(title="accuracy", range=[-0.03, 1.1])
    return figure


def _strip(figure: go.Figure, drawn: np.ndarray) -> None:
    """The controls: from the least to the greatest, and a dot each."""
    low, high = float(drawn.min()), float(drawn.max())
    line = {"color": theme.QUIET, "width": 1}
    figure.add_shape(type="rect", x0=0.8, x1=1.2, y0=low, y1=high, fillcolor=theme.BAND, line=line)
    aside = 0.3 * (np.arange(len(drawn)) * GOLDEN % 1 - 0.5)
    figure.add_scatter(
        x=1 + aside,
        y=drawn,
        mode="markers",
        marker={"size": 7, "color": theme.QUIET, "opacity": 0.8},
        name="random heads",
        hovertemplate="random heads: %{y:.3f}<extra></extra>",
    )
    words = f"mean {drawn.mean():.2f} ({low:.2f} to {high:.2f})"
    figure.add_annotation(x=1, y=high, text=words, showarrow=False, yanchor="bottom", yshift=4)
