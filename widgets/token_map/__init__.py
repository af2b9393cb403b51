"""A map of up to a million tokens: coloured by what they are, taken with a lasso, told apart by pointing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet
from widgets.token_map.palette import palette

__all__ = ["Colouring", "TokenMap", "pack", "palette", "unpack"]

_HERE = Path(__file__).parent
# One module for the page, which cannot import from its own folder; LICENSES.txt says how the first was made.
_FILES = ("regl_scatterplot.js", "base.js", "lasso.js", "plot.js", "legend.js", "tip.js", "map.js", "widget.js")
MOST = 1_000_000  # points: beyond, a browser's memory and a lasso's half second are used up
_MOST_NAMES = 1 << 16
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = (
    *("points", "codes", "colourings", "names", "colours", "colour_by", "texts", "text_codes", "selected"),
    "axes",
)


@dataclass(frozen=True)
class Colouring:
    """One way to colour the points: the number of each one's category, the categories' names, and their colours.

    `codes` are integers [point] below `len(names)`; `colours` are like '#0072b2', or empty for `palette`.
    """

    name: str
    codes: ArrayLike
    names: Sequence[str]
    colours: Sequence[str] = ()


def pack(
    x: ArrayLike,
    y: ArrayLike,
    colourings: Sequence[Colouring],
    *,
    texts: Sequence[str] = (),
    text_codes: ArrayLike = (),
) -> dict:
    """The traits of a `TokenMap` of points.

    Args:
        x: Where the points are, [point].
        y: Where the points are, [point].
        colourings: One or more; the first is shown.
        texts: The distinct texts that points have.
        text_codes: Which of `texts` each point has, integers [point]; empty for none.

    Raises:
        ValueError: The lengths differ, a coordinate is not finite, a code has no name, there are more than a million
            points, or no colouring.
    """
    places = np.asarray([x, y], dtype="<f4")
    count = places.shape[-1] if places.ndim == 2 else 0
    if places.ndim != 2 or not 1 <= count <= MOST:
        raise ValueError(f"x and y must be one number a point for 1 to {MOST:,} points, found shape {np.shape(x)}")
    if not np.isfinite(places).all():
        raise ValueError(f"x and y must be finite, found {int((~np.isfinite(places)).sum())} values that are not")
    if not colourings:
        raise ValueError("there must be at least one Colouring")
    codes = [_codes(each.name, each.codes, len(each.names), count) for each in colourings]
    shown = _codes("text_codes", text_codes, len(texts), count) if len(texts) else np.zeros(0)
    if largest := next((each.name for each in colourings if len(each.names) > _MOST_NAMES), None):
        raise ValueError(f"{largest} has more than {_MOST_NAMES:,} names")
    return {
        "points": places.tobytes(),
        "codes": np.asarray(codes, dtype="<u2").tobytes(),
        "colourings": [each.name for each in colourings],
        "names": [[str(name) for name in each.names] for each in colourings],
        "colours": [list(each.colours) or palette(len(each.names)) for each in colourings],
        "colour_by": colourings[0].name,
        "texts": [str(text) for text in texts],
        "text_codes": shown.astype("<u4").tobytes(),
    }


def _codes(name: str, given: ArrayLike, known: int, count: int) -> np.ndarray:
    codes = np.asarray(given)
    if codes.shape != (count,) or codes.dtype.kind not in "iu":
        raise ValueError(f"{name} must be one integer a point, {count}, found {codes.dtype} of shape {codes.shape}")
    if codes.min() < 0 or codes.max() >= known:
        raise ValueError(f"{name} must be numbers from 0 to {known - 1}, found {codes.min()} to {codes.max()}")
    return codes


def unpack(selected: bytes) -> np.ndarray:
    """Numbers of the points that `selected` holds, increasing, int64 [selected]."""
    return np.frombuffer(selected, "<u4").astype(np.int64)


class TokenMap(Widget):
    """Points on a map, coloured by one of several colourings; what a lasso takes is `indices`.

    `pack` turns arrays into the traits. Traits that depend on each other are set together, at construction or with
    `show`. In the page a drag draws a lasso or moves the map, as the two buttons say; Ctrl+lasso adds to the selection,
    Alt+lasso takes away from it. A category's button in the legend hides it; the one beside it selects its tokens.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, *_FILES)
    CSS = _css = style_sheet(_HERE)

    points = packed("float32, little-endian [2, point]: x, then y. Default: empty.")
    codes = packed("uint16, little-endian [colouring, point]: the category of each point. Default: empty.")
    colourings = T.List(T.Unicode(), help="list of str: the ways to colour. Default: [].").tag(sync=True)
    names = T.List(T.List(T.Unicode()), help="list of list of str: each one's categories. Default: [].").tag(sync=True)
    colours = T.List(T.List(T.Unicode()), help="list of list of str: their colours, like '#0072b2'. Default: [].").tag(
        sync=True
    )
    colour_by = T.Unicode("", help="str: the colouring that is shown. Default: ''.").tag(sync=True)
    hidden = T.List(T.Int(min=0), help="list of int: categories of it that are not drawn. Default: [].").tag(sync=True)
    texts = T.List(T.Unicode(), help="list of str: the distinct texts that points have. Default: [].").tag(sync=True)
    text_codes = packed("uint32, little-endian [point]: which of them each has, or empty. Default: empty.")
    span = T.Int(0, min=0, help="int: so many points, one after another, are a sequence; 0 for none. Default: 0.").tag(
        sync=True
    )
    start = T.Int(0, min=0, help="int: position of a sequence's first point. Default: 0.").tag(sync=True)
    axes = T.List(T.Unicode(), help="list of str: what x and y are, or empty. Default: [].").tag(sync=True)
    selected = packed("uint32, little-endian [selected]: numbers of the points taken, increasing. Default: empty.")
    heading = T.Unicode("", help="str: what this is a map of. Default: ''.").tag(sync=True)
    note = T.Unicode("", help="str: what is to be said below the heading. Default: ''.").tag(sync=True)

    @property
    def indices(self) -> np.ndarray:
        """Numbers of the points taken, increasing, int64 [selected]."""
        return unpack(self.selected)

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _first_problem(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _first_problem(state: dict) -> str | None:
    count = len(state["points"]) // 8
    if len(state["points"]) % 8 or count > MOST:
        return f"points must be 8 bytes for each of at most {MOST:,} points, found {len(state['points']):,}"
    return _wrong_colours(state, count) or _wrong_rest(state, count)


def _wrong_colours(state: dict, count: int) -> str | None:
    known = len(state["colourings"])
    if len(state["codes"]) != 2 * known * count:
        return f"codes must have {2 * known * count} bytes for {known} colourings, found {len(state['codes'])}"
    if list(map(len, state["names"])) != list(map(len, state["colours"])) or len(state["names"]) != known:
        return "names and colours must have a list for each colouring, of one length"
    if state["colour_by"] not in (state["colourings"] or [""]):
        return f"colour_by must be one of {', '.join(state['colourings'])}, found {state['colour_by']!r}"
    if not known:
        return None
    for name, part, names in zip(state["colourings"], _rows(state["codes"], known), state["names"], strict=True):
        if part.size and part.max() >= len(names):
            return f"{name} has {len(names)} categories, but codes up to {part.max()}"
    return None


def _rows(codes: bytes, count: int) -> np.ndarray:
    return np.frombuffer(codes, "<u2").reshape(count, -1)


def _wrong_rest(state: dict, count: int) -> str | None:
    codes, selected = np.frombuffer(state["text_codes"], "<u4"), np.frombuffer(state["selected"], "<u4")
    if len(codes) not in (0, count) or (codes.size and codes.max() >= len(state["texts"])):
        return f"text_codes must be numbers of {len(state['texts'])} texts, one for each of {count} points, or empty"
    if selected.size and (selected.max() >= count or (np.diff(selected.astype(np.int64)) <= 0).any()):
        return f"selected must be increasing numbers of points below {count}"
    if len(state["axes"]) not in (0, 2):
        return f"axes must name x and y, found {len(state['axes'])} names"
    return None
