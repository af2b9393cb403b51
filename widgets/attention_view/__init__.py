"""The attention of one head on one prompt: a query x key matrix and the prompt shaded by one query."""

from pathlib import Path

import anywidget
import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

_HERE = Path(__file__).parent
# Softmax in half precision may end a little outside [0, 1] or leave a trace above the diagonal.
_TOLERANCE = 1e-3


def pack(pattern: ArrayLike) -> bytes:
    """One byte a pair of the lower triangle, row by row: round(255 * sqrt(p)) of the attention [query, key].

    The root keeps small probabilities apart: 0.0001 still differs from 0, and no value is off by more than 0.004.

    Raises:
        ValueError: `pattern` is not square, not finite, outside [0, 1], or attends to later tokens.
    """
    matrix = np.asarray(pattern, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"pattern must be a square matrix [query, key], found shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"pattern must be finite, found {int((~np.isfinite(matrix)).sum())} values that are not")
    if matrix.size and (matrix.min() < -_TOLERANCE or matrix.max() > 1 + _TOLERANCE):
        raise ValueError(f"pattern must lie in [0, 1], found {matrix.min():.4g} to {matrix.max():.4g}")
    later = np.triu(matrix, 1)
    if (later > _TOLERANCE).any():
        raise ValueError(f"pattern must be causal, found attention {later.max():.4g} to a later token")
    lower = matrix[np.tril_indices(len(matrix))].clip(0, 1)
    return np.round(255 * np.sqrt(lower)).astype(np.uint8).tobytes()


def unpack(packed: bytes, size: int) -> np.ndarray:
    """The attention matrix [query, key] of `size` tokens that `pack` turned into bytes, zero above the diagonal.

    Raises:
        ValueError: There are more or fewer bytes than `size` tokens have pairs.
    """
    expected = _pairs(size)
    if len(packed) != expected:
        raise ValueError(f"{size} tokens have {expected} pairs and as many bytes, found {len(packed)}")
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size)] = (np.frombuffer(packed, dtype=np.uint8) / 255) ** 2
    return matrix


def _pairs(size: int) -> int:
    return size * (size + 1) // 2


class AttentionView(anywidget.AnyWidget):
    """Attention of one head on one prompt; `pack` makes the bytes of `pattern`.

    In the page a row or a token selects the query, the arrow keys move it and Escape clears it. `pattern` and `tokens`
    are set together, at construction or with `show`.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need the files.
    ESM = _esm = _HERE / "widget.js"
    CSS = _css = _HERE / "widget.css"

    # A browser's binary message arrives as a memoryview, which the trait itself refuses.
    pattern = T.Bytes(b"", help="uint8, lower triangle row by row, round(255 * sqrt(p)). Default: empty.").tag(
        sync=True, from_json=lambda value, _: bytes(value or b"")
    )
    tokens = T.List(T.Unicode(), help="list of str: the prompt, one string a token. Default: [].").tag(sync=True)
    title = T.Unicode("", help="str: which head and which prompt. Default: ''.").tag(sync=True)
    token = T.Int(-1, help="int: selected query position, -1 for none. Default: -1.").tag(sync=True)
    sink = T.Int(-1, help="int: key position to point out as a sink, -1 for none. Default: -1.").tag(sync=True)

    def show(self, **traits) -> None:
        """Set several traits as one change, checked and sent together."""
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in traits.items():
                if not self.has_trait(name):
                    raise TypeError(f"AttentionView has no trait {name!r}; it has pattern, tokens, title, token, sink")
                setattr(self, name, value)

    @T.validate("pattern", "tokens", "token", "sink")
    def _belongs_together(self, proposal: dict) -> object:
        names = ("pattern", "tokens", "token", "sink")
        state = {name: getattr(self, name) for name in names} | {proposal["trait"].name: proposal["value"]}
        size = len(state["tokens"])
        if len(state["pattern"]) != _pairs(size):
            raise T.TraitError(
                f"pattern must have {_pairs(size)} bytes for {size} tokens, found {len(state['pattern'])}; "
                "set pattern and tokens in one call of show()"
            )
        for name in ("token", "sink"):
            if not -1 <= state[name] < size:
                raise T.TraitError(f"{name} must be -1 or a position from 0 to {size - 1}, found {state[name]}")
        return proposal["value"]
