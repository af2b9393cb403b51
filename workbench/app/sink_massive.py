"""Sinks, massive: activations that dwarf all others, and what the model loses without them."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.session import Session
from workbench.views import massive_map

RULES = {
    "As in the paper: over 100, and 1,000 x the median": (1000.0, 100.0),
    "1,000 x the median": (1000.0, 0.0),
    "100 x the median": (100.0, 0.0),
    "20 x the median": (20.0, 0.0),
    "10 x the median": (10.0, 0.0),
}


class MassivePart(SinkPart):
    """The largest activations of every layer, and the loss when massive ones are overwritten."""

    part, doing = 3, "Looking for massive activations in"

    rule = param.Selector(objects=RULES, default=(1000.0, 100.0), doc="From where on an activation is massive.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._map = FigureSlot(theme, 470)
        self.param.watch(self._again, "rule")
        self.param.watch(self._look, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        rule = pmui.Select.from_param(self.param.rule, label="Massive is an activation", width=420, size="small")
        return pn.Column(
            self._headline,
            heading(
                "Activations that dwarf all others",
                "In large models a few entries of the residual stream, always the same dimensions of the same tokens, "
                "are thousands of times the median, and act as a constant that the sink rests on. The paper's "
                "thresholds are made for large models; small ones are narrow, so try a smaller ratio, and read it for "
                "what it is.",
            ),
            pn.Row(choice(self.param.viewed), rule),
            self._map,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        ratio, threshold = self.rule
        given = {"ratio": ratio, "threshold": threshold, "length": self._session.length}
        return self.reading("massive_activations", **given)

    async def _draw(self) -> None:
        self._code.replace(code(self._drawn, "wb.show(a)"))
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results:
            self._headline.say(summary(self._results), "info")
            self._map.draw(massive_map(self.one))


def summary(results: list[xr.Dataset]) -> str:
    """Whether there are massive activations, task by task."""
    parts = []
    for ds in results:
        share = ds["massive_share"].values
        largest = float((ds["magnitude"].isel(measured=0) / ds["median"]).max())
        if share.max() > 0:
            layer = int(ds["layer"].values[share.argmax()])
            said = f"massive activations in {100 * share.max():.0f} % of sequences, most in layer {layer},"
        else:
            said = "no massive activation"
        parts.append(f"{said} on {ds.attrs['task']} (the largest is {largest:,.0f} times the median)")
    first = results[0].attrs
    return f"{first['model']} has {' and '.join(parts)}. Massive is {first['rule']}."
