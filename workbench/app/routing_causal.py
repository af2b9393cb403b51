"""Routing, causal: what is lost without each expert, and what the tokens carry that a corruption sends elsewhere."""

from typing import Any

import numpy as np
import panel as pn
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Note, Theme, choice, code, heading
from workbench.app.routing_part import RoutingPart
from workbench.app.runner import Runner
from workbench.models.expert_names import expert_name
from workbench.session import Session
from workbench.views import expert_effects, route_changes


class ExpertsPart(RoutingPart):
    """Changed routes between clean and corrupted prompt, and every expert closed, of one task."""

    part, doing = 5, "Following changed routes in"
    watched = (*RoutingPart.watched, "corruption_a", "corruption_b")

    measure = param.Selector(objects={"The task": "lost", "Running text": "loss_change"}, default="lost")
    mode = param.Selector(objects={"Close it": "close", "Give it no weight": "zero"}, default="close")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._without: xr.Dataset | None = None
        self._changes, self._effects, self._said = FigureSlot(theme, 430), FigureSlot(theme, 640), Note()
        self.param.watch(self._again, "viewed")
        self.param.watch(self._close, "mode")
        self.param.watch(self._draw_effects, "measure")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            pn.Row(choice(self.param.viewed), margin=(12, 0, 0, 0)),
            heading(
                "Which tokens change experts, and what that carries",
                "Left: share of prompts whose token goes to other experts once the prompt is corrupted. Middle: share "
                "of the answer that moves with these choices alone; the grey null is random other experts at the same "
                "tokens. Right: share that comes back when one expert's clean output is put into the corrupted run.",
            ),
            self._changes,
            heading(
                "What is lost without each expert",
                "Closed, the router chooses among the others; without weight, nothing takes its place. The grey null "
                "takes random experts from as many tokens; bold is above 95 % of them. An expert can be used much and "
                "matter little, so its load stands beside it.",
            ),
            pn.Row(choice(self.param.mode), choice(self.param.measure)),
            self._said,
            self._effects,
        )

    def _specs(self) -> list[dict]:
        return [self.specs("routing_circuit")[self.viewed]]

    async def _draw(self) -> None:
        self._changes.draw(route_changes(self.one))
        await self._close()

    async def _close(self, *_: Any) -> None:
        """Close every expert in turn."""
        if not self._results:
            return
        self._without = None
        self._effects.wait()
        self._headline.say(carried(self.one), "info")
        self._said.say("Closing one expert after the other …", "info")
        with self._runner.reporting(self._said.say):
            spec = self.specs("expert_ablation", mode=self.mode, length=self._session.length)[self.viewed]
            (self._without,) = await self.fetch_all([spec], "closed")
            self._said.say("")
            self._headline.say(f"{carried(self.one)} {lost(self._without)}", "info")
            self._code.replace(code([*self._drawn, spec], 'wb.show(a)\nwb.show(b)\nwb.show(b, measure="loss_change")'))
            self._draw_effects()

    def _draw_effects(self, *_: Any) -> None:
        if self._without is not None:
            self._effects.draw(expert_effects(self._without, measure=self.measure))


def carried(ds: xr.Dataset) -> str:
    """How many tokens change experts, and what the changes carry, beside random other experts."""
    parts = []
    for way, words in (("restored", "clean choices restore"), ("removed", "corrupted choices take away")):
        at = ds.sel(measured=way)
        value, low, high, null_low, null_high = (
            float(at[f"carried_all{end}"]) for end in ("", "_low", "_high", "_null_low", "_null_high")
        )
        parts.append(
            f"{words} {value:z.2f} ({low:z.2f} to {high:z.2f}; random experts {null_low:z.2f} to {null_high:z.2f})"
        )
    share = ds["changed_tokens"]
    return (
        f"{ds.attrs['task']} in {ds.attrs['model']}: the corruption sends "
        f"{float(share.min()):.0%} to {float(share.max()):.0%} of a layer's tokens to other experts; at these tokens "
        f"{' and '.join(parts)} of the answer."
    )


def lost(ds: xr.Dataset) -> str:
    """The experts whose loss costs the task more than random experts do, most of all first."""
    values, low, high = (ds[f"lost{end}"].transpose("layer", "expert").values for end in ("", "_low", "_null_high"))
    cells = np.argwhere((values > high) & (low > 0)).tolist()
    if not cells:
        return "No expert costs the task more than random experts at as many tokens."
    layers, experts = ds["layer"].values, ds["expert"].values
    cells.sort(key=lambda cell: -values[tuple(cell)])
    first = tuple(cells[0])
    name = expert_name(int(layers[first[0]]), int(experts[first[1]]))
    return (
        f"{len(cells)} of {values.size} experts cost the task more than random ones do, most of all {name}: without it "
        f"{values[first]:.2f} is lost (random experts up to {high[first]:.2f})."
    )
