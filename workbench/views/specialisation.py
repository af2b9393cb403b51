"""How far a router's choices follow tokens or tasks, between shuffled labels and routers of random weights."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._experts import tokens_of

ENDS = ("", "_null", "_null_high", "_random", "_random_high")


@view(
    requires={"measured", "layer"},
    variables={f"specialisation{end}" for end in ENDS},
    about="Specialisation of the routers by layer, with its shuffled null and that of routers with random weights.",
)
def specialisation(ds: xr.Dataset) -> go.Figure:
    """A panel a measure, over the layers: the trained routers, the band of the null, and random routers."""
    measures = [str(name) for name in ds["measured"].values]
    titles = [theme.plain(name) for name in measures]
    figure = make_subplots(cols=len(measures), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    figure.update_annotations(font_size=12)
    values = {end: only(ds, f"specialisation{end}", "measured", "layer").values for end in ENDS}
    layers = ds["layer"].values
    for row in range(len(measures)):
        _panel(figure, layers, {end: found[row] for end, found in values.items()}, row + 1)
    title = str(ds.attrs["title"]) if "task" in ds.dims else f"{ds.attrs['task']}, {ds.attrs['model']}"
    what = str(ds["specialisation"].attrs["long_name"])
    figure.update_layout(**heading(ds, f"Specialisation of the routers: {title}", f"{tokens_of(ds)} · {what}", room=20))
    figure.update_layout(height=420, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title="layer", dtick=1 if len(layers) <= 16 else None)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title=str(ds["specialisation"].attrs["units"]), row=1, col=1)
    return figure


def _panel(figure: go.Figure, x, values: dict, column: int) -> None:
    """One measure."""
    quiet, other, own = {"color": theme.QUIET}, {"color": theme.TASKS[4]}, {"color": theme.TASKS[0]}
    lines = (
        ("_null", "labels shuffled, mean", quiet | {"width": 0.5}, None),
        ("_null_high", "labels shuffled, 95 % point", quiet | {"dash": "dot"}, "tonexty"),
        ("_random", "random routers, mean", other | {"dash": "dash"}, None),
        ("_random_high", "random routers, largest of five", other | {"dash": "dot", "width": 1}, None),
        ("", "the routers", own | {"width": 2.5}, None),
    )
    for end, name, line, fill in lines:
        figure.add_scatter(
            x=x,
            y=values[end],
            mode="lines+markers",
            line=line,
            fill=fill,
            fillcolor=theme.BAND,
            name=name,
            legendgroup=name,
            showlegend=column == 1,
            hovertemplate=f"layer %{{x}}: %{{y:.3f}}<extra>{name}</extra>",
            row=1,
            col=column,
        )
