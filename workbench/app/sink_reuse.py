"""Sinks, reuse: what two tasks share once heads that merely rest on the sink are told apart."""

from typing import Any

import numpy as np
import panel as pn
import param
import xarray as xr

from workbench.analyses import overlap
from workbench.app.parts import FigureSlot, GridSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.models.heads import head_name
from workbench.session import Session
from workbench.views import head_map, overlap_curve, parked_heads

PLAIN, BEYOND = "head_patching", "sink_aware_patching"


class SinkReusePart(SinkPart):
    """The overlap of both tasks by plain patching and beyond the sink, and the heads whose effect is the sink alone."""

    part, doing = 5, "Patching beyond the sink in"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed", "top")

    shown = param.Selector(objects={"Beyond the sink": BEYOND, "Plain patching": PLAIN}, default=BEYOND)

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._overlaps: dict[str, xr.Dataset] = {}
        self._maps = GridSlot(session, "The maps appear here as soon as both tasks are patched.")
        self._curve, self._parked = FigureSlot(theme, 430), FigureSlot(theme, 480)
        self.param.watch(self._compare, "shown")
        self.param.watch(self._look, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "What is shared beyond the sink",
                "Patching a head puts back what it says, but also how much of its attention rests on the sink. Two "
                "tasks may seem to share a head that only leaves, or goes to, its place of rest. Here the second part "
                "is taken out. Click a head to select it everywhere.",
            ),
            choice(self.param.shown),
            self._maps,
            self._curve,
            heading(
                "Parked heads",
                "Each head's plain effect against what is left beyond the sink. On the diagonal the sink plays no "
                "part; a head on the line at height 0 does nothing but rest there, or leave.",
            ),
            choice(self.param.viewed),
            self._parked,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs(BEYOND)

    async def _draw(self) -> None:
        top = self._session.top
        plain = await self.fetch_all(self.specs(PLAIN), "plain")
        self._overlaps = {
            name: await self.compute(overlap, *results, top=top)
            for name, results in ((BEYOND, self._results), (PLAIN, plain))
        }
        self._headline.say(summary(self._overlaps, self._results), "info")
        self._code.replace(code(self._drawn, f"wb.show(wb.overlap(a, b, top={top}))\nwb.show(a, 'parked_heads')"))
        self._compare()
        self._look()

    def _compare(self, *_: Any) -> None:
        if self._overlaps:
            self._maps.draw(head_map(self._overlaps[self.shown]))
            self._curve.draw(overlap_curve(self._overlaps[self.shown]))

    def _look(self, *_: Any) -> None:
        if self._results:
            self._parked.draw(parked_heads(self.one))


def _names(ds: xr.Dataset, mask: np.ndarray) -> str:
    """Heads of a mask [layer, head] in words."""
    layers, heads = ds["layer"].values, ds["head"].values
    cells = np.argwhere(mask).tolist()
    return ", ".join(head_name(int(layers[row]), int(heads[column])) for row, column in cells) or "none"


def summary(overlaps: dict[str, xr.Dataset], results: list[xr.Dataset]) -> str:
    """What is shared by both ways of counting, and which heads are parked."""
    said = {}
    for name, ds in overlaps.items():
        at = ds.sel(size=ds.attrs["chosen"])
        null = max(float(at["iou_null_high"]), float(at["iou_within_high"]))
        mask = ds["shared"].transpose("layer", "head").values > 0
        said[name] = f"{_names(ds, mask)} (IoU {float(at['iou']):.2f}, chance at most {null:.2f})"
    parked = [
        f"{_names(ds, ds['parked'].transpose('layer', 'head').values > 0)} on {ds.attrs['task']}" for ds in results
    ]
    chosen = overlaps[PLAIN].attrs["chosen"]
    return (
        f"Of the {chosen} strongest heads of each task both share, by plain patching, {said[PLAIN]}; beyond the sink, "
        f"{said[BEYOND]}. Parked heads: {'; '.join(parked)}."
    )
