"""What a person holds of work in the engine: how far it is, and how to stop it."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, final

import xarray as xr

from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.spec import Spec

PACE = 30.0  # seconds of progress from which the time left is told
Result = TypeVar("Result")
Work = Callable[..., Any]  # what a worker runs


class EngineError(WorkbenchError):
    """A job that did not end well for a reason outside the work itself."""


class _Job(Generic[Result]):
    """Work in the engine."""

    def __init__(self, name: str, client: Any, function: Work, *given: Any, **options: Any) -> None:
        from distributed import Event

        self.name = name
        self.progress = ("waiting", 0, 1)
        self._waiting = 0
        self._client, self._stop = client, Event(name, client=client)
        client.subscribe_topic(name, self._hear)
        self._future = client.submit(function, *given, key=name, pure=False, **options)

    def _hear(self, event: tuple[float, Any]) -> None:
        """Take what the worker tells: when, and what."""
        raise NotImplementedError

    def _killed(self) -> str:
        """What to do when the worker was killed more often than the engine retries."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """pending, finished, error or cancelled."""
        return self._future.status

    @property
    def done(self) -> bool:
        """True once there is a result or an error."""
        return self._future.done()

    def when_done(self, told: Callable[[], None]) -> None:
        """Call `told`, in a thread of its own, once there is a result or an error."""
        self._future.add_done_callback(lambda _: told())

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

    def result(self, timeout: float | None = None) -> Result:
        """What the job gives, once it is there.

        Raises:
            EngineError: when the worker was killed more often than the engine retries.
            WorkbenchError: whatever the work itself raised.
        """
        from distributed import KilledWorker

        try:
            return self._future.result(timeout)
        except KilledWorker:
            raise EngineError(self._killed()) from None
        finally:
            if self.done:
                self._client.unsubscribe_topic(self.name)


@final
class Job(_Job[xr.Dataset]):
    """One analysis in the engine: `progress`, `status`, `cancel()`, `result()`."""

    def __init__(self, name: str, client: Any, function: Work, spec: Mapping[str, Any], **options: Any) -> None:
        self.spec = spec
        super().__init__(name, client, function, spec, name, **options)

    def _hear(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, Mapping) and "done" in message:
            self.progress = (message["what"], message["done"], message["of"])

    def _killed(self) -> str:
        return (
            f"The worker running {self.spec['analysis']} was killed again and again, most often for want of "
            "memory; use fewer prompts, a smaller batch or a smaller model, and run it again."
        )


@final
class TuneJob(_Job[str]):
    """One fine-tune in the engine: `progress`, `records`, `pause()`, `cancel()`; `result()` is the run's name."""

    def __init__(
        self, name: str, client: Any, function: Work, spec: Spec, after: "TuneJob | None", **options: Any
    ) -> None:
        from distributed import Event

        self.spec, self.run = spec, Run(spec.name)
        self.memory = 0  # bytes on the worker; 0 before it starts
        self._records = {_key(record): record for record in self.run.records}
        self._pace: deque[tuple[float, int]] = deque()
        self._end = Event(f"{name}/end", client=client)
        former = after._future if after else None
        super().__init__(name, client, function, spec.plain, name, former, **options)

    def _hear(self, event: tuple[float, Any]) -> None:
        at, message = event
        if not isinstance(message, Mapping) or "records" not in message:
            return
        self.memory, records = message["memory"], json.loads(message["records"])
        if self.progress[0] == "waiting":
            self.progress = ("loading the model", 0, 1)
        found = self._records
        for record in records:
            if record["kind"] != "status":
                found[_key(record)] = record
            elif record["state"] == "running":  # after it the worker tells all up to the step it goes on from
                found, self._pace = {}, deque()
        self._records = found
        if records:
            self._now_at(at, max(record["done" if record["kind"] == "status" else "step"] for record in records))

    def _now_at(self, at: float, done: int) -> None:
        self.progress = (f"tuning {self.run.name}", done, self.spec.steps)
        self._pace.append((at, done))
        while at - self._pace[0][0] > PACE and len(self._pace) > 2:
            self._pace.popleft()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The run's log so far, from before it was resumed too."""
        return list(self._records.values())

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last half minute; None before there is one."""
        (first, before), (last, done) = (self._pace[0], self._pace[-1]) if self._pace else ((0.0, 0), (0.0, 0))
        return (self.spec.steps - done) * (last - first) / (done - before) if done > before else None

    def pause(self) -> None:
        """Ask the run to stop after its present step and leave a checkpoint, from which it goes on when resumed."""
        self._stop.set()

    def cancel(self) -> None:
        """Pause the run for good: it counts as stopped. Its checkpoints remain, and tuning it again goes on."""
        self._end.set()
        self._stop.set()

    def _killed(self) -> str:
        return (
            f"The worker tuning {self.run.name} was killed again and again, most often for want of memory; lower "
            "batch, or use lora or a smaller model. As it is, it goes on from its last checkpoint when tuned again."
        )


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a line of a log the same line when it comes again."""
    return record["kind"], record["step"], record.get("analysis")
