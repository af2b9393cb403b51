"""Runs specs for one browser session: from the store if it can, else in the engine, with progress and a stop button."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.engine import Job, stored, submit
from workbench.registry import WorkbenchError

READY = "Ready"
POLL = 0.15  # seconds between two looks at a job


class Stale(Exception):
    """The person asked for something else meanwhile."""


class Runner(pn.viewable.Viewer):
    """A progress line, a stop button, and `fetch`, which turns specs into datasets without blocking the page."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs: set[Job] = set()
        self._asked: dict[str, int] = {}
        self._bar = pmui.LinearProgress(value=0, max=100, variant="determinate", sizing_mode="stretch_width")
        self._text = pmui.Typography(READY, variant="body2", sx={"overflowWrap": "anywhere"})
        self._stop = pmui.Button(label="Stop", variant="outlined", size="small", disabled=True, on_click=self._cancel)
        self._error = pmui.Alert(object="", severity="error", visible=False, sizing_mode="stretch_width")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self._text, self._bar, self._stop, self._error, sizing_mode="stretch_width")

    def begin(self, place: str) -> int:
        """A ticket for one part of the page; an earlier ticket of the same part is stale from now on."""
        self._asked[place] = self._asked.get(place, 0) + 1
        self.complain("")
        return self._asked[place]

    async def fetch(self, place: str, ticket: int, spec: Mapping[str, Any]) -> xr.Dataset:
        """The result of a spec.

        Raises:
            Stale: when the part of the page has asked for something else meanwhile.
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
        if self._asked[place] != ticket:
            raise Stale

    def _say(self, what: str, done: int, of: int) -> None:
        """A line and a bar; the bar only moves to and fro while nothing can be counted yet."""
        self._text.object = f"{what}: {done} of {of}" if done else what
        waiting = what != READY and not done
        self._bar.param.update(value=round(100 * done / of), variant="indeterminate" if waiting else "determinate")

    def _cancel(self, _: Any) -> None:
        for job in self._jobs:
            job.cancel()
        self._text.object = "stopping after the present batch"

    def complain(self, message: str) -> None:
        """Show an error until the next request; an empty message clears it."""
        self._error.param.update(object=message, visible=bool(message))

    def leave(self) -> None:
        """Give up every job of a session that has ended."""
        for job in self._jobs:
            job.leave()

    @contextlib.contextmanager
    def reporting(self):
        """Within the block, errors a person can mend are shown and staleness is silent."""
        try:
            yield
        except Stale:
            return
        except WorkbenchError as error:
            self.complain(str(error))
        except Exception as error:
            self.complain(f"Unexpected {type(error).__name__}: {error} (the server's log has the details).")
            raise
