"""Two checkpoints and their difference as three maps, what is noise in grey."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, view
from workbench.views._changes import MUTED, NEEDED, NOTE, Table, counted, hover, table_of, title_of

PANELS = ("before", "after", "difference")
WRITTEN = 12  # columns, up to which a change is written into its cell


@view(
    requires=set(),
    variables=set(NEEDED),
    about="Before, after and difference of any result on one scale; what lies inside the noise is grey.",
)
def before_after(ds: xr.Dataset, most: int = 60) -> go.Figure:
    """Three heat maps on one colour scale; of large results the `most` rows and columns with the largest changes."""
    table = table_of(ds, most)
    values = {name: table.of(ds[name]) for name in NEEDED}
    shown = [np.where(values["rank"] >= 0, values[name], np.nan) for name in PANELS]
    limit = float(np.nanmax(np.abs(np.stack(shown)))) or 1.0
    signed = bool(ds["before"].attrs.get("signed"))
    gap = 0.03 if signed else 0.08  # where the first two have colours of their own, their bar stands in it
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=PANELS, horizontal_spacing=gap)
    figure.update_annotations(font_size=13)
    outside = np.abs(values["difference"]) > values["band"]
    said = _said(table, values)
    bars = [{"x": 1.0}, None, None] if signed else [{"x": (2 - gap) / 3 + 0.005}, None, {"x": 1.0}]
    for column, (name, bar) in enumerate(zip(PANELS, bars, strict=True), 1):
        last = name == "difference"
        if last:
            figure.add_trace(_muted(table, np.where(outside, np.nan, shown[-1]), said), row=1, col=column)
        z = np.where(outside, shown[-1], np.nan) if last else shown[column - 1]
        words = _words(z) if last and len(table.columns) <= WRITTEN else None
        scale = _scale(limit, signed or last) | {
            "showscale": bar is not None,
            "colorbar": bar and bar | {"thickness": 8},
        }
        figure.add_trace(_map(table, z, said, words, scale), row=1, col=column)
    notes = [f"{ds['before'].attrs['long_name']} · {NOTE}", counted(ds), f"noise: {ds.attrs['noise']}"]
    notes += [f"{table.left_out:,} cells with smaller changes are not shown"] if table.left_out else []
    figure.update_layout(**heading(ds, title_of(ds), *notes, height=250 + max(130, 18 * len(table.rows)), room=16))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _scale(limit: float, signed: bool) -> dict[str, Any]:
    if signed:
        return {"colorscale": theme.DIVERGING, "zmin": -limit, "zmax": limit}
    return {"colorscale": theme.SEQUENTIAL, "zmin": 0, "zmax": limit}


def _map(table: Table, z: np.ndarray, said: list[list[str]], words: list[list[str]] | None, scale: dict) -> go.Heatmap:
    return go.Heatmap(
        x=table.columns,
        y=table.rows,
        z=z,
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        text=words,
        texttemplate="%{text}" if words else None,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
        **scale,
    )


def _muted(table: Table, z: np.ndarray, said: list[list[str]]) -> go.Heatmap:
    """Cells whose difference is noise, all in one grey."""
    return go.Heatmap(
        x=table.columns,
        y=table.rows,
        z=np.where(np.isnan(z), np.nan, 0.0),
        customdata=said,
        hovertemplate="%{customdata}<br>inside the noise<extra></extra>",
        hoverongaps=False,
        colorscale=[[0, MUTED], [1, MUTED]],
        showscale=False,
        xgap=1,
        ygap=1,
    )


def _words(z: np.ndarray) -> list[list[str]]:
    return [["" if np.isnan(value) else f"{value:+.2f}" for value in row] for row in z]


def _said(table: Table, values: dict[str, np.ndarray]) -> list[list[str]]:
    return [
        [
            hover(f"{row}, {column}", {name: float(values[name][i, j]) for name in values})
            for j, column in enumerate(table.columns)
        ]
        for i, row in enumerate(table.rows)
    ]
