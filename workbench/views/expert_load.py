"""How the tokens of a task, or its weights, are spread over the experts, against an even router."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import heading, only, pick, view
from workbench.views._experts import tokens_of
from workbench.views._strips import by_task, level, whiskers

ENDS = ("load", "load_low", "load_high")
OF = {"load": "of tokens", "gate": "of all weight"}
AXIS = {"load": "share of the task's tokens", "gate": "share of all weight"}
CHANCE = {"load": "by chance", "gate": "weights renamed at random"}


@view(
    requires={"layer", "expert"},
    variables={*ENDS, "load_null"},
    about="Share of tokens each expert gets: a layer x expert map a task, or one layer's bars, and the even line.",
)
def expert_load(ds: xr.Dataset, layer: int | None = None) -> go.Figure:
    """All layers as a map (one panel a task), or one `layer` as bars with 95 % intervals, a colour a task.

    Where every token goes to all experts (the attribute `dense`), shares of weight are drawn in place of loads.
    """
    name = "gate" if ds.attrs.get("dense") and "gate_null" in ds else "load"
    even = float(ds[f"{name}_null"].max())  # of results that were joined, which have one each
    figure = _maps(ds, name, even) if layer is None else _bars(pick(ds, layer=layer), name, layer, even)
    where = "of every layer" if layer is None else f"of layer {layer}"
    said = [tokens_of(ds), f"an even router: {even:.3f}"]
    if f"{name}_null_low" in ds:
        null = pick(ds, layer=layer) if layer is not None else ds
        low, high = float(null[f"{name}_null_low"].min()), float(null[f"{name}_null_high"].max())
        said.append(f"{CHANCE[name]} {low:.3f} to {high:.3f}")
    whose = ds.attrs["title"] if "task" in ds.dims else f"{ds.attrs['task']}, {ds.attrs['model']}"
    what = "Tokens that go to each expert" if name == "load" else "Weight that each expert gets"
    title = f"{what} {where}: {whose}"
    room = 20 if layer is None and "task" in ds.dims else 0
    figure.update_layout(**heading(ds, title, " · ".join(said), room=room, height=400))
    return figure


def _hover(part: xr.Dataset, name: str, layer: int) -> list[str]:
    rows = zip(part["expert"].values, *_with_ends(part, name), strict=True)
    return [f"{expert_name(layer, int(e))}: {v:.3f} {OF[name]} ({a:.3f} to {b:.3f})" for e, v, a, b in rows]


def _with_ends(part: xr.Dataset, name: str) -> list[np.ndarray]:
    """A measure of each expert and the ends of its interval."""
    return [only(part, f"{name}{end}", "expert").values for end in ("", "_low", "_high")]


def _maps(ds: xr.Dataset, name: str, even: float) -> go.Figure:
    """A map a task; white is an even router's share."""
    parts = by_task(ds)
    titles = [theme.plain(task) for task in parts] if "task" in ds.dims else None
    figure = make_subplots(cols=len(parts), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles)
    figure.update_annotations(font_size=12)
    most = max(float(ds[name].max()), 2 * even)
    for column, part in enumerate(parts.values(), 1):
        layers = [int(layer) for layer in part["layer"].values]
        figure.add_heatmap(
            x=part["expert"].values,
            y=layers,
            z=only(part, name, "layer", "expert").values,
            text=[_hover(pick(part, layer=layer), name, layer) for layer in layers],
            hovertemplate="%{text}<extra></extra>",
            colorscale=_around(even / most),
            zmin=0,
            zmax=most,
            showscale=column == 1,
            colorbar={"title": {"text": name}, "thickness": 14},
            xgap=1,
            ygap=1,
            row=1,
            col=column,
        )
    figure.update_xaxes(title="expert", showgrid=False, dtick=1 if ds.sizes["expert"] <= 16 else None)
    figure.update_yaxes(showgrid=False, dtick=1 if ds.sizes["layer"] <= 16 else None, autorange="reversed")
    figure.update_yaxes(title="layer", row=1, col=1)
    return figure


def _around(middle: float) -> list[list]:
    """The diverging scale with its middle moved to this share of the range."""
    stops = [(at * 2 * middle if at <= 0.5 else middle + (at - 0.5) * 2 * (1 - middle)) for at, _ in theme.DIVERGING]
    return [[stop, hue] for stop, (_, hue) in zip(stops, theme.DIVERGING, strict=True)]


def _bars(ds: xr.Dataset, name: str, layer: int, even: float) -> go.Figure:
    """A bar an expert and task, with its interval, and the even line."""
    figure = go.Figure()
    for index, (task, part) in enumerate(by_task(ds).items()):
        seen, low, high = _with_ends(part, name)
        figure.add_bar(
            x=part["expert"].values,
            y=seen,
            name=theme.plain(task),
            marker={"color": theme.TASKS[index % len(theme.TASKS)]},
            error_y=whiskers(seen, low, high),
            customdata=np.array(_hover(part, name, layer)),
            hovertemplate=f"%{{customdata}}<extra>{theme.plain(task)}</extra>",
        )
    level(figure, even, f"even: {even:.3f}")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title="expert", dtick=1 if ds.sizes["expert"] <= 32 else None)
    figure.update_yaxes(title=AXIS[name], rangemode="tozero")
    return figure
