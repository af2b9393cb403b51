"""Sinks, dormant: heads that rest on the sink, and whether each task does without them."""

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, GridSlot, Note, Theme, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.models.heads import head_name
from workbench.progress import Cancelled
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.schema import concat
from workbench.session import Session
from workbench.tasks import TASKS, make_task
from workbench.views import dormancy, dormancy_heads

DORMANT, ACTIVE = 1, 2
WORDS = ("undecided", "dormant", "active", "idle")
QUANTITIES = {
    "Rest on the sink, D": "dormancy",
    "Rest at the end of a prompt": "dormancy_at",
    "Lost without the head": "lost",
    "Output norm": "output_norm",
    "Value drain": "value_drain",
}


class DormantPart(SinkPart):
    """Heads by tasks: how much each rests on the first token, and where it is dormant or active."""

    part, doing = 4, "Measuring how heads rest on"
    watched = (*SinkPart.watched, "corruption_a", "corruption_b")

    variable = param.Selector(objects=QUANTITIES, default="dormancy")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._map, self._chosen = FigureSlot(theme, 330), Note()
        self._heads = GridSlot(session, "The maps appear here as soon as both tasks are measured.")
        self._all = pmui.Button(label="Measure all tasks", variant="outlined", size="small", on_click=self._measure_all)
        self._left_out = Note()
        self.param.watch(self._look, "variable")
        session.param.watch(self._look_at_head, "head")

    def __panel__(self) -> pn.viewable.Viewable:
        variable = pmui.Select.from_param(self.param.variable, label="Shown", width=240, size="small")
        return pn.Column(
            self._headline,
            heading(
                "Active here, dormant there",
                "D is a head's mean attention on the first token. A head is dormant on a task when it rests there and "
                "the task does without it, and active when its ablation changes the task by more than a random change "
                "of the same size would. A star marks heads that are active on one task and not on another.",
            ),
            pn.Row(variable, self._all),
            self._left_out,
            self._map,
            heading("Head by head", "D as a map a task. Click a head to read what is known of it, here and elsewhere."),
            self._heads,
            self._chosen,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs("dormant_heads", length=self._session.length)

    async def _draw(self) -> None:
        self._left_out.say("")
        self._code.replace(
            code(self._drawn, "both = wb.concat({ds.attrs['task']: ds for ds in (a, b)}, dim='task')\nwb.show(both)")
        )
        self._look()

    def _joined(self) -> xr.Dataset:
        """All tasks that were measured; a task given twice is there once."""
        return concat({str(ds.attrs["task"]): ds for ds in self._results}, dim="task")

    def _look(self, *_: Any) -> None:
        if self._results:
            joined = self._joined()
            self._headline.say(summary(joined), "info")
            self._map.draw(dormancy(joined, variable=self.variable))
            self._heads.draw(dormancy_heads(joined))
            self._look_at_head()

    def _look_at_head(self, *_: Any) -> None:
        if self._results:
            self._chosen.say(about(self._joined(), self._session.selected), "info")

    async def _measure_all(self, *_: Any) -> None:
        """Every task that the model's words allow, the two chosen ones first."""
        if not self._results:
            return
        s = self._session
        self._left_out.say("Measuring …", "info")
        shown = {spec["task"]["name"] for spec in self._drawn}
        tasks = [make_task(name, n=s.n, seed=s.seed) for name in TASKS if name not in shown]
        specs = [*self._drawn[:2], *(specify("dormant_heads", s.reference, t, {"length": s.length}) for t in tasks)]
        found, missing = [], []
        with self._runner.reporting(self._left_out.say):
            for spec in specs:
                try:
                    found += await self.fetch_all([spec], "all tasks")
                except Cancelled:
                    raise
                except WorkbenchError:
                    missing.append(spec["task"]["name"])
            self._results = found
            self._look()
            text = f"Left out, as this model's tokens do not fit them: {', '.join(missing)}." if missing else ""
            self._left_out.say(text, "info")


def summary(joined: xr.Dataset) -> str:
    """Which heads are dormant on some tasks and active on others, and how many are dormant on all."""
    state = joined["state"].transpose("task", "layer", "head").values
    names = [str(task) for task in joined["task"].values]
    counts = [
        f"{task}: {int((part == DORMANT).sum())} dormant, {int((part == ACTIVE).sum())} active"
        for task, part in zip(names, state, strict=True)
    ]
    both = np.argwhere((state == DORMANT).any(0) & (state == ACTIVE).any(0)).tolist()
    layers, heads = joined["layer"].values, joined["head"].values
    which = ", ".join(head_name(int(layers[row]), int(heads[column])) for row, column in both)
    mixed = "Dormant on one task and active on another: " if both else "No head is dormant on one and active on another"
    end = mixed + (which if both else "")
    return f"Of {state[0].size} heads, on {'; '.join(counts)}. {end}."


def about(joined: xr.Dataset, cell: list[int]) -> str:
    """What is known of one head, task by task; empty where it is not there."""
    if not cell or cell[0] not in joined["layer"].values or cell[1] not in joined["head"].values:
        return ""
    at = joined.sel(layer=cell[0], head=cell[1])
    parts = []
    for task in joined["task"].values:
        one = at.sel(task=task)
        d, low, high, lost = (float(one[name]) for name in ("dormancy", "dormancy_low", "dormancy_high", "lost"))
        parts.append(
            f"{WORDS[int(one['state'])]} on {task} (D {d:.2f}, {low:.2f} to {high:.2f}; without it the task loses "
            f"{100 * lost:z.1f} %, limit {100 * float(one['limit']):.1f} %)"
        )
    return f"{head_name(*cell)} is {'; '.join(parts)}."
