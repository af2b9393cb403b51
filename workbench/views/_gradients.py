"""What figures of gradients share: the pair that is meant, what a cosine is beside its noise, and cells drawn so."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import ViewError, only

NEEDED = (*("cosine", "cosine_low", "cosine_high", "clear", "floor", "ceiling", "disattenuated", "conflict"),)
LEAST = 0.2  # end of the colour range, at least: noise is not blown up to full colour
MUTED = "rgba(138, 143, 152, 0.18)"
NOTE = "in colour: interval without 0 and beyond 1.96 floors; grey: inside the noise; in brackets: ceiling"


def of_kind(ds: xr.Dataset, kind: str, matrix: str = "") -> xr.Dataset:
    """The modules of one kind, of one matrix if it is named.

    Raises:
        ViewError: when there are none.
    """
    wanted = ds["kind"].values == kind
    wanted &= (ds["matrix"].values == matrix) if matrix else True
    if not wanted.any():
        known = sorted({str(name) for name in ds["matrix"].values} - {""})
        what = f"matrix '{matrix}'; there are {', '.join(known)}" if matrix else f"{kind} among its modules"
        raise ViewError(f"This result has no {what}.")
    return ds.isel(module=np.flatnonzero(wanted))


def pair(ds: xr.Dataset, task: str | None, receiver: str | None) -> tuple[str, str]:
    """The two tasks meant; where one is not named, the most opposed pair: of those outside the noise, if there are any.

    Raises:
        ViewError: naming the tasks there are, for an unknown one or the same one twice.
    """
    titles = [str(title) for title in ds["task"].values]
    for name in (task, receiver):
        if name is not None and name not in titles:
            raise ViewError(f"There is no task '{name}' in this result; there are {', '.join(titles)}.")
    if task is not None and task == receiver:
        raise ViewError(f"'{task}' is compared with another task; name two.")
    cosine, clear = (only(ds.sel(module="all"), name, "task", "receiver").values for name in ("cosine", "clear"))
    whole = cosine - 2.0 * clear  # puts those outside the noise first
    np.fill_diagonal(whole, np.inf)
    if task is not None:
        whole[[title != task for title in titles]] = np.inf
    if receiver is not None:
        whole[:, [title != receiver for title in titles]] = np.inf
    one, other = np.unravel_index(int(whole.argmin()), whole.shape)
    return titles[one], titles[other]


def limit(values: np.ndarray) -> float:
    """End of a colour range that is the same on both sides of 0."""
    return max(LEAST, float(np.abs(values).max(initial=0)))


def tables(part: xr.Dataset, *dims: str) -> dict[str, np.ndarray]:
    """The variables of a figure, in the order of dimensions given (of those each has)."""
    return {name: only(part, name, *(d for d in dims if d in part[name].dims)).values for name in NEEDED}


def cell(one: str, other: str, found: dict[str, np.ndarray], at: tuple[int, ...]) -> str:
    """What is said of two tasks, from arrays of `tables` and the place in them."""
    value, low, high, floor, share = (found[name][at] for name in (*NEEDED[:3], "floor", "conflict"))
    lines = [
        f"{theme.plain(one)} and {theme.plain(other)}: {value:.3f} ({low:.3f} to {high:.3f})",
        f"unrelated gradients: ±{1.96 * floor:.3f}",
        f"{share:.0%} of pairs of batches in conflict",
    ]
    if found["disattenuated"][at]:
        lines.append(f"corrected for noise: {found['disattenuated'][at]:.2f}")
    return "<br>".join(lines)


def said(found: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """A text for every pair of tasks on one module, [task, receiver], from arrays of `tables`."""
    own = [
        f"{theme.plain(n)}: {c:.2f} expected of two independent gradients"
        for n, c in zip(names, found["ceiling"], strict=True)
    ]
    return np.array(
        [[own[i] if i == j else cell(a, b, found, (i, j)) for j, b in enumerate(names)] for i, a in enumerate(names)]
    )


def written(values: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """What is written into the cells of a task by task matrix; a task that is silent has no gradient there."""
    words = np.array([[f"{v:z.2f}" for v in row] for row in values], dtype=object)
    words[silent[:, None] | silent] = "no gradient"
    np.fill_diagonal(words, "")
    return words


def diagonal(names: list[str], ceiling: np.ndarray, silent: np.ndarray) -> go.Scatter:
    """Each task's ceiling in brackets, where it would be compared with itself."""
    words = ["no gradient" if quiet else f"({c:z.2f})" for c, quiet in zip(ceiling, silent, strict=True)]
    return go.Scatter(x=names, y=names, text=words, mode="text", hoverinfo="skip", showlegend=False)


def heat(
    values: np.ndarray, clear: np.ndarray, x: list, y: list, hover: np.ndarray, words: np.ndarray, **more: Any
) -> list[go.Heatmap]:
    """A heat map: cells that are clear in colour, the others grey; NaN is left without a colour."""
    grey = ~clear & np.isfinite(values)
    shared: dict[str, Any] = {"x": x, "y": y, "xgap": 1, "ygap": 1, "hoverongaps": False, "customdata": hover}
    shared |= {"hovertemplate": "%{customdata}<extra></extra>", "text": words, "texttemplate": "%{text}"}
    flat = {"colorscale": [[0, MUTED], [1, MUTED]], "showscale": False}
    return [
        go.Heatmap(z=np.where(grey, np.nan, values), **shared, **more),
        go.Heatmap(z=np.where(grey, 0.0, np.nan), **shared, **flat),
    ]


def colours(end: float, **bar: Any) -> dict[str, Any]:
    """Colour settings around 0, with a bar for cosines."""
    return {
        "colorscale": theme.DIVERGING,
        "zmin": -end,
        "zmax": end,
        "colorbar": {"title": {"text": "cosine"}, "thickness": 14, **bar},
    }
