"""The Circuits page: heads, paths, edges, reuse with its controls, roles, and the repair experiment."""

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.edges import EdgesPart
from workbench.app.heads import HeadsPart
from workbench.app.page import TracedPage
from workbench.app.parts import Theme
from workbench.app.paths import PathsPart
from workbench.app.repair import RepairPart
from workbench.app.reuse import ReusePart
from workbench.app.roles import RolesPart
from workbench.app.runner import Runner
from workbench.session import Session

PARTS: dict[str, Callable[[Session, Runner, Theme], TracedPage]] = {
    "Heads": HeadsPart,
    "Paths": PathsPart,
    "Edges": EdgesPart,
    "Reuse": ReusePart,
    "Roles": RolesPart,
    "Repair": RepairPart,
}


class CircuitsPage(pn.viewable.Viewer):
    """One tab for each way to look at the circuits of both tasks; each is traced when it is first looked at."""

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(**params)
        self._parts = [part(session, runner, theme) for part in PARTS.values()]
        self._tabs = pmui.Tabs(
            *zip(PARTS, self._parts, strict=True),
            active=session.part,
            sizing_mode="stretch_width",
            sx={"& .MuiTab-root": {"textTransform": "none", "minHeight": 36, "py": 0.5}},
        )
        self._tabs.link(session, active="part", bidirectional=True)

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
