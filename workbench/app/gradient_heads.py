"""Gradients, heads: where the gradients of the two tasks agree, on the map of their circuits."""

from typing import Any

import numpy as np
import panel as pn
import param
import xarray as xr

from workbench.analyses import overlap
from workbench.app.gradient_part import CHANCE, GradientPart, first, of_kind
from workbench.app.parts import GridSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tasks import make_task
from workbench.views import gradient_heads


class GradientHeads(GradientPart):
    """A head grid of the session's two tasks; its selected head is the session's."""

    part, doing = 2, "Taking the gradients of"
    watched = (*GradientPart.watched, "top")

    marked = param.Selector(objects={"Dot: in the circuits": "circuits", "Dot: inside the noise": "noise"})

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._shared: xr.Dataset | None = None
        self._map = GridSlot(session, "The map appears here.")
        self.param.watch(self._look, "marked")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Do the heads of both circuits serve both tasks?",
                "Cosine of the two tasks' gradients on each head's own slices of the weights: red agrees, blue "
                "conflicts. Dots are the heads of the tasks' circuits, as found on the Circuits page at the size that "
                "the sidebar says, or the heads that lie inside the noise. A click selects a head on all pages.",
            ),
            choice(self.param.marked),
            self._map,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        s = self._session
        if s.task_a == s.task_b:
            raise WorkbenchError("Both tasks are the same; choose two different ones in the sidebar to compare them.")
        return [*super()._specs(), *self.specs("head_patching")]

    @property
    def _titles(self) -> tuple[str, str]:
        s = self._session
        return first(s).title, make_task(s.task_b, n=s.n, seed=s.seed, corruption=s.corruption_b).title

    async def _draw(self) -> None:
        ds, *circuits = self._results
        self._shared = await self.compute(overlap, *circuits, top=self._session.top)
        self._headline.say(summary(ds, self._shared, *self._titles), "info")
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results and self._shared is not None:
            one, other = self._titles
            circuits = self._shared if self.marked == "circuits" else None
            self._map.draw(gradient_heads(self._results[0], task=one, receiver=other, circuits=circuits))
            named = f"task={one!r}, receiver={other!r}"
            after = f'wb.show(a, "gradient_heads", {named})'
            if circuits is not None:
                after = f"circuits = wb.overlap(b, c, top={self._session.top})\n{after[:-1]}, circuits=circuits)"
            self._code.replace(code(self._drawn[: 1 if circuits is None else 3], after))


def summary(ds: xr.Dataset, shared: xr.Dataset, one: str, other: str) -> str:
    """How many heads agree and conflict outside the noise, and the cosine in both circuits beside other heads."""
    heads = of_kind(ds, "head").sel(task=one, receiver=other)
    cosine, clear = heads["cosine"].values, heads["clear"].values > 0
    both = shared["member"].sel(task=[one, other]).all("task").transpose("layer", "head").values.ravel().astype(bool)
    opening = (
        f"{one} and {other} in {ds.attrs['model']}: of {cosine.size} heads {int((clear & (cosine > 0)).sum())} agree "
        f"and {int((clear & (cosine < 0)).sum())} conflict outside the noise (by chance {CHANCE * cosine.size:.1f} "
        "at most). "
    )
    if not both.any():
        return f"{opening}No head is in both circuits."
    means = [np.mean(cosine[which]) if which.any() else np.nan for which in (both, ~both)]
    return (
        f"{opening}The {int(both.sum())} in both circuits have a mean cosine of {means[0]:z.3f}, the other "
        f"{int((~both).sum())} of {means[1]:z.3f}; {int((clear & both).sum())} of those in both circuits lie outside "
        "the noise."
    )
