"""The parts of the Circuits page, as a person opens them one after the other."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from dashboards import SLOW, App, expect_outlined, headline, state, tab, visible
from playwright.sync_api import Locator, Page, expect

import workbench as wb
from workbench.analyses import circuit_sets
from workbench.app.circuits import PARTS
from workbench.models.reference import checkpoints
from workbench.results import specify, stored

MODEL, N = "zoo/tasks", 8
SOON = 15_000  # where nothing is computed
# Prompts of one length are measured fastest.
PAIR = {"n": N, "task_a": "greater_than", "corruption_a": "year_01", "task_b": "colored_objects"}
TITLES = ("greater_than (year_01)", "colored_objects (value_swap)")
# What is there once a part is drawn: so many of each, or more.
DRAWN = {
    "Heads": {".rw-head-grid .rw-cell": 48, ".gtitle": 1, ".rw-attention .rw-title": 1},
    "Paths": {".rw-cell": 48},
    "Edges": {".rw-node": 29, ".gtitle": 2},
    "Reuse": {".gtitle": 3},
    "Roles": {".gtitle": 1, ".rw-cell": 48},
    "Repair": {".rw-token": 23},
}
WORDS = ".MuiTypography-root, .MuiAlert-message span, .rw-title, .rw-quantity, .rw-label, .rw-chip, .rw-text, .rw-count"
NAMES = ".rw-name, .rw-number, .rw-status, .rw-hint, .gtitle, .xtick text, .ytick text, .legendtext, .cell-text"
TEXTS = visible(WORDS, NAMES)
pytestmark = pytest.mark.usefixtures("no_console_errors")


@pytest.fixture
def result(kept: None) -> Callable[..., xr.Dataset]:
    """`result(analysis, task, **params)`: what the dashboard's store holds, or computed as it would be."""

    def find(analysis: str, task: str, **params: object) -> xr.Dataset:
        corruption = "year_01" if task == "greater_than" else "value_swap"
        return wb.run(analysis, MODEL, wb.task(task, n=N, corruption=corruption), **params)

    return find


def part_of(name: str) -> int:
    return list(PARTS).index(name)


def visit(page: Page, app: App, part: str, **chosen: object) -> None:
    page.goto(app.address(**{**PAIR, "part": part_of(part), **chosen}))
    tab(page, part).wait_for()


def wait_for(page: Page, part: str) -> None:
    """Until a part shows all that it draws of itself."""
    for selector, count in DRAWN[part].items():
        page.locator(f"{selector}:visible").nth(count - 1).wait_for(timeout=SLOW)


def figure(page: Page, title: str) -> Locator:
    return page.locator(".js-plotly-plot:visible").filter(has=page.locator(".gtitle", has_text=title))


def texts(figure: Locator, selector: str = "text") -> list[str]:
    """What is written in a figure."""
    found = figure.locator(selector).all_text_contents()
    return [text.replace("\u200b", "").replace("\xa0", " ").strip() for text in found]


def node(page: Page, name: str) -> Locator:
    return page.get_by_role("gridcell", name=re.compile(rf"^(head )?{name},")).and_(page.locator(".rw-node"))


def test_each_part_opens_by_its_tab_and_draws(page: Page, app: App) -> None:
    visit(page, app, "Heads")
    for place, name in enumerate(PARTS):
        tab(page, name).click()
        wait_for(page, name)
        expect(tab(page, name)).to_have_attribute("aria-selected", "true")
        assert state(page)["part"] == str(place)
        expect(page.get_by_text("Ready")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("tab", selected=True)).to_have_text(["Circuits", "Repair"])


def test_the_address_opens_the_part_with_as_many_edges(page: Page, app: App) -> None:
    visit(page, app, "Edges", edges=100)
    expect(page.locator(".rw-count")).to_have_text(re.compile("^100 of "), timeout=SLOW)
    expect(tab(page, "Edges")).to_have_attribute("aria-selected", "true")
    assert state(page) | {"part": "2", "edges": "100"} == state(page)
    again = page.context.new_page()
    again.goto(page.url)
    expect(again.locator(".rw-count")).to_have_text(page.locator(".rw-count").inner_text())
    expect(tab(again, "Edges")).to_have_attribute("aria-selected", "true")
    assert state(again) == state(page)


@pytest.mark.parametrize(("name", "text", "kept"), [("part", "9", "0"), ("edges", "-1", "40"), ("edges", "x", "40")])
def test_a_foreign_value_is_left_out_of_the_address(name: str, text: str, kept: str, page: Page, app: App) -> None:
    page.goto(app.address(**PAIR, **{name: text}))
    said = f"Left out of the address, as there is no such thing here: {name}={text}."
    expect(page.get_by_text(said)).to_be_visible()
    expect(tab(page, "Heads")).to_have_attribute("aria-selected", "true")
    expect(page).to_have_url(re.compile(f"{name}={kept}(&|$)"))


def test_paths_are_drawn_stage_by_stage_and_wrong_stages_are_said(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Paths", task_a="ioi", corruption_a="value_swap")
    wait_for(page, "Paths")
    stages = page.get_by_label("Stages")

    def ask(text: str) -> None:
        stages.fill(text)
        stages.press("Enter")

    titles = page.locator(".rw-title:visible")
    ask("logits@END; q@END; v@S2")
    expect(titles).to_have_count(3, timeout=SLOW)
    receivers = result("path_patching", "ioi", stages="logits@END; q@END; v@S2", top=0.05)["receiver"].values
    expect(titles).to_have_text([str(name) for name in receivers])
    ends = [re.sub(r"^L\d+H\d+(,L\d+H\d+)*\.", "", str(name)) for name in receivers]
    assert ends == ["logits@END", "q@END", "v@S2"]
    expect(headline(page)).to_contain_text("ioi (value_swap): 3 stages")
    ask("nonsense")
    expect(headline(page)).to_have_text("The stage 'nonsense' has no position; write it like logits@END or q@END.")
    expect(page.get_by_text("Ready")).to_be_visible()
    ask("logits@END")
    expect(titles).to_have_text(["logits@END"], timeout=SLOW)
    expect(headline(page)).to_contain_text("ioi (value_swap): 1 stage")


def test_the_edges_shown_are_those_of_the_address_and_of_the_mark(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Edges")
    wait_for(page, "Edges")
    count, slider = page.locator(".rw-count"), page.locator(".rw-range")
    edges, faithful = result("edge_attribution", "greater_than"), result("faithfulness", "greater_than")
    total = int(edges["valid"].sum())
    curve = figure(page, f"faithfulness of {TITLES[0]}")

    def expect_size(shown: int, address: int) -> None:
        expect(count).to_have_text(f"{shown} of {total} edges")
        expect(page).to_have_url(re.compile(f"edges={address}(&|$)"))
        mark = rf"^\s*{shown} edges \(.*\): f = {float(faithful['faithfulness'].sel(size=shown)):z.2f}, random "
        expect(curve.locator("text", has_text=re.compile(mark))).to_be_visible()

    expect_size(40, 40)
    slider.press("Home")
    expect_size(1, 1)
    slider.press("End")
    expect_size(total, 0)


def test_a_head_is_selected_in_the_graph_and_in_the_maps_alike(page: Page, app: App) -> None:
    visit(page, app, "Edges")
    wait_for(page, "Edges")
    node(page, "L2H4").click()
    expect(page).to_have_url(re.compile("head=L2H4"))
    tab(page, "Heads").click()
    wait_for(page, "Heads")
    expect_outlined(page, "L2H4")
    expect(page.locator(".rw-attention .rw-title")).to_have_text(re.compile("^L2H4 on prompt 0"))
    page.locator(".rw-cell:visible").and_(page.get_by_label(re.compile("^L0H1,"))).first.click()
    expect(page).to_have_url(re.compile("head=L0H1"))
    tab(page, "Edges").click()
    expect(node(page, "L0H1")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".rw-node[aria-selected=true]")).to_have_count(1)
    tab(page, "Roles").click()
    wait_for(page, "Roles")
    maps = page.locator(".rw-title:visible").count()
    expect(page.locator(".rw-cell[aria-selected=true]:visible")).to_have_count(maps)


def test_a_head_cleared_in_the_maps_is_cleared_in_the_graph(page: Page, app: App) -> None:
    visit(page, app, "Edges", head="L2H4")
    wait_for(page, "Edges")
    expect(node(page, "L2H4")).to_have_attribute("aria-selected", "true")
    tab(page, "Heads").click()
    wait_for(page, "Heads")
    page.locator(".rw-cell[aria-selected=true]:visible").first.press("Escape")
    expect(page).to_have_url(re.compile("head=&"))
    tab(page, "Edges").click()
    expect(page.locator(".rw-node:visible")).to_have_count(29)
    expect(page.locator(".rw-node[aria-selected=true]")).to_have_count(0, timeout=SOON)


def test_shared_edges_are_drawn_and_stop_leaves_them_there(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Edges")
    wait_for(page, "Edges")
    page.get_by_role("button", name="Shared by both").click()
    both = [result("edge_attribution", task) for task in ("greater_than", "colored_objects")]
    shared = int(wb.overlap(*both, top=0.05, draws=200)["shared"].sum())
    expect(page.locator(".rw-quantity:visible")).to_contain_text(f"{shared} edges in every task's circuit")
    expect(page.locator(".rw-count")).to_have_text(f"{min(40, shared)} of {shared} edges")
    page.get_by_text(re.compile(r"faithfulness colored_objects: \d+ of \d+")).wait_for(timeout=SLOW)
    stop = page.get_by_role("button", name="Stop")
    stop.click()
    expect(headline(page)).to_have_text(re.compile("^Stopped early, so nothing new is drawn"))
    expect(stop).to_be_disabled()
    expect(page.get_by_text("Ready")).to_be_visible()
    expect(page.locator(".rw-node:visible")).to_have_count(29)
    expect(page.locator(".rw-count")).to_have_text(f"{min(40, shared)} of {shared} edges")


def test_the_matrices_say_what_python_finds(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Reuse")
    wait_for(page, "Reuse")
    tasks = ("greater_than", "colored_objects")
    heads = wb.overlap(*[result("head_patching", task) for task in tasks], top=0.125)
    edges = wb.overlap(*[result("edge_attribution", task) for task in tasks], top=0.05, draws=200)
    lost = [result("ablation", task, sets=circuit_sets(heads)) for task in tasks]
    cells = []
    for row in range(5):
        for ds in lost:
            at = {name: float(ds[name][row]) for name in ("lost", "lost_null", "lost_null_high")}
            mark = "" if at["lost"] > at["lost_null_high"] else " n.s."
            cells.append(f"{at['lost']:z.2f}{mark}(random {at['lost_null']:z.2f}, 95 % {at['lost_null_high']:z.2f})")
    written = texts(figure(page, "What is lost without each set of heads"))
    assert sorted(text for text in written if "random" in text and text[0] in "-0123456789") == sorted(cells)
    assert {*TITLES, "shared", *(f"only {title}" for title in TITLES)} <= set(written)
    for what, shared in (("heads", heads), ("edges", edges)):
        pair, chance = shared["pair"].values, shared["pair_null"].values
        said = [f"IoU {pair[0, 1]:.2f} (chance {chance[0, 1]:.2f})"] * 2
        said += [f"ceiling {value:.2f}" for value in np.diag(pair)]
        drawn = texts(figure(page, f"{what} shared by {TITLES[0]} and {TITLES[1]}"))
        assert sorted(text for text in drawn if re.match(r"(IoU|ceiling) \d", text)) == sorted(said)
    for place, title in enumerate(TITLES):
        own, null = (float(lost[place][name].sel(component=title)) for name in ("lost", "lost_null"))
        words = f"{own:z.2f} without the circuit of {title} (random heads {null:z.2f})"
        expect(headline(page)).to_contain_text(words)


def test_all_checkpoints_are_traced_and_drawn(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Reuse")
    wait_for(page, "Reuse")
    page.get_by_role("button", name="Trace all checkpoints").click()
    drawn = figure(page, f"Emergence of {TITLES[0]} and {TITLES[1]}")
    drawn.wait_for(timeout=SLOW)
    for words in ("Accuracy of each task", "Overlap of the circuits", "IoU", *TITLES):
        expect(drawn.locator("text", has_text=re.compile(rf"^{re.escape(words)}$"))).to_be_visible()
    task = wb.task("greater_than", n=N, corruption="year_01")
    steps = checkpoints(MODEL)
    assert len(steps) > 2 and all(stored(specify("head_patching", f"{MODEL}@{step}", task, {})) for step in steps)
    expect(figure(page, "What is lost without each set of heads")).to_be_visible()


def test_checkpoints_asked_for_early_do_not_take_the_place_of_the_matrices(page: Page, app: App) -> None:
    visit(page, app, "Reuse", top=0.25)
    page.get_by_text(re.compile(r"ablation \w+: \d+ of \d+")).wait_for(timeout=SLOW)
    page.get_by_role("button", name="Trace all checkpoints").click()
    expect(page.locator(".gtitle:visible")).to_have_count(4)


def test_the_table_lists_the_labelled_heads(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Roles")
    wait_for(page, "Roles")

    def expect_table(task: str, title: str) -> None:
        ds = result("head_roles", task)
        role, score = ds["role"].values, ds["score"].max("component").values
        labelled = sorted(np.argwhere(role >= 0).tolist(), key=lambda at: -score[tuple(at)])
        assert labelled
        expect(headline(page)).to_contain_text(f"{len(labelled)} of 24 heads have a role")
        table = figure(page, f"head_roles of {title}")
        table.wait_for()
        # Plotly sorts cells by column, its header after them or before.
        written = texts(table, ".cell-text")
        heads = [text for text in written if re.fullmatch(r"L\d+H\d+", text)]
        assert heads == [f"L{row}H{column}" for row, column in labelled]
        for row, column in labelled:
            assert str(ds["component"].values[role[row, column]]) in written
            assert f"{score[row, column]:.2f}" in written

    expect_table("greater_than", TITLES[0])
    page.get_by_role("button", name="Second task").locator("visible=true").click()
    expect_table("colored_objects", TITLES[1])


def name_heads(page: Page, text: str) -> None:
    field = page.get_by_label("Heads, like")
    field.fill(text)
    field.press("Enter")


def token(page: Page, name: str) -> Locator:
    return page.get_by_role("checkbox", name=re.compile(rf"\({name}\)"))


def test_an_edit_is_measured_with_the_numbers_of_the_analysis(page: Page, app: App, result: Callable) -> None:
    visit(page, app, "Repair")
    wait_for(page, "Repair")
    measure = page.get_by_role("button", name="Edit and measure")
    name_heads(page, "L0H0")
    expect(page.locator(".rw-title:visible")).to_have_text(re.compile("^L0H0 on prompt 0 of colored_objects"))
    measure.click()
    verdict = page.locator(".MuiAlert-message:visible").nth(1)
    said = "Click the tokens to attend to, then measure."
    expect(verdict).to_have_text(said, timeout=SLOW)
    for name in ("color_other_1", "color_other_2"):
        token(page, name).click()
    expect(page.locator(".rw-status:visible")).to_have_text(re.compile(r"^1/2 on .*color_other_1.*, 1/2 on .*_2\)$"))
    measure.click()
    expect(verdict).to_have_text(re.compile("^Accuracy "), timeout=SLOW)
    ds = result("repair", "colored_objects", heads="L0H0", weights="color_other_1=1,color_other_2=1")
    before, after = (float(value) for value in ds["accuracy"].values)
    low, high = float(ds["accuracy_random"].min()), float(ds["accuracy_random"].max())
    sentence = verdict.inner_text()
    assert sentence.startswith(
        f"Accuracy {before:.3f} unchanged, {after:.3f} with L0H0 edited, {low:.3f} to {high:.3f} with 20 draws"
    )
    assert f"{ds.attrs['mended']} prompts turned right, {ds.attrs['broken']} turned wrong" in sentence
    plot = figure(page, f"repair of {TITLES[1]}")
    expect(plot).to_be_visible()
    assert {f"{before:.2f}", f"{after:.2f}", "edited (L0H0)"} <= set(texts(plot))
    page.get_by_role("button", name="Show code").locator("visible=true").click()
    source = page.locator(".codehilite code:visible")
    expect(source).to_contain_text("weights='color_other_1=1,color_other_2=1'")
    expect(source).to_contain_text("wb.run('repair'")


def test_heads_of_the_repair_are_the_selected_one_unless_named(page: Page, app: App) -> None:
    visit(page, app, "Repair", head="L1H2")
    wait_for(page, "Repair")
    title = page.locator(".rw-title:visible")
    expect(title).to_have_text(re.compile("^L1H2 on prompt 0"))
    name_heads(page, "L0H0, L2H3")
    expect(title).to_have_text(re.compile("^L0H0, L2H3 on prompt 0"))
    name_heads(page, "nonsense")
    expect(headline(page)).to_have_text("'nonsense' is not the name of a head; write it like L9H9.")


def test_the_sentence_on_wrong_heads_goes_with_them(page: Page, app: App) -> None:
    visit(page, app, "Repair")
    wait_for(page, "Repair")
    prompt = headline(page).inner_text()
    name_heads(page, "nonsense")
    expect(headline(page)).to_have_text("'nonsense' is not the name of a head; write it like L9H9.")
    name_heads(page, "L0H0")
    expect(headline(page)).to_have_text(prompt, timeout=SOON)


def test_the_row_can_be_edited_after_another_task_was_chosen(page: Page, app: App) -> None:
    visit(page, app, "Repair")
    wait_for(page, "Repair")
    token(page, "color_other_1").click()
    page.get_by_role("button", name="First task").locator("visible=true").click()
    expect(page.locator(".rw-title:visible")).to_have_text(re.compile("greater_than"), timeout=SOON)
    expect(page.locator(".rw-token:visible")).to_have_count(13)
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    token(page, "year").click()
    expect(page.locator(".rw-status:visible")).to_have_text(re.compile("^1 on "))


@pytest.mark.parametrize("width", [1280, 1920])
def test_every_part_is_readable_and_fits_in_light_and_dark(
    width: int, page: Page, app: App, readable: Callable
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, app, "Heads")
    for dark in (False, True):
        if dark:
            page.get_by_role("button", name="Toggle theme").click()
            expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
        for name in PARTS:
            tab(page, name).click()
            wait_for(page, name)
            readable(TEXTS, name, visible(".js-plotly-plot, .rw-circuit, .rw-attention-row"))
