"""Sinks, scores: which heads park their attention, where, on what kind of token, and since when."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, GridSlot, Note, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.models.heads import head_name
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.session import Session
from workbench.views import first_tokens, sink_emergence, sink_heads, sink_kinds, sink_map, sink_norms, sink_rate

SHORT = 16  # tokens of the texts that are averaged
QUANTITIES = {
    "Attention received": "alpha",
    "Sink rate": "sink_rate",
    "Value norm": "value_norm",
    "Key norm": "key_norm",
    "Query-key cosine": "query_key_cosine",
    "Output norm": "output_norm",
}


class ScoresPart(SinkPart):
    """Head maps of both tasks and the sink rate; of one task kinds, norms, one sequence, the first tokens, training."""

    part, doing = 0, "Measuring"

    variable = param.Selector(objects=QUANTITIES, default="alpha")
    key = param.Integer(0, bounds=(0, 63))
    along = param.Selector(objects={"By position": "position", "By layer": "layer"}, default="position")
    grouped = param.Selector(objects={"Every head": "kind", "By layer": "layer"}, default="kind")
    softmax = param.Selector(objects={"Before the softmax": "score", "After it": "pattern"}, default="score")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._heads = GridSlot(session, "The maps appear here as soon as both tasks are measured.")
        self._rate, self._kinds, self._norms, self._map, self._first, self._history = (
            FigureSlot(theme, 390) for _ in range(6)
        )
        self._averages: list[xr.Dataset] = []
        self._said = Note()
        self._trace = pmui.Button(
            label="Measure all checkpoints", variant="outlined", size="small", on_click=self._trace_all
        )
        session.param.watch(self._draw_map, "prompt")
        session.param.watch(self._draw_first, "head")
        self.param.watch(self._draw_heads, ["variable", "key"])
        self.param.watch(self._draw_rate, ["along", "key"])
        self.param.watch(self._draw_kinds, ["grouped", "viewed"])
        self.param.watch(self._draw_norms, ["key", "viewed"])
        self.param.watch(self._draw_map, "viewed")
        self.param.watch(self._draw_first, ["softmax", "viewed"])
        self.param.watch(self._forget_history, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        parts = (self._headline, *self._of_both(), *self._of_one(), *self._over_training(), self._code)
        return pn.Column(*parts, sizing_mode="stretch_width")

    def _of_both(self) -> list[Any]:
        variable = pmui.Select.from_param(self.param.variable, label="Shown", width=190, size="small")
        key = pmui.IntSlider.from_param(self.param.key, label="Key position", width=260)
        return [
            heading(
                "Which heads park their attention",
                "Alpha is the mean attention that a key position receives from itself and all later tokens; position "
                "0 is the first token. A dot marks heads with alpha above ε = 0.3. Click a head to select it "
                "everywhere.",
            ),
            pn.Row(variable, key),
            self._heads,
            heading(
                "Where sinks form",
                "Share of heads and sequences in which a position is a sink, that is, has alpha above ε. As a check "
                "the title says what random tokens, and one token repeated, give at the first position.",
            ),
            choice(self.param.along),
            self._rate,
        ]

    def _of_one(self) -> list[Any]:
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Sequence", width=260)
        return [
            heading("One task closely", "What follows is of this task."),
            choice(self.param.viewed),
            heading(
                "On which kinds of tokens",
                "Alpha of BOS, delimiters, white space, digits and content words, beside what uniform attention would "
                "give to tokens in those places.",
            ),
            choice(self.param.grouped),
            self._kinds,
            heading(
                "What goes with a sink",
                "A token that only takes up attention tends to have a large residual but a small value (value drain), "
                "and a key that all queries point to. The position is the one chosen above.",
            ),
            self._norms,
            heading("One sequence, token by token", "Alpha of each token in the strongest head of each layer."),
            prompt,
            self._map,
            heading(
                "The first tokens, averaged over many texts",
                "A stripe down the left side is a sink on the first token. The heads shown look at it most in their "
                "layer; the selected head stands first.",
            ),
            choice(self.param.softmax),
            self._first,
        ]

    def _over_training(self) -> list[Any]:
        about = "The same measurement at every training checkpoint that is kept with the model."
        return [heading("When heads come to rest on the first token", about), self._trace, self._said, self._history]

    def _specs(self) -> list[dict]:
        return self.reading("sink_scores", length=self._session.length)

    async def _draw(self) -> None:
        self._averages = []
        self._history.wait()
        self._first.wait("Averaging …")
        self._headline.say(summary(self._results), "info")
        last = self._results[0].sizes["key_pos"] - 1
        self.param.key.bounds = (0, last)
        self.key = min(self.key, last)
        for draw in (self._draw_heads, self._draw_rate, self._draw_kinds, self._draw_norms, self._draw_map):
            draw()
        after = (
            'wb.show(a)                          # heads\nwb.show(a, "sink_rate", by="layer")\n'
            'wb.show(a, "sink_kinds")\nwb.show(a, "sink_norms")\nwb.show(a, "sink_map")\n'
            f'first = wb.run("mean_attention", model, {_task(self._drawn[0])}, length={SHORT})\nwb.show(first)'
        )
        self._code.replace(code(self._drawn, after))
        specs = self.reading("mean_attention", length=min(SHORT, self._session.length))
        self._averages = await self.fetch_all(specs, "averages")
        self._draw_first()

    def _joined(self) -> xr.Dataset:
        """Both tasks; kinds of tokens are left out, as one may have some that the other lacks."""
        return concat({ds.attrs["task"]: ds.drop_dims("component") for ds in self._results}, dim="task")

    def _draw_heads(self, *_: Any) -> None:
        if self._results:
            with self._runner.reporting():
                self._heads.draw(sink_heads(self._joined(), key=self.key, variable=self.variable))

    def _draw_rate(self, *_: Any) -> None:
        if self._results:
            self._rate.draw(sink_rate(self._joined(), by=self.along, key=self.key))

    def _draw_kinds(self, *_: Any) -> None:
        if self._results:
            self._kinds.draw(sink_kinds(self.one, by=self.grouped))

    def _draw_norms(self, *_: Any) -> None:
        if self._results:
            self._norms.draw(sink_norms(self.one, key=self.key))

    def _draw_map(self, *_: Any) -> None:
        if self._results:
            self._map.draw(sink_map(self.one, prompt=min(self._session.prompt, self.one.sizes["prompt"] - 1)))

    def _draw_first(self, *_: Any) -> None:
        if self._averages:
            ds, chosen = self._averages[self.at], self._session.selected
            known = chosen and chosen[0] in ds["layer"].values and chosen[1] in ds["head"].values
            heads = head_name(*chosen) if known else ""
            self._first.draw(first_tokens(ds, heads=heads, variable=self.softmax, more=True))

    def _forget_history(self, *_: Any) -> None:
        self._history.wait()
        self._said.say("")

    async def _trace_all(self, *_: Any) -> None:
        """The task that is looked at, at every checkpoint."""
        if not self._results:
            return
        self._said.say("")
        with self._runner.reporting(self._said.say):
            steps = checkpoints(self._session.model)
            if not steps:
                raise WorkbenchError(f"No training checkpoints are kept with '{self._session.model}'.")
            self._said.say(f"Measuring {len(steps)} checkpoints …", "info")
            spec = self._specs()[self.at]
            specs = [{**spec, "model": {"reference": f"{self._session.model}@{step}"}} for step in steps]
            found = await self.fetch_all(specs, "checkpoints")
            joined = concat(dict(zip(map(str, steps), found, strict=True)), dim="checkpoint")
            self._history.draw(sink_emergence(joined))
            self._said.say("")


def _task(spec: dict) -> str:
    """The task of a spec as Python makes it."""
    task = spec["task"]
    return f"wb.task({task['name']!r}, n={task['n']}, seed={task['seed']})"


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
