"""Routing, specialisation: experts of one task's text, and experts of single words."""

from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.routing_part import ManyTasks
from workbench.app.runner import Runner
from workbench.models.expert_names import expert_name
from workbench.session import Session
from workbench.views import expert_load, specialisation


class SpecialPart(ManyTasks):
    """Domain specialisation by expert, and vocabulary specialisation by layer."""

    part, doing = 3, "Reading the routing of"

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._domains, self._words = FigureSlot(theme, 400), FigureSlot(theme, 420)
        session.param.watch(self._draw_domains, "layer")
        self.param.watch(self._draw_words, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            heading(
                "Experts of a task",
                "Share of each task's tokens that go to each expert of a layer, with 95 % intervals over sequences. "
                "The dotted null is an even router: an expert far above it on one task, and not on another, is that "
                "task's own.",
            ),
            pn.Row(self._layers, self._all),
            self._left_out,
            self._domains,
            heading(
                "Experts of a word",
                "How often the tokens of one word go to that word's commonest first choice, averaged over words that "
                "occur ten times or more. The grey null shuffles words among tokens; dashed are routers of random "
                "weights, which follow words too, for the residuals hold them.",
            ),
            choice(self.param.viewed),
            self._words,
        )

    def _specs(self) -> list[dict]:
        self._left_out.say("")
        return self.reading("routing", length=self._session.length)

    async def _draw(self) -> None:
        self._offer_layers()
        self._headline.say(summary(self._results), "info")
        names = ", ".join("abcdef"[: len(self._results)])
        after = f'tasks = wb.concat({{ds.attrs["task"]: ds for ds in ({names},)}}, dim="task")\n'
        self._code.replace(code(self._drawn, f'{after}wb.show(tasks, "expert_load", layer=0)\nwb.show(a)'))
        self._draw_domains()
        self._draw_words()

    def _draw_domains(self, *_: Any) -> None:
        if self._results:
            self._domains.draw(expert_load(self.joined, layer=self.layer))

    def _draw_words(self, *_: Any) -> None:
        if self._results:
            self._words.draw(specialisation(self.one))


def summary(results: list[xr.Dataset]) -> str:
    """Which experts' loads differ most between tasks, and how far first choices follow words."""
    parts = []
    for ds in results:
        kind = ds.sel(measured="input token")
        at = kind.isel(layer=int(kind["specialisation"].values.argmax()))
        value, null, random = (float(at[f"specialisation{end}"]) for end in ("", "_null_high", "_random_high"))
        parts.append(
            f"a word of {ds.attrs['task']} goes to its own first expert in {value:.0%} of cases in layer "
            f"{int(at['layer'])} (words shuffled {null:.0%}, random routers up to {random:.0%})"
        )
    said = f"In {results[0].attrs['model']}, {'; '.join(parts)}."
    return said if len(results) == 1 else f"{said} {_most_different(results)}"


def _most_different(results: list[xr.Dataset]) -> str:
    """The expert whose loads differ most between tasks."""
    load = np.stack([ds["load"].transpose("layer", "expert").values for ds in results])
    spread = np.ptp(load, axis=0)
    layer, expert = np.unravel_index(spread.argmax(), spread.shape)
    own, names = load[:, layer, expert], [str(ds.attrs["task"]) for ds in results]
    name = expert_name(int(results[0]["layer"][layer]), int(results[0]["expert"][expert]))
    return (
        f"Most different between tasks is {name}: {own.max():.0%} of the tokens of {names[own.argmax()]}, "
        f"{own.min():.0%} of {names[own.argmin()]}."
    )
