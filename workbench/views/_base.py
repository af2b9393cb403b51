"""What a view is: a pure function from a dataset to a Plotly figure or a widget, found by the dims it needs."""

import contextlib
import functools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anywidget
import numpy as np
import plotly.graph_objects as go
import xarray as xr
from traitlets import TraitError

from widgets import AttentionView, CircuitGraph
from widgets.head_grid import HeadGrid, pack
from workbench import theme
from workbench.registry import Registry, WorkbenchError
from workbench.views._ink import inked

OF_HEADS = (AttentionView, CircuitGraph, HeadGrid)  # widgets whose `selected` is a head
NAMED = ("task", "receiver", "component")  # dimensions whose labels say enough as titles


class ViewError(WorkbenchError):
    """A dataset that a view cannot draw."""


@dataclass(frozen=True)
class Drawing:
    """A widget to be made: its class and traits, so that a notebook and a page can each make their own kind."""

    widget: type[anywidget.AnyWidget]
    traits: dict[str, Any] = field(default_factory=dict)

    def build(self) -> anywidget.AnyWidget:
        """The widget, for a notebook."""
        return self.widget(**self.traits)


Drawn = TypeVar("Drawn", go.Figure, Drawing)
Selected = TypeVar("Selected", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class View:
    """A registered view: the dimensions and variables it needs."""

    name: str
    draw: Callable[..., go.Figure | Drawing]
    requires: frozenset[str]
    variables: frozenset[str]
    about: str

    def missing(self, ds: xr.Dataset) -> list[str]:
        """What the dataset lacks for this view."""
        return sorted(self.requires - set(map(str, ds.dims))) + sorted(self.variables - set(map(str, ds.data_vars)))


VIEWS: Registry[View] = Registry("view")


def view(*, requires: Collection[str], variables: Collection[str], about: str):
    """Register `f(dataset, **options) -> Figure or Drawing`; a dataset that lacks something gets an error naming it."""

    def register(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
        name = function.__name__

        @functools.wraps(function)
        def draw(ds: xr.Dataset, **options: Any) -> Drawn:
            lacking = VIEWS[name].missing(ds)
            if lacking:
                fitting = ", ".join(compatible(ds)) or "none"
                raise ViewError(
                    f"The view '{name}' needs {', '.join(lacking)}; views that fit this dataset: {fitting}."
                )
            drawn = function(ds, **options)
            return inked(drawn) if isinstance(drawn, go.Figure) else drawn

        VIEWS.add(name, View(name, draw, frozenset(requires), frozenset(variables), about))
        return draw

    return register


def compatible(ds: xr.Dataset) -> list[str]:
    """Names of the views that can draw a dataset; those about its primary variable, and the most specific, first."""
    primary = ds.attrs.get("primary")

    def rank(view: View) -> tuple[bool, int, str]:
        return (primary not in view.variables, -len(view.requires | view.variables), view.name)

    return [view.name for view in sorted((v for _, v in VIEWS.items() if not v.missing(ds)), key=rank)]


def show(ds: xr.Dataset, view: str | None = None, **options: Any) -> go.Figure | anywidget.AnyWidget:
    """The best view of a result, or the one named: a Plotly figure or a live widget.

    Raises:
        ViewError: when no view, or not the one named, can draw the dataset.
    """
    names = compatible(ds)
    if view is None and not names:
        raise ViewError(f"No view draws a dataset with the dimensions {', '.join(map(str, ds.dims))}.")
    drawn = VIEWS[view or names[0]].draw(ds, **options)
    return drawn.build() if isinstance(drawn, Drawing) else drawn


def link(*widgets: anywidget.AnyWidget) -> None:
    """Make several widgets share one selected head: what is picked in one is picked in all that have that head.

    Raises:
        ViewError: for a widget in which no head can be selected.
    """
    if deaf := [type(widget).__name__ for widget in widgets if not isinstance(widget, OF_HEADS)]:
        raise ViewError(
            f"No head can be selected in a {deaf[0]}; link head maps, circuit graphs and attention viewers."
        )

    def follow(change: Any) -> None:
        if change.new and change.new[-1] < 0:
            return  # an MLP, which other widgets do not have
        for widget in widgets:
            if widget is not change.owner:
                with contextlib.suppress(TraitError):  # it has no such head
                    widget.set_trait("selected", change.new)

    for widget in widgets:
        widget.observe(follow, "selected")


def caption(ds: xr.Dataset) -> str:
    """The line under a title: how many prompts, the metric, BOS and folding, as far as the result says."""
    attrs = ds.attrs
    parts = [f"n = {attrs['n']}"] if "n" in attrs else []
    if "metric_name" in attrs:
        metric = str(attrs["metric_name"]).replace("_", " ")
        several = json.loads(metric) if metric.startswith("[") else [metric]  # of several tasks
        parts.append(" and ".join(dict.fromkeys(several)))
    if "epsilon" in attrs:
        parts.append(f"ε = {attrs['epsilon']}, T = {attrs['length']}")
    if "bos" in attrs:
        parts.append(f"BOS {'on' if attrs['bos'] else 'off'}, {attrs['folding']} weights")
    if attrs.get("partial"):
        parts.append("stopped early")
    return " · ".join(parts)


def visible(token: object) -> str:
    """A token that can be seen: white space by its signs, and the beginning of a long one."""
    text = str(token).replace("\n", "↵").replace("\t", "⇥")
    text = text if text.strip() else "␣" * len(text)
    return text if len(text) <= 14 else f"{text[:13]}…"


def pick(data: Selected, **labels: int | str) -> Selected:
    """The part of a dataset or array at the labels given.

    Raises:
        ViewError: naming a label that is not there and the ones that are.
    """
    for dim, label in labels.items():
        known = data.coords[dim].values.tolist()
        if label not in known:
            raise ViewError(f"There is no {dim} {label} in this result; it has {known[0]} to {known[-1]}.")
    return data.sel(labels)


def only(ds: xr.Dataset, variable: str, *dims: str) -> xr.DataArray:
    """A variable with its dimensions in the order given.

    Raises:
        ViewError: when it has others; a result of `concat` may.
    """
    more = [str(dim) for dim in ds[variable].dims if dim not in dims]
    if more:
        raise ViewError(f"This view draws '{variable}' of one {' and '.join(more)}; select it first.")
    return ds[variable].transpose(*dims)


def listed(ds: xr.Dataset, name: str, count: int) -> list[float]:
    """A number of the attributes for each of `count` results that were joined: `concat` lists those that differ."""
    value = ds.attrs[name]
    found = json.loads(value) if isinstance(value, str) else [value] * count
    if len(found) != count:
        raise ViewError(f"The attribute '{name}' lists {len(found)} results, but {count} are here; join them again.")
    return found


def heading(ds: xr.Dataset, title: str, *notes: str, room: int = 0, **more: Any) -> dict[str, Any]:
    """Layout settings with a title, the caption under it, further lines of notes, and `room` below them."""
    lines = [theme.plain(line) for line in (caption(ds), *notes) if line]
    text = "".join([theme.plain(title), *(f"<br><sup>{line}</sup>" for line in lines)])
    found = theme.layout(text, margin={"l": 60, "r": 20, "t": 40 + 19 * len(lines) + room, "b": 50}, **more)
    found["title"] |= {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 18}}
    return found


def head_grid(
    ds: xr.Dataset, variable: str, *, marks: np.ndarray | None = None, quantity: str, **traits: Any
) -> Drawing:
    """A head grid of one variable with its `_low` and `_high`, one panel for each label of its third dimension.

    `marks` has the shape [panel, layer, head] of the grid; see `HeadGrid`.
    """
    values = ds[variable]
    extra = [str(dim) for dim in values.dims if dim not in ("layer", "head")]
    if len(extra) > 1:
        raise ViewError(f"A head map has one dimension beside layer and head; select among {', '.join(extra)} first.")
    kind = f"{extra[0]} " if extra and extra[0] not in NAMED else ""
    titles = [f"{kind}{label}" for label in values[extra[0]].values] if extra else [str(ds.attrs["task"])]
    arrays = {name: _panels(ds[name], extra) for name in (variable, *_ends(ds, variable))}
    low, high = (arrays.get(f"{variable}_{end}") for end in ("low", "high"))
    packed = pack(arrays[variable], low=low, high=high, marks=marks)
    layers = [int(layer) for layer in ds["layer"].values]
    signed = bool(values.attrs.get("signed"))
    more = {"titles": titles, "layers": layers, "signed": signed, "quantity": quantity}
    return Drawing(HeadGrid, {**packed, **more, **traits})


def _ends(ds: xr.Dataset, variable: str) -> list[str]:
    ends = [f"{variable}_low", f"{variable}_high"]
    return ends if all(end in ds for end in ends) else []


def _panels(values: xr.DataArray, extra: list[str]) -> np.ndarray:
    ordered = values.transpose(*extra, "layer", "head").values
    return ordered if extra else ordered[None]
