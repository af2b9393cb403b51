"""Which tokens a corruption sends to other experts, what these changes carry, and which experts carry the answer."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import heading, only, view
from workbench.views._strips import whiskers

CARRIED = ("", "_low", "_high", "_null_low", "_null_high", "_p")
WAYS = {
    "restored": "clean routing put in the corrupted run",
    "removed": "corrupted routing put in the clean run",
}
WHOLE = {"effect_mlp": "all", "effect_sum": "sum"}
ENDS = ("", "_low", "_high")
WRITTEN = 16  # experts in a row, up to which their numbers are written into the map


@view(
    requires={"pos", "layer", "expert", "measured"},
    variables={
        *(f"changed{end}" for end in ENDS),
        *("margin", "weight_moved"),
        *(f"{name}{end}" for name in ("carried", "carried_all") for end in CARRIED),
        *(f"{name}{end}" for name in ("effect", *WHOLE) for end in ENDS),
    },
    about="Tokens that change experts under the corruption, what that carries by layer, and each expert's own output.",
)
def route_changes(ds: xr.Dataset) -> go.Figure:
    """Position x layer map of changed routes; what they carry, on the controls' bands; layer x expert patching map."""
    titles = ["Tokens that change experts", "What the changes carry", "Each expert's clean output in the corrupted run"]
    figure = make_subplots(cols=3, subplot_titles=titles, column_widths=[0.26, 0.3, 0.44], horizontal_spacing=0.09)
    figure.update_annotations(font_size=13)
    _changed(figure, ds)
    places = [str(layer) for layer in ds["layer"].values] + ["all"]
    for index, way in enumerate(WAYS):
        _carried(figure, ds.sel(measured=way), way, 0.36 * index - 0.18, theme.TASKS[index])
    _experts(figure, ds)
    title = f"Routing under the corruption: {ds.attrs['task']}, {ds.attrs['model']}"
    notes = (
        "carried: share of the clean-minus-corrupted metric, bars: 95 % interval; grey: 95 % of random other experts "
        "with the same weights at the same tokens",
        "experts: share recovered; all: every expert of the layer patched at once, sum: their own effects added",
    )
    figure.update_layout(**heading(ds, title, *notes, height=430, room=16))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title="layer", type="category", showgrid=False, col=1)
    figure.update_xaxes(title="layer", tickvals=list(range(len(places))), ticktext=places, zeroline=False, col=2)
    figure.update_xaxes(title="expert", type="category", showgrid=False, col=3)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, col=1)
    figure.update_yaxes(title="layer", autorange="reversed", type="category", showgrid=False, col=3)
    return figure


def _changed(figure: go.Figure, ds: xr.Dataset) -> None:
    values, low, high, margin, moved = (
        only(ds, name, "pos", "layer") for name in ("changed", "changed_low", "changed_high", "margin", "weight_moved")
    )
    labels = [theme.plain(label) for label in ds["pos"].values]
    hover = [
        [
            f"{label}, layer {layer}: {values.values[at]:.1%} ({low.values[at]:.1%} to {high.values[at]:.1%})<br>"
            f"margin of the choice {margin.values[at]:.3g}<br>weight that moves {moved.values[at]:.3g}"
            for at, layer in (((row, column), layer) for column, layer in enumerate(ds["layer"].values))
        ]
        for row, label in enumerate(labels)
    ]
    figure.add_heatmap(
        x=[str(layer) for layer in ds["layer"].values],
        y=labels,
        z=values.values,
        text=[[f"{value:.0%}" for value in row] for row in values.values],
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=theme.SEQUENTIAL,
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=1,
        row=1,
        col=1,
    )


def _carried(figure: go.Figure, at: xr.Dataset, way: str, shift: float, colour: str) -> None:
    """One way round: a dot a layer and one for all, each on the bar that holds 95 % of its controls."""
    values, low, high, null_low, null_high, p = (
        np.append(only(at, f"carried{end}", "layer").values, only(at, f"carried_all{end}").values) for end in CARRIED
    )
    x = np.arange(len(values)) + shift
    gap = np.full(len(x), None)
    figure.add_scatter(
        x=np.stack([x, x, gap], 1).ravel(),
        y=np.stack([null_low, null_high, gap], 1).ravel(),
        mode="lines",
        line={"color": theme.BAND, "width": 12},
        showlegend=False,
        name=f"{way}, random experts",
        hoverinfo="skip",
        row=1,
        col=2,
    )
    figure.add_scatter(
        x=x,
        y=values,
        mode="markers",
        marker={"size": 9, "color": colour},
        error_y=whiskers(values, low, high),
        name=WAYS[way],
        text=[
            f"random experts {a:+.3f} to {b:+.3f}, p = {c:.2g}" for a, b, c in zip(null_low, null_high, p, strict=True)
        ],
        hovertemplate=f"{WAYS[way]}: %{{y:+.4f}}<br>%{{text}}<extra></extra>",
        row=1,
        col=2,
    )


def _experts(figure: go.Figure, ds: xr.Dataset) -> None:
    """Effect of each expert, then of the layer's experts together and of their sum, layer x expert."""
    parts = []
    for end in ENDS:
        whole = [only(ds, f"{name}{end}", "layer").values for name in WHOLE]
        parts.append(np.column_stack([only(ds, f"effect{end}", "layer", "expert").values, *whole]))
    values, low, high = parts
    layers, experts = ds["layer"].values, ds["expert"].values
    names = [
        [*(expert_name(int(at), int(e)) for e in experts), *(f"layer {at}, {w}" for w in WHOLE.values())]
        for at in layers
    ]
    said = [
        [f"{name}: {v:+.4f} ({a:+.4f} to {b:+.4f})" for name, v, a, b in zip(*row, strict=True)]
        for row in zip(names, values, low, high, strict=True)
    ]
    figure.add_heatmap(
        x=[*map(str, experts), *WHOLE.values()],
        y=[str(layer) for layer in layers],
        z=values,
        text=[[f"{value:z.2f}" if len(experts) <= WRITTEN else "" for value in row] for row in values],
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={"thickness": 10},
        xgap=1,
        ygap=1,
        **theme.colour_range(xr.DataArray(values, attrs={"signed": 1})),
        row=1,
        col=3,
    )
