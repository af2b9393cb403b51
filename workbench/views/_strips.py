"""What figures with a dot for every head share: the heads' names, places side by side, and lines to read them by."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import pick

GOLDEN = 0.6180339887  # spreads neighbours of a strip apart


def named_heads(ds: xr.Dataset) -> np.ndarray:
    """Names of all heads, [layer, head]."""
    return np.array([[head_name(int(layer), int(head)) for head in ds["head"].values] for layer in ds["layer"].values])


def aside(count: int, width: float) -> np.ndarray:
    """Places of `count` dots around 0, at most `width` / 2 from it."""
    return width * (np.arange(count) * GOLDEN % 1 - 0.5)


def by_task(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """The dataset of each task, by the task's name."""
    if "task" not in ds.dims:
        return {str(ds.attrs["task"]): ds}
    return {str(label): pick(ds, task=label) for label in ds["task"].values.tolist()}


def whiskers(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    """Error bars from the lower to the upper end of an interval."""
    return {"array": high - values, "arrayminus": values - low, "thickness": 1.2, "width": 3}


def level(figure: go.Figure, y: float, name: str = "", axes: str = "") -> None:
    """A dotted line across a panel, named at its left end; `axes` is the panel's number, empty for the first."""
    at = {"xref": f"x{axes} domain", "yref": f"y{axes}"}
    figure.add_shape(type="line", x0=0, x1=1, y0=y, y1=y, line={"color": theme.QUIET, "dash": "dot", "width": 1}, **at)
    if name:
        words = {"text": name, "showarrow": False, "font": {"size": 11}, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(x=0, y=y, **words, **at)
