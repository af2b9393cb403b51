"""Faithfulness: how much of the task is left when everything outside a circuit is really ablated."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.analyses._edges import attribute, prepared
from workbench.analyses._patching import Group, Runs, gap_between
from workbench.models.circuit_file import read_circuit
from workbench.models.graph import Graph
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all edges, as MIB has them
ABLATIONS = {
    "resample": "each edge outside carries its writer's value in the corrupted run",
    "mean": "each edge outside carries its writer's mean over all clean prompts and positions",
    "zero": "each edge outside carries nothing",
}


@analysis(
    about="Faithfulness of circuits of every size: all edges outside are ablated; beside random circuits of the same.",
    sign="0 = everything ablated, 1 = the whole model, not clipped",
    primary="faithfulness",
    paper="2504.13151 (MIB): faithfulness, CPR and CMD; 2407.08734 (Miller et al.): the ablation is named",
)
def faithfulness(
    model: "Model",
    task: Task,
    *,
    ablation: Literal["resample", "mean", "zero"] = "resample",
    method: Literal["inputs", "eap", "activations"] = "inputs",
    steps: int = 5,
    circuit: str = "",
    draws: int = 20,
    batch: int = 64,
) -> xr.Dataset:
    """How much of the metric circuits of growing size keep, and how much random circuits of the same make keep.

    f(C) = (m(C) - m(none)) / (m(all) - m(none)), m(C) the mean metric of the clean prompts when each edge outside C
    carries its ablated value. A circuit of k edges holds the k of largest |score|. CPR is the area under f over the
    fraction of edges, CMD the area of |1 - f|, both by the trapezoidal rule over the sizes.

    Args:
        model: from `workbench.load` or `workbench.wrap`; heads must add to its residual stream one by one.
        task: its clean prompts are measured; `resample` takes the corrupted ones.
        ablation: see `ABLATIONS`. Zero ablation depends on how biases are folded.
        method: of the edge scores (see `edge_attribution`), made on prompts of another seed where the task has one.
        steps: of the method.
        circuit: a MIB circuit file (.json or .safetensors) whose scores are used instead.
        draws: random circuits a size, with as many edges of each kind (writer and reader) as the circuit has.
        batch: prompts in one pass, at most.

    Returns:
        `faithfulness` [size] with its bootstrap interval and `faithfulness_null` (mean of the random circuits, `_low`
        and `_high` their central 95 %); `score`, `valid` and `rank` (0 is the strongest; -1 no edge)
        [receiver, component]; attributes `cpr`, `cmd` and those of the random circuits. When stopped early: the sizes
        that were finished.
    """
    at_least_one(draws=draws, steps=steps)
    edges = model.edges
    if not edges.additive:
        raise AnalysisError(
            "Faithfulness by edges needs heads that add to the residual stream one by one; in this family a norm after "
            "attention mixes them. Use the analysis 'ablation', which ablates whole heads."
        )
    graph, (score, held_out) = edges.graph, _scores(model, task, method, steps, circuit, batch)
    rank = _ranked(score, graph)
    both = prepared(model, task, batch)
    measure = _measurer(model, both.parts, both.runs, ablation)
    none = measure(np.zeros_like(graph.valid))
    gap_between(both.clean, none, task)
    sizes = np.unique(np.maximum(1, np.round(np.array(FRACTIONS) * graph.valid.sum()).astype(int)))
    found, null = _curve(sizes, rank, graph, measure, task, draws)
    if not found:
        raise Cancelled("Stopped before the first size was finished, so there is no result to keep.")
    return _dataset(
        model,
        task,
        sizes[: len(found)],
        (score, rank),
        (both.clean - none, np.stack(found) - none, np.stack(null) - none),
        {"ablation": ablation, "meaning": ABLATIONS[ablation], "scores": circuit or method, "held_out": int(held_out)},
    )


def _scores(model: "Model", task: Task, method: str, steps: int, circuit: str, batch: int) -> tuple[np.ndarray, bool]:
    """Edge scores [reader, writer], and whether they come from other prompts than those measured."""
    if circuit:
        score, member = read_circuit(circuit, model.edges.graph)
        return (score if score.any() else member.astype(float)), False
    other = task if task.records else dataclasses.replace(task, seed=task.seed + 1)
    both = prepared(model, other, batch)
    return attribute(model.edges, both, method, steps, f"scores of {task.name}").mean / both.gap, not task.records


def _ranked(score: np.ndarray, graph: Graph) -> np.ndarray:
    """Place of each edge by |score|, 0 first; -1 where there is none."""
    order = np.argsort(-np.where(graph.valid, np.abs(score), -1), axis=None, kind="stable")[: graph.valid.sum()]
    rank = np.full(score.size, -1)
    rank[order] = np.arange(len(order))
    return rank.reshape(score.shape)


def _measurer(model: "Model", parts: list[Group], runs: list[Runs], ablation: str):
    """A function from a circuit, bool [reader, writer], to the metric [prompt]."""
    import torch

    edges, device = model.edges, model.device
    starts = [group.start if ablation == "resample" else 0 for group in parts]
    with torch.no_grad():
        others = _others(edges, runs, starts, ablation)

    def measure(kept: np.ndarray) -> np.ndarray:
        values, circuit = np.empty(sum(len(group.rows) for group in parts)), torch.as_tensor(kept, device=device)
        for group, run, other, start in zip(parts, runs, others, starts, strict=True):
            last = edges.keeping(circuit, run.clean, other, start)
            values[group.rows] = group.meter(edges.trunk.logits(last, group.columns(device)))[0]
        return values

    return measure


def _others(edges, runs: list[Runs], starts: list[int], ablation: str) -> "list[torch.Tensor]":
    """What each writer adds on an ablated edge, [row, writer, pos, d_model] for each group."""
    import torch

    if ablation == "resample":
        return [edges.contributions(run.corrupted, start) for run, start in zip(runs, starts, strict=True)]
    whole = [edges.contributions(run.clean) for run in runs]
    if ablation == "zero":
        return [value.zero_() for value in whole]
    count = sum(value.shape[0] * value.shape[2] for value in whole)
    mean = torch.stack([value.sum((0, 2)) for value in whole]).sum(0) / count
    return [mean[None, :, None].expand_as(value) for value in whole]


def _curve(
    sizes: np.ndarray, rank: np.ndarray, graph: Graph, measure, task: Task, draws: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Metric of the circuit [prompt], and of each random one [draw, prompt], for every size that was finished."""
    rng, found, null = np.random.default_rng(task.seed), [], []
    work = [(size, draw) for size in sizes for draw in range(draws + 1)]
    pending: list[np.ndarray] = []
    for size, draw in track(work, f"faithfulness {task.name}", len(work)):
        kept = (rank >= 0) & (rank < size)
        if draw == 0:
            pending = [measure(kept)]
            continue
        whole = size == graph.valid.sum()
        pending.append(pending[0] if whole else measure(next(_random(kept, graph, rng))))
        if draw == draws:
            found.append(pending[0])
            null.append(np.stack(pending[1:]))
    return found, null


def _random(kept: np.ndarray, graph: Graph, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Circuits with as many edges of each kind as a circuit has, chosen at random."""
    while True:
        drawn = np.zeros(kept.size, bool)
        for kind in np.unique(graph.types[kept]):
            members = np.flatnonzero(graph.valid & (graph.types == kind))
            count = int(kept.flat[members].sum())
            drawn[rng.choice(members, count, replace=False)] = True
        yield drawn.reshape(kept.shape)


def area(sizes: np.ndarray, values: np.ndarray) -> float:
    """Area under values [size] over the fractions `sizes`, by the trapezoidal rule."""
    return float(np.trapezoid(values, sizes))


def _dataset(model: "Model", task: Task, sizes: np.ndarray, edges: tuple, gains: tuple, attrs: dict) -> xr.Dataset:
    graph, (whole, kept, null) = model.edges.graph, gains
    weights = resamples(len(whole), 1000, task.seed)
    low, high = interval(weights @ kept.T / (weights @ whole)[:, None])
    share, drawn = kept.mean(-1) / whole.mean(), null.mean(-1) / whole.mean()
    ends = np.quantile(drawn, [0.025, 0.975], axis=1)
    fraction, say = sizes / graph.valid.sum(), {"long_name": "faithfulness", "units": "share"}
    random = say | {"long_name": "faithfulness of random circuits of the same size and kinds of edges"}
    values = {"": (share, say), "_low": (low, say), "_high": (high, say), "_null": (drawn.mean(1), random)}
    values |= {"_null_low": (ends[0], random), "_null_high": (ends[1], random)}
    dims, score = ("receiver", "component"), np.where(graph.valid, edges[0], 0)
    ds = xr.Dataset(
        {f"faithfulness{end}": ("size", value, about) for end, (value, about) in values.items()}
        | {"score": (dims, score, {"long_name": "edge score", "units": "share", "signed": 1})}
        | {"rank": (dims, edges[1].astype(np.int32), {"long_name": "place by |score|, 0 first"})}
        | {"valid": (dims, graph.valid.astype(np.int8), {"long_name": "there is an edge"})},
        coords={
            "size": sizes,
            "fraction": ("size", fraction),
            "receiver": graph.readers,
            "component": graph.writers,
        },
    )
    randoms = [area(fraction, curve) for curve in drawn.T]
    ds.attrs = attrs | {
        "cpr": area(fraction, share),
        "cmd": area(fraction, np.abs(1 - share)),
        "cpr_null": json.dumps([round(float(q), 6) for q in np.quantile(randoms, [0.025, 0.5, 0.975])]),
        "corruption": task.corruption,
        "metric_name": task.metric,
        "n": len(whole),
        **graph.attrs,
    }
    return ds
