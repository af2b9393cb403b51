"""Edge attribution patching, with or without integrated gradients, beside exact patching of the strongest edges."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._edges import Prepared, attribute, prepared
from workbench.analyses._patching import chunks
from workbench.models.graph import KINDS, Graph
from workbench.progress import track
from workbench.schema import SIGN
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model

METHODS = {
    "eap": "gradient at the corrupted run",
    "inputs": "gradient averaged from corrupted to clean embeddings",
    "activations": "gradient averaged while one layer's heads (or MLP) go from corrupted to clean",
}
Z95 = 1.959964


@analysis(
    about="Edge attribution patching (EAP, EAP-IG): every edge's effect to first order, checked by exact patching.",
    sign=SIGN,
    primary="score",
    paper="2310.10348 (Syed et al.): edge attribution patching; 2403.17806 (Hanna et al.): integrated gradients",
)
def edge_attribution(
    model: "Model",
    task: Task,
    *,
    method: Literal["inputs", "eap", "activations"] = "inputs",
    steps: int = 5,
    exact: int = 40,
    batch: int = 64,
) -> xr.Dataset:
    """How much of the clean-minus-corrupted metric each edge carries, to first order.

    score(u -> v) = sum over positions of (output of u, clean minus corrupted) . (gradient of the metric at the input of
    v), mean over prompts, over the mean gap: 0 = corrupted run, 1 = clean run; positive = the clean value helps. The
    gradient is taken in the corrupted run (`eap`), or averaged over `steps` midpoints of a straight line: `inputs`
    moves the embeddings from corrupted to clean, `activations` the outputs of one layer's heads, or MLP, at a time.

    Args:
        model: from `workbench.load` or `workbench.wrap`; its family must be one whose edges can be told apart.
        task: its corruption is part of what is measured.
        method: see above.
        steps: points on the line; `eap` has one.
        exact: how many of the strongest edges are patched exactly as well; 0 for none.
        batch: prompts in one pass, at most.

    Returns:
        `score` with its 95 % interval (normal, over prompts) [receiver, component], `valid` (1 where there is an edge),
        `effect` [layer, head] (the sum of a head's outgoing edges), `score_split` [seed, receiver, component]
        (of every other prompt, for a ceiling of overlaps), and for the strongest edges `approximate` and
        `exact` [edge], whose rank correlation is the attribute `spearman`.

    Raises:
        ModelError: when the edges of this family cannot be told apart.
    """
    at_least_one(steps=steps)
    if exact < 0:
        raise AnalysisError(f"exact is {exact}; it must be 0 or more.")
    edges, both = model.edges, prepared(model, task, batch)
    sums = attribute(edges, both, method, steps, f"edge_attribution {task.name}")
    score, half = sums.mean / both.gap, Z95 * sums.error / abs(both.gap)
    there = np.argwhere(edges.graph.valid)
    order = np.argsort(-np.abs(score[tuple(there.T)]), kind="stable")[:exact]
    chosen = [(int(reader), int(writer)) for reader, writer in there[order]]
    seen = exact_effects(model, task, both, chosen) / both.gap
    strongest = [(reader, writer, value) for (reader, writer), value in zip(chosen, seen, strict=False)]
    ds = _dataset(score, half, sums.halves / both.gap, edges.graph, strongest)
    ds.attrs = _attrs(edges.graph, task, both, method, steps, sums.count)
    ds.attrs["spearman"] = _spearman(ds["approximate"].values, ds["exact"].values) if len(seen) > 2 else 0.0
    return ds


def exact_effects(model: "Model", task: Task, both: Prepared, chosen: list[tuple[int, int]]) -> np.ndarray:
    """How far the metric rises when one edge alone carries its clean value in the corrupted run, [edge].

    Empty when it was stopped before all were measured.
    """
    import torch

    edges, kinds = model.edges, model.edges.graph.reader_cells
    by_reader: dict[tuple[int, int], list[int]] = {}
    for index, (reader, _) in enumerate(chosen):
        by_reader.setdefault((int(kinds[reader, 0]), int(kinds[reader, 2])), []).append(index)
    total, done = np.zeros(len(chosen)), np.zeros(len(chosen), int)
    work = [(number, key) for number in range(len(both.parts)) for key in sorted(by_reader)]
    for number, (layer, kind) in track(work, f"exact edges {task.name}", len(work)):
        group, run = both.parts[number], both.runs[number]
        length, rows = group.clean.shape[1], len(group.rows)
        fit = edges.trunk.rows(length - group.start, length) // rows
        for some in chunks(len(by_reader[layer, kind]), fit):
            members = [by_reader[layer, kind][i] for i in some]
            with torch.no_grad():
                added = [edges.added(run.clean, run.corrupted, chosen[i][1], group.start) for i in members]
            heads = [int(kinds[chosen[i][0], 1]) for i in members]
            last = edges.patched(layer, KINDS[kind], heads, torch.stack(added), run.corrupted, group.start)
            values = group.meter(edges.trunk.logits(last, group.columns(edges.trunk.device)))
            total[members] += (values - both.corrupted[group.rows]).sum(-1)
            done[members] += rows
    return total / len(both.prompts) if (done == len(both.prompts)).all() else np.empty(0)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    import pandas as pd

    ranks = (pd.Series(values).rank() for values in (a, b))
    return float(np.nan_to_num(next(ranks).corr(next(ranks))))


def _dataset(
    score: np.ndarray, half: np.ndarray, split: np.ndarray, graph: Graph, edges: list[tuple[int, int, float]]
) -> xr.Dataset:
    dims, say = ("receiver", "component"), {"long_name": "edge score", "units": "share", "signed": 1}
    score = np.where(graph.valid, score, 0)
    node = score.sum(0)
    heads = np.array([[node[graph.writer(layer, h)] for h in range(graph.heads)] for layer in range(graph.layers)])
    both = {"long_name": "effect of one edge", "units": "share", "signed": 1}
    return xr.Dataset(
        {
            "score": (dims, score, say),
            "score_low": (dims, score - np.where(graph.valid, half, 0), say),
            "score_high": (dims, score + np.where(graph.valid, half, 0), say),
            "score_split": (("seed", *dims), split, say | {"long_name": "edge score of either half of the prompts"}),
            "valid": (dims, graph.valid.astype(np.int8), {"long_name": "there is an edge"}),
            "effect": (("layer", "head"), heads, {"long_name": "attributed effect", "units": "share", "signed": 1}),
            "approximate": ("edge", np.array([score[r, w] for r, w, _ in edges]), both),
            "exact": ("edge", np.array([value for *_, value in edges]), both),
        },
        coords={
            "receiver": graph.readers,
            "component": graph.writers,
            "layer": np.arange(graph.layers),
            "head": np.arange(graph.heads),
            "seed": [0, 1],
            "edge": np.array([graph.name(r, w) for r, w, _ in edges], dtype=str),
        },
    )


def _attrs(graph: Graph, task: Task, both: Prepared, method: str, steps: int, count: int) -> dict:
    return {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "method": METHODS[method],
        "steps": 1 if method == "eap" else steps,
        "n": count,
        "dropped": sum(both.prompts.dropped.values()),
        "accuracy": float((both.clean > 0).mean()),
        "clean": float(both.clean.mean()),
        "corrupted": float(both.corrupted.mean()),
        **graph.attrs,
    }
