"""Circuits, reuse: how far two tasks' circuits overlap, and what ablating one task's circuit does to the other."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.analyses import circuit_sets, overlap
from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, Theme, code, heading
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.session import Session
from workbench.views import ablation_matrix, emergence, overlap_matrix


class ReusePart(TracedPage):
    """Overlap of heads and of edges against chance and ceiling, and the cross-ablation matrix beside them."""

    number, part, doing = 0, 3, "Comparing"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed", "top")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._heads, self._edges, self._cross, self._history = (
            FigureSlot(theme, height) for height in (320, 320, 430, 760)
        )
        self._trace = pmui.Button(
            label="Trace all checkpoints", variant="outlined", size="small", on_click=self._trace_all
        )

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "What ablating one task's heads does to each task",
                "Rows are the heads ablated together: each task's circuit, what both share, what only one has. Share "
                "of the task lost, beside random heads of the same layers: the control without which overlap misleads.",
            ),
            self._cross,
            heading(
                "How far the circuits overlap",
                "Intersection over union, less what chance gives; on the diagonal, what two halves of one task's own "
                "prompts share.",
            ),
            self._heads,
            self._edges,
            heading(
                "When the shared heads appear",
                "The same comparison at every training checkpoint that is kept with the model.",
            ),
            self._trace,
            self._history,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs("head_patching")

    async def _trace_all(self, *_: Any) -> None:
        """Both tasks at every checkpoint, and the figure of what they share at each."""
        steps = checkpoints(self._session.model)
        with self._runner.reporting(self._headline.say):
            if not steps:
                raise WorkbenchError(f"No training checkpoints are kept with '{self._session.model}'.")
            found = {}
            for step in steps:
                specs = self.specs("head_patching")
                for spec in specs:
                    spec["model"]["reference"] = f"{self._session.model}@{step}"
                both = await self.fetch_all(specs, "checkpoints")
                found[step] = await self.compute(overlap, *both, top=self._session.top, draws=500)
            self._history.draw(emergence(concat(found, dim="checkpoint")))

    async def _draw(self) -> None:
        self._history.wait()
        shared = await self.compute(overlap, *self._results, top=self._session.top)
        sets = circuit_sets(shared)
        self._heads.draw(overlap_matrix(shared))
        found = await self.fetch_all(self.specs("ablation", sets=sets), "ablation")
        cross = concat({str(ds.attrs["task"]): ds for ds in found}, dim="measured")
        self._cross.draw(ablation_matrix(cross))
        self._headline.say(summary(cross), "info")
        after = (
            f"shared = wb.overlap(a, b, top={self._session.top})\nsets = wb.circuit_sets(shared)\n"
            "tasks = [wb.Task.from_spec(json.loads(ds.attrs['task_spec'])) for ds in (a, b)]\n"
            "lost = {task.title: wb.run('ablation', model, task, sets=sets) for task in tasks}\n"
            "wb.show(wb.concat(lost, dim='measured'))"
        )
        self._code.replace(code(self._drawn, after).replace("import workbench", "import json\nimport workbench", 1))
        edges = await self.fetch_all(self.specs("edge_attribution"), "edges")
        self._edges.draw(overlap_matrix(await self.compute(overlap, *edges, top=0.05, draws=200)))


def summary(cross: xr.Dataset) -> str:
    """What each task loses without the other's circuit, beside its own and beside chance."""
    lines = []
    for task in cross["measured"].values:
        at = cross.sel(measured=task)
        parts = [
            f"{float(at['lost'].sel(component=name)):z.2f} without the circuit of {name} "
            f"(random heads {float(at['lost_null'].sel(component=name)):z.2f})"
            for name in cross["measured"].values
            if name in at["component"].values
        ]
        lines.append(f"{task} loses {', and '.join(parts)}")
    return f"Share of the task lost: {'; '.join(lines)}. {cross.attrs['meaning'].capitalize()}."
