"""The Tune page: a new run, all runs with their curves, and what a run has changed in the model."""

import asyncio
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.changes import ChangesPart
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.app.tune_form import PAGE, FormPart
from workbench.app.tune_runs import LOOK, RunsPart
from workbench.engine import engine
from workbench.session import Session
from workbench.spec import Spec


class TunePage(pn.viewable.Viewer):
    """Set a run up, start it, follow it, and trace what came of it."""

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(**params)
        self._session = session
        self._form = FormPart(session, self._started)
        self._runs = RunsPart(session, self._again)
        self._changes = ChangesPart(session, runner, theme)
        self._tabs = pmui.Tabs(
            ("New run", self._form),
            ("Runs", self._runs),
            ("Changes", self._changes),
            active=session.tune,
            sizing_mode="stretch_width",
            sx={"& .MuiTab-root": {"textTransform": "none", "minHeight": 36, "py": 0.5}},
        )
        self._tabs.link(session, active="tune", bidirectional=True)
        self._clock: Any = None
        self._warming: asyncio.Task | None = None
        session.param.watch(self.open, ["page", "tune"])

    def __panel__(self) -> pn.viewable.Viewable:
        return self._tabs

    def hear(self, told: Callable[[xr.Dataset], None]) -> None:
        """Nothing is traced here."""

    async def open(self, *_: Any) -> None:
        """Have a worker ready while the page is looked at, and look at the runs from time to time."""
        if self._session.page != PAGE:
            self._rest()
            return
        self._warming = asyncio.create_task(asyncio.to_thread(lambda: engine().warm_up()))
        if self._session.tune != 1:
            await (self._form if self._session.tune == 0 else self._changes).open()
            return
        if self._clock is None and pn.state.curdoc is not None:
            look: Any = self._look
            self._clock = pn.state.add_periodic_callback(look, LOOK)
        await self._runs.look()

    async def start_here(self) -> None:
        """Start a run on the sidebar's model and tasks."""
        self._session.param.update(page=PAGE, tune=0)
        await self._form.start_here()

    async def _look(self) -> None:
        if self._session.page == PAGE and self._session.tune == 1:
            await self._runs.look()

    def _rest(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    def _started(self, name: str) -> None:
        self._session.param.update(run=name, tune=1)

    def _again(self, spec: Spec) -> None:
        self._form.form.fill(spec)
        self._session.tune = 0
