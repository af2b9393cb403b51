"""Layer x head maps of where the gradients of two tasks agree or conflict, beside the heads of their circuits."""

import numpy as np
import xarray as xr

from workbench.views._base import Drawing, ViewError, caption, head_grid, only, pick, view
from workbench.views._gradients import limit, of_kind, pair

USED = ("cosine", "cosine_low", "cosine_high", "clear")
NOISE = ["inside the noise", ""]
CIRCUITS = ["in one of the two circuits", "in both circuits"]


@view(
    requires={"module", "task", "receiver"},
    variables=set(USED),
    about="Gradient cosine of two tasks on every head; dots: inside the noise, or with an overlap, in their circuits.",
)
def gradient_heads(
    ds: xr.Dataset, task: str | None = None, receiver: str | None = None, circuits: xr.Dataset | None = None
) -> Drawing:
    """A head grid of one pair of tasks (not named: the most opposed one), intervals on hover.

    With `circuits`, an overlap of heads on the same model with both tasks in it, the marks are the heads in their
    circuits; without it, the heads whose cosine lies inside the noise.
    """
    one, other = pair(ds, task, receiver)
    part = of_kind(ds, "head").sel(task=one, receiver=other)
    layers, heads = (np.unique(part[f"at_{dim}"].values) for dim in ("layer", "head"))
    shape = len(layers), len(heads)
    if part.sizes["module"] != shape[0] * shape[1]:
        raise ViewError("The layers of this result do not have the same heads, so they make no map.")
    dims = ("layer", "head")
    table = {name: (dims, only(part, name, "module").values.reshape(shape)) for name in USED}
    grid = xr.Dataset(table, coords={"layer": layers, "head": heads})
    grid["cosine"].attrs = ds["cosine"].attrs
    grid.attrs = ds.attrs | {"task": f"{one} and {other}"}
    names = NOISE if circuits is None else CIRCUITS
    marks = 1 - table["clear"][1] if circuits is None else _members(circuits, (one, other), shape)
    quantity = f"{ds['cosine'].attrs['long_name']} ({caption(ds)})"
    traits = {"quantity": quantity, "mark_names": names, "limit": limit(table["cosine"][1])}
    return head_grid(grid, "cosine", marks=marks[None], **traits)


def _members(circuits: xr.Dataset, tasks: tuple[str, str], shape: tuple[int, int]) -> np.ndarray:
    """How many of the two tasks' circuits hold each head, [layer, head]."""
    if "member" not in circuits or set(circuits["member"].dims) != {"task", "layer", "head"}:
        raise ViewError("`circuits` is an overlap of heads: what workbench.overlap makes of head_patching results.")
    member = sum(pick(circuits["member"], task=task).transpose("layer", "head").values for task in tasks)
    if np.shape(member) != shape:
        raise ViewError(f"The circuits have {np.shape(member)} layers and heads, the gradients {shape}.")
    return np.asarray(member).astype(int)
