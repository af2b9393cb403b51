"""The dashboard: `workbench app`, `make app`, or `panel serve workbench/app/main.py`."""

import functools
import os
from typing import Any
from urllib.parse import urlencode

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from workbench.app.circuits import CircuitsPage
from workbench.app.gradients import GradientsPage
from workbench.app.parts import Note, Theme, apart
from workbench.app.routing import RoutingPage
from workbench.app.runner import Runner
from workbench.app.sidebar import Sidebar, offered_models, offered_runs
from workbench.app.sinks import SinksPage
from workbench.app.tabs import Later
from workbench.app.tune import TunePage
from workbench.models.card import Card
from workbench.models.heads import parse_head
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.session import URL, Session
from workbench.tasks import TASKS

PAGES = {
    "Circuits": CircuitsPage,
    "Sinks": SinksPage,
    "Routing": RoutingPage,
    "Gradients": GradientsPage,
    "Tune": TunePage,
}


def build() -> pmui.Page:
    """One browser session's page; the first result is traced, or read from the store, once it is shown."""
    pn.extension("plotly", notifications=False)
    models = offered_models(os.environ.get("WORKBENCH_MODELS"))
    session, runner, theme = Session(), Runner(), Theme()
    problem = restore(session, dict(pn.state.session_args or {}), models)
    sidebar = Sidebar(session, runner, models)
    pages = [Later(functools.partial(page, session, runner, theme)) for page in PAGES.values()]
    tabs = pmui.Tabs(
        *zip(PAGES, pages, strict=True),
        active=session.page,
        sizing_mode="stretch_width",
        sx={"& .MuiTab-root": {"textTransform": "none"}},
    )
    tabs.link(session, active="page", bidirectional=True)
    page = pmui.Page(
        title="Reuse Workbench",
        busy_indicator=None,
        sidebar=[sidebar],
        sidebar_width=320,
        main=[
            pn.Column(
                Note(problem, "warning", closeable=True),
                tabs,
                sizing_mode="stretch_width",
                margin=(8, 24),
                max_width=1500,
            )
        ],
    )
    apart(page).param.watch(lambda event: theme.param.update(dark=bool(event.new)), "dark_theme")

    def told(ds: xr.Dataset) -> None:
        sidebar.show_card(str(ds.attrs["model"]), Card.from_json(ds.attrs["trust"]))

    def made(place: int) -> Any:
        pages[place].made.hear(told)
        return pages[place]

    async def turn(*_: Any) -> None:
        if pages[session.page].empty:  # a page that is there follows the session by itself
            await (await made(session.page).drawn()).open()

    async def tune() -> None:
        place = session.page = list(PAGES).index("Tune")
        await (await made(place).drawn()).start_here()

    async def start() -> None:
        if pn.state.location is not None:
            publish(session, pn.state.location)
        await (await made(session.page).drawn()).open()

    made(session.page)
    sidebar.on_tune = tune
    session.param.watch(turn, "page")
    pn.state.onload(start)
    if pn.state.curdoc is not None:
        pn.state.on_session_destroyed(lambda context, runner=runner: runner.stop())
    return page


def publish(session: Session, location: Any) -> None:
    """Keep the page's address that of what is shown; the token of the first address is not repeated in it."""

    def write(*_: Any) -> None:
        location.search = "?" + urlencode({name: getattr(session, name) for name in URL})

    session.param.watch(write, list(URL))
    write()


def restore(session: Session, arguments: dict[str, list[bytes]], models: list[str]) -> str:
    """Put what an address says into the session, each value checked; returns a sentence on what was left out."""
    left_out = []
    if session.model not in models:
        session.model = models[0]
    for name in URL:
        if name not in arguments:
            continue
        text = arguments[name][0].decode(errors="replace")
        try:
            session.param.update(**{name: _value(session, name, text, models)})
        except (ValueError, WorkbenchError):
            left_out.append(f"{name}={text[:60]}")
    for letter in "ab":
        task, corruption = getattr(session, f"task_{letter}"), f"corruption_{letter}"
        if getattr(session, corruption) not in TASKS[task].corruptions:
            session.param.update(**{corruption: TASKS[task].corruptions[0]})
    return f"Left out of the address, as there is no such thing here: {', '.join(left_out)}." if left_out else ""


def _value(session: Session, name: str, text: str, models: list[str]) -> Any:
    """The value of one part of an address.

    Raises:
        ValueError or WorkbenchError: when it is none that the session could have.
    """
    value = type(session.param[name].default)(text)
    known = {
        "model": [*models, *offered_runs()],
        "checkpoint": ["final", *map(str, checkpoints(session.model))],
        **{f"task_{letter}": list(TASKS) for letter in "ab"},
        **{f"corruption_{letter}": TASKS[getattr(session, f"task_{letter}")].corruptions for letter in "ab"},
    }
    if name in known and value not in known[name]:
        raise ValueError(text)
    if name == "others" and not set(filter(None, value.split(","))) <= set(TASKS):
        raise ValueError(text)
    if name == "head" and value:
        parse_head(value)
    return value


if __name__.startswith("bokeh_app"):
    build().servable(title="Reuse Workbench")
