"""What the MLP that makes sinks does to the directions in which their inputs differ: one output direction, or many."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import LEVEL, AnalysisError, analysis, at_least_one, interval
from workbench.analyses._one_mlp import (
    Directions,
    Heard,
    check_alone,
    hear,
    joined,
    principal,
    push,
    refuse_no_module,
    unit,
)
from workbench.analyses._sinks import (
    FIRST,
    NONE,
    SECONDARY,
    Rule,
    Sinks,
    documents,
    find_sinks,
    rule_of,
    trace,
)
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model

ALPHAS = (0.1, 0.25, 0.5, 1.0, 2.0)  # of the sinks' mean input norm
SIGNS = {"+": 1.0, "-": -1.0}
REFERENCES = ("block output", "MLP output")  # of the primary sink, in the layer looked at
DRAWS = 100
LEAST = 3  # sinks: two points always lie on one line


@analysis(
    about="Principal components of the MLP inputs that make sinks, pushed through that MLP: direction and norm.",
    sign="cosine of the MLP's output to the primary sink; its size is the alignment, its sign the side",
    primary="cosine",
    paper="2512.22213 (Wong et al.): principal components through the MLP, direction fixed, norm by component",
)
def sink_directions(
    model: "Model",
    task: Task,
    *,
    length: int = 64,
    sequences: int = 32,
    cosine: float = 0.9,
    preset: Literal["relative", "paper"] = "relative",
    window: Literal["norm", "all"] = "norm",
    kind: Literal["secondary", "any"] = "secondary",
    among: Literal["sinks", "balanced"] = "sinks",
    components: int = 5,
    batch: int = 8,
) -> xr.Dataset:
    """Cosine to the primary sink and norm of MLP(+-alpha u), u along the mean and the principal components of inputs.

    Sinks are found as `secondary_sinks` finds them, and the layer is the one that creates most of the kind. The inputs
    are what the MLP is given there, after its norm; u is a unit vector that stands alone as the input, nothing added.
    Components are centred: the mean of the inputs is taken out first, and is pushed as a direction of its own. Their
    signs are arbitrary: the largest coordinate is positive. alpha is in units of the sinks' mean input norm.

    Cosines are to the primary's block output in that layer, which makes a token a sink, and to its MLP output in that
    layer, which the paper's code takes; each is the mean of unit vectors over sequences. The null is random directions
    of the same size, evenly spread over the sphere, through the same MLP.

    Args:
        model: raw weights, of a family whose attention can be read and that has a module for its MLP.
        task: whose text is read.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        cosine: threshold of a sink.
        preset: lifetimes that tell the labels apart.
        window: the primary's layers, or all.
        kind: secondary sinks, or any later token that is ever a sink.
        among: whose inputs' principal components are taken: the sinks', or, as in the paper's code, those of the sinks
            and of as many tokens that are none, of the same token ids where there are such.
        components: how many principal components, at most: there are no more than the inputs span.
        batch: sequences in one forward pass.

    Returns:
        `cosine` [module, component, measured, size] and `norm` [component, measured, size] of the output by reference,
        direction, sign and `alpha` (a coordinate of `size`); a cosine of 0 where an output or reference is 0. Of random
        directions `cosine_random` [module, size, seed] and `norm_random` [size, seed], with `cosine_null` (median of
        |cosine|), `cosine_null_low` and `_high` (that hold 95 % of them, as far below 0 as above) [module, size], and
        `norm_null`, `_low`, `_high` (median, central 95 %) [size]. `explained`, `power` and `extent` [component]: share
        of the variance (0 for the mean), of the mean squared norm, and standard deviation (the mean: its norm) in units
        of alpha. `sink_cosine` [module] and `sink_norm` of what the sinks themselves get, median, `_low` and `_high`
        (central 95 % of sinks). `agreement` [module], length of the mean of the primaries' unit vectors: 1 where all
        point the same way. `tokens` [prompt], sinks in each sequence read. When stopped early: the sequences whose MLP
        inputs were read.

    Raises:
        AnalysisError: when there are fewer than 3 such sinks, they share one input, or the MLP, called alone, gives
            other outputs than in its block.
        ModelError: when the family's attention cannot be read.
    """
    at_least_one(components=components)
    rule = rule_of(model, cosine, preset, window)
    tokens = documents(model, task, length, sequences, batch)
    sinks = _find(model, tokens, rule, batch, task.name)
    layer, chosen = _created(sinks, rule, kind)
    refuse_no_module(model, layer)
    sample = chosen | _others(tokens, sinks, chosen, task.seed) if among == "balanced" else chosen
    rows = np.flatnonzero(sample.any(1))
    starts, parts = range(0, len(rows), batch), []
    for start in track(starts, f"sink_directions {task.name}, layer {layer}", len(starts)):
        part = rows[start : start + batch]
        parts.append(hear(model, tokens[part], layer, (chosen[part], sample[part], sinks.primary[part])))
    if sum(len(part.inputs) for part in parts) < LEAST:
        raise Cancelled("Stopped before enough sinks were read, so there is no result to keep.")
    heard = joined(parts)
    ds = _dataset(model, layer, heard, components, task.seed).assign_coords(prompt=rows[: len(heard.counts)])
    found = {"layer": layer, "kind": kind, "among": among, "sinks": len(heard.inputs), "sample": len(heard.sample)}
    known = {"length": length, "n": ds.sizes["prompt"], "sequences": sequences, "corruption": "none: clean text"}
    ds.attrs |= rule.attrs | found | known
    return ds


def _find(model: "Model", tokens: np.ndarray, rule: Rule, batch: int, name: str) -> Sinks:
    starts, parts = range(0, len(tokens), batch), []
    for start in track(starts, f"sink_directions {name}, sinks", len(starts)):
        found = trace(model, tokens[start : start + batch], lambda layer: layer.hidden[:, :FIRST])
        parts.append(find_sinks(found.stacked("norms"), found.stacked("cosines"), rule))
    if len(parts) < len(starts):
        raise Cancelled("Stopped before the sinks were found, so there is no result to keep.")
    return Sinks(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Sinks)))


def _created(sinks: Sinks, rule: Rule, kind: str) -> tuple[int, np.ndarray]:
    """The layer that creates most sinks of the kind, the earlier of equals, and which tokens they are [row, key]."""
    wanted = _later(sinks) & (sinks.label == SECONDARY if kind == "secondary" else sinks.label != NONE)
    counts = np.bincount(sinks.creation[wanted], minlength=rule.layers)
    layer = int(counts.argmax())
    if counts[layer] >= LEAST:
        return layer, wanted & (sinks.creation == layer)
    what = "secondary sinks" if kind == "secondary" else "later tokens that are sinks"
    most = f"at most {counts[layer]} of the {what} begin in one layer" if counts.any() else f"there are no {what}"
    advice = ["look in all layers (window='all')"] if rule.window == "norm" else []
    advice += ["count any token that aligned with the primary (kind='any')"] if kind == "secondary" else []
    advice += ["read longer or more sequences (length, sequences)", "or lower the threshold (cosine)"]
    raise AnalysisError(
        f"In this model and text ({len(wanted)} sequences of {wanted.shape[1]} tokens; {rule.attrs['rule']}) {most}, "
        f"and principal components need {LEAST} in one layer; {', '.join(advice)}."
    )


def _later(sinks: Sinks) -> np.ndarray:
    """Tokens after the primary sink, bool [row, key]."""
    return np.arange(sinks.label.shape[1]) > sinks.primary[:, None]


def _others(tokens: np.ndarray, sinks: Sinks, chosen: np.ndarray, seed: int) -> np.ndarray:
    """As many random tokens that are no sinks, of the sinks' token ids where there are such, bool [row, key]."""
    ordinary = _later(sinks) & (sinks.label == NONE)
    same = ordinary & np.isin(tokens, tokens[chosen])
    pool = np.flatnonzero(same if same.any() else ordinary)
    if not pool.size:
        raise AnalysisError(
            "Every token after the primary is a sink, so none can be set beside them; use among='sinks'."
        )
    found = np.zeros(tokens.shape, bool)
    found.flat[np.random.default_rng(seed).choice(pool, min(len(pool), chosen.sum()), replace=False)] = True
    return found


def _dataset(model: "Model", layer: int, heard: Heard, components: int, seed: int) -> xr.Dataset:
    check_alone(model, layer, heard)
    size = float(np.linalg.norm(heard.inputs, axis=1).mean())
    steps = np.array(ALPHAS)[:, None] * size
    signed = np.array(list(SIGNS.values()))[:, None, None] * steps
    found = principal(heard.sample, components, layer)
    drawn = unit(np.random.default_rng(seed).normal(size=(DRAWS, heard.inputs.shape[1])))
    pushed, random = (
        push(model, layer, vectors, heard.dtype)
        for vectors in (found.unit[:, None, None] * signed, steps[:, None] * drawn)
    )
    mean = unit(heard.primary).mean(0)  # [reference, d]
    near, near_random, near_own = (_cosines(out, mean) for out in (pushed, random, heard.outputs))
    variables = {
        "cosine": (("module", "component", "measured", "size"), near, _told("cosine to the primary sink", signed=1)),
        "norm": (("component", "measured", "size"), np.linalg.norm(pushed, axis=-1), _told("norm of the MLP output")),
        "agreement": ("module", np.linalg.norm(mean, axis=-1), _told("length of the primaries' mean unit vector")),
        "tokens": ("prompt", heard.counts, _told("sinks created in the layer", "tokens")),
    }
    variables |= _axes(found, size) | _null(near_random, np.linalg.norm(random, axis=-1))
    variables |= _own(near_own, np.linalg.norm(heard.outputs, axis=-1))
    names = ["mean", *(f"PC{number}" for number in range(1, len(found.unit)))]
    coords = {"module": list(REFERENCES), "component": names, "measured": list(SIGNS), "seed": np.arange(DRAWS)}
    coords |= {"size": np.arange(len(ALPHAS)), "alpha": ("size", np.array(ALPHAS))}
    return xr.Dataset(variables, coords=coords, attrs={"input_norm": size})


def _cosines(outputs: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosines [reference, ...] of outputs [..., d] to references [reference, d]; 0 of a zero vector."""
    return np.moveaxis(np.clip(unit(outputs) @ unit(references).T, -1, 1), -1, 0)


def _axes(found: Directions, size: float) -> dict[str, tuple]:
    """What share the directions have in inputs of a mean norm `size`."""
    extent = _told("standard deviation along it (the mean: its norm)", "mean input norms")
    return {
        "explained": ("component", found.explained, _told("share of the variance (the mean: taken out)", "share")),
        "power": ("component", found.power, _told("share of the mean squared norm of the inputs", "share")),
        "extent": ("component", found.extent / size, extent),
    }


def _told(name: str, units: str = "1", **more: int) -> dict[str, Any]:
    return {"long_name": name, "units": units, **more}


def _null(near: np.ndarray, norms: np.ndarray) -> dict[str, tuple]:
    """Of random directions: cosines [reference, size, draw] and norms [size, draw], with their middle and ends."""
    by, each, aligned = ("module", "size"), _told("norm with random directions"), abs(near)
    cosine = _told("cosine with random directions", signed=1)
    most = np.quantile(aligned, LEVEL, axis=-1)
    low, high = interval(norms.T)
    return {
        "cosine_random": ((*by, "seed"), near, cosine),
        "cosine_null": (by, np.median(aligned, -1), cosine | {"long_name": "|cosine| with random directions"}),
        "cosine_null_low": (by, -most, cosine),
        "cosine_null_high": (by, most, cosine),
        "norm_random": (("size", "seed"), norms, each),
        "norm_null": ("size", np.median(norms, -1), each),
        "norm_null_low": ("size", low, each),
        "norm_null_high": ("size", high, each),
    }


def _own(near: np.ndarray, norms: np.ndarray) -> dict[str, tuple]:
    """Of the sinks' own outputs: cosines [reference, token] and norms [token], with the ends of the central 95 %."""
    cosine, norm = _told("cosine of the sinks' own outputs", signed=1), _told("norm of the sinks' own outputs")
    cosines, norms_ = (np.median(near, -1), *interval(near.T)), (np.median(norms), *interval(norms))
    ends = ("", "_low", "_high")
    found: dict[str, tuple] = {f"sink_cosine{end}": ("module", v, cosine) for end, v in zip(ends, cosines, strict=True)}
    return found | {f"sink_norm{end}": ((), v, norm) for end, v in zip(ends, norms_, strict=True)}
