"""One row of an attention pattern, edited by hand: which tokens a query reads, and with which share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet

_HERE = Path(__file__).parent
# Softmax in half precision may end a little outside [0, 1].
_TOLERANCE = 1e-3
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = ("tokens", "names", "weights", "parts", "suggested", "query")


def pack(tokens: Sequence[str], weights: ArrayLike | None = None, names: Sequence[str] | None = None) -> dict:
    """The traits `tokens`, `names` and `weights` of one prompt.

    Args:
        tokens: The prompt, one string a token.
        weights: The present weight on each token, such as the mean over the heads that an edit goes to.
        names: What the position of each token is called; '' where it has no name.

    Raises:
        ValueError: `tokens` or `names` is not a sequence of strings, the lengths differ, or a weight is not finite or
            outside [0, 1].
    """
    texts, given = _texts("tokens", tokens), _texts("names", [] if names is None else names)
    if given and len(given) != len(texts):
        raise ValueError(f"names must have one entry a token, {len(texts)}, found {len(given)}")
    numbers = np.asarray([] if weights is None else weights, dtype="<f4")
    if weights is not None and numbers.shape != (len(texts),):
        raise ValueError(f"weights must have one number a token, {len(texts)}, found shape {numbers.shape}")
    if problem := _wrong_numbers(numbers):
        raise ValueError(problem)
    return {"tokens": texts, "names": given, "weights": numbers.clip(0, 1).tobytes()}


def shares(parts: Sequence[int]) -> tuple[float, ...]:
    """The weight that each token gets from its part: part / sum of parts, or nothing where nothing has a part.

    Raises:
        ValueError: A part is negative.
    """
    if min(parts, default=0) < 0:
        raise ValueError(f"parts must be 0 or more, found {min(parts)}")
    total = sum(parts)
    return tuple(part / total for part in parts) if total else ()


def _texts(name: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str):
        raise ValueError(f"{name} must be a sequence of strings, one a token, found the single string {given!r}")
    if wrong := [entry for entry in given if not isinstance(entry, str)]:
        raise ValueError(f"{name} must be strings, found {wrong[0]!r}")
    return list(given)


def _wrong_numbers(weights: np.ndarray) -> str | None:
    if not np.isfinite(weights).all():
        return f"weights must be finite, found {int((~np.isfinite(weights)).sum())} values that are not"
    if weights.size and (weights.min() < -_TOLERANCE or weights.max() > 1 + _TOLERANCE):
        return f"weights must lie in [0, 1], found {weights.min():.4g} to {weights.max():.4g}"
    return None


class AttentionRow(Widget):
    """The attention of one query on the tokens up to it, edited in whole parts; `shares` are the weights they make.

    `pack` turns a prompt into the traits. Traits that depend on each other are set together, at construction or with
    `show`. In the page a click, Enter or Space takes a token in with one part or leaves it out, Shift+click or + adds a
    part, - takes one away, and Escape clears the edit.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, "widget.js")
    CSS = _css = style_sheet(_HERE)

    tokens = T.List(T.Unicode(), help="list of str: the prompt, one string a token. Default: [].").tag(sync=True)
    names = T.List(
        T.Unicode(), help="list of str: what each position is called, '' for nothing, or empty. Default: []."
    ).tag(sync=True)
    weights = packed("float32, little-endian [token]: the present weights, or empty. Default: empty.")
    parts = T.List(
        T.Int(min=0), help="list of int: parts of the weight for each token; [] is 'no edit'. Default: []."
    ).tag(sync=True)
    suggested = T.List(
        T.Int(min=0), help="list of int: parts that a button of the page goes back to, or empty. Default: []."
    ).tag(sync=True)
    query = T.Int(-1, help="int: position of the query, no later token has a part; -1 is the last. Default: -1.").tag(
        sync=True
    )
    heading = T.Unicode("", help="str: what is edited. Default: ''.").tag(sync=True)

    @property
    def shares(self) -> tuple[float, ...]:
        """The edited weight on each token; empty without an edit."""
        return shares(self.parts)

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _first_problem(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _first_problem(state: dict) -> str | None:
    size, query = len(state["tokens"]), state["query"]
    for name in ("names", "parts", "suggested"):
        if state[name] and len(state[name]) != size:
            return f"{name} must have one entry a token, {size}, or none, found {len(state[name])}"
    if not -1 <= query < size:
        return f"query must be -1 or a position from 0 to {size - 1}, found {query}"
    if state["weights"] and len(state["weights"]) != 4 * size:
        return f"weights must have {4 * size} bytes for {size} tokens, found {len(state['weights'])}"
    last = query if query >= 0 else size - 1
    for name in ("parts", "suggested"):
        if later := [position for position, part in enumerate(state[name]) if part and position > last]:
            return f"{name} must be 0 after the query at {last}, found a part at {later}"
    return _wrong_numbers(np.frombuffer(state["weights"], "<f4"))
