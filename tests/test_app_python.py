"""The app's Python without a browser: addresses, the guard, the code shown, and who waits for what."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import parse_qs

import markdown_it
import panel as pn
import pytest
from tornado.web import HTTPError

from workbench.app import runner as runner_module
from workbench.app.guard import COOKIE, TokenAuth, new_token
from workbench.app.main import build, publish, restore
from workbench.app.parts import code, plain
from workbench.app.runner import Runner, Stale
from workbench.app.sidebar import Sidebar, offered_models
from workbench.models.card import Card, Check
from workbench.models.reference import checkpoints, find, zoo_names
from workbench.progress import Cancelled
from workbench.registry import WorkbenchError
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import TASKS, make_task

MODEL = "zoo/tasks"
PORT = 4321


def arguments(**texts: str) -> dict[str, list[bytes]]:
    return {name: [text.encode()] for name, text in texts.items()}


@pytest.fixture
def session():
    made = Session()
    assert restore(made, {}, zoo_names()) == "" and made.model in zoo_names()
    return made


def test_a_good_address_is_restored_in_full(session):
    step = str(checkpoints(MODEL)[-1])
    given = {"model": MODEL, "checkpoint": step, "task_a": "subject_verb", "corruption_a": "number", "n": "128"}
    given |= {"task_b": "ioi", "corruption_b": "abc", "seed": "3", "top": "0.25", "head": "L1H2", "prompt": "4"}
    given |= {"query": "-1", "page": "2", "part": "3", "sink": "4", "length": "128", "edges": "120"}
    given |= {"route": "6", "layer": "1", "surgery": "L2E5=mute; L1E3=force@S2,<b>"}
    assert restore(session, arguments(**given), zoo_names()) == ""
    assert {name: str(getattr(session, name)) for name in given} == given


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model", "zoo/nope"),
        ("model", "/etc"),
        ("checkpoint", "7"),
        ("task_a", "xyz"),
        ("task_b", "/etc/passwd.jsonl"),
        ("corruption_a", "nope"),
        ("n", "abc"),
        ("n", "7"),
        ("n", "64.5"),
        ("seed", "-1"),
        ("top", "7"),
        ("top", "nan"),
        ("head", "garbage"),
        ("prompt", "99"),
        ("query", "-2"),
        ("page", "9"),
        ("part", "9"),
        ("sink", "9"),
        ("route", "9"),
        ("layer", "-2"),
        ("length", "2"),
        ("edges", "-1"),
    ],
)
def test_a_bad_part_is_left_out_and_named(name, text, session):
    before = session.param.values()
    said = restore(session, arguments(**{name: text}), zoo_names())
    assert said == f"Left out of the address, as there is no such thing here: {name}={text}."
    assert session.param.values() == before


def test_a_bad_part_leaves_the_good_ones(session):
    said = restore(session, arguments(n="abc", head="9.3", top="0.5", unknown="1", token="secret"), zoo_names())
    assert said.endswith(": n=abc.")
    assert (session.selected, session.top, session.n) == ([9, 3], 0.5, 64)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_in_the_address_brings_a_corruption_it_has(name, session):
    restore(session, arguments(task_a=name), zoo_names())
    assert session.corruption_a in TASKS[name].corruptions
    make_task(session.task_a, corruption=session.corruption_a)


def test_the_address_follows_the_session_and_leads_back(session):
    location = SimpleNamespace(search="?token=secret&n=8")
    publish(session, location)
    session.param.update(n=16, head="L2H1", task_a="backcopy", corruption_a=TASKS["backcopy"].corruptions[0])
    assert "token" not in location.search
    again = Session()
    query = {name: [text.encode() for text in texts] for name, texts in parse_qs(location.search[1:]).items()}
    assert restore(again, query, zoo_names()) == ""
    values = [{k: v for k, v in one.param.values().items() if k != "name"} for one in (again, session)]
    assert values[0] == values[1]


def test_a_task_change_offers_its_corruptions(session):
    sidebar = Sidebar(session, Runner(), zoo_names())
    session.task_a = "greater_than"
    assert session.corruption_a in TASKS["greater_than"].corruptions
    picker = sidebar._pickers["a"][1]
    assert picker.options == list(TASKS["greater_than"].corruptions) and picker.value == session.corruption_a
    picker.value = picker.options[-1]
    assert session.corruption_a == picker.options[-1]


def test_another_model_starts_at_its_final_weights(session):
    session.checkpoint = str(checkpoints(session.model)[0])
    sidebar = Sidebar(session, Runner(), [session.model, "elsewhere"])
    assert sidebar._checkpoint.value == session.checkpoint
    sidebar._model.value = "elsewhere"
    assert (session.model, session.checkpoint, sidebar._checkpoint.options) == ("elsewhere", "final", ["final"])


def test_only_whole_models_of_a_folder_are_offered(saved, tmp_path):
    import shutil

    shutil.copytree(saved("gpt2"), tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "pickled" / "config.json").write_text("{}")
    zoo = offered_models(None)
    assert set(zoo_names()) < set(zoo) and "zoo/skills:ioi" in zoo  # each task has its own mix of skills
    assert all(find(name).reference == name for name in zoo)
    assert offered_models(str(tmp_path)) == [*zoo, str(tmp_path / "good")]
    with pytest.raises(WorkbenchError, match="There is no folder"):
        offered_models(str(tmp_path / "nowhere"))


def test_the_card_shows_text_never_markup(session):
    sidebar = Sidebar(session, Runner(), zoo_names())
    check = Check(name="<i>", colour="red", found="a < b", fix="<script>")
    sidebar.show_card("<b>model", Card((check,)))
    assert sidebar.card.object == (
        "<b>&lt;b&gt;model: red</b><details open><summary>✗ &lt;i&gt;</summary>a &lt; b <b>&lt;script&gt;</b></details>"
    )


@pytest.mark.parametrize(
    "text",
    ["a_b_c *d*", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "`x` [a](b) # 1. ~~no~~", "1. a | b\\c", "~/x_y/z"],
)
def test_plain_text_survives_markdown_unchanged(text):
    from html import unescape

    rendered = markdown_it.MarkdownIt("gfm-like").render(plain(text))
    assert "<" not in rendered.removeprefix("<p>").removesuffix("</p>\n")
    assert unescape(rendered.removeprefix("<p>").removesuffix("</p>\n")) == text


class Handler:
    """A request as far as the guard looks at it."""

    def __init__(self, host: str = f"127.0.0.1:{PORT}", token: str = "", cookie: str | None = None) -> None:
        self.request = SimpleNamespace(host=host)
        self._token, self._cookie, self.kept = token, cookie, {}

    def get_argument(self, name: str, default: str) -> str:
        assert name == "token"
        return self._token or default

    def get_cookie(self, name: str, default: str) -> str | None:
        assert name == COOKIE
        return default if self._cookie is None else self._cookie

    def set_cookie(self, name: str, value: str, **options: object) -> None:
        self.kept = {"name": name, "value": value, **options}


@pytest.fixture
def user():
    return TokenAuth("right", PORT).get_user


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}"])
def test_the_token_lets_in_and_is_kept_where_scripts_and_other_sites_cannot_use_it(host, user):
    handler = Handler(host, token="right")
    assert user(handler) == "owner"
    assert handler.kept == {"name": COOKIE, "value": "right", "httponly": True, "samesite": "Strict"}
    returning = Handler(host, cookie="right")
    assert user(returning) == "owner" and returning.kept == {}


@pytest.mark.parametrize(
    ("token", "cookie"), [("", None), ("wrong", None), ("", "wrong"), ("righ", ""), ("rïght", None), ("", "rïght")]
)
def test_anything_else_stays_outside(token, cookie, user):
    handler = Handler(token=token, cookie=cookie)
    assert user(handler) is None and handler.kept == {}


@pytest.mark.parametrize(
    "host", ["evil.test", f"evil.test:{PORT}", f"127.0.0.1:{PORT + 1}", "127.0.0.1", f"localhost.evil.test:{PORT}", ""]
)
def test_another_host_is_refused_even_with_the_token(host, user):
    for handler in (Handler(host, token="right"), Handler(host, cookie="right")):
        with pytest.raises(HTTPError) as refused:
            user(handler)
        assert refused.value.status_code == 403


def test_tokens_are_long_and_never_the_same():
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50 and min(map(len, tokens)) >= 32


@pytest.mark.parametrize("model", [MODEL, {"reference": MODEL, "dtype": "bfloat16", "merge": True}])
def test_the_code_shown_compiles_and_asks_for_the_same(model):
    tasks = [make_task("ioi", n=16, seed=2, corruption="abc"), make_task("subject_verb", n=16)]
    specs = [specify("head_patching", model, task, {"draws": 10}) for task in tasks]
    text = code(specs, "shared = wb.overlap(a, b, top=0.2)\nwb.show(shared)")
    source = text.removeprefix("```python\n").removesuffix("\n```")
    asked = []

    def run(analysis, model, task, **params):
        asked.append({"analysis": analysis, "model": model, "task": task.spec, "params": params})
        return len(asked)

    def overlap(*results, top):
        assert (results, top) == ((1, 2), 0.2)

    package = SimpleNamespace(
        load=lambda reference, **options: {"reference": reference, **options},
        task=make_task,
        run=run,
        overlap=overlap,
        show=lambda shared: None,
    )
    names: dict = {"wb": package}
    exec(compile(source.replace("import workbench as wb", ""), "shown", "exec"), names)
    assert asked == specs


class Job:
    """An engine's job that ends when the test says so."""

    def __init__(self) -> None:
        self.done, self.waiting, self.progress = False, 0, ("tracing", 1, 4)

    def join(self) -> None:
        self.waiting += 1

    def leave(self) -> None:
        self.waiting -= 1

    def result(self) -> str:
        return "result"


@pytest.fixture
def jobs(monkeypatch):
    """Jobs in the order they were asked for; nothing is in the store."""
    made: list[Job] = []
    monkeypatch.setattr(runner_module, "POLL", 0.001)
    monkeypatch.setattr(runner_module, "stored", lambda spec: None)
    monkeypatch.setattr(runner_module, "submit", lambda *_, **__: made.append(Job()) or made[-1])
    return made


SPEC = {"analysis": "a", "model": {}, "task": {}, "params": {}}


async def started(jobs: list[Job], runner: Runner, place: str = "page") -> asyncio.Task:
    """A request that waits for its job."""
    count = len(jobs)
    task = asyncio.ensure_future(runner.fetch(place, runner.begin(place), SPEC))
    while len(jobs) == count or not jobs[-1].waiting:
        await asyncio.sleep(0.001)
    return task


def finish(main) -> None:
    """Run a coroutine function in a loop of its own; the browser tests keep one in the main thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(main())).result()


def test_a_result_is_awaited_and_the_job_left(jobs):
    async def main():
        runner = Runner()
        task = await started(jobs, runner)
        assert not runner._stop.disabled
        jobs[0].done = True
        assert await task == "result"
        assert jobs[0].waiting == 0 and runner._stop.disabled and runner._text.object == "Ready"

    finish(main)


def test_a_newer_request_makes_the_older_one_stale_and_leaves_its_job(jobs):
    async def main():
        runner = Runner()
        first = await started(jobs, runner)
        second = await started(jobs, runner)
        elsewhere = await started(jobs, runner, "another place")
        with pytest.raises(Stale):
            await first
        jobs[1].done = jobs[2].done = True
        assert await second == await elsewhere == "result"
        assert [job.waiting for job in jobs] == [0, 0, 0]

    finish(main)


def test_stop_gives_up_everything_and_says_so(jobs):
    async def main():
        runner, said = Runner(), []
        both = [await started(jobs, runner), await started(jobs, runner, "another place")]
        runner.stop()
        for task in both:
            with runner.reporting(said.append):
                await task
        assert [text.partition(",")[0] for text in said] == ["Stopped early"] * 2
        assert [job.waiting for job in jobs] == [0, 0]
        again = await started(jobs, runner)
        jobs[-1].done = True
        assert await again == "result"

    finish(main)


def test_stopping_is_an_error_a_person_understands(jobs):
    async def main():
        runner = Runner()
        task = await started(jobs, runner)
        runner.stop()
        with pytest.raises(Cancelled, match="nothing new is drawn"):
            await task

    finish(main)


def test_errors_are_said_below_the_stop_button_until_the_next_request():
    runner = Runner()
    alert = runner._error._alert
    with runner.reporting():
        raise WorkbenchError("Use <fewer> prompts.")
    assert alert.visible and alert.object == plain("Use <fewer> prompts.")
    runner.begin("page")
    assert not alert.visible
    with runner.reporting():
        raise Stale
    assert not alert.visible
    with pytest.raises(ZeroDivisionError), runner.reporting():
        raise ZeroDivisionError("division by zero")
    assert alert.object == plain("Unexpected ZeroDivisionError: division by zero (the server's log has the details).")


def test_what_one_session_does_changes_no_other_s_page(monkeypatch):
    monkeypatch.setattr(type(pn.state), "onload", lambda *_: None)
    page = build()
    assert not page.busy
    pn.state._add_busy_event("of another session")
    try:
        assert pn.state.busy and not page.busy
    finally:
        pn.state._remove_busy_event("of another session")
    assert not page.busy
