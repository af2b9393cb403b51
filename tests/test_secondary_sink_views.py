"""What the views of secondary sinks and of their ablation draw: the dataset's own numbers, and nulls beside them."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.views import ViewError, compatible, show

MINE = ["sink_levels", "norm_lifetime", "stage_alignment"]


def named(figure, name):
    return next(trace for trace in figure.data if trace.name.startswith(name))


def title(figure):
    return figure.layout.title.text


def empty():
    """As secondary_sinks gives it for a model whose only sinks are the primary ones."""
    ds = synthetic.leveled()
    changed = {name: ds[name] * 0 for name in ("level_null", "count", "count_null", "alignment", "alignment_n")}
    changed |= {f"{name}_low": ds[f"{name}_low"] * 0 - 1 for name in ("spearman_lifetime", "alignment")}
    changed |= {f"{name}_high": ds[f"{name}_high"] * 0 + 1 for name in ("spearman_lifetime", "alignment")}
    levels, first = ds["level_count"].copy(), ds["key_pos"] == 0
    levels.loc[{"component": "secondary"}] = 0
    tokens = {name: ds[name].where(first, 0) for name in ("label", "lifetime", "mlp_norm", "score")}
    return ds.assign(**changed, **tokens, level_count=levels).assign_attrs(sinks=0, controls="none: no secondary sink")


def test_the_views_are_offered_in_order():
    assert compatible(synthetic.leveled()) == MINE
    assert compatible(synthetic.unsunk()) == ["sink_effects", "sink_before_after"]


def test_sink_levels_are_the_counts_beside_those_of_the_null():
    ds = synthetic.leveled()
    figure = show(ds)
    found, null = figure.data
    np.testing.assert_array_equal(found.customdata, ds["level_count"].sum("component").transpose("size", "layer"))
    np.testing.assert_allclose(found.z, np.log1p(found.customdata))
    np.testing.assert_allclose(null.customdata, ds["level_null"].sum("component").transpose("size", "layer"))
    assert found.coloraxis == null.coloraxis == "coloraxis" and figure.layout.coloraxis.cmax == np.log1p(2)
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["0", "1"]
    assert "secondary 2 (null 0.5, at most 1)" in title(figure) and "noise 0 (null 1.0, at most 2)" in title(figure)
    assert "a random token" in figure.layout.annotations[1].text and "&lt;i&gt;near" in title(figure)
    one = show(ds, "sink_levels", kind="secondary")
    np.testing.assert_array_equal(one.data[0].customdata, ds["level_count"].sel(component="secondary").T)
    assert "secondary sinks" in title(one)
    with pytest.raises(ViewError, match=r"no kind of sink 'big'; use one of all, primary, secondary, noise"):
        show(ds, "sink_levels", kind="big")


def test_a_scatter_has_a_point_a_sink_and_says_the_correlation():
    ds = synthetic.leveled()
    figure = show(ds, "norm_lifetime")
    assert [trace.name for trace in figure.data] == ["primary (2)", "secondary (2)"]
    points = named(figure, "secondary")
    assert (list(points.x), list(points.y)) == ([4.0, 5.0], [2, 2])
    assert points.text[1] == "a · sequence 0, position 2, made in layer 1"
    assert "Spearman 0.50 (95 % 0.10 to 0.80), p = 0.03, over 2 sinks" in title(figure)
    score = show(ds, "norm_lifetime", against="score")
    assert list(named(score, "secondary").y) == [0.3, 0.4] and "sink score" in score.layout.yaxis.title.text
    with pytest.raises(ViewError, match="against 'length'; use one of lifetime, score"):
        show(ds, "norm_lifetime", against="length")


def test_stages_have_sinks_and_controls_with_their_intervals():
    ds = synthetic.leveled()
    figure = show(ds, "stage_alignment")
    assert [trace.name for trace in figure.data] == ["secondary sinks (2)", "controls (7)"]
    for trace, group in zip(figure.data, ("sink", "control"), strict=True):
        here = ds.sel(measured=group)
        np.testing.assert_allclose(trace.y, here["alignment"])
        np.testing.assert_allclose(np.array(trace.y) + trace.error_y.array, here["alignment_high"])
        np.testing.assert_allclose(np.array(trace.y) - trace.error_y.arrayminus, here["alignment_low"])
    assert list(figure.layout.xaxis.ticktext) == ["input", "&lt;b&gt;output"]
    assert "controls: same &lt;b&gt;ids" in title(figure)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sink_levels", "no secondary sink · beside the primary sinks: primary 0 (null 0.0, at most 0)"),
        ("norm_lifetime", "too few sinks beside the primary (0) for a rank correlation"),
        ("stage_alignment", "no secondary sink, so there is nothing to align"),
    ],
)
def test_a_result_without_secondary_sinks_is_drawn_and_says_so(name, said):
    figure = show(empty(), name)
    assert said in title(figure)
    assert len(figure.data) == {"sink_levels": 2, "norm_lifetime": 1, "stage_alignment": 0}[name]


def test_effects_stand_on_the_band_of_their_controls():
    ds = synthetic.unsunk()
    figure = show(ds)
    dots = named(figure, "random ordinary tokens (3 draws")
    np.testing.assert_allclose(dots.x, ds["loss_change_random"].values.ravel())
    assert np.all(np.abs(np.array(dots.y) - np.repeat([0, 1], 3)) < 0.28)
    boxes = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    np.testing.assert_allclose([box.x0 for box in boxes], ds["loss_change_null_low"])
    np.testing.assert_allclose([box.x1 for box in boxes], ds["loss_change_null_high"])
    for name, row in (("idle", 0), ("load-bearing", 1)):
        trace = named(figure, name)
        assert (list(trace.x), list(trace.y)) == ([ds["loss_change"].values[row]], [row])
        np.testing.assert_allclose(trace.x[0] + trace.error_x.array[0], ds["loss_change_high"].values[row])
    assert named(figure, "load-bearing").text[0] == "&lt;i&gt;secondary: 2.500, then 3.400 nats, p = 0.25"
    assert list(figure.layout.yaxis.ticktext) == ["primary", "&lt;i&gt;secondary"]
    assert "sinks masked" in title(figure) and "no &lt;b&gt;other" in title(figure)
    assert "primary +0.100 (p = 0.5)" in title(figure) and "<i>" not in title(figure)


def test_effects_joined_over_tasks_ask_for_one():
    ds = synthetic.unsunk()
    with pytest.raises(ViewError, match="select it first"):
        show(ds.expand_dims(task=["a", "b"]), "sink_effects")
