"""How alike the routers treat any two tasks."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._experts import at_layer, matrix, tokens_of

NAMES = ("similarity", "similarity_null", "similarity_null_low")


@view(
    requires={"layer", "task", "receiver"},
    variables=set(NAMES),
    about="Overlap of every two tasks' use of one layer's experts, beside shuffled sequences; diagonal: the ceiling.",
)
def task_similarity(ds: xr.Dataset, layer: int | None = None) -> go.Figure:
    """A matrix of one `layer` (None: the last); the diagonal is what halves of one task's own sequences share."""
    part, chosen = at_layer(ds, layer)
    seen, null, low = (only(part, name, "task", "receiver").values for name in NAMES)
    names = [theme.plain(task) for task in part["task"].values]
    hover = np.array(
        [
            [_said(names[i], names[j], seen[i, j], null[i, j], low[i, j]) for j in range(len(names))]
            for i in range(len(names))
        ]
    )
    figure = matrix(seen, names, hover, "overlap", colorscale=theme.SEQUENTIAL, zmin=0, zmax=1)
    chance = np.where(np.eye(len(names), dtype=bool), "one task's halves", np.char.mod("shuffled %.2f", null))
    figure.update_traces(text=chance, texttemplate="%{z:.2f}<br>%{text}")
    title = f"Overlap of tasks in the experts they use, layer {chosen}: {ds.attrs['title']}"
    note = f"{tokens_of(ds)} · 1 = the same shares of all choices; beside it: the two tasks' sequences shuffled"
    figure.update_layout(**heading(ds, title, note, height=200 + 60 * len(names)))
    return figure


def _said(one: str, other: str, seen: float, null: float, low: float) -> str:
    if one == other:
        return f"halves of {one}: {seen:.3f} (5 % of splits below {low:.3f})"
    return f"{one} and {other}: {seen:.3f}<br>sequences shuffled: {null:.3f} (5 % below {low:.3f})"
