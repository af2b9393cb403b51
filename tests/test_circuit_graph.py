"""What the circuit graph accepts and how it packs a table of edges, without a browser."""

import numpy as np
import pytest
import traitlets as T

from widgets import circuit_graph
from widgets.circuit_graph import CircuitGraph, pack
from workbench.app.hosting import panelize

SHAPE = [3, 4]
EDGES = [[0, 1, 2, 3, 0], [-1, 0, 0, 1, 2], [1, 0, 1, -1, 3], [1, -1, -1, -1, 4], [-1, -1, 2, 0, 1], [2, 3, -1, -1, 4]]
SCORES = [0.25, -0.5, 0.125, -2, 0, 0.5]


def unpacked(traits: dict) -> tuple[np.ndarray, np.ndarray]:
    table = np.frombuffer(traits["edges"], "<i4").reshape(-1, len(circuit_graph.COLUMNS))
    return table, np.frombuffer(traits["scores"], "<f4")


def test_packed_edges_come_back_with_the_largest_score_first() -> None:
    traits = pack(EDGES, SCORES, SHAPE)
    table, scores = unpacked(traits)
    # Equal sizes keep their order.
    order = [3, 1, 5, 0, 2, 4]
    assert table.tolist() == [EDGES[edge] for edge in order]
    assert scores.tolist() == [SCORES[edge] for edge in order]
    assert (traits["shape"], traits["kv_heads"]) == (SHAPE, 0)
    graph = CircuitGraph(**traits)
    assert (graph.edges, graph.scores) == (traits["edges"], traits["scores"])


def test_any_array_of_whole_numbers_is_packed() -> None:
    expected = pack(EDGES, SCORES, SHAPE)
    for kind in ("i1", "i8", "f4", ">i4"):
        assert pack(np.array(EDGES, kind), np.array(SCORES, "f8"), np.array(SHAPE)) == expected


def test_no_edges_are_a_graph_as_well() -> None:
    traits = pack([], [], SHAPE, kv_heads=2)
    assert traits == {"edges": b"", "scores": b"", "shape": SHAPE, "kv_heads": 2}
    assert CircuitGraph(**traits).kv_heads == 2


def test_key_value_heads_bound_the_readers_of_keys_and_values_only() -> None:
    pack([[0, 3, 1, 1, 1], [0, 3, 1, 1, 2], [0, 3, 1, 3, 0]], [1, 1, 1], SHAPE, kv_heads=2)
    for kind in (1, 2):
        with pytest.raises(ValueError, match=r"reader_index must be a head .*key-value head.*found edge 0: \[0, 3"):
            pack([[0, 3, 1, 2, kind]], [1], SHAPE, kv_heads=2)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ([0, 0, 1, 0, 5], "reader_kind must be one of 0 q, 1 k, 2 v, 3 mlp, 4 logits, found edge 1"),
        ([0, 0, 1, 0, -1], "reader_kind must be one of"),
        ([-2, 0, 1, 0, 0], "writer_layer must be -1 for the input or from 0 to 2"),
        ([3, 0, -1, -1, 4], "writer_layer must be"),
        ([0, 4, 1, 0, 0], r"writer_index must be a head from 0 to 3, or -1 for an MLP .*: \[0, 4, 1, 0, 0\]"),
        ([0, -2, 1, 0, 0], "writer_index must be"),
        ([-1, 1, 1, 0, 0], r"writer_index must be .*\(input: 0 or -1\)"),
        ([0, 0, 3, 0, 0], "reader_layer must be from 0 to 2, or -1 for logits"),
        ([0, 0, 2, -1, 4], "reader_layer must be"),
        ([0, 0, -1, 0, 0], "reader_layer must be"),
        ([0, 0, 1, 4, 0], "reader_index must be a head"),
        ([0, 0, 1, -1, 2], "reader_index must be a head"),
        ([0, 0, 1, 2, 3], "reader_index must be .*-1 for MLP and logits"),
        ([0, 0, -1, 0, 4], "reader_index must be .*-1 for MLP and logits"),
        ([1, 0, 1, 2, 0], "a reader must come after its writer, found edge 1"),
        ([2, 0, 1, 2, 1], "a reader must come after its writer"),
        ([1, -1, 1, -1, 3], "a reader must come after its writer"),
        ([2, 1, 1, -1, 3], "a reader must come after its writer"),
    ],
)
def test_an_edge_that_cannot_be_is_named(edge: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([EDGES[0], edge], [1, 1], SHAPE)
    raw = {"edges": np.array([EDGES[0], edge], "<i4").tobytes(), "scores": np.ones(2, "<f4").tobytes()}
    with pytest.raises(T.TraitError, match=message):
        CircuitGraph(shape=SHAPE, **raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edges": np.zeros((2, 4))}, r"\[edge, 5\] \(writer_layer, .*reader_kind\): \(2, 4\)"),
        ({"edges": np.zeros(5)}, r"\[edge, 5\]"),
        ({"edges": [[0, 1, 1.5, 0, 0]]}, "edges must be whole numbers"),
        ({"edges": [[0, 1, np.nan, 0, 0]]}, "edges must be whole numbers"),
        ({"scores": [1, 2]}, r"one number an edge, shape \(6,\), found \(2,\)"),
        ({"scores": np.ones((6, 1))}, r"one number an edge, shape \(6,\), found \(6, 1\)"),
        ({"scores": [1, 2, np.nan, 4, np.inf, 6]}, "scores must be finite, found 2 that are not"),
        ({"scores": [1, 2, 3, 4, 5, 1e300]}, "scores must be finite, found 1 that are not"),
        ({"shape": [3, 4, 1]}, r"shape must be \[layers, heads\], found \[3, 4, 1\]"),
        ({"shape": [3, -4]}, r"shape must be \[layers, heads\]"),
        ({"kv_heads": 3}, "kv_heads must be 0 or divide the 4 heads, found 3"),
        ({"kv_heads": -1}, "kv_heads must be 0 or divide"),
    ],
)
def test_what_is_no_table_of_edges_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(**{"edges": EDGES, "scores": SCORES, "shape": SHAPE} | arguments)


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"edges": b"\0" * 19}, "an edge has 20 bytes of edges and 4 of scores, found 19 and 24"),
        ({"scores": b""}, "an edge has 20 bytes of edges and 4 of scores, found 120 and 0"),
        ({"scores": np.array([1, 0, 0, 0, 0, np.nan], "<f4").tobytes()}, "finite, found 1 that are not"),
        ({"scores": np.arange(6, dtype="<f4").tobytes()}, r"scores must have the largest \|score\| first"),
        ({"kv_heads": 3}, "kv_heads must be 0 or divide the 4 heads, found 3"),
        ({"shape": [2, 4]}, "must be"),
        ({"selected": [0]}, r"selected must be \[\], \[layer, head\].*\[3, 0\] for the logits, found \[0\]"),
        ({"selected": [3, 1]}, r"found \[3, 1\]"),
        ({"selected": [0, 4]}, r"found \[0, 4\]"),
        ({"selected": [-1, -1]}, r"found \[-1, -1\]"),
        ({"limit": -1}, "limit"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        CircuitGraph(**pack(EDGES, SCORES, SHAPE) | traits)


@pytest.mark.parametrize("selected", [[], [-1, 0], [0, 0], [2, 3], [1, -1], [3, 0]])
def test_every_node_can_be_selected(selected: list[int]) -> None:
    assert CircuitGraph(**pack(EDGES, SCORES, SHAPE), selected=selected).selected == selected


def test_show_changes_dependent_traits_at_once_and_single_changes_are_refused() -> None:
    graph = CircuitGraph(**pack(EDGES, SCORES, SHAPE), selected=[2, 3])
    with pytest.raises(T.TraitError, match="call of show"):
        graph.shape = [1, 2]
    assert graph.shape == SHAPE
    other = pack([[0, 1, -1, -1, 4]], [3], [1, 2], kv_heads=1)
    graph.show(**other, selected=[0, 1], quantity="effect", limit=1)
    assert (graph.shape, graph.edges, graph.selected, graph.limit) == ([1, 2], other["edges"], [0, 1], 1)
    with pytest.raises(TypeError, match=r"no trait 'colour'; it has .*kv_heads.*show_slider"):
        graph.show(colour="red")


def test_bytes_from_the_page_become_bytes() -> None:
    traits = pack(EDGES[:1], [1], SHAPE)
    graph = CircuitGraph(**traits)
    graph.set_state({"scores": memoryview(np.float32([2.5]).tobytes())})
    assert graph.scores == np.float32([2.5]).tobytes()


def test_a_component_has_the_widgets_traits_defaults_and_help() -> None:
    made, original = panelize(CircuitGraph)(), CircuitGraph()
    names = {name for name, trait in CircuitGraph.class_traits(sync=True).items() if trait.this_class is CircuitGraph}
    assert names == {"shape", "kv_heads", "edges", "scores", "quantity", "limit", "selected", "show_slider"}
    assert {name: getattr(made, name) for name in names} == {name: getattr(original, name) for name in names}
    assert all(made.param[name].doc == CircuitGraph.class_traits()[name].help for name in names)
