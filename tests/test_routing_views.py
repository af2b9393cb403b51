"""What the views of routing draw: the dataset's own numbers, beside chance, and names as they are written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from widgets.token_map.palette import luminance
from workbench.models.expert_names import expert_name, parse_expert
from workbench.registry import WorkbenchError
from workbench.views import ViewError, compatible, show
from workbench.views._experts import HUES, colour

RESULTS = {
    "expert_load": synthetic.routed,
    "task_flow": synthetic.routed_tasks,
    "coactivation": synthetic.routed,
    "specialisation": synthetic.routed_tasks,
    "routing_drift": synthetic.drifting,
    "expert_strip": synthetic.routed,
    "expert_alignment": synthetic.alike,
    "expert_energy": synthetic.alike,
    "task_similarity": synthetic.routed_tasks,
}


def text_of(figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_with_a_dimension_too_many_is_refused(name):
    ds = RESULTS[name]().expand_dims(method=["x", "y"])
    with pytest.raises(ViewError, match="select"):
        show(ds, name)


@pytest.mark.parametrize("name", RESULTS)
def test_names_are_shown_as_they_are_written_and_the_title_says_what_of(name):
    figure = show(RESULTS[name](), name)
    text, title = text_of(figure), figure.layout.title.text
    for markup in ("<b>task", "<b>next", "<b>BOS", "<b>900", "<b>b", "<i>"):
        assert markup not in text
    assert "n = 5" in title and ("tokens" in title or name in ("expert_strip", "expert_energy", "expert_alignment"))


@pytest.mark.parametrize("name", [name for name in RESULTS if name not in ("specialisation", "routing_drift")])
def test_a_layer_or_sequence_that_is_not_there_is_said(name):
    option = {"sequence": 9} if name == "expert_strip" else {"layer": 9}
    with pytest.raises(ViewError, match=r"There is no (layer|component) 9"):
        show(RESULTS[name](), name, **option)


def test_every_shape_has_its_views():
    assert compatible(synthetic.routed()) == ["expert_load", "expert_strip", "coactivation", "specialisation"]
    assert set(compatible(synthetic.routed_tasks())) == {
        "specialisation",
        "task_flow",
        "expert_load",
        "task_similarity",
    }
    assert compatible(synthetic.drifting()) == ["routing_drift"]
    assert set(compatible(synthetic.alike())) == {"expert_alignment", "expert_energy"}


def test_a_load_map_is_white_where_a_router_is_even():
    ds = synthetic.routed()
    (cells,) = show(ds, "expert_load").data
    np.testing.assert_allclose(cells.z, ds["load"])
    assert list(cells.y) == [1, 3] and cells.text[1][2] == "L3E2: 1.000 of tokens (0.950 to 1.050)"
    even = float(ds["load_null"])
    assert cells.zmin == 0 and cells.colorscale[2][0] * cells.zmax == pytest.approx(even)
    places = [stop for stop, _ in cells.colorscale]
    assert places == sorted(places) and (places[0], places[-1]) == (0, 1)
    assert "even router: 0.667 · by chance 0.617 to 0.717" in show(ds, "expert_load").layout.title.text
    maps = show(synthetic.routed_tasks(), "expert_load").data
    np.testing.assert_allclose([each.z for each in maps], synthetic.routed_tasks()["load"])


def test_load_bars_have_their_intervals_and_the_even_line():
    ds = synthetic.routed_tasks()
    figure = show(ds, "expert_load", layer=3)
    assert [bar.name for bar in figure.data] == ["one &lt;b&gt;task&lt;/b&gt;", "another"]
    for bar, task in zip(figure.data, ds["task"].values, strict=True):
        at = ds.sel(task=task, layer=3)
        np.testing.assert_allclose(bar.y, at["load"])
        np.testing.assert_allclose(bar.y + bar.error_y.array, at["load_high"])
        np.testing.assert_allclose(bar.y - bar.error_y.arrayminus, at["load_low"])
    assert [shape.y0 for shape in figure.layout.shapes] == [pytest.approx(2 / 3)]


def test_where_every_token_goes_to_all_experts_shares_of_weight_are_drawn():
    ds = synthetic.routed()
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    for end, change in (("", 0.0), ("_low", -0.05), ("_high", 0.05)):
        ds = ds.assign({f"gate{end}": (("layer", "expert"), weights + change), f"load{end}": ds["load"] * 0 + 1})
    ds = ds.assign(gate_null=1 / 3, gate_null_low=("layer", [0.3, 0.31]), gate_null_high=("layer", [0.35, 0.36]))
    ds.attrs["dense"] = 1
    figure = show(ds, "expert_load")
    np.testing.assert_allclose(figure.data[0].z, weights)
    assert "weights renamed at random 0.300 to 0.360" in figure.layout.title.text
    assert figure.data[0].text[1][2] == "L3E2: 0.600 of all weight (0.550 to 0.650)"
    bars = show(ds, "expert_load", layer=3)
    np.testing.assert_allclose(bars.data[0].y, weights[1])
    assert bars.layout.shapes[0].y0 == pytest.approx(1 / 3)
    assert "0.310 to 0.360" in bars.layout.title.text and bars.layout.yaxis.title.text == "share of all weight"


def test_colours_of_experts_and_of_layers_stand_out_from_light_and_dark_pages():
    drawn = [line.line.color for line in show(synthetic.drifting(), "routing_drift").data]
    for text in (*HUES, *drawn):
        parts = [int(part) for part in text[4:-1].split(",")] if text.startswith("rgb") else bytes.fromhex(text[1:])
        light = luminance(*(part / 255 for part in parts))
        assert (light + 0.05) / (luminance(*[0x12 / 255] * 3) + 0.05) > 2.5 and 1.05 / (light + 0.05) > 1.8, text


def test_a_flow_carries_each_tasks_loads_and_is_grey_where_they_are_not_more_than_even():
    ds = synthetic.routed_tasks()
    (flow,) = show(ds, "task_flow", layer=1).data
    assert list(flow.node.label[2:]) == ["L1E0", "L1E1", "L1E2"]
    load, low = ds["load"].sel(layer=1).values, ds["load_low"].sel(layer=1).values
    for source, target, value, hue in zip(
        flow.link.source, flow.link.target, flow.link.value, flow.link.color, strict=True
    ):
        assert value == pytest.approx(load[source, target - 2])
        assert hue.startswith("rgba(138, 143, 152") == (low[source, target - 2] <= 2 / 3)
    bars = show(ds, "task_flow", layer=1, kind="bars").data
    np.testing.assert_allclose(np.transpose([bar.x for bar in bars]), load)
    with pytest.raises(ViewError, match="use flow or bars"):
        show(ds, "task_flow", kind="pie")


def test_co_activation_is_less_what_the_loads_give_or_plain():
    ds = synthetic.routed()
    at, off = ds.sel(layer=1), ~np.eye(3, dtype=bool)
    (cells,) = show(ds, "coactivation", layer=1).data
    expected = (at["coactivation"] - at["coactivation_null"]).values
    np.testing.assert_allclose(np.array(cells.z)[off], expected[off])
    assert np.isnan(np.diag(np.array(cells.z, dtype=float))).all() and cells.zmin == -cells.zmax
    assert "as by chance" in cells.customdata[0][1] and "more than chance" in cells.customdata[0][2]
    (plain,) = show(ds, "coactivation", layer=1, less=False).data
    np.testing.assert_allclose(np.array(plain.z)[off], at["coactivation"].values[off])


@pytest.mark.parametrize("made", [synthetic.routed, synthetic.routed_tasks])
def test_specialisation_has_its_null_and_random_routers_in_every_panel(made):
    ds = made()
    figure = show(ds, "specialisation")
    ends = {"the routers": "", "labels shuffled, 95 % point": "_null_high", "random routers, mean": "_random"}
    for name, end in ends.items():
        lines = [trace for trace in figure.data if trace.name == name]
        np.testing.assert_allclose([line.y for line in lines], ds[f"specialisation{end}"])
    assert sum(bool(trace.showlegend) for trace in figure.data) == 5


def test_drift_is_drawn_in_the_order_of_training_with_chance():
    ds = synthetic.drifting()
    figure = show(ds, "routing_drift")
    order = [0, 2, 1]
    for axis, name in (("y", "saturation"), ("y2", "overlap"), ("y3", "divergence")):
        for place, layer in enumerate((1, 3)):
            line, chance = (
                next(t for t in figure.data if t.yaxis == axis and t.name == label)
                for label in (f"layer {layer}", f"layer {layer}, by chance")
            )
            assert list(line.x) == [0, 100, 900]
            np.testing.assert_allclose(line.y, ds[name].values[order, place])
            np.testing.assert_allclose(line.y + line.error_y.array, ds[f"{name}_high"].values[order, place])
            np.testing.assert_allclose(chance.y, ds[f"{name}_null"].values[order, place])
    assert figure.layout.shapes[0].y0 == 0.25


def test_a_strip_shows_first_experts_in_colours_that_are_told_apart():
    ds = synthetic.routed()
    cells, _ = show(ds, "expert_strip", sequence=1).data
    np.testing.assert_array_equal(cells.z, ds["shown_chosen"].sel(component=1).values[..., 0].T)
    at = ds.sel(component=1, pos=3, layer=3)
    said = cells.text[1][3]
    first = int(at["shown_chosen"].values[0])
    assert said.startswith("3 ↵<br>goes to ") and f"L3E{first} with weight {at['shown_weight'].values[0]:.3f}" in said
    for expert in range(3):
        assert f"E{expert} {at['shown_probability'].values[expert]:.3f}" in said
    assert len(cells.colorscale) == 6 and cells.colorscale[2][1] == cells.colorscale[3][1] == HUES[1]
    assert len({colour(expert) for expert in range(8 * 5)}) == 40


def test_alignment_names_its_chance_for_each_measure():
    ds = synthetic.alike()
    figure = show(ds, "expert_alignment", layer=3)
    assert "below 0.250, 95 %" in figure.layout.title.text and "shuffled weights: 0.350" in figure.layout.title.text
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(np.array(figure.data[0].z)[off], ds["cka"].values[1][off])
    other = show(ds, "expert_alignment", layer=3, measure="cosine")
    np.testing.assert_allclose(np.array(other.data[0].z)[off], ds["cosine"].values[1][off])
    assert "within 0.0123 of 0" in other.layout.title.text
    with pytest.raises(ViewError, match="use cka or cosine"):
        show(ds, "expert_alignment", measure="sine")


def test_energy_is_drawn_beside_a_normal_matrix():
    figure = show(synthetic.alike(), "expert_energy", layer=1)
    own = [trace for trace in figure.data if trace.name == "L1E2"]
    normal = [trace for trace in figure.data if trace.name == "normal"]
    assert len(own) == len(normal) == 4
    np.testing.assert_allclose(own[0].y, [0.2, 0.6, 1.0])
    np.testing.assert_allclose(normal[0].y, [0.1, 0.3, 0.5])


def test_similar_tasks_stand_beside_shuffled_ones():
    ds = synthetic.routed_tasks()
    cells, _ = show(ds, "task_similarity", layer=3).data
    np.testing.assert_allclose(cells.z, ds["similarity"].sel(layer=3))
    assert cells.text[0][1] == "shuffled 0.69" and "halves" in cells.text[0][0]


@pytest.mark.parametrize("text", ["L2E15", "l2e15", "2.15", "2.e15", " L2E15 ", (2, 15)])
def test_every_usual_name_of_an_expert_is_understood(text):
    assert parse_expert(text) == (2, 15) and expert_name(*parse_expert(text)) == "L2E15"


@pytest.mark.parametrize("text", ["", "2", "L2", "L2H5", "2.5.1", "-1.2"])
def test_what_names_no_expert_is_said(text):
    with pytest.raises(WorkbenchError, match="write it like L2E5"):
        parse_expert(text)
