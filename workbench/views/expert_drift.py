"""What a task lost to the experts, and what to the routers, between two checkpoints."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import ViewError, heading, only, view
from workbench.views._experts import faint
from workbench.views._strips import level, whiskers

MEASURES = {"loss": "loss of the answer, nats", "accuracy": "accuracy, share of prompts", "metric": "the task's metric"}
ENDS = ("", "_low", "_high")
COLOURS = (theme.TASKS[0], theme.TASKS[1])  # of the earlier and of the later snapshot
MARKS = ("circle-open", "circle")  # of the own and of the fitted router


@view(
    requires={"measured", "method", "component", "seed", "step", "layer"},
    variables={
        *(f"{measure}{more}{end}" for measure in MEASURES for more in ("", "_change") for end in ENDS),
        *(f"entropy{end}" for end in ENDS),
        *("loss_start", "chosen"),
    },
    about="A task at two checkpoints with own and freshly fitted routers: what experts, and what routers, lost.",
)
def expert_drift(ds: xr.Dataset, measure: str = "loss") -> go.Figure:
    """Scores and what changed them, with 95 % intervals over prompts; every fit; and the entropy of the use of experts.

    Args:
        ds: of the analysis `expert_drift`.
        measure: of the panels above: `loss`, `accuracy` or `metric`.
    """
    if measure not in MEASURES:
        raise ViewError(f"There is no measure '{measure}'; use one of: {', '.join(MEASURES)}.")
    titles = ["Score", "What changed it", "Routers while fitted: loss", "Entropy of the use of experts, over ln E"]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.2, horizontal_spacing=0.12)
    figure.update_annotations(font_size=13)
    _scores(figure, ds, measure)
    _changes(figure, ds, measure)
    _fits(figure, ds)
    _entropies(figure, ds)
    level(figure, 0, axes="2")
    level(figure, 1, axes="4")
    title = (
        f"Experts and routers between two checkpoints: {ds.attrs['task']}, {ds.attrs['model']} to {ds.attrs['later']}"
    )
    figure.update_layout(**heading(ds, title, _changed(ds), _other(ds), height=720, room=16))
    figure.update_layout(legend={"orientation": "h", "y": -0.1})
    figure.update_yaxes(title=MEASURES[measure], rangemode="normal" if measure == "metric" else "tozero", row=1, col=1)
    figure.update_yaxes(title=f"change of {MEASURES[measure]}", row=1, col=2)
    figure.update_yaxes(title=MEASURES["loss"], type="log", row=2, col=1)
    figure.update_xaxes(tickangle=0, tickfont={"size": 11}, row=1, col=2)
    figure.update_xaxes(title="steps of the fit", row=2, col=1)
    figure.update_xaxes(title="layer", dtick=1, row=2, col=2)
    return figure


def _changed(ds: xr.Dataset) -> str:
    """How far each kind of weight moved, and on how many prompts routers were fitted."""
    moved = ", ".join(f"{name} {float(ds.attrs[f'changed_{name}']):.0%}" for name in ("router", "experts", "rest"))
    return f"change of weights: {moved} of their norm · routers fitted on {ds.attrs['fitted_on']} other prompts"


def _other(ds: xr.Dataset) -> str:
    if not float(ds.attrs["changed_rest"]):
        return ""
    return "weights other than experts and routers changed too: what they lost counts as the experts'"


def _ends(ds: xr.Dataset, name: str, *dims: str) -> list[np.ndarray]:
    return [only(ds, f"{name}{end}", *dims).values for end in ENDS]


def _scores(figure: go.Figure, ds: xr.Dataset, measure: str) -> None:
    found = _ends(ds, measure, "measured", "method")
    for row, snapshot in enumerate(ds["measured"].values):
        seen, low, high = (values[row] for values in found)
        figure.add_scatter(
            x=ds["method"].values,
            y=seen,
            mode="lines+markers",
            line={"color": COLOURS[row], "dash": "dot"},
            marker={"size": 11, "symbol": list(MARKS), "line": {"width": 2, "color": COLOURS[row]}},
            error_y=whiskers(seen, low, high),
            name=str(snapshot),
            legendgroup=str(snapshot),
            hovertemplate=f"{snapshot}, %{{x}}: %{{y:.3f}}<extra></extra>",
            row=1,
            col=1,
        )


def _changes(figure: go.Figure, ds: xr.Dataset, measure: str) -> None:
    seen, low, high = _ends(ds, f"{measure}_change", "component")
    figure.add_bar(
        x=[theme.plain(name).replace(", ", ",<br>") for name in ds["component"].values],
        y=seen,
        error_y=whiskers(seen, low, high),
        marker={"color": theme.QUIET},
        showlegend=False,
        name="change",
        hovertemplate="%{x}: %{y:+.3f}<extra></extra>",
        row=1,
        col=2,
    )


def _fits(figure: go.Figure, ds: xr.Dataset) -> None:
    """Every start's line, the chosen one's in full colour."""
    losses, chosen = only(ds, "loss_start", "measured", "seed", "step"), only(ds, "chosen", "measured").values
    for row, snapshot in enumerate(ds["measured"].values):
        for place, seed in enumerate(ds["seed"].values):
            name = f"{snapshot}, from {'its own router' if seed == 0 else f'fresh router {seed}'}"
            figure.add_scatter(
                x=ds["step"].values,
                y=losses.values[row, place],
                mode="lines+markers",
                line={
                    "color": COLOURS[row] if place == chosen[row] else faint(COLOURS[row], 0.4),
                    "width": 2.5 if place == chosen[row] else 1.2,
                    "dash": "solid" if seed == 0 else "dash",
                },
                name=name,
                legendgroup=str(snapshot),
                showlegend=False,
                hovertemplate=f"step %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
                row=2,
                col=1,
            )


def _entropies(figure: go.Figure, ds: xr.Dataset) -> None:
    found = _ends(ds, "entropy", "measured", "method", "layer")
    for row, snapshot in enumerate(ds["measured"].values):
        for column, router in enumerate(ds["method"].values):
            seen, low, high = (values[row, column] for values in found)
            figure.add_scatter(
                x=ds["layer"].values + (2 * row + column - 1.5) * 0.08,
                y=seen,
                mode="markers",
                marker={
                    "size": 9,
                    "color": COLOURS[row],
                    "symbol": MARKS[column],
                    "line": {"width": 2, "color": COLOURS[row]},
                },
                error_y=whiskers(seen, low, high),
                name=f"{snapshot}, {router}",
                legendgroup=str(snapshot),
                showlegend=False,
                customdata=ds["layer"].values,
                hovertemplate=f"layer %{{customdata}}: %{{y:.3f}}<extra>{snapshot}, {router}</extra>",
                row=2,
                col=2,
            )
