"""The circuit of two checkpoints in one graph: which edges were kept, lost, gained or turned round."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.graph import KINDS, Graph
from workbench.models.heads import head_name
from workbench.views._base import heading, only, view
from workbench.views._changes import COLOURS, NEEDED, STATES, counted, hover, title_of

DASHES = {"kept": "solid", "lost": "dot", "gained": "solid", "flipped": "dash"}
STEPS = 24  # straight pieces of a curve


@view(
    requires={"receiver", "component"},
    variables=set(NEEDED),
    about="Edges in the circuit before or after: kept, lost, gained or flipped, from what writes up to what reads.",
)
def circuit_changes(ds: xr.Dataset, limit: int = 60) -> go.Figure:
    """The `limit` strongest edges of either checkpoint, coloured by state; layers upwards, heads across."""
    graph = Graph.of(ds.attrs)
    found = {name: only(ds, name, "receiver", "component").values for name in NEEDED}
    strength = np.maximum(np.abs(found["before"]), np.abs(found["after"]))
    present = np.flatnonzero((found["state"] > 0) & graph.valid)
    chosen = present[np.argsort(-strength.flat[present], kind="stable")[:limit]]
    edges = [tuple(int(i) for i in np.unravel_index(at, strength.shape)) for at in chosen]
    figure = go.Figure()
    for state in range(1, len(STATES)):
        part = [at for at in edges if found["state"][at] == state]
        if part:
            _edges(figure, graph, part, found, state)
    _nodes(figure, graph, edges)
    notes = [counted(ds), "lines: edges present before or after; inside the noise an edge is what it was before"]
    notes += [f"the {limit} strongest of {len(present):,} are shown"] if len(present) > limit else []
    figure.update_layout(**heading(ds, title_of(ds), *notes, height=300 + 90 * graph.layers, room=8))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.04}, hovermode="closest")
    figure.update_xaxes(visible=False, range=[-0.8, graph.heads + 0.8])
    figure.update_yaxes(visible=False)
    return figure


def _place(graph: Graph, layer: int, at: int) -> tuple[float, float]:
    """Where a head stands, or a layer's MLP (-1): heads across, the MLP on the right and above them."""
    return (graph.heads, layer + 0.4) if at < 0 else (float(at), float(layer))


def _ends(graph: Graph, reader: int, writer: int) -> tuple[tuple[float, float], tuple[float, float]]:
    layer, head = (int(v) for v in graph.writer_cells[writer])
    middle = (graph.heads - 1) / 2
    start = (middle, -1.0) if layer < 0 else _place(graph, layer, head)
    layer, head, kind = (int(v) for v in graph.reader_cells[reader])
    if KINDS[kind] == "logits":
        return start, (middle, float(graph.layers) + 0.4)
    shared = graph.heads // graph.kv_heads if KINDS[kind] in ("k", "v") else 1
    x, y = _place(graph, layer, head * shared if head >= 0 else head)
    return start, (x + (shared - 1) / 2 if head >= 0 else x, y)


def _curve(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """A smooth line that leaves and arrives upright, [step, 2]."""
    t = np.linspace(0, 1, STEPS + 1)[:, None]
    (x0, y0), (x1, y1) = start, end
    middle = (y0 + y1) / 2
    points = np.array([[x0, y0], [x0, middle], [x1, middle], [x1, y1]])
    weights = np.concatenate([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)  # Bernstein's
    return weights @ points


def _edges(figure: go.Figure, graph: Graph, part: list, found: dict[str, np.ndarray], state: int) -> None:
    """All edges of one state as one line with gaps, and a dot in the middle of each to point at."""
    curves = [_curve(*_ends(graph, *at)) for at in part]
    gap = np.full((1, 2), np.nan)
    line = np.concatenate([piece for curve in curves for piece in (curve, gap)])
    name, colour = STATES[state], COLOURS[state]
    figure.add_scatter(
        x=line[:, 0],
        y=line[:, 1],
        mode="lines",
        line={"color": colour, "width": 1.2 if name == "kept" else 2.2, "dash": DASHES[name]},
        name=f"{name} ({len(part)})",
        legendgroup=name,
        hoverinfo="skip",
    )
    middles = np.stack([curve[STEPS // 2] for curve in curves])
    figure.add_scatter(
        x=middles[:, 0],
        y=middles[:, 1],
        mode="markers",
        marker={"size": 7, "color": colour},
        legendgroup=name,
        showlegend=False,
        text=[
            hover(theme.plain(graph.name(*at)), {key: float(values[at]) for key, values in found.items()})
            for at in part
        ],
        hovertemplate="%{text}<extra></extra>",
        name=name,
    )


def _nodes(figure: go.Figure, graph: Graph, edges: list) -> None:
    """Names of the nodes; those no edge touches are pale dots."""
    used = {point for at in edges for point in _ends(graph, *at)}
    points: dict[tuple[float, float], str] = {((graph.heads - 1) / 2, -1.0): "input"}
    points[((graph.heads - 1) / 2, graph.layers + 0.4)] = "logits"
    for layer in range(graph.layers):
        points |= {_place(graph, layer, head): head_name(layer, head) for head in range(graph.heads)}
        points[_place(graph, layer, -1)] = f"MLP{layer}"
    marks: dict[str, Any] = {"size": 8, "color": [theme.QUIET if p in used else theme.BAND for p in points]}
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="markers+text",
        marker=marks,
        text=[name if point in used else "" for point, name in points.items()],
        textposition="top center",
        hovertext=list(points.values()),
        hoverinfo="text",
        showlegend=False,
        name="nodes",
    )
