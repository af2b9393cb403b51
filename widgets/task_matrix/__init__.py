"""Task x task matrix of one number, coloured only where it lies outside the noise, with one selected pair."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet

_HERE = Path(__file__).parent
# One module for the page, which cannot import from its own folder.
_FILES = ("words.js", "widget.js")
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = ("values", "low", "high", "clear", "diagonal", "details", "detail_values", "names", "selected")


def pack(
    values: ArrayLike,
    names: Sequence[str],
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    clear: ArrayLike | None = None,
    diagonal: ArrayLike | None = None,
    details: Mapping[str, ArrayLike] | None = None,
) -> dict:
    """The traits of arrays indexed [row, column], which are the same tasks in the same order.

    Args:
        values: One number a pair of tasks; NaN where there is none. Those on the diagonal are not shown.
        names: What the tasks are called.
        low: Lower end of each 95 % interval, given together with `high`.
        high: Upper end of each 95 % interval.
        clear: 1 where the number lies outside the noise, else 0; without it all are coloured.
        diagonal: One number a task, such as the most that two halves of it can reach; NaN where there is none.
        details: More to say of each pair: {sentence with one `{}`: the numbers for it}; NaN leaves the sentence out.

    Raises:
        ValueError: `values` is not square, another array or `names` does not fit it, `clear` is not 0 or 1, or a
            sentence has not one `{}`.
    """
    numbers = np.asarray(values, dtype="<f4")
    if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1]:
        raise ValueError(f"values must have the axes [row, column] of the same tasks, found shape {numbers.shape}")
    given = {"low": low, "high": high, "clear": clear, "diagonal": diagonal}
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    told = {sentence: np.asarray(array, dtype="<f4") for sentence, array in (details or {}).items()}
    for name, array in {**arrays, **told}.items():
        expected = numbers.shape[:1] if name == "diagonal" else numbers.shape
        if array.shape != expected:
            raise ValueError(f"{name!r} must have the shape {expected}, found {array.shape}")
    if "clear" in arrays and not np.isin(arrays["clear"], (0, 1)).all():
        raise ValueError(f"'clear' must be 0 or 1, found {np.unique(arrays['clear']).tolist()}")
    traits = {name: b"" for name in given} | {"values": numbers.tobytes(), "names": [str(name) for name in names]}
    for name, array in arrays.items():
        traits[name] = array.astype("u1" if name == "clear" else "<f4").tobytes()
    traits |= {"details": list(told), "detail_values": b"".join(array.tobytes() for array in told.values())}
    if problem := _wrong_bytes(traits) or _wrong_details(traits):
        raise ValueError(problem)
    return traits


class TaskMatrix(Widget):
    """A matrix of one number for every two tasks: its number is in each cell, colour where it is outside the noise.

    `pack` turns arrays into the traits. Traits that depend on each other are set together, at construction or with
    `show`. In the page a click, Enter or Space selects a pair of different tasks and Escape clears it.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, *_FILES)
    CSS = _css = style_sheet(_HERE)

    values = packed("float32, little-endian, C order [row, column]; NaN is 'no value'. Default: empty.")
    low = packed("Lower end of the 95 % interval, laid out like values, or empty. Default: empty.")
    high = packed("Upper end of the 95 % interval, laid out like values, or empty. Default: empty.")
    clear = packed("uint8 [row, column]: 1 outside the noise, 0 inside; empty: all are coloured. Default: empty.")
    diagonal = packed("float32 [task]: shown in brackets on the diagonal; NaN is none. Default: empty.")
    diagonal_name = T.Unicode("", help="str: what the numbers in brackets are. Default: ''.").tag(sync=True)
    names = T.List(T.Unicode(), help="list of str: the tasks, of rows and of columns. Default: [].").tag(sync=True)
    details = T.List(
        T.Unicode(), help="list of str: more to say of a pair, each with one {} for its number. Default: []."
    ).tag(sync=True)
    detail_values = packed("float32 [detail, row, column]: the numbers; NaN leaves one out. Default: empty.")
    signed = T.Bool(True, help="bool: diverging colours around 0, or sequential from 0. Default: True.").tag(sync=True)
    limit = T.Float(0.0, min=0.0, help="float: end of the colour range; 0 takes the data's. Default: 0.").tag(sync=True)
    quantity = T.Unicode("", help="str: what the numbers are, for the colour bar. Default: ''.").tag(sync=True)
    absent = T.Unicode("no value", help="str: what a cell without a number says. Default: 'no value'.").tag(sync=True)
    title = T.Unicode("", help="str: the line above. Default: ''.").tag(sync=True)
    note = T.Unicode("", help="str: further lines under the title. Default: ''.").tag(sync=True)
    selected = T.List(T.Int(), help="list of int: [] or [row, column] of two different tasks. Default: [].").tag(
        sync=True
    )

    @T.validate("limit")
    def _limit_is_finite(self, proposal: dict) -> float:
        if not math.isfinite(proposal["value"]):
            raise T.TraitError(f"limit must be a finite number, 0 or more, found {proposal['value']}")
        return proposal["value"]

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _wrong_bytes(state) or _wrong_details(state) or _wrong_selected(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _wrong_bytes(state: dict) -> str | None:
    """What is wrong with the first byte trait that does not fit the names."""
    count, told = len(state["names"]), len(state["details"])
    square = 4 * count**2
    sizes = {"values": square, "low": square, "high": square, "clear": count**2, "diagonal": 4 * count}
    for name, expected in {**sizes, "detail_values": told * square}.items():
        found = len(state[name])
        optional = name not in ("values", "detail_values")
        if found != expected and not (optional and found == 0):
            return f"{name} must have {expected} bytes for {count} names and {told} details, found {found}"
    if bool(state["low"]) != bool(state["high"]):
        return "low and high must be given together, found only one of them"
    if wrong := sorted(set(state["clear"]) - {0, 1}):
        return f"clear must be 0 or 1, found {wrong}"
    return None


def _wrong_details(state: dict) -> str | None:
    odd = [sentence for sentence in state["details"] if sentence.count("{}") != 1]
    return f"each of the details must have one {{}} for its number, found {odd[0]!r}" if odd else None


def _wrong_selected(state: dict) -> str | None:
    count, selected = len(state["names"]), state["selected"]
    fits = len(selected) == 2 and all(0 <= place < count for place in selected) and selected[0] != selected[1]
    if selected and not fits:
        return f"selected must be [] or [row, column] of two different tasks from 0 to {count - 1}, found {selected}"
    return None
