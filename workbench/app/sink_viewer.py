"""Sinks, viewer: where every head looks on a prompt or on running text, beside another task or checkpoint."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.app.parts import Slot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import make_task
from workbench.views import attention_pattern

NOTHING, TASK, STEP = "nothing", "task", "step"


class ViewerPart(SinkPart):
    """The attention viewer; its large head and its query are the session's."""

    part, doing = 6, "Reading attention of"
    watched = (*SinkPart.watched, "corruption_a", "corruption_b", "prompt")

    text = param.Selector(objects={"A prompt": "prompt", "Running text": "text"}, default="prompt")
    layer = param.Integer(-1, bounds=(-1, None), doc="Layer that is read; -1 for all.")
    beside = param.Selector(
        objects={"Nothing": NOTHING, "The other task": TASK, "Another checkpoint": STEP}, default=NOTHING
    )
    step = param.String("final", doc="Training step of the checkpoint to compare with.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._view = Slot("The maps appear here.")
        self._drawing = False
        wide = {"size": "small", "width": 170}
        self._steps = pmui.Select(label="Checkpoint", options=["final"], value="final", **wide)
        self._steps.param.watch(lambda event: self.param.update(step=event.new), "value")
        self._layer = pmui.IntInput.from_param(self.param.layer, label="Layer, -1 for all", start=-1, **wide)
        self._offer()
        self._steps.visible = False
        session.param.watch(self._offer, "model")
        session.param.watch(self._pick_head, "head")
        session.param.watch(self._pick_token, "query")
        self.param.watch(self._again, ["text", "layer", "beside", "viewed", "step"])

    def __panel__(self) -> pn.viewable.Viewable:
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Prompt", width=220)
        compare = pmui.Select.from_param(self.param.beside, label="Beside it", width=190, size="small")
        return pn.Column(
            self._headline,
            heading(
                "Where the heads look",
                "A map a head: rows are queries, columns the tokens they attend to. Click a map to make it large, "
                "Escape leads back to all. The sink can be masked, so that the rest of a row is seen.",
            ),
            pn.Row(choice(self.param.viewed), choice(self.param.text), prompt),
            pn.Row(self._layer, compare, self._steps),
            self._view,
            self._code,
            sizing_mode="stretch_width",
        )

    def _offer(self, *_: Any) -> None:
        """The checkpoints of the model."""
        steps = ["final", *map(str, reversed(checkpoints(self._session.model)))]
        self._steps.param.update(options=steps, value=self.step if self.step in steps else "final")

    def _specs(self) -> list[dict]:
        s = self._session
        self._steps.visible = self.beside == STEP
        params = {"layer": self.layer, "scores": True}
        params |= {"length": s.length if self.text == "text" else 0, "prompt": min(s.prompt, s.n - 1)}
        chosen = [(s.task_a, s.corruption_a), (s.task_b, s.corruption_b)]
        tasks = [make_task(name, n=s.n, seed=s.seed, corruption=corruption) for name, corruption in chosen]
        first = specify("attention", s.reference, tasks[self.viewed], params)
        if self.beside == TASK:
            return [first, specify("attention", s.reference, tasks[1 - self.viewed], params)]
        if self.beside == STEP:
            reference = s.model if self.step == "final" else f"{s.model}@{self.step}"
            if reference == s.reference:
                raise WorkbenchError("That is the checkpoint shown already; choose another one to set beside it.")
            return [first, specify("attention", reference, tasks[self.viewed], params)]
        return [first]

    async def _draw(self) -> None:
        ds, *others = self._results
        other = others[0] if others else None
        drawing = attention_pattern(ds, token=self._session.query, other=other, causal=bool(ds.attrs["causal"]))
        fresh = self._view.component is None
        self._drawing = True
        more: dict[str, Any] = {"compare": "a"} if other is None else {}
        if self.beside == STEP:
            more["names"] = [s if s == "final" else f"step {s}" for s in (self._session.checkpoint, self.step)]
        chosen = self._within(drawing.traits["layers"], drawing.traits["heads"])
        view = self._view.draw(drawing, **more, selected=chosen, versus=[])
        if fresh:
            view.param.watch(self._take_head, "selected")
            view.param.watch(self._take_token, "token")
        self._drawing = False
        self._headline.say(f"{ds.attrs['task']}: {str(ds.attrs['text'])[:400]}", "info")
        self._code.replace(code(self._drawn, "wb.show(a)" if other is None else "wb.show(a, other=b)"))

    def _within(self, layers: list[int], heads: list[int]) -> list[int]:
        cell = self._session.selected
        return cell if cell and cell[0] in layers and cell[1] in heads else []

    def _take_head(self, event: Any) -> None:
        if not self._drawing:
            self._session.select(list(event.new))

    def _take_token(self, event: Any) -> None:
        """Remember the query a person has picked; one that came with a drawing is only where its prompt ends."""
        if not self._drawing:
            self._session.query = event.new

    def _pick_head(self, *_: Any) -> None:
        view = self._view.component
        if view is not None:
            shown = view.param.values()
            wanted = self._within(shown["layers"], shown["heads"])
            if shown["selected"] != wanted:
                view.param.update(selected=wanted)

    def _pick_token(self, event: Any) -> None:
        view = self._view.component
        if view is not None:
            shown = view.param.values()
            if 0 <= event.new < len(shown["tokens"]) and shown["token"] != event.new:
                view.param.update(token=event.new)
