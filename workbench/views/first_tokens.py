"""Attention of a few heads over the first tokens, averaged over many texts: the sink at a glance."""

import math
import re

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.heads import head_name, parse_head
from workbench.views._base import ViewError, heading, only, pick, view

MAP = ("layer", "head", "query_pos", "key_pos")
COLUMNS, MOST = 4, 8  # maps in a row, and in all
SHOWN = {"score": "attention score before the softmax", "pattern": "attention"}


@view(
    requires=set(MAP),
    variables={"score", "score_sd", "pattern", "pattern_sd"},
    about="Mean attention of chosen heads over the first tokens of many texts, before or after the softmax.",
)
def first_tokens(ds: xr.Dataset, heads: str = "", variable: str = "score", more: bool = False) -> go.Figure:
    """A map a head, queries downwards, keys to the right; the standard deviation over texts on hover.

    The figure 2 of StreamingLLM (arXiv 2309.17453), of any model and task.

    Args:
        ds: from `mean_attention`.
        heads: like L0H6,L3H4; without any, the head of each layer that looks most at the first token.
        variable: `score`, before the softmax, or `pattern`, after it.
        more: whether those heads follow the ones named, too.
    """
    if variable not in SHOWN:
        raise ViewError(f"Cannot draw '{variable}'; use one of {', '.join(SHOWN)}.")
    values, spread, pattern = (only(ds, name, *MAP) for name in (variable, f"{variable}_sd", "pattern"))
    chosen = _chosen(pattern, heads, more)
    rest = [float(_seen(pattern, cell, causal=False)[1:, 0].mean()) for cell in chosen]
    titles = [f"{head_name(*cell)} · {share:.2f} on the first" for cell, share in zip(chosen, rest, strict=True)]
    rows = math.ceil(len(chosen) / COLUMNS)
    gap = 0.16 / rows if rows > 1 else 0
    columns = min(COLUMNS, len(chosen))
    gaps = {"horizontal_spacing": 0.04, "vertical_spacing": gap}
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, **gaps)
    figure.update_annotations(font_size=13)
    causal = bool(ds.attrs.get("causal", 1))
    for place, cell in enumerate(chosen):
        shown, sd = (_seen(part, cell, causal) for part in (values, spread))
        _map(figure, shown, sd, 1 + place // columns, 1 + place % columns)
    colours = theme.colour_range(xr.concat([values.sel(layer=layer, head=head) for layer, head in chosen], "map"))
    colours = {"cmin": colours.pop("zmin"), "cmax": colours.pop("zmax"), "colorscale": colours["colorscale"]}
    bar = {"title": {"text": variable}, "thickness": 14}
    figure.update_layout(coloraxis={**colours, "colorbar": bar})
    title = f"Mean {SHOWN[variable]} over the first tokens: {ds.attrs['task']} in {ds.attrs['model']}"
    uniform = float((1 / np.arange(2, ds.sizes["query_pos"] + 1)).mean())
    note = f"{ds.attrs['n']} texts; beside a head's name its mean attention on the first token (uniform {uniform:.2f})"
    figure.update_layout(**heading(ds, title, note, room=24, height=120 + 250 * rows))
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(title="key", row=rows)
    figure.update_yaxes(title="query", col=1)
    return figure


def _chosen(pattern: xr.DataArray, heads: str, more: bool) -> list[tuple[int, int]]:
    """The heads named, or of up to eight layers, evenly spread, the one that looks most at the first token."""
    named = [parse_head(name) for name in re.split(r"[,\s]+", heads.strip()) if name]
    if len(named) > MOST:
        raise ViewError(f"{len(named)} heads are named; this view draws up to {MOST}.")
    for layer, head in named:
        pick(pick(pattern, layer=layer), head=head)
    if named and not more:
        return list(dict.fromkeys(named))
    first = pattern.isel(key_pos=0).mean("query_pos").values
    rows = np.unique(np.linspace(0, len(first) - 1, min(MOST, len(first))).round().astype(int))
    layers, numbers = pattern["layer"].values, pattern["head"].values
    strongest = [(int(layers[row]), int(numbers[first[row].argmax()])) for row in rows]
    return list(dict.fromkeys([*named, *strongest]))[:MOST]


def _seen(part: xr.DataArray, cell: tuple[int, int], causal: bool) -> np.ndarray:
    """One head's map [query, key]; NaN, which is not drawn, where a query cannot see the key."""
    layer, head = cell
    values = part.sel(layer=layer, head=head).values
    return np.where(np.triu(np.ones(values.shape, bool), 1) & causal, np.nan, values)


def _map(figure: go.Figure, values: np.ndarray, spread: np.ndarray, row: int, column: int) -> None:
    figure.add_heatmap(
        z=values,
        customdata=spread,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate="query %{y}, key %{x}: %{z:.3f} (sd %{customdata:.3f})<extra></extra>",
        row=row,
        col=column,
    )
