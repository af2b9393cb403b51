"""Routing, training: how early the final choices are made, and how far the use of experts drifts."""

from typing import Any

import panel as pn
import xarray as xr

from workbench.analyses import routing_drift
from workbench.app.parts import FigureSlot, Theme, choice, heading
from workbench.app.routing_part import RoutingPart
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.views import routing_drift as draw_drift

FINAL = "final"


class TrainingPart(RoutingPart):
    """One task's routing at every checkpoint that is kept with the model, against the final weights."""

    part, doing = 4, "Reading the routing at every checkpoint of"
    watched = ("model", "task_a", "task_b", "n", "seed", "length")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._drift = FigureSlot(theme, 760)
        self.param.watch(self._again, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            heading(
                "When the final routing is there",
                "Saturation: of the experts that a token gets at the end, the share it has already; overlap and "
                "divergence compare how much each expert is used. Dotted, in a layer's colour, is chance: the loads "
                "alone, or experts renamed at random. Bars are 95 % intervals over sequences.",
            ),
            choice(self.param.viewed),
            self._drift,
        )

    def _specs(self) -> list[dict]:
        name = self._session.model
        steps = checkpoints(name)
        if not steps:
            self._drift.wait()
            raise WorkbenchError(
                f"No training checkpoints are kept with '{name}', so there is nothing to follow over training."
            )
        specs = self.reading("routing", length=self._session.length)
        spec = specs[min(self.viewed, len(specs) - 1)]
        return [{**spec, "model": {"reference": name if step == FINAL else f"{name}@{step}"}} for step in self._steps]

    @property
    def _steps(self) -> list[str]:
        return [*map(str, checkpoints(self._session.model)), FINAL]

    async def _draw(self) -> None:
        ds = await self.compute(_drift, *self._results, steps=self._steps)
        self._headline.say(summary(ds), "info")
        self._drift.draw(draw_drift(ds))
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
            f"models = {{{FINAL!r}: {name!r}}}",
            f"steps = {[step for step in self._steps if step != FINAL]}",
            f"models = {{step: f'{name}@{{step}}' for step in steps}} | models",
            f"found = {{step: wb.run('routing', model, task{params}) for step, model in models.items()}}",
            "wb.show(wb.routing_drift(found))",
        )
        return "```python\n" + "\n".join(lines) + "\n```"


def _drift(*results: xr.Dataset, steps: list[str]) -> xr.Dataset:
    return routing_drift(dict(zip(steps, results, strict=True)))


def summary(ds: xr.Dataset) -> str:
    """How much of the final routing is there at the first checkpoint, and at the last before the end."""
    first, last = (ds.isel(checkpoint=place) for place in (0, -2))
    parts = []
    for at in (first, last):
        seen, null = at["saturation"], at["saturation_null"]
        parts.append(
            f"at step {at['checkpoint'].item()} a token has {float(seen.min()):.0%} to {float(seen.max()):.0%} of its "
            f"final experts, depending on the layer (the loads alone: {float(null.min()):.0%} to "
            f"{float(null.max()):.0%})"
        )
    return f"{ds.attrs['task']}: {'; '.join(parts)}. Even routers would agree in {float(ds.attrs['uniform']):.0%}."
