"""Which heads park their attention on a key: alpha of one position for every layer and head."""

import xarray as xr

from widgets import HeadGrid
from workbench.views._base import Drawing, caption, head_dims, view


@view(
    requires={"layer", "head", "key_pos"},
    variables={"alpha", "alpha_null"},
    about="alpha of the first key (or another) in every head, task by task; heads over epsilon are marked.",
)
def sink_heads(ds: xr.Dataset, key: int = 0) -> Drawing:
    """A head grid of `alpha` at one key position, intervals on hover; a dot marks heads above epsilon."""
    at = ds.sel(key_pos=key)
    dim, titles = head_dims(at["alpha"])
    shape = (len(titles), ds.sizes["layer"], ds.sizes["head"])
    order = ((dim,) if dim else ()) + ("layer", "head")
    data = {name: at[name].transpose(*order).values.reshape(shape) for name in ("alpha", "alpha_low", "alpha_high")}
    first = "BOS" if key == 0 and ds.attrs.get("bos") else f"position {key}"
    return Drawing(
        HeadGrid,
        {
            "values": data["alpha"].astype("<f4").tobytes(),
            "low": data["alpha_low"].astype("<f4").tobytes(),
            "high": data["alpha_high"].astype("<f4").tobytes(),
            "marks": (data["alpha"] > float(ds.attrs["epsilon"])).astype("u1").tobytes(),
            "shape": list(shape),
            "titles": titles if dim else [str(ds.attrs["task"])],
            "layers": [int(layer) for layer in ds["layer"].values],
            "signed": False,
            "limit": 1.0,
            "quantity": f"alpha of {first}; uniform attention {_null(at)}; {caption(ds)}",
        },
    )


def _null(at: xr.Dataset) -> str:
    return f"{float(at['alpha_null'].values.flat[0]):.2f}"
