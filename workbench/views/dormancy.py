"""How much each head rests on the sink, task by task, and whether the task does without it."""

import json

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import ViewError, heading, only, view

SHOWN = {
    "dormancy": "D",
    "dormancy_at": "attention on the first token at the position",
    "value_drain": "value norm of the first token / median",
    "output_norm": "output norm / that of the median head",
    "lost": "lost metric",
}
DORMANT, ACTIVE, IDLE = 1, 2, 3
MARKS = {
    DORMANT: ("dormant", "circle"),
    ACTIVE: ("active", "triangle-up"),
    IDLE: ("idle, not on the sink", "circle-open"),
}
MIXED = "between tasks"


@view(
    requires={"layer", "head"},
    variables={"dormancy", "dormancy_null"},
    about="D of every head on every task; marks say whether the task does without it, stars where tasks differ.",
)
def dormancy(ds: xr.Dataset, variable: str = "dormancy") -> go.Figure:
    """A map of tasks x heads of one `variable` (dormancy, dormancy_at, value_drain, output_norm or lost).

    A dot is a dormant head, a triangle an active one, a circle one that is idle without resting on the sink. With
    several tasks a star stands under the heads that are active on one and dormant (an open star: idle) on another.
    """
    if variable not in SHOWN or variable not in ds:
        known = ", ".join(name for name in SHOWN if name in ds)
        raise ViewError(f"Cannot draw '{variable}'; this result has: {known}.")
    whole = ds if "task" in ds.dims else ds.expand_dims(task=[str(ds.attrs["task"])])
    values = only(whole, variable, "task", "layer", "head")
    names = [head_name(int(layer), int(head)) for layer in ds["layer"].values for head in ds["head"].values]
    tasks = [theme.plain(label) for label in values["task"].values]
    flat = values.values.reshape(len(tasks), -1)
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=tasks,
            z=flat,
            customdata=_hover(whole),
            hovertemplate="%{x} on %{y}<br>%{customdata}<extra></extra>",
            colorbar={"title": {"text": SHOWN[variable].replace(" / ", "<br>/ ")}},
            xgap=1,
            ygap=2,
            **_colours(values),
        )
    )
    if "state" in ds:
        _marks(figure, only(whole, "state", "task", "layer", "head").values.reshape(flat.shape), names, tasks)
    figure.update_layout(
        **heading(ds, f"Dormant heads of {ds.attrs['model']}", *_notes(whole), height=230 + 45 * len(tasks))
    )
    figure.update_layout(legend={"orientation": "h", "y": -0.35}, showlegend=True)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _colours(values: xr.DataArray) -> dict:
    """A probability has the whole range from 0 to 1."""
    found = theme.colour_range(values)
    return found | {"zmax": 1} if values.attrs.get("units") == "probability" else found


def _marks(figure: go.Figure, state: np.ndarray, names: list[str], tasks: list[str]) -> None:
    for code, (label, symbol) in MARKS.items():
        at = np.argwhere(state == code)
        _symbols(figure, [names[head] for _, head in at], [tasks[task] for task, _ in at], label, symbol)
    if len(tasks) < 2:
        return
    active, dormant, idle = ((state == code).any(0) for code in (ACTIVE, DORMANT, IDLE))
    kinds = {("active here, dormant there", "star"): active & dormant}
    kinds[("active here, idle there", "star-open")] = active & idle & ~dormant
    for (label, symbol), chosen in kinds.items():
        heads = [names[head] for head in np.flatnonzero(chosen)]
        _symbols(figure, heads, [MIXED] * len(heads), label, symbol)


def _symbols(figure: go.Figure, x: list[str], y: list[str], label: str, symbol: str) -> None:
    if not x:
        return
    marker = {"symbol": symbol, "size": 10, "color": theme.TASKS[1], "line": {"color": "white", "width": 1}}
    if symbol.endswith("-open"):
        marker["line"] = {"color": theme.TASKS[1], "width": 1.5}
    if symbol == MARKS[IDLE][1]:  # most heads: there, but not in the way of the others
        marker |= {"size": 4, "opacity": 0.7}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name=label, hoverinfo="skip")


def _notes(ds: xr.Dataset) -> list[str]:
    """What uniform attention gives, and what the marks mean."""
    null = ", ".join(f"{value:.3f}" for value in dict.fromkeys(np.atleast_1d(ds["dormancy_null"].values).tolist()))
    notes = [f"D = mean attention on the first token; uniform attention gives {null}"]
    if "limit" in ds:
        notes.append(
            "active: mean-ablation changes the task by more than its limit; dormant: by less, and D > ε; the limit is "
            f"what a random change of that size does, at least {100 * float(ds.attrs['margin']):g} %"
        )
    return notes


def _hover(ds: xr.Dataset) -> list[list[str]]:
    """All numbers of every head in words, [task][head]."""
    states = json.loads(str(ds.attrs["states"]))
    parts = {str(name): only(ds, str(name), "task", "layer", "head").values for name in ds if _by_head(ds[name])}
    rows = [{name: values[task].ravel() for name, values in parts.items()} for task in range(ds.sizes["task"])]
    count = ds.sizes["layer"] * ds.sizes["head"]
    return [[_words({name: row[name][head] for name in row}, states) for head in range(count)] for row in rows]


def _by_head(variable: xr.DataArray) -> bool:
    return set(variable.dims) == {"task", "layer", "head"}


def _words(at: dict, states: dict[str, str]) -> str:
    lines = [
        f"{words} {at[name]:.3f} ({at[f'{name}_low']:.3f} to {at[f'{name}_high']:.3f})"
        for name, words in SHOWN.items()
        if name in at
    ]
    if "state" in at:
        lines.append(f"a random change of that size loses {at['lost_null']:z.3f}; limit {at['limit']:.3f}")
        lines.append(theme.plain(states[str(int(at["state"]))]))
    return "<br>".join(lines)
