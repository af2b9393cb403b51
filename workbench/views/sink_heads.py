"""Which heads park their attention on a key, and what goes with it: one number for every layer and head."""

import xarray as xr

from workbench.views._base import Drawing, ViewError, caption, head_grid, pick, view

SHOWN = {
    "alpha": "mean attention received",
    "sink_rate": "sink rate",
    "value_norm": "value norm / median",
    "key_norm": "key norm / median",
    "query_key_cosine": "cosine of the later queries with the key",
    "output_norm": "norm of what the head writes, over all tokens",
}


@view(
    requires={"layer", "head", "key_pos"},
    variables={"alpha", "alpha_null", "sink_rate", "value_norm", "key_norm", "query_key_cosine", "output_norm"},
    about="alpha, sink rate, a norm or a cosine of the first key (or another) in every head; dots: alpha over epsilon.",
)
def sink_heads(ds: xr.Dataset, key: int = 0, variable: str = "alpha", kind: str = "") -> Drawing:
    """A head grid of one `variable` at one key position, with intervals on hover where it has them.

    Args:
        ds: sink scores, of one task or joined.
        key: the key position.
        variable: alpha, sink_rate, value_norm, key_norm, query_key_cosine or output_norm.
        kind: instead of a position, alpha of a kind of token, such as delimiter.
    """
    if variable not in SHOWN:
        raise ViewError(f"Cannot draw '{variable}'; use one of {', '.join(SHOWN)}.")
    if kind:
        return _of_kind(ds, kind)
    at = pick(ds, key_pos=key)
    token = "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"
    where = "" if variable == "output_norm" else f", {token}"
    null = f"; uniform attention gives {float(at['alpha_null'].values.flat[0]):.2f}" if variable == "alpha" else ""
    return _grid(at, variable, at["alpha"], f"{SHOWN[variable]}{where}{null} ({caption(ds)})")


def _of_kind(ds: xr.Dataset, kind: str) -> Drawing:
    if "kind_alpha" not in ds:
        raise ViewError("This result has no kinds of tokens; measure sink_scores anew.")
    at = pick(ds.drop_dims("key_pos"), component=kind)
    null = float(at["kind_alpha_null"].values.flat[0])
    words = f"mean attention received, {kind} tokens; uniform attention gives {null:.2f} ({caption(ds)})"
    return _grid(at, "kind_alpha", at["kind_alpha"], words)


def _grid(at: xr.Dataset, variable: str, alpha: xr.DataArray, quantity: str) -> Drawing:
    """The grid, dots where alpha is over epsilon."""
    epsilon = float(at.attrs["epsilon"])
    over = (alpha > epsilon).transpose(..., "layer", "head").values
    marks = (over if over.ndim == 3 else over[None]).astype(int)
    return head_grid(at, variable, marks=marks, mark_names=[f"alpha > {epsilon:g}", ""], quantity=quantity)
