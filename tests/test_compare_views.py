"""What the views of a comparison, of flips and of experiments draw: the dataset's own numbers, and noise in grey."""

import html
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.analyses import compare, top_changes
from workbench.views import ViewError, show
from workbench.views._changes import COLOURS, MUTED, STATES

RESULTS = {
    "before_after": synthetic.compared,
    "change_list": synthetic.compared,
    "state_map": synthetic.compared,
    "circuit_changes": lambda: synthetic.compared("edges"),
    "flip_table": synthetic.flipped,
    "mixture_map": synthetic.mixed,
    "paired_differences": synthetic.paired_runs,
}


def written(figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())


@pytest.mark.parametrize("name", RESULTS)
def test_names_are_shown_as_they_are_written(name):
    text = written(show(RESULTS[name](), name))
    assert "<i>" not in text and "<b>task" not in text and "<b>2" not in text and "a <b>" not in text
    assert "&lt;" in text


def test_three_maps_have_one_scale_and_noise_is_grey():
    ds = synthetic.compared()
    before, after, muted, changed, *_ = show(ds, "before_after").data
    outside = (abs(ds["difference"]) > ds["band"]).values
    assert outside.any() and not outside.all()
    np.testing.assert_array_equal(before.z, ds["before"])
    np.testing.assert_array_equal(after.z, ds["after"])
    np.testing.assert_array_equal(changed.z, np.where(outside, ds["difference"], np.nan))
    np.testing.assert_array_equal(np.isnan(muted.z), outside)
    limit = max(float(abs(ds[name]).max()) for name in ("before", "after", "difference"))
    assert {trace.zmax for trace in (before, after, changed)} == {limit} and muted.colorscale[0][1] == MUTED
    assert changed.zmin == -limit and before.zmin == -limit  # effects have a sign
    at = tuple(np.argwhere(outside)[0])
    assert f"{float(ds['before'].values[at]):.4g}" in changed.customdata[at[0]][at[1]]
    assert changed.text[at[0]][at[1]] == f"{float(ds['difference'].values[at]):+.2f}"


def test_a_large_comparison_shows_where_it_changed_most():
    ds = synthetic.compared("edges")
    figure = show(ds, "before_after", most=4)
    changed = figure.data[3]
    assert len(changed.x) == 4 and len(changed.y) == 4
    best = ds["rank"].where(ds["rank"] >= 0, 10**6)
    rows = sorted(np.argsort(best.min("component").values, kind="stable")[:4].tolist())
    assert list(changed.y) == [str(name) for name in ds["receiver"].values[rows]]
    columns = sorted(np.argsort(best.min("receiver").values, kind="stable")[:4].tolist())
    shown = ds.isel(receiver=rows, component=columns)
    left = ds.attrs["cells"] - int((shown["rank"] >= 0).sum())
    assert f"{left:,} cells with smaller changes are not shown" in figure.layout.title.text
    assert not np.isfinite(changed.z[(shown["rank"] < 0).values]).any()


def test_pairs_of_tasks_stand_side_by_side_each_once():
    ds = synthetic.aligned()
    figure = show(compare(ds, ds), "before_after")
    one, other, third = (html.escape(name) for name in ds["task"].values)
    assert list(figure.data[0].x) == [f"{one} x {other}", f"{one} x {third}", f"{other} x {third}"]
    assert list(figure.data[0].y) == ds["module"].values.tolist()
    np.testing.assert_allclose(figure.data[0].z[:, 2], ds["cosine"].values[:, 1, 2])


def test_the_list_is_the_table():
    ds = synthetic.compared("edges")
    table, figure = top_changes(ds, 12), show(ds, "change_list", count=12)
    drawn = {}
    for trace in figure.data:
        ends = trace.x - trace.error_x.arrayminus, trace.x + trace.error_x.array
        for name, *numbers, symbol in zip(trace.y, trace.x, *ends, trace.marker.symbol, strict=True):
            drawn[html.unescape(name)] = (trace.name, symbol, numbers)
    names = [html.unescape(name) for name in figure.layout.yaxis.categoryarray]
    assert len(drawn) == 12 and names == table["name"].tolist()[::-1]
    for _, row in table.iterrows():
        state, symbol, numbers = drawn[row["name"]]
        assert state == row["state"] and symbol == ("circle" if row["changed"] else "circle-open")
        assert numbers == pytest.approx([row["difference"], row["difference_low"], row["difference_high"]])


def test_states_have_their_colours():
    ds = synthetic.compared()
    (trace,) = show(ds, "state_map").data
    np.testing.assert_array_equal(trace.z, ds["state"])
    assert (trace.zmin, trace.zmax) == (-0.5, len(STATES) - 0.5)
    for state, colour in enumerate(COLOURS):
        shares = [share for share, named in trace.colorscale if named == colour]
        assert shares == [pytest.approx(state / 5), pytest.approx((state + 1) / 5)]
    assert list(trace.colorbar.ticktext) == list(STATES)


def test_the_graph_has_every_edge_of_either_circuit_in_its_state():
    ds = synthetic.compared("edges")
    figure = show(ds, "circuit_changes", limit=1000)
    graph, found = synthetic.GRAPH, {}
    for trace in figure.data:
        if trace.name in STATES:
            for text in trace.text:
                found[html.unescape(text.split(":")[0])] = trace.name
    states = ds["state"].values
    expected = {graph.name(r, w): STATES[states[r, w]] for r, w in np.argwhere((states > 0) & graph.valid)}
    assert found == expected and len(set(expected.values())) == 4
    lines = {trace.name.split(" ")[0]: trace for trace in figure.data if trace.mode == "lines"}
    for state, trace in lines.items():
        count = list(expected.values()).count(state)
        assert trace.name == f"{state} ({count})" and np.isnan(trace.x.astype(float)).sum() == count
    few = show(ds, "circuit_changes", limit=5)
    assert sum(len(trace.text) for trace in few.data if trace.name in STATES) == 5
    strength = np.maximum(abs(ds["before"]), abs(ds["after"])).values
    strongest = sorted(np.argwhere((states > 0) & graph.valid).tolist(), key=lambda at: -strength[tuple(at)])[:5]
    drawn = {html.unescape(text.split(":")[0]) for trace in few.data if trace.name in STATES for text in trace.text}
    assert drawn == {graph.name(*at) for at in strongest}


def test_the_flip_table_counts_and_shows_flips_first():
    ds = synthetic.flipped()
    counts, examples, _ = show(ds, "flip_table").data
    assert [["<b>1</b>" in cell for cell in row] for row in counts.text] == [[True, True], [True, True]]
    np.testing.assert_allclose(counts.z, 0.25)
    columns = examples.cells["values"]
    assert list(columns[0]) == ["right to wrong", "wrong to right", "&lt;b&gt;wrong both times", "right both times"]
    assert list(columns[1]) == ["b", "c", "d", "&lt;i&gt;a"]
    metric = ds["metric"].values
    assert columns[5][0] == f"{metric[0, 1]:+.2f} to {metric[1, 1]:+.2f}"
    assert "p = 1 of 2 flips" in show(ds, "flip_table").layout.title.text
    assert len(show(ds, "flip_table", examples=2).data[1].cells["values"][0]) == 2


def test_the_mixture_map_greys_synergies_that_may_be_noise():
    ds = synthetic.mixed()
    scores, unsure, clear, *_ = show(ds, "mixture_map", measured="another").data
    np.testing.assert_allclose(scores.z, ds["accuracy"])
    part = ds.sel(measured="another")
    own = np.eye(2, dtype=bool)
    over = ((part["accuracy_synergy_low"] > 0) | (part["accuracy_synergy_high"] < 0)).values
    np.testing.assert_array_equal(clear.z, np.where(over & ~own, part["accuracy_synergy"], np.nan))
    np.testing.assert_array_equal(unsure.z, np.where(~over & ~own, part["accuracy_synergy"], np.nan))
    np.testing.assert_allclose(show(ds, "mixture_map", score="loss").data[0].z, ds["loss"])
    with pytest.raises(ViewError, match="no measured nothing"):
        show(ds, "mixture_map", measured="nothing")


def test_paired_differences_show_the_mean_and_every_seed():
    ds = synthetic.paired_runs()
    *seeds, mean = show(ds, "paired_differences").data
    np.testing.assert_allclose(mean.y, ds["accuracy_change"])
    np.testing.assert_allclose(mean.y + mean.error_y.array, ds["accuracy_change_high"])
    for place, trace in enumerate(seeds):
        np.testing.assert_allclose(trace.y, ds["difference"][place])
        np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, ds["difference_low"][place])


@pytest.mark.parametrize("name", ["circuit_changes", "flip_table", "mixture_map", "paired_differences"])
def test_a_result_with_a_dimension_too_many_is_refused(name):
    with pytest.raises(ViewError, match="select"):
        show(RESULTS[name]().expand_dims(expert=[0, 1]), name)


def test_a_comparison_of_one_number_is_refused():
    ds = synthetic.compared().isel(layer=0, head=0, drop=True)
    with pytest.raises(ViewError, match="one number"):
        show(ds, "before_after")
