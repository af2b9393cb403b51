"""What the views of circuits, ablations, roles and repairs draw: the dataset's own numbers, and names as they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from widgets.circuit_graph import CircuitGraph
from workbench.models.graph import KINDS
from workbench.schema import concat
from workbench.views import VIEWS, ViewError, compatible, link, show

GRAPH = synthetic.GRAPH
RESULTS = {
    "circuit_graph": synthetic.edges,
    "faithfulness_curve": synthetic.faithful,
    "exact_scatter": synthetic.edges,
    "ablation_matrix": synthetic.ablated_both,
    "overlap_matrix": synthetic.overlaps,
    "role_table": synthetic.roles,
    "role_maps": synthetic.roles,
    "repair_plot": synthetic.repaired,
    "emergence": synthetic.emerging,
}


def edges_of(graph: CircuitGraph) -> dict[tuple[int, ...], float]:
    """Score by the five columns of an edge, in the widget's order."""
    table = np.frombuffer(graph.edges, "<i4").reshape(-1, 5).tolist()
    return dict(zip(map(tuple, table), np.frombuffer(graph.scores, "<f4").tolist(), strict=True))


def cell(reader: int, writer: int) -> tuple[int, ...]:
    return (*GRAPH.writer_cells[writer].tolist(), *GRAPH.reader_cells[reader].tolist())


def expected(mask: np.ndarray, score: np.ndarray) -> dict[tuple[int, ...], float]:
    return {cell(*at): pytest.approx(score[tuple(at)]) for at in np.argwhere(mask)}


def named(figure, name: str):
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_with_a_dimension_too_many_is_refused(name):
    with pytest.raises(ViewError, match="select"):
        show(RESULTS[name]().expand_dims(expert=[0, 1]), name)


@pytest.mark.parametrize("name", [name for name in RESULTS if name not in ("circuit_graph", "role_maps")])
def test_names_are_shown_as_they_are_written(name):
    text = json.dumps(show(RESULTS[name](), name).to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    for markup in ("<b>task", "<i>another", "<i>corrupted", "<b>heads", "mover <b>", "<i>2"):
        assert markup not in text
    if name != "repair_plot":
        assert "&lt;" in text


def test_a_circuit_graph_holds_every_edge_with_its_score():
    ds = synthetic.edges()
    graph = show(ds, "circuit_graph", limit=7)
    found = edges_of(graph)
    assert found == expected(GRAPH.valid, ds["score"].values)
    assert (graph.shape, graph.kv_heads, graph.limit) == ([synthetic.LAYERS, synthetic.HEADS], 0, 7)
    assert np.all(np.diff(np.abs(list(found.values()))) <= 0)
    assert "share of the clean-minus-corrupted metric" in graph.quantity and "gradient at the" in graph.quantity
    assert "n = 5" in graph.quantity


def test_a_circuit_graph_keeps_the_strongest_edges_and_leaves_out_what_is_no_edge():
    ds = synthetic.edges()
    score = ds["score"].values.copy()
    score[~GRAPH.valid] = 9.0
    found = edges_of(show(ds.assign(score=ds["score"].copy(data=score)), "circuit_graph", strongest=5))
    strongest = np.sort(np.abs(ds["score"].values[GRAPH.valid]))[-5:]
    np.testing.assert_allclose(sorted(map(abs, found.values())), strongest, rtol=1e-6)


def test_a_circuit_graph_of_grouped_heads_says_how_many_keys_there_are():
    graph = synthetic.Graph(2, 4, 2)
    ds = synthetic.edges().drop_vars("score")[[]]
    dims = ("receiver", "component")
    ds["score"] = (dims, graph.valid * 1.0, {"long_name": "edge score"})
    ds["valid"] = (dims, graph.valid.astype(np.int8), {"long_name": "valid"})
    drawn = show(ds.assign_attrs(heads=4, kv_heads=2), "circuit_graph")
    assert drawn.kv_heads == 2 and len(edges_of(drawn)) == graph.valid.sum()


def test_a_circuit_graph_goes_by_rank_where_there_is_one():
    ds = synthetic.faithful()
    score = ds["score"].copy(data=np.where(GRAPH.valid, 0.5, 0.0))  # all equal: only the rank tells
    graph = show(ds.assign(score=score), "circuit_graph", strongest=10)
    order = np.argsort(ds["rank"].values[GRAPH.valid])[:10]
    assert list(edges_of(graph)) == [cell(*np.argwhere(GRAPH.valid)[edge]) for edge in order]


def test_a_circuit_graph_of_an_overlap_draws_shared_edges_or_one_tasks():
    ds = synthetic.edge_overlaps()
    assert compatible(ds)[0] == "circuit_graph"
    shared = edges_of(show(ds))
    assert 0 < len(shared) < GRAPH.valid.sum()
    assert shared == expected(ds["shared"].values > 0, ds["score"].values.mean(0))
    own = edges_of(show(ds, task=1))
    assert own == expected(ds["member"].values[1] > 0, ds["score"].values[1])
    assert synthetic.TASKS[1] in show(ds, task=1).quantity
    with pytest.raises(ViewError, match="no task 2"):
        show(ds, task=2)


def test_an_overlap_of_edges_without_a_shared_one_is_an_empty_graph():
    ds = synthetic.edge_overlaps()
    graph = show(ds.assign(shared=ds["shared"] * 0))
    assert graph.edges == b"" and "0 edges in every" in graph.quantity


def test_a_faithfulness_curve_shows_both_curves_and_their_bands():
    ds = synthetic.faithful()
    figure = show(ds)
    drawn = [list(trace.y) for trace in figure.data]
    for middle in ("faithfulness", "faithfulness_null"):
        for end in ("", "_low", "_high"):
            assert ds[f"{middle}{end}"].values.tolist() in drawn
    np.testing.assert_allclose(named(figure, "circuit, 95 % interval").x, 100 * ds["fraction"])
    assert [shape.y0 for shape in figure.layout.shapes] == [0, 1]
    title = figure.layout.title.text
    assert "CPR 0.81 (random circuits 0.30, 95 % 0.20 to 0.41)" in title and "CMD 0.25" in title
    assert "resample ablation: each edge outside carries" in title
    assert figure.layout.xaxis.type == "log" and show(ds, log=False).layout.xaxis.type == "linear"


def test_the_mark_stands_at_the_size_asked_for():
    ds = synthetic.faithful()
    figure = show(ds, size=30, slider=False)
    mark = named(figure, "mark")
    assert mark.x[0] == pytest.approx(100 * 30 / GRAPH.valid.sum()) and mark.y[1] == pytest.approx(1.1)
    assert "30 edges" in mark.text[2] and "f = 1.10, random 0.40" in mark.text[2]
    assert not figure.layout.sliders
    assert "mark" not in [trace.name for trace in show(ds, slider=False).data]
    with pytest.raises(ViewError, match="No circuit of 7 edges was measured; the sizes are 1, 3, 10, 30"):
        show(ds, size=7)


@pytest.mark.parametrize("log", [True, False])
def test_the_slider_moves_the_mark_through_the_sizes(log):
    ds = synthetic.faithful()
    figure = show(ds, size=3, log=log)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == [str(size) for size in ds["size"].values]
    assert slider.active == 1
    for step, fraction, f in zip(slider.steps, ds["fraction"].values, ds["faithfulness"].values, strict=True):
        change, traces = step.args
        assert step.method == "restyle" and [figure.data[trace].name for trace in traces] == ["mark"]
        assert change["x"] == [[pytest.approx(100 * fraction)] * 3] and change["y"][0][1] == pytest.approx(f)
    own = slider.steps[1].args[0]
    mark = named(figure, "mark")
    assert (list(mark.x), list(mark.text), mark.textposition) == (own["x"][0], own["text"][0], own["textposition"][0])


def test_an_exact_scatter_has_a_point_an_edge_and_a_symbol_a_kind():
    ds = synthetic.edges()
    figure = show(ds, "exact_scatter")
    points = {}
    for trace in figure.data[1:]:
        for name, x, y in zip(trace.text, trace.x, trace.y, strict=True):
            points[name] = (trace.name, x, y)
    assert len(points) == ds.sizes["edge"]
    assert len({trace.marker.symbol for trace in figure.data[1:]}) == len(figure.data) - 1
    words = dict(zip(KINDS, ("queries", "keys", "values", "MLPs", "logits"), strict=True))
    for edge, x, y in zip(ds["edge"].values, ds["approximate"].values, ds["exact"].values, strict=True):
        kind = words[KINDS[GRAPH.reader_cells[GRAPH.edge(str(edge))[0], 2]]]
        assert points[str(edge).replace(">", "&gt;")] == (f"into {kind}", x, y)
    assert list(figure.data[0].x) == list(figure.data[0].y)
    assert "Spearman 0.87 over 12 edges" in figure.layout.title.text.split("<br>")[0]


def test_an_exact_scatter_without_edges_says_so():
    figure = show(synthetic.edges().isel(edge=slice(0)), "exact_scatter")
    assert len(figure.data) == 1 and "no edges" in figure.layout.title.text


def test_an_ablation_matrix_shows_what_is_lost_beside_chance():
    ds = synthetic.ablated_both()
    figure = show(ds)
    cells, _ = figure.data
    np.testing.assert_allclose(cells.z, (ds["lost"] - ds["lost_null"]).transpose("component", "measured"))
    assert cells.zmin == -cells.zmax and cells.zmid == 0
    assert cells.text[0][0] == "<b>0.82</b><br>(random 0.10, 95 % 0.31)"
    assert cells.text[1][0] == "<i>0.20 n.s.</i><br>(random 0.15, 95 % 0.40)"
    assert cells.text[0][1].startswith("<b>0.52</b>") and "n.s." in cells.text[2][1]
    assert "L0H1, L1H2" in cells.customdata[0][0] and "0.720 to 0.920" in cells.customdata[0][0]
    assert "accuracy 0.95, then 0.30" in cells.customdata[0][0] and "accuracy 0.65, then" in cells.customdata[0][1]
    assert ": none<br>" in cells.customdata[2][0]
    assert "mean ablation: each head ablated gives its mean output" in figure.layout.title.text


def test_an_ablation_matrix_of_one_task_has_one_column():
    figure = show(synthetic.ablated())
    assert np.shape(figure.data[0].z) == (3, 1) and list(figure.data[0].x) == ["one &lt;b&gt;task&lt;/b&gt;"]


def test_a_joined_result_from_which_one_was_left_out_is_refused():
    with pytest.raises(ViewError, match="accuracy_clean"):
        show(synthetic.ablated_both().isel(measured=[0]))


def test_an_overlap_matrix_shows_pairs_less_chance_and_names_the_ceiling():
    ds = synthetic.overlaps()
    cells, ceiling, _ = show(ds, "overlap_matrix").data
    np.testing.assert_allclose(cells.z, [[np.nan, 0.3], [0.3, np.nan]])
    assert [list(row) for row in cells.text] == [["", "IoU 0.50 (chance 0.20)"], ["IoU 0.50 (chance 0.20)", ""]]
    assert list(ceiling.text) == ["ceiling 0.90", "ceiling 0.80"] and list(ceiling.x) == list(ceiling.y)
    without = show(ds.drop_vars(["iou_ceiling", "weighted_ceiling"]), "overlap_matrix").data[1]
    assert set(without.text) == {"no ceiling known"}
    assert "3 strongest heads" in show(ds, "overlap_matrix").layout.title.text
    assert "20 strongest edges" in show(synthetic.edge_overlaps(), "overlap_matrix").layout.title.text


def test_a_role_table_has_a_row_a_labelled_head_strongest_first():
    ds = synthetic.roles()
    assert compatible(ds) == ["role_table", "role_maps"]
    figure = show(ds)
    columns = [list(column) for column in figure.data[0].cells["values"]]
    assert columns == [
        ["L0H1", "L1H2"],
        ["previous token", "induction"],
        ["0.90", "0.50"],
        ["0.04", "0.02"],
        ["induction (0.40)", "mover &lt;b&gt; (0.20)"],
    ]
    assert "2 heads have a role: a score of 0.3 or more" in figure.layout.title.text
    assert "n = 5" in figure.layout.title.text


def test_a_role_table_says_when_no_head_has_a_role():
    ds = synthetic.roles()
    figure = show(ds.assign(role=ds["role"] * 0 - 1))
    assert figure.data[0].cells["values"][0][0] == "no head reaches 0.3"


def test_role_maps_have_a_panel_a_role_and_mark_the_labelled_heads():
    ds = synthetic.roles()
    grid = show(ds, "role_maps")
    assert grid.titles == ["previous token", "induction", "mover <b>"] and not grid.signed
    np.testing.assert_allclose(np.frombuffer(grid.values, "<f4"), ds["score"].values.ravel(), rtol=1e-6)
    marks = np.frombuffer(grid.marks, "u1").reshape(3, synthetic.LAYERS, synthetic.HEADS)
    assert np.argwhere(marks).tolist() == [[0, 0, 1], [1, 1, 2]]
    assert show(ds.assign(score=-ds["score"]), "role_maps").signed


def test_a_repair_plot_shows_both_accuracies_and_every_control():
    ds = synthetic.repaired()
    figure = show(ds)
    assert list(named(figure, "unchanged").y) == [0.45] and list(named(figure, "edited").y) == [0.85]
    dots = named(figure, "random heads")
    assert list(dots.y) == ds["accuracy_random"].values.tolist() and np.all(np.abs(np.array(dots.x) - 1) < 0.2)
    (box,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (box.y0, box.y1) == (0.4, 0.5)
    assert "p = 0.2 · 21 prompts mended, 1 broken" in figure.layout.title.text
    assert list(figure.layout.xaxis.ticktext) == ["unchanged", "random heads (4 draws)", "edited (L0H1,L1H2)"]
    assert "color_1=1, &lt;i&gt;2&lt;/i&gt;=1" in figure.layout.title.text


def test_emergence_stacks_accuracy_overlap_and_the_heads_shared_last():
    ds = synthetic.emerging()
    figure = show(ds)
    by_axis = {axis: [trace for trace in figure.data if trace.yaxis == axis] for axis in ("y", "y2", "y3")}
    assert {tuple(trace.x) for trace in figure.data} == {(0, 100, 900)}
    np.testing.assert_allclose([trace.y for trace in by_axis["y"]], ds["accuracy"].values.T)
    for name, variable in (("intersection over union", "iou"), ("chance, 95 % point", "iou_null_high")):
        np.testing.assert_allclose(named(figure, name).y, ds[variable].sel(size=3))
    assert any("ceiling" in trace.name for trace in by_axis["y2"])
    shared = np.argwhere(ds["shared"].values[-1] > 0)
    assert len(shared) and len(by_axis["y3"]) == 2 * len(shared)
    for trace in by_axis["y3"]:
        layer, head = (int(part) for part in trace.name[1:].split("H"))
        task = ["solid", "dash"].index(trace.line.dash)
        np.testing.assert_allclose(trace.y, ds["effect"].values[:, task, layer, head])
    assert [trace.line.dash for trace in by_axis["y"]] == ["solid", "dash"]
    assert figure.layout.xaxis3.title.text == "training step"


def test_emergence_orders_numbers_and_keeps_names():
    ds = synthetic.emerging()
    backwards = show(ds.isel(checkpoint=[2, 0, 1]))
    np.testing.assert_array_equal(backwards.data[0].y, show(ds).data[0].y)
    words = show(ds.assign_coords(checkpoint=["start", "<middle>", "final"]))
    assert list(words.data[0].x) == ["start", "&lt;middle&gt;", "final"] and words.layout.xaxis.type == "category"
    numbers = show(ds.assign_coords(checkpoint=[0, 100, 900]))
    assert list(numbers.data[0].x) == [0, 100, 900] and numbers.layout.xaxis.type == "linear"


def test_emergence_takes_the_size_chosen_at_each_checkpoint():
    parts = {}
    for step, chosen in ((0, 1), (10, 3), (20, 6)):
        ds = synthetic.overlaps().assign_attrs(chosen=chosen, model=f"here@{step}")
        parts[step] = ds
    figure = show(concat(parts, "checkpoint"))
    np.testing.assert_allclose(named(figure, "intersection over union").y, [0.0, 0.5, 1.0])
    assert "circuits of 1 / 3 / 6 heads" in figure.layout.title.text and " in here<br>" in figure.layout.title.text


def test_emergence_without_a_shared_head_or_a_ceiling_says_so():
    ds = synthetic.emerging()
    figure = show(ds.assign(shared=ds["shared"] * 0).drop_vars("iou_ceiling"))
    assert "no head is shared at the last checkpoint" in figure.layout.title.text
    assert not [trace for trace in figure.data if trace.yaxis == "y3" or "ceiling" in trace.name]
    many = show(ds.assign(shared=ds["shared"] * 0 + 1), heads=2)
    assert "2 of 6 heads" in many.layout.title.text
    assert len([trace for trace in many.data if trace.yaxis == "y3"]) == 4


def test_an_attention_row_is_the_mean_over_the_heads_asked_for():
    ds = synthetic.patterns()
    assert compatible(ds) == ["attention_pattern", "attention_row"]
    row = show(ds, "attention_row", heads="L1H2, L0H0")
    np.testing.assert_allclose(np.frombuffer(row.weights, "<f4"), [0.125, 0.125, 0.125, 0.625])
    assert (row.tokens, row.names) == (["<bos>", "a", "a", "<i>"], ["", "S1", "", "END"])
    assert row.query == -1 and row.heading.startswith("L1H2, L0H0 on prompt 0")
    first = show(ds, "attention_row", query=0)
    np.testing.assert_allclose(np.frombuffer(first.weights, "<f4"), [1, 0, 0, 0], atol=1e-6)
    assert first.query == 0 and first.heading.startswith("mean of all heads")
    every = np.frombuffer(show(ds, "attention_row", query=1).weights, "<f4")
    np.testing.assert_allclose(every, ds["pattern"].values[:, :, 1].mean((0, 1)), rtol=1e-6)


def test_an_attention_row_without_names_has_none_and_refuses_what_is_not_there():
    ds = synthetic.patterns()
    assert show(ds.drop_vars("position"), "attention_row").names == []
    with pytest.raises(ViewError, match="no head 9"):
        show(ds, "attention_row", heads="L0H9")
    with pytest.raises(ViewError, match="no query 4"):
        show(ds, "attention_row", query=4)


def test_a_head_map_of_paths_has_a_panel_a_receiver_and_no_marks():
    grid = show(synthetic.path_effects())
    assert grid.titles == ["logits@END", "L1H2.q@END"] and grid.marks == b""
    steps = show(synthetic.effects(task=True).rename(task="checkpoint"), "head_map")
    assert steps.titles == [f"checkpoint {task}" for task in synthetic.TASKS]


def test_the_first_view_of_an_overlap_of_heads_is_still_its_map():
    offered = compatible(synthetic.overlaps())
    assert offered[0] == "head_map" and {"overlap_curve", "overlap_matrix"} <= set(offered)
    assert all(VIEWS[name].draw(synthetic.overlaps()) for name in offered)


def test_linked_widgets_share_the_selected_head():
    grid, graph, small = (show(ds) for ds in (synthetic.effects(), synthetic.edges(), synthetic.effects()))
    link(grid, graph, small)
    grid.selected = [1, 2]
    assert graph.selected == small.selected == [1, 2]
    graph.selected = [0, -1]
    assert grid.selected == [1, 2], "an MLP is no head"
    graph.selected = []
    assert grid.selected == small.selected == []
    viewer = show(synthetic.patterns())
    link(grid, viewer)
    grid.selected = [1, 1]
    assert viewer.selected == [1, 1]
    with pytest.raises(ViewError, match="AttentionRow"):
        link(grid, show(synthetic.patterns(), "attention_row"))
