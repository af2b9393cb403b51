"""Colours of every figure: chosen from what a variable says of itself, legible on light and dark pages."""

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


def layout(title: str, **more: Any) -> dict[str, Any]:
    """Settings all figures share; backgrounds are left to the page."""
    return {
        "title": {"text": title, "font": {"size": 14}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "height": 380,
        **more,
    }
