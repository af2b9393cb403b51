"""What each task loses when each set of heads is ablated, beside random sets of the same layers."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, listed, only, view

LOST = ("lost", "lost_low", "lost_high", "lost_null", "lost_null_high", "accuracy", "accuracy_null")


@view(
    requires={"component"},
    variables=LOST,
    about="Which heads are ablated by which task is measured: what is lost, beside what random heads lose.",
)
def ablation_matrix(ds: xr.Dataset) -> go.Figure:
    """A heat map of what is lost less what random sets lose; bold where it is over their 95 % point."""
    many = "measured" in ds.dims
    whole = ds if many else ds.expand_dims(measured=[str(ds.attrs["task"])])
    parts = {name: only(whole, name, "component", "measured") for name in LOST}
    values = {name: part.values for name, part in parts.items()}
    excess = (parts["lost"] - parts["lost_null"]).assign_attrs(signed=1)
    figure = go.Figure(
        go.Heatmap(
            x=[theme.plain(label) for label in whole["measured"].values],
            y=[theme.plain(label) for label in whole["component"].values],
            z=excess.values,
            text=_each(_cell, values),
            texttemplate="%{text}",
            customdata=_hover(whole, values),
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={"title": {"text": "lost less<br>random"}},
            xgap=2,
            ygap=2,
            **theme.colour_range(excess),
        )
    )
    meaning = f"{ds.attrs['ablation']} ablation: {ds.attrs['meaning']}"
    how = "share of the metric lost; bold: over the 95 % point of random heads; italic, n.s.: not over it"
    more = {"height": 170 + 60 * values["lost"].shape[0]}
    title = "What is lost without each set of heads" + ("" if many else f": {ds.attrs['task']}")
    figure.update_layout(**heading(ds, title, how, meaning, **more))
    figure.update_xaxes(title="task measured", type="category", showgrid=False)
    figure.update_yaxes(title="ablated", type="category", autorange="reversed", showgrid=False)
    return figure


def _each(write, values: dict[str, np.ndarray]) -> list[list[str]]:
    """What `write` makes of the numbers of each cell."""
    rows, columns = values["lost"].shape
    return [
        [write({name: float(v[row, column]) for name, v in values.items()}) for column in range(columns)]
        for row in range(rows)
    ]


def _cell(at: dict[str, float]) -> str:
    lost = f"<b>{at['lost']:z.2f}</b>" if at["lost"] > at["lost_null_high"] else f"<i>{at['lost']:z.2f} n.s.</i>"
    return f"{lost}<br>(random {at['lost_null']:z.2f}, 95 % {at['lost_null_high']:z.2f})"


def _numbers(at: dict[str, float]) -> str:
    return (
        f"lost {at['lost']:z.3f} ({at['lost_low']:z.3f} to {at['lost_high']:z.3f})<br>"
        f"random heads {at['lost_null']:z.3f}, 95 % point {at['lost_null_high']:z.3f}"
    )


def _hover(ds: xr.Dataset, values: dict[str, np.ndarray]) -> list[list[str]]:
    """Heads, numbers and accuracy of each cell."""
    before = listed(ds, "accuracy_clean", ds.sizes["measured"])
    heads = [theme.plain(text).replace(",", ", ") or "none" for text in ds["heads"].values]
    names = [theme.plain(label) for label in ds["component"].values]
    return [
        [
            f"without {name}: {text}<br>{numbers}<br>accuracy {was:z.2f}, then {now:z.2f} (random heads {random:z.2f})"
            for numbers, was, now, random in zip(row, before, after, chance, strict=True)
        ]
        for name, text, row, after, chance in zip(
            names, heads, _each(_numbers, values), values["accuracy"], values["accuracy_null"], strict=True
        )
    ]
