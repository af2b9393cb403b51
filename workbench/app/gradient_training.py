"""Gradients, training: how far tasks agree at every checkpoint that is kept with the model."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.gradient_part import GradientPart, pairs, said
from workbench.app.parts import FigureSlot, Theme, heading
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.session import Session
from workbench.views import gradient_training

FINAL = "final"


class GradientTraining(GradientPart):
    """Every two tasks' cosine over training, and what the noise leaves room for."""

    part, doing = 3, "Taking the gradients at every checkpoint of"
    watched = tuple(name for name in GradientPart.watched if name != "checkpoint")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._joined: xr.Dataset | None = None
        self._lines = FigureSlot(theme, 620)
        self._module = pmui.Select(
            label="Parameters", options=["all"], value="all", width=170, size="small", margin=(8, 10, 4, 0)
        )
        self._module.param.watch(self._look, "value")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "When tasks begin to agree, and when they come apart",
                "Above: the cosine of every two tasks' gradients at each checkpoint, with its 95 % interval. Below: "
                "the ceiling of each task, what two independent gradients of it reach. Where a ceiling is near 0, as "
                "it may be once a task is solved, a cosine near 0 says nothing.",
            ),
            self._module,
            self._lines,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        name = self._session.model
        if not checkpoints(name):
            self._lines.wait()
            raise WorkbenchError(
                f"No training checkpoints are kept with '{name}', so there is nothing to follow over training."
            )
        spec = self.comparing("gradient_alignment")
        return [{**spec, "model": {"reference": name if step == FINAL else f"{name}@{step}"}} for step in self._steps]

    @property
    def _steps(self) -> list[str]:
        return [*map(str, checkpoints(self._session.model)), FINAL]

    async def _draw(self) -> None:
        self._joined = await self.compute(_joined, *self._results, steps=self._steps)
        last = self._results[-1]
        self._headline.say(summary(self._results, self._steps), "info")
        options = last["module"].values[[kind in ("whole", "layer", "kind") for kind in last["kind"].values]].tolist()
        self._module.param.update(options=options, value=self._module.value if self._module.value in options else "all")
        self._look()

    def _look(self, *_: Any) -> None:
        if self._joined is not None:
            self._lines.draw(gradient_training(self._joined, module=self._module.value))
            self._code.replace(self._python())

    def _python(self) -> str:
        """Python, in Markdown, that computes what is shown."""
        spec, name = self._drawn[-1], self._session.model
        task = ", ".join(f"{key}={spec['task'][key]!r}" for key in ("corruption", "n", "seed"))
        params = "".join(f", {key}={value!r}" for key, value in spec["params"].items())
        lines = (
            "import workbench as wb",
            "",
            f"task = wb.task({spec['task']['name']!r}, {task})",
            f"steps = {[step for step in self._steps if step != FINAL]}",
            f"models = {{step: f'{name}@{{step}}' for step in steps}} | {{{FINAL!r}: {name!r}}}",
            f"found = {{step: wb.run('gradient_alignment', model, task{params}) for step, model in models.items()}}",
            f"wb.show(wb.concat(found, dim='checkpoint'), 'gradient_training', module={self._module.value!r})",
        )
        return "```python\n" + "\n".join(lines) + "\n```"


def _joined(*results: xr.Dataset, steps: list[str]) -> xr.Dataset:
    return concat(dict(zip(steps, results, strict=True)), dim="checkpoint")


def summary(results: list[xr.Dataset], steps: list[str]) -> str:
    """The first pair on the whole model at the first checkpoint and at the end, with the ceilings of both tasks."""
    one, other = pairs(results[-1])[0]
    parts = []
    for ds, step in ((results[0], f"at step {steps[0]}"), (results[-1], "at the end")):
        whole = ds.sel(module="all")
        ceiling = " and ".join(f"{float(whole['ceiling'].sel(task=name)):z.2f}" for name in (one, other))
        parts.append(f"{step} {said(whole.sel(task=one, receiver=other))}, ceilings {ceiling}")
    return f"Cosine of the gradients of {one} and {other}: {'; '.join(parts)}."
