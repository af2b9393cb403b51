"""A page of several parts, each on a tab of its own, made and traced when it is first looked at."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr
from panel.custom import AnyWidgetComponent

from workbench.app.page import TracedPage
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.session import Session

PATIENCE = 10.0  # seconds that a browser has to draw something
Part = Callable[[Session, Runner, Theme], TracedPage]
Made = TypeVar("Made")


class Arrival(AnyWidgetComponent):
    """Something without extent that tells Python when the page draws it, and so what it stands beside."""

    here = param.Boolean(False, doc="True once it was drawn.")

    _esm = """export default { render({ model }) {
      const waiting = setTimeout(() => { model.set("here", true); model.save_changes() }, 50)
      return () => clearTimeout(waiting)
    } }"""


class Later(pn.viewable.Viewer, Generic[Made]):
    """A place for something that is made when it is first looked at; all pages at once take seconds."""

    def __init__(self, make: Callable[[], Made]) -> None:
        super().__init__()
        self._make, self._box = make, pn.Column(sizing_mode="stretch_width")
        self._arrival = Arrival(visible=False)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._box

    @functools.cached_property
    def made(self) -> Made:
        """What stands here; made by the first who asks."""
        found = self._make()
        self._box[:] = [found, self._arrival]
        return found

    @property
    def empty(self) -> bool:
        """True until it is made."""
        return not self._box.objects

    async def drawn(self) -> Made:
        """What stands here, once a browser has drawn it: what changes before may be lost on the way."""
        found, arrived = self.made, asyncio.Event()
        if pn.state.curdoc is not None and not self._arrival.here:
            self._arrival.param.watch(lambda _: arrived.set(), "here")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), PATIENCE)
        return found


class TabbedPage(pn.viewable.Viewer):
    """Parts by their names; which one is open is the session's."""

    parts: Mapping[str, Part]
    number: int  # of the page
    tab: str  # what the session calls the number of the open part

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(**params)
        self._session = session
        self._told: Callable[[xr.Dataset], None] = lambda ds: None
        self._parts = [Later(functools.partial(part, session, runner, theme)) for part in self.parts.values()]
        self._tabs = pmui.Tabs(
            *zip(self.parts, self._parts, strict=True),
            active=getattr(session, self.tab),
            sizing_mode="stretch_width",
            sx={"& .MuiTab-root": {"textTransform": "none", "minHeight": 36, "py": 0.5}},
        )
        self._tabs.link(session, active=self.tab, bidirectional=True)
        _ = self._parts[getattr(session, self.tab)].made  # comes with the page
        session.param.watch(self.open, ["page", self.tab])

    def __panel__(self) -> pn.viewable.Viewable:
        return self._tabs

    def hear(self, told: Callable[[xr.Dataset], None]) -> None:
        """Tell `told` of each first result that comes."""
        self._told = told

    async def open(self, *_: Any) -> None:
        """Fetch what the part that is looked at shows."""
        if self._session.page == self.number:
            part = await self._parts[getattr(self._session, self.tab)].drawn()
            part.on_result = self._told
            await part.open()
