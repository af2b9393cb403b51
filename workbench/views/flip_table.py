"""Flipped answers: a table of two by two with its test, and the examples behind it."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view

ORDER = (1, 2, 3, 0)  # kinds of change, those of most interest first
COLUMNS = ("what changed", "prompt", "right answer", "before", "after", "change")


@view(
    requires={"prompt", "component", "measured"},
    variables={"kind", "count", "share", "share_low", "share_high", "rate", "metric", "change"},
    about="Answers before against after as a table of two by two with McNemar's test, and the prompts that flipped.",
)
def flip_table(ds: xr.Dataset, examples: int = 12) -> go.Figure:
    """The counts of all four kinds with intervals of their shares, and up to `examples` prompts, flips first."""
    kinds = {"type": "heatmap"}, {"type": "table"}
    figure = make_subplots(cols=2, column_widths=[0.3, 0.7], specs=[list(kinds)], horizontal_spacing=0.04)
    figure.add_trace(_counts(ds), row=1, col=1)
    figure.add_trace(_examples(ds, examples), row=1, col=2)
    attrs = ds.attrs
    said = f"McNemar's exact test: p = {attrs['mcnemar']:.2g} of {attrs['flipped']} flips"
    change = _ended("accuracy", [attrs[f"accuracy_change{end}"] for end in ("", "_low", "_high")])
    rates = ", ".join(f"{name} {value:.1%}" for name, value in zip(ds["method"].values, ds["rate"].values, strict=True))
    title = f"Answers to {attrs['task']}: {attrs['after']} against {attrs['model']}"
    figure.update_layout(**heading(ds, title, f"{said} · {change}", rates, height=500, room=44))
    figure.update_xaxes(title="after", side="top", showgrid=False)
    figure.update_yaxes(title="before", autorange="reversed", showgrid=False)
    return figure


def _ended(name: str, numbers: list[float]) -> str:
    value, low, high = numbers
    return f"{name} {value:+.1%} ({low:+.1%} to {high:+.1%})"


def _counts(ds: xr.Dataset) -> go.Heatmap:
    """Right and wrong before, by right and wrong after."""
    count, share, low, high = (
        only(ds, name, "component").values for name in ("count", "share", "share_low", "share_high")
    )
    square = np.array([[0, 1], [2, 3]])  # places of the kinds
    return go.Heatmap(
        x=["right", "wrong"],
        y=["right", "wrong"],
        z=share[square],
        zmin=0,
        zmax=1,
        text=[
            [f"<b>{count[at]}</b><br>{share[at]:.1%}<br>{low[at]:.1%} to {high[at]:.1%}" for at in row]
            for row in square
        ],
        texttemplate="%{text}",
        textfont={"size": 13},
        hovertemplate="before %{y}, after %{x}<br>%{text}<extra></extra>",
        colorscale=[[0, "rgba(103, 169, 207, 0.08)"], [1, "rgba(103, 169, 207, 0.75)"]],
        showscale=False,
        xgap=3,
        ygap=3,
    )


def _examples(ds: xr.Dataset, count: int) -> go.Table:
    kind, change = only(ds, "kind", "prompt").values, only(ds, "change", "prompt").values
    metric = only(ds, "metric", "measured", "prompt").values
    place = {kind: at for at, kind in enumerate(ORDER)}
    order = sorted(range(len(kind)), key=lambda at: (place[int(kind[at])], -abs(change[at])))[:count]
    names = ds["component"].values
    rows = [
        (
            theme.plain(names[kind[at]]),
            theme.plain(ds["text"].values[at]),
            *(theme.plain(ds[name].values[at]) for name in ("answer_text", "before_text", "after_text")),
            f"{metric[0, at]:+.2f} to {metric[1, at]:+.2f}",
        )
        for at in order
    ]
    line = {"color": theme.BAND}
    return go.Table(
        header={"values": [f"<b>{name}</b>" for name in COLUMNS], "fill": {"color": theme.BAND}, "align": "left"},
        cells={
            "values": [list(column) for column in zip(*rows, strict=True)],
            "fill": {"color": "rgba(0, 0, 0, 0)"},
            "align": "left",
            "line": line,
            "height": 26,
        },
        columnwidth=[2, 6, 1.5, 1.5, 1.5, 2.2],
    )
