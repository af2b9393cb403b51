"""Circuits as the Mechanistic Interpretability Benchmark (MIB) has them: a JSON file, or tensors in safetensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from workbench.models.graph import INPUT, KINDS, Graph
from workbench.registry import WorkbenchError

TENSORS = ("edges_scores", "edges_in_graph", "nodes_in_graph")


class CircuitFileError(WorkbenchError):
    """A circuit file that cannot be read, or belongs to a model of another shape."""


def write_circuit(path: Path | str, graph: Graph, score: np.ndarray, member: np.ndarray, *, d_model: int = 0) -> Path:
    """Write edge scores and membership [reader, writer] to `path`, `.json` or `.safetensors`.

    The benchmark gives every query head keys and values of its own: where heads are grouped, each head of a group is
    written with its part of the group's score. Its own reader wants the width `d_model` of the residual stream.
    """
    path = Path(path)
    full, member = _ungrouped(graph), _spread(graph, member.astype(bool))
    score = _spread(graph, score) / _sharing(graph)[:, None]
    cfg = {"n_layers": full.layers, "n_heads": full.heads, "parallel_attn_mlp": full.parallel, "d_model": d_model}
    if path.suffix == ".json":
        path.write_text(json.dumps(_as_json(full, score, member, cfg)))
    elif path.suffix == ".safetensors":
        arrays = (score.T.astype(np.float32), (member & full.valid).T, _nodes(full, member))
        named = {name: np.ascontiguousarray(array) for name, array in zip(TENSORS, arrays, strict=True)}
        save_file(named, path, metadata={"cfg": json.dumps(cfg)})
    else:
        raise CircuitFileError(f"A circuit is written to a .json or a .safetensors file, not to '{path.name}'.")
    return path


def read_circuit(path: Path | str, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 and membership bool [reader, writer] of a circuit file.

    Where the model's heads are grouped, an edge to a key-value head has the sum of its heads' scores, and is a member
    when one of theirs is.

    Raises:
        CircuitFileError: when it cannot be read or is of a model of another shape.
    """
    path, full = Path(path), _ungrouped(graph)
    try:
        score, member = (_from_json if path.suffix == ".json" else _from_tensors)(path, full)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CircuitFileError(
            f"'{path}' cannot be read as a circuit of {graph.layers} layers with {graph.heads} heads ({error}); "
            "give a MIB circuit file (.json, or its tensors as .safetensors) of this model."
        ) from error
    return _gathered(graph, score, np.sum), _gathered(graph, member, np.max).astype(bool)


def mib_name(graph: Graph, index: int, reader: bool) -> str:
    """The benchmark's name of a writer or reader: input, a0.h1, m0, a0.h1<q>, logits."""
    if reader:
        layer, head, kind = graph.reader_cells[index].tolist()
        if kind == KINDS.index("logits"):
            return "logits"
        return f"m{layer}" if kind == KINDS.index("mlp") else f"a{layer}.h{head}<{KINDS[kind]}>"
    layer, head = graph.writer_cells[index].tolist()
    return INPUT if layer < 0 else f"m{layer}" if head < 0 else f"a{layer}.h{head}"


def _ungrouped(graph: Graph) -> Graph:
    return Graph(graph.layers, graph.heads, graph.heads, graph.parallel)


def _places(graph: Graph) -> np.ndarray:
    """For each reader with a key and value for every head, the reader of the model it is, int [reader]."""
    found, times = [], graph.heads // graph.kv_heads
    for layer in range(graph.layers):
        found += range(graph.readers_of(layer, "q").start, graph.readers_of(layer, "q").stop)
        for part in "kv":
            first = graph.readers_of(layer, part).start
            found += [first + head // times for head in range(graph.heads)]
        found.append(graph.readers_of(layer, "mlp").start)
    return np.array([*found, len(graph.readers) - 1])


def _sharing(graph: Graph) -> np.ndarray:
    """How many readers with a key and value for every head are the same reader of the model, [reader]."""
    places = _places(graph)
    return np.bincount(places)[places]


def _spread(graph: Graph, values: np.ndarray) -> np.ndarray:
    return values[_places(graph)]


def _gathered(graph: Graph, values: np.ndarray, how: Any) -> np.ndarray:
    places = _places(graph)
    return np.stack([how(values[places == reader], axis=0) for reader in range(len(graph.readers))])


def _nodes(graph: Graph, member: np.ndarray) -> np.ndarray:
    return np.any(member & graph.valid, axis=0)


def _as_json(graph: Graph, score: np.ndarray, member: np.ndarray, cfg: dict) -> dict:
    names = [mib_name(graph, w, False) for w in range(len(graph.writers))]
    nodes = {name: {"in_graph": bool(used)} for name, used in zip(names, _nodes(graph, member), strict=True)}
    edges = {
        f"{names[w]}->{mib_name(graph, r, True)}": {"score": float(score[r, w]), "in_graph": bool(member[r, w])}
        for r, w in np.argwhere(graph.valid)
    }
    return {"cfg": cfg, "nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges}


def _from_json(path: Path, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    content = json.loads(path.read_text())
    _same_shape(content.get("cfg", {}), graph)
    edges = content["edges"]
    score, member = np.zeros(graph.valid.shape), np.zeros(graph.valid.shape, bool)
    readers = {mib_name(graph, r, True): r for r in range(len(graph.readers))}
    writers = {mib_name(graph, w, False): w for w in range(len(graph.writers))}
    for name, edge in edges.items():
        writer, _, reader = name.partition("->")
        place = readers[reader], writers[writer]
        if not graph.valid[place]:
            raise ValueError(f"there can be no edge {name}")
        score[place] = edge.get("score") or 0
        member[place] = bool(edge.get("in_graph", True))
    if not np.isfinite(score).all():
        raise ValueError("it has scores that are not finite")
    return score, member


def _same_shape(cfg: dict, graph: Graph) -> None:
    for name, ours in (("n_layers", graph.layers), ("n_heads", graph.heads)):
        if cfg.get(name, ours) != ours:
            raise ValueError(f"its {name} is {cfg[name]}, the model's {ours}")


def _from_tensors(path: Path, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(path, "numpy") as file:
        score, member = (file.get_tensor(name).T for name in TENSORS[:2])
    if score.shape != graph.valid.shape:
        raise ValueError(f"its scores have the shape {score.shape[::-1]}, not {graph.valid.shape[::-1]}")
    return np.where(graph.valid, score, 0).astype(float), member.astype(bool) & graph.valid
