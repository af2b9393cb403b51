"""The sidebar: what is traced (model, tasks, sizes), how far the work is, and the model's trust card."""

import contextlib
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.runner import Runner
from workbench.models.card import MARKS, Card
from workbench.models.reference import checkpoints, find, references, run_names, zoo_names
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tasks import TASKS

ABOUT_CARD = "What was checked when the model was loaded; open a line to read what was found."
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)  # prompts a task


class Sidebar(pn.viewable.Viewer):
    """Pickers bound to the session; a task change offers that task's corruptions."""

    def __init__(self, session: Session, runner: Runner, models: list[str]) -> None:
        super().__init__()
        self._session, self._runner, self._models = session, runner, models
        self.on_tune: Callable[[], Awaitable[None]] | None = None
        wide = {"sizing_mode": "stretch_width", "size": "small"}
        p = session.param
        self._model = pmui.Select(label="Model", options=models, value=session.model, **wide)
        self._checkpoint = pmui.Select(label="Training step", options=["final"], value="final", **wide)
        self._pickers = {}
        for letter, title in (("a", "First task"), ("b", "Second task")):
            task = pmui.Select.from_param(p[f"task_{letter}"], options=list(TASKS), label=title, **wide)
            corruption = pmui.Select(label="Corruption", options=[], **wide)
            corruption.param.watch(self._chosen(letter), "value")
            self._pickers[letter] = (task, corruption)
            self._offer(letter)
            session.param.watch(lambda _, letter=letter: self._offer(letter), f"task_{letter}")
        sizes = sorted({*SIZES, session.n})
        self._n = pmui.Select.from_param(p.n, options=sizes, label="Prompts a task", **wide)
        self._top = pmui.FloatSlider.from_param(
            p.top, start=0.01, end=0.5, step=0.005, format="0.0%", label="Circuit size, share of heads", **wide
        )
        self._tune = pmui.Button(
            label="Fine-tune this model on these tasks",
            variant="outlined",
            size="small",
            sizing_mode="stretch_width",
            on_click=self._start_tune,
        )
        self.card = pn.pane.HTML("", sizing_mode="stretch_width")
        self._offer_models()
        self._steps()
        self._model.param.watch(self._change_model, "value")
        self._checkpoint.param.watch(lambda event: session.param.update(checkpoint=event.new), "value")
        session.param.watch(self._offer_models, ["model", "page", "run"])
        session.param.watch(self._follow_checkpoint, "checkpoint")

    def __panel__(self) -> pn.viewable.Viewable:
        (task_a, corruption_a), (task_b, corruption_b) = self._pickers["a"], self._pickers["b"]
        pickers = (self._model, self._checkpoint, task_a, corruption_a, task_b, corruption_b, self._n, self._top)
        return pn.Column(
            *pickers,
            self._tune,
            pmui.Divider(),
            self._runner,
            pmui.Divider(),
            pmui.Typography("Trust card", variant="subtitle2"),
            pmui.Typography(ABOUT_CARD, variant="body2", margin=(0, 10), sx={"opacity": 0.75}),
            self.card,
            sizing_mode="stretch_width",
            styles={"padding": "10px 18px 10px 6px", "box-sizing": "border-box"},
        )

    def show_card(self, title: str, card: Card) -> None:
        """Show the trust card that came with a result."""
        rows = "".join(
            f"<details {'' if check.colour == 'green' else 'open'}><summary>{MARKS[check.colour]} {escape(check.name)}"
            f"</summary>{escape(check.found)} <b>{escape(check.fix)}</b></details>"
            for check in card.checks
        )
        self.card.object = f"<b>{escape(title)}: {card.colour}</b>{rows}"

    def _chosen(self, letter: str):
        return lambda event: event.new and self._session.param.update(**{f"corruption_{letter}": event.new})

    def _offer(self, letter: str) -> None:
        """Offer the corruptions of the task picked, keeping the present one where the task has it."""
        known = list(TASKS[getattr(self._session, f"task_{letter}")].corruptions)
        present = getattr(self._session, f"corruption_{letter}")
        value = present if present in known else known[0]
        self._session.param.update(**{f"corruption_{letter}": value})
        self._pickers[letter][1].param.update(options=known, value=value)

    def _steps(self) -> None:
        steps = ["final", *map(str, reversed(checkpoints(self._session.model)))]
        value = self._session.checkpoint if self._session.checkpoint in steps else "final"
        self._session.checkpoint = value
        self._checkpoint.param.update(options=steps, value=value)

    def _change_model(self, event: Any) -> None:
        if event.new and event.new != self._session.model:
            self._session.param.update(model=event.new, checkpoint="final")
        self._steps()

    def _offer_models(self, *_: Any) -> None:
        """Offer the fine-tunes of this moment too, and show the session's model."""
        self._model.param.update(options=[*self._models, *offered_runs()], value=self._session.model)
        self._steps()

    def _follow_checkpoint(self, event: Any) -> None:
        if event.new != self._checkpoint.value:
            self._steps()

    async def _start_tune(self, *_: Any) -> None:
        if self.on_tune is not None:
            await self.on_tune()


def offered_runs() -> list[str]:
    """The fine-tunes that have a checkpoint, the latest first; where each task has a part of its own, by task too."""
    found = []
    for name in run_names():
        with contextlib.suppress(WorkbenchError, ValueError):  # damaged, which the list of runs says
            found += references(name)
    return found


def offered_models(root: str | None) -> list[str]:
    """The zoo, by task too where each has a part of its own; and each model directly under a folder, if one is named.

    Raises:
        WorkbenchError: when there is no such folder.
    """
    zoo = [reference for name in zoo_names() for reference in references(name)]
    if not root:
        return zoo
    if not Path(root).expanduser().is_dir():
        raise WorkbenchError(f"There is no folder '{root}'; name one whose directories are models.")
    found = []
    for folder in sorted(Path(root).expanduser().resolve().iterdir()):
        try:
            found.append(find(folder).reference)
        except WorkbenchError:
            continue  # not a model, or one that loading would refuse
    return zoo + found
