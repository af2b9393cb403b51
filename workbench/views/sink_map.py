"""The attention each token of one sequence receives, layer by layer."""

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.heads import head_name
from workbench.views._base import heading, only, pick, view, visible

EACH = 80  # tokens that can all be written under the map
WIDEST = 600  # columns that can be told apart
NAMED = 14  # strongest tokens that are written under a longer map


@view(
    requires={"prompt", "layer", "head", "key_pos"},
    variables={"alpha_prompt"},
    about="Layer x token map of alpha on one sequence: the strongest head of each layer, or one head.",
)
def sink_map(ds: xr.Dataset, prompt: int = 0, head: int | None = None) -> go.Figure:
    """A heat map of alpha for one sequence; without `head`, the largest over the heads of each layer.

    All tokens are written under up to 80 of them, else the strongest ones. Above 600 a column is the strongest of
    neighbouring tokens, so that none is lost between two pixels.
    """
    row = pick(only(ds, "alpha_prompt", "prompt", "layer", "head", "key_pos"), prompt=prompt)
    if head is not None:
        row = pick(row, head=head).expand_dims(head=[head], axis=1)
    tokens = [theme.plain(visible(token)) for token in ds["token"].sel(prompt=prompt).values]
    values, strongest = row.max("head").values, row["head"].values[row.argmax("head").values]
    group = math.ceil(len(tokens) / WIDEST)
    at = _strongest(values, group)
    names = [
        [f"{place} {tokens[place]}<br>{head_name(int(layer), int(heads[place]))}" for place in places]
        for layer, heads, places in zip(ds["layer"].values, strongest, at, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=np.arange(at.shape[1]) * group,
            y=[int(layer) for layer in ds["layer"].values],
            z=np.take_along_axis(values, at, 1),
            customdata=names,
            colorbar={"title": "alpha", "thickness": 14},
            hovertemplate="%{customdata}: alpha %{z:.3f}<extra></extra>",
            colorscale=theme.SEQUENTIAL,
            zmin=0,
            zmax=1,
        )
    )
    _describe(figure, ds, f"sequence {prompt}", head, group)
    _write(figure, tokens, values.max(0))
    return figure


def _describe(figure: go.Figure, ds: xr.Dataset, sequence: str, head: int | None, group: int) -> None:
    """Title, notes and axes."""
    which, notes = "strongest head of each layer" if head is None else f"head {head}", [sequence]
    if group > 1:
        notes.append(f"a column is the strongest of {group} neighbouring tokens")
    if ds.sizes["key_pos"] > EACH:
        notes.append("written below: the tokens that receive most")
    title = f"Attention received by each token, {which}: {ds.attrs['task']}, {ds.attrs['model']}"
    layers = ds.sizes["layer"]
    figure.update_layout(**heading(ds, title, " · ".join(notes), height=260 + min(340, 22 * layers)))
    figure.update_yaxes(title="layer", dtick=1 if layers < 16 else None, showgrid=False)


def _write(figure: go.Figure, tokens: list[str], values: np.ndarray) -> None:
    """The tokens under the map: all, or those that receive most with their positions."""
    few = len(tokens) <= EACH
    places = list(range(len(tokens))) if few else _apart(values)
    labels = [tokens[place] if few else f"{place} {tokens[place]}" for place in places]
    figure.update_xaxes(tickvals=places, ticktext=labels, tickangle=-60, tickfont={"size": 10}, showgrid=False)


def _strongest(values: np.ndarray, group: int) -> np.ndarray:
    """The place of the largest of every `group` neighbours, int [layer, column]."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % group)), constant_values=-1)
    best = padded.reshape(len(values), -1, group).argmax(2)
    return best + group * np.arange(best.shape[1])


def _apart(values: np.ndarray) -> list[int]:
    """Places of the largest values that are far enough apart to be written side by side."""
    room, found = len(values) / 60, []
    for place in np.argsort(-values, kind="stable").tolist():
        if all(abs(place - other) >= room for other in found):
            found.append(place)
        if len(found) == NAMED:
            break
    return sorted(found)
