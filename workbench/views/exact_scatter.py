"""How well the first-order score of an edge agrees with patching it exactly."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view

KINDS = {  # by how the reader's name ends or begins
    "queries": "circle",
    "keys": "diamond",
    "values": "square",
    "MLPs": "triangle-up",
    "logits": "star",
}


@view(
    requires={"edge"},
    variables={"approximate", "exact"},
    about="Approximate against exact effect of the strongest edges, with their rank correlation.",
)
def exact_scatter(ds: xr.Dataset) -> go.Figure:
    """One point an edge, its symbol by what reads; on the line both effects are the same."""
    approximate, exact = (only(ds, name, "edge").values for name in ("approximate", "exact"))
    names = np.array([str(name) for name in ds["edge"].values])
    kinds = np.array([_kind(name) for name in names])
    ends = _ends(np.concatenate([approximate, exact]))
    line = {"color": theme.QUIET, "dash": "dash", "width": 1}
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="the same", hoverinfo="skip")
    for (kind, symbol), colour in zip(KINDS.items(), theme.TASKS, strict=False):
        chosen = kinds == kind
        if not chosen.any():
            continue
        figure.add_scatter(
            x=approximate[chosen],
            y=exact[chosen],
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 10, "opacity": 0.9},
            name=f"into {kind}",
            text=[theme.plain(name) for name in names[chosen]],
            hovertemplate="%{text}<br>approximate %{x:.3f}, exact %{y:.3f}<extra></extra>",
        )
    agreement = f"Spearman {float(ds.attrs['spearman']):.2f} over {len(names)} edges" if len(names) else "no edges"
    figure.update_layout(**heading(ds, f"Approximate and exact effect of edges: {agreement}", *_notes(ds), height=470))
    figure.update_xaxes(title="approximate effect (share)")
    figure.update_yaxes(title="exact effect (share)")
    return figure


def _notes(ds: xr.Dataset) -> list[str]:
    return [str(ds.attrs[name]) for name in ("title", "method") if name in ds.attrs]


def _kind(edge: str) -> str:
    """What reads, from a name like L0H1->L2H3.q."""
    reader = edge.rpartition("->")[2]
    by_part = {"q": "queries", "k": "keys", "v": "values"}
    return by_part.get(reader.rpartition(".")[2]) or ("MLPs" if reader.startswith("MLP") else "logits")


def _ends(values: np.ndarray) -> list[float]:
    """Where the line of equal effects begins and ends."""
    low, high = min(0.0, values.min(initial=0.0)), max(0.0, values.max(initial=0.0))
    room = 0.05 * (high - low) or 1.0
    return [float(low - room), float(high + room)]
