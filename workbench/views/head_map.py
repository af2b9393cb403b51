"""Layer x head maps of an effect, side by side, with the heads each task's circuit holds and those all share."""

import numpy as np
import xarray as xr

from workbench.views._base import Drawing, caption, head_grid, only, view

MARKS = ["in the task's circuit", "shared by all circuits"]


@view(
    requires={"layer", "head"},
    variables={"effect"},
    about="How much each head matters, task by task; marked are the heads in each circuit and those in all of them.",
)
def head_map(ds: xr.Dataset) -> Drawing:
    """A head grid of `effect`, one panel a task (or position, or checkpoint), intervals on hover."""
    quantity = f"{ds['effect'].attrs['long_name']} ({caption(ds)})"
    return head_grid(ds, "effect", marks=_marks(ds), quantity=quantity, mark_names=MARKS)


def _marks(ds: xr.Dataset) -> np.ndarray | None:
    """0 nothing, 1 in this panel's circuit, 2 in all of them; [panel, layer, head]."""
    if "member" not in ds or "shared" not in ds:
        return None
    member = only(ds, "member", "task", "layer", "head").transpose("task", "layer", "head").values
    return member + member * ds["shared"].values[None]
