"""Tune, new run: what to fine-tune, on what and how; what it would take; and the button that starts it."""

import asyncio
import pprint
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.parts import CodeBox, Note, heading, plain
from workbench.app.routing_part import has_experts
from workbench.app.tune_mixture import Mixture
from workbench.app.tune_watch import duration
from workbench.engine import engine, submit_tune
from workbench.methods import METHODS
from workbench.parameters import Parameter
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.session import Session
from workbench.spec import AGGREGATORS, LOGGERS, PRECISIONS, Spec, read_spec
from workbench.tuning import Estimate

PAGE = 4  # number of the Tune page
PAUSE = 0.5  # seconds after the last change before an estimate is made
DEFAULTS = {f.name: f.default for f in fields(Spec)}
MAIN = {"steps": "Steps", "batch": "Rows a step", "learning_rate": "Learning rate", "seed": "Seed"}
MAIN |= {"checkpoint": "Steps between checkpoints"}
MORE = {"warm_up": "Warm-up steps", "weight_decay": "Weight decay", "clip": "Clip gradients at"}
MORE |= {"examples": "Rows drawn a task", "held": "Rows held out a task", "processes": "Processes (GPUs)"}
MEASURED = {"telemetry_every": "Every so many steps", "telemetry_budget": "At most this share of the training time"}
MEASURED |= {"telemetry_n": "Prompts a task"}
# Analyses that need nothing named besides the model and its tasks.
TELEMETRY = ("head_patching", "sink_scores", "gradient_alignment", "task_saliency", "head_roles", "dormant_heads")
TELEMETRY += ("massive_activations", "secondary_sinks", "faithfulness", "edge_attribution")
OF_ROUTERS = ("routing", "routing_circuit", "expert_ablation", "expert_similarity")
LOOK = {"size": "small", "margin": (6, 10, 6, 0)}
ABOUT = {"opacity": 0.75, "maxWidth": "75em"}


def control(name: str, label: str, value: Any, choices: Any = ()) -> Any:
    """An input for a setting, by the type of its value."""
    if choices:
        return pmui.Select(label=label, options=choices, value=value, width=190, **LOOK)
    if isinstance(value, bool):
        return pmui.Checkbox(label=label, value=value, margin=(12, 10, 6, 0))
    return pmui.TextInput(label=label, value=text(value), width=max(120, 9 * len(label)), **LOOK)


def text(value: Any) -> str:
    """A number, or nothing, as a person writes it."""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def of_parameter(parameter: Parameter) -> Any:
    """An input for a parameter of a method."""
    return control(parameter.name, parameter.name.replace("_", " "), parameter.default, list(parameter.choices))


class Form(pn.viewable.Viewer):
    """The inputs and the spec they make; `changed` is told after each change."""

    def __init__(self, session: Session, changed: Callable[[], None], **params: Any) -> None:
        super().__init__(**params)
        self._session, self._told, self._filling = session, changed, True
        self._mixture = Mixture(session, self._tell)
        self._method = pmui.Select(label="Method", options=list(METHODS), value="lora", width=200, **LOOK)
        self._options: dict[str, Any] = {}
        self._option_row = pn.FlexBox(sizing_mode="stretch_width")
        self._method_about, self._aggregator_about = (
            pmui.Typography("", variant="body2", sx=ABOUT, sizing_mode="stretch_width", margin=(12, 0, 0, 4))
            for _ in range(2)
        )
        self._aggregator = pmui.Select(
            label="From losses to a step", options=list(AGGREGATORS), value="mean", width=200, **LOOK
        )
        shown = {**DEFAULTS, "seed": session.seed, "held": session.n}
        self._settings = {name: control(name, label, shown[name]) for name, label in (MAIN | MORE | MEASURED).items()}
        self._settings["temperature"] = pmui.TextInput(
            label="Temperature of the mixture", placeholder="weights as given", width=240, **LOOK
        )
        self._settings["precision"] = control("precision", "Mixed precision", "no", list(PRECISIONS))
        self._settings["logger"] = control("logger", "Also log to", "", {"nothing": "", **{n: n for n in LOGGERS}})
        self._telemetry = pmui.MultiChoice(
            label="Measured in the model while it learns", options=[], width=600, margin=LOOK["margin"]
        )
        self._offer_telemetry()
        self._method.param.watch(self._other_method, "value")
        for widget in (self._aggregator, self._telemetry, *self._settings.values()):
            widget.param.watch(self._tell, "value")
        session.param.watch(self._tell, ["model", "checkpoint"])
        session.param.watch(self._offer_telemetry, "model")
        self._filling = False
        self._other_method()

    def __panel__(self) -> pn.viewable.Viewable:
        def row(*names: str) -> pn.viewable.Viewable:
            return pn.FlexBox(*(self._settings[name] for name in names), sizing_mode="stretch_width")

        further = pn.Column(row(*MORE, "temperature", "precision", "logger"), sizing_mode="stretch_width")
        measured = pn.Column(self._telemetry, row(*MEASURED), sizing_mode="stretch_width")
        return pn.Column(
            heading(
                "On which tasks", "Rows of a step are shared by weight. A task's held-out rows are never trained on."
            ),
            self._mixture,
            heading("How", "A checkpoint can be traced like any model, and a run goes on from it after a stop."),
            pn.Row(self._method, self._method_about, sizing_mode="stretch_width"),
            self._option_row,
            pn.Row(self._aggregator, self._aggregator_about, sizing_mode="stretch_width"),
            row(*MAIN),
            pmui.Accordion(
                ("Further settings", further),
                ("Measured meanwhile", measured),
                title_variant="subtitle1",
                sizing_mode="stretch_width",
                margin=(8, 0),
            ),
            sizing_mode="stretch_width",
        )

    @property
    def given(self) -> dict[str, Any]:
        """What is asked for, unchecked."""
        settings = {name: widget.value for name, widget in self._settings.items()}
        settings["temperature"] = settings["temperature"] or None
        return {
            "model": self._session.reference,
            "tasks": self._mixture.entries,
            "method": self._method.value,
            "options": {name: widget.value for name, widget in self._options.items()},
            "aggregator": self._aggregator.value,
            "telemetry": {name: {} for name in self._telemetry.value},
            **settings,
        }

    def fill(self, spec: Spec) -> None:
        """Show a spec's settings; its model becomes the session's."""
        self._filling = True
        name, _, step = spec.model.partition("@")
        self._session.param.update(model=name, checkpoint=step or "final")
        self._mixture.fill(spec.tasks)
        self._method.value = spec.method
        for option, value in spec.options.items():
            self._options[option].value = value if isinstance(value, bool) else text(value)
        self._aggregator.value = spec.aggregator
        self._telemetry.value = [name for name in spec.telemetry if name in self._telemetry.options]
        for setting, widget in self._settings.items():
            widget.value = text(getattr(spec, setting))
        self._filling = False
        self._tell()

    def follow(self) -> None:
        """Show the sidebar's tasks."""
        self._mixture.follow()

    def _offer_telemetry(self, *_: Any) -> None:
        """Offer what can be measured in this model, keeping what is chosen of it."""
        offered = TELEMETRY + (OF_ROUTERS if has_experts(self._session.model) else ())
        kept = [name for name in self._telemetry.value if name in offered]
        self._telemetry.param.update(options=list(offered), value=kept)

    def _other_method(self, *_: Any) -> None:
        method = METHODS[self._method.value]
        self._options = {name: of_parameter(parameter) for name, parameter in method.parameters.items()}
        for widget in self._options.values():
            widget.param.watch(self._tell, "value")
        self._option_row[:] = list(self._options.values())
        self._method_about.object = plain(method.about + (f" · {method.paper}" if method.paper else ""))
        self._tell()

    def _tell(self, *_: Any) -> None:
        if not self._filling:
            self._aggregator_about.object = plain(AGGREGATORS[self._aggregator.value])
            self._told()


class FormPart(pn.viewable.Viewer):
    """The form, what the run would take, and Start; `started` is told the run's name."""

    def __init__(self, session: Session, started: Callable[[str], None], **params: Any) -> None:
        super().__init__(**params)
        self._session, self._started = session, started
        self._change, self._turn = 0, asyncio.Lock()
        self._model = pmui.Typography("", variant="body1", margin=(14, 0, 0, 0))
        self._start = pmui.Button(label="Start", variant="contained", on_click=self.start, margin=(6, 12, 6, 0))
        self._line = Note()
        self._code = CodeBox()
        self.form = Form(session, self._changed)
        self._changed()

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._model,
            self.form,
            pn.Row(self._start, self._line, sizing_mode="stretch_width"),
            self._code,
            sizing_mode="stretch_width",
        )

    @property
    def _shown(self) -> bool:
        return self._session.page == PAGE and self._session.tune == 0

    async def open(self) -> None:
        """Estimate what is asked for."""
        await self._estimate()

    def _changed(self) -> None:
        self._change += 1
        self._model.object = f"Fine-tune **{plain(self._session.reference)}**, the model of the sidebar"
        if pn.state.curdoc is not None:
            pn.state.execute(self._estimate)

    async def _estimate(self) -> None:
        """Say what the run would take, or what stands against it, once nothing changes any more."""
        mine = self._change
        await asyncio.sleep(PAUSE)
        if mine == self._change and self._shown:
            await self._say(mine)

    async def _say(self, mine: int) -> None:
        try:
            spec = await asyncio.to_thread(read_spec, self.form.given)
            self._code.replace(python(spec))
            self._start.disabled = False
            self._line.say("Estimating what it takes …", "info")
            async with self._turn:  # one after the other; those that are no longer asked for are left out
                found = await asyncio.to_thread(lambda: engine().estimate(spec)) if mine == self._change else None
            said, severity = in_words(spec, found) if found else "", "info"
        except WorkbenchError as error:
            said, severity = str(error), "error"
        if mine == self._change:
            self._start.disabled = severity == "error"
            self._line.say(said, severity)

    async def start(self, *_: Any) -> None:
        """Start the run; what stands against it is said beside the button."""
        self._change += 1  # an estimate that is still being made is not said any more
        self._start.disabled = True
        try:
            spec = await asyncio.to_thread(read_spec, self.form.given)
            job = await asyncio.to_thread(lambda: submit_tune(spec))
        except WorkbenchError as error:
            self._line.say(str(error))
            return
        self._start.disabled = False
        self._line.say(f"Started as {job.run.name}.", "success")
        self._started(job.run.name)

    async def start_here(self) -> None:
        """Start a run on the sidebar's model and tasks, unless something stands against it."""
        self.form.follow()
        self._change += 1
        await self._say(self._change)
        if not self._start.disabled:
            await self.start()


def in_words(spec: Spec, found: Estimate) -> str:
    """What a run is expected to take."""
    state = Run(spec.name).status["state"]
    known = {"new": "", "finished": " This very run is finished: Start opens it."}
    here = known.get(state, f" This very run is {state}: Start goes on with it.")
    share = found.trained / found.parameters
    return (
        f"About {duration(found.seconds)} for {spec.steps} steps and {_size(found.memory)} of the {_size(found.free)} "
        f"that are free; {found.trained:,} of {found.parameters:,} parameters are trained ({share:.1%}).{here}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"


def python(spec: Spec) -> str:
    """Python, in Markdown, that does the same; settings that are as they were before are left out."""
    plain: Mapping[str, Any] = {k: v for k, v in spec.plain.items() if k not in DEFAULTS or v != DEFAULTS[k]}
    given = {name: value for name, value in plain.items() if value not in ({}, None)}
    code = pprint.pformat(given, sort_dicts=False, width=100)
    return f"```python\nimport workbench as wb\n\nrun = wb.tune(\n{_indented(code)}\n)\nwb.show(run.curves())\n```"


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())
