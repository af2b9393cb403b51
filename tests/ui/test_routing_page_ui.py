"""The parts of the Routing page, as a person opens them one after the other."""

import re
from collections.abc import Callable

import pytest
import xarray as xr
from dashboards import FIGURES, SLOW, App, choose, headline, state, tab, visible
from playwright.sync_api import Page, expect

import workbench as wb
from workbench.app.routing import PARTS
from workbench.app.routing_edits import edits_of
from workbench.models.reference import checkpoints
from workbench.results import specify, stored

MODEL, N, LENGTH, EDIT = "zoo/tasks-moe", 8, 32, "L1E2=mute@END"
# Prompts of one length are measured fastest.
PAIR = {"model": MODEL, "n": N, "task_a": "greater_than", "corruption_a": "year_01", "task_b": "induction"}
ADDRESS = {**PAIR, "page": 2, "length": LENGTH}
# Figures of each part.
DRAWN = {"Load": 2, "Tasks": 3, "Together": 3, "Specialisation": 2, "Training": 1, "Causal": 2, "Surgery": 1, "Map": 1}
WORDS = ".MuiTypography-root, .MuiAlert-message span, .MuiFormHelperText-root, .bk-panel-models-markup-HTML td"
TEXTS = visible(WORDS, FIGURES)
pytestmark = pytest.mark.usefixtures("no_console_errors")


@pytest.fixture
def result(kept: None) -> Callable[..., xr.Dataset]:
    """`result(analysis, task, **params)`: what the dashboard's store holds, and nothing that it does not."""

    def find(analysis: str, task: str, model: str = MODEL, **params: object) -> xr.Dataset:
        found = stored(specify(analysis, model, wb.task(task, n=N), params))
        assert found is not None
        return found

    return find


def visit(page: Page, app: App, part: str, **chosen: object) -> None:
    page.goto(app.address(**{**ADDRESS, "route": list(PARTS).index(part), **chosen}))
    tab(page, part).wait_for()


def wait_for(page: Page, part: str) -> None:
    """Until a part shows all its figures."""
    page.locator(".gtitle:visible").nth(DRAWN[part] - 1).wait_for(timeout=SLOW)


def test_each_part_draws_and_can_be_read(page: Page, app: App, readable: Callable) -> None:
    visit(page, app, "Load", surgery=EDIT)
    for place, name in enumerate(PARTS):
        tab(page, name).click()
        wait_for(page, name)
        expect(page.get_by_text("Ready", exact=True)).to_be_visible(timeout=SLOW)
        expect(page.get_by_role("button", name="Show code").locator("visible=true")).to_be_visible()
        assert state(page) | {"route": str(place), "page": "2"} == state(page)
        readable(TEXTS, name)
    page.set_viewport_size({"width": 1920, "height": 900})
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    for name in PARTS:
        tab(page, name).click()
        wait_for(page, name)
        readable(TEXTS, name)


def test_what_is_said_is_what_python_finds(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Load")
    wait_for(page, "Load")
    both = [result("routing", task, length=LENGTH) for task in ("greater_than", "induction")]
    expect(headline(page)).to_contain_text(f"of greater_than ({float(both[0]['load'].max()):.0%})")
    balance = page.locator("td:visible").nth(1)
    expect(balance).to_contain_text(f"{float(both[0]['balance'][0]):.3f}even {float(both[0]['balance_null'][0]):.3f}")
    page.get_by_role("button", name="Second task").locator("visible=true").click()
    expect(balance).to_contain_text(f"{float(both[1]['balance'][0]):.3f}even")
    tab(page, "Tasks").click()
    compared = wb.task_routing(*both).sel(measured="task given the token")
    over = compared["specialisation"] - compared["specialisation_random_high"]
    told = float(compared["specialisation"][int(over.values.argmax())])
    expect(headline(page)).to_contain_text(f"tells {told:.3f} of which of 2 tasks", timeout=SLOW)
    tab(page, "Training").click()
    wait_for(page, "Training")
    steps = [f"{MODEL}@{step}" for step in checkpoints(MODEL)]
    first, *_, last = (result("routing", "greater_than", model, length=LENGTH) for model in (*steps, MODEL))
    same = (first["chosen"].values[..., None] == last["chosen"].values[..., None, :]).any(-1)
    kept = same[last["counted"].values > 0].mean((0, 2))  # by layer
    expect(headline(page)).to_contain_text(f"a token has {kept.min():.0%} to {kept.max():.0%} of its", timeout=SLOW)
    tab(page, "Causal").click()
    wait_for(page, "Causal")
    lost = result("expert_ablation", "greater_than", length=LENGTH)
    needed = int(((lost["lost"] > lost["lost_null_high"]) & (lost["lost_low"] > 0)).sum())
    said = f"{needed} of {lost['lost'].size} experts cost" if needed else "No expert costs the task more"
    expect(headline(page)).to_contain_text(said, timeout=SLOW)


def test_surgery_is_done_undone_and_shared(page: Page, app: App, result: Callable, until: Callable) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit(page, app, "Surgery", layer=1)
    expect(page.get_by_text(re.compile("^No edits yet"))).to_be_visible(timeout=SLOW)
    field, verdict = page.get_by_role("textbox", name="Edits"), page.locator(".MuiAlert-message:visible").nth(1)
    page.get_by_role("button", name="Add edit").click()
    expect(field).to_have_value(re.compile(r"^L1E\d=mute$"))
    first = field.input_value()
    found = result_of(result, first, page)
    change, low, high = (float(found[f"metric_change{end}"]) for end in ("", "_low", "_high"))
    expect(verdict).to_contain_text(f"{first}. ")
    expect(verdict).to_contain_text(f"{change:+z.3f} ({low:+z.3f} to {high:+z.3f}), other experts")
    expect(page.locator("td:visible").nth(1)).to_contain_text(str(found.attrs["continuation_after"]).split()[0])
    page.get_by_role("button", name="Show the hooks").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    until(lambda: page.evaluate("navigator.clipboard.readText()") == found.attrs["code"])
    field.fill(f"{first}; L1E0=<b>")
    field.press("Enter")
    problem = page.locator(".MuiFormHelperText-root:visible")
    expect(problem).to_have_text(
        "'L1E0=<b>' is no edit of an expert; write it like L2E5=mute, L1E3=force@S2 or L0E1=0.5."
    )
    expect(verdict).to_contain_text(f"{first}. ")
    undo, redo = (page.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    undo.click()
    expect(field).to_have_value(first)
    expect(problem).to_have_text(re.compile("^Write edits like"))
    undo.click()
    expect(field).to_have_value("")
    expect(undo).to_be_disabled()
    redo.click()
    expect(field).to_have_value(first)
    expect(redo).to_be_enabled()
    sentence = verdict.inner_text()
    again = page.context.new_page()
    again.goto(page.url)
    expect(again.get_by_role("textbox", name="Edits")).to_have_value(first)
    expect(again.locator(".MuiAlert-message:visible").nth(1)).to_have_text(sentence, timeout=SLOW)
    again.get_by_role("button", name=f"Take out {first}").click()
    expect(again.get_by_role("textbox", name="Edits")).to_have_value("")
    again.close()


def result_of(result: Callable, edits: str, page: Page) -> xr.Dataset:
    """What the store holds of a surgery, once it is drawn."""
    page.locator(".gtitle:visible", has_text=edits_of(edits)[0]).wait_for(timeout=SLOW)
    return result("route_surgery", "greater_than", edits=edits)


def test_a_model_without_routers_is_one_sentence(page: Page, app: App) -> None:
    visit(page, app, "Surgery", model="zoo/tasks")
    expect(headline(page)).to_contain_text("zoo/tasks has no routers")
    expect(headline(page)).to_contain_text(f"choose {MODEL}")
    expect(page.get_by_role("button", name="Show code").locator("visible=true")).to_have_count(0)
    choose(page, "Model", MODEL)
    expect(page.get_by_text(re.compile("^No edits yet"))).to_be_visible(timeout=SLOW)


def test_stop_ends_a_long_measurement_and_the_page_stays_usable(page: Page, app: App) -> None:
    visit(page, app, "Causal", n=128)
    page.get_by_text(re.compile(r"routing_circuit \w+: \d+ of \d+")).wait_for(timeout=SLOW)
    page.get_by_role("button", name="Stop").click()
    expect(headline(page)).to_have_text(re.compile("^Stopped early, so nothing new is drawn"))
    expect(page.get_by_text("Ready", exact=True)).to_be_visible()
    tab(page, "Load").click()
    wait_for(page, "Load")
