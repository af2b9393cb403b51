"""What the views of experts' effects draw: the dataset's own numbers, their intervals and nulls, names as they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.views import ViewError, show

RESULTS = {
    "expert_effects": synthetic.unstaffed,
    "surgery_effects": synthetic.operated,
    "route_changes": synthetic.rerouted,
}
every_view = pytest.mark.parametrize("name", RESULTS)


def drawn(name, **options):
    return show(RESULTS[name](), name, **options)


def named(figure, name):
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def maps(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def bars(trace):
    """Upper and lower ends of the bars that a line with gaps draws."""
    ends = np.array(trace.y, float).reshape(-1, 3)
    assert np.isnan(ends[:, 2]).all()
    return ends[:, 0], ends[:, 1]


@every_view
def test_a_result_with_a_dimension_too_many_is_refused(name):
    with pytest.raises(ViewError, match="select"):
        show(RESULTS[name]().expand_dims(checkpoint=[0, 1]), name)


@every_view
def test_names_and_tokens_are_shown_as_they_are_written(name):
    ds = RESULTS[name]().assign_attrs(model="<script>model", task="<img src=x>task")
    figure = show(ds, name)
    text = json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    for markup in ("<script>", "<img", "<i>S2", "<b>a", "<b>one", "<b>logit", "<b>prompt", "L0E<b>"):
        assert markup not in text
    assert "&lt;script&gt;model" in text and "n = 5" in figure.layout.title.text


@pytest.mark.parametrize(("measure", "load"), [("lost", "load"), ("loss_change", "load_text")])
def test_expert_effects_show_effect_load_and_band(measure, load):
    ds = synthetic.unstaffed()
    figure = show(ds, "expert_effects", measure=measure)
    effect, share = maps(figure)
    np.testing.assert_allclose(effect.z, ds[measure])
    np.testing.assert_allclose(share.z, ds[load])
    assert effect.zmin == -effect.zmax and share.zmin == 0
    low, high = bars(named(figure, "random experts at as many tokens, 95 %"))
    np.testing.assert_allclose(low, ds[f"{measure}_null_low"].values.ravel())
    np.testing.assert_allclose(high, ds[f"{measure}_null_high"].values.ravel())
    for layer in (0, 1):
        dots = named(figure, f"layer {layer}")
        np.testing.assert_allclose(dots.x, ds[load].values[layer])
        np.testing.assert_allclose(dots.y, ds[measure].values[layer])
        np.testing.assert_allclose(np.add(dots.y, dots.error_y.array), ds[f"{measure}_high"].values[layer])
        np.testing.assert_allclose(np.subtract(dots.y, dots.error_y.arrayminus), ds[f"{measure}_low"].values[layer])
    said = effect.customdata[0][1]
    assert said.startswith(f"L0E1: {ds[measure].values[0, 1]:+.4f}") and "p = 0.6" in said and "load 90.0%" in said


def test_what_is_above_chance_and_above_zero_is_bold():
    ds = synthetic.unstaffed()
    text = maps(show(ds, "expert_effects"))[0].text
    assert [list(row) for row in text] == [["0.00", "<b>0.60</b>", "0.10"], ["0.20", "-0.10", "0.00"]]
    unsure = ds.assign(lost_low=ds["lost_low"] - 1)
    assert maps(show(unsure, "expert_effects"))[0].text[0][1] == "0.60"
    many = ds.isel(expert=np.arange(20) % 3).assign_coords(expert=range(20))
    text = maps(show(many, "expert_effects"))[0].text
    assert text[0][1] == "<b>●</b>" and text[0][0] == ""


def test_an_unknown_measure_is_refused():
    with pytest.raises(ViewError, match="no measure 'gain'; use one of: lost, loss_change"):
        drawn("expert_effects", measure="gain")


def test_surgery_effects_stand_between_before_and_their_controls():
    ds = synthetic.operated()
    figure = show(ds)
    for name in ("metric", "probability", "loss"):
        before, after = ds[name].values
        dot = named(figure, f"{name}, after")
        assert list(named(figure, f"{name}, before").y) == [before] and list(dot.y) == [after]
        np.testing.assert_allclose(after + np.array(dot.error_y.array), before + ds[f"{name}_change_high"])
        np.testing.assert_allclose(after - np.array(dot.error_y.arrayminus), before + ds[f"{name}_change_low"])
        random = named(figure, f"{name}, random experts")
        np.testing.assert_allclose(random.y, before + ds[f"{name}_change_random"].values)
        assert list(random.text) == ["L0E&lt;b&gt;", "x", "y"]
        box = (before + float(ds[f"{name}_change_null_low"]), before + float(ds[f"{name}_change_null_high"]))
        assert box in [(shape.y0, shape.y1) for shape in figure.layout.shapes if shape.type == "rect"]
    title = figure.layout.title.text
    assert "metric -1.5 (p = 0.25)" in title and "before: … &lt;b&gt;one" in title and "after: … two" in title


def test_surgery_effects_list_the_likeliest_next_tokens():
    (table,) = [trace for trace in drawn("surgery_effects").data if trace.type == "table"]
    assert [list(column) for column in table.cells["values"]] == [
        ["1", "2"],
        ["&lt;b&gt;a", "↵"],
        ["0.7500", "0.1250"],
        ["␣", "c"],
        ["0.5000", "0.2500"],
    ]


def test_route_changes_show_what_changes_what_it_carries_and_the_experts():
    ds = synthetic.rerouted()
    figure = show(ds)
    changed, experts = maps(figure)
    np.testing.assert_allclose(changed.z, ds["changed"])
    assert list(changed.y) == ["S1", "&lt;i&gt;S2", "other tokens"] and changed.text[0][0] == "20%"
    assert f"margin of the choice {float(ds['margin'][1, 0]):.3g}" in changed.customdata[1][0]
    np.testing.assert_allclose(np.array(experts.z)[:, :3], ds["effect"])
    np.testing.assert_allclose(np.array(experts.z)[:, 3:], np.stack([ds["effect_mlp"], ds["effect_sum"]], 1))
    assert list(experts.x) == ["0", "1", "2", "all", "sum"] and experts.customdata[1][3].startswith("layer 1, all: ")
    names = {"restored": "clean routing put in the corrupted run", "removed": "corrupted routing put in the clean run"}
    for way, name in names.items():
        at, dots = ds.sel(measured=way), named(figure, name)

        def line(end, at=at):
            return [*at[f"carried{end}"].values, float(at[f"carried_all{end}"])]

        np.testing.assert_allclose(dots.y, line(""))
        np.testing.assert_allclose(np.add(dots.y, dots.error_y.array), line("_high"))
        low, high = bars(named(figure, f"{way}, random experts"))
        np.testing.assert_allclose(low, line("_null_low"))
        np.testing.assert_allclose(high, line("_null_high"))
    assert list(figure.layout.xaxis2.ticktext) == ["0", "1", "all"]


def test_the_order_of_dimensions_does_not_matter():
    for name, make in RESULTS.items():
        ds = make()
        turned = ds.transpose(*reversed(list(ds.dims)))
        assert show(turned, name).to_json() == show(ds, name).to_json()
