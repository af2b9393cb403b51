"""Writers, readers and edges of small models, counted and written out."""

import numpy as np
import pytest

from workbench.models.graph import KINDS, Graph
from workbench.registry import WorkbenchError

SIZES = [(1, 1, 1), (2, 4, 4), (2, 4, 2), (3, 6, 1)]
every_size = pytest.mark.parametrize(("layers", "heads", "kv_heads"), SIZES)


def test_names_of_a_small_model_in_order():
    graph = Graph(2, 2, 2)
    assert graph.writers == ["input", "L0H0", "L0H1", "MLP0", "L1H0", "L1H1", "MLP1"]
    block = ["L0H0.q", "L0H1.q", "L0H0.k", "L0H1.k", "L0H0.v", "L0H1.v", "MLP0"]
    assert graph.readers == [*block, *(f"L1{name[2:]}" for name in block[:-1]), "MLP1", "logits"]


def test_grouped_keys_and_values_have_names_of_their_own():
    assert Graph(1, 4, 2).readers == [
        *("L0H0.q", "L0H1.q", "L0H2.q", "L0H3.q"),
        *("L0KV0.k", "L0KV1.k", "L0KV0.v", "L0KV1.v", "MLP0", "logits"),
    ]


@every_size
def test_counts(layers, heads, kv_heads):
    graph = Graph(layers, heads, kv_heads)
    assert len(set(graph.writers)) == len(graph.writers) == 1 + layers * (heads + 1)
    assert len(set(graph.readers)) == len(graph.readers) == layers * graph.readers_a_layer + 1
    assert graph.readers_a_layer == heads + 2 * kv_heads + 1


@every_size
@pytest.mark.parametrize("parallel", [False, True])
def test_an_edge_runs_forward(layers, heads, kv_heads, parallel):
    """Time is the block, then attention before the MLP; what is written in a step is read in later ones only."""
    graph = Graph(layers, heads, kv_heads, parallel)
    assert graph.valid.shape == (len(graph.readers), len(graph.writers))
    for r, (reader, (layer, _, kind)) in enumerate(zip(graph.readers, graph.reader_cells.tolist(), strict=True)):
        for w, (writer, (from_layer, from_head)) in enumerate(
            zip(graph.writers, graph.writer_cells.tolist(), strict=True)
        ):
            beside = reader.startswith("MLP") and from_layer == layer and from_head >= 0 and not parallel
            forward = reader == "logits" or writer == "input" or from_layer < layer or beside
            assert graph.valid[r, w] == forward, graph.name(r, w)
        part = KINDS[kind]
        expected = np.arange(len(graph.writers)) < graph.before(layer, part)
        assert (graph.valid[r] == expected).all()


@every_size
@pytest.mark.parametrize("parallel", [False, True])
def test_how_many_edges_there_are(layers, heads, kv_heads, parallel):
    a_layer, width = heads + 2 * kv_heads + 1, heads + 1
    expected = sum(a_layer * (1 + width * layer) + (0 if parallel else heads) for layer in range(layers))
    assert Graph(layers, heads, kv_heads, parallel).valid.sum() == expected + 1 + layers * width


@every_size
def test_indices_and_cells_say_what_the_names_say(layers, heads, kv_heads):
    graph = Graph(layers, heads, kv_heads)
    for layer in range(layers):
        assert graph.writers[graph.writer(layer)] == f"MLP{layer}"
        for head in range(heads):
            assert graph.writers[graph.writer(layer, head)] == f"L{layer}H{head}"
            assert graph.writer_cells[graph.writer(layer, head)].tolist() == [layer, head]
        for kind, part in enumerate(KINDS[:4]):
            names = graph.readers[graph.readers_of(layer, part)]
            assert len(names) == {"q": heads, "mlp": 1}.get(part, kv_heads)
            assert all(name == f"MLP{layer}" or name.endswith(f".{part}") for name in names)
            cells = graph.reader_cells[graph.readers_of(layer, part)]
            assert cells[:, 0].tolist() == [layer] * len(names) and set(cells[:, 2].tolist()) == {kind}
            assert cells[:, 1].tolist() == ([-1] if part == "mlp" else list(range(len(names))))
    assert graph.writer_cells[0].tolist() == [-1, 0] and graph.reader_cells[-1].tolist() == [-1, -1, 4]


@pytest.mark.parametrize("graph", [Graph(2, 4, 4), Graph(2, 4, 2), Graph(2, 4, 4, True)])
def test_a_name_reads_back(graph):
    for reader, writer in zip(*np.nonzero(graph.valid), strict=True):
        assert graph.edge(graph.name(reader, writer)) == (reader, writer)
    assert graph.edge(" L0H3 -> MLP1 ") == (graph.readers.index("MLP1"), graph.writers.index("L0H3"))


@pytest.mark.parametrize("text", ["", "L0H0", "L0H0->", "->logits", "L0H0->L1H0", "L2H0->logits", "L0H0->L1H0.z"])
def test_what_is_no_edge_is_said(text):
    with pytest.raises(WorkbenchError, match=r"is no edge of this model; write it like L0H1->L1H2\.q"):
        Graph(2, 4, 4).edge(text)


def test_types_tell_kinds_of_edges_apart():
    graph = Graph(2, 2, 1)
    found: dict[int, set] = {}
    for reader, writer in np.ndindex(graph.valid.shape):
        wrote = "input" if writer == 0 else graph.writers[writer][:1]
        read = graph.readers[reader]
        kind = (wrote, read.partition(".")[2] or read.rstrip("01"))
        found.setdefault(int(graph.types[reader, writer]), set()).add(kind)
    assert sorted(found) == list(range(15))  # three kinds of writers, five of readers
    assert all(len(kinds) == 1 for kinds in found.values())
