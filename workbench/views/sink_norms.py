"""What goes with a sink: the norms of its residual, its keys and its values, and where the queries point."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, pick, view
from workbench.views._strips import aside, level, named_heads

PANELS = {
    "residual_norm": ("Residual norm / median", 1),
    "value_norm": ("Value norm / median", 1),
    "key_norm": ("Key norm / median", 1),
    "query_key_cosine": ("Cosine of queries with the key", 0),
}


@view(
    requires={"layer", "head", "key_pos"},
    variables={"residual_norm", "value_norm", "key_norm", "query_key_cosine", "alpha"},
    about="Residual norm, value drain, key norm and query-key cosine of one position, layer by layer.",
)
def sink_norms(ds: xr.Dataset, key: int = 0, beside: int | None = None) -> go.Figure:
    """Four panels over the layers, a dot a head, coloured by alpha; grey: the same at an ordinary position.

    Args:
        ds: one task's sink scores.
        key: the position that may be a sink.
        beside: the position to compare with; None takes the middle of the sequence.
    """
    other = ds.sizes["key_pos"] // 2 if beside is None else beside
    figure = make_subplots(cols=4, subplot_titles=[title for title, _ in PANELS.values()], horizontal_spacing=0.055)
    figure.update_annotations(font_size=13)
    for column, (name, (_, usual)) in enumerate(PANELS.items(), 1):
        for position in (other, key):
            _panel(figure, ds, name, position, column, quiet=position == other)
        level(figure, usual, axes=str(column) if column > 1 else "")
    names = {place: _named(ds, place) for place in (key, other)}
    title = f"What goes with a sink at {names[key]}: {ds.attrs['task']} in {ds.attrs['model']}"
    notes = (
        f"a dot a head, coloured by its alpha; grey: {names[other]}, for comparison; dotted: the median token of the "
        "sequence (norms), or no direction in common (cosine)",
    )
    figure.update_layout(**heading(ds, title, *notes, height=380, room=18), showlegend=False)
    bar = {"title": "alpha", "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_xaxes(title="layer", dtick=1 if ds.sizes["layer"] < 10 else None)
    for column in (1, 2, 3):
        figure.update_yaxes(rangemode="tozero", row=1, col=column)
    return figure


def _named(ds: xr.Dataset, key: int) -> str:
    return "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"


def _panel(figure: go.Figure, ds: xr.Dataset, name: str, key: int, column: int, *, quiet: bool) -> None:
    """One quantity at one position."""
    layers, where = ds["layer"].values, _named(ds, key)
    if name == "residual_norm":
        values = pick(only(ds, name, "layer", "key_pos"), key_pos=key).values
        figure.add_scatter(
            x=layers,
            y=values,
            mode="lines+markers",
            line={"color": theme.QUIET if quiet else theme.TASKS[0], "width": 1 if quiet else 2},
            hovertemplate=f"{where}, layer %{{x}}: %{{y:.3f}}<extra></extra>",
            row=1,
            col=column,
        )
        return
    values, alpha = (pick(only(ds, n, "layer", "head", "key_pos"), key_pos=key).values for n in (name, "alpha"))
    heads = values.shape[1]
    shift = -0.2 if quiet else 0.12
    marker = {"size": 4, "color": theme.QUIET, "opacity": 0.6}
    if not quiet:
        marker = {"size": 8, "color": alpha.ravel(), "coloraxis": "coloraxis"}
        marker["line"] = {"color": theme.QUIET, "width": 0.5}
    figure.add_scatter(
        x=np.repeat(layers, heads) + np.tile(shift + aside(heads, 0.25), len(layers)),
        y=values.ravel(),
        mode="markers",
        marker=marker,
        customdata=[f"{head}, alpha {a:.2f}" for head, a in zip(named_heads(ds).ravel(), alpha.ravel(), strict=True)],
        hovertemplate=f"{where}, %{{customdata}}: %{{y:.3f}}<extra></extra>",
        row=1,
        col=column,
    )
