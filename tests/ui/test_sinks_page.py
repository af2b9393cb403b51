"""The parts of the Sinks page, as a person opens them one after the other."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from dashboards import FIGURES, SLOW, App, choose, headline, state, tab, visible
from playwright.sync_api import Locator, Page, expect

import workbench as wb
from workbench.app.sinks import PARTS
from workbench.models.reference import checkpoints
from workbench.results import specify, stored
from workbench.tasks import TASKS

MODEL, N, LENGTH, HEAD = "zoo/tasks-backcopy", 8, 32, "L0H6"
PAIR = {"model": MODEL, "n": N, "task_a": "backcopy", "task_b": "greater_than", "corruption_b": "year_01"}
ADDRESS = {**PAIR, "page": 1, "length": LENGTH}
# What is there once a part is drawn: so many of each, or more.
DRAWN = {
    "Scores": {".rw-head-grid .rw-cell": 64, ".gtitle": 5},
    "Secondary": {".gtitle": 1},
    "Causal test": {".gtitle": 2},
    "Massive": {".gtitle": 1},
    "Dormant": {".gtitle": 1, ".rw-cell": 64},
    "Reuse": {".gtitle": 2, ".rw-cell": 64},
    "Viewer": {".rw-attention canvas": 1},
}
WORDS = ".MuiTypography-root, .MuiAlert-message span, .rw-title, .rw-quantity, .rw-label, .rw-chip"
SHOWN = visible(".js-plotly-plot, .rw-attention, .rw-head-grid")
TEXTS = visible(WORDS, FIGURES)
pytestmark = pytest.mark.usefixtures("no_console_errors")


@pytest.fixture
def result(kept: None) -> Callable[..., xr.Dataset]:
    """`result(analysis, task, **params)`: what the dashboard's store holds."""

    def find(analysis: str, task: str, **params: object) -> xr.Dataset:
        return wb.run(analysis, MODEL, wb.task(task, n=N), **params)

    return find


def visit(page: Page, app: App, part: str, **chosen: object) -> None:
    page.goto(app.address(**{**ADDRESS, "sink": list(PARTS).index(part), **chosen}))
    tab(page, part).wait_for()


def wait_for(page: Page, part: str) -> None:
    """Until a part shows all that it draws of itself."""
    for selector, count in DRAWN[part].items():
        page.locator(f"{selector}:visible").nth(count - 1).wait_for(timeout=SLOW)


def figure(page: Page, title: str) -> Locator:
    return page.locator(".js-plotly-plot:visible").filter(has=page.locator(".gtitle", has_text=title))


def test_each_part_draws_shares_the_selection_and_can_be_read(page: Page, app: App, readable: Callable) -> None:
    visit(page, app, "Scores")
    wait_for(page, "Scores")
    page.locator(".rw-cell:visible").and_(page.get_by_label(re.compile(f"^{HEAD},"))).first.click()
    expect(page).to_have_url(re.compile(f"head={HEAD}"))
    for place, name in enumerate(PARTS):
        tab(page, name).click()
        wait_for(page, name)
        expect(tab(page, name)).to_have_attribute("aria-selected", "true")
        assert state(page) | {"sink": str(place), "head": HEAD} == state(page)
        expect(page.get_by_text("Ready", exact=True)).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("button", name="Show code").locator("visible=true")).to_be_visible()
        maps = page.locator(".rw-head-grid:visible .rw-title").count()
        expect(page.locator(".rw-cell[aria-selected=true]:visible")).to_have_count(maps)
        if name == "Dormant":
            expect(page.locator(".MuiAlert-message:visible").last).to_have_text(re.compile(f"^{HEAD} is "))
        readable(TEXTS, name, SHOWN)
    expect(page.locator(".rw-attention .rw-title")).to_have_text(re.compile(f"^{HEAD} on prompt 0 of backcopy"))
    page.set_viewport_size({"width": 1920, "height": 900})
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    for name in PARTS:
        tab(page, name).click()
        wait_for(page, name)
        readable(TEXTS, name, SHOWN)
    expect(page.get_by_role("tab", selected=True)).to_have_text(["Sinks", "Viewer"])


def test_what_is_said_is_what_python_finds(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Scores")
    wait_for(page, "Scores")
    scores = result("sink_scores", "backcopy", length=LENGTH)
    over = int((scores["alpha"].sel(key_pos=0) > 0.3).sum())
    expect(headline(page)).to_contain_text(f"{over} of {scores['alpha'][..., 0].size} heads on backcopy")
    text, random, repeated = scores["control_rate"].values
    controls = f"backcopy: text {text:.2f}, random tokens {random:.2f}, one repeated token {repeated:.2f}"
    expect(figure(page, "Sink rate by key position")).to_contain_text(controls)
    tab(page, "Secondary").click()
    found = int(result("secondary_sinks", "backcopy", length=LENGTH)["count"].sel(component="secondary"))
    assert found == 0
    expect(headline(page)).to_contain_text(f"no secondary sinks in {32 * LENGTH} tokens of backcopy", timeout=SLOW)
    expect(page.get_by_text("There is no secondary sink, so there is no MLP that creates one.")).to_be_visible()
    tab(page, "Massive").click()
    expect(headline(page)).to_contain_text("has no massive activation on backcopy (the largest is", timeout=SLOW)
    tab(page, "Causal test").click()
    effects = result("sink_ablation", "backcopy", length=LENGTH).sel(component="primary")
    change = f"The primary sink is {effects['verdict'].item()}: {float(effects['loss_change']):+.3f} nats"
    expect(headline(page)).to_contain_text(change, timeout=SLOW)
    named = page.get_by_role("textbox", name="Further tokens")
    named.fill("nonsense")
    named.press("Enter")
    expect(headline(page)).to_contain_text("nonsense", timeout=SLOW)


def test_all_checkpoints_and_all_tasks_are_measured(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Scores")
    wait_for(page, "Scores")
    page.get_by_role("button", name="Measure all checkpoints").click()
    drawn = figure(page, "When heads come to rest on BOS")
    drawn.wait_for(timeout=SLOW)
    task = wb.task("backcopy", n=N)
    found = [stored(specify("sink_scores", f"{MODEL}@{s}", task, {"length": LENGTH})) for s in checkpoints(MODEL)]
    alpha = np.stack([ds["alpha"].values[..., 0] for ds in found]).max(0)
    layer, head = np.unravel_index(alpha.argmax(), alpha.shape)
    expect(drawn.locator(".legendtext").first).to_have_text(f"L{layer}H{head}")
    tab(page, "Dormant").click()
    wait_for(page, "Dormant")
    page.get_by_role("button", name="Measure all tasks").click()
    expect(headline(page)).to_contain_text("subject_verb (number): ", timeout=SLOW)
    expect(page.locator(".rw-head-grid .rw-title:visible")).to_have_count(len(TASKS))


def test_the_address_opens_the_part_again(page: Page, app: App) -> None:
    visit(page, app, "Viewer", head=HEAD, prompt=3)
    title = page.locator(".rw-attention .rw-title")
    expect(title).to_have_text(re.compile(f"^{HEAD} on prompt 3 of backcopy"), timeout=SLOW)
    assert state(page) | {"sink": "6", "length": str(LENGTH)} == state(page)
    again = page.context.new_page()
    again.goto(page.url)
    expect(again.locator(".rw-attention .rw-title")).to_have_text(title.inner_text(), timeout=SLOW)
    assert state(again) == state(page)
    again.close()
    page.get_by_role("button", name="Running text").click()
    choose(page, "Beside it", "The other task")
    expect(title).to_have_text(re.compile("backcopy .* greater_than"), timeout=SLOW)
    page.goto(app.address(**ADDRESS, sink=9))
    expect(page.get_by_text("Left out of the address, as there is no such thing here: sink=9.")).to_be_visible()


def test_stop_ends_a_long_measurement_and_the_page_stays_usable(page: Page, app: App) -> None:
    visit(page, app, "Dormant", n=256)
    page.get_by_text(re.compile(r"dormant_heads \w+, ablation: \d+ of \d+")).wait_for(timeout=SLOW)
    page.get_by_role("button", name="Stop").click()
    expect(headline(page)).to_have_text(re.compile("^Stopped early, so nothing new is drawn"))
    expect(page.get_by_text("Ready", exact=True)).to_be_visible()
    choose(page, "Prompts a task", "8")
    wait_for(page, "Dormant")
    choose(page, "Tokens a sequence", "4096")
    expect(headline(page)).to_have_text(re.compile("^length is 4096; this model takes 2 to 128 tokens"), timeout=SLOW)
