"""What figures of experts share: which layer, colours that are told apart, and square matrices."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import pick

HUES = (*theme.TASKS, "#8a6fd1", "#9a9a00")  # eight that all eyes tell apart, on light and on dark pages
SHADES = (0.0, 0.45, -0.35, 0.7, -0.6)  # towards white, or black, for the second eight and on


def at_layer(ds: xr.Dataset, layer: int | None) -> tuple[xr.Dataset, int]:
    """One layer of a result and its number; the last where none is named."""
    chosen = int(ds["layer"].values[-1]) if layer is None else layer
    return pick(ds, layer=chosen), chosen


def colour(expert: int) -> str:
    """An expert's colour: one of eight hues, then the same in other shades."""
    red, green, blue = _rgb(HUES[expert % len(HUES)])
    shade = SHADES[(expert // len(HUES)) % len(SHADES)]
    target = 255 if shade > 0 else 0
    mixed = (round(part + abs(shade) * (target - part)) for part in (red, green, blue))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def faint(hexadecimal: str, opacity: float) -> str:
    """A colour let through in part."""
    return "rgba({}, {}, {}, {})".format(*_rgb(hexadecimal), opacity)


def _rgb(hexadecimal: str) -> tuple[int, int, int]:
    return int(hexadecimal[1:3], 16), int(hexadecimal[3:5], 16), int(hexadecimal[5:7], 16)


def tokens_of(ds: xr.Dataset) -> str:
    """How many tokens the numbers are of, and which are not among them."""
    left_out = f", {ds.attrs['left_out']} left out" if "left_out" in ds.attrs else ""
    return f"{ds.attrs['tokens']} tokens{left_out}"


def matrix(values: np.ndarray, names: list[str], hover: np.ndarray, bar: str, **colours: Any) -> go.Figure:
    """A square heat map, rows down, with a text for every cell; a cell that is not a number is left empty."""
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=values,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": bar}, "thickness": 14},
            **colours,
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure
