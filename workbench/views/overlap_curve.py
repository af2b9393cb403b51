"""The overlap of circuits at every size, between the band that chance gives and the ceiling that one task sets."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import caption, only, view

NULLS = {"null": ("all {} permuted", "dash"), "within": ("permuted within {}", "dot")}


@view(
    requires={"size"},
    variables={"iou", "iou_null", "iou_within"},
    about="Intersection over union (or weighted overlap) against circuit size, with both permutation nulls.",
)
def overlap_curve(ds: xr.Dataset, measure: str = "iou") -> go.Figure:
    """`measure` is `iou` or `weighted`; the bands reach from each null's mean to its 95 % point."""
    figure = go.Figure()
    for null, colour in zip(NULLS, (theme.QUIET, theme.TASKS[4]), strict=True):
        _band(figure, ds, measure, null, colour)
    percent, seen = 100 * ds["fraction"].values, only(ds, measure, "size")
    if f"{measure}_ceiling" in ds:
        line = {"color": theme.TASKS[2], "width": 1.5, "dash": "longdash"}
        label = "ceiling: halves of one task's prompts"
        figure.add_scatter(x=percent, y=ds[f"{measure}_ceiling"].values, mode="lines", line=line, name=label)
    figure.add_scatter(
        x=percent,
        y=seen.values,
        mode="lines+markers",
        line={"color": theme.TASKS[0], "width": 2.5},
        name=str(seen.attrs["long_name"]),
        customdata=_hover(ds, measure),
        hovertemplate="%{customdata[0]}: %{y:.2f}<br>%{customdata[1]}<extra></extra>",
    )
    what, chosen = _what(ds)[0], 100 * ds.attrs["chosen"] / max(ds["size"].values)
    mark = {"color": theme.QUIET, "width": 1}
    figure.add_vline(x=chosen, line=mark, annotation_text=f"chosen: {ds.attrs['chosen']} {what}")
    figure.update_layout(**theme.layout(f"{theme.plain(ds.attrs['title'])}<br><sup>{caption(ds)}</sup>"))
    figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=430)
    figure.update_xaxes(title=f"circuit size, % of all {what}")
    figure.update_yaxes(title=str(seen.attrs["long_name"]), range=[0, 1.05])
    return figure


def _what(ds: xr.Dataset) -> tuple[str, str]:
    """What the circuits are made of, and what the second null keeps."""
    return ("heads", "layers") if "head" in ds.dims else ("edges", "kinds of edges")


def _band(figure: go.Figure, ds: xr.Dataset, measure: str, null: str, colour: str) -> None:
    """One null, from its mean to its 95 % point."""
    label, dash = NULLS[null]
    percent, line = 100 * ds["fraction"].values, {"color": colour, "dash": dash, "width": 1.5}
    mean, high = (only(ds, f"{measure}_{null}{end}", "size").values for end in ("", "_high"))
    thin = {**line, "width": 0.5}
    figure.add_scatter(x=percent, y=mean, mode="lines", line=thin, showlegend=False, hoverinfo="skip")
    name = f"95 % point, {label.format(_what(ds)[null == 'within'])}"
    figure.add_scatter(x=percent, y=high, mode="lines", line=line, fill="tonexty", fillcolor=theme.BAND, name=name)


def _hover(ds: xr.Dataset, measure: str) -> list[tuple[str, str]]:
    what, kept = _what(ds)
    chance = zip(ds[f"{measure}_null_p"].values, ds[f"{measure}_within_p"].values, strict=True)
    p = [f"p = {a:.4f} / {b:.4f} (all / within {kept})" for a, b in chance]
    return [(f"{size} {what}", text) for size, text in zip(ds["size"].values, p, strict=True)]
