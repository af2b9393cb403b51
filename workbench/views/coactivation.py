"""Which experts of a layer are chosen together, more or less often than their loads alone would make them."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import heading, only, view
from workbench.views._experts import at_layer, matrix, tokens_of

NAMES = ("coactivation", "coactivation_null", "coactivation_low", "coactivation_high")


@view(
    requires={"layer", "expert", "receiver"},
    variables=set(NAMES),
    about="Of each expert's tokens, the share that go to every other too, less what the loads alone give; one layer.",
)
def coactivation(ds: xr.Dataset, layer: int | None = None, less: bool = True) -> go.Figure:
    """A matrix of one `layer` (None: the last): N_ij / N_i over all pairs; with `less`, less what the loads alone give.

    Hovering tells both, the interval, and whether chance lies inside it.
    """
    part, chosen = at_layer(ds, layer)
    seen, null, low, high = (only(part, name, "expert", "receiver").values for name in NAMES)
    off = ~np.eye(len(seen), dtype=bool)
    shown = np.where(off, seen - null if less else seen, np.nan)
    names = [expert_name(chosen, int(expert)) for expert in part["expert"].values]
    hover = np.array(
        [
            [_said(names[i], names[j], (seen[i, j], low[i, j], high[i, j]), null[i, j]) for j in range(len(names))]
            for i in range(len(names))
        ]
    )
    scale = xr.DataArray(np.where(off, shown, 0), attrs={"signed": int(less)})
    bar = "share less<br>chance" if less else "share"
    figure = matrix(shown, names, hover, bar, **theme.colour_range(scale))
    what = "more (red) or less (blue) than their loads alone give" if less else "share of the row's tokens"
    title = f"Experts of layer {chosen} chosen together: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, f"{tokens_of(ds)} · {what}", height=480))
    figure.update_xaxes(title="goes to this expert too")
    figure.update_yaxes(title="of this expert's tokens")
    return figure


def _said(own: str, other: str, share: tuple[float, float, float], chance: float) -> str:
    value, low, high = share
    verdict = "as by chance" if low <= chance <= high else "more than chance" if chance < low else "less than chance"
    said = f"of {own}'s tokens to {other}: {value:.3f} ({low:.3f} to {high:.3f})"
    return f"{said}<br>the loads alone: {chance:.3f}, {verdict}"
