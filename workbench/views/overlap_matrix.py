"""How far every two tasks share their circuits, less what chance would share."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view


@view(
    requires={"task", "measured"},
    variables={"pair", "pair_null"},
    about="Task by task: intersection over union of their circuits at the chosen size, beside chance and the ceiling.",
)
def overlap_matrix(ds: xr.Dataset) -> go.Figure:
    """A heat map of each pair's IoU less chance; the diagonal says what halves of one task's own prompts share."""
    pair, chance = (only(ds, name, "task", "measured") for name in ("pair", "pair_null"))
    over = (pair - chance).assign_attrs(signed=1)
    off = ~np.eye(len(over), dtype=bool)
    colours = theme.colour_range(over.where(off, 0)) | {"zmin": -1, "zmax": 1}  # so that two matrices compare
    names = [theme.plain(label) for label in ds["task"].values]
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=np.where(off, over.values, np.nan),
            text=[
                [f"IoU {p:.2f} (chance {c:.2f})" if shown else "" for p, c, shown in zip(*rows, strict=True)]
                for rows in zip(pair.values, chance.values, off, strict=True)
            ],
            texttemplate="%{text}",
            hovertemplate="%{y} and %{x}<br>%{text}<extra></extra>",
            hoverongaps=False,
            colorbar={"title": {"text": "IoU less<br>chance"}},
            xgap=2,
            ygap=2,
            **colours,
        )
    )
    _ceiling(figure, names, np.diag(pair.values) if "iou_ceiling" in ds else None)
    what = "edges" if "receiver" in ds.dims else "heads"
    notes = (f"circuits of the {ds.attrs['chosen']} strongest {what}; ceiling: halves of one task's own prompts",)
    more = {"height": 180 + 70 * len(names)}
    figure.update_layout(**heading(ds, ds.attrs["title"], *notes, **more))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _ceiling(figure: go.Figure, names: list[str], values: np.ndarray | None) -> None:
    """Words on the diagonal, which has no colour: it is not compared with chance."""
    words = ["no ceiling known"] * len(names) if values is None else [f"ceiling {value:.2f}" for value in values]
    figure.add_scatter(
        x=names, y=names, mode="text", text=words, hovertemplate="%{x}<br>%{text}<extra></extra>", showlegend=False
    )
