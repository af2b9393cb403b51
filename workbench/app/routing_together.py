"""Routing, together: which experts are chosen together, and how alike the experts of a layer are."""

from typing import Any

import numpy as np
import panel as pn
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Note, Theme, choice, code, heading
from workbench.app.routing_part import RoutingPart
from workbench.app.runner import Runner
from workbench.models.expert_names import expert_name
from workbench.session import Session
from workbench.views import coactivation, expert_alignment, expert_energy


class TogetherPart(RoutingPart):
    """Co-activation of one layer's experts, the alignment of what they compute, and the rank of their weights."""

    part, doing = 2, "Reading the routing of"

    less = param.Selector(objects={"Less chance": True, "As it is": False}, default=True)
    measure = param.Selector(objects={"What they give (CKA)": "cka", "Their weights (cosine)": "cosine"}, default="cka")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._alike: xr.Dataset | None = None
        self._pairs, self._alignment, self._energy = (FigureSlot(theme, height) for height in (480, 480, 600))
        self._said = Note()
        self.param.watch(self._draw_pairs, "less")
        self.param.watch(self._draw_alike, "measure")
        session.param.watch(self._look, "layer")
        self.param.watch(self._turn, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            pn.Row(choice(self.param.viewed), self._layers, margin=(12, 0, 0, 0)),
            heading(
                "Which experts are chosen together",
                "Of the tokens of the expert in a row, the share that go to the one in the column too. The null is "
                "what their loads alone give: red pairs meet more often than that, blue ones less. Hover for the "
                "interval and whether chance lies in it.",
            ),
            choice(self.param.less),
            self._pairs,
            heading(
                "How alike they are",
                "CKA compares what two experts make of the same tokens: 1 is the same up to rotation and size. Its "
                "nulls, in the title, are shuffled tokens, and experts with shuffled weights. The null of the cosine "
                "is independent random weights.",
            ),
            choice(self.param.measure),
            self._said,
            self._alignment,
            heading(
                "How many directions their weights use",
                "The sooner a line reaches 1, the lower the rank of the expert; the dotted null is a matrix of random "
                "numbers. Less the mean expert: what makes this expert different from the others.",
            ),
            self._energy,
        )

    def _specs(self) -> list[dict]:
        return self.reading("routing", length=self._session.length)

    async def _draw(self) -> None:
        self._offer_layers()
        await self._turn()

    async def _turn(self, *_: Any) -> None:
        """Another task is looked at."""
        if not self._results:
            return
        self._alike = None
        self._look()
        self._said.say("Comparing the experts …", "info")
        with self._runner.reporting(self._said.say):
            spec = self.reading("expert_similarity", length=self._session.length)[self.at]
            (self._alike,) = await self.fetch_all([spec], "similarity")
            self._said.say("")
            after = 'wb.show(a, "coactivation", layer=0)\nwb.show(b, measure="cka")\nwb.show(b, "expert_energy")'
            self._code.replace(code([self._drawn[self.at], spec], after))
            self._draw_alike()

    def _look(self, *_: Any) -> None:
        self._draw_pairs()
        self._draw_alike()

    def _draw_pairs(self, *_: Any) -> None:
        if self._results:
            self._headline.say(summary(self.one, self.layer), "info")
            self._pairs.draw(coactivation(self.one, layer=self.layer, less=self.less))

    def _draw_alike(self, *_: Any) -> None:
        if self._results and self._alike is not None:
            self._alignment.draw(expert_alignment(self._alike, layer=self.layer, measure=self.measure))
            self._energy.draw(expert_energy(self._alike, layer=self.layer))


def summary(ds: xr.Dataset, layer: int) -> str:
    """How many pairs of a layer meet more, or less, often than their loads give, and the one that does most."""
    at = ds.sel(layer=layer)
    seen, null, low, high = (at[f"coactivation{end}"].values for end in ("", "_null", "_low", "_high"))
    off = ~np.eye(len(seen), dtype=bool)
    more, fewer = int((low > null)[off].sum()), int((high < null)[off].sum())
    row, column = np.unravel_index(np.where(off, seen - null, -np.inf).argmax(), seen.shape)
    names = [expert_name(layer, int(expert)) for expert in ds["expert"].values]
    return (
        f"{ds.attrs['task']} in {ds.attrs['model']}, layer {layer}: of {off.sum()} ordered pairs of experts {more} are "
        f"chosen together more often than their loads alone give, {fewer} less often (95 % intervals). Most of all, "
        f"{seen[row, column]:.0%} of the tokens of {names[row]} go to {names[column]} too (by chance "
        f"{null[row, column]:.0%})."
    )
