"""Pieces the pages share: a linked head grid, code that reproduces what is shown, headings."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import plotly.graph_objects as go
from panel.custom import AnyWidgetComponent
from panel.util.parameters import edit_readonly

from workbench.app.hosting import panelize
from workbench.session import Session
from workbench.theme import template
from workbench.views import Drawing


def plain(text: object) -> str:
    """Text as Panel's alerts and typography show it unchanged: they read Markdown, and HTML within it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text))


def heading(text: str, about: str) -> pn.viewable.Viewable:
    """A section's title with one sentence on how to read it."""
    return pn.Column(
        pmui.Typography(text, variant="h6", margin=0),
        pmui.Typography(about, variant="body2", margin=0, sx={"opacity": 0.75, "maxWidth": "75em"}),
        margin=(22, 0, 8, 0),
    )


def apart(page: pmui.Page) -> pmui.Page:
    """The page, no longer following Panel's busy flag.

    That flag is one for all sessions of a server: a click in one would change the pages of the others, whose documents
    it does not hold, and so end in an error and be lost.
    """
    with edit_readonly(page):
        page.busy = False
    return page


class Note(pn.viewable.Viewer):
    """A framed sentence, hidden while there is none."""

    def __init__(self, text: str = "", severity: str = "info", **params: Any) -> None:
        super().__init__()
        look = {"& p": {"margin": 0}, "& .MuiAlert-message": {"overflowWrap": "anywhere"}}
        self._alert = pmui.Alert(sizing_mode="stretch_width", sx=look, **params)
        self.say(text, severity)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._alert

    def say(self, text: str, severity: str = "error") -> None:
        """Show another sentence, or by an empty one nothing."""
        self._alert.param.update(object=plain(text), severity=severity, visible=bool(text))


def choice(parameter: param.Parameter) -> pn.viewable.Viewable:
    """A row of buttons for a parameter with a few values; labels as written."""
    look = {"& .MuiToggleButton-root": {"textTransform": "none", "whiteSpace": "nowrap", "padding": "4px 12px"}}
    return pmui.RadioButtonGroup.from_param(
        parameter, label="", size="small", color="primary", margin=(5, 10, 5, 0), sx=look
    )


class Theme(param.Parameterized):
    """Whether the page is dark, for the figures on it."""

    dark = param.Boolean(False)


class Chart(AnyWidgetComponent):
    """A Plotly figure, drawn as it is."""

    figure = param.String("{}", doc="The figure as Plotly's JSON.")

    _esm = Path(__file__).with_name("figure.js")


class FigureSlot(pn.viewable.Viewer):
    """A place on a page for a Plotly figure, in the page's colours; `height` is for figures that have none."""

    def __init__(self, theme: Theme, height: int) -> None:
        super().__init__()
        self._theme, self._figure, self._height = theme, None, height
        self._chart = Chart(sizing_mode="stretch_width", height=height)
        self._box = pn.Column(sizing_mode="stretch_width")
        theme.param.watch(self._paint, "dark")

    def __panel__(self) -> pn.viewable.Viewable:
        return self._box

    def draw(self, figure: go.Figure) -> None:
        """Show a figure."""
        self._figure = figure
        self._paint()

    def wait(self, text: str = "") -> None:
        """Show a line in place of the figure, or nothing, until the next one comes."""
        self._figure = None
        self._box[:] = [pmui.Typography(text, variant="body2", margin=0)] if text else []

    def _paint(self, *_: Any) -> None:
        if self._figure is not None:
            painted = go.Figure(self._figure).update_layout(template=template(dark=self._theme.dark, clear=True))
            self._chart.param.update(figure=str(painted.to_json()), height=painted.layout.height or self._height)
            self._box[:] = [self._chart]


class Slot(pn.viewable.Viewer):
    """A place on a page for one widget drawing: made when the first one comes, updated afterwards.

    `kept` are traits that later drawings leave as the reader has set them.
    """

    def __init__(self, waiting: str, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.component: AnyWidgetComponent | None = None
        self._kept = kept
        self._box = pn.Column(sizing_mode="stretch_width")
        self.wait(waiting)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._box

    def wait(self, text: str) -> None:
        """Show a line in place of the widget until the next drawing comes."""
        self._box[:] = [pmui.Typography(text, variant="body2", margin=0)]

    def draw(self, drawing: Drawing, **more: Any) -> AnyWidgetComponent:
        """Show a drawing; `more` are further traits set with it."""
        traits = {**drawing.traits, **more}
        if self.component is None:
            self.component = panelize(drawing.widget)(**traits)
        else:
            self.component.param.update(**{name: value for name, value in traits.items() if name not in self._kept})
        if self._box[0] is not self.component:
            self._box[:] = [self.component]
        return self.component


class GridSlot(Slot):
    """A slot for head grids whose selected head is the session's."""

    def __init__(self, session: Session, waiting: str) -> None:
        super().__init__(waiting)
        self._session = session
        session.param.watch(self._follow, "head")

    def draw(self, drawing: Drawing, **more: Any) -> AnyWidgetComponent:
        """Show a grid with the session's head selected, if it has that head."""
        fresh = self.component is None
        component = super().draw(drawing, selected=self._within(drawing.traits), **more)
        if fresh:
            component.param.watch(lambda event: self._session.select(event.new), "selected")
        return component

    def _within(self, traits: Mapping[str, Any]) -> list[int]:
        cell = self._session.selected
        return cell if cell and cell[0] in traits["layers"] and cell[1] < traits["shape"][2] else []

    def _follow(self, event: Any) -> None:
        if self.component is not None:
            shown = self.component.param.values()
            wanted = self._within(shown)
            if shown["selected"] != wanted:
                self.component.param.update(selected=wanted)


def code(specs: Sequence[Mapping[str, Any]], after: str) -> str:
    """Python, in Markdown, that computes what is shown from nothing but the package."""
    lines = ["import workbench as wb", ""]
    model = {k: v for k, v in specs[0]["model"].items() if k != "reference"}
    options = "".join(f", {name}={value!r}" for name, value in model.items())
    lines.append(f"model = wb.load({specs[0]['model']['reference']!r}{options})")
    for letter, spec in zip("abcdef", specs, strict=False):
        task = {k: v for k, v in spec["task"].items() if k not in ("name", "metric")}
        chosen = "".join(f", {name}={value!r}" for name, value in task.items())
        params = "".join(f", {name}={value!r}" for name, value in spec["params"].items())
        lines.append(
            f"{letter} = wb.run({spec['analysis']!r}, model, wb.task({spec['task']['name']!r}{chosen}){params})"
        )
    return "```python\n" + "\n".join([*lines, *after.splitlines()]) + "\n```"


class CodeBox(pn.viewable.Viewer):
    """A folded box with the Python behind a page."""

    def __init__(self) -> None:
        super().__init__()
        self._text = pn.pane.Markdown("", sizing_mode="stretch_width")
        self._box = pmui.Accordion(
            ("Show code", self._text), title_variant="subtitle1", sizing_mode="stretch_width", margin=(12, 0)
        )

    def __panel__(self) -> pn.viewable.Viewable:
        return self._box

    def replace(self, text: str) -> None:
        """Show other code."""
        self._text.object = text
