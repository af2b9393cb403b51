"""Routing, map: tokens of all tasks in two dimensions, by the residual stream or by the routers' logits."""

import asyncio
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from widgets.token_map import unpack
from workbench.app.further import FurtherTasks, further
from workbench.app.parts import FigureSlot, Slot, Theme, choice, code, heading
from workbench.app.routing_part import dense_model, has_experts
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import make_task
from workbench.views import token_map, token_selection

RESIDUAL, ROUTER = "residual", "router"
AFTER = (
    'tokens = wb.show(a, "token_map")\ntokens  # after a lasso: wb.show(a, "token_selection", selected=tokens.indices)'
)


class MapPart(SinkPart):
    """A map of tokens with a lasso; what is taken is told below it. The stream has one for a dense model too."""

    number, part, tab, doing = 2, 7, "route", "Reading the tokens of"
    watched = (*SinkPart.watched, "others", "layer")

    space = param.Selector(objects={"Residual stream": RESIDUAL, "Router logits": ROUTER}, default=RESIDUAL)
    method = param.Selector(objects={"PCA": "pca", "UMAP": "umap"}, default="pca")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._map, self._taken = Slot("The map appears here."), FigureSlot(theme, 590)
        self._layer = pmui.IntInput.from_param(
            session.param.layer, label="Layer, -1 for the last", start=-1, width=170, size="small", margin=(8, 10, 4, 0)
        )
        self._further = FurtherTasks(session)
        self.param.watch(self._again, ["space", "method"])

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Which tokens are alike to the model?",
                "A point is a token of running text of the tasks. Drag to draw a lasso around some; what they are is "
                "told below, beside chance. PCA keeps the largest distances; UMAP keeps only who is near whom, so "
                "distances between its clusters and their sizes mean little.",
            ),
            pn.Row(self._further, self._layer),
            pn.Row(choice(self.param.space), choice(self.param.method)),
            self._map,
            heading(
                "What the tokens taken are",
                "Shares of experts, tasks, kinds and words among the tokens taken, or among all while none are. The "
                "mark is the share among all tokens, with the range of 95 % of random selections as large.",
            ),
            self._taken,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        s = self._session
        if self.space == ROUTER and has_experts(s.reference) is False:
            raise WorkbenchError(f"{dense_model(s.reference)} The residual stream has a map in every model.")
        names = [*([s.task_b] if s.task_b != s.task_a else []), *further(s)]
        params = {"space": self.space, "method": self.method, "layer": s.layer, "tasks": ",".join(names)}
        params |= {"length": s.length, "sequences": s.n}
        return [specify("embedding", s.reference, make_task(s.task_a, n=s.n, seed=s.seed), params)]

    async def _draw(self) -> None:
        (ds,) = self._results
        drawing = token_map(ds)
        self._headline.say(summary(ds), "info")
        shown = self._map.component
        chosen = shown.param.values()["colour_by"] if shown is not None else ""
        kept = {"colour_by": chosen} if chosen in drawing.traits["colourings"] else {}
        made = self._map.draw(drawing, **kept, selected=b"", hidden=[])
        if shown is None:
            made.param.watch(self._take, "selected")
        self._code.replace(code(self._drawn, AFTER))
        await self._take()

    async def _take(self, *_: Any) -> None:
        """Tell what was taken from the map shown."""
        if self._results and self._map.component is not None:
            (ds,), taken = self._results, self._map.component.param.values()["selected"]
            figure = await asyncio.to_thread(token_selection, ds, selected=unpack(taken))
            if self._results[0] is ds:
                self._taken.draw(figure)


def summary(ds: xr.Dataset) -> str:
    """How far the map can be trusted, and for which label neighbours are most alike, beside chance."""
    on = ds.sel(measured="on the map")
    parts = []
    for name in on["component"].values:
        seen, null = (float(on[end].sel(component=name)) for end in ("same", "same_null"))
        if null < 1:  # else all tokens have one label
            parts.append(f"{name} {seen:.0%} (shuffled {null:.0%})")
    alike = f" Neighbours on it have the same label: {', '.join(parts)}." if parts else ""
    where = {RESIDUAL: "residual stream before", ROUTER: "router logits of"}[ds.attrs["space"]]
    return (
        f"{ds.attrs['tokens']:,} tokens of {ds.attrs['model']}, by the {where} layer {ds.attrs['layer']}: the map "
        f"keeps neighbourhoods with a trustworthiness of {float(ds['trustworthiness']):.2f} (shuffled maps "
        f"{float(ds['trustworthiness_null']):.2f}).{alike}"
    )
