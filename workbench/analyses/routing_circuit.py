"""Routing as part of a circuit: what a corruption re-routes, what that carries, and which experts carry the answer."""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._expert_outputs import hear, part_of, refuse_other_sum, run_with
from workbench.analyses._experts import (
    RESAMPLES,
    controls,
    ends,
    mean_of,
    metric_of,
    refuse_few,
    routes,
)
from workbench.analyses._patching import Group, gap_between, groups, named, share
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.routers import Routed

WAYS = ["restored", "removed"]  # clean routing put in the corrupted run, corrupted routing in the clean one
OTHER = "other tokens"
AT = ("pos", "layer")
CARRIED = ("measured", "layer")
NODE = ("layer", "expert")


@dataclass(frozen=True)
class _Pair:
    """A group's clean and corrupted run: tokens [row, pos] and how each layer routed; the metric [row] of each.

    changed bool [row, pos], by layer: tokens whose set of experts differs between the two.
    """

    group: Group
    tokens: "tuple[torch.Tensor, torch.Tensor]"
    routed: "tuple[dict[int, Routed], dict[int, Routed]]"
    metric: tuple[np.ndarray, np.ndarray]
    changed: "dict[int, torch.Tensor]"


class _Tally:
    """What was measured; the last entry of a layer axis of `gain` and `random` is all layers together.

    gain [prompt, way, layer] of the routing, random [way, layer, draw] (sums over prompts); node [prompt, layer,
    expert] and whole [prompt, layer], gains of experts and of all of them together.
    """

    def __init__(self, prompts: int, layers: int, experts: int, draws: int) -> None:
        self.gain = np.zeros((prompts, len(WAYS), layers + 1))
        self.random = np.zeros((len(WAYS), layers + 1, draws))
        self.node = np.zeros((prompts, layers, experts))
        self.whole = np.zeros((prompts, layers))


@analysis(
    about="Tokens re-routed by the corruption, what these changes carry, and each expert's output patched by itself.",
    sign="share of the clean-minus-corrupted metric, not clipped; positive = the clean routing or output helps",
    primary="carried",
)
def routing_circuit(model: "Model", task: Task, *, draws: int = 20, batch: int = 64) -> xr.Dataset:
    """Which tokens change experts between clean and corrupted prompt, and how much of the metric's gap that carries.

    carried: at the tokens whose set of experts differs, the choices and weights of the other run are put in. restored =
    (m - m_corrupted) / (m_clean - m_corrupted) with clean routing in the corrupted run, removed = (m_clean - m) /
    (m_clean - m_corrupted) with corrupted routing in the clean run; m means over prompts. A control gives the same
    tokens random other experts with the same weights. effect: in the corrupted run, weight times output of one expert
    is that of the clean run, at all tokens; those of a layer sum to the patch of all its routed experts (`effect_mlp`;
    an expert shared by all tokens is not among them) up to interaction.

    Args:
        model: a mixture of experts whose routing can be read.
        task: its corruption is part of what is measured.
        draws: controls, 20 or more.
        batch: prompts in one forward pass.

    Returns:
        `changed` [pos, layer], share of prompts whose token at a named position changes its set of experts (`other
        tokens`: share of those without a name), with `_low`, `_high` (prompts resampled); there too `margin` (logit of
        the last expert chosen less that of the first one not, in the clean run) and `weight_moved` (half the sum of
        |weight_clean - weight_corrupted| over experts). `changed_tokens` [layer], share of all tokens. `carried`
        [measured, layer] and, of all layers together, `carried_all` [measured], each with its interval, the controls
        `_random`, `_null`, `_null_low`, `_null_high`, and `_p`. `effect` [layer, expert], `effect_mlp` and `effect_sum`
        [layer] with intervals. When stopped early: the layers that were finished.

    Raises:
        AnalysisError: when corrupted and clean prompts give the same metric, each token uses every expert, or an expert
            called alone does not give its part of the layer's output.
        ModelError: when the model has no routers, or they cannot be believed.
    """
    at_least_one(batch=batch)
    refuse_few(draws)
    layers, prompts = model.routers.layers, task.encode(model.tokenizer, bos=model.bos)
    pairs = [_pair(model, group) for group in groups(prompts, task.metric, batch)]
    metric = [np.concatenate([pair.metric[side] for pair in pairs]) for side in (0, 1)]
    order = np.argsort(np.concatenate([pair.group.rows for pair in pairs]))
    clean, corrupted = (values[order] for values in metric)
    gap_between(clean, corrupted, task)
    tally = _Tally(len(prompts), len(layers), model.routers.experts, draws)
    scopes = [len(layers), *range(len(layers))]  # all layers first
    work = list(itertools.product(scopes, range(len(pairs))))
    left = Counter(at for at, _ in work)
    for at, index in track(work, f"routing_circuit {task.name}", len(work)):
        scope = layers if at == len(layers) else [layers[at]]
        _reroute(model, pairs[index], scope, np.random.default_rng([task.seed, at, index]), (tally, at))
        if at < len(layers):
            _patch(model, pairs[index], layers[at], (tally, at))
        left[at] -= 1
    finished = sum(left[at] == 0 for at in range(len(layers)))
    if not finished:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    ds = _dataset(tally, clean - corrupted, finished, task.seed)
    ds = ds.assign(_changes(model, prompts, pairs, layers[:finished], task.seed)).assign_coords(layer=layers[:finished])
    ds = ds.assign_coords(pos=[*named(prompts), *_unnamed(prompts)])
    ds.attrs = {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "n": len(prompts),
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "ranked": int(all(rule.ranked for rule in model.routers.rules.values())),
    }
    return ds


def _pair(model: "Model", group: Group) -> _Pair:
    tokens = model.tensor(group.clean), model.tensor(group.corrupted)
    (first, clean), (second, corrupted) = (routes(model, side) for side in tokens)
    if any(routed.chosen.shape[-1] == model.routers.experts for routed in clean.values()):
        raise AnalysisError("Each token uses every expert of this model, so no token can be re-routed.")
    metric = metric_of(model, group, first), metric_of(model, group, second)
    chosen = {layer: [side[layer].chosen.sort(-1).values for side in (clean, corrupted)] for layer in clean}
    return _Pair(group, tokens, (clean, corrupted), metric, {at: (a != b).any(-1) for at, (a, b) in chosen.items()})


def _reroute(
    model: "Model", pair: _Pair, layers: list[int], rng: np.random.Generator, into: tuple[_Tally, int]
) -> None:
    """Tokens that changed experts given the other run's, in some layers at once, then the controls."""
    tally, at = into
    for way, (base, giver) in enumerate(((1, 0), (0, 1))):
        given = {layer: (pair.routed[giver][layer].chosen, pair.routed[giver][layer].weights) for layer in layers}
        sign, rows = 1 - 2 * way, pair.group.rows
        tally.gain[rows, way, at] = sign * (_swapped(model, pair, base, given) - pair.metric[base])
        for draw in range(tally.random.shape[-1]):
            random = {
                layer: (model.tensor(others(chosen.cpu().numpy(), model.routers.experts, rng)), weights)
                for layer, (chosen, weights) in given.items()
            }
            tally.random[way, at, draw] += sign * (_swapped(model, pair, base, random) - pair.metric[base]).sum()


def others(chosen: np.ndarray, experts: int, rng: np.random.Generator) -> np.ndarray:
    """As many random experts for each token, int64 [..., k], none of those chosen where there are enough others."""
    rank = rng.random((*chosen.shape[:-1], experts))
    np.put_along_axis(rank, chosen, np.take_along_axis(rank, chosen, -1) + 1, -1)
    return rank.argsort(-1)[..., : chosen.shape[-1]]


def _swapped(
    model: "Model", pair: _Pair, base: int, given: "dict[int, tuple[torch.Tensor, torch.Tensor]]"
) -> np.ndarray:
    """The metric [row] of one of the runs with choices and weights given to the tokens that changed experts."""
    if not any(bool(pair.changed[layer].any()) for layer in given):
        return pair.metric[base]  # nothing is put in, so nothing changes

    def put(layer: int) -> Any:
        mask, (mine, own) = pair.changed[layer][..., None], given[layer]
        return lambda chosen, weights: (mine.where(mask, chosen), own.where(mask, weights))

    last = model.routers.run(pair.tokens[base], reroute={layer: put(layer) for layer in given})
    return metric_of(model, pair.group, last)


def _patch(model: "Model", pair: _Pair, layer: int, into: tuple[_Tally, int]) -> None:
    """Each expert's clean part of the layer's output put in the corrupted run, and all of them together."""
    (tally, at), rows, base = into, pair.group.rows, pair.metric[1]
    heard = [hear(model, tokens, layer) for tokens in pair.tokens]
    total = [0 * side.out for side in heard]
    for expert in range(model.routers.experts):
        clean, corrupted = (part_of(model, layer, side, expert) for side in heard)
        total = [total[0] + clean, total[1] + corrupted]
        tally.node[rows, at, expert] = _added(model, pair, layer, clean - corrupted) - base
    for side, parts in zip(heard, total, strict=True):
        refuse_other_sum(layer, parts, side)
    tally.whole[rows, at] = _added(model, pair, layer, heard[0].out - heard[1].out) - base


def _added(model: "Model", pair: _Pair, layer: int, more: "torch.Tensor") -> np.ndarray:
    """The metric [row] of the corrupted run with `more` [token, d] added to what the layer's experts give."""
    if not more.any():
        return pair.metric[1]
    return metric_of(model, pair.group, run_with(model, pair.tokens[1], layer, more))


def _dataset(tally: _Tally, gap: np.ndarray, layers: int, seed: int) -> xr.Dataset:
    parts = {"carried": (CARRIED, slice(layers)), "carried_all": (("measured",), -1)}
    variables: dict[str, tuple] = {}
    for name, (dims, at) in parts.items():
        say = {"long_name": "carried by re-routed tokens", "units": "share", "signed": 1}
        found = share(tally.gain[:, :, at], gap, RESAMPLES, seed)
        variables |= ends(name, dims, found, say)
        variables |= controls(name, dims, tally.random[:, at] / gap.sum(), found[0], say)
    for name, dims, gain in (
        ("effect", NODE, tally.node),
        ("effect_mlp", ("layer",), tally.whole),
        ("effect_sum", ("layer",), tally.node.sum(-1)),
    ):
        what = {"effect": "an expert's output", "effect_mlp": "all experts' output", "effect_sum": "experts, summed"}
        say = {"long_name": f"recovered by {what[name]}", "units": "share", "signed": 1}
        variables |= ends(name, dims, share(gain[:, :layers], gap, RESAMPLES, seed), say)
    coords = {"measured": WAYS, "expert": np.arange(tally.node.shape[-1]), "seed": np.arange(tally.random.shape[-1])}
    return xr.Dataset(variables, coords=coords)


def _unnamed(prompts: Prompts) -> list[str]:
    """The label of the tokens without a name, where every prompt has some."""
    known = [len(set(marks.values())) for marks in prompts.positions]
    return [OTHER] if (prompts.lengths > known).all() else []


def _changes(model: "Model", prompts: Prompts, pairs: list[_Pair], layers: list[int], seed: int) -> dict[str, tuple]:
    """What is said of the tokens at each position and layer; the first two axes of each table are prompt and pos."""
    count = len(named(prompts)) + len(_unnamed(prompts))
    found = {name: np.empty((len(prompts), count, len(layers))) for name in ("changed", "margin", "weight_moved")}
    tokens = np.zeros(len(layers))
    for pair in pairs:
        for at, layer in enumerate(layers):
            for name, values in _of_tokens(pair, layer).items():
                found[name][pair.group.rows, :, at] = _at_positions(prompts, pair.group.rows, values, count)
            tokens[at] += int(pair.changed[layer].sum())
    say = {"long_name": "share of prompts whose token changes experts", "units": "share"}
    margin = {"long_name": "router logit of the last expert chosen less that of the first one not", "units": "logits"}
    moved = {"long_name": "weight that moves between experts", "units": "1"}
    return ends("changed", AT, mean_of(found["changed"], seed), say) | {
        "margin": (AT, found["margin"].mean(0), margin),
        "weight_moved": (AT, found["weight_moved"].mean(0), moved),
        "changed_tokens": ("layer", tokens / prompts.lengths.sum(), say | {"long_name": "share of tokens re-routed"}),
    }


def _of_tokens(pair: _Pair, layer: int) -> dict[str, np.ndarray]:
    """Numbers of a layer's tokens, float64 [row, pos]."""
    clean, corrupted = (side[layer] for side in pair.routed)
    k = clean.chosen.shape[-1]
    top = clean.logits.topk(k + 1).values
    dense = [
        side.logits.new_zeros(side.logits.shape).scatter_add(-1, side.chosen, side.weights.to(side.logits.dtype))
        for side in (clean, corrupted)
    ]
    found = {
        "changed": pair.changed[layer],
        "margin": top[..., k - 1] - top[..., k],
        "weight_moved": (dense[0] - dense[1]).abs().sum(-1) / 2,
    }
    return {name: values.cpu().double().numpy() for name, values in found.items()}


def _at_positions(prompts: Prompts, rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Values [row, pos of the prompt] at the named positions, and their mean over the other tokens, [row, pos]."""
    each, free = np.arange(len(rows)), np.ones(values.shape, bool)
    columns = [values[each, place[rows]] for place in named(prompts).values()]
    for row, index in enumerate(rows):
        free[row, list(prompts.positions[index].values())] = False
    if len(columns) < count:
        columns.append((values * free).sum(1) / free.sum(1))
    return np.stack(columns, 1)
