"""How the tokens of a task, or of several, are spread over the experts, against an even router."""

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


@view(
    requires={"layer", "expert"},
    variables={*ENDS, "load_null"},
    about="Share of tokens each expert gets: a layer x expert map a task, or one layer's bars, and the even line.",
)
def expert_load(ds: xr.Dataset, layer: int | None = None) -> go.Figure:
    """All layers as a map (one panel a task), or one `layer` as bars with 95 % intervals, a colour a task."""
    even = float(ds["load_null"].max())  # of results that were joined, which have one each
    figure = _maps(ds, even) if layer is None else _bars(pick(ds, layer=layer), layer, even)
    where = "of every layer" if layer is None else f"of layer {layer}"
    said = [tokens_of(ds), f"an even router: {even:.3f}"]
    if "load_null_low" in ds:
        low, high = float(ds["load_null_low"].min()), float(ds["load_null_high"].max())
        said.append(f"by chance {low:.3f} to {high:.3f}")
    whose = ds.attrs["title"] if "task" in ds.dims else f"{ds.attrs['task']}, {ds.attrs['model']}"
    title = f"Tokens that go to each expert {where}: {whose}"
    room = 20 if layer is None and "task" in ds.dims else 0
    figure.update_layout(**heading(ds, title, " · ".join(said), room=room, height=400))
    return figure


def _hover(part: xr.Dataset, layer: int) -> list[str]:
    load, low, high = (only(part, name, "expert").values for name in ENDS)
    rows = zip(part["expert"].values, load, low, high, strict=True)
    return [f"{expert_name(layer, int(e))}: {v:.3f} of tokens ({a:.3f} to {b:.3f})" for e, v, a, b in rows]


def _maps(ds: xr.Dataset, even: float) -> go.Figure:
    """A map a task; white is an even router's load."""
    parts = by_task(ds)
    titles = [theme.plain(task) for task in parts] if "task" in ds.dims else None
    figure = make_subplots(cols=len(parts), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles)
    figure.update_annotations(font_size=12)
    most = max(float(ds["load"].max()), 2 * even)
    for column, part in enumerate(parts.values(), 1):
        layers = [int(layer) for layer in part["layer"].values]
        figure.add_heatmap(
            x=part["expert"].values,
            y=layers,
            z=only(part, "load", "layer", "expert").values,
            text=[_hover(pick(part, layer=layer), layer) for layer in layers],
            hovertemplate="%{text}<extra></extra>",
            colorscale=_around(even / most),
            zmin=0,
            zmax=most,
            showscale=column == 1,
            colorbar={"title": {"text": "load"}, "thickness": 14},
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


def _bars(ds: xr.Dataset, layer: int, even: float) -> go.Figure:
    """A bar an expert and task, with its interval, and the even line."""
    figure = go.Figure()
    for index, (task, part) in enumerate(by_task(ds).items()):
        load, low, high = (only(part, name, "expert").values for name in ENDS)
        figure.add_bar(
            x=part["expert"].values,
            y=load,
            name=theme.plain(task),
            marker={"color": theme.TASKS[index % len(theme.TASKS)]},
            error_y=whiskers(load, low, high),
            customdata=np.array(_hover(part, layer)),
            hovertemplate=f"%{{customdata}}<extra>{theme.plain(task)}</extra>",
        )
    level(figure, even, f"even: {even:.3f}")
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title="expert", dtick=1 if ds.sizes["expert"] <= 32 else None)
    figure.update_yaxes(title="share of the task's tokens", rangemode="tozero")
    return figure
