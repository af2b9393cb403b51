"""Attention of many heads on one prompt, or on two: a grid of small maps, each of which can be made large."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import traitlets as T

from widgets._base import Widget, front_end, packed, style_sheet
from widgets.attention_view.answers import SCALES, answer, forget
from widgets.attention_view.packing import pack, unpack

__all__ = ["AttentionView", "pack", "traits_of", "unpack"]

_HERE = Path(__file__).parent
# One module for the page, which cannot import from its own folder.
_FILES = (
    *("base.js", "data.js", "parts.js", "words.js", "save.js", "layout.js", "tools.js", "input.js", "viewer.js"),
    "widget.js",
)
ROLES = ("query", "key")
COMPARE = ("a", "b", "beside", "difference")
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = (
    *("tokens", "tokens_b", "layers", "heads", "shown", "selected", "versus", "names", "has_scores"),
    *("token", "role", "scale", "sinks", "compare"),
)


def traits_of(
    pattern: Any, tokens: list[str], *, scores: Any = None, other: Any = None, other_scores: Any = None, **more: Any
) -> dict:
    """The traits of an `AttentionView` of arrays, which are packed head by head when the page asks for them.

    Args:
        pattern: Attention probabilities [layer, head, query, key], [head, query, key] or [query, key]; or an
            `xarray.DataArray` with the dimensions layer, head, query_pos and key_pos, whose labels are kept.
        tokens: The prompt, one text a token.
        scores: The same before the softmax, if there are any.
        other: The attention of side B, of the same heads; its tokens are `tokens_b` (default: `tokens`).
        other_scores: The scores of side B.
        more: Further traits. A single head is shown large.

    Raises:
        ValueError: The arrays do not have the same heads, or only one of two sides has scores.
    """
    if other is not None and (scores is None) != (other_scores is None):
        raise ValueError("give the scores of both sides or of neither")
    sides = [_named(pattern), _named(other)] if other is not None else [_named(pattern)]
    graded = [_named(values) for values in (scores, other_scores) if values is not None]
    (_, layers, heads), *rest = [*sides, *graded]
    for _, other_layers, other_heads in rest:
        if (other_layers, other_heads) != (layers, heads):
            raise ValueError(f"all arrays must have the layers {layers} and the heads {heads}")

    def source(side: int, layer: int, head: int, kind: str) -> np.ndarray:
        values = (graded if kind == "score" else sides)[side][0]
        return values[layers.index(layer), heads.index(head)]

    made = {"source": source, "tokens": list(tokens), "layers": layers, "heads": heads, "has_scores": bool(graded)}
    if other is not None:
        made["tokens_b"] = list(tokens)
    if len(layers) * len(heads) == 1:
        made["selected"] = [layers[0], heads[0]]
    return made | more


def _named(values: Any) -> tuple[Any, list[int], list[int]]:
    """An array [layer, head, query, key] with the numbers of its layers and heads."""
    if hasattr(values, "transpose") and {"layer", "head"} <= set(getattr(values, "dims", ())):
        ordered = values.transpose("layer", "head", "query_pos", "key_pos")
        layers, heads = ([int(label) for label in ordered[dim].values] for dim in ("layer", "head"))
        return ordered.values, layers, heads
    array = np.asarray(values)
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"an array must have the axes [layer, head, query, key], found shape {array.shape}")
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    return array, list(range(array.shape[0])), list(range(array.shape[1]))


def _heads(default: list, help: str) -> T.List:
    return T.List(T.Int(min=0), default, help=help).tag(sync=True)


class AttentionView(Widget):
    """Attention of many heads; `source` gives the map of a head when the page comes to show it.

    In the page a click or Enter makes a map large and Escape leads back to the grid. A row, a column or a token of the
    prompt selects `token`; the arrow keys move it. Traits that depend on each other are set together, at construction
    or with `show`.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, *_FILES)
    CSS = _css = style_sheet(_HERE)
    # When the first changes, the second is set to what the function makes of the widget, or of a host's own object.
    REPLIES: ClassVar[dict] = {"_want": ("_parts", answer), "source": ("_parts", forget), "causal": ("_parts", forget)}

    source = T.Callable(
        None,
        allow_none=True,
        help="callable (side 0 or 1, layer, head, 'pattern' or 'score') -> array [query, key]. Default: None.",
    ).tag(local=True)
    tokens = T.List(T.Unicode(), help="list of str: the prompt of side A. Default: [].").tag(sync=True)
    tokens_b = T.List(T.Unicode(), help="list of str: the prompt of side B, [] for no side B. Default: [].").tag(
        sync=True
    )
    layers = _heads([], "list of int: the layers there are. Default: [].")
    heads = _heads([], "list of int: the heads there are in each layer. Default: [].")
    shown = T.List(
        T.List(T.Int(min=0), minlen=2, maxlen=2), help="list of [layer, head]: the grid; [] is all. Default: []."
    ).tag(sync=True)
    selected = _heads([], "list of int: [layer, head] that is shown large, [] for the grid. Default: [].")
    token = T.Int(-1, min=-1, help="int: selected position, -1 for none. Default: -1.").tag(sync=True)
    role = T.Unicode("query", help="str: what the selected token is, 'query' or 'key'. Default: 'query'.").tag(
        sync=True
    )
    scale = T.Unicode(
        "probability", help="str: 'probability', 'log' (natural) or 'score'. Default: 'probability'."
    ).tag(sync=True)
    has_scores = T.Bool(False, help="bool: whether source gives 'score'. Default: False.").tag(sync=True)
    sinks = _heads([0], "list of int: key positions that can be masked. Default: [0].")
    masked = T.Bool(False, help="bool: leave the sinks out, every row to the sum 1. Default: False.").tag(sync=True)
    compare = T.Unicode("a", help="str: 'a', 'b', 'beside' or 'difference' (A - B). Default: 'a'.").tag(sync=True)
    versus = _heads([], "list of int: [layer, head] of B, [] for the same head as A. Default: [].")
    names = T.List(T.Unicode(), help="list of str: names of A and B, [] for A and B. Default: [].").tag(sync=True)
    causal = T.Bool(True, help="bool: whether no token sees later ones. Default: True.").tag(sync=True)
    title = T.Unicode("", help="str: what all this is on, like a prompt of a task. Default: ''.").tag(sync=True)
    _want = T.Dict(help="What the page asks for; see answers.py.").tag(sync=True)
    _parts = packed("The answer; see answers.py.")

    @T.observe(*REPLIES)
    def _reply(self, change: dict) -> None:
        target, make = self.REPLIES[change["name"]]
        setattr(self, target, make(self))

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _first_problem(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _first_problem(state: dict) -> str | None:
    return _wrong_choice(state) or _wrong_heads(state) or _wrong_positions(state) or _wrong_sides(state)


def _wrong_choice(state: dict) -> str | None:
    for name, known in (("scale", SCALES), ("role", ROLES), ("compare", COMPARE)):
        if state[name] not in known:
            return f"{name} must be one of {', '.join(known)}, found {state[name]!r}"
    if state["scale"] == "score" and not state["has_scores"]:
        return "scale is 'score', but has_scores is False"
    return None


def _wrong_heads(state: dict) -> str | None:
    layers, heads = state["layers"], state["heads"]
    for name in ("layers", "heads"):
        if sorted(set(state[name])) != state[name]:
            return f"{name} must be increasing numbers, found {state[name]}"
    chosen = [*(("shown", pair) for pair in state["shown"]), ("selected", state["selected"])]
    for name, pair in [*chosen, ("versus", state["versus"])]:
        if pair and not (len(pair) == 2 and pair[0] in layers and pair[1] in heads):
            return f"{name} must be [layer, head] of the layers {layers} and the heads {heads}, found {pair}"
    return None


def _wrong_positions(state: dict) -> str | None:
    size = max(len(state["tokens"]), len(state["tokens_b"]))
    if state["token"] >= max(size, 0) and state["token"] != -1:
        return f"token must be -1 or a position from 0 to {size - 1}, found {state['token']}"
    beyond = [key for key in state["sinks"] if key >= size]
    if size and beyond:
        return f"sinks must be positions from 0 to {size - 1}, found {beyond}"
    return None


def _wrong_sides(state: dict) -> str | None:
    count, other = len(state["tokens"]), len(state["tokens_b"])
    if len(state["names"]) not in (0, 2):
        return f"names must be those of A and B, found {len(state['names'])}"
    if state["compare"] != "a" and not other and not state["versus"]:
        return f"compare is {state['compare']!r}, which needs tokens_b or versus"
    if state["compare"] == "difference" and other and count != other:
        return f"a difference needs as many tokens in tokens as in tokens_b, found {count} and {other}"
    return None
