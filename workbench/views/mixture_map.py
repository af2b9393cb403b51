"""What each mixture of tasks gives on every task, and what two tasks do together beyond the sum of their own."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, pick, view
from workbench.views._changes import MUTED

SCORES = ("accuracy", "loss")
KINDS = ("synergy", "synergy_low", "synergy_high")


@view(
    requires={"method", "measured", "task", "receiver"},
    variables={*(f"{score}_{kind}" for score in SCORES for kind in KINDS), *SCORES},
    about="Mixture by task, the score after tuning; and for every two tasks their synergy, grey where it may be noise.",
)
def mixture_map(ds: xr.Dataset, score: str = "accuracy", measured: str | None = None) -> go.Figure:
    """A map of the `score` (accuracy or loss), and the synergies on one task `measured`, or on their mean."""
    measured = measured or str(ds["measured"].values[-1])
    titles = [f"{score} on held-out rows", f"synergy on: {measured}"]
    figure = make_subplots(
        cols=2, subplot_titles=[theme.plain(t) for t in titles], column_widths=[0.55, 0.45], horizontal_spacing=0.22
    )
    figure.update_annotations(font_size=13)
    values = only(ds, score, "method", "measured")
    scale = {"zmin": 0, "zmax": 1} if score == "accuracy" else {"zmin": 0, "zmax": float(values.max()) or 1.0}
    figure.add_trace(
        go.Heatmap(
            x=[theme.plain(name) for name in ds["measured"].values],
            y=[theme.plain(name) for name in ds["method"].values],
            z=values.values,
            text=_gains(ds, score),
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} on %{x}: %{z:.3f}<br>%{text}<extra></extra>",
            colorscale=theme.SEQUENTIAL,
            showscale=False,
            xgap=1,
            ygap=1,
            **scale,
        ),
        row=1,
        col=1,
    )
    _synergy(figure, pick(ds, measured=measured), score)
    notes = (f"intervals: {ds.attrs['interval']}", str(ds.attrs["rows"]), "grey: the interval holds 0")
    height = 230 + 32 * ds.sizes["method"]
    figure.update_layout(**heading(ds, ds.attrs["title"], *notes, height=max(420, height), room=16))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _gains(ds: xr.Dataset, score: str) -> list[list[str]]:
    parts = [only(ds, f"{score}_gain{end}", "method", "measured").values for end in ("", "_low", "_high")]
    return [
        [f"gain {v:+.3f} ({a:+.3f} to {b:+.3f})" for v, a, b in zip(*row, strict=True)]
        for row in zip(*parts, strict=True)
    ]


def _synergy(figure: go.Figure, part: xr.Dataset, score: str) -> None:
    """Task by task, the diagonal left out: what does not clear 0 is grey."""
    values, low, high = (only(part, f"{score}_{kind}", "task", "receiver").values for kind in KINDS)
    names = [theme.plain(name) for name in part["task"].values]
    own, clear = np.eye(len(names), dtype=bool), (low > 0) | (high < 0)
    limit = float(np.abs(values).max()) or 1.0
    words = [
        [f"{v:+.3f}<br>{a:+.3f} to {b:+.3f}" for v, a, b in zip(*row, strict=True)]
        for row in zip(values, low, high, strict=True)
    ]
    grey = {"colorscale": [[0, MUTED], [1, MUTED]]}
    for part_of, colours in ((~clear, grey), (clear, {"colorscale": theme.DIVERGING, "zmin": -limit, "zmax": limit})):
        shown = part_of & ~own
        figure.add_trace(
            go.Heatmap(
                x=names,
                y=names,
                z=np.where(shown, values, np.nan),
                text=words,
                texttemplate="%{text}",
                hovertemplate="%{y} with %{x}: %{text}<extra></extra>",
                hoverongaps=False,
                showscale=False,
                xgap=2,
                ygap=2,
                **colours,
            ),
            row=1,
            col=2,
        )
