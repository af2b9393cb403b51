"""What the page asks for and what it gets: maps of the heads that are on screen, and of no others.

The page sets `_want` = {id, items}. An item is one map: `a` [side, layer, head]; `b` the same or None, for a difference
a - b; `scale`; `masked`, the key positions left out; `bins`, 0 for every pair or else the blocks along an edge; `size`,
the number of tokens; `key`, which comes back. `_parts` is the answer: the length of a JSON text (uint32,
little-endian), that text {id, parts}, and the bytes of its parts one after another.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from widgets.attention_view.packing import checked, checked_scores, pack_between, pack_roots, pool, visible, without

Source = Callable[[int, int, int, str], Any]
SCALES = ("probability", "log", "score")
LOG_FLOOR = -12.0  # of the natural logarithm: what is less likely than 6e-6 is drawn like it
MOST_ITEMS = 64
_BINS = (16, 1024)


class Owner(Protocol):
    """What a widget and a Panel component have in common."""

    source: Source | None
    tokens: list[str]
    tokens_b: list[str]
    layers: list[int]
    heads: list[int]
    has_scores: bool
    causal: bool
    _want: dict


def answer(owner: Owner) -> bytes:
    """The maps that `_want` asks for; what goes wrong with one is said in its place."""
    want = owner._want
    items = want.get("items", [])[:MOST_ITEMS]
    parts, bodies = [], []
    for item in items:
        try:
            part, body = _one(owner, item)
        except Exception as error:  # whatever a source raises belongs on the page, where somebody waits for the map
            part, body = {"error": f"{type(error).__name__}: {error}"[:500]}, b""
        parts.append({**part, "key": str(item.get("key", "")), "length": len(body)})
        bodies.append(body)
    return _message({"id": want.get("id", ""), "parts": parts}, bodies)


def forget(_: Owner) -> bytes:
    """Word that everything sent so far is out of date."""
    return _message({"reset": secrets.token_hex(4), "parts": []}, [])


def _message(head: dict, bodies: list[bytes]) -> bytes:
    text = json.dumps(head).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *bodies])


def _one(owner: Owner, item: dict) -> tuple[dict, bytes]:
    scale, masked, bins, size = _understood(owner, item)
    values = _values(owner, item["a"], size, scale, masked)
    signed = item["b"] is not None
    if signed:
        values = values - _values(owner, item["b"], size, scale, masked)
    if bins:
        values = pool(values, bins, signed)
    causal = owner.causal
    if scale == "probability" and not signed:
        return {"low": 0, "high": 1, "rooted": True}, pack_roots(values, causal)
    low, high = _range(values[visible(len(values), causal)], scale, signed)
    return {"low": low, "high": high, "rooted": False}, pack_between(values, low, high, causal)


def _understood(owner: Owner, item: dict) -> tuple[str, list[int], int, int]:
    """Scale, masked keys, bins and size of an item, once they are known to make sense."""
    scale, masked, bins, size = item["scale"], item["masked"], int(item["bins"]), int(item["size"])
    if scale not in SCALES or (scale == "score" and not owner.has_scores):
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, and score needs scores; found {scale!r}")
    if not all(isinstance(key, int) and key >= 0 for key in masked):
        raise ValueError(f"masked must be key positions, found {masked}")
    if bins and not (_BINS[0] <= bins <= _BINS[1] and bins < size):
        raise ValueError(f"bins must be 0, or from {_BINS[0]} to {_BINS[1]} and less than {size}, found {bins}")
    return scale, [key for key in masked if key < size], bins, size


def _values(owner: Owner, place: list[int], size: int, scale: str, masked: list[int]) -> np.ndarray:
    """One head's values [query, key] on a scale, NaN where there is none."""
    side, layer, head = place
    tokens = (owner.tokens, owner.tokens_b)[side] if side in (0, 1) else []
    if owner.source is None or layer not in owner.layers or head not in owner.heads or not tokens:
        raise ValueError(f"there is no head {layer}, {head} on side {side}")
    if len(tokens) != size:
        raise ValueError(f"side {side} has {len(tokens)} tokens, asked for {size}")
    raw = np.asarray(owner.source(side, layer, head, "score" if scale == "score" else "pattern"))
    if raw.shape != (size, size):
        raise ValueError(f"the source must give a matrix of the shape ({size}, {size}), found {raw.shape}")
    if scale == "score":
        values = checked_scores(raw, owner.causal)
    else:
        values = _weights(checked(raw, owner.causal), scale, masked)
        values[~visible(size, owner.causal)] = np.nan
    values[:, masked] = np.nan
    return values


def _weights(pattern: np.ndarray, scale: str, masked: list[int]) -> np.ndarray:
    rest = without(pattern, masked) if masked else pattern
    if scale == "probability":
        return rest
    logs = np.full(rest.shape, LOG_FLOOR)
    np.log(rest, out=logs, where=rest > 0)
    logs[rest.sum(1) == 0] = np.nan  # nothing is left without the sink
    return logs.clip(LOG_FLOOR, 0)


def _range(values: np.ndarray, scale: str, signed: bool) -> tuple[float, float]:
    """The values that the bytes 0 and 254 stand for; of a difference they lie around 0."""
    if scale == "log" and not signed:
        return LOG_FLOOR, 0.0
    known = values[~np.isnan(values)]
    if not known.size:
        return 0.0, 0.0
    limit = float(np.abs(known).max())
    return (-limit, limit) if signed else (float(known.min()), float(known.max()))
