"""The Sinks page: which heads park their attention, on which tokens, and the norms that go with it."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, GridSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.engine import specify
from workbench.models.heads import head_name
from workbench.schema import concat
from workbench.session import Session
from workbench.tasks import make_task
from workbench.views import sink_heads, sink_map, sink_rate


class SinksPage(TracedPage):
    """Head maps of alpha for both tasks, the sink rate by position, and one sequence token by token."""

    number, doing = 1, "Measuring"
    watched = ("model", "checkpoint", "task_a", "task_b", "n", "seed")

    variable = param.Selector(
        objects={"Attention received": "alpha", "Sink rate": "sink_rate", "Value norm": "value_norm"}, default="alpha"
    )
    key = param.Integer(0, bounds=(0, 63))
    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=0)

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._heads = GridSlot(session, "The maps appear here as soon as both tasks are measured.")
        self._rate = FigureSlot(theme, 390)
        self._map = FigureSlot(theme, 350)
        session.param.watch(self._draw_map, "prompt")
        self.param.watch(self._draw_heads, ["variable", "key"])
        self.param.watch(self._draw_map, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        variable, viewed = choice(self.param.variable), choice(self.param.viewed)
        key = pmui.IntSlider.from_param(self.param.key, label="Key position", width=260)
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Sequence", width=260)
        return pn.Column(
            self._headline,
            heading(
                "Which heads park their attention",
                "Alpha is the mean attention that a key position receives from all later tokens; position 0 is the "
                "first token. A dot marks heads with alpha above epsilon = 0.3.",
            ),
            pn.Row(variable, key),
            self._heads,
            heading(
                "Where sinks form",
                "Share of heads and sequences in which a position is a sink, that is, has alpha above epsilon.",
            ),
            self._rate,
            heading(
                "One sequence, token by token",
                "Alpha of each token: mean attention from all later tokens, in the strongest head of each layer.",
            ),
            pn.Row(viewed, prompt),
            self._map,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        s = self._session
        names = list(dict.fromkeys((s.task_a, s.task_b)))
        return [specify("sink_scores", s.reference, make_task(name, n=s.n, seed=s.seed), {}) for name in names]

    async def _draw(self) -> None:
        self._headline.say(summary(self._results), "info")
        self._draw_heads()
        self._rate.draw(sink_rate(self._joined()))
        self._draw_map()
        after = 'wb.show(a)                # heads\nwb.show(a, "sink_map")    # tokens'
        self._code.replace(code(self._drawn, after))

    def _joined(self) -> xr.Dataset:
        return concat({ds.attrs["task"]: ds for ds in self._results}, dim="task")

    def _draw_heads(self, *_: Any) -> None:
        if self._results:
            with self._runner.reporting():
                self._heads.draw(sink_heads(self._joined(), key=self.key, variable=self.variable))

    def _draw_map(self, *_: Any) -> None:
        if self._results:
            ds = self._results[min(self.viewed, len(self._results) - 1)]
            self._map.draw(sink_map(ds, prompt=min(self._session.prompt, ds.sizes["prompt"] - 1)))


def summary(results: list[xr.Dataset]) -> str:
    """One sentence on how many heads have a sink at the first token, task by task."""
    parts = []
    for ds in results:
        alpha = ds["alpha"].sel(key_pos=0)
        over = int((alpha > ds.attrs["epsilon"]).sum())
        best = alpha.argmax(["layer", "head"])
        name = head_name(int(best["layer"]), int(best["head"]))
        parts.append(f"{over} of {alpha.size} heads on {ds.attrs['task']} (most: {name}, {float(alpha.max()):.2f})")
    first, uniform = results[0].attrs, float(results[0]["alpha_null"][0])
    token = "BOS" if first.get("bos") else "the first token"
    return (
        f"In {first['model']}, {token} gets more than ε = {first['epsilon']} of the attention in "
        f"{' and '.join(parts)}. T = {first['length']} tokens, {first['n']} sequences; uniform attention would give "
        f"{uniform:.2f}."
    )
