"""Routing, surgery: mute, force or re-weigh experts for chosen tokens, and see answer, loss and text move."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Note, Theme, choice, code, heading
from workbench.app.routing_edits import History, beside, edits_of, with_edit, without, written
from workbench.app.routing_part import RoutingPart
from workbench.app.runner import Runner
from workbench.models.expert_names import expert_name
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import Task
from workbench.views import surgery_effects

HELP = "Write edits like L2E5=mute; L1E3=force@S2; L0E1=0.5@3,END, with ; in between, and press Enter."
SAMPLE = 16  # prompts whose named positions are offered
STYLE = """<style>
table { border-collapse: collapse; font-size: 14px; line-height: 1.5; }
th { padding: 3px 14px 3px 0; text-align: left; vertical-align: top; font-weight: 600; }
td { overflow-wrap: anywhere; }
q { quotes: none; opacity: 0.75; }
mark { background: color-mix(in oklab, #e69f00 45%, transparent); color: inherit; padding: 0 2px; border-radius: 3px; }
p { margin: 6px 0 0; font-size: 13px; }
</style>"""
COPY = "navigator.clipboard.writeText(hooks.tags[0] ?? '')"


class SurgeryPart(RoutingPart):
    """The edits as controls and as text, their history, and what they do to one task."""

    part, doing = 6, "Reading the routing of"
    watched = (*RoutingPart.watched, "corruption_a", "corruption_b", "prompt")

    what = param.Selector(objects={"Mute": "mute", "Force": "force", "Weigh": "weigh"}, default="mute")
    factor = param.Number(0.5, bounds=(0, 10), doc="What an expert's weight is multiplied with.")
    tokens = param.List([], item_type=str, doc="Positions of the edit; none for all tokens.")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._history = History(session.surgery)
        look: dict[str, Any] = {"margin": (8, 10, 4, 0)}
        self._expert = pmui.Select(label="Expert", options=[], width=200, size="small", **look)
        self._factor = pmui.FloatInput.from_param(
            self.param.factor, label="Factor", step=0.1, width=130, size="small", visible=False, **look
        )
        self._positions = pmui.MultiChoice.from_param(
            self.param.tokens, options=[], label="At tokens (none: all of them)", width=440, **look
        )
        small: dict[str, Any] = {"size": "small", "variant": "outlined", "margin": (4, 10, 4, 0)}
        self._add = pmui.Button(
            label="Add edit", variant="contained", size="small", margin=(16, 10, 4, 4), on_click=self._add_edit
        )
        self._undo = pmui.Button(label="Undo", on_click=lambda _: self._turn(self._history.undone()), **small)
        self._redo = pmui.Button(label="Redo", on_click=lambda _: self._turn(self._history.redone()), **small)
        self._chips = pn.FlexBox(sizing_mode="stretch_width")
        self._field = pmui.TextInput.from_param(
            session.param.surgery,
            label="Edits",
            helper_text=HELP,
            sizing_mode="stretch_width",
            size="small",
            margin=(12, 0, 4, 0),
        )
        self._verdict, self._effects = Note(margin=(8, 0)), FigureSlot(theme, 660)
        self._text = pn.pane.HTML("", sizing_mode="stretch_width", margin=(5, 0))
        self._hooks = pn.pane.Markdown("", sizing_mode="stretch_width")
        self._copy = pmui.Button(label="Copy", **small)
        self._copy.js_on_click(args={"hooks": self._hooks}, code=COPY)
        self._panel = pmui.Accordion(
            ("Show the hooks", pn.Column(self._copy, self._hooks, sizing_mode="stretch_width")),
            title_variant="subtitle1",
            sizing_mode="stretch_width",
            margin=(12, 0),
        )
        self.param.watch(self._again, "viewed")
        self.param.watch(lambda event: self._factor.param.update(visible=event.new == "weigh"), "what")
        session.param.watch(self._edited, "surgery")
        session.param.watch(self._offer_experts, "layer")
        self._show_edits()

    def __panel__(self) -> pn.viewable.Viewable:
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Prompt shown", width=220)
        return self.framed(
            heading(
                "Give chosen tokens other experts",
                "Mute: the router chooses among the others. Force: the expert gets the whole weight of the token's "
                "experts. Weigh: its weight times a number. The edit is proved to have reached the experts, and set "
                "beside the same edit of other experts of the layer, the null.",
            ),
            pn.Row(choice(self.param.viewed), prompt),
            pn.Row(self._layers, self._expert, choice(self.param.what), self._factor, margin=(8, 0, 0, 0)),
            pn.Row(self._positions, self._add),
            self._field,
            pn.Row(self._undo, self._redo, self._chips),
            self._verdict,
            self._text,
            self._effects,
            self._panel,
        )

    def _specs(self) -> list[dict]:
        specs = self.reading("routing", length=self._session.length)
        return [specs[min(self.viewed, len(specs) - 1)]]

    async def _draw(self) -> None:
        self._offer_layers()
        self._offer_experts()
        task = self._task
        known = positions(task)
        self._positions.param.update(options=known, value=[name for name in self.tokens if name in known])
        self._headline.say(about(self.one, known), "info")
        await self._operate()

    @property
    def _task(self) -> Task:
        """The task looked at, as the session has it corrupted."""
        return Task.from_spec(self.specs("route_surgery")[self.viewed]["task"])

    def _offer_experts(self, *_: Any) -> None:
        """The experts of the layer, each with its load."""
        if self._results:
            load = self.one["load"].sel(layer=self.layer)
            options = {
                f"E{expert}, {float(load.sel(expert=expert)):.0%} of tokens": expert
                for expert in load["expert"].values.tolist()
            }
            chosen, most = self._expert.value, int(load["expert"][int(load.values.argmax())])
            self._expert.param.update(options=options, value=chosen if chosen in options.values() else most)

    def _add_edit(self, *_: Any) -> None:
        if self._results:
            edit = written(expert_name(self.layer, self._expert.value), self.what, self.factor, self.tokens)
            self._session.surgery = with_edit(self._session.surgery, edit)

    def _turn(self, history: History) -> None:
        """Another place in the history."""
        self._history = history
        self._session.surgery = history.now

    async def _edited(self, event: Any) -> None:
        self._history = self._history.edited(event.new)
        self._show_edits()
        await self._operate()

    def _show_edits(self) -> None:
        """The edits one by one, each with a way to take it out, and whether there is a way back and on."""
        self._undo.disabled, self._redo.disabled = not self._history.past, not self._history.future
        self._chips[:] = [self._chip(place, edit) for place, edit in enumerate(edits_of(self._session.surgery))]

    def _chip(self, place: int, edit: str) -> pmui.Button:
        def remove(_: Any) -> None:
            self._session.surgery = without(self._session.surgery, place)

        look = {"textTransform": "none"}
        return pmui.Button(
            label=f"{edit} ✕", description=f"Take out {edit}", on_click=remove, size="small", variant="text", sx=look
        )

    def _tell(self, text: str, wrong: bool = False) -> None:
        self._field.param.update(helper_text=text, error_state=wrong)

    async def _operate(self, *_: Any) -> None:
        """Do the edits and show what they change; what cannot be read is said beside the field, and nothing is lost."""
        if not self._results:
            return
        edits = edits_of(self._session.surgery)
        if not edits:
            self._runner.begin(f"{type(self).__name__}, surgery")
            self._show_nothing()
            return
        with self._runner.reporting(lambda text: self._tell(text, wrong=True)):
            self._tell("Measuring …")
            task, params = (
                self._task,
                {"edits": "; ".join(edits), "prompt": min(self._session.prompt, self._session.n - 1)},
            )
            spec = specify("route_surgery", self._session.reference, task, params)
            (ds,) = await self.fetch_all([spec], "surgery")
            self._tell(HELP)
            self._verdict.say(verdict(ds), "info")
            self._text.object = STYLE + texts(ds)
            self._effects.draw(surgery_effects(ds, texts=False))
            self._hooks.param.update(object=f"```python\n{ds.attrs['code']}```", tags=[str(ds.attrs["code"])])
            self._panel.visible = True
            self._code.replace(code([spec], "wb.show(a)\nprint(a.attrs['code'])"))

    def _show_nothing(self) -> None:
        self._tell(HELP)
        self._verdict.say("")
        self._text.object, self._panel.visible = "", False
        self._effects.wait("No edits yet: choose an expert above and press Add edit, or write one.")
        self._code.replace(code(self._drawn, "wb.show(a)"))


def positions(task: Task) -> list[str]:
    """The positions that every prompt of a task names; END is the last token."""
    names = [set(example.positions) for example in task.examples(SAMPLE)]
    first = task.examples(1)[0].positions
    return [*(name for name in first if name != "END" and all(name in each for each in names)), "END"]


def about(ds: xr.Dataset, known: list[str]) -> str:
    """What there is to edit, and what the prompts' tokens are called."""
    return (
        f"{ds.attrs['model']} has {ds.sizes['expert']} experts in each of the layers "
        f"{', '.join(map(str, ds['layer'].values.tolist()))}; a token uses {ds.attrs['k']} of them. Named tokens of "
        f"{ds.attrs['task']}: {', '.join(known)}."
    )


def verdict(ds: xr.Dataset) -> str:
    """What the edits change, each beside its interval and what edits of other experts change."""
    parts = []
    for name in ("metric", "probability", "loss"):
        before, after = (float(ds[name].sel(measured=side)) for side in ("before", "after"))
        change, low, high, null_low, null_high, p = (
            float(ds[f"{name}_change{end}"]) for end in ("", "_low", "_high", "_null_low", "_null_high", "_p")
        )
        parts.append(
            f"{str(ds[name].attrs['long_name']).capitalize()} {before:.3f} to {after:.3f}: {change:+z.3f} ({low:+z.3f} "
            f"to {high:+z.3f}), other experts {null_low:+z.3f} to {null_high:+z.3f}, p = {p:.2g}."
        )
    return f"{ds.attrs['edits']}. {' '.join(parts)}"


def texts(ds: xr.Dataset) -> str:
    """The prompt's continuation before and after as HTML, and the weight each edit took or gave."""
    shown = beside(*(str(ds.attrs[name]) for name in ("shown", "continuation_before", "continuation_after")))
    weights = [
        f"{edit}: {float(row.sel(measured='before')):.3f} to {float(row.sel(measured='after')):.3f}"
        for edit, row in zip(ds["component"].values, ds["weight"].transpose("component", "measured"), strict=True)
    ]
    return f"{shown}<p>Mean weight of the expert at its tokens: {'; '.join(weights)}.</p>"
