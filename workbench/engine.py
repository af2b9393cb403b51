"""Runs analyses: in this process, or as jobs on dask.distributed with progress, cancelling and merged requests."""

import functools
import itertools
import json
import os
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench import store
from workbench.analyses import ANALYSES
from workbench.models.reference import find
from workbench.progress import reporting
from workbench.registry import WorkbenchError
from workbench.tasks import Task, make_task

if TYPE_CHECKING:
    from workbench.models.model import Model

KEPT_MODELS = 2  # loaded models a worker keeps
STOP_CHECK = 0.1  # seconds between two looks at the stop event and two progress events
START_TIMEOUT = "60s"


class EngineError(WorkbenchError):
    """A job that did not end well for a reason outside the analysis."""


def as_task(task: "Task | str | Mapping[str, Any]") -> Task:
    """A task from itself, its name, or its spec."""
    if isinstance(task, Task):
        return task
    return make_task(task) if isinstance(task, str) else Task.from_spec(task)


def specify(analysis: str, model: "Model | str | Mapping[str, Any]", task: Any, params: Mapping[str, Any]) -> dict:
    """The plain JSON a run is asked for with; parameters completed and checked, nothing loaded."""
    options = {"reference": model} if isinstance(model, str) else model if isinstance(model, Mapping) else model.spec
    return {
        "analysis": analysis,
        "model": dict(options),
        "task": as_task(task).spec,
        "params": ANALYSES[analysis].complete(params),
    }


def key_of(spec: Mapping[str, Any], model_hash: str | None = None) -> str:
    """The store's key of a spec; reads the model's files for their fingerprint, but loads nothing."""
    options = {"dtype": "float32", "fold": False, "merge": False, "trust_remote_code": False} | spec["model"]
    model_hash = model_hash or find(options["reference"]).hash
    return store.key(spec["analysis"], spec["params"], model_hash, options, Task.from_spec(spec["task"]).hash)


def stored(spec: Mapping[str, Any]) -> xr.Dataset | None:
    """The result of a spec, if the store has it."""
    return store.find(spec["analysis"], key_of(spec))


def run(
    analysis: str, model: "Model | str | Mapping[str, Any]", task: Any, *, refresh: bool = False, **params: Any
) -> xr.Dataset:
    """The result of an analysis, from the store or computed here and kept.

    Args:
        analysis: a name from `workbench.analyses.ANALYSES`.
        model: a loaded model, the reference of one, or the options `load` takes.
        task: a `Task`, or the name of one.
        refresh: compute again even if the store has it.
        **params: the analysis' own keywords.
    """
    spec = specify(analysis, model, task, params)
    live_hash = getattr(model, "hash", None)
    key = key_of(spec, live_hash)
    kept = None if refresh else store.find(analysis, key)
    if kept is not None:
        return kept
    if live_hash is None:
        from workbench.models.load import load

        model = load(**spec["model"])
    return _keep(_compute(spec, model), analysis, key)


def _compute(spec: Mapping[str, Any], model: Any) -> xr.Dataset:
    return ANALYSES[spec["analysis"]].run(model, Task.from_spec(spec["task"]), **spec["params"])


def _keep(ds: xr.Dataset, analysis: str, key: str) -> xr.Dataset:
    """Store a finished result; when it cannot be written it is still returned, with a warning."""
    if ds.attrs.get("partial"):
        return ds
    try:
        store.save(ds, store.path_of(analysis, key))
    except store.StoreError as error:
        warnings.warn(f"{error} The result itself is returned.", stacklevel=3)
    return ds


def rerun(ds: xr.Dataset) -> tuple[xr.Dataset, float]:
    """A result computed again from its own attributes, and the largest difference of its primary variable.

    Raises:
        EngineError: for a result that was made from other results, such as an overlap.
    """
    if "model_spec" not in ds.attrs:
        raise EngineError(f"This {ds.attrs['analysis']} was made from other results; rerun those, and make it again.")
    names = {"model": "model_spec", "task": "task_spec", "params": "params"}
    spec = {name: json.loads(ds.attrs[attr]) for name, attr in names.items()}
    again = run(ds.attrs["analysis"], spec["model"], spec["task"], refresh=True, **spec["params"])
    primary = ds.attrs["primary"]
    return again, float(abs(again[primary] - ds[primary]).max())


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
        ds = _compute(spec, model)
    if not going:
        ds.attrs["partial"] = "stopped early"
    return _keep(ds, spec["analysis"], key_of(spec, model.hash))


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


class Job:
    """One run in the engine: `progress`, `status`, `cancel()`, `result()`."""

    def __init__(self, name: str, client: Any, spec: Mapping[str, Any]) -> None:
        from distributed import Event

        self.name, self.spec = name, spec
        self.progress = ("waiting", 0, 1)
        self._waiting = 0
        self._client, self._stop = client, Event(name, client=client)
        client.subscribe_topic(name, self._hear)
        self._future = client.submit(execute, spec, name, key=name, pure=False)

    def _hear(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, Mapping) and "done" in message:
            self.progress = (message["what"], message["done"], message["of"])

    @property
    def status(self) -> str:
        """pending, finished, error or cancelled."""
        return self._future.status

    @property
    def done(self) -> bool:
        """True once there is a result or an error."""
        return self._future.done()

    @property
    def stopping(self) -> bool:
        """True once it was asked to stop."""
        return bool(self._stop.is_set())

    def join(self) -> None:
        """Count one more who waits for this job."""
        self._waiting += 1

    def leave(self) -> None:
        """Count one less; a job nobody waits for is cancelled."""
        self._waiting -= 1
        if self._waiting <= 0 and not self.done:
            self.cancel()

    def cancel(self) -> None:
        """Ask the job to stop after its present batch; `result` then gives what it has."""
        self._stop.set()

    def result(self, timeout: float | None = None) -> xr.Dataset:
        """The dataset, once it is there.

        Raises:
            EngineError: when the worker was killed more often than the engine retries.
            WorkbenchError: whatever the analysis itself raised.
        """
        from distributed import KilledWorker

        try:
            return self._future.result(timeout)
        except KilledWorker:
            raise EngineError(
                f"The worker running {self.spec['analysis']} was killed again and again, most often for want of "
                "memory; use fewer prompts, a smaller batch or a smaller model, and run it again."
            ) from None
        finally:
            if self.done:
                self._client.unsubscribe_topic(self.name)


class Engine:
    """Jobs on a Dask cluster: an embedded one on loopback, or the one at `WORKBENCH_CLUSTER`."""

    def __init__(self, address: str | None = None) -> None:
        from distributed import Client

        self._lock, self._jobs, self._count = threading.Lock(), {}, itertools.count()
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
                job = self._jobs[key] = Job(f"{analysis}-{key}-{next(self._count)}", self.client, spec)
            return job

    def close(self) -> None:
        """Stop the embedded cluster, if this engine started one."""
        self.client.close()
        if self._cluster is not None:
            self._cluster.close()


def _local_cluster() -> Any:
    """One worker process on loopback; Dask's own information pages, which ask for no token, are not served."""
    import dask.config
    from distributed import LocalCluster

    closed = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(closed):
        return LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=1.0,
            silence_logs=50,
        )


@functools.cache
def engine() -> Engine:
    """The engine of this process, started on first use."""
    return Engine(os.environ.get("WORKBENCH_CLUSTER"))


def submit(analysis: str, model: "Model | str", task: Any, **params: Any) -> Job:
    """The same request as `run`, as a job in the engine."""
    return engine().submit(analysis, model, task, **params)
