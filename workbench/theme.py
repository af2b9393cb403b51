"""Colours of every figure: chosen from what a variable says of itself, legible on light and dark pages."""

import html
from typing import Any

import xarray as xr

DIVERGING = [[0.0, "#2166ac"], [0.25, "#67a9cf"], [0.5, "#f7f7f7"], [0.75, "#ef8a62"], [1.0, "#b2182b"]]
SEQUENTIAL = "Viridis"
TASKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all eyes
QUIET = "#8a8f98"
BAND = "rgba(138, 143, 152, 0.25)"


def colour_range(values: xr.DataArray) -> dict[str, Any]:
    """Plotly colour settings of a heat map: diverging around 0 for signed variables, sequential from 0 for others."""
    limit = float(abs(values).max()) or 1.0
    if values.attrs.get("signed"):
        return {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "zmid": 0}
    return {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": limit}


def plain(text: object) -> str:
    """Text as Plotly shows it unchanged: its labels would read tags and entities."""
    return html.escape(str(text), quote=False)


def template(*, dark: bool = False, clear: bool = False) -> dict[str, Any]:
    """A Plotly template for a light or dark page; `clear` lets the page's own background through."""
    ink, grid, paper = ("#e6e6e6", "#3a3a3a", "#121212") if dark else ("#222222", "#dddddd", "#ffffff")
    axis = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "automargin": True}
    back = "rgba(0,0,0,0)" if clear else paper
    backs = {"paper_bgcolor": back, "plot_bgcolor": back}
    return {"layout": {"font": {"color": ink, "size": 12}, "xaxis": axis, "yaxis": axis, **backs}}


def layout(title: str, **more: Any) -> dict[str, Any]:
    """Settings all figures share."""
    return {
        "template": template(),
        "title": {"text": title, "font": {"size": 15}, "x": 0.01, "xanchor": "left"},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "height": 380,
        **more,
    }
