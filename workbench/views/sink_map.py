"""The attention each token of one sequence receives, layer by layer."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import caption, pick, view


@view(
    requires={"prompt", "layer", "head", "key_pos"},
    variables={"alpha_prompt"},
    about="Layer x token map of alpha on one sequence: the strongest head of each layer, or one head.",
)
def sink_map(ds: xr.Dataset, prompt: int = 0, head: int | None = None) -> go.Figure:
    """A heat map of alpha for one sequence; without `head`, the largest over the heads of each layer."""
    row = pick(ds, prompt=prompt)["alpha_prompt"]
    values = row.max("head") if head is None else pick(row, head=head)
    strongest = row.argmax("head").values
    tokens = [theme.plain(token) for token in ds["token"].sel(prompt=prompt).values]
    places = [f"{index} {token}" for index, token in enumerate(tokens)]
    heads = [
        [f"L{layer}H{h if head is None else head}" for h in line]
        for layer, line in zip(ds["layer"].values, strongest, strict=True)
    ]
    which = "strongest head of each layer" if head is None else f"head {head}"
    figure = go.Figure(
        go.Heatmap(
            x=list(range(len(tokens))),
            y=[int(layer) for layer in ds["layer"].values],
            z=values.values,
            customdata=[[[name, place] for name, place in zip(line, places, strict=True)] for line in heads],
            colorbar={"title": "alpha"},
            hovertemplate="%{customdata[1]}<br>%{customdata[0]}: alpha %{z:.3f}<extra></extra>",
            colorscale=theme.SEQUENTIAL,
            zmin=0,
            zmax=1,
        )
    )
    title = f"Attention received by each token, {which}: {theme.plain(ds.attrs['task'])}"
    figure.update_layout(
        **theme.layout(
            f"{title}, {theme.plain(ds.attrs['model'])}<br><sup>sequence {prompt} of {caption(ds)}</sup>", height=340
        )
    )
    figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=tokens, tickangle=-60, tickfont={"size": 10})
    figure.update_yaxes(title="layer", dtick=1)
    return figure
