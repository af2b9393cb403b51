"""Where one head looks on one prompt."""

import xarray as xr

from widgets import AttentionView
from widgets.attention_view import pack
from workbench.views._base import Drawing, pick, view


@view(
    requires={"layer", "head", "query_pos", "key_pos"},
    variables={"pattern"},
    about="Attention of one head on one prompt, query by key.",
)
def attention_pattern(ds: xr.Dataset, layer: int = 0, head: int = 0, token: int = -1) -> Drawing:
    """An attention view of head (layer, head); `token` is the query selected at first (-1: the last)."""
    pattern = pick(ds, layer=layer, head=head)["pattern"].values
    tokens = [str(text) for text in ds["token"].values]
    title = f"L{layer}H{head} on prompt {ds.attrs['prompt']} of {ds.attrs['task']} in {ds.attrs['model']}"
    chosen = token if 0 <= token < len(tokens) else len(tokens) - 1
    return Drawing(AttentionView, {"pattern": pack(pattern), "tokens": tokens, "title": title, "token": chosen})
