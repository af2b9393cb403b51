"""The dashboard as a person gets it: `workbench app` in a process of its own, seen in a browser."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboards import RESULT, SLOW, App, choose, dashboard, expect_outlined, expect_to_fit, state, tab
from playwright.sync_api import Browser, Locator, Page, expect

MAIN = Path(__file__).parents[2] / "workbench" / "app" / "main.py"
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
TEXTS = ".MuiTypography-root:visible, .MuiAlert-message span:visible, .rw-title, .rw-quantity, .rw-label, .rw-chip"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="session")
def app(running: Callable, folder: Path) -> Iterator[App]:
    """One dashboard for all tests; what one test has traced the next finds in the store."""
    with dashboard(running, folder) as started:
        yield started


def headline(page: Page) -> re.Match:
    """The sentence with the result, once it is there."""
    found = page.get_by_text(RESULT)
    found.wait_for(timeout=SLOW)
    match = RESULT.search(found.inner_text())
    assert match
    return match


def cells(page: Page, panel: int = 0) -> Locator:
    return page.get_by_role("grid").nth(panel).get_by_role("gridcell")


def shared_heads(page: Page) -> list[str]:
    cells(page).first.wait_for()
    labels = cells(page).evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-label'))")
    return sorted(label.partition(",")[0] for label in labels if label.endswith("shared by all circuits"))


def visit(page: Page, app: App, **chosen: object) -> re.Match:
    page.goto(app.address(**chosen))
    return headline(page)


def test_the_server_s_process_never_loads_torch(page: Page, app: App) -> None:
    # First of all tests, while nothing has been traced.
    assert not app.has_torch()
    assert app.workers() == []
    visit(page, app)
    assert not app.has_torch()
    assert any("libtorch" in Path(f"/proc/{worker.pid}/maps").read_text() for worker in app.workers())


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?token=%C3%A9", "/?page=0"])
def test_without_the_token_there_is_a_refusal_and_no_app(path: str, app: App) -> None:
    status, text = app.get(path)
    assert status == 403
    assert text == "This dashboard needs the token that was printed when it was started: open the address shown there."


def test_the_websocket_needs_the_token_too(app: App) -> None:
    assert app.get("/ws", **WEBSOCKET)[0] == 403
    with_cookie = {**WEBSOCKET, "Cookie": "workbench-token=wrong"}
    assert app.get("/ws", **with_cookie)[0] == 403


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", ""])
def test_a_foreign_host_header_is_refused_on_page_and_websocket(host: str, app: App) -> None:
    host = f"{host}:{app.port}" if host else "127.0.0.1"  # the last: no port
    for path, headers in [(f"/?token={app.token}", {}), (f"/ws?token={app.token}", WEBSOCKET)]:
        status, text = app.get(path, host, **headers)
        assert status == 403
        assert "Reuse Workbench" not in text


def test_with_the_token_comes_the_page(app: App) -> None:
    status, text = app.get(f"/?token={app.token}")
    assert status == 200 and "<title>Reuse Workbench</title>" in text
    assert app.get(f"/?token={app.token}", f"localhost:{app.port}")[0] == 200


def test_the_first_page_shows_a_result_without_a_click(page: Page, app: App) -> None:
    found = visit(page, app)
    expect(page.get_by_role("combobox", name="Model")).to_have_text(found[1])
    names = [] if found[4] == "none" else sorted(found[4].split(", "))
    assert shared_heads(page) == names
    assert len(names) == int(found[2]) <= int(found[3])
    # Each panel marks as many heads as the circuit has.
    for panel in range(2):
        assert cells(page, panel).locator("xpath=self::*[@data-mark]").count() == int(found[3])
    expect(page.get_by_text(f"{found[1]}: green")).to_be_visible()
    assert "token" not in state(page) and state(page)["model"] == found[1]


def test_a_click_on_a_head_selects_it_everywhere(page: Page, app: App) -> None:
    visit(page, app)
    page.locator(".rw-attention .rw-title").wait_for()
    cells(page, 1).and_(page.get_by_label(re.compile("^L1H2,"))).click()
    expect(page).to_have_url(re.compile("head=L1H2"))
    expect_outlined(page, "L1H2")
    expect(page.locator(".rw-attention .rw-title")).to_have_text(re.compile("^L1H2 on prompt 0 of ioi in "))
    tab(page, "Sinks").click()
    page.get_by_text(re.compile("gets more than ε")).wait_for(timeout=SLOW)
    expect_outlined(page, "L1H2")
    assert state(page) | {"head": "L1H2", "page": "1"} == state(page)


def test_an_address_opened_again_shows_the_same(page: Page, app: App) -> None:
    visit(page, app)
    cells(page).and_(page.get_by_label(re.compile("^L2H0,"))).click()
    expect(page).to_have_url(re.compile("head=L2H0"))
    choose(page, "First task", "subject_verb")
    expect(page).to_have_url(re.compile("task_a=subject_verb"))
    choose(page, "Prompts a task", "16")
    expect(page).to_have_url(re.compile("n=16"))
    expect(page.get_by_text(re.compile(r"subject_verb \(\w+\) and colored_objects .* share"))).to_be_visible(
        timeout=SLOW
    )
    sentence = page.get_by_text(RESULT).inner_text()
    again = page.context.new_page()
    again.goto(page.url)
    assert headline(again).string == sentence
    expect_outlined(again, "L2H0")
    assert state(again) == state(page)
    tab(again, "Sinks").click()
    again.get_by_text(re.compile("gets more than ε")).wait_for(timeout=SLOW)
    expect(again).to_have_url(re.compile("page=1"))
    third = page.context.new_page()
    third.goto(again.url)
    third.get_by_text(re.compile("gets more than ε .* on subject_verb")).wait_for(timeout=SLOW)
    expect(tab(third, "Sinks")).to_have_attribute("aria-selected", "true")
    expect_outlined(third, "L2H0")


def test_what_an_address_cannot_mean_is_said_in_one_sentence(page: Page, app: App) -> None:
    bad = {"model": "zoo/nope", "task_a": "xyz", "head": "garbage", "n": "abc", "top": "7", "checkpoint": "<b>1</b>"}
    found = visit(page, app, **bad, seed=0)
    assert found[1] != "zoo/nope"
    said = "model=zoo/nope, checkpoint=<b>1</b>, task_a=xyz, n=abc, top=7, head=garbage."
    expect(page.get_by_text(f"Left out of the address, as there is no such thing here: {said}")).to_be_visible()
    assert "Traceback" not in page.locator("body").inner_text()
    assert state(page) | {"model": found[1], "task_a": "ioi", "n": "64"} == state(page)
    assert "head" not in state(page)


def test_the_same_task_twice_is_an_error_in_words(page: Page, app: App) -> None:
    page.goto(app.address(task_b="ioi"))
    expect(page.get_by_text(re.compile("The same task and corruption was given twice"))).to_be_visible(timeout=SLOW)


def test_the_code_shown_gives_the_heads_shown(page: Page, app: App) -> None:
    visit(page, app)
    shown = shared_heads(page)
    page.get_by_role("button", name="Show code").click()
    source = page.locator(".codehilite code:visible").inner_text()
    tail = (
        "import json\nfrom workbench.models.heads import head_name\n"
        "cells = zip(*shared.shared.values.nonzero())\n"
        "print(json.dumps(sorted(head_name(int(layer), int(head)) for layer, head in cells)))"
    )
    home = app.home.with_name("another-home")  # so that nothing is read from the store
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{tail}"],
        env={**os.environ, "WORKBENCH_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == shown


def test_stop_ends_a_long_job_and_the_page_stays_usable(page: Page, app: App) -> None:
    visit(page, app)
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    choose(page, "Prompts a task", "1024")
    page.get_by_text(re.compile(r"head_patching ioi: \d+ of \d+")).wait_for(timeout=SLOW)
    stop.click()
    expect(page.get_by_text(re.compile("^Stopped early, so nothing new is drawn"))).to_be_visible()
    expect(stop).to_be_disabled()
    expect(page.get_by_text("Ready")).to_be_visible()
    choose(page, "Prompts a task", "64")
    headline(page)
    cells(page).and_(page.get_by_label(re.compile("^L0H1,"))).click()
    expect(page.locator(".rw-attention .rw-title")).to_have_text(re.compile("^L0H1 on prompt 0"))


def test_another_person_s_page_answers_while_a_long_job_runs(page: Page, app: App, browser: Browser) -> None:
    visit(page, app)
    choose(page, "Prompts a task", "1024")
    page.get_by_text(re.compile(r"head_patching ioi: \d+ of \d+")).wait_for(timeout=SLOW)
    other = browser.new_context().new_page()
    visit(other, app)
    expect(other.get_by_text("Ready")).to_be_visible()
    other.get_by_role("button", name="Weighted overlap").click()
    expect(other.locator(".ytitle", has_text="weighted overlap")).to_be_visible()
    tab(other, "Sinks").click()
    expect(other).to_have_url(re.compile("page=1"))
    # Still at work, so the answer did not have to wait for it.
    page.bring_to_front()
    expect(page.get_by_text(re.compile(r"head_patching \w+: \d+ of \d+"))).to_be_visible()
    other.context.close()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Ready")).to_be_visible()


def ink(page: Page) -> str:
    """The colour of the first figure's title."""
    return page.locator(".js-plotly-plot .gtitle:visible").first.evaluate("text => getComputedStyle(text).fill")


def test_texts_stay_readable_and_figures_stay_put_in_the_dark(page: Page, app: App, unreadable: Callable) -> None:
    visit(page, app)
    page.locator(".rw-chip").first.wait_for()
    title = page.locator(".js-plotly-plot .gtitle:visible").first
    title.wait_for()
    light, place, width = ink(page), title.bounding_box(), page.locator(".js-plotly-plot .bg").first.bounding_box()
    assert unreadable(TEXTS) == []
    page.get_by_role("button", name="Toggle theme").click()
    expect(title).not_to_have_css("fill", light)
    assert sum(map(int, re.findall(r"\d+", ink(page))[:3])) > 600
    tab(page, "Sinks").click()
    page.get_by_text(re.compile("gets more than ε")).wait_for(timeout=SLOW)
    page.locator(".js-plotly-plot .gtitle:visible").nth(1).wait_for()
    assert unreadable(TEXTS) == []
    tab(page, "Circuits").click()
    title.wait_for()
    assert unreadable(TEXTS) == []
    assert title.bounding_box() == pytest.approx(place, abs=2)
    assert page.locator(".js-plotly-plot .bg").first.bounding_box() == pytest.approx(width, abs=2)


@pytest.mark.parametrize("width", [1280, 1920])
def test_nothing_is_wider_than_the_window(width: int, page: Page, app: App) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, app)
    page.locator(".rw-chip").first.wait_for()
    for name in ("Circuits", "Sinks"):
        tab(page, name).click()
        page.locator(".js-plotly-plot .gtitle:visible").first.wait_for()
        expect_to_fit(page, name)


def test_a_second_start_draws_from_the_store(page: Page, app: App, running: Callable, folder: Path) -> None:
    first = visit(page, app)
    files = {path: path.stat().st_mtime_ns for path in app.home.rglob("head_patching*.nc")}
    assert len(files) >= 2
    with dashboard(running, folder) as second:
        other = page.context.new_page()
        assert visit(other, second)[0] == first[0]
        assert second.workers() == []
        other.close()
    assert {path: path.stat().st_mtime_ns for path in app.home.rglob("head_patching*.nc")} == files


def test_panel_serve_shows_the_page_as_it_stands(page: Page, app: App, running: Callable, folder: Path) -> None:
    first = visit(page, app)
    command = [sys.executable, "-m", "panel", "serve", str(MAIN), "--address", "127.0.0.1", "--port"]
    with running(lambda port: [*command, str(port)], folder / "panel-log", WORKBENCH_HOME=str(app.home)) as (port, _):
        page.goto(f"http://127.0.0.1:{port}/main")
        assert headline(page)[0] == first[0]
