"""How often a position is a sink, by its place in the sequence or layer by layer."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import ViewError, heading, only, pick, view
from workbench.views._strips import aside, by_task, named_heads, whiskers

FEW = 8  # queries; the mean over fewer says little about a key
MANY = 80  # positions; with more, intervals are a band
CONTROL = "control_rate"


@view(
    requires={"key_pos"},
    variables={"sink_rate_mean", "sink_rate_mean_low", "sink_rate_mean_high"},
    about="Sink rate of every key position with its interval, or of one position by layer; one line a task.",
)
def sink_rate(ds: xr.Dataset, by: str = "position", key: int = 0) -> go.Figure:
    """Sink rate of each key position over all heads and sequences, with intervals resampled over sequences.

    By `layer`: that of position `key` in each layer, the mean over its heads as a line and a dot a head. Where the
    result has controls, what random and repeated tokens give at the first position stands above.
    """
    if by not in ("position", "layer"):
        raise ViewError(f"Cannot draw by '{by}'; use one of position, layer.")
    if by == "layer" and not {"layer", "head"} <= set(ds.get("sink_rate", xr.DataArray()).dims):
        raise ViewError("This result has no sink rate by layer; draw it by position.")
    figure = go.Figure()
    for index, (task, part) in enumerate(by_task(ds).items()):
        colour = theme.TASKS[index % len(theme.TASKS)]
        if by == "layer":
            _layers(figure, pick(part, key_pos=key), theme.plain(task), colour, index)
        else:
            _positions(figure, part, theme.plain(task), colour)
    where = "by key position" if by == "position" else f"of {_named(ds, key)}, layer by layer,"
    figure.update_layout(**heading(ds, f"Sink rate {where} in {ds.attrs['model']}", *_controls(ds)))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25}, height=400)
    figure.update_yaxes(title="sink rate", rangemode="tozero")
    if by == "layer":
        figure.update_xaxes(title="layer", dtick=1 if ds.sizes["layer"] < 26 else None, zeroline=False)
    else:
        last = int(ds["key_pos"].values[-1])
        _few(figure, last)
        figure.update_xaxes(title="key position (0 is the first token)", range=[-0.02 * last - 0.5, 1.02 * last + 0.5])
    return figure


def _named(ds: xr.Dataset, key: int) -> str:
    return "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"


def _controls(ds: xr.Dataset) -> list[str]:
    """The sanity rows: the first token of the text, of random tokens, and of one repeated token."""
    if CONTROL not in ds:
        return []
    said = []
    for task, part in by_task(ds).items():
        rates = only(part, CONTROL, "measured")
        pairs = zip(rates["measured"].values, rates.values, strict=True)
        said.append(f"{task}: {', '.join(f'{name} {rate:.2f}' for name, rate in pairs)}")
    return [f"sink rate of the first token on {' · '.join(said)}"]


def _positions(figure: go.Figure, part: xr.Dataset, task: str, colour: str) -> None:
    """A line with error bars, or with a band where there are many positions."""
    rate, low, high = (only(part, f"sink_rate_mean{end}", "key_pos").values for end in ("", "_low", "_high"))
    x, many = part["key_pos"].values, part.sizes["key_pos"] > MANY
    if many:
        for name, values, fill in (("lower end", low, None), ("upper end", high, "tonexty")):
            figure.add_scatter(
                x=x,
                y=values,
                mode="lines",
                line={"color": colour, "width": 0.3},
                fill=fill,
                fillcolor=theme.BAND,
                name=f"{task}, {name}",
                legendgroup=task,
                showlegend=False,
                hoverinfo="skip",
            )
    figure.add_scatter(
        x=x,
        y=rate,
        mode="lines" if many else "lines+markers",
        name=task,
        legendgroup=task,
        line={"color": colour, "width": 1.5 if many else 2},
        error_y=None if many else whiskers(rate, low, high),
        customdata=np.stack([low, high], -1),
        hovertemplate="position %{x}: %{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
    )


def _layers(figure: go.Figure, at: xr.Dataset, task: str, colour: str, index: int) -> None:
    """A dot a head and the mean over the heads of each layer."""
    rate, names = only(at, "sink_rate", "layer", "head").values, named_heads(at)
    layers, heads = at["layer"].values, rate.shape[1]
    figure.add_scatter(
        x=np.repeat(layers, heads) + np.tile(0.16 * (index - 0.5) + aside(heads, 0.14), len(layers)),
        y=rate.ravel(),
        mode="markers",
        marker={"size": 6, "color": colour, "opacity": 0.5},
        name=f"{task}, each head",
        customdata=names.ravel(),
        hovertemplate=f"%{{customdata}} on {task}: %{{y:.3f}} of sequences<extra></extra>",
    )
    figure.add_scatter(
        x=layers,
        y=rate.mean(1),
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        marker={"size": 9, "symbol": "diamond"},
        name=f"{task}, mean of the layer",
        hovertemplate=f"layer %{{x}} on {task}: %{{y:.3f}}<extra></extra>",
    )


def _few(figure: go.Figure, last: int) -> None:
    """The last positions, which few queries see."""
    figure.add_vrect(
        x0=last - FEW + 1.5,
        x1=last + 0.5,
        fillcolor=theme.BAND,
        line_width=0,
        annotation_text=f"seen by fewer than {FEW} queries",
        annotation_position="top right",
    )
