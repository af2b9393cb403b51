"""Circuits, paths: what each head sends to the logits, or to other heads, in stages from the output backwards."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.app.page import TracedPage
from workbench.app.parts import GridSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.session import Session
from workbench.views import head_map


class PathsPart(TracedPage):
    """One head map a stage, for either task."""

    number, part, doing = 0, 1, "Patching paths in"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed")

    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=0)
    stages = param.String("logits@END; q@END", doc="Receivers at positions, from the output backwards.")
    share = param.Number(0.05, bounds=(0.01, 0.5), doc="Share of all heads that receive in the next stage.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._maps = GridSlot(session, "The maps appear here as soon as the paths are patched.")
        self.param.watch(self._again, ["viewed", "stages", "share"])

    def __panel__(self) -> pn.viewable.Viewable:
        stages = pmui.TextInput.from_param(self.param.stages, label="Stages", width=420, size="small")
        share = pmui.FloatSlider.from_param(
            self.param.share, label="Strongest heads, share", step=0.01, width=300, throttled=True
        )
        return pn.Column(
            self._headline,
            heading(
                "Along which paths",
                "Share of the task lost when only the path from one head to the receivers is corrupted: 0 = clean, "
                "1 = corrupted; all other heads are held. Each stage is receivers@position, from the output backwards: "
                "logits, then q, k or v of the strongest heads of the stage before, or named ones such as L2H3.q.",
            ),
            pn.Row(choice(self.param.viewed), stages, share),
            self._maps,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return [self.specs("path_patching", stages=self.stages, top=self.share)[self.viewed]]

    async def _draw(self) -> None:
        ds, stages = self._results[0], self._results[0].sizes["receiver"]
        self._headline.say(
            f"{ds.attrs['task']}: {stages} stage{'s' * (stages != 1)}. MLPs and norms are computed anew, all other "
            f"heads held at their clean output. Computed by: {ds.attrs['way']}.",
            "info",
        )
        self._maps.draw(head_map(ds))
        self._code.replace(code(self._drawn, "wb.show(a)"))
