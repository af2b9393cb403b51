"""What every registered view promises, on results built by hand."""

import subprocess
import sys
from pathlib import Path

import anywidget
import numpy as np
import plotly.graph_objects as go
import pytest
import synthetic

from workbench.views import VIEWS, Drawing, ViewError, compatible, show

every_view = pytest.mark.parametrize("name", VIEWS)


def fitting(name: str):
    """The first result built by hand that the view can draw."""
    return next(ds for ds in synthetic.all_of_them() if not VIEWS[name].missing(ds))


@every_view
def test_it_draws_a_result_and_leaves_it_alone(name):
    ds = fitting(name)
    before = ds.copy(deep=True)
    drawn = VIEWS[name].draw(ds)
    assert isinstance(drawn, (go.Figure, Drawing))
    assert ds.identical(before)
    assert isinstance(show(ds, name), (go.Figure, anywidget.AnyWidget))


@every_view
def test_it_says_which_dimension_or_variable_is_missing(name):
    view, ds = VIEWS[name], fitting(name)
    for dim in view.requires:
        with pytest.raises(ViewError, match=rf"'{name}' needs .*{dim}"):
            view.draw(ds.drop_dims(dim))
    for variable in view.variables:
        with pytest.raises(ViewError, match=rf"'{name}' needs .*{variable}"):
            view.draw(ds.drop_vars(variable))


@every_view
def test_it_is_offered_for_what_it_can_draw(name):
    offered = [name in compatible(ds) for ds in synthetic.all_of_them()]
    assert offered == [not VIEWS[name].missing(ds) for ds in synthetic.all_of_them()] and any(offered)
    assert VIEWS[name].about.endswith(".")


def test_the_first_offer_is_about_the_primary_variable():
    first = [compatible(ds)[0] for ds in synthetic.all_of_them()]
    early = ["head_map", "head_map", "sink_heads", "attention_pattern", "head_map", "circuit_graph", "circuit_graph"]
    later = ["faithfulness_curve", "ablation_matrix", "ablation_matrix", "role_table", "repair_plot", "emergence"]
    sinks = ["massive_map", "dormancy", "dormancy", "parked_heads", "sink_levels", "sink_effects"]
    causal = ["expert_effects", "surgery_effects", "route_changes"]
    routes = ["expert_load", "specialisation", "routing_drift", "expert_alignment"]
    routes += ["before_after", "circuit_changes", "flip_table", "mixture_map", "paired_differences"]
    routes += ["truncation_curve", "truncation_curve", "expert_drift"]
    sinks += ["sink_directions_plot", "sink_emergence", "first_tokens"]
    gradients = ["gradient_matrix", "gradient_training", "saliency_shares"]
    assert first == [*early, *later, *sinks, *causal, *routes, "token_map", *gradients, "training_curves"]


def test_no_view_for_a_strange_dataset_is_said():
    with pytest.raises(ViewError, match="No view draws a dataset with the dimensions layer"):
        show(synthetic.effects().max("head"))


def test_all_views_draw_without_a_model_library():
    code = (
        "import sys, synthetic\n"
        "from workbench.views import VIEWS\n"
        "fit = lambda v: next(ds for ds in synthetic.all_of_them() if not v.missing(ds))\n"
        "drawn = [v.draw(fit(v)) for _, v in VIEWS.items()]\n"
        "print(len(drawn), *[n for n in ('torch', 'transformers', 'transformer_lens', 'panel') if n in sys.modules])"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    count, *loaded = done.stdout.split()
    assert int(count) >= len(VIEWS) and not loaded


def test_a_head_map_holds_the_effects_their_ends_and_the_marks():
    ds = synthetic.overlaps()
    grid = show(ds, "head_map")
    assert grid.shape == [2, synthetic.LAYERS, synthetic.HEADS] and grid.titles == synthetic.TASKS
    for trait, variable in (("values", "effect"), ("low", "effect_low"), ("high", "effect_high")):
        found = np.frombuffer(getattr(grid, trait), "<f4")
        np.testing.assert_allclose(found, ds[variable].values.ravel(), rtol=1e-6)
    expected = ds["member"].values * (1 + ds["shared"].values)
    assert list(grid.marks) == expected.ravel().tolist()


def test_a_head_map_does_not_mind_the_order_of_dimensions():
    ds = synthetic.effects(task=True)
    assert show(ds.transpose("head", "task", "layer"), "head_map").values == show(ds, "head_map").values


def test_a_head_map_of_two_more_dimensions_is_refused():
    ds = synthetic.effects(task=True).expand_dims(checkpoint=[0, 1])
    with pytest.raises(ViewError, match="select among"):
        show(ds, "head_map")


def test_sink_heads_show_one_key_and_mark_the_heads_over_epsilon():
    ds = synthetic.sinks()
    grid = show(ds, "sink_heads", key=2)
    expected = ds["alpha"].values[:, :, 2]
    np.testing.assert_allclose(np.frombuffer(grid.values, "<f4"), expected.ravel(), rtol=1e-6)
    assert list(grid.marks) == (expected > 0.3).ravel().astype(int).tolist()
    with pytest.raises(ViewError, match="key_pos 9"):
        show(ds, "sink_heads", key=9)


@pytest.mark.parametrize("measure", ["iou", "weighted"])
def test_an_overlap_curve_shows_what_was_seen_and_both_nulls(measure):
    ds = synthetic.overlaps()
    figure = show(ds, "overlap_curve", measure=measure)
    drawn = [list(trace.y) for trace in figure.data]
    for variable in (measure, f"{measure}_null_high", f"{measure}_within_high", f"{measure}_null", f"{measure}_within"):
        assert ds[variable].values.tolist() in drawn
    np.testing.assert_allclose(figure.data[-1].x, 100 * ds["fraction"].values)
    assert [shape.x0 for shape in figure.layout.shapes] == [50.0]  # 3 of 6 heads were chosen


def test_a_sink_rate_has_its_interval():
    ds = synthetic.sinks()
    (line,) = show(ds, "sink_rate").data
    np.testing.assert_allclose(line.y, ds["sink_rate_mean"])
    np.testing.assert_allclose(line.y + line.error_y.array, ds["sink_rate_mean_high"])
    np.testing.assert_allclose(line.y - line.error_y.arrayminus, ds["sink_rate_mean_low"])


def test_a_sink_map_shows_the_strongest_head_or_the_one_chosen():
    ds = synthetic.sinks()
    (strongest,) = show(ds, "sink_map", prompt=1).data
    np.testing.assert_allclose(strongest.z, ds["alpha_prompt"].values[1].max(1))
    (chosen,) = show(ds, "sink_map", prompt=1, head=2).data
    np.testing.assert_allclose(chosen.z, ds["alpha_prompt"].values[1, :, 2])
    best = ds["alpha_prompt"].values[1, 0, :, 0].argmax()
    assert strongest.customdata[0][0] == f"0 &lt;bos&gt;<br>L0H{best}" and "H2" in chosen.customdata[1][3]


def test_an_attention_view_holds_the_head_asked_for():
    widget = show(synthetic.patterns(), "attention_pattern", layer=1, head=2)
    np.testing.assert_allclose(widget.source(0, 1, 2, "pattern"), np.eye(synthetic.KEYS))
    assert widget.selected == [1, 2] and widget.token == synthetic.KEYS - 1


def test_markup_in_names_and_tokens_is_shown_as_text():
    ds = synthetic.sinks()
    for name in ("sink_map", "sink_rate"):
        text = str(show(ds, name).to_dict())
        assert "&lt;b&gt;" in text or "&lt;i&gt;" in text
        assert "<b>" not in text and "<i>" not in text
    assert synthetic.TASKS[0] in show(synthetic.effects(), "head_map").titles  # the widget escapes by itself
