"""A fine-tune as it goes: what was measured of it so far, where it stands in words, and its curves kept up to date."""

import datetime
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from widgets.training_curves import TrainingCurves
from workbench.jobs import TuneJob
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.schema import concat
from workbench.tasks.pools import title
from workbench.views import training_curves

PAUSE = 0.3  # seconds between two pictures of a run that is followed
READ = 0.6  # seconds to read measurements for one picture; the others come with the next one
READERS = ("span", "logarithmic")  # traits of the curves that are their reader's


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


def follow(job: TuneJob) -> TrainingCurves:
    """The curves of a fine-tune in the engine, live: they grow until the job is done, and `status` says how far it is.

    An error that ends the job is said there too. What the reader sets in the page stays as it is.
    """
    curves = TrainingCurves(heading=job.run.name, status=told(job))
    threading.Thread(target=_keep, args=(job, curves), name=f"follow {job.run.name}", daemon=True).start()
    return curves


def _keep(job: TuneJob, curves: TrainingCurves) -> None:
    try:
        _draw_until_done(job, curves)
    except Exception as error:
        curves.status = f"The curves stopped here: unexpected {type(error).__name__}: {error}"
        raise


def _draw_until_done(job: TuneJob, curves: TrainingCurves) -> None:
    """Draw what is new, and when the job is done all of it."""
    ended, reader = threading.Event(), Telemetry(job.run)
    job.when_done(ended.set)
    drawn: tuple[int, ...] = ()
    while not ended.wait(PAUSE) and not job.done:
        records = job.records
        version = (len(records), records[-1]["step"] if records else 0)
        traits = {} if version == drawn else _traits(job.run, records, reader, READ)
        drawn = version if reader.whole else ()  # what was left for want of time is read the next time
        curves.show(**traits, status=told(job))
    curves.show(**_traits(job.run, job.run.records, reader, float("inf")), status=ending(job))


def _traits(run: Run, records: list[dict[str, Any]], reader: Telemetry, seconds: float) -> dict[str, Any]:
    """What the curves are to show, but for what is the reader's; nothing before the first step."""
    try:
        drawing = training_curves(run.curves(records), telemetry=reader.read(records, seconds))
    except WorkbenchError:
        return {}
    return {name: value for name, value in drawing.traits.items() if name not in READERS}


def told(job: TuneJob) -> str:
    """Where a job stands: running, 120 of 400, 0:35 left, 0.9 GiB."""
    what, done, of = job.progress
    parts = ["waiting for a worker" if what == "waiting" else what]
    if what.startswith("tuning"):
        left = job.seconds_left
        parts = ["pausing" if job.stopping else "running", f"{done} of {of}"]
        parts += [] if left is None else [f"{duration(left)} left"]
    return ", ".join(filter(None, (*parts, size(job.memory))))


def ending(job: TuneJob) -> str:
    """How a job that is done ended: finished, 400 of 400; or the error that ended it."""
    if why := failure(job):
        return f"failed: {why}"
    status = job.run.status
    return f"{status['state']}, {status['done']} of {job.spec.steps}"


def failure(job: TuneJob) -> str:
    """What ended a job that is done, if that was an error."""
    try:
        job.result()
    except WorkbenchError as error:
        return str(error)
    except Exception as error:
        return f"Unexpected {type(error).__name__}: {error}"
    return ""


def size(count: int) -> str:
    """Bytes in GiB; nothing for none."""
    return f"{count / 2**30:.1f} GiB" if count else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0:07, 12:30, 3:05:00."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text
