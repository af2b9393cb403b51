"""Reuse: which heads or edges the circuits of several tasks share, against what chance would share."""

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.analyses._base import AnalysisError, at_least_one
from workbench.models.graph import Graph
from workbench.models.heads import head_name
from workbench.schema import check, provenance

FRACTIONS = (0.01, 0.02, 0.05, 0.10)
FINEST = 64  # circuit sizes on the curve
SPLITS = 20  # random halves of the prompts, for the ceiling
DRAWN = 2e7  # numbers shuffled in a null, at most; fewer draws for more edges
SAME = ("model", "model_hash", "checkpoint", "dtype", "folding", "bos", "trust")
COMPARED = ("analysis", "model_hash", "dtype", "folding", "bos")


@dataclass(frozen=True)
class Scored:
    """What is ranked: |effect| [task, item], the group an item is shuffled within, and halves [2, split, item]."""

    dims: tuple[str, str]
    variable: str
    shape: tuple[int, int]
    items: np.ndarray
    magnitude: np.ndarray
    groups: np.ndarray
    halves: np.ndarray | None

    def whole(self, values: np.ndarray) -> np.ndarray:
        """Values [..., item] in the shape of the variable, 0 where there is no item."""
        full = np.zeros((*values.shape[:-1], self.shape[0] * self.shape[1]), values.dtype)
        full[..., self.items] = values
        return full.reshape(*values.shape[:-1], *self.shape)


def overlap(*results: xr.Dataset, top: float = 0.125, draws: int = 2000, seed: int = 0) -> xr.Dataset:
    """How far the heads (or edges) that matter for several tasks are the same ones.

    They are ranked by |effect|. At each circuit size k: `iou` is the number in all the top-k sets over the number in
    any, `weighted` the sum of the least of the tasks' |effect| over the sum of the greatest, each task's |effect|
    scaled to sum 1 within its top k. Two nulls permute which one has which effect, `draws` times: among all, and within
    each layer (for edges: among those of the same kind of writer and reader). Under each null: mean, 95 % point, and
    p = share of draws at or above what was seen, (1 + count) / (1 + draws). `ceiling` is what two halves of one task's
    own prompts share, mean over tasks and splits.

    Args:
        results: two or more `head_patching` (without positions) or `edge_attribution` results on one model.
        top: the circuit's size as a fraction of all, for `shared` and the marks of a view.
        draws: permutations in each null (fewer for very many edges; attribute `draws`).
        seed: of the permutations and halves.

    Returns:
        Curves over `size` (its `fraction` of all beside it); `effect` [task, layer, head] (or `score` [task, receiver,
        component]), `member` in the same shape and `shared` without the task, at the chosen size (attribute `chosen`);
        `pair` [task, measured], the intersection over union of two tasks there, with each task's own ceiling on the
        diagonal, and `pair_null` (mean when shuffled among all); `accuracy` [task] of the clean prompts. Attributes
        `rank` (mean Spearman correlation of |effect| over pairs of tasks) and `rank_p` (shuffled among all).

    Raises:
        AnalysisError: for fewer than two results, results of different models or kinds, `top` outside (0, 1], or no
            draws.
    """
    started = time.perf_counter()
    at_least_one(draws=draws)
    scored = _scored(results, top, seed)
    count = scored.magnitude.shape[1]
    draws = int(max(1, min(draws, DRAWN / count)))
    sizes, chosen, flat = _sizes(count, top), _heads(count, top), scored.magnitude
    seen, rng = _curves(flat[:, None], sizes), np.random.default_rng(seed)
    shuffled = {name: _permuted(flat, groups, draws, rng) for name, groups in _groups(scored).items()}
    nulls = {name: _curves(values, sizes) for name, values in shuffled.items()}
    ceiling = None if scored.halves is None else _curves(scored.halves, sizes)
    ds = _dataset(results, scored, _top(flat[:, None], chosen)[:, 0], sizes, seen, nulls, ceiling)
    titles, pairs = ds["task"].values, _pairs(scored, chosen, shuffled["null"])
    for name, values in zip(("pair", "pair_null"), pairs, strict=True):
        say = {"long_name": "intersection over union of two tasks", "units": "share"}
        ds[name] = (("task", "measured"), values, say)
    accuracy = [float(result.attrs.get("accuracy", 0)) for result in results]
    ds["accuracy"] = ("task", np.array(accuracy), {"long_name": "accuracy on clean prompts", "units": "share"})
    ds = ds.assign_coords(measured=titles)
    rank, drawn = _rank(flat[:, None])[0], _rank(shuffled["null"])
    params = {"top": top, "draws": draws, "seed": seed}
    ds.attrs = _attrs(results, params, scored.variable) | {
        "chosen": chosen,
        "draws": draws,
        "rank": float(rank),
        "rank_p": float((1 + (drawn >= rank - 1e-12).sum()) / (1 + draws)),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return check(ds)


def circuit_sets(shared: xr.Dataset) -> str:
    """The head circuits of an overlap as `ablation` takes them: each task's, what all share, what only one has.

    Raises:
        AnalysisError: for an overlap of edges.
    """
    if "head" not in shared.dims:
        raise AnalysisError("Sets of heads come from an overlap of heads, not of edges.")
    member, titles = shared["member"].values.astype(bool), [str(title) for title in shared["task"].values]
    common = np.all(member, axis=0)
    sets = dict(zip(titles, member, strict=True)) | {"shared": common}
    for place, title in enumerate(titles):
        sets[f"only {title}"] = member[place] & ~np.delete(member, place, 0).any(0)
    layers = shared["layer"].values

    def named(mask: Any) -> str:
        return ",".join(head_name(int(layers[row]), int(head)) for row, head in np.argwhere(mask))

    return "; ".join(f"{name}={named(mask)}" for name, mask in sets.items())


def _scored(results: tuple[xr.Dataset, ...], top: float, seed: int) -> Scored:
    """The effects of results that can be compared."""
    if not 0 < top <= 1:
        raise AnalysisError(f"top is {top}; it is a fraction of all, above 0 and at most 1.")
    if len(results) < 2:
        raise AnalysisError("An overlap needs two or more results; give one for each task.")
    edges = "score" in results[0] and results[0]["score"].dims == ("receiver", "component")
    variable, dims = ("score", ("receiver", "component")) if edges else ("effect", ("layer", "head"))
    for ds in results:
        if variable not in ds or ds[variable].dims != dims:
            raise AnalysisError(
                "An overlap needs head_patching results over all positions (layer x head), or edge_attribution results."
            )
        if _made_with(ds, variable) != _made_with(results[0], variable):
            raise AnalysisError(
                "These results come from different analyses or models, or differ in dtype, folding or BOS, or one run "
                "was stopped early; trace every task in the same way."
            )
    titles = [ds.attrs["task"] for ds in results]
    if len(set(titles)) < len(titles):
        raise AnalysisError(f"The same task and corruption was given twice ({titles[0]}); compare different tasks.")
    first = results[0][variable]
    items = np.flatnonzero(results[0]["valid"].values) if edges else np.arange(first.size)
    groups = (
        Graph.of(results[0].attrs).types.ravel()[items]
        if edges
        else np.repeat(np.arange(first.shape[0]), first.shape[1])
    )
    flat = np.stack([np.abs(ds[variable].values).ravel()[items] for ds in results])
    halves = [_split(ds, items, np.random.default_rng(seed)) for ds in results]
    known = None if any(half is None for half in halves) else np.abs(np.concatenate(halves, axis=1))  # type: ignore
    return Scored(dims, variable, (first.shape[0], first.shape[1]), items, flat, groups, known)


def _split(ds: xr.Dataset, items: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Effects on two halves of the prompts, [2, split, item]; None where the result does not keep its prompts."""
    if "score_split" in ds:
        return ds["score_split"].values.reshape(2, 1, -1)[..., items]
    if "metric" not in ds or ds.sizes["prompt"] < 4:
        return None
    metric = ds["metric"].transpose("prompt", "layer", "head").values.reshape(ds.sizes["prompt"], -1)
    clean, corrupted = ds["metric_clean"].values, ds["metric_corrupted"].values
    found = np.empty((2, SPLITS, metric.shape[1]))
    for split in range(SPLITS):
        for side, half in enumerate(np.array_split(rng.permutation(len(metric)), 2)):
            gap = (clean[half] - corrupted[half]).mean()
            found[side, split] = (metric[half] - corrupted[half, None]).mean(0) / gap
    return found


def _groups(scored: Scored) -> dict[str, np.ndarray]:
    return {"null": np.zeros(len(scored.items)), "within": scored.groups}


def _rank(flat: np.ndarray) -> np.ndarray:
    """Spearman correlation of magnitudes [task, draw, item], mean over pairs of tasks, [draw]."""
    ranks = np.stack([pd.DataFrame(row.T).rank().to_numpy().T for row in flat])
    ranks = ranks - ranks.mean(-1, keepdims=True)
    ranks /= np.maximum(np.linalg.norm(ranks, axis=-1, keepdims=True), np.finfo(float).tiny)
    pairs = [(a, b) for a in range(len(flat)) for b in range(a)]
    return np.mean([(ranks[a] * ranks[b]).sum(-1) for a, b in pairs], axis=0)


def _made_with(ds: xr.Dataset, variable: str) -> tuple:
    return (ds[variable].shape, *(ds.attrs.get(name) for name in COMPARED))


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
    """Iou and weighted overlap [draw, size] of magnitudes [task, draw, item]; ties go to the earlier item."""
    rank = np.argsort(np.argsort(-flat, axis=-1, kind="stable"), axis=-1, kind="stable")
    iou, weighted = [], []
    for size in sizes:
        member = rank < size
        iou.append(member.all(0).sum(-1) / member.any(0).sum(-1))
        mass = np.where(member, flat, 0)
        mass = mass / np.maximum(mass.sum(-1, keepdims=True), np.finfo(float).tiny)
        weighted.append(mass.min(0).sum(-1) / mass.max(0).sum(-1))
    return {"iou": np.stack(iou, -1), "weighted": np.stack(weighted, -1)}


def _pairs(scored: Scored, chosen: int, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Iou of every two tasks at the chosen size, halves of one task on the diagonal; and its mean under the null."""
    size, count = np.array([chosen]), len(scored.magnitude)
    seen, chance = np.zeros((2, count, count))
    for a in range(count):
        for b in range(count):
            both = [a, b]
            if a != b:
                seen[a, b] = _curves(scored.magnitude[both][:, None], size)["iou"].mean()
                chance[a, b] = _curves(null[both], size)["iou"].mean()
            elif scored.halves is not None:
                splits = scored.halves.shape[1] // count
                own = scored.halves[:, a * splits : (a + 1) * splits]
                seen[a, a] = _curves(own, size)["iou"].mean()
    return seen, chance


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


def _dataset(
    results: tuple[xr.Dataset, ...],
    scored: Scored,
    member: np.ndarray,
    sizes: np.ndarray,
    seen: dict,
    nulls: dict,
    ceiling: dict | None,
) -> xr.Dataset:
    names = {"iou": "intersection over union", "weighted": "weighted overlap"}
    name, dims = scored.variable, scored.dims
    common = np.all(member, axis=0).astype(np.int8)
    variables = {
        "member": (("task", *dims), scored.whole(member.astype(np.int8)), {"long_name": "in the task's circuit"}),
        "shared": (
            dims,
            scored.whole(common),
            {"long_name": "in every task's circuit"},
        ),
    }
    for end in ("", "_low", "_high"):
        bound = np.stack([ds[f"{name}{end}"].values for ds in results])
        variables[f"{name}{end}"] = (("task", *dims), bound, results[0][name].attrs)
    for measure, long_name in names.items():
        observed = seen[measure][0]
        variables[measure] = ("size", observed, {"long_name": long_name, "units": "share"})
        if ceiling is not None:
            say = {"long_name": f"{long_name} of halves of one task", "units": "share"}
            variables[f"{measure}_ceiling"] = ("size", ceiling[measure].mean(0), say)
        for null, curves in nulls.items():
            drawn, say = curves[measure], {"long_name": f"{long_name}, {null} permutation", "units": "share"}
            variables[f"{measure}_{null}"] = ("size", drawn.mean(0), say)
            variables[f"{measure}_{null}_high"] = ("size", np.quantile(drawn, 0.95, axis=0), say)
            count = (drawn >= observed - 1e-12).sum(0)
            variables[f"{measure}_{null}_p"] = ("size", (1 + count) / (1 + len(drawn)), say | {"units": "p"})
    coords = {
        "task": [ds.attrs["task"] for ds in results],
        **{dim: results[0][dim].values for dim in dims},
        "size": sizes,
        "fraction": ("size", sizes / len(scored.items)),
    }
    return xr.Dataset(variables, coords=coords)


def _attrs(results: tuple[xr.Dataset, ...], params: dict, primary: str) -> dict:
    tasks = [ds.attrs["task"] for ds in results]
    graph = Graph.of(results[0].attrs).attrs if primary == "score" else {}
    what = "heads" if primary == "effect" else "edges"
    known = {
        **graph,
        "analysis": "overlap",
        "params": params,
        "primary": primary,
        "sign": "0 = nothing in common, 1 = the same; above the null's 95 % point = more than chance shares",
        "seed": params["seed"],
        "task": json.dumps(tasks),
        "task_hash": json.dumps([ds.attrs["task_hash"] for ds in results]),
        "title": f"{what} shared by {' and '.join(tasks)} in {results[0].attrs['model']}",
        "n": min(int(ds.attrs["n"]) for ds in results),
    }
    return provenance(**known, **{name: results[0].attrs[name] for name in SAME if name in results[0].attrs})
