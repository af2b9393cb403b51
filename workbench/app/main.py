"""The dashboard: `workbench app`, `make app`, or `panel serve workbench/app/main.py`."""

import os
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.circuits import CircuitsPage
from workbench.app.parts import Theme, trust
from workbench.app.runner import Runner
from workbench.app.sidebar import Sidebar, offered_models
from workbench.app.sinks import SinksPage
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.session import URL, Session
from workbench.tasks import TASKS, make_task

PAGES = ("Circuits", "Sinks")


def build() -> pmui.Page:
    """One browser session's page; the first result is traced, or read from the store, once it is shown."""
    pn.extension("plotly", notifications=False)
    models = offered_models(os.environ.get("WORKBENCH_MODELS"))
    session, runner, theme = Session(), Runner(), Theme()
    problem = restore(session, dict(pn.state.session_args or {}), models)
    sidebar = Sidebar(session, runner, models)
    circuits, sinks = CircuitsPage(session, runner, theme), SinksPage(session, runner, theme)
    tabs = pmui.Tabs(
        *zip(PAGES, (circuits, sinks), strict=True),
        active=session.page,
        sizing_mode="stretch_width",
        sx={"& .MuiTab-root": {"textTransform": "none"}},
    )
    tabs.link(session, active="page", bidirectional=True)
    page = pmui.Page(
        title="Reuse Workbench",
        sidebar=[sidebar],
        sidebar_width=320,
        main=[pn.Column(tabs, sizing_mode="stretch_width", margin=(8, 24), max_width=1500)],
    )
    page.param.watch(lambda event: theme.param.update(dark=bool(event.new)), "dark_theme")
    for one in (circuits, sinks):
        one.on_result = lambda ds: sidebar.show_card(str(ds.attrs["model"]), trust(ds.attrs))

    async def start() -> None:
        if pn.state.location is not None:
            pn.state.location.sync(session, list(URL))
        await circuits.open()
        await sinks.open()
        if problem:
            runner.complain(problem)

    pn.state.onload(start)
    if pn.state.curdoc is not None:
        pn.state.on_session_destroyed(lambda context, runner=runner: runner.leave())
    return page


def restore(session: Session, arguments: dict[str, list[bytes]], models: list[str]) -> str:
    """Put what an address says into the session, each value checked; returns what had to be left out."""
    left_out = []
    if session.model not in models:
        session.model = models[0]
    for name in URL:
        if name not in arguments:
            continue
        text = arguments[name][0].decode(errors="replace").strip('"')
        try:
            session.param.update(**{name: _value(session, name, text, models)})
        except (ValueError, WorkbenchError) as error:
            left_out.append(f"{name}: {error}")
    for letter in "ab":
        task, corruption = getattr(session, f"task_{letter}"), f"corruption_{letter}"
        if getattr(session, corruption) not in TASKS[task].corruptions:
            session.param.update(**{corruption: TASKS[task].corruptions[0]})
    return "The address was not understood in full. " + " ".join(left_out) if left_out else ""


def _value(session: Session, name: str, text: str, models: list[str]) -> Any:
    kind = type(session.param[name].default)
    value = kind(text)
    if name == "model" and value not in models:
        raise WorkbenchError(f"there is no model '{value}' here; there are {', '.join(models)}.")
    if name == "checkpoint" and value not in ("final", *map(str, checkpoints(session.model))):
        raise WorkbenchError(f"{session.model} has no checkpoint '{value}'.")
    if name.startswith("task_"):
        make_task(value)
    return value


if __name__.startswith("bokeh_app"):
    build().servable(title="Reuse Workbench")
