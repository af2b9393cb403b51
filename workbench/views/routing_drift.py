"""How early in training the final routing is there, and how far the use of experts drifts."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._experts import tokens_of
from workbench.views._strips import level, whiskers
from workbench.views._training import in_order, model_of

MEASURES = {
    "saturation": "Saturation: share of the compared checkpoint's experts already chosen",
    "overlap": "Overlap of the shares of all choices",
    "divergence": "Jensen-Shannon divergence of the shares of all choices, bits",
}
ENDS = ("", "_low", "_high", "_null")
VISIBLE = (0.35, 0.8)  # part of the colour scale that stands out from light and from dark pages


@view(
    requires={"checkpoint", "layer"},
    variables={f"{name}{end}" for name in MEASURES for end in ENDS},
    about="Over training, layer by layer: routing saturation, overlap and divergence of expert use, each with chance.",
)
def routing_drift(ds: xr.Dataset) -> go.Figure:
    """Three panels over the checkpoints, a line a layer with its interval; dotted in its colour: what chance gives."""
    ds, x, _, numeric = in_order(ds)
    first, *others = MEASURES.values()
    titles = [f"{first} (grey: even routers, {float(ds.attrs['uniform']):.2f})", *others]
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=titles)
    figure.update_annotations(font_size=13)
    layers = [int(layer) for layer in ds["layer"].values]
    colours = sample_colorscale(theme.SEQUENTIAL, np.linspace(*VISIBLE, len(layers)).tolist())
    for row, name in enumerate(MEASURES, 1):
        values = [only(ds, f"{name}{end}", "checkpoint", "layer").values for end in ENDS]
        for place, layer in enumerate(layers):
            _line(figure, x, [value[:, place] for value in values], f"layer {layer}", str(colours[place]), row)
    level(figure, float(ds.attrs["uniform"]))
    title = f"Routing over training, against checkpoint {ds.attrs['reference']}: {ds.attrs['task']} in {model_of(ds)}"
    note = (
        f"{tokens_of(ds)} · bars: 95 % intervals over sequences; dotted: the loads alone, or experts renamed at random"
    )
    figure.update_layout(**heading(ds, title, note, room=20, height=760))
    figure.update_xaxes(type="linear" if numeric else "category")
    figure.update_xaxes(title="training step" if numeric else "checkpoint", row=3, col=1)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _line(figure: go.Figure, x: list, values: list[np.ndarray], name: str, colour: str, row: int) -> None:
    """One layer: what was seen, and chance."""
    seen, low, high, null = values
    for y, line, bars, say in (
        (null, {"color": colour, "dash": "dot", "width": 1.2}, None, f"{name}, by chance"),
        (seen, {"color": colour, "width": 2}, whiskers(seen, low, high), name),
    ):
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines" if bars is None else "lines+markers",
            line=line,
            error_y=bars,
            name=say,
            legendgroup=name,
            showlegend=row == 1 and bars is not None,
            hovertemplate=f"step %{{x}}: %{{y:.3f}}<extra>{say}</extra>",
            row=row,
            col=1,
        )
