"""The Tune page, as a person starts a run, leaves, comes back, pauses, resumes, and traces what was learned."""

import json
import re
from collections.abc import Callable

import pytest
from dashboards import RESULT, SLOW, App, state, tab, visible
from playwright.sync_api import Browser, Locator, Page, expect

PAIR = {"task_a": "subject_verb", "corruption_a": "number", "task_b": "induction", "corruption_b": "no_match", "n": 8}
NEW = {"page": 4, "tune": 0, "model": "zoo/tasks", **PAIR}
WORDS = ".MuiTypography-root, .MuiAlert-message span, .rt-list td, .rt-list th, .gtitle, .annotation-text, .legendtext"
WORDS += ", .rw-training-curves :is(.rw-title, .rw-note, .rw-toggle, .rw-panel-title, .rw-when, .rw-tick, .rw-value)"
TEXTS = visible(WORDS)
pytestmark = pytest.mark.usefixtures("no_console_errors")


def fill(page: Page, field: str, text: str) -> None:
    box = page.get_by_label(field, exact=True).locator("visible=true").first
    box.fill(text)
    box.press("Enter")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def row(page: Page, text: str | re.Pattern) -> Locator:
    return page.locator(".rt-list tbody tr").filter(has_text=text)


def curves(page: Page) -> Locator:
    return page.locator(".rw-training-curves:visible")


def test_a_run_is_started_left_found_again_paused_resumed_and_traced(page: Page, app: App, readable: Callable) -> None:
    page.goto(app.address(**NEW))
    expect(page.get_by_text(re.compile("About .* for 200 steps"))).to_be_visible(timeout=SLOW)
    button(page, "Add a task").click()
    expect(page.get_by_role("combobox", name="Taught").locator("visible=true")).to_have_count(3)
    for field, text in (("Steps", "5000"), ("Rows a step", "6"), ("Steps between checkpoints", "2000")):
        fill(page, field, text)
    expect(page.get_by_text(re.compile("About .* for 5000 steps and .* of 712,448"))).to_be_visible(timeout=SLOW)
    readable(TEXTS, "Tune")
    button(page, "Start").click()
    curves(page).locator(".rw-line").first.wait_for(state="attached", timeout=SLOW)
    run = state(page)["run"]
    about = "subject_verb, induction, backcopy · lora · zoo/tasks · seed 0"
    expect(row(page, run)).to_contain_text(about)
    expect(row(page, run)).to_contain_text(re.compile(r"running.*\d+ / 5000.* left.*GiB.*%"))
    expect(curves(page).locator(".rw-toggle")).to_have_text(["subject_verb", "induction", "backcopy"])
    curves(page).get_by_label("Logarithmic loss").check()
    hidden = curves(page).get_by_role("checkbox", name="induction")
    hidden.click()
    drawn = curves(page).locator(".rw-when").first.text_content()
    expect(curves(page).locator(".rw-when").first).not_to_have_text(drawn)  # it goes on
    expect(hidden).to_have_attribute("aria-checked", "false")
    expect(curves(page).get_by_label("Logarithmic loss")).to_be_checked()
    readable(TEXTS, "Tune")
    spec = json.loads((app.home / "runs" / run / "spec.json").read_text())
    assert (spec["steps"], spec["batch"], len(spec["tasks"]), spec["held"]) == (5000, 6, 3, 8)

    address = page.url
    page.close()
    again = page.context.new_page()
    again.set_default_timeout(60_000)
    again.goto(address)
    expect(row(again, run)).to_contain_text("running", timeout=SLOW)
    curves(again).wait_for()
    button(again, "Pause").click()
    expect(row(again, run)).to_contain_text("paused", timeout=SLOW)
    status = json.loads((app.home / "runs" / run / "status.json").read_text())
    assert status["state"] == "paused" and (app.home / f"runs/{run}/checkpoints/step_{status['done']:05d}").is_dir()
    expect(row(again, run)).to_contain_text(f"{status['done']} / 5000")
    button(again, "Resume").click()
    expect(row(again, run)).to_contain_text("running", timeout=SLOW)
    button(again, "Stop run").click()
    expect(row(again, run)).to_contain_text("stopped", timeout=SLOW)

    again.set_viewport_size({"width": 1920, "height": 900})
    again.get_by_role("button", name="Toggle theme").click()
    expect(again.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    button(again, "Trace again").click()
    expect(again.get_by_text(RESULT)).to_contain_text(f"run/{run}", timeout=SLOW)
    shown = {"model": f"run/{run}", "task_a": "subject_verb", "task_b": "induction", "n": "8", "seed": "0", "page": "0"}
    assert state(again) | shown == state(again)
    expect(again.get_by_role("combobox", name="Model")).to_have_text(f"run/{run}")
    again.close()


def test_what_stands_against_a_run_is_said_beside_the_button(page: Page, app: App) -> None:
    page.goto(app.address(**NEW))
    expect(button(page, "Start")).to_be_enabled()
    fill(page, "Rows a step", "1")
    said = page.get_by_text("batch is 1, but there are 2 tasks; give each at least one row.")
    expect(said).to_be_visible()
    expect(button(page, "Start")).to_be_disabled()
    fill(page, "Rows a step", "6")
    expect(said).to_be_hidden()
    page.locator("input[type=file]").set_input_files(
        {
            "name": "mine.jsonl",
            "mimeType": "text/plain",
            "buffer": b'{"prompt": "the", "answer": " dog"}\n{"prompt": ""}\n',
        }
    )
    expect(page.get_by_text(re.compile("mine.jsonl: line 2 needs 'prompt' and 'answer'"))).to_be_visible()


def test_the_sidebar_starts_a_run_and_another_session_duplicates_it_with_changes(
    page: Page, app: App, browser: Browser
) -> None:
    page.goto(app.address(**PAIR, checkpoint=500, seed=1))
    page.get_by_role("button", name="Fine-tune this model on these tasks").click()
    started = row(page, "subject_verb, induction · lora · zoo/tasks@500 · seed 1")
    expect(started).to_contain_text(re.compile("running|finished"), timeout=SLOW)
    expect(tab(page, "Runs")).to_have_attribute("aria-selected", "true")
    other = browser.new_context(viewport=page.viewport_size).new_page()
    other.set_default_timeout(60_000)
    other.goto(app.address(**state(page)))
    button(other, "Duplicate with changes").click()
    expect(other.get_by_label("Seed", exact=True).locator("visible=true")).to_have_value("1")
    fill(other, "Seed", "2")
    fill(other, "Steps", "4")
    expect(other.get_by_text(re.compile("About .* for 4 steps"))).to_be_visible(timeout=SLOW)
    button(other, "Start").click()
    second = "subject_verb, induction · lora · zoo/tasks@500 · seed 2"
    expect(row(other, second)).to_contain_text(re.compile("finished.*4 / 4"), timeout=SLOW)
    expect(row(other, second)).to_have_attribute("aria-selected", "true")
    other.context.close()
    page.bring_to_front()
    expect(row(page, second)).to_contain_text(re.compile("finished.*4 / 4"))
    expect(started).to_have_attribute("aria-selected", "true")
    started.focus()
    page.keyboard.press("ArrowUp")
    expect(row(page, second)).to_be_focused()
