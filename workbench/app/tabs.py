"""A page of several parts, each on a tab of its own and traced when it is first looked at."""

from collections.abc import Callable, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.page import TracedPage
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.session import Session

Part = Callable[[Session, Runner, Theme], TracedPage]


class TabbedPage(pn.viewable.Viewer):
    """Parts by their names; which one is open is the session's."""

    parts: Mapping[str, Part]
    tab: str  # what the session calls the number of the open part

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(**params)
        self._parts = [part(session, runner, theme) for part in self.parts.values()]
        self._tabs = pmui.Tabs(
            *zip(self.parts, self._parts, strict=True),
            active=getattr(session, self.tab),
            sizing_mode="stretch_width",
            sx={"& .MuiTab-root": {"textTransform": "none", "minHeight": 36, "py": 0.5}},
        )
        self._tabs.link(session, active=self.tab, bidirectional=True)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._tabs

    def hear(self, told: Callable[[xr.Dataset], None]) -> None:
        """Tell `told` of each first result that comes."""
        for part in self._parts:
            part.on_result = told

    async def open(self) -> None:
        """Fetch what the part that is looked at shows."""
        for part in self._parts:
            await part.open()
