"""Task by task, layer by layer: small matrices of gradient alignment on one scale."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, view
from workbench.views._gradients import NEEDED, NOTE, colours, diagonal, heat, limit, of_kind, said, tables, written
from workbench.views._training import model_of

ACROSS = 6  # matrices side by side, at most


@view(
    requires={"module", "task", "receiver"},
    variables=set(NEEDED),
    about="A matrix of gradient cosines for every layer, or for one kind of weight matrix in every layer.",
)
def gradient_layers(ds: xr.Dataset, matrix: str = "") -> go.Figure:
    """A small matrix for every layer, or for `matrix` (as `W_Q`) in every layer; tasks by number, named below."""
    part = of_kind(ds, "matrix" if matrix else "layer", matrix)
    found, names = tables(part, "module", "task", "receiver"), [theme.plain(task) for task in part["task"].values]
    own, places = np.eye(len(names), dtype=bool), [str(number) for number in range(1, len(names) + 1)]
    end, count = limit(found["cosine"][:, ~own]), part.sizes["module"]
    first = int((found["clear"][:, ~own] > 0).any(1).argmax())  # a matrix without a coloured cell draws no bar
    columns = min(ACROSS, count)
    rows = -(-count // columns)
    titles = [theme.plain(name) for name in part["module"].values]
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.03)
    figure.update_annotations(font_size=12)
    for place in range(count):
        values = np.where(own, np.nan, found["cosine"][place])
        clear = found["clear"][place].astype(bool)
        here = {name: table[place] for name, table in found.items()}
        hover = said(here, part["task"].values.tolist())
        silent = np.diagonal(here["floor"]) == 0
        words = written(here["cosine"], silent)
        shade = colours(end) | {"showscale": place == first}
        traces = *heat(values, clear, places, places, hover, words, **shade), diagonal(places, here["ceiling"], silent)
        for trace in traces:
            figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    what = f"{matrix} of every layer" if matrix else "layer by layer"
    keys = " · ".join(f"{number} {name}" for number, name in zip(places, part["task"].values, strict=True))
    figure.update_layout(**heading(ds, f"Gradient alignment of tasks, {what}: {model_of(ds)}", keys, NOTE, room=20))
    figure.update_layout(height=150 + 170 * rows)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure
