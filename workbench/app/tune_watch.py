"""Where the fine-tunes stand: from their jobs in the engine, and from disk for those of another process or time."""

import datetime
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from workbench.jobs import TuneJob
from workbench.registry import WorkbenchError
from workbench.runs import Run, accuracy, run_names
from workbench.schema import concat
from workbench.tasks.pools import title

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


class Telemetry:
    """What was measured in one run's model; each result is read once, and of it what is drawn."""

    def __init__(self, run: Run) -> None:
        self._run, self.whole = run, True
        self._parts: dict[tuple[str, str], dict[int, xr.Dataset | None]] = {}
        self._joined: dict[tuple[str, str], xr.Dataset | None] = {}

    def read(self, records: Iterable[Mapping[str, Any]], seconds: float) -> dict[str, dict[str, xr.Dataset]]:
        """By analysis, and within it by task, what the log says was measured; without what does not fit together.

        After so many `seconds` the rest is left for the next time, and `whole` is false.
        """
        tasks, end = {title(entry): entry["name"] for entry in self._run.spec.tasks}, time.monotonic() + seconds
        wanted = [(r["analysis"], shown, r["step"]) for r in records if r["kind"] == "telemetry" for shown in tasks]
        unread = [(a, shown, step) for a, shown, step in wanted if step not in self._parts.get((a, shown), {})]
        self.whole = True
        for analysis, shown, step in unread:
            if time.monotonic() > end:
                self.whole = False
                break
            found = self._run.telemetry_at(step, analysis, tasks[shown])
            self._parts.setdefault((analysis, shown), {})[step] = None if found is None else _drawn_of(found)
            self._joined.pop((analysis, shown), None)
        return self._found()

    def _found(self) -> dict[str, dict[str, xr.Dataset]]:
        found: dict[str, dict[str, xr.Dataset]] = {}
        for key, parts in self._parts.items():
            if key not in self._joined:
                self._joined[key] = _joined({step: ds for step, ds in sorted(parts.items()) if ds is not None})
            if (ds := self._joined[key]) is not None:
                found.setdefault(key[0], {})[key[1]] = ds
        return found


def _drawn_of(ds: xr.Dataset) -> xr.Dataset:
    """The primary variable and its interval."""
    primary = str(ds.attrs["primary"])
    return ds[[name for name in (primary, f"{primary}_low", f"{primary}_high") if name in ds]]


def _joined(parts: Mapping[int, xr.Dataset]) -> xr.Dataset | None:
    """All steps in one dataset; None where there are none, or they differ in what was measured."""
    try:
        return concat(parts, dim="step") if parts else None
    except WorkbenchError:
        return None


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
            return replace(found, state="failed", error=_error(job))
        return found
    what, done, of = job.progress
    if not what.startswith("tuning"):
        state = "waiting" if what == "waiting" else "starting"
        return replace(found, state="pausing" if job.stopping else state, memory=_size(job.memory), time="")
    left = job.seconds_left
    return replace(
        found,
        state="pausing" if job.stopping else "running",
        done=done,
        of=of,
        memory=_size(job.memory),
        time="" if left is None else f"{duration(left)} left",
        error="",
    )


def _error(job: TuneJob) -> str:
    try:
        job.result()
    except WorkbenchError as error:
        return str(error)
    except Exception as error:
        return f"Unexpected {type(error).__name__}: {error}"
    return ""


def _taken(records: list[dict[str, Any]]) -> str:
    """How long the steps took."""
    last = next((record for record in reversed(records) if record["kind"] == "step"), None)
    return f"took {duration(last['seconds'])}" if last else ""


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0:07, 12:30, 3:05:00."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text
