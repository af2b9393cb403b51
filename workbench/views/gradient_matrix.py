"""Task by task: how far the gradients of every two tasks agree on one part of the model."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, pick, view
from workbench.views._gradients import NEEDED, NOTE, colours, diagonal, heat, limit, said, tables, written
from workbench.views._training import model_of


@view(
    requires={"module", "task", "receiver"},
    variables={*NEEDED, "norm"},
    about="Cosine of every two tasks' gradients on one module; what lies inside the noise is grey, diagonal: ceiling.",
)
def gradient_matrix(ds: xr.Dataset, module: str = "all") -> go.Figure:
    """A matrix of one `module`; intervals and the share of conflicting batches on hover."""
    part = pick(ds, module=module)
    found = tables(part, "task", "receiver")
    names = [theme.plain(task) for task in part["task"].values]
    own, silent = np.eye(len(names), dtype=bool), only(part, "norm", "task").values == 0
    values = np.where(own, np.nan, found["cosine"])
    clear, end = found["clear"].astype(bool), limit(found["cosine"][~own])
    hover = said(found, part["task"].values.tolist())
    words = written(found["cosine"], silent)
    figure = go.Figure(heat(values, clear, names, names, hover, words, **colours(end)))
    figure.add_trace(diagonal(names, found["ceiling"], silent))
    count = int(part["parameters"])
    notes = f"{_which(part)}, {count:,} parameters · {ds.attrs['batches']} batches a task", NOTE
    figure.update_layout(**heading(ds, f"Gradient alignment of tasks, {module}: {model_of(ds)}", *notes))
    figure.update_layout(height=200 + 60 * len(names))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _which(part: xr.Dataset) -> str:
    """What the module is, in words."""
    kind, matrix, layer = (part[name].item() for name in ("kind", "matrix", "at_layer"))
    words = {
        "whole": "the whole model",
        "kind": f"{matrix} of all layers",
        "layer": f"layer {layer}",
        "matrix": f"{matrix} of layer {layer}",
    }
    return words.get(kind, f"{kind} of layer {layer}")
