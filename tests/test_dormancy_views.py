"""What the views of massive activations, dormant heads and parked heads draw: the dataset's own numbers and names."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.schema import concat
from workbench.views import ViewError, compatible, show

RESULTS = {"massive_map": synthetic.massive, "dormancy": synthetic.resting, "parked_heads": synthetic.parked}
NAMES = [f"L{layer}H{head}" for layer in range(synthetic.LAYERS) for head in range(synthetic.HEADS)]


def named(figure, name: str):
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def called(figure) -> set[str]:
    return {trace.name for trace in figure.data if trace.name}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_with_a_dimension_too_many_is_refused(name):
    with pytest.raises(ViewError, match="select"):
        show(RESULTS[name]().expand_dims(expert=[0, 1]), name)


@pytest.mark.parametrize("name", RESULTS)
def test_names_and_tokens_are_shown_as_they_are_written(name):
    text = json.dumps(show(RESULTS[name](), name).to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    for markup in ("<b>task", "<b>title", "<i>"):
        assert markup not in text
    assert "&lt;" in text


def test_a_massive_map_holds_every_rank_the_median_the_limit_and_the_null():
    ds = synthetic.massive()
    figure = show(ds)
    for rank in ds["measured"].values:
        trace, at = named(figure, str(rank)), ds.sel(measured=rank)
        np.testing.assert_allclose(trace.y, at["magnitude"])
        np.testing.assert_allclose(trace.y + trace.error_y.array, at["magnitude_high"])
        np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, at["magnitude_low"])
    np.testing.assert_allclose(named(figure, "median").y, ds["median"])
    np.testing.assert_allclose(named(figure, "massive from here on").y, ds["limit"])
    np.testing.assert_allclose(named(figure, "largest of as many Gaussian numbers").y, ds["magnitude_null"][:, 0])
    largest = named(figure, "largest 1")
    assert figure.layout.yaxis.type == "log" and list(largest.marker.size) == [6, 11], "massive in most sequences"
    hover = largest.customdata[1]
    assert "dimension 7 (75 %" in hover and "position 7" in hover and "&lt;bos&gt;" in hover and "80 % of seq" in hover
    assert "massive: &lt;i&gt;large" in figure.layout.title.text and "n = 5" in figure.layout.title.text


def test_a_massive_map_shows_what_overwriting_did_or_that_there_was_nothing():
    ds = synthetic.massive()
    (losses,) = [trace for trace in show(ds).data if trace.xaxis == "x2"]
    np.testing.assert_allclose(losses.y, ds["loss_change"])
    np.testing.assert_allclose(losses.y + losses.error_y.array, ds["loss_change_high"])
    assert list(losses.x) == ds["method"].values.tolist() and "0.9 a sequence" in losses.customdata[3]
    assert "output of block 1" in show(ds).layout.title.text
    none = show(synthetic.massive(-1))
    assert "no activation is massive" in none.layout.title.text
    assert not [trace for trace in none.data if trace.xaxis == "x2"]
    stopped = show(ds.drop_dims("method"))
    assert "massive, so none" not in stopped.layout.title.text and len(stopped.data) == 5


def test_a_dormancy_map_holds_d_and_marks_each_state():
    ds = synthetic.resting()
    figure = show(ds)
    cells = figure.data[0]
    np.testing.assert_allclose(np.ravel(cells.z), ds["dormancy"].values.ravel())
    assert list(cells.x) == NAMES and list(cells.y) == ["one &lt;b&gt;task&lt;/b&gt;"]
    assert list(named(figure, "dormant").x) == ["L0H1", "L1H2"] and list(named(figure, "active").x) == ["L1H0", "L1H1"]
    assert list(named(figure, "idle, not on the sink").x) == ["L0H0"]
    assert called(figure) == {"dormant", "active", "idle, not on the sink"}, "one task has nothing to differ from"
    text = cells.customdata[0][1]
    for name in ("dormancy", "dormancy_at", "value_drain", "output_norm", "lost"):
        low, middle, high = (float(ds[f"{name}{end}"].values[0, 1]) for end in ("_low", "", "_high"))
        assert f"{middle:.3f} ({low:.3f} to {high:.3f})" in text
    assert "state &lt;i&gt;1" in text and "limit 0.020" in text
    assert "uniform attention gives 0.070" in figure.layout.title.text and "at least 2 %" in figure.layout.title.text


def test_a_dormancy_map_of_tasks_stars_the_heads_that_are_active_on_one_only():
    ds = synthetic.resting(task=True)
    figure = show(ds)
    np.testing.assert_allclose(figure.data[0].z, ds["dormancy"].values.reshape(2, -1))
    assert list(named(figure, "active here, dormant there").x) == ["L0H1"]
    assert list(named(figure, "active here, idle there").x) == ["L0H0"]
    assert set(named(figure, "active here, dormant there").y) == {"between tasks"}
    parts = {task: synthetic.resting() for task in synthetic.TASKS}
    same = show(concat(parts, "task"))
    assert not {"active here, dormant there", "active here, idle there"} & called(same)


def test_a_dormancy_map_draws_the_variable_asked_for_and_does_without_an_ablation():
    ds = synthetic.resting()
    np.testing.assert_allclose(np.ravel(show(ds, "dormancy", variable="lost").data[0].z), ds["lost"].values.ravel())
    with pytest.raises(ViewError, match="Cannot draw 'state'; this result has: dormancy, dormancy_at"):
        show(ds, "dormancy", variable="state")
    bare = ds[[name for name in ds if not str(name).startswith(("lost", "limit", "state"))]]
    figure = show(bare)
    assert len(figure.data) == 1 and "mean-ablation" not in figure.layout.title.text


def test_parked_heads_stand_at_both_effects_with_their_intervals():
    ds = synthetic.parked()
    assert compatible(ds)[0] == "parked_heads"
    figure = show(ds)
    points = {}
    for label in ("heads", "parked heads"):
        trace = named(figure, label)
        for index, head in enumerate(trace.text):
            points[head] = (trace.x[index], trace.y[index], trace.error_x.array[index], trace.error_y.arrayminus[index])
    expected = {}
    for head, at in zip(NAMES, np.ndindex(synthetic.LAYERS, synthetic.HEADS), strict=True):
        plain, left = float(ds["effect_plain"].values[at]), float(ds["effect"].values[at])
        room = float(ds["effect_plain_high"].values[at]) - plain, left - float(ds["effect_low"].values[at])
        expected[head] = pytest.approx((plain, left, *room))
    assert points == expected
    assert list(named(figure, "parked heads").text) == ["L1H2"]
    diagonal = named(figure, "nothing due to the sink")
    assert list(diagonal.x) == list(diagonal.y) and list(named(figure, "all due to the sink").y) == [0, 0]
    hover = named(figure, "parked heads").customdata[0]
    assert (
        "only its attention on the sink patched 0.900 (0.800 to 1.000)" in hover and "uniform attention 0.100" in hover
    )
    assert "1 parked: an effect of 2 % or more, less than 25 %" in figure.layout.title.text
