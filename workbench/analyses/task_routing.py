"""Routing between tasks: how much of the task a router's choices tell, beside shuffled sequences and random routers."""

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, at_least_one
from workbench.analyses._routing_chance import at_or_above, information, overlap
from workbench.schema import check, provenance

SAME = ("model", "model_hash", "model_spec", "checkpoint", "dtype", "device", "folding", "bos", "trust", "rule", "k")
ADAPTER = ("router", "module", "dense")
COMPARED = ("analysis", "model_hash", "params", "n", "k", "experts", "bos", "folding", "module")
KINDS = ("task, first choice", "task, all choices", "task given the token")
MEANINGS = (
    "I(task; expert), the expert with the largest logit, / min(ln K, ln E)",
    "I(task; expert), every expert chosen counts once, / min(ln K, ln E)",
    "I(task; expert | token id), the expert with the largest logit, / min(ln K, ln E)",
)
BY_WEIGHT = "task, gate weight"  # instead of all choices, where every token goes to all experts
OF_WEIGHT = "I(task; expert), every expert counts by its weight, / min(ln K, ln E)"
HIGH, LOW = 0.95, 0.05
SAY = {"long_name": "information about the task / min(ln K, ln E)", "units": "share"}


@dataclass(frozen=True)
class Choices:
    """What one router chose: counts [choice, sequence, layer, expert] (by the first, by all) and first [token, layer].

    Sequences and tokens are those of all tasks, the first task's first. Where every token goes to all experts they
    count by their weight (`dense`).
    """

    counts: np.ndarray
    first: np.ndarray
    dense: bool = False


@dataclass(frozen=True)
class Tokens:
    """The tokens that were routed: token_id, sequence, shared (the id is in several tasks) [token]; task [sequence]."""

    token_id: np.ndarray
    sequence: np.ndarray
    shared: np.ndarray
    task: np.ndarray
    tasks: int
    experts: int

    @property
    def scale(self) -> float:
        """The most that task and expert can tell of each other, in nats."""
        return float(np.log(min(self.tasks, self.experts)))


def task_routing(*results: xr.Dataset, draws: int = 200, seed: int = 0) -> xr.Dataset:
    """How much a router's choices tell of the task, and how alike it routes any two.

    Mutual information of task and expert, over all tokens, in each layer; plug-in entropies with Miller and Madow's
    correction, divided by min(ln K, ln E) for K tasks and E experts: 0 = nothing, 1 = all that can be told. By the
    first choice; by all k choices; and by the first choice given the token id, the mean over ids of the information
    within one id's tokens, since tasks have words of their own and a router that only reads words tells them apart too.

    Where every token goes to all experts (skills of Poly or X-LoRA), all choices tell nothing: there the second kind
    counts experts by their weight, without the correction, which is for counts, and `similarity` is that of weights.
    Poly's router is given the task's id, so what it tells of the task is how far tasks share their skills.

    The null shuffles the tasks among whole sequences, since tokens of one sequence are not independent; ids that only
    one task has tell nothing given the token, and so do they in its null. `specialisation_random` is that of routers
    with random weights on the same residual streams, which already hold the task: only what lies above it was learned
    by the router.

    Args:
        results: two or more results of `routing`, one a task, with the same settings on the same model.
        draws: shuffles in each null.
        seed: of the shuffles.

    Returns:
        `specialisation` [measured, layer] with mean, 95 % point and p of the null, `_random` (mean) and `_random_high`
        (largest of five); `load`, `top1`, `gate` [task, layer, expert] with their intervals and `load_null` = k / E;
        `similarity` [layer, task, receiver], the overlap of two tasks' distributions over experts (sum of the lesser
        share of all choices; the diagonal: halves of one task's own sequences), `similarity_null` (mean when the two
        tasks' sequences are shuffled) and `similarity_null_low` (5 % point); `shared` (share of tokens whose id more
        than one task has).

    Raises:
        AnalysisError: for fewer than two results, the same task twice, or results that cannot be compared.
    """
    started = time.perf_counter()
    at_least_one(draws=draws)
    _comparable(results)
    rng = np.random.default_rng(seed)
    tokens = _tokens(results)
    every = "mass" if "mass" in results[0] else "count"
    own = _choices(results, "chosen", every, {"size": 1})
    random = [_choices(results, "first_random", f"{every}_random", {"seed": s}) for s in results[0]["seed"].values]
    variables = _informations(own, random, tokens, draws, rng)
    variables |= _similarity(own, tokens, draws, rng) | _loads(results)
    say = {"long_name": "share of tokens whose id more than one task has", "units": "share"}
    variables["shared"] = ((), np.array(tokens.shared.mean()), say)
    titles = [str(ds.attrs["task"]) for ds in results]
    kinds = (KINDS[0], BY_WEIGHT, KINDS[2]) if own.dense else KINDS
    meanings = (MEANINGS[0], OF_WEIGHT, MEANINGS[2]) if own.dense else MEANINGS
    coords = {"task": titles, "receiver": titles, "measured": list(kinds), "meaning": ("measured", list(meanings))}
    ds = xr.Dataset(variables, coords={**coords, **{dim: results[0][dim].values for dim in ("layer", "expert")}})
    ds.attrs = _attrs(results, {"draws": draws, "seed": seed}, titles)
    ds.attrs["seconds"] = round(time.perf_counter() - started, 3)
    return check(ds)


def _comparable(results: tuple[xr.Dataset, ...]) -> None:
    if len(results) < 2:
        raise AnalysisError("Routing between tasks needs two or more results of `routing`; give one for each task.")
    for ds in results:
        if "chosen" not in ds or "first_random" not in ds:
            raise AnalysisError("Routing between tasks needs results of `routing`, as it gave them: not joined.")
        differ = [name for name in COMPARED if ds.attrs.get(name) != results[0].attrs.get(name)]
        if differ:
            raise AnalysisError(
                f"These results differ in {', '.join(differ)}; run `routing` with the same settings on the same model, "
                "to the end, for every task."
            )
    titles = [ds.attrs["task"] for ds in results]
    if len(set(titles)) < len(titles):
        raise AnalysisError(f"The same task was given twice ({titles[0]}); compare different tasks.")


def _tokens(results: tuple[xr.Dataset, ...]) -> Tokens:
    places, ids, before = [], [], 0
    for ds in results:
        counted = ds["counted"].values.astype(bool)
        ids.append(ds["token_id"].values[counted])
        places.append(before + np.nonzero(counted)[0])
        before += len(counted)
    task = np.repeat(np.arange(len(results)), [ds.sizes["prompt"] for ds in results])
    token_id, sequence = np.concatenate(ids), np.concatenate(places)
    known, dense = np.unique(token_id, return_inverse=True)
    has = np.zeros((len(known), len(results)), bool)
    has[dense, task[sequence]] = True
    shared = (has.sum(1) > 1)[dense]
    return Tokens(token_id, sequence, shared, task, len(results), results[0].sizes["expert"])


def _choices(results: tuple[xr.Dataset, ...], first: str, count: str, which: dict[str, int]) -> Choices:
    """The choices of one router, from its variables of first choices and counts; `which` labels it."""
    counts, firsts = [], []
    for ds in results:
        chosen, counted = ds[first].sel(which).transpose("prompt", "pos", "layer").values, ds["counted"].values > 0
        every = ds[count].sel({dim: label for dim, label in which.items() if dim in ds[count].dims})
        every = every.transpose("prompt", "layer", "expert").values
        counts.append(np.stack([_counts(chosen, counted, every.shape[-1]), every]))
        firsts.append(chosen[counted])
    return Choices(np.concatenate(counts, axis=1), np.concatenate(firsts), count.startswith("mass"))


def _counts(first: np.ndarray, counted: np.ndarray, experts: int) -> np.ndarray:
    """Tokens of each expert, [prompt, layer, expert], from first choices [prompt, pos, layer]."""
    prompts, _, layers = first.shape
    cells = (np.arange(prompts)[:, None, None] * layers + np.arange(layers)) * experts + first
    found = np.bincount(cells[counted].ravel(), minlength=prompts * layers * experts)
    return found.reshape(prompts, layers, experts)


def _informations(
    own: Choices, random: list[Choices], tokens: Tokens, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Information about the task of each kind, its null, and that of random routers, [measured, layer]."""
    orders = [rng.permutation(tokens.task) for _ in range(draws)]
    seen, null = _three(own, tokens.task, tokens), np.stack([_three(own, order, tokens) for order in orders])
    beside = np.stack([_three(each, tokens.task, tokens) for each in random])
    found = {"": seen, "_null": null.mean(0), "_null_high": np.quantile(null, HIGH, 0), "_p": at_or_above(seen, null)}
    found |= {"_random": beside.mean(0), "_random_high": beside.max(0)}
    units = {"_p": {"units": "p"}}
    return {f"specialisation{e}": (("measured", "layer"), v, SAY | units.get(e, {})) for e, v in found.items()}


def _three(choices: Choices, task: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Every kind of information, [measured, layer], for tasks [sequence]."""
    corrected = (True, not choices.dense)
    by_choice = [_told(*each, task, tokens) for each in zip(choices.counts, corrected, strict=True)]
    return np.stack([*by_choice, _given(choices.first, task, tokens)])


def _told(counts: np.ndarray, corrected: bool, task: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Information of task [sequence] and expert, from counts [sequence, layer, expert], [layer]."""
    table = np.stack([counts[task == each].sum(0) for each in range(tokens.tasks)], axis=1)
    return information(table, corrected=corrected) / tokens.scale


def _given(first: np.ndarray, task: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Information of task and expert given the token id, [layer], for first choices [token, layer].

    Ids that one task alone has tell nothing; so they do, by definition, in the null too.
    """
    ids, dense = np.unique(tokens.token_id[tokens.shared], return_inverse=True)
    if not len(ids):
        return np.zeros(first.shape[1])
    rows = (dense * tokens.tasks + task[tokens.sequence[tokens.shared]]) * tokens.experts
    shape, found = (len(ids), tokens.tasks, tokens.experts), []
    for column in first[tokens.shared].T.astype(np.int64):
        table = np.bincount(rows + column, minlength=int(np.prod(shape))).reshape(shape)
        found.append((information(table) * table.sum((1, 2))).sum() / len(first))
    return np.array(found) / tokens.scale


def _similarity(choices: Choices, tokens: Tokens, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Overlap of every two tasks' distributions over experts, and what shuffled sequences give."""
    counts = choices.counts[1]
    tasks, layers = tokens.tasks, counts.shape[1]
    seen, null, low = (np.ones((layers, tasks, tasks)) for _ in range(3))
    for a in range(tasks):
        own = counts[tokens.task == a]
        halves = _split(own, len(own) // 2, draws, rng)
        seen[:, a, a] = null[:, a, a] = halves.mean(0)
        low[:, a, a] = np.quantile(halves, LOW, 0)
        for b in range(a):
            other = counts[tokens.task == b]
            drawn = _split(np.concatenate([own, other]), len(own), draws, rng)
            found = overlap(_shares(own), _shares(other)), drawn.mean(0), np.quantile(drawn, LOW, 0)
            for into, values in zip((seen, null, low), found, strict=True):
                into[:, a, b] = into[:, b, a] = values
    what = "gate weight" if choices.dense else "choices"
    say = {"long_name": f"overlap of two tasks' shares of all {what}", "units": "share"}
    found = {"": seen, "_null": null, "_null_low": low}
    return {f"similarity{end}": (("layer", "task", "receiver"), values, say) for end, values in found.items()}


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(0).astype(float)
    return total / np.maximum(total.sum(-1, keepdims=True), 1)


def _split(counts: np.ndarray, size: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Overlap of `size` sequences drawn at random with the others, [draw, layer]."""
    found = []
    for _ in range(draws):
        order = rng.permutation(len(counts))
        found.append(overlap(_shares(counts[order[:size]]), _shares(counts[order[size:]])))
    return np.stack(found)


def _loads(results: tuple[xr.Dataset, ...]) -> dict[str, Any]:
    """Each task's loads with their intervals, as `routing` found them."""
    names = [f"{name}{end}" for name in ("load", "top1", "gate") for end in ("", "_low", "_high")]
    dims, first = ("layer", "expert"), results[0]
    stacked = {name: np.stack([ds[name].transpose(*dims).values for ds in results]) for name in names}
    found = {name: (("task", *dims), values, first[name].attrs) for name, values in stacked.items()}
    return found | {"load_null": ((), first["load_null"].values, first["load_null"].attrs)}


def _attrs(results: tuple[xr.Dataset, ...], params: dict, titles: list[str]) -> dict[str, Any]:
    first = results[0].attrs
    known = {
        **{name: first[name] for name in (*SAME, *ADAPTER, "experts", "n", "length", "left_out") if name in first},
        "analysis": "task_routing",
        "params": params,
        "primary": "specialisation",
        "sign": "0 = the choice of expert tells nothing of the task, 1 = all; above the null's 95 % point = not chance",
        "seed": params["seed"],
        "task": json.dumps(titles),
        "task_hash": json.dumps([ds.attrs["task_hash"] for ds in results]),
        "tokens": int(sum(ds.attrs["tokens"] for ds in results)),
        "title": f"routing of {', '.join(titles)} in {first['model']}",
    }
    return provenance(**known)
