"""Fine-tunes as jobs: killed, paused, resumed and side by side, with the numbers of a run that nothing happened to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from workbench.engine import Engine
from workbench.jobs import TuneJob
from workbench.progress import reporting
from workbench.runs import Run, RunError, run_names
from workbench.spec import Spec, SpecError, read_spec
from workbench.tasks.pools import TaskError
from workbench.tuning import estimate, tune

PATIENCE = 180  # seconds; a wait that succeeds costs nothing
LONG = {"steps": 22, "batch": 160, "checkpoint": 5}  # long enough to be interrupted
SERVER = """
import sys, time
from workbench.engine import submit_tune

if __name__ == "__main__":
    job = submit_tune(sys.argv[1])
    while not any(record["step"] > 6 for record in job.records):
        time.sleep(0.01)
    print(job.run.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the workers, the same for all tests here."""
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
        started.warm_up()
        yield started
        started.close()


@pytest.fixture
def make(saved: Callable[[str], Path]) -> Callable[..., Spec]:
    """`make(seed=...)`: a spec of a small fine-tune."""

    def made(**changes: Any) -> Spec:
        given = {"model": str(saved("llama")), "tasks": ["ioi", "subject_verb"], "steps": 6, "batch": 6}
        given |= {"examples": 32, "held": 8, "checkpoint": 3, "device": "cpu", "learning_rate": 1e-2}
        return read_spec({**given, **changes})

    return made


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Spec], dict[str, Any]]:
    """`undisturbed(spec)`: what the same fine-tune leaves in this process, in a home of its own."""

    def done(spec: Spec) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setenv("WORKBENCH_HOME", str(tmp_path / "apart"))
            return traces(tune(spec))

    return done


def traces(run: Run) -> dict[str, Any]:
    """All that a run leaves but the time it took."""
    assert run.status == {"state": "finished", "done": run.spec.steps, "of": run.spec.steps, "error": ""}
    return {
        "log": untimed(run.records),
        "checkpoints": {
            step: (run.folder / "checkpoints" / f"step_{step:05d}" / "adapter_model.safetensors").read_bytes()
            for step in run.checkpoints
        },
        "state": {k: v.tobytes() for k, v in load_file(run.folder / "resume.safetensors").items() if k != "seconds"},
    }


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
    return sorted(found, key=lambda record: (record["step"], record["kind"]))


def steps_until(last: int, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [record for record in records if record["kind"] == "step" and record["step"] <= last]
    assert len(found) == last
    return found


def same_numbers(run: Run, expected: dict[str, Any]) -> None:
    """The run is bit for bit as expected; a pause adds checkpoints of its own, and evaluations there."""
    found = traces(run)
    assert found["state"] == expected["state"]
    own = found["checkpoints"].keys() - expected["checkpoints"].keys()
    assert [r for r in found["log"] if r["kind"] == "step" or r["step"] not in own] == expected["log"]
    assert {step: found["checkpoints"][step] for step in expected["checkpoints"]} == expected["checkpoints"]


def wait_until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def reached(job: TuneJob, step: int) -> Callable[[], bool]:
    return lambda: any(record["kind"] == "step" and record["step"] >= step for record in job.records)


def worker_of(engine: Engine, job: TuneJob) -> int:
    """The process id of the worker that works on a job."""
    (address,) = [worker for worker, names in engine.client.processing().items() if job.name in map(str, names)]
    return engine.client.run(os.getpid, workers=[address])[address]


def test_two_runs_at_once_give_what_tune_gives_while_an_analysis_is_traced(engine, make, tmp_path, monkeypatch):
    specs = [make(steps=5000, batch=64, checkpoint=5000, seed=seed) for seed in (1, 2)]
    first, second = (engine.submit_tune(spec) for spec in specs)
    assert engine.submit_tune(specs[0].plain) is first
    assert {first.run.name, second.run.name} <= set(run_names())
    wait_until(lambda: reached(first, 4)() and reached(second, 4)())  # so neither waits for the other
    traced = engine.submit("head_patching", specs[0].model, "subject_verb", draws=3)
    assert traced.result(PATIENCE).attrs["analysis"] == "head_patching"
    assert not first.done and not second.done
    for job, spec in zip((first, second), specs, strict=True):
        job.cancel()
        assert job.result(PATIENCE) == spec.name
        monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
        with reporting(lambda what, done, of: done < 4):
            expected = untimed(tune(spec).records)
        assert steps_until(4, untimed(job.records)) == steps_until(4, expected)


def test_the_log_arrives_as_events_with_progress_memory_and_the_time_left(engine, make):
    job, left, seen = engine.submit_tune(make(**LONG, seed=3)), [], []
    while not job.done:
        seen.append(job.progress)
        left.append(job.seconds_left)
        time.sleep(0.01)
    job.result(PATIENCE)
    assert untimed(job.records) == untimed(job.run.records)
    counted = [done for what, done, of in seen if what == f"tuning {job.run.name}" and of == 22]
    assert counted == sorted(counted) and len(set(counted)) > 3
    assert job.memory > 50 * 2**20 and any(left) and min(s for s in left if s is not None) >= 0


def test_a_killed_worker_s_run_goes_on_to_the_same_bits(engine, make, undisturbed):
    spec = make(**LONG, seed=4)
    job = engine.submit_tune(spec)
    wait_until(reached(job, 6))
    os.kill(worker_of(engine, job), signal.SIGKILL)
    assert job.result(PATIENCE) == spec.name
    same_numbers(job.run, undisturbed(spec))
    assert untimed(job.records) == untimed(job.run.records)


def test_a_paused_run_is_resumed_to_the_same_bits(engine, make, undisturbed):
    spec = make(**LONG, seed=5)
    job = engine.submit_tune(spec)
    wait_until(reached(job, 1))
    job.pause()
    resumed = engine.submit_tune(spec)  # at once, while the first still leaves its checkpoint
    assert resumed is not job
    assert job.result(PATIENCE) == resumed.result(PATIENCE) == spec.name
    assert job.run.checkpoints != [0, 5, 10, 15, 20, 22], "it was not paused"
    same_numbers(resumed.run, undisturbed(spec))
    assert untimed(resumed.records) == untimed(resumed.run.records)


def test_processes_of_accelerate_are_followed_paused_and_killed_with_their_worker(engine, make, undisturbed):
    spec = make(**LONG, seed=10, processes=2)
    job = engine.submit_tune(spec)
    wait_until(reached(job, 2))
    job.pause()
    assert job.result(PATIENCE) == spec.name
    done = job.run.status["done"]
    assert job.run.status["state"] == "paused" and 2 <= done < 22 and job.run.checkpoints[-1] == done
    job = engine.submit_tune(spec)
    wait_until(reached(job, done + 2))
    os.kill(worker_of(engine, job), signal.SIGKILL)  # its processes notice, and make room for those of another worker
    assert job.result(PATIENCE) == spec.name
    assert job.run.status["state"] == "finished"
    wait_until(lambda: untimed(job.records) == untimed(job.run.records))  # the last ones may still be on their way
    alone = [record for record in undisturbed(make(**LONG, seed=10))["log"] if record["kind"] == "step"]
    together = steps_until(22, untimed(job.run.records))
    for one, other in zip(together, alone, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3)


def test_processes_that_fail_say_why(engine, make):
    spec = make(seed=11, processes=2, learning_rate=1e9, clip=0)
    job = engine.submit_tune(spec)
    with pytest.raises(RunError, match=r"One of the 2 processes failed: The loss of 'ioi.*lower learning_rate"):
        job.result(PATIENCE)
    assert job.run.status["state"] == "failed"


def test_a_stopped_run_says_so_and_keeps_its_checkpoint(engine, make):
    job = engine.submit_tune(make(**LONG, seed=6))
    wait_until(reached(job, 1))
    job.cancel()
    job.result(PATIENCE)
    status = job.run.status
    assert status["state"] == "stopped" and 0 < status["done"] < 22
    assert job.run.checkpoints[-1] == status["done"]


def test_a_killed_server_s_run_is_found_paused_and_resumed_to_the_same_bits(engine, make, undisturbed, tmp_path):
    spec, script, given = make(**LONG, seed=7), tmp_path / "server.py", tmp_path / "spec.json"
    script.write_text(SERVER)
    given.write_text(json.dumps(spec.plain))
    server = subprocess.Popen([sys.executable, script, given], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline().strip() == spec.name
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    run = Run(spec.name)
    wait_until(lambda: run.status["state"] == "paused")
    assert spec.name in run_names() and run.status["done"] < 22
    assert engine.submit_tune(run.spec).result(PATIENCE) == spec.name
    same_numbers(run, undisturbed(spec))


def test_errors_name_the_setting_or_the_row_before_or_after_the_run_is_sent(engine, make):
    with pytest.raises(SpecError, match="batch is 1, but there are 2 tasks"):
        engine.submit_tune({**make().plain, "batch": 1})
    rows = [{"prompt": "the cat is", "answer": " qq"}] * 12
    job = engine.submit_tune(make(tasks=[{"name": "mine", "rows": rows}]))
    with pytest.raises(TaskError, match="mine, row 1 has a word that this vocabulary lacks"):
        job.result(PATIENCE)
    assert job.status == "error" and job.run.status["state"] == "failed" and "row 1" in job.run.status["error"]


def test_an_estimate_is_made_where_the_run_would_be(engine, make):
    spec = make()
    found, here = engine.estimate(spec), estimate(spec)
    assert (found.memory, found.parameters, found.trained) == (here.memory, here.parameters, here.trained)
    assert found.fits and found.seconds > 0


@pytest.fixture
def cluster(tmp_path: Path, shared_home: Path) -> Iterator[Path]:
    """The scheduler file of a Dask cluster of three processes that this one did not start through `distributed`."""
    where, started = tmp_path / "scheduler.json", []

    def start(kind: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(where), *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        started.append(subprocess.Popen([*command, "--no-dashboard"], cwd=tmp_path, **quiet))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_until(where.is_file)
        for _ in range(2):
            start("worker", "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(tmp_path))
        yield where
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_cluster_given_by_address_does_the_same_jobs(cluster, make, undisturbed):
    engine = Engine(str(cluster))
    try:
        engine.client.wait_for_workers(2, timeout=PATIENCE)
        specs = [make(**LONG, seed=8), make(**LONG, seed=9)]
        jobs = [engine.submit_tune(spec) for spec in specs]
        for job, spec in zip(jobs, specs, strict=True):
            assert job.result(PATIENCE) == spec.name
            assert untimed(job.records) == undisturbed(spec)["log"]
            same_numbers(job.run, undisturbed(spec))
    finally:
        engine.close()
