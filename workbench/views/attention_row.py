"""Where one query looks, on average over chosen heads, as a row that can be edited by hand."""

import re

import numpy as np
import xarray as xr

from widgets.attention_row import AttentionRow, pack
from workbench.models.heads import head_name, parse_head
from workbench.views._base import Drawing, ViewError, pick, view


@view(
    requires={"layer", "head", "query_pos", "key_pos"},
    variables={"pattern"},
    about="One query's attention, mean over chosen heads, on the tokens of one prompt, to be edited.",
)
def attention_row(ds: xr.Dataset, heads: str = "", query: int = -1) -> Drawing:
    """An attention row of `query` (-1: the last) in `heads`, like L2H3,L2H5; without any, in all of them."""
    pattern = ds["pattern"].transpose("layer", "head", "query_pos", "key_pos")
    if not -1 <= query < ds.sizes["query_pos"]:
        raise ViewError(f"There is no query {query}; this prompt has the tokens 0 to {ds.sizes['query_pos'] - 1}.")
    rows = pattern.isel(query_pos=query)
    chosen = list(dict.fromkeys(parse_head(name) for name in re.split(r"[,\s]+", heads.strip()) if name))
    if chosen:
        weights = np.mean([pick(rows, layer=layer, head=head).values for layer, head in chosen], axis=0)
    else:
        weights = rows.values.mean((0, 1))
    tokens = [str(text) for text in ds["token"].values]
    names = [str(text).split(",")[0] for text in ds["position"].values] if "position" in ds.coords else None
    which = ", ".join(head_name(*head) for head in chosen) or "mean of all heads"
    title = f"{which} on prompt {ds.attrs['prompt']} of {ds.attrs['task']} in {ds.attrs['model']}"
    return Drawing(AttentionRow, {**pack(tokens, weights, names), "query": query, "heading": title})
