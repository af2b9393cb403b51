"""Where in the model two tasks agree or conflict: layers by kinds of weight matrix."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, view
from workbench.views._gradients import NEEDED, NOTE, cell, colours, heat, limit, of_kind, pair, tables
from workbench.views._training import model_of


@view(
    requires={"module", "task", "receiver"},
    variables=set(NEEDED),
    about="Gradient cosine of two tasks on every weight matrix of every layer; what lies inside the noise is grey.",
)
def gradient_parts(ds: xr.Dataset, task: str | None = None, receiver: str | None = None) -> go.Figure:
    """Layers upwards, kinds of matrix to the right, for one pair of tasks (not named: the most opposed one)."""
    one, other = pair(ds, task, receiver)
    part = of_kind(ds, "matrix").sel(task=one, receiver=other)
    found = tables(part, "module")
    kinds = list(dict.fromkeys(str(kind) for kind in part["matrix"].values))
    layers = sorted({int(layer) for layer in part["at_layer"].values})
    values, clear = np.full((len(layers), len(kinds)), np.nan), np.zeros((len(layers), len(kinds)), bool)
    hover = np.full(values.shape, "", dtype=object)
    for place in range(part.sizes["module"]):
        here = part.isel(module=place)
        at = layers.index(int(here["at_layer"])), kinds.index(str(here["matrix"].item()))
        values[at], clear[at] = found["cosine"][place], found["clear"][place] > 0
        hover[at] = f"{theme.plain(here['module'].item())}<br>{cell(one, other, found, (place,))}"
    words = np.array([[f"{v:z.2f}" if np.isfinite(v) else "" for v in row] for row in values])
    end, rows = limit(found["cosine"]), [str(layer) for layer in layers]
    figure = go.Figure(heat(values, clear, kinds, rows, hover, words, **colours(end)))
    title = f"Gradient alignment of {one} and {other}: {model_of(ds)}"
    figure.update_layout(**heading(ds, title, NOTE.partition("; in brackets")[0]))
    figure.update_layout(height=190 + 26 * len(layers))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", title="layer", showgrid=False)
    return figure
