"""What the parts of the Routing page have in common: the layer that is looked at, several tasks, dense models."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.parts import Note
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.models.reference import find, zoo_names
from workbench.progress import Cancelled
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.schema import concat
from workbench.session import Session
from workbench.tasks import TASKS, make_task


class RoutingPart(SinkPart):
    """A part over the routing of both tasks' running text; one layer, the session's, is shown in detail."""

    number, tab = 2, "route"

    def __init__(self, session: Session, runner: Runner, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._body = pn.Column(sizing_mode="stretch_width")
        self._layers = pmui.Select(label="Layer", options=[], width=110, size="small", margin=(8, 10, 4, 0))
        self._layers.param.watch(self._pick_layer, "value")
        session.param.watch(self._offer_layers, "layer")

    def framed(self, *parts: Any) -> pn.viewable.Viewable:
        """The headline above, the code below; between them the parts, which a model without routers has no use for."""
        self._body[:] = [*parts, self._code]
        return pn.Column(self._headline, self._body, sizing_mode="stretch_width")

    @property
    def layer(self) -> int:
        """The layer looked at: the session's, or the last where the model has no such layer."""
        known = self._results[0]["layer"].values.tolist()
        return self._session.layer if self._session.layer in known else known[-1]

    @property
    def joined(self) -> xr.Dataset:
        """All tasks in one dataset; the result itself where there is one."""
        if len(self._results) == 1:
            return self._results[0]
        return concat({str(ds.attrs["task"]): ds for ds in self._results}, dim="task")

    def _offer_layers(self, *_: Any) -> None:
        if self._results:
            layers = {str(layer): layer for layer in self._results[0]["layer"].values.tolist()}
            self._layers.param.update(options=layers, value=self.layer)

    def _pick_layer(self, event: Any) -> None:
        if event.new is not None and event.new != self.layer:
            self._session.layer = event.new

    async def _refresh(self) -> None:
        dense = await asyncio.to_thread(has_experts, self._session.reference) is False
        self._body.visible = not dense
        if not dense:
            await super()._refresh()
            return
        self._runner.begin(type(self).__name__)  # so that an answer for another model is not drawn any more
        self._results, self._current = [], True
        self._headline.say(await asyncio.to_thread(dense_model, self._session.reference), "warning")


class ManyTasks(RoutingPart):
    """A part that reads both tasks, and all tasks at the press of a button."""

    def __init__(self, session: Session, runner: Runner, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._all = pmui.Button(
            label="Read all tasks", variant="outlined", size="small", margin=(8, 10, 8, 0), on_click=self._read_all
        )
        self._left_out = Note()

    async def _read_all(self, *_: Any) -> None:
        """Every task that the model's words allow, the two chosen ones first."""
        if not self._results:
            return
        s, specs = self._session, list(self._drawn)
        shown = {spec["task"]["name"] for spec in specs}
        others = [make_task(name, n=s.n, seed=s.seed) for name in TASKS if name not in shown]
        specs += [specify("routing", s.reference, task, {"length": s.length}) for task in others]
        found, missing = {}, []
        with self._runner.reporting(self._left_out.say):
            self._left_out.say("Reading all tasks …", "info")
            for place, spec in enumerate(specs):
                try:
                    found[place] = (await self.fetch_all([spec], "all tasks"))[0]
                except Cancelled:
                    raise
                except WorkbenchError:
                    missing.append(spec["task"]["name"])
            self._results, self._drawn = list(found.values()), [specs[place] for place in found]
            text = f"Left out, as this model's tokens do not fit them: {', '.join(missing)}." if missing else ""
            self._left_out.say(text, "info")
            await self._draw()


def has_experts(reference: str) -> bool | None:
    """Whether a model's configuration names experts; None where that is not to be read, as of an adapter."""
    try:
        folder = find(reference).folder
    except WorkbenchError:
        return None  # which is said when it is loaded
    config = folder / "config.json"
    if not config.is_file() or (folder / "adapter_config.json").is_file():
        return None
    return names_experts(json.loads(config.read_text(encoding="utf-8")))


def names_experts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, or one within it, has two experts or more; families name them differently."""
    own = (value for name, value in config.items() if "expert" in name and type(value) is int)
    return any(value > 1 for value in own) or any(
        names_experts(part) for part in config.values() if isinstance(part, Mapping)
    )


def dense_model(reference: str) -> str:
    """What is said of a model without routers, and which to load instead."""
    others = [name for name in zoo_names() if has_experts(name)]
    instead = f"choose {' or '.join(others)}" if others else "load a mixture of experts"
    return (
        f"{reference} has no routers: every token passes through the same MLPs, so there is no routing to look at. "
        f"To see some, {instead} in the sidebar."
    )
