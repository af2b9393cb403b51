"""What the pages have in common: one result a task, fetched when the page is looked at, and again after a change."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import panel as pn
import xarray as xr

from workbench.app.parts import CodeBox, Note
from workbench.app.runner import Runner, Stale
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import make_task


class TracedPage(pn.viewable.Viewer):
    """A page over one analysis of both tasks; a subclass says what to ask for and how to draw it."""

    number: int  # of the tab
    part: int | None = None  # of the tab within it, where there are several
    tab: str = "part"  # what the session calls that
    doing: str  # what is being done, for the headline
    watched: tuple[str, ...]  # parts of the session that decide the results

    def __init__(self, session: Session, runner: Runner, **params: Any) -> None:
        super().__init__(**params)
        self._session, self._runner = session, runner
        self._results: list[xr.Dataset] = []
        self._drawn: list[dict] = []  # the specs of the results
        self._current = False
        self.on_result: Callable[[xr.Dataset], None] = lambda ds: None
        self._headline = Note(f"{self.doing} both tasks …", margin=(12, 0, 0, 0))
        self._code = CodeBox()
        session.param.watch(self._again, list(self.watched))

    def specs(self, analysis: str, **params: Any) -> list[dict]:
        """An analysis of both tasks, as the session has them."""
        s = self._session
        chosen = ((s.task_a, s.corruption_a), (s.task_b, s.corruption_b))
        tasks = [make_task(name, n=s.n, seed=s.seed, corruption=corruption) for name, corruption in chosen]
        return [specify(analysis, s.reference, task, params) for task in tasks]

    async def fetch_all(self, specs: Sequence[dict], what: str) -> list[xr.Dataset]:
        """The results of further specs; `what` they are for is a place of its own, so that others go on."""
        place = f"{type(self).__name__}, {what}"
        ticket = self._runner.begin(place)
        return [await self._runner.fetch(place, ticket, spec) for spec in specs]

    async def compute(self, function: Callable[..., xr.Dataset], *results: xr.Dataset, **options: Any) -> xr.Dataset:
        """What a function makes of results, computed beside the page.

        Raises:
            Stale: when the page has other results meanwhile.
        """
        shown = self._results
        found = await asyncio.to_thread(function, *results, **options)
        if self._results is not shown:
            raise Stale
        return found

    def _specs(self) -> list[dict]:
        """What to ask the engine for."""
        raise NotImplementedError

    async def _draw(self) -> None:
        """Draw the results that have come."""
        raise NotImplementedError

    async def open(self, *_: Any) -> None:
        """Fetch when the page is first looked at, and again after a change of model or task."""
        shown = self._session.page == self.number and self.part in (None, getattr(self._session, self.tab))
        if shown and not self._current:
            await self._refresh()

    async def _again(self, *_: Any) -> None:
        self._current = False
        await self.open()

    async def _refresh(self) -> None:
        place = type(self).__name__
        ticket = self._runner.begin(place)
        with self._runner.reporting(self._headline.say):
            specs = self._specs()
            self._headline.say(f"{self.doing} {self._session.reference} …", "info")
            self._results = [await self._runner.fetch(place, ticket, spec) for spec in specs]
            self._current, self._drawn = True, specs
            self.on_result(self._results[0])
            await self._draw()
