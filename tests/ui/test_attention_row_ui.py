"""The editor of one attention row in real pages: as a Panel component and, from the same files, in JupyterLab."""

import re

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import attention_row
from widgets.attention_row import AttentionRow
from workbench.app.hosting import panelize

TOKENS = ["<bos>", "The", " red", "<b>x</b>", " blue", "\n", " is", " next", " token"]
NAMES = ["", "", "color_1", "", "color_2", "", "END", "", ""]
WEIGHTS = [0.5, 0, 0.25, 0.004, 0.125, 0, 0.1, 0, 0]
SUGGESTED = [0, 0, 1, 0, 1, 0, 0, 0, 0]
NO_EDIT = "No edit: the heads' own attention"
TEXTS = ".rw-title, .rw-name, .rw-chip, .rw-status, .rw-button, .rw-entry > span:last-child, .rw-hint, .rw-tip"


def traits(**more) -> dict:
    packed = attention_row.pack(TOKENS, WEIGHTS, NAMES)
    return packed | {"query": 6, "suggested": SUGGESTED, "heading": "END row of L3H4, <i>L3H5</i>"} | more


def parts(**by_position: int) -> list[int]:
    """`parts(at2=1)`: what the page should have sent."""
    return [by_position.get(f"at{position}", 0) for position in range(len(TOKENS))]


def token(page: Page, position: int) -> Locator:
    return page.locator(f".rw-token[data-position='{position}']")


def status(page: Page) -> Locator:
    return page.locator(".rw-attention-row").get_by_role("status")


@pytest.fixture
def row(page: Page, serve):
    component = panelize(AttentionRow)(**traits())
    page.goto(serve(component))
    page.get_by_role("checkbox").first.wait_for()
    return component


def test_every_token_says_its_name_and_weights(page: Page, row) -> None:
    expect(page.get_by_role("group", name="END row of L3H4, <i>L3H5</i>")).to_be_visible()
    row.parts = parts(at2=2, at4=1)
    expect(token(page, 2)).to_have_attribute("aria-checked", "true")
    labels = page.get_by_role("checkbox").evaluate_all("all => all.map(it => it.getAttribute('aria-label'))")
    assert labels == [
        "'<bos>' (0), present weight 0.500, edited weight 0",
        "'The' (1), present weight 0.000, edited weight 0",
        "' red' (color_1), present weight 0.250, edited weight 2/3",
        "'<b>x</b>' (3), present weight 0.004, edited weight 0",
        "' blue' (color_2), present weight 0.125, edited weight 1/3",
        "'↵' (5), present weight 0.000, edited weight 0",
        "' is' (END), the query, present weight 0.100, edited weight 0",
        "' next' (7), present weight 0.000, after the query and out of its reach",
        "' token' (8), present weight 0.000, after the query and out of its reach",
    ]


def test_clicked_tokens_share_the_weight_equally(page: Page, row, until) -> None:
    expect(status(page)).to_have_text(NO_EDIT)
    token(page, 2).click()
    until(lambda: row.parts == parts(at2=1))
    expect(status(page)).to_have_text("1 on ' red' (color_1)")
    token(page, 4).click()
    until(lambda: row.parts == parts(at2=1, at4=1))
    expect(status(page)).to_have_text("1/2 on ' red' (color_1), 1/2 on ' blue' (color_2)")
    assert attention_row.shares(row.parts) == (0, 0, 0.5, 0, 0.5, 0, 0, 0, 0)
    token(page, 2).click()
    until(lambda: row.parts == parts(at4=1))
    expect(token(page, 2)).to_have_attribute("aria-checked", "false")
    token(page, 4).click()
    until(lambda: row.parts == [])
    expect(status(page)).to_have_text(NO_EDIT)


def test_shift_click_and_the_plus_and_minus_keys_change_a_part(page: Page, row, until) -> None:
    token(page, 3).click(modifiers=["Shift"])
    token(page, 2).click(modifiers=["Shift"])
    token(page, 2).click(modifiers=["Shift"])
    until(lambda: row.parts == parts(at2=2, at3=1))
    expect(status(page)).to_have_text("2/3 on ' red' (color_1), 1/3 on '<b>x</b>' (3)")
    assert page.evaluate("() => String(getSelection())") == ""
    for key, part in [("+", 3), ("=", 4), ("-", 3), ("-", 2), ("-", 1), ("-", 0), ("-", 0)]:
        page.keyboard.press(key)
        until(lambda expected=part: row.parts == parts(at2=expected, at3=1))
    token(page, 3).focus()
    page.keyboard.press("-")
    until(lambda: row.parts == [])


def test_the_keyboard_moves_toggles_and_clears(page: Page, row, until) -> None:
    page.keyboard.press("Tab")
    expect(token(page, 0)).to_be_focused()
    assert page.locator(".rw-token[tabindex='0']").count() == 1
    for key, position in [("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0), ("End", 8), ("Home", 0)]:
        page.keyboard.press(key)
        expect(token(page, position)).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    until(lambda: row.parts == parts(at0=1, at1=1))
    page.keyboard.press("Enter")
    until(lambda: row.parts == parts(at0=1))
    page.keyboard.press("Escape")
    until(lambda: row.parts == [])
    expect(token(page, 1)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Clear")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(token(page, 1)).to_be_focused()


def test_up_and_down_lead_to_the_nearest_token_of_the_next_line(page: Page, row) -> None:
    row.param.update(tokens=["a"] * 100, weights=b"", names=[], suggested=[], query=-1)
    expect(page.get_by_role("checkbox")).to_have_count(100)
    tops = page.get_by_role("checkbox").evaluate_all("all => all.map(it => it.getBoundingClientRect().top)")
    line = tops.count(tops[0])
    assert 5 < line < 50
    token(page, 3).focus()
    steps = [("ArrowUp", 3), ("ArrowDown", 3 + line), ("ArrowDown", 3 + 2 * line), ("ArrowUp", 3 + line)]
    for key, position in steps:
        page.keyboard.press(key)
        expect(token(page, position)).to_be_focused()


def test_tokens_after_the_query_cannot_be_attended(page: Page, row, until) -> None:
    expect(page.locator(".rw-token[aria-disabled=true]")).to_have_count(2)
    token(page, 7).click(force=True)
    page.keyboard.press("+")
    page.keyboard.press("Enter")
    token(page, 8).click(modifiers=["Shift"], force=True)
    token(page, 6).click()
    until(lambda: row.parts == parts(at6=1))
    row.param.update(parts=[], query=-1)
    expect(page.locator(".rw-token[aria-disabled=true]")).to_have_count(0)
    token(page, 8).click()
    until(lambda: row.parts == parts(at8=1))


def test_the_buttons_clear_and_go_back_to_the_named_tokens(page: Page, row, until) -> None:
    clear = page.get_by_role("button", name="Clear")
    reset = page.get_by_role("button", name="Reset to named")
    expect(clear).to_have_attribute("aria-disabled", "true")
    reset.click()
    until(lambda: row.parts == SUGGESTED)
    expect(status(page)).to_have_text("1/2 on ' red' (color_1), 1/2 on ' blue' (color_2)")
    expect(reset).to_have_attribute("aria-disabled", "true")
    token(page, 0).click()
    until(lambda: row.parts == parts(at0=1, at2=1, at4=1))
    expect(reset).to_have_attribute("aria-disabled", "false")
    clear.click()
    until(lambda: row.parts == [])
    expect(status(page)).to_have_text(NO_EDIT)
    row.suggested = []
    expect(reset).to_have_count(0)
    expect(clear).to_be_visible()


def test_python_edits_the_row_and_replaces_the_prompt(page: Page, row) -> None:
    row.parts = parts(at0=1, at4=3)
    expect(status(page)).to_have_text("1/4 on '<bos>' (0), 3/4 on ' blue' (color_2)")
    token(page, 4).focus()
    packed = attention_row.pack(["a", "b", "c"], [0.5, 0.25, 0.25])
    row.param.update(**packed, parts=[1, 1, 2], query=-1, suggested=[], heading="")
    expect(page.get_by_role("checkbox")).to_have_count(3)
    expect(status(page)).to_have_text("1/4 on 'a' (0), 1/4 on 'b' (1), 1/2 on 'c' (2)")
    # The keyboard stays in the row.
    expect(token(page, 2)).to_be_focused()
    row.param.update(tokens=[str(i) for i in range(12)], weights=b"", parts=[1] * 12)
    expect(status(page)).to_have_text(re.compile(r"^1/12 on '0' \(0\), .*1/12 on '7' \(7\), 1/3 on 4 more$"))


def test_bars_show_weights_on_one_scale_for_all_tokens(page: Page, row, until) -> None:
    row.parts = parts(at2=3, at4=1)
    expect(token(page, 2)).to_have_attribute("aria-checked", "true")

    def filled(kind: str) -> list[float]:
        style = "all => all.map(it => parseFloat(getComputedStyle(it).backgroundSize) / 100)"
        return page.locator(f".rw-token .rw-{kind}").evaluate_all(style)

    assert filled("present") == pytest.approx(WEIGHTS, abs=1e-4)
    assert filled("edited") == pytest.approx([0, 0, 0.75, 0, 0.25, 0, 0, 0, 0])
    widths = page.locator(".rw-token .rw-bar").evaluate_all("all => [...new Set(all.map(it => it.offsetWidth))]")
    assert len(widths) == 1
    row.weights = b""
    expect(page.locator(".rw-present")).to_have_count(0)
    expect(page.locator(".rw-legend")).to_have_text("edited weightqueryafter the querya full bar is 1")


def test_names_stand_above_their_tokens(page: Page, row) -> None:
    for position, name in [(2, "color_1"), (4, "color_2"), (6, "END")]:
        caption = token(page, position).locator(".rw-name")
        expect(caption).to_have_text(name)
        chip = token(page, position).locator(".rw-chip").bounding_box()
        assert caption.bounding_box()["y"] + caption.bounding_box()["height"] <= chip["y"] + 0.5
    expect(page.locator(".rw-name")).to_have_count(3)


def test_pointing_at_a_token_tells_its_numbers_and_never_python(page: Page, row, until) -> None:
    tip = page.get_by_role("tooltip")
    token(page, 2).hover()
    expect(tip).to_have_text("' red' (color_1), present weight 0.250")
    below = token(page, 2).bounding_box()
    assert tip.bounding_box()["y"] >= below["y"] + below["height"]
    token(page, 7).hover(force=True)
    expect(tip).to_contain_text("' next' (7), present weight 0.000, after the query")
    page.mouse.move(1200, 880)
    expect(tip).to_be_hidden()
    assert row.parts == []
    page.keyboard.press("Tab")
    page.keyboard.press("+")
    expect(tip).to_have_text("'<bos>' (0), present weight 0.500, edited weight 1")
    page.keyboard.press("End")
    before = tip.bounding_box()
    page.set_viewport_size({"width": 400, "height": 900})
    until(lambda: tip.bounding_box() != before)
    # It follows its token to another line and stays within the page.
    assert tip.bounding_box()["x"] + tip.bounding_box()["width"] <= 400
    page.keyboard.press("Tab")
    expect(tip).to_be_hidden()


def test_tokens_are_text_and_nothing_else(page: Page, row) -> None:
    token(page, 3).click()
    expect(token(page, 3).locator(".rw-chip")).to_have_text("<b>x</b>")
    expect(token(page, 5).locator(".rw-chip")).to_have_text("↵")
    expect(status(page)).to_have_text("1 on '<b>x</b>' (3)")
    row.param.update(names=["<i>first</i>", *NAMES[1:]], tokens=[*TOKENS[:7], " a very long token indeed", ""])
    expect(page.locator(".rw-name").first).to_have_text("<i>first</i>")
    expect(page.locator(".rw-chip").nth(7)).to_have_text("·a·very·long·…")
    expect(page.locator(".rw-chip").nth(8)).to_have_text("∅")
    assert page.locator(".rw-attention-row").locator("b, i").count() == 0


def test_traits_that_do_not_fit_are_said_in_the_page(page: Page, row) -> None:
    # A component checks nothing by itself.
    row.parts = [1, 2]
    expect(page.get_by_text("parts has 2 entries, there are 9 tokens")).to_be_visible()
    row.parts = parts(at8=1)
    expect(page.get_by_text("parts has a part after the query, at 6")).to_be_visible()
    row.param.update(parts=[], weights=b"\0" * 5)
    expect(page.get_by_text("weights has 5 bytes, 9 tokens need 36")).to_be_visible()
    row.param.update(tokens=[], weights=b"")
    expect(page.get_by_text("No prompt to show.")).to_be_visible()
    row.param.update(**traits(parts=parts(at2=1)))
    expect(status(page)).to_have_text("1 on ' red' (color_1)")


def test_a_removed_component_comes_back_alive(page: Page, serve, until) -> None:
    component = panelize(AttentionRow)(**traits())
    column = pn.Column(component, pn.pane.Str("below"))
    page.goto(serve(column))
    token(page, 2).click()
    until(lambda: component.parts == parts(at2=1))
    column.pop(0)
    expect(page.locator(".rw-attention-row")).to_have_count(0)
    component.parts = parts(at4=1)
    column.append(component)
    expect(token(page, 4)).to_have_attribute("aria-checked", "true")
    token(page, 0).click()
    until(lambda: component.parts == parts(at0=1, at4=1))


# Renders the module outside any host: the model counts its listeners and hands over bytes as JupyterLab does.
STANDALONE = """async ([source, state]) => {
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))
  const { default: widget } = await import(url)
  const listeners = []
  const padded = new Uint8Array([7, ...state.weights])
  const model = {
    get: name => name === 'weights' ? new DataView(padded.buffer, 1) : state[name],
    set() {}, save_changes() {},
    on: (event, call) => listeners.push([event, call]),
    off: (event, call) => listeners.splice(listeners.findIndex(([e, c]) => e === event && c === call), 1),
  }
  const el = document.body.appendChild(document.createElement('div'))
  const cleanup = widget.render({ model, el })
  const found = { most: listeners.length, label: el.querySelector('.rw-token').getAttribute('aria-label') }
  found.tokens = el.querySelectorAll('.rw-token').length
  cleanup()
  return { ...found, left: listeners.length + el.childElementCount }
}"""


def test_a_long_prompt_draws_and_cleans_up(page: Page, serve) -> None:
    page.goto(serve(pn.pane.Str("empty page")))
    packed = attention_row.pack([f" {i}" for i in range(200)], np.full(200, 1 / 200))
    state = packed | {"weights": list(packed["weights"]), "parts": [], "suggested": [], "query": -1, "heading": ""}
    found = page.evaluate(STANDALONE, [AttentionRow.ESM, state])
    assert found == {"most": 7, "label": "' 0' (0), present weight 0.005", "tokens": 200, "left": 0}


def test_text_is_readable_in_light_and_dark(page: Page, serve, unreadable, painted) -> None:
    component = panelize(AttentionRow)(**traits(parts=parts(at2=1, at4=2)))
    page.goto(serve(pmui.Page(title="Widgets", theme_toggle=True, main=[pn.Column(component)])))
    token(page, 2).wait_for()
    light = painted(token(page, 2).locator(".rw-chip"))
    assert unreadable(TEXTS) == []
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".rw-title")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    assert sum(painted(token(page, 2).locator(".rw-chip"))) < sum(light) - 300
    assert unreadable(TEXTS) == []


def test_the_same_files_work_in_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    made = f"from widgets.attention_row import AttentionRow\nrow = AttentionRow(**{traits()!r})\nrow"
    opened = run_notebook(made, "'below'")
    assert opened.errors() == []
    token(page, 2).click()
    token(page, 4).click()
    token(page, 4).click(modifiers=["Shift"])
    expect(status(page)).to_have_text("1/3 on ' red' (color_1), 2/3 on ' blue' (color_2)")
    # JupyterLab keeps a change back while the kernel answers the one before; an empty cell lets it through.
    assert opened.run("None") == []
    assert opened.run(f"assert row.parts == {parts(at2=1, at4=2)}, row.parts") == []
    # The keys stay with the widget instead of moving to, or changing, another notebook cell.
    token(page, 3).click()
    page.keyboard.press("ArrowLeft")
    expect(token(page, 2)).to_be_focused()
    page.keyboard.press("+")
    page.keyboard.press("Shift+Enter")
    expect(status(page)).to_have_text("1/3 on '<b>x</b>' (3), 2/3 on ' blue' (color_2)")
    assert opened.run("None") == []
    assert opened.run("assert row.shares[4] == 2 / 3, row.shares\nrow.parts = []\nrow.heading = 'Other'") == []
    expect(status(page)).to_have_text(NO_EDIT)
    expect(page.get_by_role("group", name="Other")).to_be_visible()
    assert unreadable(TEXTS) == []
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator(".rw-status")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    assert unreadable(TEXTS) == []
