"""Faithfulness against circuit size, beside random circuits of the same size."""

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import hex_to_rgb

from workbench import theme
from workbench.views._base import ViewError, heading, only, view

HEIGHT = 470
TICKS = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5) if digit * 10.0**power <= 100]
COLOUR = theme.TASKS[0]
VARIABLES = ("faithfulness", "faithfulness_low", "faithfulness_high")
RANDOM = tuple(f"faithfulness_null{end}" for end in ("", "_low", "_high"))


@view(
    requires={"size"},
    variables={*VARIABLES, *RANDOM},
    about="How much of a task circuits of each size keep when all edges outside are ablated, beside random circuits.",
)
def faithfulness_curve(ds: xr.Dataset, log: bool = True, size: int | None = None, slider: bool = True) -> go.Figure:
    """Faithfulness of each circuit with its 95 % interval, and of random circuits with their central 95 %.

    `size` marks the circuit of that many edges; `slider` adds a slider that moves the mark.
    """
    percent = 100 * ds["fraction"].values
    figure = go.Figure()
    faint = f"rgba{(*hex_to_rgb(COLOUR), 0.2)}"
    _band(figure, percent, ds, RANDOM, {"color": theme.QUIET, "dash": "dash", "width": 2}, theme.BAND)
    _band(figure, percent, ds, VARIABLES, {"color": COLOUR, "width": 2.5}, faint)
    for level, label, where in ((0, "0: all ablated", "bottom right"), (1, "1: the whole model", "top left")):
        line = {"color": theme.QUIET, "width": 1}
        figure.add_hline(y=level, line=line, annotation_text=label, annotation_position=where)
    notes = (_areas(ds), f"{ds.attrs['ablation']} ablation: {ds.attrs['meaning']}")
    figure.update_layout(**heading(ds, ds.attrs["title"], *notes, room=20, height=HEIGHT))
    figure.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom"})
    figure.update_xaxes(title="edges in the circuit, % of all", type="log" if log else "linear")
    if log:
        figure.update_xaxes(tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS])
    figure.update_yaxes(title="faithfulness", range=_reach(ds))
    if size is not None or slider:
        _mark(figure, ds, size, slider, log)
    return figure


def _areas(ds: xr.Dataset) -> str:
    low, median, high = json.loads(ds.attrs["cpr_null"])
    random = f"random circuits {median:.2f}, 95 % {low:.2f} to {high:.2f}"
    return f"CPR {float(ds.attrs['cpr']):.2f} ({random}) · CMD {float(ds.attrs['cmd']):.2f}"


def _band(figure: go.Figure, x: np.ndarray, ds: xr.Dataset, names: tuple[str, ...], line: dict, fill: str) -> None:
    """A line and the band between its ends."""
    middle, low, high = (only(ds, name, "size").values for name in names)
    edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=x, y=low, **edge)
    figure.add_scatter(x=x, y=high, fill="tonexty", fillcolor=fill, **edge)
    ends = [[k, a, b] for k, a, b in zip(ds["size"].values.tolist(), low, high, strict=True)]
    figure.add_scatter(
        x=x,
        y=middle,
        mode="lines+markers",
        line=line,
        name="random circuits, mean and central 95 %" if names is RANDOM else "circuit, 95 % interval",
        customdata=ends,
        hovertemplate="%{customdata[0]} edges: %{y:.2f} (%{customdata[1]:.2f} to %{customdata[2]:.2f})<extra></extra>",
    )


def _reach(ds: xr.Dataset) -> list[float]:
    """A range of y that holds 0, 1 and all that is drawn, with room at both ends."""
    drawn = np.concatenate([[0.0, 1.0], *(ds[name].values for name in (*VARIABLES, *RANDOM))])
    room = 0.1 * (drawn.max() - drawn.min())
    return [float(drawn.min() - room), float(drawn.max() + 2 * room)]


def _mark(figure: go.Figure, ds: xr.Dataset, size: int | None, slider: bool, log: bool) -> None:
    """A vertical line at one size with f beside it, and the slider that moves it."""
    sizes = ds["size"].values.tolist()
    if size is not None and size not in sizes:
        raise ViewError(f"No circuit of {size} edges was measured; the sizes are {', '.join(map(str, sizes))}.")
    at = sizes.index(size) if size is not None else len(sizes) // 2
    places = _places(ds, _reach(ds), log)
    line, style = {"color": theme.TASKS[1], "width": 1.5}, {"size": [0, 9, 0]}
    figure.add_scatter(**places[at], mode="lines+markers+text", line=line, marker=style, showlegend=False)
    figure.data[-1].update(name="mark", hoverinfo="skip", cliponaxis=False)
    if not slider:
        return
    trace = len(list(figure.data)) - 1
    steps = [
        {"method": "restyle", "label": f"{k}", "args": [{key: [value] for key, value in place.items()}, [trace]]}
        for k, place in zip(sizes, places, strict=True)
    ]
    shown = {"prefix": "edges in the circuit: ", "xanchor": "left"}
    colours = {"bgcolor": theme.BAND, "activebgcolor": theme.QUIET, "bordercolor": theme.QUIET}
    where = {"x": 0, "len": 1, "y": -0.2, "yanchor": "top", "pad": {"t": 10}}
    figure.update_layout(sliders=[{"active": at, "steps": steps, "currentvalue": shown, **where, **colours}])
    figure.update_layout(height=HEIGHT + 90, margin_b=140)


def _places(ds: xr.Dataset, reach: list[float], log: bool) -> list[dict[str, Any]]:
    """The mark at each size: a line from end to end, a point at f, and words on the side that has room."""
    percent = 100 * ds["fraction"].values
    along = np.log10(percent) if log else percent
    right = along < (along[0] + along[-1]) / 2
    numbers = zip(ds["size"].values, percent, ds[VARIABLES[0]].values, ds[RANDOM[0]].values, right, strict=True)
    return [
        {
            "x": [float(x)] * 3,
            "y": [reach[0], float(f), reach[1]],
            "text": ["", "", f" {k} edges ({x:.3g} %): f = {f:z.2f}, random {null:z.2f} "],
            "textposition": f"bottom {'right' if to_right else 'left'}",
        }
        for k, x, f, null, to_right in numbers
    ]
