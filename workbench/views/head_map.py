"""Layer x head maps of an effect, side by side, with the heads each task's circuit holds and those all share."""

import numpy as np
import xarray as xr

from widgets import HeadGrid
from workbench.views._base import Drawing, caption, head_dims, view


@view(
    requires={"layer", "head"},
    variables={"effect"},
    about="How much each head matters, task by task; dots mark the circuits, diamonds the heads they share.",
)
def head_map(ds: xr.Dataset) -> Drawing:
    """A head grid of `effect`, one panel a task (or position, or checkpoint), intervals on hover."""
    values = ds["effect"]
    dim, titles = head_dims(values)
    shape = (len(titles), ds.sizes["layer"], ds.sizes["head"])
    order = ((dim,) if dim else ()) + ("layer", "head")

    def data(name: str) -> bytes:
        return ds[name].transpose(*order).values.reshape(shape).astype("<f4").tobytes() if name in ds else b""

    single = f"{ds.attrs['task']}" if dim is None else ""
    return Drawing(
        HeadGrid,
        {
            "values": data("effect"),
            "low": data("effect_low"),
            "high": data("effect_high"),
            "marks": _marks(ds, order, shape),
            "shape": list(shape),
            "titles": [single or title for title in titles],
            "layers": [int(layer) for layer in ds["layer"].values],
            "signed": True,
            "quantity": f"{values.attrs['long_name']} ({caption(ds)})",
        },
    )


def _marks(ds: xr.Dataset, order: tuple[str, ...], shape: tuple[int, ...]) -> bytes:
    """0 nothing, 1 in this panel's circuit, 2 in all of them."""
    if "member" not in ds or "shared" not in ds:
        return b""
    member = ds["member"].transpose(*order).values.reshape(shape)
    return (member + member * ds["shared"].values[None]).astype(np.uint8).tobytes()
