"""What tasks score when experts differ from their base in r directions only, beside random directions."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import ViewError, heading, only, view
from workbench.views._experts import faint
from workbench.views._strips import by_task, whiskers

MEASURES = {
    "loss": "loss of the answer, nats",
    "accuracy": "accuracy, share of prompts",
    "metric": "the task's metric",
}
ENDS = ("", "_low", "_high", "_null", "_null_low", "_null_high")
ENERGY = ("retained", "retained_null", "parameters")


@view(
    requires={"size"},
    variables={*(f"{measure}{end}" for measure in MEASURES for end in ENDS), *ENERGY, "effective_rank"},
    about="A task's score by the rank of what makes experts differ, beside random subspaces, and the energy retained.",
)
def truncation_curve(ds: xr.Dataset, measure: str = "loss") -> go.Figure:
    """Above, `measure` (loss, accuracy or metric) by rank, a colour a task; below, the energy retained.

    Lines with bars: the leading directions with 95 % intervals over prompts; dotted, in a band: random subspaces, their
    mean and range. At rank 0 every expert is the base, at the last rank the model is as it was.
    """
    if measure not in MEASURES:
        raise ViewError(f"There is no measure '{measure}'; use one of: {', '.join(MEASURES)}.")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.64, 0.36])
    tasks = by_task(ds)
    ranks = [str(rank) for rank in ds["size"].values]
    for place, (task, part) in enumerate(tasks.items()):
        _score(figure, ranks, part, measure, theme.plain(task), theme.TASKS[place % len(theme.TASKS)])
    first = next(iter(tasks.values()))
    _energy(figure, ranks, first)
    names = f"{len(tasks)} tasks" if len(tasks) > 1 else next(iter(tasks))
    title = f"Experts cut to rank r: {names}, {ds.attrs['model']}"
    notes = (
        f"base: {_base(ds)} · bars: 95 % intervals over prompts; dotted: random subspaces of that rank, mean and range"
    )
    figure.update_layout(**heading(ds, title, notes, _ranks(first), height=660))
    figure.update_layout(legend={"orientation": "h", "y": -0.12, "yanchor": "top"})
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="rank r of each expert's difference from the base", row=2, col=1)
    figure.update_yaxes(title=MEASURES[measure], rangemode="normal" if measure == "metric" else "tozero", row=1, col=1)
    figure.update_yaxes(title="share", range=[0, 1.04], row=2, col=1)
    return figure


def _base(ds: xr.Dataset) -> str:
    return "the mean of the layer's experts" if ds.attrs["base"] == "mean" else str(ds.attrs["base"])


def _ranks(ds: xr.Dataset) -> str:
    """Effective ranks of the differences, beside those of normal matrices."""
    values, null = only(ds, "effective_rank", "module", "layer", "expert"), only(ds, "effective_rank_null", "module")
    parts = [
        f"{name} {float(each.min()):.0f} to {float(each.max()):.0f} (a normal matrix {float(normal):.0f})"
        for name, each, normal in zip(values["module"].values, values, null, strict=True)
    ]
    return f"effective rank of the differences: {' · '.join(parts)}"


def _score(figure: go.Figure, ranks: list[str], ds: xr.Dataset, measure: str, task: str, colour: str) -> None:
    """One task: the band of random subspaces, their mean, and the leading directions."""
    seen, low, high, null, null_low, null_high = (only(ds, f"{measure}{end}", "size").values for end in ENDS)
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "legendgroup": task}
    at = {"row": 1, "col": 1}
    figure.add_scatter(x=ranks, y=null_low, name=f"{task}, random, lowest", **edge, **at)
    fill = {"fill": "tonexty", "fillcolor": faint(colour, 0.15)}
    figure.add_scatter(x=ranks, y=null_high, name=f"{task}, random, highest", **fill, **edge, **at)
    for y, line, bars, name in (
        (null, {"color": colour, "dash": "dot", "width": 1.5}, None, f"{task}, random subspaces"),
        (seen, {"color": colour, "width": 2.5}, whiskers(seen, low, high), task),
    ):
        figure.add_scatter(
            x=ranks,
            y=y,
            mode="lines" if bars is None else "lines+markers",
            line=line,
            error_y=bars,
            name=name,
            legendgroup=task,
            showlegend=bars is not None,
            hovertemplate=f"rank %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
            **at,
        )


def _energy(figure: go.Figure, ranks: list[str], ds: xr.Dataset) -> None:
    for name, say, dash in (
        ("retained", "energy retained", "solid"),
        ("retained_null", "energy expected in random subspaces", "dot"),
        ("parameters", "numbers in the factors", "dash"),
    ):
        figure.add_scatter(
            x=ranks,
            y=only(ds, name, "size").values,
            mode="lines+markers" if dash == "solid" else "lines",
            line={"color": theme.QUIET, "dash": dash, "width": 2 if dash == "solid" else 1.5},
            name=say,
            hovertemplate=f"rank %{{x}}: %{{y:.3f}}<extra>{say}</extra>",
            row=2,
            col=1,
        )
