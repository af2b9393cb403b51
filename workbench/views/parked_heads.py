"""Which heads' patching effects are no more than resting on the sink, or leaving it."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import heading, only, view

AXES = {"x": "effect_plain", "y": "effect"}


@view(
    requires={"layer", "head"},
    variables={"effect", "effect_plain", "effect_sink", "parked"},
    about="Each head's patching effect against what is left of it beyond its attention on the sink.",
)
def parked_heads(ds: xr.Dataset) -> go.Figure:
    """A point a head with both intervals; on the diagonal the sink does nothing, at height 0 it is all there is."""
    values = {axis: only(ds, name, "layer", "head").values.ravel() for axis, name in AXES.items()}
    parked = only(ds, "parked", "layer", "head").values.ravel() > 0
    names = np.array([head_name(int(layer), int(head)) for layer in ds["layer"].values for head in ds["head"].values])
    hover = np.array(_hover(ds))
    figure = go.Figure()
    ends = [float(min(0, values["x"].min())), float(max(0, values["x"].max()))]
    line = {"color": theme.QUIET, "dash": "dash", "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="nothing due to the sink", hoverinfo="skip")
    figure.add_scatter(
        x=ends, y=[0, 0], mode="lines", line=line | {"dash": "dot"}, name="all due to the sink", hoverinfo="skip"
    )
    for chosen, label, colour in ((~parked, "heads", theme.TASKS[0]), (parked, "parked heads", theme.TASKS[1])):
        if not chosen.any():
            continue
        figure.add_scatter(
            x=values["x"][chosen],
            y=values["y"][chosen],
            mode="markers+text" if label == "parked heads" else "markers",
            marker={"size": 9, "color": colour},
            text=names[chosen],
            textposition="top center",
            name=label,
            customdata=hover[chosen],
            hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            **{f"error_{axis}": _errors(ds, name, chosen) for axis, name in AXES.items()},
        )
    figure.update_layout(
        **heading(ds, f"Parked heads: {ds.attrs['title']}", *_notes(ds, int(parked.sum())), height=480)
    )
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, showlegend=True)
    figure.update_xaxes(title="effect of patching the head (share)")
    figure.update_yaxes(title="effect beyond its attention on the sink (share)")
    return figure


def _errors(ds: xr.Dataset, name: str, chosen: np.ndarray) -> dict:
    middle, low, high = (
        ds[f"{name}{end}"].transpose("layer", "head").values.ravel()[chosen] for end in ("", "_low", "_high")
    )
    return {"array": high - middle, "arrayminus": middle - low, "thickness": 1}


def _notes(ds: xr.Dataset, count: int) -> list[str]:
    least, within = 100 * float(ds.attrs["margin"]), 100 * float(ds.attrs["within"])
    rule = f"an effect of {least:g} % or more, less than {within:g} % of which is left beyond the sink"
    return [
        f"{count} parked: {rule}",
        "in the corrupted run, each head's attention on the first token is the clean run's",
    ]


def _hover(ds: xr.Dataset) -> list[str]:
    """All numbers of every head in words."""
    shown = {
        "effect_plain": "patched",
        "effect_sink": "only its attention on the sink patched",
        "effect": "beyond the sink",
    }
    rest = {"sink_clean": "attention on the first token, clean run", "sink_corrupted": "corrupted run"}
    parts = {
        name + end: ds[name + end].transpose("layer", "head").values.ravel()
        for name in (*shown, *rest)
        for end in ("", "_low", "_high")
    }
    null = float(ds["sink_null"])
    found = []
    for head in range(ds.sizes["layer"] * ds.sizes["head"]):
        at = {name: float(values[head]) for name, values in parts.items()}
        lines = [
            f"{words} {at[name]:z.3f} ({at[name + '_low']:z.3f} to {at[name + '_high']:z.3f})"
            for name, words in (shown | rest).items()
        ]
        found.append("<br>".join([*lines, f"uniform attention {null:.3f}"]))
    return found
