"""A map of tokens: what a model holds of each, or what its routers say of each, in two dimensions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._places import INPUT, distances, nearest, principal, trust, umap
from workbench.analyses._routing import Batch, entropy
from workbench.analyses._tokens import KINDS, kinds_of
from workbench.models.reference import ModelError
from workbench.progress import Cancelled, track
from workbench.tasks import Task, make_task

if TYPE_CHECKING:
    from workbench.models.model import Model
    from workbench.models.routers import Routed

STREAM = "blocks.{}.hook_resid_pre"
SAMPLE = 2000  # tokens of which all distances are taken
NEIGHBOURS = 15  # of a token, for trustworthiness and for the shares of equal labels
DRAWS = 200  # shuffles of labels
HIGH = 0.95  # the point of a null that is given beside its mean
LABELS = ("expert", "task", "kind")
SPACES = ("on the map", "in the full space")
Parts = dict[str, np.ndarray]
Place = Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]]


@analysis(
    about="A map of a task's tokens by PCA or UMAP, with how far it can be trusted; distances between the clusters of "
    "a UMAP mean little.",
    sign="near on the map = alike in the space; PCA keeps the largest distances, UMAP only who is near whom",
    primary="x",
    paper="1802.03426 (McInnes et al., UMAP), for method=umap",
)
def embedding(
    model: "Model",
    task: Task,
    *,
    space: Literal["residual", "router"] = "residual",
    layer: int = -1,
    method: Literal["pca", "umap"] = "pca",
    tasks: str = "",
    length: int = 64,
    sequences: int = 128,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    batch: int = 8,
) -> xr.Dataset:
    """Two coordinates for each token of running text, and what each token is.

    Text is the task's prompts with their answers, one after the other, cut at `length` tokens, BOS in front where the
    model is run with one. BOS is run but is not on the map: it would be the same point in every sequence. Several tasks
    are on one map when they are placed together, so `tasks` names those beside `task`; sequences of all take turns.

    PCA is exact: the singular vectors of the centred numbers. UMAP works on their first 50 principal components where
    there are more. It keeps neighbourhoods; distances between its clusters, and their sizes, mean little. Beside the
    picture stands its trustworthiness (Venna and Kaski 2001) with that of shuffled maps, and the share of a token's
    nearest tokens in *other* sequences that have its label, on the map and in the full space, with that of labels
    shuffled among tokens (of tasks: among sequences). All are taken of at most 2,000 tokens drawn at random.

    Memory is 4 bytes for each number of each token: 100,000 tokens of 768 numbers take 0.3 GB, of 4,096 numbers 1.6 GB;
    PCA adds 16 bytes for each pair of numbers, UMAP 0.2 kB a token besides its own graph.

    Args:
        model: raw weights where `space` is router.
        task: whose text is read.
        space: the residual stream before the block, or the block's router logits, less their mean over experts where
            the router's softmax does not see it.
        layer: which block; negative counts from the last (of those that route, where `space` is router).
        method: pca or umap.
        tasks: names of further tasks on the same map, with commas between; same seed, their first corruption.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences of each task.
        n_neighbors: of UMAP: few show fine structure, many the broad one.
        min_dist: of UMAP: how near to each other points may lie.
        batch: sequences in one forward pass.

    Returns:
        `x`, `y` [prompt, pos] float32; `first_expert` [prompt, pos], the expert with the largest logit among those
        chosen in that block, -1 where it does not route; `probability` of it and `entropy` of the router's
        probabilities / ln E [prompt, pos], only where it routes; `kind` [prompt, pos] and `task_index` [prompt],
        numbers into the attributes `kinds` and `tasks`; `trustworthiness`, `trustworthiness_null`; `same`, `same_null`,
        `same_null_high` [measured, component], shares of equal labels. `token` [prompt, pos] is a coordinate. Of PCA
        the attributes `variance_x` and `variance_y` are shares of the variance. When stopped early: PCA of the
        sequences done.

    Raises:
        AnalysisError: for a length, layer or number of neighbours the model or text does not have, a task twice, or
            tokens that are all the same point.
        ModelError: when `space` is router and the model's routers cannot be read or believed.
    """
    if not 2 + model.bos <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes {2 + model.bos} to {model.context} tokens.")
    at_least_one(sequences=sequences, batch=batch)
    if sequences < 2:
        raise AnalysisError(f"sequences is {sequences}; neighbours are sought in other sequences, so take 2 or more.")
    family, reader = [task, *_further(task, tasks)], _reader(model, space, layer)
    place = _placer(method, n_neighbors, min_dist, len(family) * sequences * (length - model.bos), task.seed)
    tokens, index = _text(model, family, length, sequences)
    found = _read(reader, tokens, batch, f"embedding {task.name}")
    values = found.pop("values")
    tokens, index = tokens[: len(values), int(model.bos) :], index[: len(values)]
    found |= {"task_index": index, "kind": kinds_of(model, tokens).astype(np.int8)}
    values = values.reshape(tokens.size, -1)
    if not np.ptp(values, axis=0).any():
        raise AnalysisError("All tokens are the same point in this space; choose another layer.")
    places, about = place(values)
    variables = _variables(found, places.reshape(*tokens.shape, 2), method, space)
    variables |= _measures(values, places, found, tokens.shape, task.seed)
    ds = _dataset(variables, tokens, model)
    ds.attrs = about | _attrs(reader, family, tokens) | {"method": method, "width": values.shape[1]}
    return ds


def _attrs(reader: "_Reader", family: list[Task], tokens: np.ndarray) -> dict[str, Any]:
    names = ", ".join(each.name for each in family)
    return {
        "space": reader.space,
        "layer": reader.layer,
        "routing": reader.reason,
        "n": len(tokens),
        "tokens": tokens.size,
        "sample": min(SAMPLE, tokens.size),
        "tasks": json.dumps([each.title for each in family]),
        "kinds": json.dumps(KINDS),
        "bos": int(reader.model.bos),
        "left_out": "BOS",
        "title": f"Tokens of {names} in {reader.model.reference}",
    }


def _further(task: Task, names: str) -> list[Task]:
    """The tasks named, with the seed of the first."""
    found = [make_task(name.strip(), seed=task.seed) for name in names.split(",") if name.strip()]
    titles = [each.title for each in (task, *found)]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise AnalysisError(f"The task {twice[0]} would be on the map twice; name each of `tasks` once.")
    return found


def _text(model: "Model", family: list[Task], length: int, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [prompt, pos] of all tasks in turns, so that a run stopped early has some of each; and whose they are."""
    parts = [each.documents(model.tokenizer, length=length, count=sequences, bos=model.bos) for each in family]
    index = np.tile(np.arange(len(family), dtype=np.int16), sequences)
    return np.stack(parts, axis=1).reshape(-1, length), index


@dataclass(frozen=True)
class _Reader:
    """What is read of one block: the numbers that are placed, and its routing where it has one."""

    model: "Model"
    space: str
    layer: int
    routed: bool
    reason: str

    def __call__(self, rows: np.ndarray) -> Parts:
        """Of tokens [row, pos]: `values` [row, pos, number], `first_expert`; where it routes, how surely."""
        found: Parts = {"first_expert": np.full(rows.shape, -1, np.int16)}
        if self.routed:
            self.model.routers.run(self.model.tensor(rows), self._routes(found))
        if self.space == "residual":
            name = STREAM.format(self.layer)
            found["values"] = self.model.capture(rows, [name])[1][name].float().cpu().numpy()
        return found

    def _routes(self, found: Parts) -> Callable[["Routed"], None]:
        def read(routed: "Routed") -> None:
            if routed.layer != self.layer:
                return
            rule = self.model.routers.rules[self.layer].weights
            batch = Batch.of(routed, rule, np.ones(routed.chosen.shape[:2], bool))
            found["first_expert"] = batch.chosen[..., 0].astype(np.int16)
            found["probability"] = np.take_along_axis(batch.probability, batch.chosen[..., :1], -1)[..., 0]
            found["entropy"] = entropy(batch.probability) / np.log(batch.logits.shape[-1])
            if self.space == "router":
                mean = batch.logits.mean(-1, keepdims=True) if rule.startswith("softmax") else 0
                found["values"] = batch.logits - mean

        return read


def _reader(model: "Model", space: str, layer: int) -> _Reader:
    """A reader of the block asked for, once it is known to exist."""
    routing, reason = [], "routers read and proved"
    try:
        routing = model.routers.layers
    except ModelError as error:
        if space == "router":
            raise
        reason = str(error)
    known = routing if space == "router" else list(range(model.n_layers))
    at = known[layer] if -len(known) <= layer < 0 else layer
    if at not in known:
        raise AnalysisError(f"layer is {layer}; for space={space} this model has {known[0]} to {known[-1]}.")
    return _Reader(model, space, at, at in routing, reason)


def _read(reader: _Reader, tokens: np.ndarray, size: int, what: str) -> Parts:
    """Everything read of the sequences that were run, [prompt, pos] without BOS, float32 where it is no number."""
    kept: Parts = {}
    done, starts = 0, range(0, len(tokens), size)
    for start in track(starts, what, len(starts)):
        for name, values in reader(tokens[start : start + size]).items():
            own = values[:, int(reader.model.bos) :]
            if name not in kept:
                kind = own.dtype if own.dtype.kind == "i" else np.float32
                kept[name] = np.empty((len(tokens), *own.shape[1:]), kind)
            kept[name][start : start + len(own)] = own
        done = min(start + size, len(tokens))
    if done < 2:
        raise Cancelled("Stopped before two sequences were finished, so there is no map to keep.")
    return {name: values[:done] for name, values in kept.items()}


def _placer(method: str, n_neighbors: int, min_dist: float, count: int, seed: int) -> Place:
    """What places [token, number] on the map, float32 [token, 2], and says how; `count` tokens there are."""
    if method == "pca":
        return _by_pca
    if not (2 <= n_neighbors < count and 0 <= min_dist <= 1):
        raise AnalysisError(f"n_neighbors is {n_neighbors} and min_dist {min_dist}; use 2 to {count - 1}, and 0 to 1.")

    def by_umap(values: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        said = f"all {values.shape[1]} numbers of a token"
        if values.shape[1] > INPUT:
            values, share = principal(values, INPUT)
            said = f"the first {INPUT} principal components, {share.sum():.1%} of the variance"
        try:
            return umap(values, n_neighbors, min_dist, seed), {"umap_input": said}
        except Cancelled:
            raise Cancelled("Stopped before UMAP had placed the tokens, so there is no map to keep.") from None

    return by_umap


def _by_pca(values: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    places, share = principal(values, 2)
    return places, {"variance_x": float(share[0]), "variance_y": float(share[1])}


def _variables(found: Parts, places: np.ndarray, method: str, space: str) -> dict[str, Any]:
    at = ("prompt", "pos")
    units = "1" if method == "umap" else {"residual": "residual stream", "router": "logits"}[space]
    axis = {"pca": "principal component", "umap": "UMAP coordinate"}[method]
    say: dict[str, Any] = {
        "first_expert": {"long_name": "expert chosen first, -1 for none", "units": "expert"},
        "probability": {"long_name": "router probability of the expert chosen first", "units": "1"},
        "entropy": {"long_name": "entropy of the router's probabilities / ln E", "units": "share"},
        "kind": {"long_name": "kind of token", "units": "number in `kinds`"},
        "task_index": {"long_name": "task the sequence is from", "units": "number in `tasks`"},
    }
    variables: dict[str, Any] = {
        name: (at, places[..., place], {"long_name": f"{axis} {place + 1}", "units": units, "signed": 1})
        for place, name in enumerate(("x", "y"))
    }
    return variables | {name: (at[: values.ndim], values, say[name]) for name, values in found.items()}


def _measures(values: np.ndarray, places: np.ndarray, found: Parts, shape: tuple[int, ...], seed: int) -> dict:
    """Trustworthiness, and shares of equal labels among neighbours, with their nulls, of a sample of the tokens."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(values))[:SAMPLE])
    prompt = chosen // shape[1]
    space = {name: distances(part[chosen]) for name, part in zip(SPACES, (places, values), strict=True)}
    k = max(1, min(NEIGHBOURS, (len(chosen) - 1) // 2))
    seen, null = trust(space[SPACES[1]], nearest(space[SPACES[0]], k), rng)
    say = {"long_name": f"trustworthiness of {k} neighbours on the map", "units": "share"}
    variables: dict[str, Any] = {"trustworthiness": ((), np.array(seen), say)}
    variables["trustworthiness_null"] = ((), np.array(null), {**say, "long_name": "trustworthiness of shuffled maps"})
    own = prompt[:, None] == prompt
    k = max(1, min(NEIGHBOURS, int((~own).sum(1).min())))
    near = [nearest(np.where(own, np.inf, far), k) for far in space.values()]
    labels = [found[name].ravel()[chosen] for name in ("first_expert", "kind")]
    rows = []
    for name, label in zip(LABELS, (labels[0], found["task_index"][prompt], labels[1]), strict=True):
        drawn = [_shuffled(name, label, found["task_index"], prompt, rng) for _ in range(DRAWS)]
        rows.append([[_same(label, each), *_chance([_same(other, each) for other in drawn])] for each in near])
    cells = np.array(rows)  # [component, measured, (seen, null, high)]
    say = {"long_name": f"share of the {k} nearest tokens of other sequences with the same label", "units": "share"}
    return variables | {
        f"same{end}": (("measured", "component"), cells[..., at].T, dict(say))
        for at, end in enumerate(("", "_null", "_null_high"))
    }


def _same(label: np.ndarray, near: np.ndarray) -> float:
    return float((label[near] == label[:, None]).mean())


def _chance(drawn: list[float]) -> tuple[float, float]:
    return float(np.mean(drawn)), float(np.quantile(drawn, HIGH))


def _shuffled(name: str, label: np.ndarray, tasks: np.ndarray, prompt: np.ndarray, rng: Any) -> np.ndarray:
    """Labels shuffled among tokens; those of tasks among sequences, which have one each."""
    return rng.permutation(tasks)[prompt] if name == "task" else rng.permutation(label)


def _dataset(variables: dict[str, Any], tokens: np.ndarray, model: "Model") -> xr.Dataset:
    ids, where = np.unique(tokens, return_inverse=True)
    text = np.array(model.tokens(ids))[where.reshape(tokens.shape)]
    coords: dict[str, Any] = {"prompt": np.arange(len(tokens)), "pos": np.arange(tokens.shape[1]) + int(model.bos)}
    coords |= {"component": list(LABELS), "measured": list(SPACES), "token": (("prompt", "pos"), text)}
    return xr.Dataset(variables, coords=coords)
