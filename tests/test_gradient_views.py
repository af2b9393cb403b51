"""What the views of gradients and saliency draw: the dataset's own numbers, muted inside the noise, beside chance."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.views import VIEWS, ViewError, compatible, link, show

PAIRS = ("gradient_matrix", "gradient_layers", "gradient_parts", "gradient_heads")
WIDGETS = ("gradient_matrix", "gradient_heads")
RESULTS = {name: synthetic.aligned for name in PAIRS}
RESULTS |= {"gradient_training": synthetic.aligned_in_training, "saliency_shares": synthetic.salient}


def text_of(figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())


def maps(figure):
    """The heat maps of a figure: coloured and grey in turns."""
    found = [trace for trace in figure.data if trace.type == "heatmap"]
    return list(zip(found[::2], found[1::2], strict=True))


def test_every_shape_has_its_views_the_matrix_first():
    fitting = compatible(synthetic.aligned())
    assert fitting[0] == "gradient_matrix" and set(fitting) == set(PAIRS)
    assert compatible(synthetic.aligned_in_training())[0] == "gradient_training"
    assert compatible(synthetic.salient()) == ["saliency_shares"]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_with_a_dimension_too_many_is_refused(name):
    with pytest.raises(ViewError, match="select"):
        show(RESULTS[name]().expand_dims(method=["x", "y"]), name)


@pytest.mark.parametrize("name", [name for name in RESULTS if name not in WIDGETS])
def test_names_are_shown_as_they_are_written(name):
    text = text_of(show(RESULTS[name](), name))
    assert "&lt;b&gt;" in text and "<b>" not in text and "n = 5" in text


def held(matrix, name: str, *shape: int) -> np.ndarray:
    """What a trait of bytes of a matrix of three tasks holds."""
    return np.frombuffer(getattr(matrix, name), "u1" if name == "clear" else "<f4").reshape(shape or (3, 3))


def test_a_matrix_holds_the_cosines_their_noise_and_the_ceiling():
    ds = synthetic.aligned()
    matrix, part = show(ds, "gradient_matrix", module="L0.W_V"), ds.sel(module="L0.W_V")
    assert matrix.names == ds["task"].values.tolist() and "<b>" in matrix.names[0]  # the widget shows plain text
    for trait, name in (("values", "cosine"), ("low", "cosine_low"), ("high", "cosine_high"), ("clear", "clear")):
        np.testing.assert_allclose(held(matrix, trait), part[name].values, rtol=1e-6)
    np.testing.assert_allclose(held(matrix, "diagonal", 3), part["ceiling"].values, rtol=1e-6)
    own, shown = np.eye(3, dtype=bool), part["clear"].values > 0
    floor, conflict, corrected = held(matrix, "detail_values", 3, 3, 3)
    assert [detail.format("n") for detail in matrix.details] == [
        "unrelated gradients: ±n",
        "n% of pairs of batches in conflict",
        "corrected for noise: n",
    ]
    np.testing.assert_allclose(floor, np.where(own, np.nan, 1.96 * 0.05), rtol=1e-6)
    np.testing.assert_allclose(conflict, 100 * part["conflict"].values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(corrected, np.where(own | ~shown, np.nan, part["cosine"].values), rtol=1e-6)
    assert matrix.limit == pytest.approx(max(0.2, abs(part["cosine"].values[~own]).max()))
    assert matrix.title == "Gradient alignment of tasks, L0.W_V: zoo/tasks" and matrix.signed
    assert matrix.note.split("\n")[:3] == [
        "n = 5",
        "W_V of layer 0, 1,005 parameters · 2 batches a task",
        ds.attrs["sign"],
    ]


def test_a_task_without_a_gradient_is_said_to_have_none():
    matrix = show(synthetic.aligned(), "gradient_matrix", module="L1H2")
    silent = np.array([False, False, True])
    quiet = silent[:, None] | silent
    np.testing.assert_array_equal(np.isnan(held(matrix, "values")), quiet)
    np.testing.assert_array_equal(np.isnan(held(matrix, "diagonal", 3)), silent)
    assert np.isnan(held(matrix, "detail_values", 3, 3, 3)[:, quiet]).all() and matrix.absent == "no gradient"


def test_a_pair_of_tasks_is_no_head_to_link():
    ds = synthetic.aligned()
    with pytest.raises(ViewError, match="TaskMatrix"):
        link(show(ds, "gradient_heads"), show(ds, "gradient_matrix"))


def test_layers_are_on_one_scale_and_any_matrix_can_be_asked_for():
    ds = synthetic.aligned()
    for option, names in (("", ["L0", "L1"]), ("W_V", ["L0.W_V", "L1.W_V"])):
        figure = show(ds, "gradient_layers", matrix=option)
        pairs = maps(figure)
        assert [a.text for a in figure.layout.annotations] == names and len({c.zmax for c, _ in pairs}) == 1
        for (coloured, _), name in zip(pairs, names, strict=True):
            part = ds.sel(module=name)
            seen = (part["clear"].values > 0) & ~np.eye(3, dtype=bool)
            np.testing.assert_array_equal(coloured.z, np.where(seen, part["cosine"].values, np.nan))
    assert "3 a third" in figure.layout.title.text
    with pytest.raises(ViewError, match="no matrix 'W_X'; there are W_Q, W_V"):
        show(ds, "gradient_layers", matrix="W_X")


def test_parts_of_a_pair_stand_by_layer_and_matrix():
    ds = synthetic.aligned()
    ((coloured, grey),) = maps(show(ds, "gradient_parts", task="a third", receiver="another"))
    assert list(coloured.x) == ["W_Q", "W_V"] and list(coloured.y) == ["0", "1"]
    for row, layer in enumerate((0, 1)):
        for column, matrix in enumerate(("W_Q", "W_V")):
            part = ds.sel(module=f"L{layer}.{matrix}", task="a third", receiver="another")
            drawn = coloured.z[row][column] if int(part["clear"]) else float(grey.text[row][column])
            assert drawn == pytest.approx(float(part["cosine"]), abs=0.005)


def test_the_pair_that_is_not_named_is_the_most_opposed_outside_the_noise():
    ds = synthetic.aligned()
    ds["cosine"].loc[{"module": "all"}] = np.array([[1, -0.5, -0.1], [-0.5, 1, -0.3], [-0.1, -0.3, 1]])
    ds["clear"].loc[{"module": "all"}] = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]])
    assert "another and a third" in show(ds, "gradient_parts").layout.title.text
    assert "a third and another" in show(ds, "gradient_parts", task="a third").layout.title.text
    assert "and a third" in show(ds, "gradient_parts", task=synthetic.TASKS[0]).layout.title.text
    with pytest.raises(ViewError, match="no task 'x'"):
        show(ds, "gradient_parts", task="x")
    with pytest.raises(ViewError, match="name two"):
        show(ds, "gradient_heads", task="another", receiver="another")


def test_a_map_of_heads_holds_the_cosines_and_marks_the_noise():
    ds = synthetic.aligned()
    grid = show(ds, "gradient_heads", task="another", receiver="a third")
    part = ds.isel(module=ds["kind"].values == "head").sel(task="another", receiver="a third")
    for trait, name in (("values", "cosine"), ("low", "cosine_low"), ("high", "cosine_high")):
        np.testing.assert_allclose(np.frombuffer(getattr(grid, trait), "<f4"), part[name].values, rtol=1e-6)
    assert list(grid.marks) == (1 - part["clear"].values).tolist() and grid.titles == ["another and a third"]
    assert grid.shape == [1, 2, 3] and grid.signed and "n = 5" in grid.quantity


def test_a_map_of_heads_beside_circuits_marks_them_and_is_linked_with_the_graph():
    ds, circuits = synthetic.aligned(), synthetic.overlaps()
    one, other = synthetic.TASKS
    grid = show(ds, "gradient_heads", task=one, receiver=other, circuits=circuits)
    member = circuits["member"].values
    assert list(grid.marks) == member.sum(0).ravel().tolist() and "both" in grid.mark_names[1]
    graph = show(synthetic.edges(), "circuit_graph")
    link(grid, graph)
    grid.selected = [1, 2]
    assert graph.selected == [1, 2]
    with pytest.raises(ViewError, match="no task a third"):
        show(ds, "gradient_heads", task=one, receiver="a third", circuits=circuits)
    with pytest.raises(ViewError, match="an overlap of heads"):
        show(ds, "gradient_heads", circuits=synthetic.edge_overlaps())
    with pytest.raises(ViewError, match="layers and heads"):
        show(ds, "gradient_heads", task=one, receiver=other, circuits=circuits.isel(head=[0, 1]))


def test_without_heads_there_is_no_map_of_them():
    ds = synthetic.aligned()
    with pytest.raises(ViewError, match="no head among its modules"):
        show(ds.isel(module=ds["kind"].values != "head"), "gradient_heads")


def test_training_is_drawn_in_its_order_with_intervals_and_ceilings():
    ds = synthetic.aligned_in_training()
    figure = show(ds, "gradient_training", module="L1")
    ordered = ds.sel(module="L1", checkpoint=["0", "100", "900"])
    assert len(figure.data) == 6 and list(figure.data[0].x) == [0, 100, 900]
    line = figure.data[0]
    np.testing.assert_allclose(line.y, ordered["cosine"].values[:, 0, 1])
    np.testing.assert_allclose(line.y - line.error_y.arrayminus, ordered["cosine_low"].values[:, 0, 1])
    np.testing.assert_allclose(figure.data[3].y, ordered["ceiling"].values[:, 0])
    assert "zoo/tasks" in figure.layout.title.text and "@" not in figure.layout.title.text
    with pytest.raises(ViewError, match="no module L9"):
        show(ds, "gradient_training", module="L9")


def test_shares_are_stacked_and_their_entropy_stands_beside_its_null():
    ds = synthetic.salient()
    figure = show(ds, "saliency_shares", layer=0)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    np.testing.assert_allclose([bar.y for bar in bars], ds["share"].values[:, 0])
    assert figure.layout.barmode == "stack" and list(bars[0].x) == ["END-2", "END-1", "END"]
    assert "0.40 to 0.60" in bars[0].customdata[0]
    null, least, seen = (trace for trace in figure.data if trace.type == "scatter")
    np.testing.assert_allclose(seen.y, ds["entropy"].values[0])
    np.testing.assert_allclose(seen.y - seen.error_y.arrayminus, ds["entropy_low"].values[0])
    assert set(null.y) == {0.98} and set(least.y) == {0.95} and least.fill == "tonexty"
    assert "entropy 0.900, shuffled 1.000" in figure.layout.title.text
    with pytest.raises(ViewError, match="no layer 9"):
        show(ds, "saliency_shares", layer=9)


def test_no_view_of_gradients_changes_the_dataset():
    for name, made in RESULTS.items():
        ds = made()
        before = ds.copy(deep=True)
        VIEWS[name].draw(ds)
        assert ds.identical(before)
