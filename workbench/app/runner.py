"""Runs specs for one browser session: from the store if it can, else in the engine, with progress and a stop button."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.parts import Note, plain
from workbench.engine import Job, submit
from workbench.progress import Cancelled
from workbench.registry import WorkbenchError
from workbench.results import stored

READY = "Ready"
POLL = 0.15  # seconds between two looks at a job
STOPPED = "Stopped early, so nothing new is drawn. Change a setting, or reload the page, to start again."


class Stale(Exception):
    """The person asked for something else meanwhile."""


class Runner(pn.viewable.Viewer):
    """A progress line, a stop button, and `fetch`, which turns specs into datasets without blocking the page."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: set[Job] = set()
        self._tickets = itertools.count(1)
        self._asked: dict[str, int] = {}  # by place, its latest ticket; 0 once it was stopped
        self._bar = pmui.LinearProgress(value=0, max=100, variant="determinate", sizing_mode="stretch_width")
        self._text = pmui.Typography(READY, variant="body2", sx={"overflowWrap": "anywhere"})
        self._stop = pmui.Button(label="Stop", variant="outlined", size="small", disabled=True, on_click=self.stop)
        self._error = Note(margin=10)

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self._text, self._bar, self._stop, self._error, sizing_mode="stretch_width")

    def begin(self, place: str) -> int:
        """A ticket for one part of the page; an earlier ticket of the same part is stale from now on."""
        self._asked[place] = next(self._tickets)
        self._error.say("")
        return self._asked[place]

    async def fetch(self, place: str, ticket: int, spec: Mapping[str, Any]) -> xr.Dataset:
        """The result of a spec.

        Raises:
            Stale: when the part of the page has asked for something else meanwhile.
            Cancelled: when the person has pressed Stop.
            WorkbenchError: what the analysis or the engine raised.
        """
        found = await asyncio.to_thread(stored, spec)
        self._check(place, ticket)
        if found is not None:
            return found
        self._say("starting the engine", 0, 1)
        job = await asyncio.to_thread(submit, spec["analysis"], spec["model"], spec["task"], **spec["params"])
        job.join()
        self._jobs.add(job)
        self._stop.disabled = False
        try:
            while not job.done:
                self._say(*job.progress)
                await asyncio.sleep(POLL)
                self._check(place, ticket)
            return await asyncio.to_thread(job.result)
        finally:
            self._jobs.discard(job)
            job.leave()
            if not self._jobs:
                self._stop.disabled = True
                self._say(READY, 0, 1)

    def _check(self, place: str, ticket: int) -> None:
        if not self._asked[place]:
            raise Cancelled(STOPPED)
        if self._asked[place] != ticket:
            raise Stale

    def _say(self, what: str, done: int, of: int) -> None:
        """A line and a bar; the bar only moves to and fro while nothing can be counted yet."""
        self._text.object = plain(f"{what}: {done} of {of}" if done else what)
        waiting = what != READY and not done
        self._bar.param.update(value=round(100 * done / of), variant="indeterminate" if waiting else "determinate")

    def stop(self, *_: Any) -> None:
        """Give up whatever is asked for; a job that nobody else waits for ends after its present batch."""
        self._asked = dict.fromkeys(self._asked, 0)

    @contextlib.contextmanager
    def reporting(self, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Within the block, errors a person can mend are said (below the stop button) and staleness is silent."""
        say = say or self._error.say
        try:
            yield
        except Stale:
            return
        except WorkbenchError as error:
            say(str(error))
        except Exception as error:
            say(f"Unexpected {type(error).__name__}: {error} (the server's log has the details).")
            raise
