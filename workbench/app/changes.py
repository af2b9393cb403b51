"""Changes: what a fine-tune, or further training, did between two checkpoints of one model, beside its noise."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import plotly.graph_objects as go
import xarray as xr

from workbench.analyses import compare
from workbench.app.parts import CodeBox, FigureSlot, Note, Theme, choice, heading
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints, run_names, zoo_names
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.runs import Run
from workbench.session import Session
from workbench.tasks import make_task
from workbench.views import before_after, change_list, circuit_changes, flip_table

PLACE = "ChangesPart"
BATCHES = 4  # of gradients
APART = 1_000_003  # added to the seed of the prompts of a retest
NOTHING = "No run, and no zoo model, has two checkpoints yet; start a fine-tune first."


@dataclass(frozen=True)
class Kind:
    """One thing to compare: the analysis, its parameters from the session, the views, and how to read them."""

    analysis: str
    params: Callable[[Session], dict[str, Any]]
    views: tuple[Callable[[xr.Dataset], go.Figure], ...]
    about: str


KINDS: Mapping[str, Kind] = {
    "Circuits": Kind(
        "edge_attribution",
        lambda s: {},
        (circuit_changes, change_list),
        "Edges of the circuit that were kept, lost, gained or turned round. Inside the noise an edge is what it was.",
    ),
    "Heads": Kind(
        "head_patching",
        lambda s: {},
        (before_after, change_list),
        "What each head's clean output recovers before and after; differences inside the noise are grey.",
    ),
    "Sinks": Kind(
        "sink_scores",
        lambda s: {"length": s.length},
        (before_after, change_list),
        "Attention that each key gets before and after; a cell is a head and a position.",
    ),
    "Routing": Kind(
        "routing",
        lambda s: {"length": s.length},
        (before_after, change_list),
        "Share of the tokens that each expert gets before and after; the null is the even share.",
    ),
    "Alignment": Kind(
        "gradient_alignment",
        lambda s: {"tasks": f"{s.task_b}:{s.corruption_b}", "batches": BATCHES},
        (before_after, change_list),
        "Cosine of both tasks' gradients on each part of the model before and after.",
    ),
    "Answers": Kind(
        "flips",
        lambda s: {},
        (flip_table,),
        "Which answers turned: right to wrong, wrong to right; McNemar's test asks whether one is more frequent.",
    ),
}


class ChangesPart(pn.viewable.Viewer):
    """Two checkpoints of a run (or of a zoo model) by one analysis, and their difference."""

    source = param.Selector(objects=[""], default="", doc="A run's or a zoo model's reference.")
    before = param.Selector(objects=[0], default=0, doc="Step of the earlier checkpoint.")
    after = param.Selector(objects=[0], default=0, doc="Step of the later checkpoint.")
    kind = param.Selector(objects=list(KINDS), default="Circuits")
    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=0)
    retest = param.Boolean(False, doc="Trace other prompts too, and widen the noise by what they show.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(**params)
        self._session, self._runner = session, runner
        self._headline = Note(margin=(12, 0, 0, 0))
        self._slots = [FigureSlot(theme, 520), FigureSlot(theme, 520)]
        self._about, self._code = pn.Column(sizing_mode="stretch_width"), CodeBox()
        self.param.watch(self._steps, "source")
        self.param.watch(self._refresh, ["before", "after", "kind", "viewed", "retest"])

    def __panel__(self) -> pn.viewable.Viewable:
        look: dict[str, Any] = {"size": "small", "margin": (8, 10, 4, 0)}
        return pn.Column(
            pn.FlexBox(
                pmui.Select.from_param(self.param.source, label="Run", width=320, **look),
                pmui.Select.from_param(self.param.before, label="Before: step", width=130, **look),
                pmui.Select.from_param(self.param.after, label="After: step", width=130, **look),
                pmui.Switch.from_param(self.param.retest, label="Retest on other prompts", margin=(14, 0, 0, 8)),
            ),
            pn.FlexBox(choice(self.param.kind), choice(self.param.viewed)),
            self._headline,
            self._about,
            *self._slots,
            self._code,
            sizing_mode="stretch_width",
        )

    async def open(self) -> None:
        """Offer the runs there are, the session's model first, and show the changes of the one chosen."""
        found = await asyncio.to_thread(sources)
        if not found:
            self._headline.say(NOTHING, "info")
            return
        first = next((name for name in (self.source, self._session.model) if name in found), found[0])
        self._offer("source", found, first)
        await self._refresh()

    def _offer(self, name: str, choices: list, value: Any) -> None:
        """Other choices, with one chosen, which a menu has at every moment: else it would choose by itself."""
        offered: Any = self.param[name]
        offered.objects = list(dict.fromkeys([*offered.objects, *choices]))
        self.param.update(**{name: value})
        offered.objects = choices

    def _steps(self, *_: Any) -> None:
        """Offer the checkpoints of the source; the first and the last are compared."""
        steps = checkpoints(self.source)
        if steps:
            self._offer("before", steps, steps[0])
            self._offer("after", steps, steps[-1])

    def specs(self) -> list[dict]:
        """What to ask the engine for: before and after, with a retest both again on other prompts; or the flips.

        Raises:
            WorkbenchError: when both are the same checkpoint.
        """
        if self.before == self.after:
            raise WorkbenchError("Both are the same checkpoint; choose another step for one of them.")
        kind, params = KINDS[self.kind], KINDS[self.kind].params(self._session)
        merge = _merged(self.source)
        models = [{"reference": f"{self.source}@{step}", "merge": merge} for step in (self.before, self.after)]
        if kind.analysis == "flips":
            return [specify("flips", models[0], self._task(0), {**params, "after": models[1]["reference"]})]
        shifts = (0, APART) if self.retest else (0,)
        return [specify(kind.analysis, model, self._task(shift), params) for shift in shifts for model in models]

    def _task(self, shift: int) -> Any:
        s = self._session
        first = self.viewed == 0 or self.kind == "Alignment"  # which is of both tasks
        name, corruption = (s.task_a, s.corruption_a) if first else (s.task_b, s.corruption_b)
        return make_task(name, n=s.n, seed=s.seed + shift, corruption=corruption)

    async def _refresh(self, *_: Any) -> None:
        if not self.source:
            return
        ticket = self._runner.begin(PLACE)
        with self._runner.reporting(self._headline.say):
            specs = self.specs()
            self._about[:] = [heading(self.kind, KINDS[self.kind].about)]
            for slot in self._slots:
                slot.wait()
            self._headline.say(f"Tracing {self.source} at {self.before} and {self.after} …", "info")
            results = [await self._runner.fetch(PLACE, ticket, spec) for spec in specs]
            ds = results[0] if self.kind == "Answers" else await asyncio.to_thread(_compared, results)
            self._draw(ds, specs)

    def _draw(self, ds: xr.Dataset, specs: list[dict]) -> None:
        kind = KINDS[self.kind]
        self._headline.say(summary(ds), "info")
        for slot, view in zip(self._slots, kind.views, strict=False):
            slot.draw(view(ds))
        self._code.replace(python(specs, [view.__name__ for view in kind.views]))


def sources() -> list[str]:
    """Runs and zoo models with two checkpoints or more, the latest run first."""
    return [name for name in (*run_names(), *zoo_names()) if len(checkpoints(name)) > 1]


def _merged(source: str) -> bool:
    """Whether a source's adapter is merged into the weights, as not every layer can carry it live."""
    return source.startswith("run/") and Run(source.removeprefix("run/")).spec.method == "lora"


def _compared(results: list[xr.Dataset]) -> xr.Dataset:
    retest = (results[2], results[3]) if len(results) == 4 else None
    return compare(results[0], results[1], retest=retest)


def summary(ds: xr.Dataset) -> str:
    """The figure in one sentence or two."""
    attrs = ds.attrs
    if attrs["analysis"] == "flips":
        value, low, high = (attrs[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
        turned = f"{attrs['flipped']} of {attrs['n']} answers turned"
        return f"{turned}; accuracy {value:+.1%} ({low:+.1%} to {high:+.1%}), McNemar's p = {attrs['mcnemar']:.2g}."
    states = ", ".join(f"{attrs[name]} {name}" for name in ("kept", "lost", "gained", "flipped"))
    said = f"{attrs['changed']} of {attrs['cells']} changed beyond the noise; {states}."
    if "retest_correlation" in attrs:
        said += f" On other prompts the differences correlate by {attrs['retest_correlation']:.2f}."
    return said


def python(specs: list[dict], views: Sequence[str]) -> str:
    """Python, in Markdown, that computes what is shown."""
    lines, letters = ["import workbench as wb", ""], "abcd"[: len(specs)]
    for letter, spec in zip(letters, specs, strict=True):
        task = {key: value for key, value in spec["task"].items() if key in ("n", "seed", "corruption")}
        chosen = "".join(f", {key}={value!r}" for key, value in task.items())
        params = "".join(f", {key}={value!r}" for key, value in spec["params"].items())
        model, name = spec["model"], spec["task"]["name"]
        lines.append(f"{letter} = wb.run({spec['analysis']!r}, {model!r}, wb.task({name!r}{chosen}){params})")
    if len(specs) > 1:
        lines.append("changed = wb.compare(a, b" + (", retest=(c, d))" if len(specs) == 4 else ")"))
    shown = "changed" if len(specs) > 1 else "a"
    return "```python\n" + "\n".join([*lines, *(f"wb.show({shown}, {view!r})" for view in views)]) + "\n```"
