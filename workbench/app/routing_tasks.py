"""Routing, tasks: which experts each task flows to, how much the choice tells of the task, and how alike tasks are."""

from typing import Any

import panel as pn
import param
import xarray as xr

from workbench.analyses import task_routing
from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.routing_part import ManyTasks
from workbench.app.runner import Runner
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.views import specialisation, task_flow, task_similarity

GIVEN = "task given the token"


class TasksPart(ManyTasks):
    """Flow, information and similarity of two tasks or more."""

    part, doing = 1, "Reading the routing of"

    kind = param.Selector(objects={"Flow": "flow", "Bars": "bars"}, default="flow")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._compared: xr.Dataset | None = None
        self._told, self._flow, self._alike = (FigureSlot(theme, height) for height in (420, 470, 330))
        self.param.watch(self._look, "kind")
        session.param.watch(self._look, "layer")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            pn.Row(self._all, margin=(12, 0, 0, 0)),
            self._left_out,
            heading(
                "How much the choice of expert tells of the task",
                "0: nothing, 1: all there is to tell. Grey ends where shuffled tasks are in 95 of 100 draws; dashed "
                "are routers of random weights on the same residuals, which hold the task already: only what lies "
                "above them was learned by the router. The last panel compares equal tokens only.",
            ),
            self._told,
            heading(
                "From tasks to experts",
                "A band is as wide as the share of the task's tokens that go to the expert of this layer; it is grey "
                "where the expert gets no more than from an even router. Hover a band for its interval.",
            ),
            pn.Row(self._layers, choice(self.param.kind)),
            self._flow,
            heading(
                "How alike tasks are routed",
                "1: two tasks use the layer's experts in the same shares. Below each number stands what the same two "
                "tasks share when their sequences are shuffled; the diagonal is two halves of one task, the ceiling.",
            ),
            self._alike,
        )

    def _specs(self) -> list[dict]:
        self._left_out.say("")
        specs = self.reading("routing", length=self._session.length)
        if len(specs) == 1:
            raise WorkbenchError("Both tasks are the same; choose two different ones in the sidebar to compare them.")
        return specs

    async def _draw(self) -> None:
        self._offer_layers()
        self._compared = await self.compute(task_routing, *self._results)
        self._headline.say(summary(self._compared), "info")
        names = ", ".join("abcdef"[: len(self._results)])
        after = f'both = wb.task_routing({names})\nwb.show(both, "specialisation")\nwb.show(both, "task_flow", layer=0)'
        self._code.replace(code(self._drawn, f'{after}\nwb.show(both, "task_similarity", layer=0)'))
        self._told.draw(specialisation(self._compared))
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results and self._compared is not None:
            self._flow.draw(task_flow(self._compared, layer=self.layer, kind=self.kind))
            self._alike.draw(task_similarity(self._compared, layer=self.layer))


def summary(ds: xr.Dataset) -> str:
    """How much a router tells of the task given the token, where it is most above random routers, beside its nulls."""
    kind = ds.sel(measured=GIVEN)
    at = kind.isel(layer=int((kind["specialisation"] - kind["specialisation_random_high"]).values.argmax()))
    value, null, random = (float(at[f"specialisation{end}"]) for end in ("", "_null_high", "_random_high"))
    verdict = (
        "no more than shuffled tasks"
        if value <= null
        else "no more than random routers"
        if value <= random
        else "more than shuffled tasks and random routers"
    )
    return (
        f"In {ds.attrs['model']}, layer {int(at['layer'])}, the first choice for a token tells {value:.3f} of which of "
        f"{ds.sizes['task']} tasks it is from, given which token it is: {verdict} (shuffled up to {null:.3f} in 95 %, "
        f"random routers up to {random:.3f}). {float(ds['shared']):.0%} of tokens are words that several tasks use."
    )
