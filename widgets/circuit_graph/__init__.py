"""The circuit of a decoder: layers upwards, heads across, and signed edges from what writes to what reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet

_HERE = Path(__file__).parent
COLUMNS = ("writer_layer", "writer_index", "reader_layer", "reader_index", "reader_kind")
KINDS = ("q", "k", "v", "mlp", "logits")
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = ("shape", "kv_heads", "edges", "scores", "selected")


def pack(edges: ArrayLike, scores: ArrayLike, shape: Sequence[int], kv_heads: int = 0) -> dict:
    """The traits `edges`, `scores`, `shape` and `kv_heads` of a table of edges, the largest |score| first.

    Args:
        edges: Whole numbers [edge, 5], the columns `COLUMNS`. `writer_layer` -1 is the input, whose `writer_index` is 0
            or -1; otherwise `writer_index` is a head, or -1 for the layer's MLP. `reader_kind` counts `KINDS`; for k
            and v `reader_index` is a key-value head. What does not apply is -1: the index of an MLP, both of logits.
        scores: One finite number an edge.
        shape: Number of layers and of heads a layer.
        kv_heads: Number of key-value heads a layer; 0 for as many as heads.

    Raises:
        ValueError: The arrays do not fit each other or the shape, a score is not finite, or an edge leads to a reader
            that does not come after its writer.
    """
    sizes = [int(size) for size in shape]
    if problem := _wrong_shape(sizes, kv_heads):
        raise ValueError(problem)
    table, numbers = _table(edges), _numbers(scores)
    if numbers.shape != table.shape[:1]:
        raise ValueError(f"scores must have one number an edge, shape {table.shape[:1]}, found {numbers.shape}")
    if problem := _wrong_edges(table, sizes, kv_heads) or _wrong_scores(numbers):
        raise ValueError(problem)
    order = np.argsort(-np.abs(numbers), kind="stable")
    packed = {"edges": table[order].astype("<i4").tobytes(), "scores": numbers[order].tobytes()}
    return packed | {"shape": sizes, "kv_heads": int(kv_heads)}


def _table(edges: ArrayLike) -> np.ndarray:
    table = np.asarray(edges)
    if table.size == 0:
        return np.zeros((0, len(COLUMNS)), dtype=np.int64)
    if table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"edges must have the axes [edge, {len(COLUMNS)}] ({', '.join(COLUMNS)}): {table.shape}")
    if table.dtype.kind not in "iu" and not (np.isfinite(table).all() and (table == np.round(table)).all()):
        raise ValueError("edges must be whole numbers")
    return table.astype(np.int64)


def _numbers(scores: ArrayLike) -> np.ndarray:
    # What is too large for float32 becomes infinite, and is then refused as such.
    with np.errstate(over="ignore"):
        return np.asarray(scores).astype("<f4")


class CircuitGraph(Widget):
    """A circuit: nodes are the input, heads, MLPs and logits, edges lead from a writer up to what reads it.

    `pack` turns arrays into the traits. Traits that depend on each other are set together, at construction or with
    `show`. In the page a click, Enter or Space selects a node, the arrow keys move, Escape clears, and a slider says
    how many of the strongest edges are shown.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, "widget.js")
    CSS = _css = style_sheet(_HERE)

    shape = T.List(T.Int(min=0), [0, 0], 2, 2, help="list of int: number of layers, heads. Default: [0, 0].").tag(
        sync=True
    )
    kv_heads = T.Int(0, min=0, help="int: key-value heads a layer; 0 is one for each head. Default: 0.").tag(sync=True)
    edges = packed(
        "int32, little-endian, C order [edge, 5]: writer_layer (-1 input), writer_index (head, -1 MLP), reader_layer, "
        "reader_index (key-value head for k and v, -1 for MLP and logits), reader_kind (0 q, 1 k, 2 v, 3 MLP, "
        "4 logits). Default: empty."
    )
    scores = packed("float32, little-endian [edge]: finite, the largest |score| first. Default: empty.")
    quantity = T.Unicode("", help="str: what the scores are, for the legend. Default: ''.").tag(sync=True)
    limit = T.Int(0, min=0, help="int: how many of the strongest edges to show; 0 shows all. Default: 0.").tag(
        sync=True
    )
    selected = T.List(
        T.Int(),
        help="list of int: [] or [layer, head]; [layer, -1] is an MLP, [-1, 0] the input, [layers, 0] the logits. "
        "Default: [].",
    ).tag(sync=True)
    show_slider = T.Bool(True, help="bool: whether the page has the slider for limit. Default: True.").tag(sync=True)

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _first_problem(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _first_problem(state: dict) -> str | None:
    shape, kv_heads = state["shape"], state["kv_heads"]
    if problem := _wrong_shape(shape, kv_heads) or _wrong_selected(state["selected"], shape):
        return problem
    count, rest = divmod(len(state["edges"]), 4 * len(COLUMNS))
    if rest or len(state["scores"]) != 4 * count:
        return f"an edge has 20 bytes of edges and 4 of scores, found {len(state['edges'])} and {len(state['scores'])}"
    scores = np.frombuffer(state["scores"], "<f4")
    table = np.frombuffer(state["edges"], "<i4").reshape(count, len(COLUMNS))
    if problem := _wrong_edges(table, shape, kv_heads) or _wrong_scores(scores):
        return problem
    return None if (np.diff(np.abs(scores)) <= 0).all() else "scores must have the largest |score| first; pack() sorts"


def _wrong_shape(shape: list[int], kv_heads: int) -> str | None:
    if len(shape) != 2 or min(shape) < 0:
        return f"shape must be [layers, heads], found {shape}"
    if kv_heads < 0 or (kv_heads and shape[1] % kv_heads):
        return f"kv_heads must be 0 or divide the {shape[1]} heads, found {kv_heads}"
    return None


def _wrong_scores(scores: np.ndarray) -> str | None:
    wrong = int((~np.isfinite(scores)).sum())
    return f"scores must be finite, found {wrong} that are not" if wrong else None


def _wrong_edges(table: np.ndarray, shape: list[int], kv_heads: int) -> str | None:
    """What is wrong with the first edge that breaks the first broken rule."""
    layers, heads = shape
    writer, source, reader, target, kind = table.T
    into_head, into_logits = kind < KINDS.index("mlp"), kind == KINDS.index("logits")
    readers = np.where(kind == 0, heads, kv_heads or heads)
    # In one layer only the heads come before the MLP.
    same = (reader == writer) & (source >= 0) & (kind == KINDS.index("mlp"))
    kinds = ", ".join(f"{number} {name}" for number, name in enumerate(KINDS))
    rules = {
        f"reader_kind must be one of {kinds}": (kind >= 0) & (kind < len(KINDS)),
        f"writer_layer must be -1 for the input or from 0 to {layers - 1}": (writer >= -1) & (writer < layers),
        f"writer_index must be a head from 0 to {heads - 1}, or -1 for an MLP (input: 0 or -1)": (source >= -1)
        & (source < np.where(writer < 0, 1, heads)),
        f"reader_layer must be from 0 to {layers - 1}, or -1 for logits": np.where(
            into_logits, reader == -1, (reader >= 0) & (reader < layers)
        ),
        "reader_index must be a head (k, v: a key-value head), or -1 for MLP and logits": np.where(
            into_head, (target >= 0) & (target < readers), target == -1
        ),
        "a reader must come after its writer": into_logits | (reader > writer) | same,
    }
    for rule, holds in rules.items():
        if not holds.all():
            edge = int(np.argmin(holds))
            return f"{rule}, found edge {edge}: {table[edge].tolist()}"
    return None


def _wrong_selected(selected: list[int], shape: list[int]) -> str | None:
    layers, heads = shape
    if not selected or selected in ([-1, 0], [layers, 0]):
        return None
    if len(selected) == 2 and 0 <= selected[0] < layers and -1 <= selected[1] < heads:
        return None
    return (
        f"selected must be [], [layer, head] of {layers} layers and {heads} heads, [layer, -1] for an MLP, [-1, 0] for "
        f"the input or [{layers}, 0] for the logits, found {selected}"
    )
