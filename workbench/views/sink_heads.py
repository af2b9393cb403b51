"""Which heads park their attention on a key: alpha of one position for every layer and head."""

import xarray as xr

from workbench.views._base import Drawing, ViewError, caption, head_grid, pick, view

SHOWN = {"alpha": "mean attention received", "sink_rate": "sink rate", "value_norm": "value norm / median"}


@view(
    requires={"layer", "head", "key_pos"},
    variables={"alpha", "alpha_null", "sink_rate", "value_norm"},
    about="alpha, sink rate or value norm of the first key (or another) in every head; dots: alpha over epsilon.",
)
def sink_heads(ds: xr.Dataset, key: int = 0, variable: str = "alpha") -> Drawing:
    """A head grid of one `variable` (alpha, sink_rate or value_norm) at one key position, intervals on hover."""
    if variable not in SHOWN:
        raise ViewError(f"Cannot draw '{variable}'; use one of {', '.join(SHOWN)}.")
    at = pick(ds, key_pos=key)
    over = (at["alpha"] > float(ds.attrs["epsilon"])).transpose(..., "layer", "head").values
    token = "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"
    null = f"; uniform attention gives {float(at['alpha_null'].values.flat[0]):.2f}" if variable == "alpha" else ""
    return head_grid(
        at,
        variable,
        marks=(over if over.ndim == 3 else over[None]).astype(int),
        mark_names=[f"alpha > {ds.attrs['epsilon']}", ""],
        quantity=f"{SHOWN[variable]}, {token}{null} ({caption(ds)})",
    )
