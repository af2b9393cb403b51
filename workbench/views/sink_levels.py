"""At which levels tokens are sinks: where each is made and how long it stays, beside what chance would show."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import ViewError, heading, only, view

ALL = "all"


@view(
    requires={"component", "layer", "size", "seed"},
    variables={"level_count", "level_null", "count", "count_null"},
    about="Heat map of sink levels, creation layer by lifetime, beside the same with random tokens' directions.",
)
def sink_levels(ds: xr.Dataset, kind: str = ALL) -> go.Figure:
    """Tokens of each level on a logarithmic scale, log(1 + count), for one kind of sink or all; the null beside it."""
    known = [str(name) for name in ds["component"].values]
    if kind not in (ALL, *known):
        raise ViewError(f"There is no kind of sink '{kind}'; use one of {', '.join((ALL, *known))}.")
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=_titles(ds))
    most = 1.0
    for column, name in enumerate(("level_count", "level_null"), 1):
        counts = only(ds, name, "component", "size", "layer")
        counts = counts.sum("component") if kind == ALL else counts.sel(component=kind)
        most = max(most, float(counts.max()))
        figure.add_trace(_map(ds, counts.values), 1, column)
        figure.update_xaxes(title="layer that makes it", dtick=1 if ds.sizes["layer"] < 26 else None, col=column)
    figure.update_layout(coloraxis=_colours(most))
    which = "sinks" if kind == ALL else f"{kind} sinks"
    title = f"Levels of {which}: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, *_notes(ds), room=25, height=430))
    figure.update_yaxes(title="lifetime (layers)", dtick=1 if ds.sizes["size"] < 26 else None, col=1)
    return figure


def _colours(most: float) -> dict:
    """A logarithmic scale from no token to the most."""
    ticks = [0, *(10**power for power in range(9) if 10**power <= most)]
    bar = {"title": "tokens", "tickvals": np.log1p(ticks), "ticktext": [str(tick) for tick in ticks]}
    return {"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": np.log1p(most), "colorbar": bar}


def _titles(ds: xr.Dataset) -> list[str]:
    return ["found", f"null: a random token's direction (mean of {ds.sizes['seed']})"]


def _map(ds: xr.Dataset, counts: np.ndarray) -> go.Heatmap:
    return go.Heatmap(
        x=[int(layer) for layer in ds["layer"].values],
        y=[int(size) for size in ds["size"].values],
        z=np.log1p(counts),
        customdata=counts,
        coloraxis="coloraxis",
        hovertemplate="made in layer %{x}, a sink in %{y} layers: %{customdata:.4~g} tokens<extra></extra>",
    )


def _notes(ds: xr.Dataset) -> list[str]:
    """The rule, and how many tokens of each kind there are, the primary sinks themselves left out."""
    counts = only(ds, "count", "component").values
    null = only(ds, "count_null", "component", "seed").values
    named = zip(ds["component"].values, counts, null, strict=True)
    said = [f"{name} {count} (null {drawn.mean():.1f}, at most {drawn.max()})" for name, count, drawn in named]
    rest = f"beside the primary sinks: {', '.join(said)}"
    return [str(ds.attrs["rule"]), rest if counts.any() else f"no secondary sink · {rest}"]
