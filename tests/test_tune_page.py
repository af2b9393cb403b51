"""The Tune page without a browser: what the form asks for, where runs stand, what is drawn of them, and what is not."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.analyses import ANALYSES
from workbench.app.sidebar import offered_runs
from workbench.app.tune_form import OF_ROUTERS, TELEMETRY, Form, in_words, python
from workbench.app.tune_mixture import Mixture, allowed
from workbench.app.tune_runs import traced
from workbench.app.tune_watch import Log, Watch
from workbench.methods import METHODS
from workbench.models.reference import references
from workbench.registry import WorkbenchError
from workbench.runs import Run, run_names
from workbench.session import Session
from workbench.spec import Spec, read_spec
from workbench.tasks import TASKS
from workbench.tuning import Estimate, tune

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


def test_runs_stay_in_the_order_in_which_they_were_asked_for(make):
    specs = make(), make(seed=1)
    for spec in specs:
        Run(spec.name).begin(spec)
    first, second = (Run(spec.name) for spec in specs)
    assert run_names() == [second.name, first.name]
    first.mark("running", 1, 2)
    first.log("step", step=1)
    assert run_names() == [second.name, first.name]
    first.begin(specs[0])  # asked for again
    assert run_names() == [first.name, second.name]


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


def test_looking_at_the_page_shows_the_latest_run_with_its_curves(make):
    from workbench.app.tune_runs import RunsPart

    session = Session(page=4, tune=1, run="gone")
    part = RunsPart(session, lambda spec: None)
    asyncio.run(part.look())
    assert part._list.rows == [] and not part._detail.visible and part._empty._alert.visible
    run = tune(make())
    asyncio.run(part.look())
    assert session.run == run.name and part._detail.visible and not part._empty._alert.visible
    curves = part._curves.component
    assert curves is not None and curves.tasks == TASK
    curves.param.update(logarithmic=True, span=0.2, hidden=["ioi"])
    other = tune(make(seed=1, steps=2))
    session.run = other.name
    asyncio.run(part.look())
    assert part._curves.component is curves and max(np.frombuffer(curves.x)) == 2
    assert (curves.logarithmic, curves.span, curves.hidden) == (True, 0.2, ["ioi"])
    session.run = run.name
    asyncio.run(part.look())
    assert max(np.frombuffer(curves.x)) == 4
    shown = {label for label, button in part._buttons.items() if button.visible}
    assert shown == {"Duplicate with changes", "Trace again"}
