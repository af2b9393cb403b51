"""Gradients, layers: the matrix of all tasks layer by layer, or for one kind of weight matrix."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.gradient_part import CHANCE, GradientPart, counted, most_opposed, of_kind, said
from workbench.app.parts import FigureSlot, Theme, code, heading
from workbench.app.runner import Runner
from workbench.session import Session
from workbench.views import gradient_layers

WHOLE = "Whole layers"


class GradientLayers(GradientPart):
    """Small matrices, one a layer, on one colour scale."""

    part, doing = 1, "Taking the gradients of"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._layers = FigureSlot(theme, 380)
        self._kind = pmui.Select(
            label="Parameters", options=[WHOLE], value=WHOLE, width=170, size="small", margin=(8, 10, 4, 0)
        )
        self._kind.param.watch(self._look, "value")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Where tasks agree, layer by layer",
                "Each small matrix is that of the first tab on one layer's parameters only, or on one weight matrix "
                "of each layer. All have one colour scale; grey is inside the noise, in brackets the ceiling.",
            ),
            self._kind,
            self._layers,
            self._code,
            sizing_mode="stretch_width",
        )

    async def _draw(self) -> None:
        (ds,) = self._results
        self._headline.say(summary(ds), "info")
        options = [WHOLE, *dict.fromkeys(of_kind(ds, "matrix")["matrix"].values.tolist())]
        self._kind.param.update(options=options, value=self._kind.value if self._kind.value in options else WHOLE)
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results:
            matrix = "" if self._kind.value == WHOLE else self._kind.value
            self._layers.draw(gradient_layers(self._results[0], matrix=matrix))
            self._code.replace(code(self._drawn, f'wb.show(a, "gradient_layers", matrix={matrix!r})'))


def summary(ds: xr.Dataset) -> str:
    """How many pairs agree or conflict in each layer, and where they are most opposed, beside the noise."""
    layers = of_kind(ds, "layer")
    parts, every = [], 0
    for name in layers["module"].values:
        agree, conflict, every = counted(layers.sel(module=[name]))
        parts.append(f"{name} {agree} agree and {conflict} conflict")
    at = most_opposed(layers)
    pair = f"{at['task'].item()} and {at['receiver'].item()}"
    return (
        f"{ds.attrs['model']}, pairs of tasks outside the noise, of {every} in each layer (by chance "
        f"{CHANCE * every:.2f} at most): {'; '.join(parts)}. Most opposed: {at['module'].item()}, {pair}, {said(at)}."
    )
