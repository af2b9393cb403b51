"""What is lost without each expert, beside its load and what random experts at as many tokens lose."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import ViewError, heading, only, view
from workbench.views._strips import whiskers

MEASURES = {
    "lost": ("load", "share of the metric's drop", "the prompts"),
    "loss_change": ("load_text", "change of next-token loss (nats)", "running text"),
}
ENDS = ("", "_low", "_high", "_null", "_null_low", "_null_high", "_p")
WRITTEN = 16  # experts in a row, up to which their numbers are written into the map


@view(
    requires={"layer", "expert", "seed"},
    variables={*(f"{measure}{end}" for measure in MEASURES for end in ENDS), "load", "load_text"},
    about="What a task, or running text, loses without each expert: layer x expert, load, and random experts.",
)
def expert_effects(ds: xr.Dataset, measure: str = "lost") -> go.Figure:
    """Maps of the effect (bold: above the controls' 95 %) and of the load, and every expert on its controls' band.

    Args:
        ds: of `expert_ablation`.
        measure: `lost`, of the task's metric, or `loss_change`, of running text.
    """
    if measure not in MEASURES:
        raise ViewError(f"There is no measure '{measure}'; use one of: {', '.join(MEASURES)}.")
    load, quantity, where = MEASURES[measure]
    found = {end: only(ds, f"{measure}{end}", "layer", "expert") for end in ENDS}
    share = only(ds, load, "layer", "expert")
    names = np.array(
        [[expert_name(int(at), int(expert)) for expert in ds["expert"].values] for at in ds["layer"].values]
    )
    titles = [f"Without the expert: {quantity}", "Load: share of tokens that use it", f"By load on {where}"]
    figure = make_subplots(
        rows=2, cols=2, specs=[[{}, {}], [{"colspan": 2}, None]], subplot_titles=titles, vertical_spacing=0.22
    )
    figure.update_annotations(font_size=13)
    hover = _hover(names, found, share)
    _map(figure, found[""], hover, _written(found[""], found["_null_high"], found["_low"]), 1)
    _map(figure, share, hover, _written(share), 2)
    _bands(figure, share, found, hover)
    title = f"{quantity[0].upper()}{quantity[1:]} without each expert: {ds.attrs['task']}, {ds.attrs['model']}"
    how = "bold: above 95 % of random experts taken from as many tokens, and its own interval above 0"
    figure.update_layout(**heading(ds, title, f"{ds.attrs['mode']}: {ds.attrs['meaning']}", how, height=640, room=16))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.14})
    figure.update_xaxes(title="expert", dtick=1 if share.shape[1] <= WRITTEN else None, row=1)
    figure.update_yaxes(dtick=1, autorange="reversed", row=1)
    figure.update_yaxes(title="layer", row=1, col=1)
    figure.update_xaxes(title="share of tokens that use the expert", tickformat=".0%", row=2)
    figure.update_yaxes(title=quantity, row=2)
    return figure


def _written(values: xr.DataArray, high: xr.DataArray | None = None, low: xr.DataArray | None = None) -> np.ndarray:
    """The numbers of a map as text; bold above the controls, and only those where there are many."""
    room = values.shape[1] <= WRITTEN
    text = np.array([[f"{value:z.2f}" if room else "" for value in row] for row in values.values], dtype=object)
    if high is not None and low is not None:
        for at in np.argwhere((values > high).values & (low > 0).values):
            text[tuple(at)] = f"<b>{text[tuple(at)] or '●'}</b>"
    return text


def _hover(names: np.ndarray, found: dict[str, xr.DataArray], share: xr.DataArray) -> list[list[str]]:
    numbers = {end: values.values for end, values in found.items()}
    rows, columns = share.shape
    return [
        [
            f"{names[at]}: {numbers[''][at]:+.4f} ({numbers['_low'][at]:+.4f} to {numbers['_high'][at]:+.4f})<br>"
            f"random experts {numbers['_null'][at]:+.4f} ({numbers['_null_low'][at]:+.4f} to "
            f"{numbers['_null_high'][at]:+.4f}), p = {numbers['_p'][at]:.2g}<br>load {share.values[at]:.1%}"
            for at in ((row, column) for column in range(columns))
        ]
        for row in range(rows)
    ]


def _map(figure: go.Figure, values: xr.DataArray, hover: list, text: np.ndarray, column: int) -> None:
    """One heat map; its colour bar stands beside it."""
    bar = {"len": 0.38, "y": 0.82, "thickness": 10, "x": 0.455 if column == 1 else 1.01}
    figure.add_heatmap(
        x=values["expert"].values,
        y=values["layer"].values,
        z=values.values,
        text=text,
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar=bar,
        xgap=1,
        ygap=1,
        **theme.colour_range(values),
        row=1,
        col=column,
    )


def _bands(figure: go.Figure, share: xr.DataArray, found: dict[str, xr.DataArray], hover: list) -> None:
    """Every expert at its load, with its interval, on the bar that holds 95 % of its controls."""
    x = share.values.ravel()
    low, high = (found[end].values.ravel() for end in ("_null_low", "_null_high"))
    gap = np.full(len(x), None)
    figure.add_scatter(
        x=np.stack([x, x, gap], 1).ravel(),
        y=np.stack([low, high, gap], 1).ravel(),
        mode="lines",
        line={"color": theme.BAND, "width": 9},
        name="random experts at as many tokens, 95 %",
        hoverinfo="skip",
        row=2,
        col=1,
    )
    for index, layer in enumerate(share["layer"].values):
        values, *sides = (found[end].values[index] for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=share.values[index],
            y=values,
            mode="markers",
            marker={"size": 8, "color": theme.TASKS[index % len(theme.TASKS)]},
            error_y=whiskers(values, *sides),
            name=f"layer {layer}",
            customdata=hover[index],
            hovertemplate="%{customdata}<extra></extra>",
            row=2,
            col=1,
        )
