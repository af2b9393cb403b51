"""Tune, runs: all fine-tunes with where they stand, and the curves of the one selected, live while it learns."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import AnyWidgetComponent

from workbench.app.parts import CodeBox, Note, Slot, heading, plain
from workbench.app.tune_form import python
from workbench.app.tune_watch import Standing, Watch
from workbench.engine import submit_tune, tunes
from workbench.jobs import TuneJob
from workbench.live import READ, READERS, Telemetry
from workbench.models.reference import references
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.session import Session
from workbench.spec import Spec
from workbench.views import Drawing, training_curves

LOOK = 500  # milliseconds between two looks at the runs
PAINT = 1.0  # seconds between two pictures of a run that goes on
EMPTY = "There are no runs yet. Set one up under New run, and start it."
RESUMABLE = ("paused", "stopped", "failed", "not started")


class RunList(AnyWidgetComponent):
    """The list."""

    rows = param.List([], doc="The runs, as `Standing` has them.")
    selected = param.String("", doc="Name of the selected run.")

    _esm = Path(__file__).with_name("tune_list.js")
    _stylesheets: ClassVar = [Path(__file__).with_name("tune_list.css").read_text(encoding="utf-8")]


class RunsPart(pn.viewable.Viewer):
    """The list, the selected run's buttons, and its curves; `again` is told a spec to change and start."""

    def __init__(self, session: Session, again: Callable[[Spec], None], **params: Any) -> None:
        super().__init__(**params)
        self._session, self._again, self._watch = session, again, Watch()
        self._standing: Standing | None = None
        self._drawn: tuple[Any, ...] = ()
        self._painted = 0.0  # when
        self._telemetry: tuple[str, Any] = ("", None)
        self._looking = False
        self._list = RunList(sizing_mode="stretch_width")
        self._empty = Note(EMPTY, "info")
        self._said = Note()
        self._title = pmui.Typography("", variant="h6", margin=(14, 0, 0, 0))
        self._curves = Slot("", kept=READERS)
        self._code = CodeBox()
        self._buttons = {
            label: pmui.Button(label=label, variant=kind, size="small", on_click=act, margin=(6, 8, 6, 0))
            for label, kind, act in (
                ("Pause", "contained", self._pause),
                ("Resume", "contained", self._resume),
                ("Stop run", "outlined", self._stop),
                ("Duplicate with changes", "outlined", self._duplicate),
                ("Trace again", "outlined", self._trace),
            )
        }
        self._detail = pn.Column(
            self._title,
            pn.FlexBox(*self._buttons.values(), sizing_mode="stretch_width"),
            self._said,
            self._curves,
            self._code,
            sizing_mode="stretch_width",
            visible=False,
        )
        self._list.param.watch(self._pick, "selected")
        session.param.watch(self._follow, "run")

    def __panel__(self) -> pn.viewable.Viewable:
        about = "Runs go on when this page is closed, and are still here when the server is started again."
        return pn.Column(heading("Runs", about), self._empty, self._list, self._detail, sizing_mode="stretch_width")

    async def look(self) -> None:
        """See where all runs stand, and draw what is new."""
        if self._looking:
            return
        self._looking = True
        try:
            found = await asyncio.to_thread(lambda: self._watch.standings(tunes()))
            self._list.rows = [asdict(standing) for standing in found]
            self._empty.say("" if found else EMPTY, "info")
            names = [standing.name for standing in found]
            if found and self._session.run not in names:
                self._session.run = names[0]
            if self._list.selected != self._session.run:
                self._list.selected = self._session.run
            chosen = next((standing for standing in found if standing.name == self._session.run), None)
            await self._show(chosen)
        except Exception as error:
            self._said.say(f"Unexpected {type(error).__name__}: {error} (the server's log has the details).")
            raise
        finally:
            self._looking = False

    async def _show(self, standing: Standing | None) -> None:
        """The buttons, the state and the curves of the selected run."""
        before, self._standing = self._standing, standing
        self._detail.visible = standing is not None
        if standing is None:
            return
        if before is None or (before.name, before.state) != (standing.name, standing.state):
            self._offer(standing)
        if before is None or before.name != standing.name:
            self._title.object = plain(f"{standing.name}: {standing.about}")
            self._curves.wait("Drawing …")
            self._drawn = ()
            await self._describe(standing.name)
        self._said.say(standing.error, "error" if standing.state in ("failed", "damaged") else "info")
        await self._draw(standing)

    async def _describe(self, name: str) -> None:
        try:
            self._code.replace(python(await asyncio.to_thread(lambda: Run(name).spec)))
        except WorkbenchError as error:
            self._code.replace(plain(error))

    def _offer(self, standing: Standing) -> None:
        """Only what can be done with the run."""
        traced = bool(Run(standing.name).checkpoints)
        whole = standing.state != "damaged"
        shown = {
            "Pause": standing.going,
            "Resume": standing.state in RESUMABLE,
            "Stop run": standing.going or standing.state == "paused",
            "Duplicate with changes": whole,
            "Trace again": traced and whole,
        }
        for label, visible in shown.items():
            self._buttons[label].visible = visible
            self._buttons[label].disabled = standing.state == "pausing" and label in ("Pause", "Stop run")
        self._session.param.trigger("run")

    async def _draw(self, standing: Standing) -> None:
        """The curves, when there are more lines in the log than are drawn."""
        records = self._watch.records(standing.name, tunes())
        version = (standing.name, len(records), records[-1]["step"] if records else -1)
        soon = time.monotonic() - self._painted < PAINT and version[:1] == self._drawn[:1] and standing.going
        if version == self._drawn or soon:
            return
        try:
            drawing = await asyncio.to_thread(self._drawing, standing.name, records)
        except WorkbenchError:
            what = {"waiting": "Waiting for a worker …", "starting": "Loading the model …"}
            self._curves.wait(what.get(standing.state, "No step yet."))
            return
        if standing.name == self._session.run:
            self._drawn, self._painted = version if self._telemetry[1].whole else (), time.monotonic()
            self._curves.draw(drawing)

    def _drawing(self, name: str, records: list[dict[str, Any]]) -> Drawing:
        run = Run(name)
        if self._telemetry[0] != name:
            self._telemetry = name, Telemetry(run)
        measured = self._telemetry[1].read(records, READ)
        return training_curves(run.curves(records), telemetry=measured)

    def _pick(self, event: Any) -> None:
        if event.new and event.new != self._session.run:
            self._session.run = event.new

    async def _follow(self, event: Any) -> None:
        if self._standing is None or event.new != self._standing.name:
            await self.look()

    def _job(self) -> TuneJob | None:
        return tunes().get(self._session.run)

    async def _pause(self, *_: Any) -> None:
        if (job := self._job()) is not None:
            await asyncio.to_thread(job.pause)
        await self.look()

    async def _stop(self, *_: Any) -> None:
        job, run = self._job(), Run(self._session.run)
        if job is not None and not job.done:
            await asyncio.to_thread(job.cancel)
        elif run.status["state"] == "paused":
            status = run.status
            run.mark("stopped", status["done"], status.get("of", 0))
        await self.look()

    async def _resume(self, *_: Any) -> None:
        try:
            await asyncio.to_thread(lambda: submit_tune(Run(self._session.run).spec))
        except WorkbenchError as error:
            self._said.say(str(error))
            return
        await self.look()

    async def _duplicate(self, *_: Any) -> None:
        self._again(await asyncio.to_thread(lambda: Run(self._session.run).spec))

    async def _trace(self, *_: Any) -> None:
        """Look at the tuned model's circuits, on the held-out prompts of the tasks it learned."""
        run = Run(self._session.run)
        self._session.param.update(**traced(await asyncio.to_thread(lambda: run.spec), run))


def traced(spec: Spec, run: Run) -> dict[str, Any]:
    """What the session is to look at so that a run's model is traced on the prompts that were held out."""
    model = references(run.reference)[0]
    found: dict[str, Any] = {"model": model, "checkpoint": "final", "seed": spec.seed, "page": 0, "part": 0}
    if 8 <= spec.held <= 1024:
        found["n"] = spec.held
    tasks = [entry for entry in spec.tasks if "rows" not in entry]
    for letter, entry in zip("ab", tasks, strict=False):
        found |= {f"task_{letter}": entry["name"], f"corruption_{letter}": entry["corruption"]}
    return found
