"""The heads that were labelled with a role, strongest first."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view

COLUMNS = ("head", "role", "score", "by chance", "next best role")


@view(
    requires={"component", "layer", "head"},
    variables={"score", "score_null", "role"},
    about="Every head with a role: its score, what chance gives, and the role it fits next best.",
)
def role_table(ds: xr.Dataset) -> go.Figure:
    """A table with one row for each head whose best score reaches the threshold."""
    rows = _rows(ds)
    threshold = float(ds.attrs["threshold"])
    shown = rows or [(f"no head reaches {threshold:g}", *[""] * (len(COLUMNS) - 1))]
    line = {"color": theme.BAND}
    figure = go.Figure(
        go.Table(
            header={"values": [f"<b>{name}</b>" for name in COLUMNS], "fill": {"color": theme.BAND}},
            cells={
                "values": [list(column) for column in zip(*shown, strict=True)],
                "fill": {"color": "rgba(0, 0, 0, 0)"},
                "height": 26,
            },
            columnwidth=[2, 3, 1.5, 1.5, 4] if rows else [4, 3, 1.5, 1.5, 4],
        )
    )
    figure.update_traces(header={"align": "left", "line": line, "height": 30}, cells={"align": "left", "line": line})
    note = f"{len(rows)} heads have a role: a score of {threshold:g} or more"
    figure.update_layout(**heading(ds, ds.attrs["title"], note, height=min(640, 150 + 26 * len(shown))))
    figure.update_layout(margin={"l": 15, "b": 10})
    return figure


def _rows(ds: xr.Dataset) -> list[tuple[str, ...]]:
    """The cells of each row, strongest head first."""
    score = only(ds, "score", "component", "layer", "head").values
    role = only(ds, "role", "layer", "head").values
    names, null = [theme.plain(name) for name in ds["component"].values], ds["score_null"].values
    layers, heads = ds["layer"].values, ds["head"].values
    labelled = [(int(role[at]), *map(int, at)) for at in np.argwhere(role >= 0).tolist() for at in [tuple(at)]]
    rows = []
    for best, row, column in sorted(labelled, key=lambda found: -score[found]):
        own = score[:, row, column]
        others = [place for place in np.argsort(-own, kind="stable") if place != best]
        second = f"{names[others[0]]} ({own[others[0]]:.2f})" if others else ""
        cells = (names[best], f"{own[best]:.2f}", f"{null[best]:.2f}", second)
        rows.append((f"L{layers[row]}H{heads[column]}", *cells))
    return rows
