"""Layer x head maps of how much each head rests on the sink, with the heads that a task does and does not need."""

import numpy as np
import xarray as xr

from workbench.views._base import Drawing, caption, head_grid, only, view

DORMANT, ACTIVE = 1, 2
MARKS = ["dormant: rests there, not needed", "active: needed"]


@view(
    requires={"layer", "head"},
    variables={"dormancy", "state"},
    about="D of every head as a map a task; marked are the dormant heads and the active ones.",
)
def dormancy_heads(ds: xr.Dataset) -> Drawing:
    """A head grid of D, the mean attention on the first token, one panel a task, intervals on hover."""
    whole = ds if "task" in ds.dims else ds.expand_dims(task=[str(ds.attrs["task"])])
    state = only(whole, "state", "task", "layer", "head").values
    marks = np.select([state == DORMANT, state == ACTIVE], [1, 2], 0)
    null = float(np.ravel(ds["dormancy_null"].values)[0])
    words = f"D, mean attention on the first token; uniform attention gives {null:.2f} ({caption(ds)})"
    return head_grid(whole, "dormancy", marks=marks, mark_names=MARKS, quantity=words)
