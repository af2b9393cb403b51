"""How many directions of what makes experts differ a task needs: their differences from a base cut to rank r."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._expert_weights import NAMES, SCORES, loaded, put, score, stored, with_own_routers
from workbench.analyses._experts import ends, mean_of, unit_of
from workbench.analyses._patching import Group, groups
from workbench.analyses._routing import entropy
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

MEAN = "mean"
MODULES = ("gate and up", "down")
DENSE = ("gate_proj", "up_proj", "down_proj")
FEWEST = 5  # random subspaces of each rank
Pair = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True)
class _Change:
    """What a weight matrix of a layer's experts is beside its base, change = weight - base, and its directions.

    base [1 or expert, row, column], change [expert, row, column]; directions [expert, side, value] are its singular
    vectors on its shorter side, those of the largest singular values first, and squares [expert, value] those values'
    squares.
    """

    base: "torch.Tensor"
    change: "torch.Tensor"
    directions: "torch.Tensor"
    squares: np.ndarray

    @property
    def full(self) -> int:
        """The rank of a matrix of this shape."""
        return self.squares.shape[1]

    def leading(self, rank: int) -> "torch.Tensor":
        """The weights [expert, row, column] with the truncated SVD of that rank in place of the change."""
        return self._within(self.directions[..., :rank])

    def random(self, rank: int, rng: np.random.Generator) -> "torch.Tensor":
        """The same with the change projected on a random subspace of that rank on its shorter side, one an expert."""
        import torch

        if rank >= self.full:
            return self.leading(rank)
        drawn = torch.from_numpy(rng.standard_normal((len(self.squares), self.full, rank)))
        return self._within(torch.linalg.qr(drawn).Q.to(self.change))

    def _within(self, subspace: "torch.Tensor") -> "torch.Tensor":
        """Base and what of the change lies in subspaces, orthonormal [expert, side, direction]."""
        if self.change.shape[1] <= self.change.shape[2]:
            return self.base + subspace @ (subspace.mT @ self.change)
        return self.base + (self.change @ subspace) @ subspace.mT


Changes = Mapping[int, tuple[_Change, _Change]]


@analysis(
    about="What a task loses when experts differ from a base in r directions only, beside r random directions.",
    sign="loss: nats, lower is better; rank 0: every expert is the base; full rank: the model as it is",
    primary="loss",
    paper="2602.08818 (FlexMoRE): experts as a base and the truncated SVD of their difference from it, score by rank",
    other="base",
)
def expert_truncation(
    model: "Model", task: Task, *, base: str = "mean", draws: int = FEWEST, batch: int = 64
) -> xr.Dataset:
    """The score of a task with all experts cut to rank r, for r of 0, powers of two, and the full rank.

    Of every expert's weight matrix W (gate and up in one, as they are stored; down), W - base = U S V' becomes its
    first r terms, for all experts of all layers at once; biases and all other weights stay. The null projects
    W - base, on its shorter side, on a random subspace of r dimensions, drawn anew for each expert and matrix.
    With s the singular values of W - base: energy is sum_{i<=r} s_i^2 / sum s^2 and the effective rank exp(H(q)) with
    q = s^2 / sum s^2; of a difference of 0 all is on the first.

    Args:
        model: a mixture of experts whose weights are 3-D parameters `gate_up_proj` and `down_proj`.
        task: whose clean prompts are answered.
        base: `mean`, that of the layer's experts; or the reference of another model, whose experts of the same layer
            and number, or whose dense MLPs (the base of an upcycled model), are the base.
        draws: random subspaces of each rank, 5 or more.
        batch: prompts in one forward pass.

    Returns:
        By rank (`size`): `loss` (nats, of the answer), `accuracy`, `metric`, with `_low`, `_high` (prompts resampled),
        `_random` [size, seed], their mean `_null` and range `_null_low`, `_null_high`; `retained`, the energy retained
        over all experts, `retained_null`, that expected of random subspaces, and `parameters`, numbers in the factors
        over those in the differences. `energy` [layer, expert, module, size]; `effective_rank` [layer, expert, module]
        and that of a normal matrix, `effective_rank_null` [module]. When stopped early: the ranks that were finished.

    Raises:
        AnalysisError: for fewer draws than 5, experts that are stored in another form, or a base of another shape.
        ModelError: when the model has no routers or they cannot be believed, or there is no such base.
    """
    at_least_one(batch=batch)
    if draws < FEWEST:
        raise AnalysisError(f"draws is {draws}; the range of random subspaces needs {FEWEST} or more.")
    prompts = task.encode(model.tokenizer, bos=model.bos)
    parts, copy = groups(prompts, task.metric, batch), with_own_routers(model)
    plain = _scores(copy, parts, len(prompts)).mean(1)
    changes = _changes(copy, base, task)
    sizes = _sizes(max(change.full for pair in changes.values() for change in pair))
    work = [(rank, draw) for rank in sizes for draw in range(-1, draws if 0 < rank < sizes[-1] else 0)]
    found = {}
    for rank, draw in track(work, f"expert_truncation {task.name}", len(work)):
        _cut(copy, changes, rank, None if draw < 0 else np.random.default_rng([task.seed, rank, draw]))
        found[rank, draw] = _scores(copy, parts, len(prompts))
    sizes = sizes[: sum(all(item in found for item in work if item[0] == rank) for rank in sizes)]
    if not sizes:
        raise Cancelled("Stopped before the first rank was finished, so there is no result to keep.")
    # where every subspace is the same one, at rank 0 and the full rank, none is drawn
    drawn = [[found.get((rank, draw), found[rank, -1]).mean(1) for draw in range(draws)] for rank in sizes]
    ds = _scored(np.stack([found[rank, -1] for rank in sizes]), np.array(drawn), task)
    ds = ds.merge(_spectra(changes, sizes, task.seed)).assign_coords(size=sizes, seed=np.arange(draws))
    ds.attrs = {"base": base, "n": len(prompts), "metric_name": task.metric, "corruption": task.corruption}
    return ds.assign_attrs({f"{name}_whole": float(value) for name, value in zip(SCORES, plain, strict=True)})


def _sizes(full: int) -> list[int]:
    """0, powers of two under the full rank, and that."""
    return [0, *(2**power for power in range(full.bit_length()) if 2**power < full), full]


def _changes(model: "Model", base: str, task: Task) -> Changes:
    """The changes of all layers' gates and ups, and downs."""
    weights = {layer: stored(experts, layer) for layer, (_, experts) in model.routers.parts.items()}
    bases = None if base == MEAN else _bases(model, base, weights)
    found = {
        layer: _decomposed(weights[layer], None if bases is None else bases[layer])
        for layer in track(list(weights), f"expert_truncation {task.name}: directions", len(weights))
    }
    if len(found) < len(weights):
        raise Cancelled("Stopped before the first rank was finished, so there is no result to keep.")
    return found


def _decomposed(weights: Pair, bases: Pair | None) -> tuple[_Change, _Change]:
    from workbench.models.ends import at_least_single

    first, second = (at_least_single(weight) for weight in weights)
    if bases is None:
        return _change(first, first.mean(0, keepdim=True)), _change(second, second.mean(0, keepdim=True))
    return _change(first, at_least_single(bases[0])), _change(second, at_least_single(bases[1]))


def _change(weight: "torch.Tensor", base: "torch.Tensor") -> _Change:
    import torch

    change = weight - base
    short = (change if change.shape[1] <= change.shape[2] else change.mT).double()
    squares, vectors = torch.linalg.eigh(short @ short.mT)
    squares, vectors = squares.flip(-1).clamp_min(0).cpu().numpy(), vectors.flip(-1).to(change)
    return _Change(base, change, vectors, squares)


def _bases(model: "Model", base: str, weights: Mapping[int, Pair]) -> dict[int, Pair]:
    """The weights of another model's experts, or of its MLPs as those of a single expert."""
    from workbench.models.reference import ModelError

    other = loaded(model, base)
    try:
        found = {layer: stored(experts, layer) for layer, (_, experts) in other.routers.parts.items()}
    except ModelError:
        found = dict(enumerate(_dense(other)))
    for layer, own in weights.items():
        if layer not in found or not all(_fits(*pair) for pair in zip(own, found[layer], strict=True)):
            shapes = " and ".join(str(tuple(part.shape)) for part in own)
            raise AnalysisError(
                f"'{base}' has no experts or MLP in layer {layer} of the shapes {shapes} of this model's experts; "
                f"use another checkpoint of it, the dense model it was made from, or base='{MEAN}'."
            )
    return found


def _fits(own: "torch.Tensor", base: "torch.Tensor") -> bool:
    """Whether a base is of the shape of each expert's weights, and is one for all or for each."""
    return base.shape[1:] == own.shape[1:] and len(base) in (1, len(own))


def _dense(model: "Model") -> Iterable[Pair]:
    """Weights of a dense model's MLPs in the form of experts' ones, [1, row, column], a layer each."""
    import torch

    for part in model.plain.modules():
        if all(hasattr(part, name) for name in DENSE):
            gate, up, down = (getattr(part, name).weight.detach() for name in DENSE)
            yield torch.cat([gate, up])[None], down[None]


def _cut(model: "Model", changes: Changes, rank: int, rng: np.random.Generator | None) -> None:
    """Put weights of that rank into the copy: the leading directions, or random ones."""
    for layer, pair in changes.items():
        cut = [each.leading(rank) if rng is None else each.random(rank, rng) for each in pair]
        experts = model.routers.parts[layer][1]
        put(experts, {name: part.to(experts.state_dict()[name]) for name, part in zip(NAMES, cut, strict=True)})


def _scores(model: "Model", parts: list[Group], count: int) -> np.ndarray:
    """`SCORES` of all prompts, float64 [score, prompt]."""
    found = np.empty((len(SCORES), count))
    for part in parts:
        found[:, part.rows] = score(model, part, model.routers.run(model.tensor(part.clean)))
    return found


def _scored(found: np.ndarray, drawn: np.ndarray, task: Task) -> xr.Dataset:
    """Scores by rank, found [size, score, prompt] and drawn [size, seed, score]."""
    says = (
        {"long_name": "loss of the answer", "units": "nats"},
        {"long_name": "share of prompts with an answer above every wrong one", "units": "share"},
        {"long_name": "metric", "units": unit_of(task), "signed": 1},
    )
    variables: dict[str, tuple] = {}
    for place, (name, say) in enumerate(zip(SCORES, says, strict=True)):
        variables |= ends(name, ("size",), mean_of(found[:, place].T, task.seed), say)
        random, values = say | {"long_name": f"{say['long_name']}, random subspaces"}, drawn[..., place]
        variables[f"{name}_random"] = (("size", "seed"), values, random)
        for end, part in (("", values.mean(1)), ("_low", values.min(1)), ("_high", values.max(1))):
            variables[f"{name}_null{end}"] = ("size", part, random)
    return xr.Dataset(variables)


def _spectra(changes: Changes, sizes: list[int], seed: int) -> xr.Dataset:
    """Energy and effective rank of every change, and what all of them retain."""
    each = ("layer", "expert", "module")
    shares = [[_shares(change.squares) for change in pair] for pair in changes.values()]
    energy = np.stack([np.stack([_energy(part, sizes) for part in pair], 1) for pair in shares])
    rank = np.exp([np.stack([entropy(part) for part in pair], 1) for pair in shares])
    total = np.stack([np.stack([change.squares.sum(1) for change in pair], 1) for pair in changes.values()])
    weight = total / total.sum() if total.any() else np.full(total.shape, 1 / total.size)
    full = [change.full for change in next(iter(changes.values()))]
    random = np.minimum(np.array(sizes) / np.array(full)[:, None], 1)
    say = {"long_name": "share of the squared singular values in the largest r", "units": "share"}
    effective = {"long_name": "effective rank of an expert's difference from the base", "units": "1"}
    normal = {"long_name": "effective rank of a normal matrix", "units": "1"}
    variables = {
        "energy": ((*each, "size"), energy, say),
        "effective_rank": (each, rank, effective),
        "effective_rank_null": ("module", _of_normal(changes, seed), normal),
        "retained": ("size", np.tensordot(weight, energy, 3), say | {"long_name": "energy retained by all experts"}),
        "retained_null": (
            "size",
            weight.sum((0, 1)) @ random,
            say | {"long_name": "energy expected in random subspaces"},
        ),
        "parameters": ("size", _factors(changes, sizes), {"long_name": "numbers in the factors", "units": "share"}),
    }
    coords = {"layer": list(changes), "expert": np.arange(rank.shape[1]), "module": list(MODULES)}
    return xr.Dataset(variables, coords=coords)


def _shares(squares: np.ndarray) -> np.ndarray:
    """Squared singular values [expert, value] over their sum; all on the first where that is 0."""
    total = squares.sum(1, keepdims=True)
    return np.where(total > 0, squares / np.where(total > 0, total, 1), np.arange(squares.shape[1]) == 0)


def _energy(shares: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Sum of the first shares, [expert, size]."""
    total = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, 1)], 1)
    return np.minimum(total[:, np.minimum(sizes, shares.shape[1])], 1)


def _of_normal(changes: Changes, seed: int) -> np.ndarray:
    """The effective rank of a normal matrix of each module's shape."""
    rng, pair = np.random.default_rng(seed), next(iter(changes.values()))
    drawn = [np.linalg.svd(rng.standard_normal(change.change.shape[1:]), compute_uv=False) ** 2 for change in pair]
    return np.exp([entropy(squares / squares.sum()) for squares in drawn])


def _factors(changes: Changes, sizes: list[int]) -> np.ndarray:
    """Numbers in two factors of each rank, or in the difference itself where it has fewer, over those in it."""
    shapes = [change.change.shape for pair in changes.values() for change in pair]
    whole = sum(count * rows * columns for count, rows, columns in shapes)
    return np.array([sum(n * min(r * (i + j), i * j) for n, i, j in shapes) / whole for r in sizes])
