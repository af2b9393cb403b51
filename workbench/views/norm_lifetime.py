"""Whether the norm that an MLP writes decides how long a token is a sink, or how strong a one."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import ViewError, heading, only, view

KINDS = ("none", "primary", "secondary", "noise")
AXES = {"lifetime": "lifetime (layers)", "score": "sink score while a sink"}


@view(
    requires={"prompt", "key_pos"},
    variables={"mlp_norm", "label", "lifetime", "score", "spearman_lifetime", "spearman_score"},
    about="Every sink: norm of the MLP output that made it against its lifetime, with their rank correlation.",
)
def norm_lifetime(ds: xr.Dataset, against: str = "lifetime") -> go.Figure:
    """One point a token, coloured by kind; `against` is `lifetime` or `score`."""
    if against not in AXES:
        raise ViewError(f"Cannot draw the norm against '{against}'; use one of {', '.join(AXES)}.")
    label, norm, value = (only(ds, name, "prompt", "key_pos").values for name in ("label", "mlp_norm", against))
    figure = go.Figure()
    for number, (kind, colour) in enumerate(zip(KINDS[1:], theme.TASKS, strict=False), 1):
        chosen = label == number
        if not chosen.any():
            continue
        figure.add_scatter(
            x=norm[chosen],
            y=value[chosen],
            mode="markers",
            marker={"color": colour, "size": 8, "opacity": 0.6},
            name=f"{kind} ({chosen.sum()})",
            text=_said(ds, chosen),
            hovertemplate=f"%{{text}}<br>MLP norm %{{x:.4~g}}, {against} %{{y:.4~g}}<extra></extra>",
        )
    title = f"Norm and {against} of sinks: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, *_notes(ds, against), height=430))
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="norm of the MLP output in the layer that makes it", rangemode="tozero")
    figure.update_yaxes(title=AXES[against], rangemode="tozero")
    return figure


def _said(ds: xr.Dataset, chosen: np.ndarray) -> list[str]:
    tokens, creation = only(ds, "token", "prompt", "key_pos").values, only(ds, "creation", "prompt", "key_pos").values
    return [
        f"{theme.plain(tokens[row, key])} · sequence {row}, position {key}, made in layer {creation[row, key]}"
        for row, key in np.argwhere(chosen)
    ]


def _notes(ds: xr.Dataset, against: str) -> list[str]:
    name = f"spearman_{against}"
    rho, low, high, p = (float(only(ds, f"{name}{end}").item()) for end in ("", "_low", "_high", "_p"))
    if (low, high) == (-1, 1):
        return [str(ds.attrs["rule"]), f"too few sinks beside the primary ({ds.attrs['sinks']}) for a rank correlation"]
    found = f"Spearman {rho:z.2f} (95 % {low:z.2f} to {high:z.2f}), p = {p:.2g}"
    return [str(ds.attrs["rule"]), f"{found}, over {ds.attrs['sinks']} sinks; the primary left out"]
