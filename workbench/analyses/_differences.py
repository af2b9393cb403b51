"""Two results of one analysis side by side: whether they can be compared, and what each says of its own noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError
from workbench.analyses._noise import Noise, by_errors, by_signs, error_of, inflation, pseudo_values

WHAT = ("analysis", "dtype", "folding", "bos", "positions")  # that two results must share, beside task and parameters
IDLE = ("batch", "draws")  # parameters that do not change what is measured
CLEAR = 4  # standard errors from 0, of a mean that others are divided by
Pair = tuple[xr.Dataset, xr.Dataset]


@dataclass(frozen=True)
class Difference:
    """One variable of two results, [cell, ...] in its own dimensions, and which cells count once each."""

    results: Pair
    name: str
    dims: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray
    counted: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """After less before."""
        return self.after - self.before

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Another variable of both, spread over the same dimensions; None where a result lacks it."""
        if any(name not in ds or not set(ds[name].dims) <= set(self.dims) for ds in self.results):
            return None
        shape = self.results[0][self.name]
        a, b = (ds[name].broadcast_like(shape).transpose(*self.dims).values for ds in self.results)
        return a, b

    @property
    def away(self) -> tuple[np.ndarray, np.ndarray]:
        """How far each is from its null."""
        null = self.of(f"{self.name}_null") or (0, 0)
        return self.before - null[0], self.after - null[1]


def comparable(before: xr.Dataset, after: xr.Dataset, name: str) -> None:
    """Refuse two results unless they measured the same variable in the same way on the same prompts.

    Raises:
        AnalysisError: saying in what they differ.
    """
    for ds in (before, after):
        if name not in ds:
            raise AnalysisError(
                f"There is no '{name}' in a result of {ds.attrs['analysis']}; it has: {', '.join(map(str, ds))}."
            )
    if before[name].dtype.kind not in "fiu" or "prompt" in before[name].dims:
        raise AnalysisError(f"'{name}' cannot be compared cell by cell; name a variable of numbers without prompts.")
    differ = [key for key in (*WHAT, "task_hash") if before.attrs.get(key) != after.attrs.get(key)]
    differ += sorted({key for key, _ in _measured(before) ^ _measured(after)})
    dims = before[name].dims
    if not differ and set(dims) != set(after[name].dims):
        differ = ["dimensions"]
    differ += [] if differ else [str(d) for d in dims if not np.array_equal(before[d].values, after[d].values)]
    if differ:
        raise AnalysisError(
            f"The results differ in {', '.join(differ)}; run the same analysis to its end at both checkpoints, with "
            "the same task and parameters."
        )


def _measured(ds: xr.Dataset) -> set[tuple[str, str]]:
    """The parameters that decide what is measured."""
    try:
        given = json.loads(ds.attrs["params"])
    except ValueError:  # a list of several, joined
        given = {"params": ds.attrs["params"]}
    given = given if isinstance(given, dict) else {"params": given}
    return {(key, json.dumps(value)) for key, value in given.items() if key not in IDLE}


def difference_of(before: xr.Dataset, after: xr.Dataset, name: str) -> Difference:
    """A variable of two results that can be compared."""
    dims = tuple(map(str, before[name].dims))
    a, b = (ds[name].transpose(*dims).values.astype(np.float64) for ds in (before, after))
    counted = np.ones(a.shape, bool)
    if "valid" in before and set(before["valid"].dims) <= set(dims):
        counted &= before["valid"].broadcast_like(before[name]).transpose(*dims).values > 0
    for first, second in _mirrored(before, dims, a, b):
        counted &= _above(a, b, first, second)
    return Difference((before, after), name, dims, a, b, counted)


def _mirrored(ds: xr.Dataset, dims: tuple[str, ...], *values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of axes with the same labels over which all values are symmetric."""
    for first in range(len(dims)):
        for second in range(first + 1, len(dims)):
            same = np.array_equal(ds[dims[first]].values, ds[dims[second]].values)
            if same and all(np.allclose(v, v.swapaxes(first, second), rtol=1e-6, atol=1e-9) for v in values):
                yield first, second


def _above(a: np.ndarray, b: np.ndarray, first: int, second: int) -> np.ndarray:
    """The cells above the diagonal of two axes, and those on it unless all are 1 (or 0), as nothing else can be."""
    diagonals = [np.diagonal(values, axis1=first, axis2=second) for values in (a, b)]
    given = all((np.isclose(d, 0, atol=1e-6) | np.isclose(d, 1, atol=1e-6)).all() for d in diagonals)
    size = a.shape[first]
    rows, columns = (
        np.arange(size).reshape([-1 if axis == at else 1 for axis in range(a.ndim)]) for at in (first, second)
    )
    return np.broadcast_to(rows < columns if given else rows <= columns, a.shape)


def retested(firsts: Pair, seconds: Pair, name: str) -> Difference:
    """The difference on other prompts.

    Raises:
        AnalysisError: when it does not measure the same on other prompts.
    """
    comparable(*seconds, name)
    for one, other in zip(firsts, seconds, strict=True):
        differ = [key for key in (*WHAT, "model_hash") if one.attrs.get(key) != other.attrs.get(key)]
        differ += sorted({key for key, _ in _measured(one) ^ _measured(other)})
        if differ or not np.array_equal(one[name].shape, other[name].shape):
            raise AnalysisError(
                f"The retest differs in {', '.join(differ) or 'its shape'}; trace the same checkpoints again, with "
                "another seed of the task and nothing else."
            )
    if firsts[0].attrs["task_hash"] == seconds[0].attrs["task_hash"]:
        raise AnalysisError("The retest has the same prompts, so it shows no noise; take another seed of the task.")
    return difference_of(*seconds, name)


def noise_of(first: Difference, second: Difference | None, draws: int, seed: int) -> tuple[Noise, str, float]:
    """The noise of the first difference, where it was read from, and by how much the retest widened it.

    Raises:
        AnalysisError: when nothing says how large it is.
    """
    found, way = _ownnoise_of(first, draws, seed)
    if second is None:
        if found is None:
            raise AnalysisError(
                f"'{first.name}' of {first.results[0].attrs['analysis']} comes without prompts or intervals, so its "
                "noise is not known; give retest=(before, after) of another seed of the task."
            )
        return found, way, 1.0
    if found is None:
        apart = (first.values - second.values)[first.counted]
        error = np.full(first.before.shape, np.sqrt(np.mean(apart**2) / 2))
        return by_errors(error, int(first.counted.sum()), np.inf), "retest", 1.0
    other, _ = _ownnoise_of(second, 1, seed)
    assert other is not None
    errors = found.error[first.counted], other.error[first.counted]
    factor = inflation(first.values[first.counted], second.values[first.counted], errors)
    return found.widened(factor), way, factor


def _ownnoise_of(pair: Difference, draws: int, seed: int) -> tuple[Noise | None, str]:
    """The noise of a difference from both results' prompts, or else their intervals; None where they have neither."""
    shape, prompts = pair.before.shape, [_by_prompt(ds, pair) for ds in pair.results]
    if prompts[0] is not None and prompts[1] is not None and len(prompts[0]) == len(prompts[1]):
        noise = by_signs((prompts[1] - prompts[0]).reshape(len(prompts[0]), -1), draws, seed)
        return Noise(noise.error.reshape(shape), noise.critical, noise.tail), "prompts"
    low, high = pair.of(f"{pair.name}_low"), pair.of(f"{pair.name}_high")
    if low is None or high is None:
        return None, ""
    batches = min(float(ds.attrs.get("batches", np.inf)) for ds in pair.results) - 1
    errors = [error_of(low[i], (pair.before, pair.after)[i], high[i], batches) for i in range(2)]
    error = np.hypot(*errors)
    live = pair.counted & ((error > 0) | (pair.values != 0))
    n = min(float(ds.attrs.get("n", np.inf)) for ds in pair.results) - 1
    return by_errors(error, int(live.sum()), max(1.0, min(n, batches))), "intervals"


def _by_prompt(ds: xr.Dataset, pair: Difference) -> np.ndarray | None:
    """What each prompt says of the variable, float64 [prompt, ...]; None where the result does not keep it.

    None too for shares of a gap so near 0 that a prompt more or less may turn its sign: no such share is linear in it.
    """
    expected = ds[pair.name].transpose(*pair.dims).values
    for gain, gap in _ratios(ds, pair.name):
        if set(gain.dims) != {"prompt", *pair.dims} or gain.sizes["prompt"] < 2:
            continue
        if abs(gap.mean()) < CLEAR * gap.std(ddof=1) / np.sqrt(len(gap)):
            continue
        values = gain.transpose("prompt", *pair.dims).values.astype(np.float64)
        found = pseudo_values(values, gap)
        if np.allclose(found.mean(0), expected, rtol=1e-4, atol=1e-6 * (abs(expected).max() or 1)):
            return found
    return None


def _ratios(ds: xr.Dataset, name: str) -> Iterator[tuple[xr.DataArray, np.ndarray]]:
    """Values by prompt that the variable may be a ratio of means of; which it is, its own value tells."""
    if "prompt" not in ds.dims:
        return
    one = np.ones(ds.sizes["prompt"])
    if f"{name}_prompt" in ds:
        yield ds[f"{name}_prompt"], one
    if {"metric", "metric_clean", "metric_corrupted"} <= set(ds.data_vars):
        gap = (ds["metric_clean"] - ds["metric_corrupted"]).values
        yield ds["metric"] - ds["metric_corrupted"], gap
        yield ds["metric_clean"] - ds["metric"], gap
    if {"count", "counted"} <= set(ds.data_vars):
        yield ds["count"], ds["counted"].sum("pos").values.astype(np.float64)
