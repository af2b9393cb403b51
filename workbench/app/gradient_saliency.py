"""Gradients, saliency: which task leans on which token of the residual stream, layer by layer."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.gradient_part import CHANCE, GradientPart
from workbench.app.parts import FigureSlot, Theme, code, heading
from workbench.app.runner import Runner
from workbench.session import Session
from workbench.views import saliency_shares


class SaliencyPart(GradientPart):
    """Shares of the tasks at each token that enters one layer, the session's."""

    part, doing = 4, "Taking the saliency of"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._shares = FigureSlot(theme, 560)
        self._layers = pmui.Select(label="Layer", options=[], width=110, size="small", margin=(8, 10, 4, 0))
        self._layers.param.watch(self._pick, "value")
        session.param.watch(self._look, "layer")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Which task leans on which token?",
                "Saliency is how much a task's loss changes with the residual stream that enters a layer, at each "
                "token counted back from END. Above: every task's share of it. Below: how evenly the tasks share it; "
                "under the grey band they lean on the place more unevenly than tasks whose prompts are shuffled do. "
                "That says that tasks differ there, not why: each has words of its own.",
            ),
            self._layers,
            self._shares,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return [self.comparing("task_saliency")]

    @property
    def layer(self) -> int:
        """The layer looked at: the session's, or the last where the model has no such layer."""
        known = self._results[0]["layer"].values.tolist()
        return self._session.layer if self._session.layer in known else known[-1]

    def _pick(self, event: Any) -> None:
        if event.new is not None and event.new != self.layer:
            self._session.layer = event.new

    async def _draw(self) -> None:
        self._look()

    def _look(self, *_: Any) -> None:
        if self._results:
            (ds,) = self._results
            layers = {str(layer): layer for layer in ds["layer"].values.tolist()}
            self._layers.param.update(options=layers, value=self.layer)
            self._headline.say(summary(ds, self.layer), "info")
            self._shares.draw(saliency_shares(ds, layer=self.layer))
            self._code.replace(code(self._drawn, f"wb.show(a, layer={self.layer})"))


def summary(ds: xr.Dataset, layer: int) -> str:
    """Every task's share at END beside shuffled tasks, and at how many tokens the tasks lean apart."""
    at = ds.sel(layer=layer)
    shares = []
    for task in ds["task"].values:
        ends = ("share", "share_low", "share_high", "share_null_low", "share_null_high")
        value, low, high, least, most = (float(at[name].sel(task=task, pos=0)) for name in ends)
        shares.append(f"{task} {value:.2f} ({low:.2f} to {high:.2f}; shuffled {least:.2f} to {most:.2f})")
    apart, every = int((at["entropy"] < at["entropy_null_low"]).sum()), at.sizes["pos"]
    return (
        f"In {ds.attrs['model']}, of the saliency at END on entering layer {layer}: {', '.join(shares)}. The tasks are "
        f"more uneven than 95 % of shuffles at {apart} of {every} tokens (by chance {CHANCE * every:.1f})."
    )
