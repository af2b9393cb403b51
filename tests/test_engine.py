"""The engine: jobs in a worker process, their progress, their end, and what becomes of them when things go wrong."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xarray as xr

from workbench.analyses import AnalysisError
from workbench.engine import Engine, EngineError
from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.parameters import ParameterError
from workbench.progress import Cancelled
from workbench.results import as_task, key_of, rerun, run, specify, stored
from workbench.tasks import Task, TaskError, make_task

PATIENCE = 120  # seconds; a wait that succeeds costs nothing
QUICK = {"draws": 10}
TASK = make_task("subject_verb", n=8)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker's store, the same for all tests here."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(shared_home))
    return shared_home


@pytest.fixture(scope="module")
def engine(shared_home: Path) -> Iterator[Engine]:
    """One embedded cluster for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(shared_home))
        started = Engine()
        yield started
        started.close()


def wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def started(job) -> bool:
    return job.progress[0].startswith("head_patching") and job.progress[1] > 0


def slow(seed: int) -> dict:
    """A request of many small passes; `seed` makes it one that was never asked for before."""
    return {"task": make_task("subject_verb", n=240, seed=seed), "positions": "named", "batch": 1}


def test_a_job_gives_what_a_run_gives(engine, saved, tmp_path, monkeypatch):
    job = engine.submit("head_patching", str(saved("gpt2")), TASK, **QUICK)
    found = job.result(PATIENCE)
    assert job.done and job.status == "finished"
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))  # so that it is not merely read
    expected = run("head_patching", str(saved("gpt2")), TASK, **QUICK)
    xr.testing.assert_equal(found, expected)
    differing = {name for name in expected.attrs if found.attrs[name] != expected.attrs[name]}
    assert differing <= {"created_at", "seconds"}


def test_a_job_s_result_is_kept(engine, saved):
    found = engine.submit("head_patching", str(saved("gpt2")), TASK, **QUICK).result(PATIENCE)
    spec = specify("head_patching", str(saved("gpt2")), TASK, QUICK)
    xr.testing.assert_equal(stored(spec), found)


def test_progress_arrives_up_to_the_end(engine, saved):
    job = engine.submit("head_patching", str(saved("gpt2")), **slow(1))
    seen = set()
    while not job.done:
        seen.add(job.progress)
        time.sleep(0.02)
    job.result(PATIENCE)
    done = sorted(done for what, done, _ in seen if what == "head_patching subject_verb")
    assert len(done) > 2 and {of for what, _, of in seen if what == "head_patching subject_verb"} == {2 * 240 * 3}


def test_a_cancelled_job_gives_what_it_has_and_is_not_kept(engine, saved):
    request = slow(2)
    job = engine.submit("head_patching", str(saved("gpt2")), **request)
    wait_until(lambda: started(job))
    asked = time.monotonic()
    job.cancel()
    try:
        ds = job.result(PATIENCE)
        assert ds.attrs["partial"] and ds.sizes["layer"] < 2
    except Cancelled as error:
        assert "no result to keep" in str(error)
    assert time.monotonic() - asked < 20
    assert stored(specify("head_patching", str(saved("gpt2")), request.pop("task"), request)) is None


def test_a_new_request_after_a_cancel_is_a_new_job(engine, saved):
    first = engine.submit("head_patching", str(saved("gpt2")), **slow(3))
    first.cancel()
    second = engine.submit("head_patching", str(saved("gpt2")), **slow(3))
    assert second is not first
    assert "partial" not in second.result(PATIENCE).attrs


def test_equal_requests_in_flight_are_one_job(engine, saved):
    first = engine.submit("head_patching", str(saved("gpt2")), **slow(4))
    assert engine.submit("head_patching", str(saved("gpt2")), **slow(4)) is first
    other = engine.submit("head_patching", str(saved("gpt2")), TASK, draws=11)
    assert other is not first
    first.cancel()
    other.result(PATIENCE)


def test_a_killed_worker_is_replaced_and_the_job_finishes(engine, saved):
    request = slow(5)
    job = engine.submit("head_patching", str(saved("gpt2")), **request)
    wait_until(lambda: started(job))
    (worker,) = engine.client.run(os.getpid).values()
    os.kill(worker, signal.SIGKILL)
    ds = job.result(PATIENCE)
    assert ds.sizes["layer"] == 2 and "partial" not in ds.attrs
    (replacement,) = engine.client.run(os.getpid).values()
    assert replacement != worker


@pytest.mark.parametrize(
    ("analysis", "task", "params", "error", "message"),
    [
        ("head_patching", make_task("ioi", n=16), {"positions": "each"}, AnalysisError, "use positions='named'"),
        ("sink_scores", TASK, {"length": 999}, AnalysisError, "this model takes 2 to 128 tokens"),
        (
            "head_patching",
            Task.from_records([{"clean": "a", "corrupted": "and", "answer": " qq", "wrong": " is"}] * 8),
            {},
            TaskError,
            r"keeps 0 of the 8 prompts.*' qq'",
        ),
    ],
)
def test_an_error_in_the_worker_arrives_as_itself(analysis, task, params, error, message, engine, saved):
    job = engine.submit(analysis, str(saved("gpt2")), task, **params)
    with pytest.raises(error, match=message):
        job.result(PATIENCE)
    assert job.status == "error"


def test_a_bad_request_is_refused_before_it_is_sent(engine, saved, tmp_path):
    with pytest.raises(ModelError, match="no directory"):
        engine.submit("head_patching", str(tmp_path / "nowhere"), TASK)
    with pytest.raises(ParameterError, match="no parameter 'colour'"):
        engine.submit("head_patching", str(saved("gpt2")), TASK, colour=1)


def test_a_live_model_is_refused_with_the_reason(engine, fresh, words):
    with pytest.raises(EngineError, match=r"live model cannot be sent.*save it to a directory"):
        engine.submit("head_patching", wrap(fresh("gpt2"), words), TASK)


def test_a_loaded_model_is_sent_by_its_reference(engine, saved, traced):
    found = engine.submit("head_patching", traced("gpt2"), TASK, **QUICK).result(PATIENCE)
    xr.testing.assert_equal(found, run("head_patching", str(saved("gpt2")), TASK, **QUICK))


def test_a_result_computed_again_is_the_same(traced):
    ds = run("head_patching", traced("gpt2"), TASK, **QUICK)
    again, difference = rerun(ds)
    assert difference == 0.0
    xr.testing.assert_equal(again, ds)


@pytest.mark.parametrize("name", ["sink_scores", "attention"])
def test_other_results_can_be_computed_again_too(name, traced):
    params = {"length": 12, "sequences": 3} if name == "sink_scores" else {"prompt": 2}
    assert rerun(run(name, traced("llama"), TASK, **params))[1] == 0.0


def test_a_task_is_understood_by_itself_its_name_and_its_spec():
    assert as_task(TASK) is TASK
    assert as_task("ioi") == make_task("ioi")
    assert as_task(TASK.spec) == TASK


def test_a_result_about_two_models_depends_on_the_weights_of_both(saved, tmp_path):
    other = shutil.copytree(saved("llama"), tmp_path / "other")
    spec = specify("flips", str(saved("llama")), make_task("ioi", n=8), {"after": str(other)})
    before = key_of(spec)
    assert before == key_of(spec)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert key_of(spec) != before
    assert key_of(specify("expert_truncation", str(saved("mixtral")), make_task("ioi", n=8), {"base": "mean"}))
