"""The strongest edges of a circuit as a graph: from what writes to the residual stream to what reads it."""

import numpy as np
import xarray as xr

from widgets.circuit_graph import CircuitGraph, pack
from workbench.models.graph import Graph
from workbench.views._base import Drawing, ViewError, caption, only, view

SHARE = "share of the clean-minus-corrupted metric"


@view(
    requires={"receiver", "component"},
    variables={"score"},
    about="The strongest edges of a model, or those that the circuits of several tasks share, as a graph.",
)
def circuit_graph(ds: xr.Dataset, limit: int = 60, strongest: int = 2000, task: int | None = None) -> Drawing:
    """A circuit graph of the `strongest` edges, of which `limit` are shown at first.

    Of an overlap: the edges in every task's circuit with the mean of the tasks' scores, or, with `task` (its place),
    the edges in that task's circuit.
    """
    graph = Graph.of(ds.attrs)
    score, drawn, which = _shared(ds, task) if "member" in ds else _scored(ds)
    readers, writers = _strongest(ds, score, drawn & graph.valid, strongest)
    table = np.concatenate([graph.writer_cells[writers], graph.reader_cells[readers]], axis=1)
    grouped = 0 if graph.kv_heads == graph.heads else graph.kv_heads
    packed = pack(table, score[readers, writers], (graph.layers, graph.heads), grouped)
    quantity = f"{ds['score'].attrs['long_name']}, {SHARE}; {which} ({caption(ds)})"
    return Drawing(CircuitGraph, {**packed, "limit": limit, "quantity": quantity})


def _scored(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray, str]:
    """Scores, which edges there are, and how the scores were made."""
    score = only(ds, "score", "receiver", "component").values
    drawn = ds["valid"].transpose("receiver", "component").values > 0 if "valid" in ds else np.ones(score.shape, bool)
    made = ds.attrs.get("method") or f"scores: {ds.attrs.get('scores', 'given')}"
    return score, drawn, str(made)


def _shared(ds: xr.Dataset, task: int | None) -> tuple[np.ndarray, np.ndarray, str]:
    """The same of an overlap: the edges all tasks share, or one task's."""
    score = only(ds, "score", "task", "receiver", "component").values
    if task is None:
        shared = only(ds, "shared", "receiver", "component").values > 0
        return score.mean(0), shared, f"{int(shared.sum())} edges in every task's circuit, mean of the tasks"
    if not 0 <= task < len(score):
        raise ViewError(f"There is no task {task} in this overlap; its tasks are 0 to {len(score) - 1}.")
    member = only(ds, "member", "task", "receiver", "component").values[task] > 0
    return score[task], member, f"{int(member.sum())} edges in the circuit of {ds['task'].values[task]}"


def _strongest(ds: xr.Dataset, score: np.ndarray, drawn: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Readers and writers of the edges drawn, by their rank where the result has one, else by |score|."""
    place = ds["rank"].transpose("receiver", "component").values if "rank" in ds else -np.abs(score)
    edges = np.flatnonzero(drawn)
    chosen = edges[np.argsort(place.flat[edges], kind="stable")[:count]]
    readers, writers = np.unravel_index(chosen, score.shape)
    return readers, writers
