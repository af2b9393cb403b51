"""Secondary sinks: tokens that an MLP turns towards the primary sink in mid-network, how long they stay, and why."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import analysis, interval, resamples
from workbench.analyses._ranks import rank_correlation
from workbench.analyses._sinks import (
    FIRST,
    LABELS,
    NONE,
    SECONDARY,
    Rule,
    Sinks,
    born,
    documents,
    find_sinks,
    named_tokens,
    open_layers,
    readers,
    rule_of,
    trace,
)
from workbench.analyses._stages import STAGES, listening
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model

DRAWS, CANDIDATES = 8, 16  # null directions a sequence; tokens they are chosen from, in case some are sinks
RESAMPLES = 1000


@dataclass(frozen=True)
class _Part:
    """What is kept of one batch: arrays that begin with the row, but `null` counts [draw, kind, layer, lifetime]."""

    tokens: np.ndarray
    sinks: Sinks
    cosine: np.ndarray
    norms: np.ndarray
    scores: np.ndarray
    mlp_norms: np.ndarray
    stages: dict[str, np.ndarray]
    null: np.ndarray
    null_rows: int


@analysis(
    about="Tokens that become attention sinks in mid-network: level, lifetime, norm, and which MLP stage makes them.",
    sign="counts of tokens; cosines are to the primary sink of the same sequence and layer",
    primary="level_count",
    paper="2512.22213 (Wong et al.): detection of secondary sinks, sink levels, alignment through the MLP",
)
def secondary_sinks(
    model: "Model",
    task: Task,
    *,
    length: int = 64,
    sequences: int = 32,
    cosine: float = 0.9,
    preset: Literal["relative", "paper"] = "relative",
    window: Literal["norm", "all"] = "norm",
    batch: int = 8,
) -> xr.Dataset:
    """Which tokens are sinks, from which layer, for how many layers, and what their MLP's norm and stages have in it.

    The primary sink is the one of the first two tokens with the higher mean norm of block outputs. A later token is a
    sink in a layer where |cos| of its residual to the primary's is over `cosine`, inside the layers between the
    steepest rise and the steepest drop of the primary's norm. Its first such layer is its creation, their number its
    lifetime, both together its sink level. The label goes by lifetime: noise, secondary, or primary (about as long as
    a primary sink's).

    The null is the same detector with the direction of another token, which is no sink, in the primary's place.
    Stages are compared at the creation layer, in the sinks and in tokens that are none: of the same token ids where
    there are such (attribute `controls`). An MLP without a gate has `up`, before its activation, and `product`, after.
    Cosines keep their sign there, so that sinks on opposite sides of the primary cancel.

    Args:
        model: raw weights, of a family whose attention can be read.
        task: whose text is read.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        cosine: threshold of |cos|.
        preset: lifetimes that tell the labels apart: the paper's, made for some 48 layers, or the same shares of depth.
        window: the primary's layers, or all.
        batch: sequences in one forward pass.

    Returns:
        `level_count` and `level_null` (mean of the null's draws) [component, layer, size]: tokens of each kind by
        creation layer and lifetime in layers, the primary itself among its kind; `count` [component] and `count_null`
        [component, seed] without it. By token: `label` (0 none, 1 primary, 2 secondary, 3 noise), `creation` (-1: no
        sink), `lifetime`, `mlp_norm` (MLP output at creation, 0: no sink), `score` (mean `sink_score` over the layers
        that read it as a sink, 0: none) [prompt, key_pos]; `cosine`, `residual_norm`, `sink_score` (attention from a
        query that sees it, mean over heads) [prompt, layer, key_pos]. `primary_pos`, `window_start` and `window_stop`
        (exclusive) [prompt]. `spearman_lifetime` and `spearman_score` of `mlp_norm` over all sinks but the primary,
        with `_low`, `_high` (sequences resampled) and `_p` (permuted). `alignment` [measured, module] of secondary
        sinks and controls, with `_low`, `_high`, and `alignment_n`. What too few tokens leave open is 0 with the
        interval -1 to 1. When stopped early: the sequences done.

    Raises:
        AnalysisError: when `length` is longer than the model's context or under 3, or `cosine` not between 0 and 1.
        ModelError: when the family's attention cannot be read.
    """
    rule = rule_of(model, cosine, preset, window)
    tokens = documents(model, task, length, sequences, batch)
    starts, parts = range(0, sequences, batch), []
    for start in track(starts, f"secondary_sinks {task.name}", len(starts)):
        parts.append(_measure(model, tokens[start : start + batch], rule, [task.seed, start]))
    if not parts:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    whole = _joined(parts)
    ds = _dataset(whole, task.seed)
    ds = ds.assign_coords(token=named_tokens(model, whole.tokens))
    ds.attrs |= rule.attrs | {
        "length": length,
        "n": len(whole.tokens),
        "corruption": "none: clean text",
        "task": task.name,
        "null_sequences": whole.null_rows,
    }
    return ds


def _measure(model: "Model", tokens: np.ndarray, rule: Rule, seed: list[int]) -> _Part:
    rows = np.arange(len(tokens))
    drawn = _candidates(tokens.shape, seed)
    anchors = model.tensor(np.concatenate([np.broadcast_to(np.arange(FIRST), (len(tokens), FIRST)), drawn], 1))
    across = model.tensor(rows)[:, None]
    with model.scanner.lock, listening(model.scanner.mlps, tokens.shape) as heard:
        found = trace(model, tokens, lambda layer: layer.hidden[across, anchors])
    norms, near = found.stacked("norms"), found.stacked("cosines")
    sinks = find_sinks(norms, near[:, :FIRST], rule)
    shared = [name for name in STAGES if all(name in layer.cosines for layer in heard)]
    stages = {name: np.stack([layer.cosines[name] for layer in heard], 2)[rows, sinks.primary] for name in shared}
    null, null_rows = _null(near[:, FIRST:], drawn, sinks, rule)
    written = np.stack([layer.norm for layer in heard], 1)
    return _Part(
        tokens, sinks, near[rows, sinks.primary], norms, found.stacked("scores"), written, stages, null, null_rows
    )


def _candidates(shape: tuple[int, ...], seed: list[int]) -> np.ndarray:
    """Positions after the first two, int [row, candidate], each row by its own number in the whole."""
    count, length = shape
    task_seed, start = seed
    generators = [np.random.default_rng([task_seed, start + row]) for row in range(count)]
    return np.stack([rng.permutation(np.arange(FIRST, length))[:CANDIDATES] for rng in generators])


def _null(near: np.ndarray, drawn: np.ndarray, sinks: Sinks, rule: Rule) -> tuple[np.ndarray, int]:
    """Counts of levels with other tokens' directions [draw, kind, layer, lifetime], and how many rows have such tokens.

    A row with fewer such tokens than draws uses them in turn.
    """
    counts, rows = np.zeros((DRAWS, len(LABELS) - 1, rule.layers, rule.layers), int), 0
    inside = open_layers(sinks.start, sinks.stop, rule)
    keys = np.arange(near.shape[-1])
    for row, places in enumerate(drawn):
        free = np.flatnonzero((sinks.label[row, places] == NONE) & (places > sinks.primary[row]))
        rows += bool(free.size)
        for draw in range(DRAWS * bool(free.size)):
            index = free[draw % len(free)]
            others = (keys > sinks.primary[row]) & (keys != places[index])
            near_it = (abs(near[row, index]) > rule.cosine) & inside[row, :, None] & others
            lifetime, creation = born(near_it)
            _count(counts[draw], rule.label(lifetime), creation, lifetime)
    return counts, rows


def _count(counts: np.ndarray, label: np.ndarray, creation: np.ndarray, lifetime: np.ndarray) -> None:
    """Add tokens to the counts [kind, layer, lifetime] of their levels."""
    found = lifetime > 0
    np.add.at(counts, (label[found] - 1, creation[found], lifetime[found] - 1), 1)


def _joined(parts: list[_Part]) -> _Part:
    def put(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    sinks = Sinks(*(np.concatenate([getattr(part.sinks, f.name) for part in parts]) for f in fields(Sinks)))
    stages = {name: np.concatenate([part.stages[name] for part in parts]) for name in parts[0].stages}
    null, rows = np.sum([part.null for part in parts], 0), sum(part.null_rows for part in parts)
    named = {name: put(name) for name in ("tokens", "cosine", "norms", "scores", "mlp_norms")}
    return _Part(sinks=sinks, stages=stages, null=null, null_rows=rows, **named)


def _dataset(whole: _Part, seed: int) -> xr.Dataset:
    sinks = whole.sinks
    rows, layers, keys = whole.norms.shape
    others = np.arange(keys) != sinks.primary[:, None]
    levels = np.zeros((len(LABELS) - 1, layers, layers), int)
    _count(levels, sinks.label, sinks.creation, sinks.lifetime)
    own = np.take_along_axis(whole.mlp_norms, np.maximum(sinks.creation, 0)[:, None], 1)[:, 0]
    norm = np.where(sinks.creation >= 0, own, 0)
    read = readers(sinks.inside)
    score = (whole.scores * read).sum(1) / np.maximum(read.sum(1), 1)
    count = [int(((sinks.label == kind) & others).sum()) for kind in range(1, len(LABELS))]
    by_token, by_layer, level = ("prompt", "key_pos"), ("prompt", "layer", "key_pos"), ("component", "layer", "size")
    here, told = {"units": "layers"}, {"long_name": "tokens of a sink level", "units": "tokens"}
    variables = {
        "level_count": (level, levels, told),
        "level_null": (level, whole.null.mean(0), told | {"long_name": "tokens of a level with random directions"}),
        "count": ("component", count, {"long_name": "tokens but the primary", "units": "tokens"}),
        "count_null": (
            ("component", "seed"),
            whole.null.sum((2, 3)).T,
            {"long_name": "tokens with random directions", "units": "tokens"},
        ),
        "label": (by_token, sinks.label, {"long_name": "kind of sink", "labels": ", ".join(LABELS)}),
        "creation": (by_token, sinks.creation, {"long_name": "first layer as a sink (-1: none)"}),
        "lifetime": (by_token, sinks.lifetime, {"long_name": "lifetime as a sink", **here}),
        "mlp_norm": (by_token, norm, {"long_name": "norm of the MLP output at creation"}),
        "score": (by_token, score, {"long_name": "mean sink score while a sink", "units": "probability"}),
        "cosine": (by_layer, whole.cosine, {"long_name": "cosine to the primary sink", "signed": 1}),
        "residual_norm": (by_layer, whole.norms, {"long_name": "residual norm"}),
        "sink_score": (by_layer, whole.scores, {"long_name": "attention from a query that sees the token"}),
        "primary_pos": ("prompt", sinks.primary, {"long_name": "position of the primary sink"}),
        "window_start": ("prompt", sinks.start, {"long_name": "layer of the primary's birth", **here}),
        "window_stop": ("prompt", sinks.stop, {"long_name": "layer of the primary's removal", **here}),
    }
    found = others & (sinks.label != NONE)
    for name, values in (("lifetime", sinks.lifetime), ("score", score)):
        variables |= rank_correlation(
            f"spearman_{name}",
            f"MLP norm and {name}",
            [np.stack([norm[i, f], values[i, f]]) for i, f in enumerate(found)],
            seed,
        )
    aligned, controls = _alignment(whole, seed)
    coords = {"component": list(LABELS[1:]), "layer": np.arange(layers), "size": np.arange(1, layers + 1)}
    coords |= {"prompt": np.arange(rows), "key_pos": np.arange(keys), "seed": np.arange(DRAWS)}
    coords |= {"measured": ["sink", "control"], "module": list(whole.stages)}
    return xr.Dataset(variables | aligned, coords=coords, attrs={"controls": controls, "sinks": int(found.sum())})


def _alignment(whole: _Part, seed: int) -> tuple[dict[str, tuple], str]:
    """Mean cosine to the primary at each stage of the MLP that creates the sinks, in sinks and controls, and which."""
    sinks, stages = whole.sinks, np.stack(list(whole.stages.values()), 1)  # [row, stage, layer, key]
    secondary, ordinary = sinks.label == SECONDARY, sinks.label == NONE
    ordinary &= np.arange(whole.tokens.shape[1]) > sinks.primary[:, None]
    layers = np.unique(sinks.creation[secondary]).tolist()
    masks = {layer: secondary & (sinks.creation == layer) for layer in layers}
    same = {layer: ordinary & np.isin(whole.tokens, whole.tokens[mask]) for layer, mask in masks.items()}
    any_same = any(mask.any() for mask in same.values())
    controls = same if any_same else {layer: ordinary for layer in layers}
    both = [_mean_cosines(stages, chosen, seed) for chosen in (masks, controls)]
    words = {"long_name": "cosine to the primary sink at creation", "signed": 1}
    dims = ("measured", "module")
    found: dict[str, tuple] = {
        f"alignment{end}": (dims, np.stack([b[i] for b in both]), words) for i, end in enumerate(("", "_low", "_high"))
    }
    counts = [sum(int(mask.sum()) for mask in chosen.values()) for chosen in (masks, controls)]
    found["alignment_n"] = ("measured", counts, {"long_name": "tokens compared", "units": "tokens"})
    none = "none: no secondary sink" if not masks else "none: every token is a sink"
    named = "same token ids, no sinks" if any_same else "other tokens, no sinks"
    return found, named if counts[1] else none


def _mean_cosines(stages: np.ndarray, chosen: dict[int, np.ndarray], seed: int) -> tuple[np.ndarray, ...]:
    """Mean, lower and upper end [stage] over the tokens chosen in each layer; sequences are resampled."""
    sums, counts = np.zeros(stages.shape[:2]), np.zeros(len(stages))
    for layer, mask in chosen.items():
        sums += (stages[:, :, layer] * mask[:, None]).sum(-1)
        counts += mask.sum(1)
    telling = counts > 0
    if not telling.any():
        return np.zeros(stages.shape[1]), *(np.full(stages.shape[1], end) for end in (-1.0, 1.0))
    mean = sums.sum(0) / counts.sum()
    if telling.sum() == 1:
        return mean, *(np.full(stages.shape[1], end) for end in (-1.0, 1.0))
    weights = resamples(int(telling.sum()), RESAMPLES, seed)
    return mean, *interval((weights @ sums[telling]) / (weights @ counts[telling])[:, None])
