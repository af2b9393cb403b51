"""What changed between two checkpoints: any result before and after, their difference, and what of it is noise."""

import json
import time
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.analyses._base import AnalysisError, at_least_one
from workbench.analyses._differences import WHAT, Difference, Pair, comparable, difference_of, noise_of, retested
from workbench.analyses._noise import Noise
from workbench.models.cell_names import cell_name
from workbench.schema import check, provenance

STATES = ("absent", "kept", "lost", "gained", "flipped")
ROUNDING = 1e-4  # of the largest value: less is what merging an adapter or another order of sums gives
SAME = (
    "n",
    "metric_name",
    "corruption",
    "layers",
    "heads",
    "kv_heads",
    "parallel",
    "length",
    "epsilon",
    "k",
    "experts",
)
WAYS = {
    "prompts": "paired by prompt, signs drawn: largest |t| of all cells",
    "intervals": "both intervals, taken as independent: Šidák over all cells",
    "retest": "spread between two sets of prompts, the same for all cells: Šidák over all cells",
}


def compare(
    before: xr.Dataset,
    after: xr.Dataset,
    *,
    retest: Pair | None = None,
    variable: str = "",
    top: float = 0.125,
    draws: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """A result of two checkpoints, after less before, with the band within which a difference may be noise.

    The band is simultaneous: where nothing changed, 95 % of comparisons have no cell outside it, so that everything
    outside may be believed at once. Where both results keep every prompt (or sequence), they are paired by prompt and
    the band is that of the largest |t| of all cells when the signs of the prompts' differences are drawn. Otherwise,
    and for shares of a gap within 4 standard errors of 0, standard errors are read from both results' intervals and
    added as if independent, though the prompts are the same, and each cell is tested at Šidák's level. `retest` can
    only widen the band: where two differences of one cell, on separate prompts, lie further apart than their errors
    allow (root mean square over cells), the errors grow by that factor. A result without prompts or intervals needs
    it. Differences under 1/10,000 of the largest value are rounding.

    A cell is *present* where its distance from the analysis' own null (0 where there is none) is at least that of the
    first `top` of all cells before; the same threshold holds after. Within the band a cell is what it was before;
    outside, it was lost, gained, flipped (present on both sides of the null) or kept. What is kept may have changed:
    see `band`.

    Args:
        before: a result of any analysis.
        after: the same of another checkpoint: same task, prompts and parameters.
        retest: the same two on other prompts (another seed of the task).
        variable: what to compare; empty for the results' primary variable.
        top: share of all cells that counts as present before.
        draws: of signs.
        seed: of the draws.

    Returns:
        `before`, `after` (with `_low`, `_high` where the results have them) and `difference` with its simultaneous 95 %
        interval; `band`, half its width; `p`, corrected for all cells; `state`, an index of `STATES`; `rank`, 0 for the
        largest change outside the band, then those inside it, -1 where a cell is no edge or a mirror image; with
        `retest` `difference_retest`. Attributes: the number of cells in each state, `cells` compared, `changed`
        (outside the band), `threshold`, `jaccard` of the cells present before and after (for edges also
        `jaccard_nodes`), with `retest` `jaccard_retest` (mean of before and after, each against itself on other
        prompts), `retest_correlation` of both differences and `widened`.

    Raises:
        AnalysisError: when the results cannot be compared, saying in what they differ, or show no noise.
    """
    started = time.perf_counter()
    at_least_one(draws=draws)
    if not 0 < top <= 1:
        raise AnalysisError(f"top is {top}; it is a share of all cells, above 0 and at most 1.")
    name = variable or str(before.attrs["primary"])
    comparable(before, after, name)
    first = difference_of(before, after, name)
    second = retested((before, after), retest, name) if retest else None
    noise, way, factor = noise_of(first, second, draws, seed)
    ds = _dataset(first, second, noise, top)
    params = {"variable": name, "top": top, "draws": draws, "seed": seed, "retest": second is not None}
    ds.attrs = _attrs(first, params) | ds.attrs | {"noise": WAYS[way], "widened": factor}
    ds.attrs["seconds"] = round(time.perf_counter() - started, 3)
    return check(ds)


def top_changes(ds: xr.Dataset, count: int = 20) -> pd.DataFrame:
    """The cells of a comparison by their rank: name, before, after, difference and its ends, p, state, and whether
    the difference is outside the noise.

    Args:
        ds: what `compare` gave.
        count: of rows, at most.
    """
    dims, ranks = ds["rank"].dims, ds["rank"].values
    found = sorted((int(ranks[tuple(at)]), tuple(at)) for at in np.argwhere((ranks >= 0) & (ranks < count)))
    columns = ("before", "after", "difference", "difference_low", "difference_high", "p")
    rows = []
    for _, at in found:
        labels = {str(dim): ds[dim].values[place] for dim, place in zip(dims, at, strict=True)}
        numbers = {column: float(ds[column].values[at]) for column in columns}
        outside = bool(abs(numbers["difference"]) > ds["band"].values[at])
        rows.append({"name": cell_name(labels), **numbers, "state": STATES[ds["state"].values[at]], "changed": outside})
    return pd.DataFrame(rows, columns=["name", *columns, "state", "changed"])


def _dataset(first: Difference, second: Difference | None, noise: Noise, top: float) -> xr.Dataset:
    difference, counted = first.values, first.counted
    rounding = ROUNDING * max(abs(first.before).max(), abs(first.after).max())
    band = np.maximum(noise.band, rounding)
    p = np.where(abs(difference) > rounding, noise.p(difference), 1.0)
    threshold = _threshold(abs(first.away[0])[counted], top)
    state = _states(first.away, threshold, abs(difference) > band)
    own = dict(first.results[0][first.name].attrs)
    said = {"long_name": own["long_name"], "units": own.get("units", "1"), "signed": own.get("signed", 0)}
    changed = said | {"long_name": f"{said['long_name']}, after less before", "signed": 1}
    variables: dict[str, Any] = {"before": (first.before, said), "after": (first.after, said)}
    for end in ("low", "high"):
        if (ends := first.of(f"{first.name}_{end}")) is not None:
            variables |= {f"{side}_{end}": (v, said) for side, v in zip(("before", "after"), ends, strict=True)}
    variables |= {
        "difference": (difference, changed),
        "difference_low": (difference - band, changed),
        "difference_high": (difference + band, changed),
        "band": (band, said | {"long_name": "half the simultaneous 95 % interval of the difference", "signed": 0}),
        "p": (p, {"long_name": "chance of such a difference in any unchanged cell", "units": "probability"}),
        "state": (state, {"long_name": ", ".join(f"{i} {name}" for i, name in enumerate(STATES)), "units": "1"}),
        "rank": (_ranks(difference, band, counted), {"long_name": "place by size of the change", "units": "1"}),
    }
    if second is not None:
        again = changed | {"long_name": f"{changed['long_name']}, on other prompts"}
        variables["difference_retest"] = (second.values, again)
    ds = xr.Dataset({name: (first.dims, *value) for name, value in variables.items()})
    kept = first.results[0][first.name].coords
    ds = ds.assign_coords({key: value for key, value in kept.items() if set(value.dims) <= set(first.dims)})
    ds.attrs = _counts(ds, first, threshold) | (_agreement(first, second, top) if second else {})
    return ds


def _threshold(away: np.ndarray, top: float) -> float:
    """The distance from its null at which a cell is present: that of the last of the first `top` before."""
    return float(np.sort(away)[::-1][max(1, round(top * away.size)) - 1])


def _present(away: np.ndarray, threshold: float) -> np.ndarray:
    return (abs(away) >= threshold) & (away != 0)


def _states(away: tuple[np.ndarray, np.ndarray], threshold: float, outside: np.ndarray) -> np.ndarray:
    was, now = (_present(side, threshold) for side in away)
    flipped = was & now & (np.sign(away[0]) != np.sign(away[1]))
    found = np.select([flipped, was & now, was, now], [4, 1, 2, 3], 0)
    return np.where(outside, found, was).astype(np.int8)


def _ranks(difference: np.ndarray, band: np.ndarray, counted: np.ndarray) -> np.ndarray:
    size, places = abs(difference)[counted], np.full(difference.shape, -1, np.int32)
    order = np.lexsort((-size, size <= band[counted]))
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order))
    places[counted] = ranks
    return places


def _counts(ds: xr.Dataset, first: Difference, threshold: float) -> dict[str, Any]:
    state, counted = ds["state"].values[first.counted], first.counted
    found: dict[str, Any] = {name: int((state == place).sum()) for place, name in enumerate(STATES) if place}
    found["cells"] = int(counted.sum())
    found["changed"] = int((abs(first.values) > ds["band"].values)[counted].sum())
    was, now = (_present(side, threshold) & counted for side in first.away)
    found |= {"threshold": threshold, "jaccard": _jaccard(was, now)}
    if set(first.dims) == {"receiver", "component"} and "valid" in first.results[0]:
        found["jaccard_nodes"] = _jaccard(_nodes(ds, was), _nodes(ds, now))
    return found


def _jaccard(a: Any, b: Any) -> float:
    """Cells in both over cells in either; 1 where there are none."""
    if isinstance(a, set):
        return len(a & b) / len(a | b) if a | b else 1.0
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def _nodes(ds: xr.Dataset, present: np.ndarray) -> set[str]:
    """The heads, MLPs, input and logits that the edges present touch."""
    found = xr.DataArray(present, dims=ds["state"].dims).transpose("receiver", "component").values
    writers = ds["component"].values[found.any(0)].tolist()
    return {*writers, *(str(name).partition(".")[0] for name in ds["receiver"].values[found.any(1)].tolist())}


def _agreement(first: Difference, second: Difference, top: float) -> dict[str, float]:
    """How far other prompts give the same cells and the same change."""
    counted, alike = first.counted, []
    for one, other in zip(first.away, second.away, strict=True):
        sides = [_present(side, _threshold(abs(side)[counted], top)) & counted for side in (one, other)]
        alike.append(_jaccard(*sides))
    a, b = first.values[counted], second.values[counted]
    moved = a.std() > 0 and b.std() > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if moved else float(np.array_equal(a, b))
    return {"jaccard_retest": float(np.mean(alike)), "retest_correlation": correlation}


def _attrs(first: Difference, params: dict[str, Any]) -> dict[str, Any]:
    before, after = first.results
    names = ("model", "model_hash", "checkpoint", "trust")
    both = {key: [_plain(ds.attrs[key]) for ds in first.results] for key in names}
    joined = {key: values[0] if values[0] == values[1] else json.dumps(values) for key, values in both.items()}
    kept = {key: before.attrs[key] for key in (*WHAT, *SAME) if before.attrs.get(key, None) == after.attrs.get(key, 0)}
    says = {key: before.attrs[key] for key in ("task", "task_hash", "seed")}
    what = before.attrs["analysis"]
    return provenance(
        **(kept | joined | says),
        **{"params": params, "primary": "difference", "compared": what, "variable": first.name},
        **{"before_model": both["model"][0], "after_model": both["model"][1]},
        sign=f"after less before; {before.attrs['sign']}",
        title=f"{what} of {before.attrs['task']}: {both['model'][1]} against {both['model'][0]}",
    ) | {"analysis": "compare"}


def _plain(value: Any) -> Any:
    """A number read from a file as Python's own."""
    return value.item() if isinstance(value, np.generic) else value
