"""The Tune page without a browser: what the form asks for, where runs stand, what is drawn of them, and what is not."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.analyses import ANALYSES
from workbench.app.sidebar import offered_runs
from workbench.app.tune_form import OF_ROUTERS, TELEMETRY, Form, in_words, python
from workbench.app.tune_mixture import Mixture, allowed
from workbench.app.tune_runs import traced
from workbench.app.tune_watch import Log, Telemetry, Watch, duration
from workbench.methods import METHODS
from workbench.models.reference import references
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.session import Session
from workbench.spec import Spec, read_spec
from workbench.tasks import TASKS
from workbench.tuning import Estimate, tune
from workbench.views import training_curves
from workbench.views.training_curves import extremes, smoothed

TASK = ["ioi", "subject_verb"]


@pytest.fixture
def make(saved: Callable[[str], Path]) -> Callable[..., Spec]:
    """`make(seed=...)`: a spec of a small fine-tune."""

    def made(**changes: Any) -> Spec:
        given = {"model": str(saved("llama")), "tasks": TASK, "steps": 4, "batch": 6, "examples": 24, "held": 8}
        return read_spec({**given, "checkpoint": 2, "device": "cpu", **changes})

    return made


@pytest.fixture
def form() -> Form:
    return Form(Session(task_b="subject_verb", corruption_b="number", n=16, seed=3), lambda: None)


def test_the_form_asks_at_first_for_the_session_s_model_tasks_and_seed(form):
    spec = read_spec(form.given)
    assert (spec.model, spec.titles, spec.seed, spec.held) == ("zoo/tasks", ["ioi", "subject_verb"], 3, 16)
    defaults = Spec(spec.model, spec.tasks, options=METHODS["lora"].complete({}), seed=3, held=16)
    assert spec == defaults


@pytest.mark.parametrize("method", METHODS)
def test_a_spec_that_fills_the_form_comes_out_of_it(method, form):
    tasks = [{"name": "ioi", "weight": 2, "target": "wrong", "corruption": "abc"}, "induction"]
    tasks.append({"name": "mine", "rows": [{"prompt": "a b", "answer": " c"}]})
    options = {
        name: p.default * 2 if p.kind in (int, float) else True for name, p in METHODS[method].parameters.items()
    }
    given = {"model": "zoo/tasks@500", "tasks": tasks, "method": method, "options": options, "aggregator": "pcgrad"}
    given |= {"steps": 7, "batch": 9, "learning_rate": 3e-4, "temperature": 2.5, "seed": 5, "precision": "bf16"}
    given |= {"telemetry": {"sink_scores": {}}, "telemetry_budget": 0.25, "held": 33, "logger": "tensorboard"}
    spec = read_spec(given)
    form.fill(spec)
    assert read_spec(form.given) == spec
    assert form._session.reference == "zoo/tasks@500"


def test_the_mixture_follows_the_sidebar_until_it_is_changed():
    session, told = Session(), []
    mixture = Mixture(session, lambda: told.append(1))
    session.task_a = "induction"
    session.corruption_a = TASKS["induction"].corruptions[0]
    assert [entry["name"] for entry in mixture.entries] == ["induction", "colored_objects"]
    mixture._rows[0]._weight.value = "3"
    session.task_b = "ioi"
    weights = {entry["name"]: float(entry["weight"]) for entry in mixture.entries}
    assert weights == {"induction": 3.0, "colored_objects": 1.0}
    mixture._add_task(None)
    assert len({entry["name"] for entry in mixture.entries}) == 3
    mixture._remove(mixture._rows[0])
    assert mixture.entries[0]["name"] == "colored_objects" and told


def test_own_rows_are_read_and_a_bad_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.csv"
    rows = [{"prompt": f"p {number}", "answer": " a"} for number in range(3)]
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad.write_text("prompt,answer\np, a\nq,\n")
    mixture = Mixture(Session(), lambda: None)
    mixture._path.value = "good.jsonl"
    assert mixture.entries[-1] == {"name": "good", "weight": "1", "rows": rows} and mixture._path.value == ""
    mixture._path.value = str(bad)
    assert "line 3 needs 'prompt' and 'answer'" in mixture._problem._alert.object.replace("\\", "")
    assert len(mixture.entries) == 3
    mixture._file.filename = "up.CSV"
    mixture._file.value = b"prompt,answer\np, a\n"
    assert mixture.entries[-1] == {"name": "up", "weight": "1", "rows": [{"prompt": "p", "answer": " a"}]}


@pytest.mark.parametrize("text", ["../out.csv", "/etc/passwd", "link.csv", "~/x.csv", "nothing.csv", "."])
def test_a_path_that_leads_out_of_the_root_or_to_nothing_is_refused(text, tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "out.csv").write_text("prompt,answer\n")
    (root / "link.csv").symlink_to(tmp_path / "out.csv")
    monkeypatch.setenv("WORKBENCH_DATA", str(root))
    with pytest.raises(WorkbenchError, match=r"is not under|There is no file"):
        allowed(text)


def test_what_can_be_measured_needs_nothing_else_to_be_named(form):
    assert set(TELEMETRY + OF_ROUTERS) <= set(ANALYSES)
    assert form._telemetry.options == list(TELEMETRY)
    form._session.model = "zoo/tasks-moe"
    assert form._telemetry.options == [*TELEMETRY, *OF_ROUTERS]


def test_a_run_stands_where_disk_and_job_say(make):
    watch, spec = Watch(), make()
    run = Run(spec.name)
    run.begin(spec)
    (new,) = watch.standings({})
    assert (new.state, new.done, new.of) == ("not started", 0, 4)
    tune(spec)
    (done,) = watch.standings({})
    assert (done.state, done.done, done.of, done.memory) == ("finished", 4, 4, "")
    right = [task["right"] / task["n"] for task in run.records[-1]["tasks"]]
    assert done.right == f"{sum(right) / 2:.0%}" and done.time.startswith("took 0:0")
    run.mark("running", 0, 4)
    assert watch.standings({})[0].state == "paused" and watch.standings({})[0].done == 4
    with run.hold():
        assert watch.standings({})[0].state == "running elsewhere"
    (run.folder / "status.json").write_text("{")
    assert watch.standings({})[0].state == "damaged"


def test_the_log_is_read_on_and_again_after_it_was_cut(tmp_path, monkeypatch):
    run = Run("x")
    log = Log(run)
    assert log.read() == []
    run.folder.mkdir(parents=True)
    for step in (1, 2, 3):
        run.log("step", step=step)
    before = log.read()
    assert [record["step"] for record in before] == [1, 2, 3]
    with open(run.folder / "log.jsonl", "a") as file:
        file.write('{"kind": "st')  # half a line
    assert log.read() == before
    run.forget_after(1)
    assert [record["step"] for record in log.read()] == [1]
    run.log("step", step=2)
    assert [record["step"] for record in log.read()] == [1, 2] and len(before) == 3


def test_a_run_is_traced_on_the_prompts_that_were_held_out(make):
    spec = make(seed=4)
    run = tune(spec)
    found = traced(spec, run)
    assert found == {
        **{"model": run.reference, "checkpoint": "final", "seed": 4, "n": 8, "page": 0, "part": 0},
        **{"task_a": "ioi", "corruption_a": "s2_to_io", "task_b": "subject_verb", "corruption_b": "number"},
    }
    Session().param.update(**found)
    parts = tune(make(method="separate_lora"))
    assert references(parts.reference) == [f"{parts.reference}:ioi", f"{parts.reference}:subject_verb"]
    assert set(offered_runs()) == {run.reference, *references(parts.reference)}


def test_the_estimate_is_said_with_what_is_known_of_the_same_run(make):
    spec = make()
    found = Estimate(memory=3 * 2**30, free=8 * 2**30, seconds=3725, parameters=1000, trained=50)
    said = (
        "About 1:02:05 for 4 steps and 3.0 GiB of the 8.0 GiB that are free; 50 of 1,000 parameters are trained (5.0%)."
    )
    assert in_words(spec, found) == said
    tune(spec)
    assert in_words(spec, found) == f"{said} This very run is finished: Start opens it."


def test_the_code_shown_asks_for_the_same_run(make):
    spec = make(seed=9, aggregator="upgrad")
    text = python(spec).removeprefix("```python\n").removesuffix("\n```").replace("wb.show(run.curves())", "")
    asked: dict[str, Any] = {}
    fake = type("wb", (), {"tune": asked.update})
    exec(text.replace("import workbench as wb", ""), {"wb": fake})
    assert read_spec(asked) == spec


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (65, "1:05"), (754, "12:34"), (3600, "1:00:00")]
)
def test_a_duration_reads_as_a_person_says_it(seconds, text):
    assert duration(seconds) == text


def trace(figure: go.Figure, name: str, row: int, *, strong: bool = True) -> Any:
    axis = "y" if row == 1 else f"y{row}"
    found = [t for t in figure.data if t.name == name and (t.yaxis or "y") == axis and (t.opacity is None) == strong]
    return found[0]


def test_the_curves_are_those_of_the_run(make):
    ds = tune(make(telemetry={})).curves()
    figure = training_curves(ds, span=0.5)
    for number, task in enumerate(TASK):
        raw = trace(figure, task, 1, strong=False)
        np.testing.assert_array_equal(raw.y, ds["loss"].values[:, number])
        np.testing.assert_allclose(trace(figure, task, 1).y, smoothed(ds["loss"].values[:, number], 2.0))
        right = trace(figure, task, 2)
        np.testing.assert_array_equal(right.x, [0, 2, 4])
        np.testing.assert_array_equal(right.y, ds["accuracy"].values[:, number])
        np.testing.assert_allclose(right.y + right.error_y.array, ds["accuracy_high"].values[:, number])
        np.testing.assert_allclose(right.y - right.error_y.arrayminus, ds["accuracy_low"].values[:, number])
        assert raw.line.color == right.line.color
    assert training_curves(ds, log=True).layout.yaxis.type == "log"


def test_telemetry_is_drawn_on_the_same_steps_by_what_moved_most(make):
    run = tune(make(telemetry={"head_patching": {"draws": 3}}, telemetry_every=2, telemetry_budget=1e9))
    reader = Telemetry(run)
    assert reader.read(run.records, -1.0) == {} and not reader.whole
    measured = reader.read(run.records, 60.0)
    assert reader.whole and set(measured) == {"head_patching"}
    for task in TASK:
        effect = run.telemetry("head_patching", task)["effect"]
        xr.testing.assert_equal(measured["head_patching"][task]["effect"], effect)
    figure = training_curves(run.curves(), telemetry=measured)
    effect = run.telemetry("head_patching", "ioi")["effect"].transpose("step", "layer", "head")
    layer, head = np.unravel_index(np.ptp(effect.values, axis=0).argmax(), effect.shape[1:])
    drawn = trace(figure, f"ioi L{layer}H{head}", 3)
    np.testing.assert_array_equal(drawn.x, [2, 4])
    np.testing.assert_array_equal(drawn.y, effect.values[:, layer, head])
    assert len([t for t in figure.data if t.yaxis == "y3"]) == 2 * 3


def test_smoothing_is_the_weighed_mean_of_what_came_before():
    values = np.random.default_rng(0).normal(size=12)
    keep = 1 - 1 / 4
    for last in range(len(values)):
        weights = keep ** np.arange(last, -1, -1.0)
        assert smoothed(values, 4.0)[last] == pytest.approx(weights @ values[: last + 1] / weights.sum())
    np.testing.assert_array_equal(smoothed(values, 1.0), values)


def test_of_many_steps_the_extremes_remain():
    values = np.random.default_rng(0).normal(size=10_000)
    kept = extremes(values)
    assert len(kept) < 500 and kept[0] == 0 and kept[-1] == 9_999 and (np.diff(kept) > 0).all()
    assert {int(values.argmin()), int(values.argmax())} <= set(kept.tolist())
    np.testing.assert_array_equal(extremes(values[:100]), np.arange(100))


def test_looking_at_the_page_shows_the_latest_run_with_its_curves(make):
    from workbench.app.parts import Theme
    from workbench.app.tune_runs import RunsPart

    session = Session(page=4, tune=1, run="gone")
    part = RunsPart(session, Theme(), lambda spec: None)
    asyncio.run(part.look())
    assert part._list.rows == [] and not part._detail.visible and part._empty._alert.visible
    run = tune(make())
    asyncio.run(part.look())
    assert session.run == run.name and part._detail.visible and not part._empty._alert.visible
    assert part._curves._figure is not None
    np.testing.assert_array_equal(part._curves._figure.data[0].y, run.curves()["loss"].values[:, 0])
    shown = {label for label, button in part._buttons.items() if button.visible}
    assert shown == {"Duplicate with changes", "Trace again"}
