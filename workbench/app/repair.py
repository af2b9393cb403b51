"""Circuits, repair: edit where chosen heads attend, and see accuracy move beside random heads."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, Note, Slot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import Task
from workbench.views import attention_row, repair_plot


class RepairPart(TracedPage):
    """A row of attention to edit on one prompt; the edit is by name, so that it holds on all prompts."""

    number, part, doing = 0, 5, "Reading attention in"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed", "prompt")

    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=1)
    heads = param.String("", doc="Heads whose last row is edited; empty for the selected one.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._row = Slot("The prompt appears here.")
        self._plot, self._verdict = FigureSlot(theme, 420), Note()
        self._shown: xr.Dataset | None = None  # whose tokens the editor has
        self._run = pmui.Button(label="Edit and measure", variant="contained", size="small", on_click=self._measure)
        self.param.watch(self._again, "viewed")
        self.param.watch(self._look, "heads")
        session.param.watch(self._look, "head")

    def __panel__(self) -> pn.viewable.Viewable:
        heads = pmui.TextInput.from_param(
            self.param.heads, label="Heads, like L0H0,L2H3 (empty: the selected one)", width=380, size="small"
        )
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Prompt", width=220)
        return pn.Column(
            self._headline,
            heading(
                "Edit where heads look, and see the answer move",
                "Click the tokens that the last token should attend to. Named tokens are found in every prompt. The "
                "edit is made in all prompts, proved to have taken effect, and set beside random heads of the same "
                "layers.",
            ),
            pn.Row(choice(self.param.viewed), heads, prompt),
            self._row,
            self._run,
            self._verdict,
            self._plot,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        prompt = min(self._session.prompt, self._session.n - 1)
        return [self.specs("attention", prompt=prompt)[self.viewed]]

    async def _draw(self) -> None:
        self._look()

    @property
    def _edited(self) -> str:
        return self.heads.strip() or self._session.head

    def _look(self, *_: Any) -> None:
        """Draw the editor with the present attention of the heads that would be edited."""
        if not self._results:
            return
        ds = self._results[0]
        with self._runner.reporting(self._headline.say):
            drawing = attention_row(ds, heads=self._edited)
            self._row.draw(drawing, parts=self._carried(ds))
            self._shown = ds
            self._headline.say(str(ds.attrs["text"]), "info")
            self._verdict.say("")
            self._plot.wait()

    def _carried(self, ds: xr.Dataset) -> list[int]:
        """The edit so far on the tokens of another prompt: by name, as the experiment takes it."""
        if self._row.component is None or self._shown is None:
            return []
        parts = self._row.component.param.values()["parts"]
        if ds is self._shown or not parts:
            return parts
        kept = {name: part for name, part in zip(_names(self._shown), parts, strict=True) if name}
        moved = [kept.get(name, 0) for name in _names(ds)]
        return moved if any(moved) else []

    async def _measure(self, *_: Any) -> None:
        if self._row.component is None:
            return
        weights = _named(self._results[0], self._row.component.param.values()["parts"])
        if not self._edited or not weights:
            missing = "Click the tokens to attend to" if self._edited else "Select a head in any map, or type one"
            self._verdict.say(f"{missing}, then measure.", "warning")
            return
        with self._runner.reporting(lambda text: self._verdict.say(text, "error")):
            self._verdict.say("Measuring …", "info")
            task = Task.from_spec(self._drawn[0]["task"])
            params = {"heads": self._edited, "weights": weights}
            spec = specify("repair", self._session.reference, task, params)
            ds = (await self.fetch_all([spec], "repair"))[0]
            self._plot.draw(repair_plot(ds))
            self._verdict.say(*_verdict(ds))
            self._code.replace(code([spec], "wb.show(a)"))


def _names(ds: xr.Dataset) -> list[str]:
    """The task's first name for each token; empty where it has none."""
    return [str(text).split(",")[0] for text in ds["position"].values]


def _named(ds: xr.Dataset, parts: list[int]) -> str:
    """Weights as the analysis takes them: by the task's name for a token where it has one, else by its place."""
    names = _names(ds)
    return ",".join(f"{names[place] or place}={part}" for place, part in enumerate(parts) if part)


def _verdict(ds: xr.Dataset) -> tuple[str, str]:
    """What the edit did, beside its control, and how to show it."""
    before, after = (float(value) for value in ds["accuracy"].values)
    drawn = ds["accuracy_random"].values
    outside, metric, random = ds.attrs["p"] <= 0.05, ds["metric"].values, ds["metric_random"].values
    place = "above" if outside else "below" if after < drawn.min() else "within"
    text = (
        f"Accuracy {before:.3f} unchanged, {after:.3f} with {ds.attrs['edited']} edited, {drawn.min():.3f} to "
        f"{drawn.max():.3f} with {drawn.size} draws of random heads of the same layers (p = {ds.attrs['p']:.3f}): "
        f"{place} the control. {ds.attrs['mended']} prompts turned right, "
        f"{ds.attrs['broken']} turned wrong. Mean {str(ds.attrs['metric_name']).replace('_', ' ')} {metric[0]:.2f} "
        f"unchanged, {metric[1]:.2f} edited, {random.min():.2f} to {random.max():.2f} with random heads."
    )
    return text, "success" if outside else "warning"
