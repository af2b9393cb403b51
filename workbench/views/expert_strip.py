"""Which expert each token of one sequence goes to first, layer by layer."""

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import heading, only, pick, view, visible
from workbench.views._experts import colour

EACH = 80  # tokens that can all be written, with the expert's number in the cell
A_LINE = 8  # experts in one line of what hovering tells
NAMES = ("chosen", "weight", "probability", "margin", "entropy")


@view(
    requires={"component", "pos", "layer", "expert"},
    variables={"shown_token", *(f"shown_{name}" for name in NAMES)},
    about="Tokens of one sequence across, layers down, coloured by the expert with the largest logit.",
)
def expert_strip(ds: xr.Dataset, sequence: int = 0) -> go.Figure:
    """A coloured, numbered cell a token and layer; hovering tells probabilities, weights, margin and entropy."""
    part = pick(ds, component=sequence)
    dims = ("layer", "pos")
    first = only(part, "shown_chosen", *dims, "size").values[..., 0].astype(int)
    tokens = [theme.plain(visible(token)) for token in only(part, "shown_token", "pos").values]
    layers, experts = [int(layer) for layer in part["layer"].values], ds.sizes["expert"]
    figure = go.Figure(
        go.Heatmap(
            x=np.arange(len(tokens)),
            y=layers,
            z=first,
            text=_hover(part, tokens, layers),
            texttemplate="%{z}" if len(tokens) <= EACH else None,
            textfont={"size": 10},
            hovertemplate="%{text}<extra></extra>",
            colorscale=_steps(experts),
            zmin=-0.5,
            zmax=experts - 0.5,
            colorbar={"title": {"text": "expert"}, "thickness": 14, "tickvals": _few(experts)},
            xgap=1,
            ygap=1,
        )
    )
    even = f"an even router gives each expert {float(only(ds, 'load_null')):.3f} of tokens" if "load_null" in ds else ""
    title = f"First expert of each token: sequence {sequence} of {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, even, height=260 + min(400, 24 * len(layers))))
    step = math.ceil(len(tokens) / EACH)
    labels = [tokens[place] if step == 1 else f"{place} {tokens[place]}" for place in range(0, len(tokens), step)]
    places = list(range(0, len(tokens), step))
    figure.update_xaxes(tickvals=places, ticktext=labels, tickangle=-60, tickfont={"size": 10}, showgrid=False)
    figure.update_yaxes(title="layer", autorange="reversed", dtick=1 if len(layers) <= 16 else None, showgrid=False)
    return figure


def _steps(experts: int) -> list[list]:
    """A colour scale of one flat step an expert."""
    ends = [[[expert / experts, colour(expert)], [(expert + 1) / experts, colour(expert)]] for expert in range(experts)]
    return [stop for pair in ends for stop in pair]


def _few(experts: int) -> list[int]:
    return list(range(0, experts, math.ceil(experts / 16)))


def _hover(part: xr.Dataset, tokens: list[str], layers: list[int]) -> list[list[str]]:
    dims, last = ("layer", "pos"), {"chosen": ("size",), "weight": ("size",), "probability": ("expert",)}
    values = {name: only(part, f"shown_{name}", *dims, *last.get(name, ())).values for name in NAMES}
    return [
        [
            _said(layer, f"{at} {token}", {name: found[row, at] for name, found in values.items()})
            for at, token in enumerate(tokens)
        ]
        for row, layer in enumerate(layers)
    ]


def _said(layer: int, token: str, values: dict[str, np.ndarray]) -> str:
    """What hovering a cell tells."""
    pairs = zip(values["chosen"], values["weight"], strict=True)
    chosen = ", ".join(f"{expert_name(layer, int(expert))} with weight {weight:.3f}" for expert, weight in pairs)
    all_ = [f"E{expert} {value:.3f}" for expert, value in enumerate(values["probability"])]
    lines = [" · ".join(all_[start : start + A_LINE]) for start in range(0, len(all_), A_LINE)]
    more = f"margin {values['margin']:.3f} logits · entropy {values['entropy']:.2f} of ln E"
    return "<br>".join([f"{token}", f"goes to {chosen}", more, "probabilities:", *lines])
