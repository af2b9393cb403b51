"""Layer x head maps of every role's score."""

import numpy as np
import xarray as xr

from workbench.views._base import Drawing, caption, head_grid, only, view

MARKS = ["labelled with this role", ""]


@view(
    requires={"component", "layer", "head"},
    variables={"score", "score_null"},
    about="The score of every head on every role, one map a role; dots: the heads labelled with it.",
)
def role_maps(ds: xr.Dataset) -> Drawing:
    """A head grid of `score`, one panel a role."""
    score = only(ds, "score", "component", "layer", "head").values
    threshold = float(ds.attrs.get("threshold", 0.3))
    marks = None
    if "role" in ds:
        role = only(ds, "role", "layer", "head").values
        marks = (role[None] == np.arange(len(score))[:, None, None]).astype(int)
    # Shares lost can be negative; small ones would turn all maps into diverging colours for nothing.
    signed = bool(score.min() < -threshold)
    quantity = f"role score, labelled from {threshold:g} ({caption(ds)})"
    return head_grid(ds, "score", marks=marks, mark_names=MARKS, quantity=quantity, signed=signed)
