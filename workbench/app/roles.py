"""Circuits, roles: what each head does, with the scores that say so."""

from typing import Any

import panel as pn
import param

from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, GridSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.session import Session
from workbench.views import role_maps, role_table


class RolesPart(TracedPage):
    """The table of labelled heads, and one map a role."""

    number, part, doing = 0, 4, "Measuring roles in"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed")

    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=0)

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._table = FigureSlot(theme, 420)
        self._maps = GridSlot(session, "The maps appear here as soon as the roles are measured.")
        self.param.watch(self._look, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "What the heads do",
                "Each head's best role, by the usual tests: where it attends on repeated random tokens, whether it "
                "copies the answer, what it sends to the movers' queries.",
            ),
            choice(self.param.viewed),
            self._table,
            heading("Every role, every head", "Scores from 0 (not at all) to 1. Click a head to select it everywhere."),
            self._maps,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs("head_roles")

    async def _draw(self) -> None:
        self._code.replace(code(self._drawn, 'wb.show(a)\nwb.show(a, "role_maps")'))
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results:
            ds = self._results[self.viewed]
            labelled = int((ds["role"] >= 0).sum())
            self._headline.say(
                f"{labelled} of {ds['role'].size} heads have a role with a score of {ds.attrs['threshold']} or more on "
                f"{ds.attrs['task']}.",
                "info",
            )
            self._table.draw(role_table(ds))
            self._maps.draw(role_maps(ds))
