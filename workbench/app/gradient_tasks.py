"""Gradients, tasks: how far every two tasks pull the whole model the same way, and in which weight matrices."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.gradient_part import GradientPart, counted, most_opposed, pairs, said
from workbench.app.parts import FigureSlot, Slot, Theme, code, heading
from workbench.app.runner import Runner
from workbench.session import Session
from workbench.views import gradient_matrix, gradient_parts


class GradientTasks(GradientPart):
    """The matrix of all tasks on the whole model, and one pair on every weight matrix."""

    part, doing = 0, "Taking the gradients of"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._matrix, self._parts = Slot("The matrix appears here."), FigureSlot(theme, 380)
        self._pair = pmui.Select(label="Tasks", options=[], width=420, size="small", margin=(8, 10, 4, 0))
        self._pair.param.watch(self._look, "value")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Do tasks pull the weights the same way?",
                "Cosine of two tasks' gradients over all parameters: 1 = a step for one is a step for the other, "
                "negative = it undoes the other. Coloured cells lie outside the noise of the batches and beyond "
                "unrelated gradients; on the diagonal, in brackets, the ceiling: what two independent gradients of "
                "one task reach. Hover a cell for its interval; a click shows its two tasks below.",
            ),
            self._matrix,
            heading(
                "Where in the model?",
                "The same cosine of two tasks on every weight matrix of every layer. Hover a cell for its interval "
                "and for the value that is left once the noise of both gradients is taken out.",
            ),
            self._pair,
            self._parts,
            self._code,
            sizing_mode="stretch_width",
        )

    async def _draw(self) -> None:
        (ds,) = self._results
        self._headline.say(summary(ds), "info")
        self._offer(ds)
        fresh = self._matrix.component is None
        component = self._matrix.draw(gradient_matrix(ds))
        if fresh:
            component.param.watch(self._take, "selected")
        self._look()

    def _offer(self, ds: xr.Dataset) -> None:
        """The pairs there are; the one that was chosen stays if it is among them."""
        options = {f"{one} and {other}": f"{one}\n{other}" for one, other in pairs(ds)}
        value = self._pair.value if self._pair.value in options.values() else next(iter(options.values()))
        self._pair.param.update(options=options, value=value)

    def _take(self, event: Any) -> None:
        """Choose the pair whose cell was selected; as one is always shown, a cleared outline comes back."""
        if event.new:
            names = self._results[0]["task"].values
            self._pair.value = "\n".join(str(names[place]) for place in sorted(event.new))
        self._outline()

    def _outline(self) -> None:
        """Select the cell of the chosen pair, unless it is selected on the other side of the diagonal."""
        if self._matrix.component is not None:
            names = self._results[0]["task"].values.tolist()
            places = [names.index(name) for name in self._pair.value.split("\n")]
            if sorted(self._matrix.component.param.values()["selected"]) != places:
                self._matrix.component.param.update(selected=places)

    def _look(self, *_: Any) -> None:
        if self._results and self._pair.value:
            self._outline()
            one, other = self._pair.value.split("\n")
            self._parts.draw(gradient_parts(self._results[0], task=one, receiver=other))
            after = f'wb.show(a, "gradient_matrix")\nwb.show(a, "gradient_parts", task={one!r}, receiver={other!r})'
            self._code.replace(code(self._drawn, after))


def summary(ds: xr.Dataset) -> str:
    """The most opposed pair on the whole model beside its noise, and what each task's own gradient reaches."""
    whole = ds.sel(module=["all"])
    at = most_opposed(whole)
    agree, conflict, every = counted(whole)
    one, other = str(at["task"].item()), str(at["receiver"].item())
    ceilings = ", ".join(
        f"{name} {float(ds['ceiling'].sel(module='all', task=name)):z.2f}" for name in ds["task"].values
    )
    opening = f"In {ds.attrs['model']}, the gradients of {one} and {other} have a cosine of {said(at)}"
    verdict = "outside the noise" if int(at["clear"]) else "inside the noise"
    of = f" Of {every} pairs of tasks, {agree} agree and {conflict} conflict outside the noise." if every > 1 else ""
    pair = ", the most opposed pair" if every > 1 else ""
    return (
        f"{opening}{pair}: {verdict}.{of} Ceiling, what two independent gradients of one task reach: {ceilings} "
        f"(n = {ds.attrs['n']} in {ds.attrs['batches']} batches)."
    )
