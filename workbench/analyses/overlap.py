"""Reuse: which heads the circuits of several tasks share, against what chance would share."""

import json
import time

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError
from workbench.schema import check, provenance

FRACTIONS = (0.01, 0.02, 0.05, 0.10)
FINEST = 64  # circuit sizes on the curve
SAME = ("model", "model_hash", "checkpoint", "dtype", "folding", "bos", "trust")
COMPARED = ("model_hash", "dtype", "folding", "bos")


def overlap(*results: xr.Dataset, top: float = 0.125, draws: int = 2000, seed: int = 0) -> xr.Dataset:
    """How far the heads that matter for several tasks are the same ones.

    Heads are ranked by |effect|. At each circuit size k: `iou` is the number of heads in all the top-k sets over the
    number in any, `weighted` the sum over heads of the least of the tasks' |effect| over the sum of the greatest, each
    task's |effect| scaled to sum 1 within its top k. Two nulls permute which head has which effect, `draws` times:
    among all heads, and within each layer (which keeps the depth profile). Under each null: mean, 95 % point, and
    p = share of draws at or above what was seen, (1 + count) / (1 + draws).

    Args:
        results: two or more `head_patching` results on one model, without positions.
        top: the circuit's size as a fraction of all heads, for `shared` and the marks of a view.
        draws: permutations in each null.
        seed: of the permutations.

    Returns:
        Curves over `size` (k heads; its `fraction` of all beside it), `effect` [task, layer, head], `member`
        [task, layer, head] and `shared` [layer, head] at the chosen size (attribute `chosen`).

    Raises:
        AnalysisError: for fewer than two results, results of different models, `top` outside (0, 1], or no draws.
    """
    started = time.perf_counter()
    if draws < 1:
        raise AnalysisError(f"draws is {draws}; it must be 1 or more.")
    effects = _stack(results, top)
    count = effects[0].size
    sizes = _sizes(count, top)
    chosen = _heads(count, top)
    flat = np.abs(effects).reshape(len(effects), count)
    seen = _curves(flat[:, None], sizes)
    rng = np.random.default_rng(seed)
    layers = np.repeat(np.arange(effects.shape[1]), effects.shape[2])
    nulls = {
        "null": _curves(_permuted(flat, np.zeros(count), draws, rng), sizes),
        "within": _curves(_permuted(flat, layers, draws, rng), sizes),
    }
    member = _top(flat[:, None], chosen)[:, 0].reshape(effects.shape)
    ds = _dataset(results, effects, member, sizes, seen, nulls)
    params = {"top": top, "draws": draws, "seed": seed}
    ds.attrs = _attrs(results, params) | {"chosen": chosen, "seconds": round(time.perf_counter() - started, 3)}
    return check(ds)


def _stack(results: tuple[xr.Dataset, ...], top: float) -> np.ndarray:
    """Effects [task, layer, head] of results that can be compared."""
    if not 0 < top <= 1:
        raise AnalysisError(f"top is {top}; it is a fraction of all heads, above 0 and at most 1.")
    if len(results) < 2:
        raise AnalysisError("An overlap needs two or more head results; give one for each task.")
    for ds in results:
        if "effect" not in ds or ds["effect"].dims != ("layer", "head"):
            raise AnalysisError("An overlap needs head_patching results over all positions (layer x head).")
        if _made_with(ds) != _made_with(results[0]):
            raise AnalysisError(
                "These results come from different models, or differ in dtype, folding or BOS, or one run was stopped "
                "early; trace every task in the same way."
            )
    titles = [ds.attrs["task"] for ds in results]
    if len(set(titles)) < len(titles):
        raise AnalysisError(f"The same task and corruption was given twice ({titles[0]}); compare different tasks.")
    return np.stack([ds["effect"].values for ds in results])


def _made_with(ds: xr.Dataset) -> tuple:
    return (ds["effect"].shape, *(ds.attrs.get(name) for name in COMPARED))


def _heads(count: int, fraction: float) -> int:
    """Number of heads in a fraction of them: at least one, rounded to the nearest."""
    return max(1, round(fraction * count))


def _sizes(count: int, top: float) -> np.ndarray:
    named = [_heads(count, fraction) for fraction in (*FRACTIONS, top)]
    return np.unique([*np.linspace(1, count, min(count, FINEST)).round().astype(int), *named])


def _top(flat: np.ndarray, size: int) -> np.ndarray:
    """True for the `size` largest along the last axis; ties go to the earlier head."""
    order = np.argsort(-flat, axis=-1, kind="stable")[..., :size]
    found = np.zeros(flat.shape, bool)
    np.put_along_axis(found, order, True, axis=-1)
    return found


def _curves(flat: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Iou and weighted overlap [draw, size] of magnitudes [task, draw, head]."""
    iou, weighted = [], []
    for size in sizes:
        member = _top(flat, int(size))
        iou.append(member.all(0).sum(-1) / member.any(0).sum(-1))
        mass = np.where(member, flat, 0)
        mass = mass / np.maximum(mass.sum(-1, keepdims=True), np.finfo(float).tiny)
        weighted.append(mass.min(0).sum(-1) / mass.max(0).sum(-1))
    return {"iou": np.stack(iou, -1), "weighted": np.stack(weighted, -1)}


def _permuted(flat: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Magnitudes [task, draw, head] with heads shuffled inside their group; the first task stays as it is."""
    fixed = np.broadcast_to(flat[0], (draws, flat.shape[1]))
    places = np.argsort(groups, kind="stable")
    shuffled = []
    for row in flat[1:]:
        order = np.lexsort((rng.random((draws, len(row))), np.broadcast_to(groups, (draws, len(row)))))
        drawn = np.empty((draws, len(row)))
        drawn[:, places] = row[order]
        shuffled.append(drawn)
    return np.stack([fixed, *shuffled])


def _dataset(results, effects, member, sizes, seen, nulls) -> xr.Dataset:
    names = {"iou": "intersection over union", "weighted": "weighted overlap"}
    variables = {
        "effect": (("task", "layer", "head"), effects, results[0]["effect"].attrs),
        "member": (("task", "layer", "head"), member.astype(np.int8), {"long_name": "in the task's circuit"}),
        "shared": (("layer", "head"), member.all(0).astype(np.int8), {"long_name": "in every task's circuit"}),
    }
    for end in ("low", "high"):
        bound = np.stack([ds[f"effect_{end}"].values for ds in results])
        variables[f"effect_{end}"] = (("task", "layer", "head"), bound, results[0]["effect"].attrs)
    for measure, long_name in names.items():
        observed = seen[measure][0]
        variables[measure] = ("size", observed, {"long_name": long_name, "units": "share"})
        for null, curves in nulls.items():
            drawn, say = curves[measure], {"long_name": f"{long_name}, {null} permutation", "units": "share"}
            variables[f"{measure}_{null}"] = ("size", drawn.mean(0), say)
            variables[f"{measure}_{null}_high"] = ("size", np.quantile(drawn, 0.95, axis=0), say)
            count = (drawn >= observed - 1e-12).sum(0)
            variables[f"{measure}_{null}_p"] = ("size", (1 + count) / (1 + len(drawn)), say | {"units": "p"})
    coords = {
        "task": [ds.attrs["task"] for ds in results],
        "layer": results[0]["layer"].values,
        "head": results[0]["head"].values,
        "size": sizes,
        "fraction": ("size", sizes / effects[0].size),
    }
    return xr.Dataset(variables, coords=coords)


def _attrs(results: tuple[xr.Dataset, ...], params: dict) -> dict:
    tasks = [ds.attrs["task"] for ds in results]
    known = {
        "analysis": "overlap",
        "params": params,
        "primary": "effect",
        "sign": "0 = no head in common, 1 = the same heads; above the null's 95 % point = more than chance shares",
        "seed": params["seed"],
        "task": json.dumps(tasks),
        "task_hash": json.dumps([ds.attrs["task_hash"] for ds in results]),
        "title": f"heads shared by {' and '.join(tasks)} in {results[0].attrs['model']}",
        "n": min(int(ds.attrs["n"]) for ds in results),
    }
    return provenance(**known, **{name: results[0].attrs[name] for name in SAME if name in results[0].attrs})
