"""From tasks to experts: which of a layer's experts each task's tokens flow to."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import ViewError, heading, only, view
from workbench.views._experts import at_layer, colour, faint, tokens_of

ENDS = ("load", "load_low", "load_high")


@view(
    requires={"task", "layer", "expert"},
    variables={*ENDS, "load_null"},
    about="Flow of each task's tokens to one layer's experts, or as stacked bars; what is no more than even is grey.",
)
def task_flow(ds: xr.Dataset, layer: int | None = None, kind: str = "flow") -> go.Figure:
    """Tasks on the left, the experts of `layer` (None: the last) on the right; `kind` is `flow` or `bars`.

    A band is as wide as the share of the task's tokens that go to the expert. It has the task's colour where even the
    lower end of its interval is above an even router's k / E, and is grey where it is not.
    """
    if kind not in ("flow", "bars"):
        raise ViewError(f"There is no kind '{kind}'; use flow or bars.")
    part, chosen = at_layer(ds, layer)
    even = float(only(part, "load_null"))
    values, low, high = (only(part, name, "task", "expert").values for name in ENDS)
    tasks = [theme.plain(task) for task in part["task"].values]
    experts = [expert_name(chosen, int(expert)) for expert in part["expert"].values]
    said = [
        [
            f"{t} to {e}: {v:.3f} of tokens ({a:.3f} to {b:.3f}), even {even:.3f}"
            for e, v, a, b in zip(*row, strict=True)
        ]
        for t, *row in zip(tasks, [experts] * len(tasks), values, low, high, strict=True)
    ]
    figure = (
        _flow(tasks, experts, values, low > even, said) if kind == "flow" else _bars(tasks, part, values, said, even)
    )
    marks = "colour: more than an even router gives, by its interval" if kind == "flow" else "dotted: an even router"
    notes = f"{tokens_of(ds)} · {marks} ({even:.3f} of tokens to each expert)"
    figure.update_layout(**heading(ds, f"Layer {chosen}, {ds.attrs['title']}", notes, height=470))
    return figure


def _flow(tasks: list[str], experts: list[str], values, above, said: list[list[str]]) -> go.Figure:
    """A Sankey diagram."""
    cells = [(row, column) for row in range(len(tasks)) for column in range(len(experts)) if values[row, column] > 0]
    hues = [theme.TASKS[row % len(theme.TASKS)] for row in range(len(tasks))]
    link = {
        "source": [row for row, _ in cells],
        "target": [len(tasks) + column for _, column in cells],
        "value": [float(values[cell]) for cell in cells],
        "color": [faint(hues[row] if above[row, column] else theme.QUIET, 0.55) for row, column in cells],
        "customdata": [said[row][column] for row, column in cells],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    node = {"label": [*tasks, *experts], "color": [*hues, *[theme.QUIET] * len(experts)], "pad": 12, "thickness": 14}
    node |= {"hovertemplate": "%{label}<extra></extra>"} | _places(values)
    return go.Figure(go.Sankey(node=node, link=link, arrangement="snap"))


def _places(values: np.ndarray) -> dict[str, list[float]]:
    """Where the tasks and the experts stand, in their order: each in the middle of its share of the height."""
    shares = [values.sum(axis) / values.sum() for axis in (1, 0)]
    middles = np.concatenate([share.cumsum() - share / 2 for share in shares])
    x = np.repeat([0.001, 0.999], [len(share) for share in shares])  # at 0 or 1 Plotly forgets the place
    return {"x": x.tolist(), "y": middles.clip(0.001, 0.999).tolist()}


def _bars(tasks: list[str], part: xr.Dataset, values, said: list[list[str]], even: float) -> go.Figure:
    """One bar a task, a segment an expert; dotted lines where an even router's segments would end."""
    figure = go.Figure()
    for place, expert in enumerate(part["expert"].values):
        figure.add_bar(
            y=tasks,
            x=values[:, place],
            orientation="h",
            name=str(expert),
            marker={"color": colour(int(expert)), "line": {"color": "#ffffff", "width": 1}},
            text=[str(expert)] * len(tasks),
            textposition="inside",
            insidetextanchor="middle",
            customdata=[row[place] for row in said],
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_vline(x=even * (place + 1), line={"color": theme.QUIET, "dash": "dot", "width": 1})
    figure.update_layout(barmode="stack", showlegend=False)
    figure.update_xaxes(title="experts chosen a token")
    figure.update_yaxes(autorange="reversed")
    return figure
