"""Attention as bytes: one a pair of tokens, the lower triangle row by row, or the whole square where all is visible."""

import numpy as np
from numpy.typing import ArrayLike

# Softmax in half precision may end a little outside [0, 1] or leave a trace above the diagonal.
_TOLERANCE = 1e-3
NOTHING = 255  # the byte of a pair without a value, where bytes count evenly from a lowest to a highest value


def pairs(size: int, causal: bool = True) -> int:
    """How many pairs of `size` tokens there are to draw."""
    return size * (size + 1) // 2 if causal else size * size


def visible(size: int, causal: bool = True) -> np.ndarray:
    """Which pairs [query, key] there are to draw."""
    return np.tri(size, dtype=bool) if causal else np.ones((size, size), dtype=bool)


def checked(pattern: ArrayLike, causal: bool = True) -> np.ndarray:
    """The attention probabilities [query, key], zero where nothing can be seen.

    Raises:
        ValueError: `pattern` is not square, not finite, outside [0, 1], or causal and attends to later tokens.
    """
    matrix = _square(pattern, "pattern")
    low, high = (matrix.min(), matrix.max()) if matrix.size else (0, 0)
    if not np.isfinite([low, high]).all():
        raise ValueError(f"pattern must be finite, found {int((~np.isfinite(matrix)).sum())} values that are not")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ValueError(f"pattern must lie in [0, 1], found {low:.4g} to {high:.4g}")
    kept = matrix.clip(0, 1)
    if causal:
        later = ~visible(len(matrix))
        most = kept.max(initial=0, where=later)
        if most > _TOLERANCE:
            raise ValueError(
                f"pattern must be causal, found attention {most:.4g} to a later token; or set causal=False"
            )
        kept[later] = 0
    return kept


def checked_scores(scores: ArrayLike, causal: bool = True) -> np.ndarray:
    """The scores before the softmax [query, key], NaN where there is none: a pair hidden from the query, or -inf.

    Raises:
        ValueError: `scores` is not square, or holds NaN or +inf for a visible pair.
    """
    matrix = _square(scores, "scores")
    seen = visible(len(matrix), causal)
    wrong = int((seen & (np.isnan(matrix) | np.isposinf(matrix))).sum())
    if wrong:
        raise ValueError(f"scores must be finite or -inf, found {wrong} that are not")
    return np.where(seen & np.isfinite(matrix), matrix, np.nan)


def _square(values: ArrayLike, name: str) -> np.ndarray:
    matrix = np.asarray(values)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be a square matrix [query, key], found shape {matrix.shape}")
    return matrix.astype(np.float64 if matrix.dtype == np.float64 else np.float32)


def pack(pattern: ArrayLike, causal: bool = True) -> bytes:
    """Probabilities as round(255 * sqrt(p)), one byte a pair.

    The root keeps small probabilities apart: 0.0001 still differs from 0, and no value is off by more than 0.004.

    Raises:
        ValueError: `pattern` is no attention; see `checked`.
    """
    return pack_roots(checked(pattern, causal), causal)


def pack_roots(values: np.ndarray, causal: bool = True) -> bytes:
    """The bytes of `pack` for what is known to be probabilities; NaN is 0."""
    inside = np.nan_to_num(values[visible(len(values), causal)], copy=False)
    return np.round(255 * np.sqrt(inside)).astype(np.uint8).tobytes()


def unpack(packed: bytes, size: int, causal: bool = True) -> np.ndarray:
    """The attention matrix [query, key] of `size` tokens that `pack` turned into bytes, zero where nothing is visible.

    Raises:
        ValueError: There are more or fewer bytes than `size` tokens have pairs.
    """
    expected = pairs(size, causal)
    if len(packed) != expected:
        raise ValueError(f"{size} tokens have {expected} pairs and as many bytes, found {len(packed)}")
    matrix = np.zeros((size, size))
    matrix[visible(size, causal)] = (np.frombuffer(packed, dtype=np.uint8) / 255) ** 2
    return matrix


def pack_between(values: np.ndarray, low: float, high: float, causal: bool = True) -> bytes:
    """Values as round(254 * (value - low) / (high - low)), one byte a pair; NaN is 255."""
    inside = values[visible(len(values), causal)]
    scaled = np.round((inside.clip(low, high) - low) * (254 / ((high - low) or 1)))
    return np.nan_to_num(scaled, copy=False, nan=NOTHING).astype(np.uint8).tobytes()


def without(pattern: np.ndarray, sinks: list[int]) -> np.ndarray:
    """The attention that is left without the keys `sinks`, every row to the sum 1; rows with nothing left are 0."""
    rest = pattern.copy()
    rest[:, sinks] = 0
    total = rest.sum(1, keepdims=True)
    return np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)


def pool(values: np.ndarray, bins: int, signed: bool = False) -> np.ndarray:
    """The largest value of each of `bins` x `bins` blocks, or if `signed` the one farthest from 0; NaN counts as none.

    Position i belongs to block floor(i * bins / size), so that the blocks of a triangle are a triangle.
    """
    starts = -(-np.arange(bins) * len(values) // bins)
    largest = np.fmax.reduceat(np.fmax.reduceat(values, starts, axis=0), starts, axis=1)
    if not signed:
        return largest
    least = np.fmin.reduceat(np.fmin.reduceat(values, starts, axis=0), starts, axis=1)
    return np.where(largest > -least, largest, least)
