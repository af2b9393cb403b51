"""Where heads look on one prompt, or on two side by side."""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from widgets import AttentionView
from workbench.views._base import NAMED, Drawing, ViewError, pick, view

MAP = ("layer", "head", "query_pos", "key_pos")


@view(
    requires=set(MAP),
    variables={"pattern"},
    about="Attention of every head on one prompt, or on two to compare, query by key.",
)
def attention_pattern(
    ds: xr.Dataset,
    layer: int | None = None,
    head: int | None = None,
    token: int = -1,
    *,
    other: xr.Dataset | None = None,
    sinks: Sequence[int] = (0,),
    causal: bool | None = None,
) -> Drawing:
    """An attention view whose maps are packed when they are shown.

    Args:
        ds: `pattern` [layer, head, query_pos, key_pos]; with `score` also the scores before the softmax. One more
            dimension of two labels, like checkpoint, makes the sides A and B.
        layer: which layer the grid shows; None is all.
        head: which head it shows; with `layer` this one head is large.
        token: the query selected at first (-1: the last).
        other: a second result, side B.
        sinks: key positions that can be masked.
        causal: whether no token sees later ones; None is what the result says of itself, or else True.

    Raises:
        ViewError: when there is no such head, or the sides do not have the same heads.
    """
    sides, names = _sides(ds, other)
    layers, heads = ([int(label) for label in sides[0][dim].values] for dim in ("layer", "head"))
    if any([int(label) for label in sides[-1][dim].values] != own for dim, own in (("layer", layers), ("head", heads))):
        raise ViewError("The two sides have different layers or heads; select the same ones first.")
    shown = _shown(sides[0], layer, head)
    prompts = [[str(text) for text in side["token"].values] for side in sides]
    chosen = token if 0 <= token < len(prompts[0]) else len(prompts[0]) - 1

    def source(side: int, layer: int, head: int, kind: str) -> np.ndarray:
        return sides[side][kind].sel(layer=layer, head=head).values

    traits = {
        "source": source,
        "tokens": prompts[0],
        "tokens_b": prompts[1] if len(sides) == 2 else [],
        "names": names,
        "layers": layers,
        "heads": heads,
        "has_scores": all("score" in side for side in sides),
        "shown": [] if len(shown) == 1 else shown,
        "selected": shown[0] if len(shown) == 1 else [],
        "token": chosen,
        "sinks": [key for key in sinks if key < max(map(len, prompts))],
        "causal": bool(ds.attrs.get("causal", True)) if causal is None else causal,
        "title": _title(ds),
    }
    return Drawing(AttentionView, traits | ({"compare": "beside"} if len(sides) == 2 else {}))


def _shown(side: xr.Dataset, layer: int | None, head: int | None) -> list[list[int]]:
    """The heads of a grid, [] for all."""
    part = pick(side, **{dim: label for dim, label in (("layer", layer), ("head", head)) if label is not None})
    if layer is None and head is None and side["pattern"][..., 0, 0].size > 1:
        return []
    layers, heads = (np.atleast_1d(part[dim]).tolist() for dim in ("layer", "head"))
    return [[int(row), int(column)] for row in layers for column in heads]


def _sides(ds: xr.Dataset, other: xr.Dataset | None) -> tuple[list[xr.Dataset], list[str]]:
    """One or two results with the dimensions of a map alone, and what tells two apart."""
    if other is not None:
        sides = [_ordered(each, {}) for each in (ds, other)]
        return sides, _differences(ds, other)
    dims = [str(dim) for dim in ds["pattern"].dims if dim not in MAP]
    if not dims:
        return [_ordered(ds, {})], []
    if len(dims) > 1 or ds.sizes[dims[0]] > 2:
        raise ViewError(f"This view draws one or two results; select among {', '.join(dims)} first.")
    (dim,) = dims
    if dim not in ds["token"].dims and str(ds.attrs.get("text", "")).startswith("["):
        raise ViewError("The two prompts differ, and only one is in this dataset; give the second result as other=.")
    labels = ds[dim].values
    kind = "" if dim in NAMED else f"{dim} "
    names = [f"{kind}{label}" for label in labels] if len(labels) == 2 else []
    return [_ordered(ds, {dim: label}) for label in labels], names


def _ordered(ds: xr.Dataset, labels: dict) -> xr.Dataset:
    kept = ds[[name for name in ("pattern", "score") if name in ds]].sel(labels)
    more = [str(dim) for dim in kept["pattern"].dims if dim not in MAP]
    if more:
        raise ViewError(f"This view compares two results of one {' and '.join(more)} each; select it first.")
    if kept.sizes["query_pos"] != kept.sizes["key_pos"]:
        raise ViewError(
            f"The map must be square, found {kept.sizes['query_pos']} queries, {kept.sizes['key_pos']} keys."
        )
    return kept.transpose(*MAP)


def _differences(ds: xr.Dataset, other: xr.Dataset) -> list[str]:
    """What the attributes of two results say of each that the other does not share."""
    for name in ("checkpoint", "model", "task", "prompt"):
        values = [ds.attrs.get(name), other.attrs.get(name)]
        if values[0] != values[1] and name == "checkpoint":
            return ["final weights" if value == -1 else f"step {value}" for value in values]
        if values[0] != values[1]:
            kind = "" if name in (*NAMED, "model") else f"{name} "
            return [f"{kind}{_words(value)}" for value in values]
    return []


def _title(ds: xr.Dataset) -> str:
    prompt, task, model = (_words(ds.attrs[name]) for name in ("prompt", "task", "model"))
    return f"prompt {prompt} of {task} in {model}"


def _words(value: object) -> str:
    """An attribute as text; those of joined results are JSON lists."""
    text = str(value)
    return " and ".join(map(str, json.loads(text))) if text.startswith("[") else text
