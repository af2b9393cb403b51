"""Sinks, causal test: sinks masked, removed or rescaled, beside the same done to ordinary tokens."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.session import Session
from workbench.views import sink_before_after, sink_effects


class CausalPart(SinkPart):
    """What the loss of one task does when its sinks are taken away."""

    part, doing = 2, "Intervening on the sinks of"

    what = param.Selector(
        objects={"Mask their keys": "mask", "Remove what makes them": "remove", "Rescale it": "rescale"}, default="mask"
    )
    amount = param.Number(0.5, bounds=(0, 4), doc="Factor of the norm when it is rescaled.")
    own = param.String("", doc="Further tokens, by position or text.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._effects, self._after = FigureSlot(theme, 360), FigureSlot(theme, 380)
        self._amount = pmui.FloatSlider.from_param(
            self.param.amount, label="Times its norm", step=0.1, width=220, visible=False, value_throttled=True
        )
        self.param.watch(self._again, ["what", "own", "viewed"])
        self._amount.param.watch(self._again, "value_throttled")

    def __panel__(self) -> pn.viewable.Viewable:
        own = pmui.TextInput.from_param(self.param.own, label="Further tokens, like 5 , the", width=240, size="small")
        return pn.Column(
            self._headline,
            heading(
                "Do the sinks matter?",
                "Mask: no other token may attend to the sink. Remove or rescale: the MLP output that makes the sink is "
                "replaced by an ordinary token's, or given another length. A sink is load-bearing when this raises the "
                "loss by more than the same does to random ordinary tokens, and idle otherwise. Tokens that you name, "
                "by position or by text, are tested beside the sinks.",
            ),
            pn.Row(choice(self.param.viewed), choice(self.param.what)),
            pn.Row(own, self._amount),
            self._effects,
            self._after,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        self._amount.visible = self.what == "rescale"
        params = {"what": self.what, "own": self.own.strip(), "length": self._session.length}
        params |= {"amount": round(self.amount, 2)} if self.what == "rescale" else {}
        specs = self.reading("sink_ablation", **params)
        return [specs[min(self.viewed, len(specs) - 1)]]

    async def _draw(self) -> None:
        ds = self._results[0]
        self._headline.say(*verdict(ds))
        self._effects.draw(sink_effects(ds))
        self._after.draw(sink_before_after(ds))
        self._code.replace(code(self._drawn, 'wb.show(a)\nwb.show(a, "sink_before_after")'))


def verdict(ds: xr.Dataset) -> tuple[str, str]:
    """What was lost without each kind of sink, beside its controls, and how to show it."""
    parts = []
    for kind in ds["component"].values:
        at = ds.sel(component=kind)
        change, low, high, null_low, null_high = (
            float(at[f"loss_change{end}"]) for end in ("", "_low", "_high", "_null_low", "_null_high")
        )
        name = "The tokens named are" if kind == "own" else f"The {kind} sink is"
        parts.append(
            f"{name} {at['verdict'].item()}: {change:+.3f} nats ({low:+.3f} to {high:+.3f}), random ordinary tokens "
            f"{null_low:+.3f} to {null_high:+.3f} (p = {float(at['p']):.2g})."
        )
    if "secondary" not in ds["component"].values:
        parts.append("There is no secondary sink here to intervene on.")
    return f"{ds.attrs['task']} in {ds.attrs['model']}: {' '.join(parts)}", "info"
