"""Analyses and fine-tunes as jobs on dask.distributed: followed, stopped, merged."""

import copy
import functools
import itertools
import json
import math
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench.jobs import EngineError, Job, TuneJob
from workbench.models.reference import find
from workbench.progress import reporting
from workbench.results import compute, keep, key_of, specify
from workbench.runs import Run
from workbench.spec import Spec, read_spec
from workbench.tuning import Estimate, estimate, tune

if TYPE_CHECKING:
    from workbench.models.model import Model

KEPT_MODELS = 2  # loaded models a worker keeps
STOP_CHECK = 0.1  # seconds between two looks at the stop event and two progress events
TOLD = 0.2  # seconds between two events with a fine-tune's log
START_TIMEOUT = "60s"
TRACES, TUNES = {"trace": 1}, {"tune": 1}  # what an embedded worker takes: neither kind ever waits for the other
IMPORTED = ("peft", "workbench.training", "workbench.models.load")  # before a worker counts as ready to tune
SPARE_AFTER = 5.0  # seconds after a fine-tune was asked for, so that its first steps have the machine to themselves
IDLE = 60.0  # seconds after the last fine-tune until workers that are not needed any more end
HANDOVER = 15.0  # seconds in which a worker that is given up ends
MOST_TUNES = 8  # at once in the embedded cluster; further ones wait


_starting = threading.Lock()  # so that two sessions at once start one engine


def execute(spec: Mapping[str, Any], job: str) -> xr.Dataset:
    """Run a spec on a Dask worker: report progress under the topic `job`, stop when the event `job` is set."""
    from distributed import Event, get_worker

    worker, stop, last = get_worker(), Event(job), 0.0

    def report(what: str, done: int, total: int) -> bool:
        nonlocal last, going
        if time.monotonic() - last > STOP_CHECK or done == total:
            last = time.monotonic()
            worker.log_event(job, {"what": what, "done": done, "of": total})
            going = going and (done == total or not stop.is_set())  # what is complete is not partial
        return going

    going = True
    with reporting(report):
        report("loading the model", 0, 1)
        model = _worker_model(worker, spec["model"])
        ds = compute(spec, model)
    if not going:
        ds.attrs["partial"] = "stopped early"
    return keep(ds, spec["analysis"], key_of(spec, model.hash))


def _worker_model(worker: Any, options: Mapping[str, Any]) -> Any:
    """A model from the worker's few most recently used ones, or loaded."""
    from workbench.models.load import load

    kept = worker.__dict__.setdefault("workbench_models", OrderedDict())
    name = json.dumps([options, find(options["reference"]).hash], sort_keys=True)
    if name not in kept:
        kept[name] = load(**options)
    kept.move_to_end(name)
    while len(kept) > KEPT_MODELS:
        kept.popitem(last=False)
    return kept[name]


def execute_tune(spec: Mapping[str, Any], job: str, after: Any = None) -> str:
    """Fine-tune on a Dask worker, after the run's former job; a worker that replaces a killed one goes on from its last
    checkpoint. The log travels under the topic `job`; the event `job` pauses the run, `job` and "/end" ends it.
    """
    from distributed import Event, get_worker

    run = Run(read_spec(spec).name)
    told, stop, last = _Told(get_worker(), job, run), Event(job), 0.0

    def go_on(what: str, done: int, of: int) -> bool:
        nonlocal last, going
        if time.monotonic() - last > STOP_CHECK:
            last, going = time.monotonic(), going and not stop.is_set()
        return going

    going = True
    told.tell()
    _wait_for(run)
    with reporting(go_on):
        tune(spec, told.hear)
    told.tell()
    if run.status["state"] == "paused" and Event(f"{job}/end").is_set():
        run.mark("stopped", run.status["done"], run.status["of"])
    return run.name


def _wait_for(run: Run) -> None:
    """Wait a little for a worker that was given up but has not ended yet."""
    end = time.monotonic() + HANDOVER
    while run.held and time.monotonic() < end:
        time.sleep(STOP_CHECK)


class _Told:
    """Sends the lines of a run's log from a worker, several at a time, each time with the memory in use."""

    def __init__(self, worker: Any, topic: str, run: Run) -> None:
        self._worker, self._topic, self._run, self._last = worker, topic, run, 0.0
        self._waiting: list[dict[str, Any]] = []

    def hear(self, record: dict[str, Any]) -> None:
        """Take a line; steps wait until enough time has gone by. A run that goes on sends what it did before too."""
        self._waiting.append(record)
        if record["kind"] == "status" and record["state"] == "running":
            self._waiting += self._run.records
        if record["kind"] != "step" or time.monotonic() - self._last > TOLD:
            self.tell()

    def tell(self) -> None:
        """Send what has come."""
        self._worker.log_event(self._topic, {"records": json.dumps(self._waiting), "memory": _memory()})
        self._waiting, self._last = [], time.monotonic()


def _memory() -> int:
    """Bytes that this process holds: on the GPU once it uses one, else in main memory."""
    import sys

    import psutil

    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.memory_reserved() if torch and torch.cuda.is_initialized() else 0
    return on_gpu or psutil.Process().memory_info().rss


class Engine:
    """Jobs on a Dask cluster: an embedded one on loopback, or the one at `WORKBENCH_CLUSTER`.

    The embedded cluster has one worker for analyses; and, once the first is asked for, a worker for each fine-tune at
    work and one that is ready for the next.
    """

    def __init__(self, address: str | None = None) -> None:
        from distributed import Client

        self._lock, self._jobs, self._count = threading.Lock(), {}, itertools.count()
        self._mark = uuid.uuid4().hex[:8]  # another engine on the same cluster has another
        self.tunes: dict[str, TuneJob] = {}  # the last job of each run
        self._timer = threading.Timer(SPARE_AFTER, self.warm_up)
        self._asked = -math.inf  # when the last fine-tune was
        self._cluster = None if address else _local_cluster()
        by_file = bool(address) and str(address).endswith(".json")
        where: dict[str, Any] = {"scheduler_file" if by_file else "address": address or self._cluster}
        self.client = Client(**where, timeout=START_TIMEOUT)

    def submit(self, analysis: str, model: Any, task: Any, **params: Any) -> Job:
        """A job for a spec; an equal request that is still in flight gives the same job."""
        spec = specify(analysis, model, task, params)
        if not spec["model"].get("reference"):
            raise EngineError("A live model cannot be sent to the engine; save it to a directory and load it by path.")
        key = key_of(spec)
        with self._lock:
            self._jobs = {name: job for name, job in self._jobs.items() if not job.done}  # lets go of their results
            job = self._jobs.get(key)
            if job is None or job.stopping:
                job = self._jobs[key] = Job(
                    self._name(f"{analysis}-{key}"), self.client, execute, spec, **self._where(TRACES)
                )
            return job

    def submit_tune(self, given: "Spec | Mapping[str, Any] | str | Path") -> TuneJob:
        """A job for a fine-tune; one that is under way gives its job, one that was paused or killed goes on.

        Raises:
            SpecError, TaskError: naming the setting or the row that is wrong.
        """
        spec = read_spec(given)
        with self._lock:
            job = self.tunes.get(spec.name)
            if job is not None and not job.done and not job.stopping:
                return job
            former = job if job is not None and not job.done else None
            Run(spec.name).begin(spec)  # so that it is listed while it waits
            self._make_room()
            name = self._name(f"tune-{spec.name}")
            job = self.tunes[spec.name] = TuneJob(name, self.client, execute_tune, spec, former, **self._where(TUNES))
            job.when_done(self._ended)
            self._asked = time.monotonic()
            self._later(SPARE_AFTER, self.warm_up)
            return job

    def estimate(self, given: "Spec | Mapping[str, Any] | str | Path") -> Estimate:
        """What a fine-tune is expected to take where it would run: see `workbench.tuning.estimate`."""
        with self._lock:
            self._make_room()
            where, name = self._where(TUNES), self._name("estimate")
            future = self.client.submit(estimate, read_spec(given).plain, key=name, pure=False, **where)
        return future.result()

    def warm_up(self) -> None:
        """Start a worker for the next fine-tune if none is ready, but not beside the first steps of one."""
        with self._lock:
            if time.monotonic() - self._asked >= SPARE_AFTER:
                self._make_room()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after a while, unless something else is to be done later meanwhile."""
        self._timer.cancel()
        self._timer = threading.Timer(seconds, act)
        self._timer.daemon = True
        self._timer.start()

    def _name(self, start: str) -> str:
        return f"{start}-{self._mark}-{next(self._count)}"

    def _where(self, kind: dict[str, int]) -> dict[str, Any]:
        return {"resources": kind} if self._cluster is not None else {}

    def _make_room(self) -> None:
        """A worker for analyses, one for each fine-tune at work, and one that is ready or becomes so."""
        if self._cluster is not None:
            tunes = sum(not job.done for job in self.tunes.values())
            wanted = 1 + min(tunes + 1, MOST_TUNES)
            self._cluster.scale(max(wanted, len(self._cluster.worker_spec)))

    def _ended(self) -> None:
        with self._lock:
            if all(job.done for job in self.tunes.values()):
                self._later(IDLE, self._let_go)

    def _let_go(self) -> None:
        """End all workers but one for each kind; who asks for something waits until they have ended."""
        with self._lock:
            if self._cluster is not None and all(job.done for job in self.tunes.values()):
                self._cluster.sync(self._cluster.scale_down, list(self._cluster.worker_spec)[2:])

    def close(self) -> None:
        """Stop the embedded cluster, if this engine started one."""
        self._timer.cancel()
        self.client.close()
        if self._cluster is not None:
            self._cluster.close()


def _local_cluster() -> Any:
    """A worker process for analyses, and what further ones will be like, on loopback.

    Dask's own information pages, which ask for no token, are not served.
    """
    import dask.config
    from distributed import LocalCluster

    closed = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(closed):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=1.0,
            silence_logs=50,
            resources=TRACES,
        )
        further: Any = cluster.new_spec
        settings = copy.deepcopy(dask.config.config)  # of now; workers may be started later
        options = {**further["options"], "resources": TUNES, "preload": list(IMPORTED), "config": settings}
        cluster.new_spec = {**further, "options": options}
        return cluster


def engine() -> Engine:
    """The engine of this process, started on first use."""
    with _starting:
        return _engine()


@functools.cache
def _engine() -> Engine:
    return Engine(os.environ.get("WORKBENCH_CLUSTER"))


def tunes() -> Mapping[str, TuneJob]:
    """The last job of each run in the engine of this process; none while it has not started."""
    return _engine().tunes if _engine.cache_info().currsize else {}


def submit(analysis: str, model: "Model | str", task: Any, **params: Any) -> Job:
    """The same request as `run`, as a job in the engine."""
    return engine().submit(analysis, model, task, **params)


def submit_tune(given: "Spec | Mapping[str, Any] | str | Path") -> TuneJob:
    """The same fine-tune as `tune`, as a job in the engine: `progress`, `records`, `pause()`, `result()`."""
    return engine().submit_tune(given)
