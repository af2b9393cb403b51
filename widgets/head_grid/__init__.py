"""Layer x head heat maps side by side, with intervals, marks and one selected head."""

import math
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet

_HERE = Path(__file__).parent
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = ("values", "low", "high", "marks", "shape", "titles", "layers", "selected")


def pack(
    values: ArrayLike, *, low: ArrayLike | None = None, high: ArrayLike | None = None, marks: ArrayLike | None = None
) -> dict:
    """The traits `values`, `low`, `high`, `marks` and `shape` of arrays indexed [panel, layer, head].

    Args:
        values: One number a head; NaN where there is none.
        low: Lower end of each 95 % interval, given together with `high`.
        high: Upper end of each 95 % interval.
        marks: 0 nothing, 1 in this panel's top set, 2 in the top set of every panel.

    Raises:
        ValueError: `values` has not three axes, another array has another shape, or a mark is not 0, 1 or 2.
    """
    numbers = np.asarray(values, dtype="<f4")
    if numbers.ndim != 3:
        raise ValueError(f"values must have the axes [panel, layer, head], found shape {numbers.shape}")
    given = {"low": low, "high": high, "marks": marks}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    for name, array in arrays.items():
        if array.shape != numbers.shape:
            raise ValueError(f"{name} must have the shape of values, {numbers.shape}, found {array.shape}")
    if "marks" in arrays and not np.isin(arrays["marks"], (0, 1, 2)).all():
        raise ValueError(f"marks must be 0, 1 or 2, found {np.unique(arrays['marks']).tolist()}")
    packed = {name: b"" for name in given}
    for name, array in arrays.items():
        packed[name] = array.astype("u1" if name == "marks" else "<f4").tobytes()
    return {"values": numbers.tobytes(), **packed, "shape": list(numbers.shape)}


class HeadGrid(Widget):
    """Heat maps of one number a head: layers upwards, heads to the right, one map a panel.

    `pack` turns arrays into the traits. Traits that depend on each other are set together, at construction or with
    `show`. In the page a click, Enter or Space selects a head and Escape clears it.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, "widget.js")
    CSS = _css = style_sheet(_HERE)

    values = packed("float32, little-endian, C order [panel, layer, head]; NaN is 'no value'. Default: empty.")
    low = packed("Lower end of the 95 % interval, laid out like values, or empty. Default: empty.")
    high = packed("Upper end of the 95 % interval, laid out like values, or empty. Default: empty.")
    marks = packed("uint8 [panel, layer, head]: 0 nothing, 1 top in this panel, 2 shared by all. Default: empty.")
    shape = T.List(
        T.Int(min=0), [0, 0, 0], 3, 3, help="list of int: number of panels, layers, heads. Default: [0, 0, 0]."
    ).tag(sync=True)
    titles = T.List(T.Unicode(), help="list of str: one a panel, or empty. Default: [].").tag(sync=True)
    layers = T.List(
        T.Int(min=0), help="list of int: layer numbers, increasing; empty means 0, 1, 2, ... Default: []."
    ).tag(sync=True)
    mark_names = T.List(
        T.Unicode(), ["top", "shared"], 2, 2, help="list of str: what marks 1 and 2 mean. Default: ['top', 'shared']."
    ).tag(sync=True)
    signed = T.Bool(True, help="bool: diverging colours around 0, or sequential from 0. Default: True.").tag(sync=True)
    limit = T.Float(0.0, min=0.0, help="float: end of the colour range; 0 takes the data's. Default: 0.").tag(sync=True)
    quantity = T.Unicode("", help="str: what the numbers are, for the colour bar. Default: ''.").tag(sync=True)
    selected = T.List(T.Int(), help="list of int: [] or [layer number, head]. Default: [].").tag(sync=True)

    @T.validate("limit")
    def _limit_is_finite(self, proposal: dict) -> float:
        if not math.isfinite(proposal["value"]):
            raise T.TraitError(f"limit must be a finite number, 0 or more, found {proposal['value']}")
        return proposal["value"]

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _first_problem(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _first_problem(state: dict) -> str | None:
    return _wrong_bytes(state) or _wrong_names(state)


def _wrong_bytes(state: dict) -> str | None:
    """What is wrong with the first byte trait that does not fit the shape."""
    panels, layers, heads = state["shape"]
    cells = panels * layers * heads
    for name, width in (("values", 4), ("low", 4), ("high", 4), ("marks", 1)):
        found, expected = len(state[name]), width * cells
        optional = name != "values"
        if found != expected and not (optional and found == 0):
            return f"{name} must have {expected} bytes for the shape {state['shape']}, found {found}"
    if bool(state["low"]) != bool(state["high"]):
        return "low and high must be given together, found only one of them"
    if wrong := sorted(set(state["marks"]) - {0, 1, 2}):
        return f"marks must be 0, 1 or 2, found {wrong}"
    return None


def _wrong_names(state: dict) -> str | None:
    """What is wrong with titles, layer numbers or the selected head."""
    panels, count, heads = state["shape"]
    titles, layers, selected = state["titles"], state["layers"], state["selected"]
    if titles and len(titles) != panels:
        return f"titles must have one entry a panel, {panels}, found {len(titles)}"
    if layers and (len(layers) != count or layers != sorted(set(layers))):
        return f"layers must be {count} increasing layer numbers, found {layers}"
    if selected and (len(selected) != 2 or selected[0] not in (layers or range(count))):
        return f"selected must be [] or [layer number, head] with a layer of {layers or list(range(count))}: {selected}"
    if selected and not 0 <= selected[1] < heads:
        return f"selected must name a head from 0 to {heads - 1}, found {selected}"
    return None
