"""Routing over training: how early the final choices are made, and how far the use of experts drifts."""

import json
import time
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, at_least_one, interval, resamples
from workbench.analyses._routing_chance import divergence, overlap
from workbench.schema import check, provenance

SAME = (
    *("task", "task_hash", "task_spec", "dtype", "folding", "bos", "k", "experts"),
    *("n", "tokens", "length", "left_out", "trust"),
)
COMPARED = ("analysis", "task_hash", "params", "n", "k", "experts", "bos")
LABELS = {
    "saturation": ("share of the compared checkpoint's experts that a token already has", "share"),
    "overlap": ("overlap of the shares of all choices with the compared checkpoint's", "share"),
    "divergence": ("Jensen-Shannon divergence of the shares of all choices", "bits"),
}
LEVELS = (0.025, 0.975)


def routing_drift(
    results: Mapping[Any, xr.Dataset], *, reference: Hashable = None, draws: int = 500, seed: int = 0
) -> xr.Dataset:
    """How routing at every checkpoint agrees with that at one of them, on the same texts.

    With S_b the experts chosen for token b: `saturation` is the mean of |S_b(t) and S_b(reference)| / k (Muennighoff
    et al., 2409.02060, section 5: the reference is the last checkpoint). Its null keeps both checkpoints' loads and
    lets nothing else decide, sum over experts of load(t) load(reference) / k: k / E where both are even. With p_e the
    share of all choices that go to expert e: `overlap` is the sum over e of min(p_e(t), p_e(reference)), `divergence`
    their Jensen-Shannon divergence; the null of both names the experts of one at random.

    Args:
        results: by training step (or name), results of `routing` with the same task and settings.
        reference: the key of the checkpoint all are compared with; None for the last.
        draws: of the bootstrap over sequences, and of random names.
        seed: of the draws.

    Returns:
        `saturation`, `overlap`, `divergence` [checkpoint, layer] with 95 % intervals over sequences, `_null` (mean),
        and for the latter two `_null_low`, `_null_high` (95 % of random names); `load` [checkpoint, layer, expert].
        Attributes `reference` and `uniform` = k / E. How far the experts themselves drift is not measured.

    Raises:
        AnalysisError: for fewer than two results, an unknown reference, or results that cannot be compared.
    """
    started = time.perf_counter()
    at_least_one(draws=draws)
    key = _comparable(results, reference)
    rng, base = np.random.default_rng(seed), results[key]
    weights = resamples(base.sizes["prompt"], draws, seed)
    names = [rng.permutation(base.sizes["expert"]) for _ in range(draws)]
    rows = [_row(ds, base, weights, names) for ds in results.values()]
    variables: dict[str, Any] = {
        name: (("checkpoint", "layer"), np.stack([row[name] for row in rows]), _named(name)) for name in rows[0]
    }
    load = np.stack([ds["load"].transpose("layer", "expert").values for ds in results.values()])
    variables["load"] = (("checkpoint", "layer", "expert"), load, base["load"].attrs)
    coords = {"checkpoint": list(results), "layer": base["layer"].values, "expert": base["expert"].values}
    ds = xr.Dataset(variables, coords=coords)
    ds.attrs = _attrs(results, base, key, {"draws": draws, "seed": seed})
    ds.attrs["seconds"] = round(time.perf_counter() - started, 3)
    return check(ds)


def _comparable(results: Mapping[Any, xr.Dataset], reference: Hashable) -> Any:
    """The key of the result all are compared with."""
    if len(results) < 2:
        raise AnalysisError("Drift needs results of `routing` at two or more checkpoints.")
    key = list(results)[-1] if reference is None else reference
    if key not in results:
        raise AnalysisError(
            f"There is no checkpoint {key!r} to compare with; there are {', '.join(map(str, results))}."
        )
    base = results[key]
    for step, ds in results.items():
        if "chosen" not in ds or "token_id" not in ds:
            raise AnalysisError("Drift needs results of `routing`, as it gave them: not joined.")
        differ = [name for name in COMPARED if ds.attrs.get(name) != base.attrs.get(name)]
        if not differ and not np.array_equal(ds["token_id"].values, base["token_id"].values):
            differ = ["their texts"]
        if differ:
            raise AnalysisError(
                f"The result at checkpoint {step} differs in {', '.join(differ)}; run `routing` to the end with the "
                "same task and settings at every checkpoint."
            )
    return key


def _agreement(ds: xr.Dataset, base: xr.Dataset) -> np.ndarray:
    """Choices shared with the reference, [prompt, layer], summed over the tokens that count."""
    dims = ("prompt", "pos", "layer", "size")
    ours, theirs = (each["chosen"].transpose(*dims).values for each in (ds, base))
    shared = sum((ours == theirs[..., place, None]).sum(-1) for place in range(theirs.shape[-1]))
    return np.asarray(shared * base["counted"].values[..., None]).sum(1)


def _row(ds: xr.Dataset, base: xr.Dataset, weights: np.ndarray, names: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every measure of one checkpoint, [layer]."""
    k, tokens = base.sizes["size"], base["counted"].values.sum(1)
    counts = [each["count"].transpose("prompt", "layer", "expert").values.astype(float) for each in (ds, base)]
    shared = _agreement(ds, base)
    found = {"saturation": shared.sum(0) / (k * tokens.sum())}
    found["saturation_low"], found["saturation_high"] = interval(weights @ shared / (k * weights @ tokens)[:, None])
    ours, theirs = (count.sum(0) / (k * tokens.sum()) for count in counts)
    found["saturation_null"] = k * (ours * theirs).sum(-1)
    drawn = [np.tensordot(weights, count, 1) for count in counts]
    drawn = [count / count.sum(-1, keepdims=True) for count in drawn]
    for name, measure in (("overlap", overlap), ("divergence", divergence)):
        null = np.stack([measure(ours[:, order], theirs) for order in names])
        found[name], found[f"{name}_null"] = measure(ours, theirs), null.mean(0)
        found[f"{name}_low"], found[f"{name}_high"] = interval(measure(drawn[0], drawn[1]))
        found[f"{name}_null_low"], found[f"{name}_null_high"] = np.quantile(null, LEVELS, axis=0)
    return found


def _named(name: str) -> dict[str, str]:
    measure, _, end = name.partition("_")
    long_name, units = LABELS[measure]
    return {"long_name": f"{long_name}, {end.replace('_', ' ')}".rstrip(", "), "units": units}


def _attrs(results: Mapping[Any, xr.Dataset], base: xr.Dataset, key: Any, params: dict) -> dict[str, Any]:
    each = {name: [ds.attrs[name] for ds in results.values()] for name in ("model", "model_hash", "checkpoint")}
    joined = {name: values[0] if len(set(values)) == 1 else json.dumps(values) for name, values in each.items()}
    known = {
        **{name: base.attrs[name] for name in SAME if name in base.attrs},
        **joined,
        "analysis": "routing_drift",
        "params": params | {"reference": str(key)},
        "primary": "saturation",
        "sign": "saturation and overlap: 1 = as at the reference; the null is what the loads alone, or chance, give",
        "seed": params["seed"],
        "reference": str(key),
        "uniform": base.sizes["size"] / base.sizes["expert"],
        "title": f"routing over training: {base.attrs['task']}",
    }
    return provenance(**known)
