"""How alike a layer's experts are, in what they give for the same tokens or in their weights."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import ViewError, heading, only, view
from workbench.views._experts import at_layer, matrix

LABELS = {"cka": "Linear CKA of what two experts give for the same tokens", "cosine": "Cosine of two experts' weights"}


@view(
    requires={"layer", "expert", "receiver"},
    variables={"cka", "cka_null_high", "cka_random", "cka_random_high", "cosine", "cosine_null_high"},
    about="Experts of one layer, two by two: CKA of their outputs, or cosine of their weights, with the chance values.",
)
def expert_alignment(ds: xr.Dataset, layer: int | None = None, measure: str = "cka") -> go.Figure:
    """A matrix of one `layer` (None: the last) of `measure`: `cka` or `cosine`; its chance stands in the title."""
    if measure not in LABELS:
        raise ViewError(f"There is no measure '{measure}'; use {' or '.join(LABELS)}.")
    part, chosen = at_layer(ds, layer)
    values = only(part, measure, "expert", "receiver").values
    names = [expert_name(chosen, int(expert)) for expert in part["expert"].values]
    count = range(len(names))
    hover = np.array([[f"{names[i]} and {names[j]}: {values[i, j]:.4f}" for j in count] for i in count])
    off = ~np.eye(len(names), dtype=bool)
    scale = xr.DataArray(np.where(off, values, 0), attrs={"signed": int(measure == "cosine")})
    figure = matrix(np.where(off, values, np.nan), names, hover, measure, **theme.colour_range(scale))
    title = f"{LABELS[measure]}, layer {chosen}: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, _chance(part, measure), height=480))
    return figure


def _chance(part: xr.Dataset, measure: str) -> str:
    if measure == "cosine":
        return f"independent normal weights: within {float(only(part, 'cosine_null_high')):.4f} of 0, 95 %"
    null, random, high = (float(only(part, f"cka_{end}")) for end in ("null_high", "random", "random_high"))
    return (
        f"{part.attrs['tokens']} tokens · tokens shuffled: below {null:.3f}, 95 % · "
        f"experts with shuffled weights: {random:.3f} (95 % point {high:.3f})"
    )
