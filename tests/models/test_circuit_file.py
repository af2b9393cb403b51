"""Circuit files as the benchmark has them: names, tensors, grouped heads, and what is refused."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from workbench.models.circuit_file import CircuitFileError, mib_name, read_circuit, write_circuit
from workbench.models.graph import Graph

PLAIN, GROUPED, PARALLEL = Graph(2, 4, 4), Graph(2, 4, 2), Graph(2, 4, 4, True)
SUFFIXES = (".json", ".safetensors")
every_graph = pytest.mark.parametrize("graph", [PLAIN, GROUPED, PARALLEL, Graph(1, 6, 1)])
every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def circuit(graph, seed=0):
    """Random scores and membership of a graph's edges, 0 and False where there is no edge."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=graph.valid.shape).astype(np.float32).astype(float)
    return np.where(graph.valid, score, 0), graph.valid & (rng.random(graph.valid.shape) < 0.4)


def benchmark_index(layers, heads, name):
    """Column of a reader in the benchmark's tensors, as its graph counts them."""
    if name == "logits":
        return layers * (3 * heads + 1)
    if name[0] == "m":
        return int(name[1:]) * (3 * heads + 1) + 3 * heads
    place, part = name.rstrip(">").split("<")
    layer, head = (int(number[1:]) for number in place.split("."))
    return layer * (3 * heads + 1) + "qkv".index(part) * heads + head


@every_graph
@every_suffix
def test_what_is_written_reads_back(graph, suffix, tmp_path):
    score, member = circuit(graph)
    path = write_circuit(tmp_path / f"circuit{suffix}", graph, score, member)
    assert path == tmp_path / f"circuit{suffix}"
    found, kept = read_circuit(str(path), graph)
    assert found.dtype == float and kept.dtype == bool
    np.testing.assert_allclose(found, score, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(kept, member)


@every_graph
def test_either_kind_of_file_says_the_same(graph, tmp_path):
    paths = [write_circuit(tmp_path / f"circuit{suffix}", graph, *circuit(graph)) for suffix in SUFFIXES]
    for one, other in zip(*(read_circuit(path, graph) for path in paths), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_names_are_the_benchmark_s():
    assert [mib_name(PLAIN, w, False) for w in range(11)] == [
        *("input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0"),
        *("a1.h0", "a1.h1", "a1.h2", "a1.h3", "m1"),
    ]
    readers = [mib_name(PLAIN, r, True) for r in range(len(PLAIN.readers))]
    first = [f"a0.h{head}<{part}>" for part in "qkv" for head in range(4)]
    assert readers == [*first, "m0", *(name.replace("a0", "a1") for name in first), "m1", "logits"]
    assert [benchmark_index(2, 4, name) for name in readers] == list(range(27))


@pytest.mark.parametrize("graph", [PLAIN, GROUPED])
def test_a_json_file_names_every_edge_once(graph, tmp_path):
    score, member = circuit(graph)
    found = json.loads(write_circuit(tmp_path / "circuit.json", graph, score, member).read_text())
    assert found["cfg"].items() >= {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False}.items()
    assert set(found["nodes"]) == {"input", "logits", "m0", "m1", *(f"a{la}.h{h}" for la in (0, 1) for h in range(4))}
    assert found["nodes"]["logits"] == {"in_graph": True} and set(found["nodes"]["m0"]) == {"in_graph"}
    assert {"a0.h1->a1.h3<q>", "input->m0", "m1->logits", "a1.h0->m1", "input->a0.h3<k>"} <= set(found["edges"])
    assert len(found["edges"]) == PLAIN.valid.sum()  # keys and values of every query head, grouped or not
    assert not {"a0.h1->a0.h1<q>", "m1->m0", "a1.h0->m0", "m1->m1"} & set(found["edges"])
    for name, text in (
        ("a0.h1->a1.h3<q>", "L0H1->L1H3.q"),
        ("input->m0", "input->MLP0"),
        ("m1->logits", "MLP1->logits"),
    ):
        edge = graph.edge(text)
        assert found["edges"][name] == {"score": score[edge], "in_graph": bool(member[edge])}


def test_a_node_is_in_the_graph_when_an_edge_leaves_it(tmp_path):
    member = np.zeros(PLAIN.valid.shape, bool)
    for name in ("input->L0H1.v", "L0H1->logits"):
        member[PLAIN.edge(name)] = True
    path = write_circuit(tmp_path / "circuit.json", PLAIN, np.zeros(member.shape), member)
    nodes = json.loads(path.read_text())["nodes"]
    assert {name for name, node in nodes.items() if node["in_graph"]} == {"input", "a0.h1", "logits"}
    with safe_open(write_circuit(tmp_path / "circuit.safetensors", PLAIN, 0 * member, member), "numpy") as file:
        assert np.flatnonzero(file.get_tensor("nodes_in_graph")).tolist() == [0, 2]


@every_graph
def test_tensors_are_writer_by_reader(graph, tmp_path):
    score, member = circuit(graph)
    named = write_circuit(tmp_path / "circuit.json", graph, score, member)
    edges = json.loads(named.read_text())["edges"]
    with safe_open(write_circuit(tmp_path / "circuit.safetensors", graph, score, member), "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cfg = json.loads(file.metadata()["cfg"])
    layers, heads = graph.layers, graph.heads
    assert cfg.items() >= {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": graph.parallel}.items()
    shape = (1 + layers * (heads + 1), layers * (3 * heads + 1) + 1)
    assert tensors["edges_scores"].shape == tensors["edges_in_graph"].shape == shape
    assert tensors["nodes_in_graph"].shape == shape[:1]
    assert [tensors[name].dtype for name in sorted(tensors)] == [bool, np.float32, bool]
    writers = [mib_name(graph, w, False) for w in range(shape[0])]
    for name, edge in edges.items():
        writer, reader = name.split("->")
        cell = writers.index(writer), benchmark_index(layers, heads, reader)
        assert tensors["edges_scores"][cell] == np.float32(edge["score"])
        assert tensors["edges_in_graph"][cell] == edge["in_graph"]
    assert np.count_nonzero(tensors["edges_scores"]) == len(edges)


def test_a_file_of_the_benchmark_is_read(tmp_path):
    path = tmp_path / "sample.json"
    path.write_text(
        """{"cfg": {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": false, "d_model": 32},
        "nodes": {"input": {"in_graph": true}, "a0.h1": {"in_graph": true}, "logits": {"in_graph": true}},
        "edges": {"input->a0.h1<v>": {"score": -0.5, "in_graph": true},
                  "a0.h1->logits": {"score": 2, "in_graph": false},
                  "m0->a1.h3<k>": {"score": null, "in_graph": true},
                  "input->m1": {"in_graph": false},
                  "m0->m1": {"score": 0.25}}}"""
    )
    score, member = read_circuit(path, PLAIN)
    scores = {"input->L0H1.v": -0.5, "L0H1->logits": 2.0, "MLP0->MLP1": 0.25}
    assert {PLAIN.name(*edge): score[tuple(edge)] for edge in np.argwhere(score)} == scores
    kept = {"input->L0H1.v", "MLP0->L1H3.k", "MLP0->MLP1"}  # one that does not say is in
    assert {PLAIN.name(*edge) for edge in np.argwhere(member)} == kept


def test_keys_of_grouped_heads_are_summed_and_in_when_one_is(tmp_path):
    path = tmp_path / "sample.json"
    edges = {
        "input->a0.h2<k>": {"score": 0.5, "in_graph": False},
        "input->a0.h3<k>": {"score": 0.25, "in_graph": True},
        "input->a0.h3<q>": {"score": 8, "in_graph": True},
    }
    path.write_text(json.dumps({"edges": edges}))
    score, member = read_circuit(path, GROUPED)
    found = {GROUPED.name(*edge): score[tuple(edge)] for edge in np.argwhere(score)}
    assert found == {"input->L0KV1.k": 0.75, "input->L0H3.q": 8}
    assert {GROUPED.name(*edge) for edge in np.argwhere(member)} == set(found)


def test_what_stands_where_there_is_no_edge_is_left_out(tmp_path):
    path = tmp_path / "circuit.safetensors"
    size = (len(PLAIN.writers), len(PLAIN.readers))
    save_file({"edges_scores": np.ones(size, np.float32), "edges_in_graph": np.ones(size, bool)}, path)
    score, member = read_circuit(path, PLAIN)
    assert (member == PLAIN.valid).all() and (score == PLAIN.valid).all()


@every_suffix
@pytest.mark.parametrize("other", [Graph(3, 4, 4), Graph(1, 4, 4), Graph(2, 6, 6), Graph(2, 2, 2)])
def test_another_model_s_circuit_is_refused(suffix, other, tmp_path):
    path = write_circuit(tmp_path / f"circuit{suffix}", other, *circuit(other))
    with pytest.raises(CircuitFileError, match=r"cannot be read as a circuit of 2 layers with 4 heads"):
        read_circuit(path, PLAIN)


@pytest.mark.parametrize(
    "name", ["m1->m0", "m1->a0.h0<q>", "a0.h1->a0.h2<v>", "a0.h1->a1.h2", "a0.h1", "a0.h9->logits"]
)
def test_an_edge_that_is_not_there_is_refused(name, tmp_path):
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps({"edges": {name: {"score": 1.0, "in_graph": True}}}))
    with pytest.raises(CircuitFileError, match="give a MIB circuit file"):
        read_circuit(path, PLAIN)


@every_suffix
def test_a_missing_file_is_said(suffix, tmp_path):
    with pytest.raises(CircuitFileError, match=r"nowhere.*cannot be read.*give a MIB circuit file \(\.json"):
        read_circuit(tmp_path / f"nowhere{suffix}", PLAIN)


DAMAGED = ['{"edges"', "", "[1, 2]", "{}", '{"edges": [1]}', '{"edges": {"input->m0": 0.5}}', '{"edges": null}']
DAMAGED.append('{"edges": {"input->m0": {"score": "much"}}}')


@pytest.mark.parametrize("text", DAMAGED)
@every_suffix
def test_a_damaged_file_is_said(suffix, text, tmp_path):
    path = tmp_path / f"circuit{suffix}"
    path.write_text(text)
    with pytest.raises(CircuitFileError, match=r"cannot be read as a circuit .*give a MIB circuit file \(\.json"):
        read_circuit(path, PLAIN)


def test_a_file_cut_short_is_said(tmp_path):
    path = write_circuit(tmp_path / "circuit.safetensors", PLAIN, *circuit(PLAIN))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CircuitFileError, match="give a MIB circuit file"):
        read_circuit(path, PLAIN)


def test_tensors_of_other_names_are_said(tmp_path):
    save_file({"scores": np.ones((11, 27), np.float32)}, tmp_path / "circuit.safetensors")
    with pytest.raises(CircuitFileError, match="give a MIB circuit file"):
        read_circuit(tmp_path / "circuit.safetensors", PLAIN)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(CircuitFileError, match=r"written to a \.json or a \.safetensors file, not to 'circuit\.pt'"):
        write_circuit(tmp_path / "circuit.pt", PLAIN, *circuit(PLAIN))
    path = tmp_path / "circuit.txt"
    path.write_text("{}")
    with pytest.raises(CircuitFileError, match=r"give a MIB circuit file \(\.json, or its tensors as \.safetensors\)"):
        read_circuit(path, PLAIN)
