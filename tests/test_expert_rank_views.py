"""What the views of truncated experts and of expert drift draw: the dataset's own numbers, intervals and nulls."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.views import ViewError, show

MEASURES = ["loss", "accuracy", "metric"]
RESULTS = {
    "truncation_curve": [synthetic.truncated, synthetic.truncated_both],
    "expert_drift": [synthetic.drifted],
}
cases = pytest.mark.parametrize(("name", "make"), [(name, make) for name, makes in RESULTS.items() for make in makes])


def named(figure, name):
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


def assert_whiskers(trace, ds, name, **at):
    values, low, high = (ds[f"{name}{end}"].sel(at).values for end in ("", "_low", "_high"))
    np.testing.assert_allclose(trace.y, values)
    np.testing.assert_allclose(np.add(trace.y, trace.error_y.array), high)
    np.testing.assert_allclose(np.subtract(trace.y, trace.error_y.arrayminus), low)


@cases
def test_a_result_with_a_dimension_too_many_is_refused(name, make):
    with pytest.raises(ViewError, match="select"):
        show(make().expand_dims(checkpoint=[0, 1]), name)


@cases
def test_an_unknown_measure_is_refused(name, make):
    with pytest.raises(ViewError, match="no measure 'gain'; use one of: loss, accuracy, metric"):
        show(make(), name, measure="gain")


@cases
def test_names_are_shown_as_they_are_written(name, make):
    figure = show(make().assign_attrs(model="<script>model"), name)
    text = json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    for markup in ("<script>", "<b>task", "<b>down", "<i>base", "<i>later", "<b>both"):
        assert markup not in text
    assert "&lt;script&gt;model" in text and "n = 5" in figure.layout.title.text


@cases
def test_the_order_of_dimensions_does_not_matter(name, make):
    ds = make()
    assert show(ds.transpose(*reversed(list(ds.dims))), name).to_json() == show(ds, name).to_json()


@pytest.mark.parametrize("measure", MEASURES)
def test_a_truncation_curve_has_its_interval_its_null_and_the_energy(measure):
    ds = synthetic.truncated_both()
    figure = show(ds, "truncation_curve", measure=measure)
    for task, name in zip(synthetic.TASKS, ("one &lt;b&gt;task&lt;/b&gt;", "another"), strict=True):
        part, line = ds.sel(task=task), named(figure, name)
        assert list(line.x) == ["0", "1", "2", "4"]
        assert_whiskers(line, part, measure)
        null = named(figure, f"{name}, random subspaces")
        np.testing.assert_allclose(null.y, part[f"{measure}_null"])
        np.testing.assert_allclose(named(figure, f"{name}, random, lowest").y, part[f"{measure}_null_low"])
        highest = named(figure, f"{name}, random, highest")
        np.testing.assert_allclose(highest.y, part[f"{measure}_null_high"])
        assert highest.fill == "tonexty" and line.line.color == null.line.color
    shown = {"energy retained": "retained", "energy expected in random subspaces": "retained_null"}
    for name, variable in (shown | {"numbers in the factors": "parameters"}).items():
        np.testing.assert_allclose(named(figure, name).y, ds[variable].values[0])
    title = figure.layout.title.text
    assert "2 tasks" in title and "gate and up" in title and "(a normal matrix 4)" in title


@pytest.mark.parametrize("measure", MEASURES)
def test_expert_drift_shows_scores_changes_fits_and_entropy(measure):
    ds = synthetic.drifted()
    figure = show(ds, "expert_drift", measure=measure)
    for row, snapshot in enumerate(("earlier", "later")):
        assert_whiskers(named(figure, snapshot), ds, measure, measured=snapshot)
        for router in ("own router", "fitted router"):
            dots = named(figure, f"{snapshot}, {router}")
            assert_whiskers(dots, ds, "entropy", measured=snapshot, method=router)
            assert list(dots.customdata) == [1, 3] and abs(np.array(dots.x) - [1, 3]).max() < 0.2
        widths = []
        for seed, start in enumerate(("its own router", "fresh router 1")):
            line = named(figure, f"{snapshot}, from {start}")
            np.testing.assert_allclose(line.y, ds["loss_start"].sel(measured=snapshot, seed=seed))
            widths.append(line.line.width)
        assert widths.index(max(widths)) == int(ds["chosen"][row])
    assert_whiskers(named(figure, "change"), ds, f"{measure}_change")
    title = figure.layout.title.text
    assert "router 50%, experts 125%, rest 75%" in title and "fitted on 64 other prompts" in title
    assert "what they lost counts as the experts" in title


def test_expert_drift_does_not_speak_of_other_weights_that_stayed():
    figure = show(synthetic.drifted().assign_attrs(changed_rest=0.0), "expert_drift")
    assert "other than experts" not in figure.layout.title.text
