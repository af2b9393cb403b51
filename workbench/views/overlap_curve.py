"""The overlap of circuits at every size, inside the band that chance gives."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import caption, view

NULLS = {"null": ("all heads permuted", "dash"), "within": ("permuted within layers", "dot")}


@view(
    requires={"size"},
    variables={"iou", "iou_null", "iou_within"},
    about="Intersection over union (or weighted overlap) against circuit size, with both permutation nulls.",
)
def overlap_curve(ds: xr.Dataset, measure: str = "iou") -> go.Figure:
    """`measure` is `iou` or `weighted`; the bands reach from each null's mean to its 95 % point."""
    percent = 100 * ds["fraction"].values
    figure = go.Figure()
    for (null, (label, dash)), colour in zip(NULLS.items(), (theme.QUIET, theme.TASKS[4]), strict=True):
        mean, high = ds[f"{measure}_{null}"].values, ds[f"{measure}_{null}_high"].values
        line = {"color": colour, "dash": dash, "width": 1.5}
        figure.add_scatter(
            x=percent, y=mean, mode="lines", line={**line, "width": 0.5}, showlegend=False, hoverinfo="skip"
        )
        figure.add_scatter(
            x=percent,
            y=high,
            mode="lines",
            line=line,
            fill="tonexty",
            fillcolor=theme.BAND,
            name=f"95 % point, {label}",
        )
    heads = [f"{k} heads" for k in ds["size"].values]
    p = [
        f"p = {a:.4f} / {b:.4f}"
        for a, b in zip(ds[f"{measure}_null_p"].values, ds[f"{measure}_within_p"].values, strict=True)
    ]
    figure.add_scatter(
        x=percent,
        y=ds[measure].values,
        mode="lines+markers",
        line={"color": theme.TASKS[0], "width": 2.5},
        name=str(ds[measure].attrs["long_name"]),
        customdata=list(zip(heads, p, strict=True)),
        hovertemplate="%{customdata[0]}: %{y:.2f}<br>%{customdata[1]} (all / within layers)<extra></extra>",
    )
    chosen = 100 * ds.attrs["chosen"] / max(ds["size"].values)
    figure.add_vline(
        x=chosen, line={"color": theme.QUIET, "width": 1}, annotation_text=f"chosen: {ds.attrs['chosen']} heads"
    )
    figure.update_layout(**theme.layout(f"{theme.plain(ds.attrs['title'])}<br><sup>{caption(ds)}</sup>"))
    figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=420)
    figure.update_xaxes(title="circuit size, % of all heads")
    figure.update_yaxes(title=str(ds[measure].attrs["long_name"]), range=[0, 1.05])
    return figure
