"""Where the fine-tunes stand: from their jobs in the engine, and from disk for those of another process or time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.jobs import TuneJob
from workbench.live import duration, failure, size
from workbench.registry import WorkbenchError
from workbench.runs import Run, accuracy, run_names

GOING = ("waiting", "starting", "running", "pausing")  # states of a job that is not done


@dataclass(frozen=True)
class Standing:
    """One run in the list; texts as they are shown."""

    name: str
    state: str
    done: int = 0
    of: int = 0
    time: str = ""
    memory: str = ""
    right: str = ""
    about: str = ""
    error: str = ""

    @property
    def going(self) -> bool:
        """Whether a job of this server works on it or will."""
        return self.state in GOING


class Log:
    """The lines of a run's log, each read once; all of them again after the run went back to a checkpoint."""

    def __init__(self, run: Run) -> None:
        self._path, self._file, self._offset = run.folder / "log.jsonl", 0, 0
        self._records: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All lines so far; a list that does not change afterwards."""
        try:
            stat = self._path.stat()
            if stat.st_ino != self._file or stat.st_size < self._offset:
                self._file, self._offset, self._records = stat.st_ino, 0, []
            if stat.st_size == self._offset:
                return self._records
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]  # a line that is being written is read next time
        self._offset += len(whole)
        self._records = [*self._records, *(json.loads(line) for line in whole.splitlines())]
        return self._records


class Watch:
    """All runs that this server can see."""

    def __init__(self) -> None:
        self._logs: dict[str, Log] = {}
        self._about: dict[str, tuple[Run, str]] = {}

    def records(self, name: str, jobs: Mapping[str, TuneJob]) -> list[dict[str, Any]]:
        """A run's log: from its job while that works, else from disk."""
        job = jobs.get(name)
        if job is not None and not job.done:
            return job.records
        return self._logs.setdefault(name, Log(Run(name))).read()

    def standings(self, jobs: Mapping[str, TuneJob]) -> list[Standing]:
        """Every run, the latest first."""
        return [self._standing(name, jobs) for name in dict.fromkeys((*run_names(), *jobs))]

    def _standing(self, name: str, jobs: Mapping[str, TuneJob]) -> Standing:
        try:
            run, about = self._known(name)
            status, records = run.status, self.records(name, jobs)
        except (WorkbenchError, ValueError) as error:
            return Standing(name, "damaged", error=str(error))
        right = accuracy(records)
        found = Standing(
            name,
            str(_STATES.get(status["state"]) or status["state"]),
            status["done"],
            status.get("of", 0) or run.spec.steps,
            time=_taken(records),
            right="" if right is None else f"{right:.0%}",
            about=about,
            error=status.get("error", ""),
        )
        job = jobs.get(name)
        return found if job is None else _of_job(found, job)

    def _known(self, name: str) -> tuple[Run, str]:
        """The run, and what it tunes, on what and how."""
        if name not in self._about:
            run = Run(name)
            spec = run.spec
            how = spec.method if spec.aggregator == "mean" else f"{spec.method}, {spec.aggregator}"
            self._about[name] = run, f"{', '.join(spec.titles)} · {how} · {spec.model} · seed {spec.seed}"
        return self._about[name]


_STATES = {"new": "not started", "running": "running elsewhere"}


def _of_job(found: Standing, job: TuneJob) -> Standing:
    """What a job knows better than the disk."""
    if job.done:
        if job.status == "error" and found.state != "failed":
            return replace(found, state="failed", error=failure(job))
        return found
    what, done, of = job.progress
    if not what.startswith("tuning"):
        state = "waiting" if what == "waiting" else "starting"
        return replace(found, state="pausing" if job.stopping else state, memory=size(job.memory), time="")
    left = job.seconds_left
    return replace(
        found,
        state="pausing" if job.stopping else "running",
        done=done,
        of=of,
        memory=size(job.memory),
        time="" if left is None else f"{duration(left)} left",
        error="",
    )


def _taken(records: list[dict[str, Any]]) -> str:
    """How long the steps took."""
    last = next((record for record in reversed(records) if record["kind"] == "step"), None)
    return f"took {duration(last['seconds'])}" if last else ""
