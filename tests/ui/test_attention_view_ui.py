"""The attention view in real pages: what is painted, said, fetched, selected and saved, in Panel and in JupyterLab."""

import base64
import io
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import AttentionView
from widgets.attention_view import traits_of
from workbench.app.hosting import panelize

HOSTILE = "<img/src=x/onerror=document.title='gone'>"
TOKENS = ["<bos>", "When", " Mary", "\n", HOSTILE, " gave"]
PATTERN = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0.9, 0.1, 0, 0, 0, 0],
        [0.3, 0.2, 0.5, 0, 0, 0],
        [0.25, 0.25, 0.25, 0.25, 0, 0],
        [0.96, 0.01, 0.01, 0.01, 0.01, 0],
        [0.2, 0, 0.63, 0.02, 0.05, 0.1],
    ]
)
TEXTS = (
    ".rw-title, .rw-quantity, .rw-ends > *, .rw-label, .rw-chip, .rw-live, .rw-read, .rw-tool, .rw-control, .rw-button,"
    " .rw-sink, .rw-caption"
)
# The colour of a cell of a canvas: red, green, blue, alpha.
CELL = """(canvas, [query, key, size]) => {
  const at = index => Math.floor((index + 0.5) * canvas.width / size)
  return [...canvas.getContext('2d').getImageData(at(key), at(query), 1, 1).data]
}"""


def causal(size: int, seed: int) -> np.ndarray:
    weights = np.exp(np.random.default_rng(seed).normal(0, 2, (size, size))) * np.tri(size)
    return weights / weights.sum(1, keepdims=True)


def several(layers: int, heads: int, size: int = 6) -> np.ndarray:
    return np.stack([[causal(size, 10 * layer + head) for head in range(heads)] for layer in range(layers)])


@pytest.fixture
def show(page: Page, serve):
    """`show(traits)` serves the view as a Panel component, waits for its maps and returns it."""

    def start(traits: dict, maps: bool = True):
        component = panelize(AttentionView)(**traits)
        page.goto(serve(component))
        page.locator(".rw-plate").first.wait_for()
        if maps:
            wait_for_maps(page)
        return component

    return start


def wait_for_maps(page: Page) -> None:
    expect(page.locator(".rw-waiting:visible")).to_have_count(0)


def canvas(page: Page, at: int = 0) -> Locator:
    return page.locator(".rw-canvas").nth(at)


def cells(page: Page, size: int, at: int = 0) -> np.ndarray:
    """Colours [query, key, 4] of a map."""
    script = f"""(canvas, size) => Array.from({{ length: size }}, (_, query) =>
      Array.from({{ length: size }}, (_, key) => ({CELL})(canvas, [query, key, size])))"""
    return np.array(canvas(page, at).evaluate(script, size))


def ramp(page: Page) -> np.ndarray:
    """The legend's 256 colours."""
    script = "it => [...it.getContext('2d').getImageData(0, 0, 256, 1).data]"
    return np.array(page.locator(".rw-ramp").evaluate(script)).reshape(256, 4)


def expect_painted(page: Page, shares: np.ndarray, at: int = 0, tolerance: float = 0.006) -> None:
    """Every visible cell has the legend's colour at its share of the scale, up to what a byte can tell apart."""
    size, table = len(shares), ramp(page)[:, :3]
    found = cells(page, size, at)
    assert (found[..., 3][np.triu_indices(size, 1)] == 0).all(), "nothing is drawn above the diagonal"
    for query, key in zip(*np.tril_indices(size), strict=True):
        low, high = (int(np.clip(255 * (shares[query, key] + way * tolerance) + way, 0, 255)) for way in (-1, 1))
        near = np.abs(table[low : high + 1] - found[query, key, :3]).sum(1).min()
        assert near <= 3, (query, key, shares[query, key], found[query, key])


def hover(page: Page, query: int, key: int, size: int = 6, at: int = 0) -> None:
    box = canvas(page, at).bounding_box()
    cell = box["width"] / size
    page.mouse.move(box["x"] + (key + 0.5) * cell, box["y"] + (query + 0.5) * cell)


def live(page: Page) -> Locator:
    return page.locator(".rw-live[aria-live=polite]")


def chosen(page: Page) -> Locator:
    return page.locator(".rw-strip").get_by_role("option", selected=True)


def option(page: Page, position: int) -> Locator:
    return page.locator(".rw-strip").first.get_by_role("option", name=re.compile(rf", position {position}$"))


def head(page: Page, name: str) -> Locator:
    return page.get_by_role("listbox", name="Heads").get_by_role("option", name=re.compile(f"^{name},"))


def picker(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Heads")


def choose(page: Page, tool: str, value: str) -> None:
    page.locator(f"select[name={tool}]").select_option(value)


class Recorder:
    """A source that remembers what it was asked for."""

    def __init__(self, pattern: np.ndarray) -> None:
        self.pattern, self.asked = pattern, []

    def __call__(self, side: int, layer: int, head: int, kind: str) -> np.ndarray:
        self.asked.append((layer, head))
        return self.pattern[layer, head]

    def traits(self, tokens: list[str]) -> dict:
        layers, heads = self.pattern.shape[:2]
        return {"source": self, "tokens": tokens, "layers": list(range(layers)), "heads": list(range(heads))}


def test_a_grid_paints_every_head_in_the_legend_s_colours(page: Page, show) -> None:
    pattern = several(2, 3)
    show(traits_of(pattern, TOKENS, title="a prompt"))
    expect(page.locator(".rw-title")).to_have_text("6 heads on a prompt")
    expect(page.locator(".rw-cell > .rw-label")).to_have_text(["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2"])
    for at in range(6):
        expect_painted(page, pattern[at // 3, at % 3], at)
    expect(page.locator(".rw-ends")).to_have_text("0.000.501.00")
    # The layers are rows.
    first, second, below = (head(page, name).bounding_box() for name in ("L0H0", "L0H1", "L1H0"))
    assert first["y"] == second["y"] and first["x"] == below["x"] and below["y"] > first["y"]


def test_only_the_heads_on_screen_are_fetched_and_none_twice(page: Page, show, until) -> None:
    source = Recorder(several(40, 3))
    show(source.traits(TOKENS))
    first = list(source.asked)
    assert 3 <= len(first) < 60 and len(set(first)) == len(first) and (39, 0) not in first
    head(page, "L39H2").scroll_into_view_if_needed()
    until(lambda: (39, 2) in source.asked)
    wait_for_maps(page)
    seen = len(source.asked)
    assert len(set(source.asked)) == seen < 120
    head(page, "L39H2").click()
    expect(page.locator(".rw-title")).to_have_text("L39H2")
    wait_for_maps(page)
    assert len(source.asked) == seen, "the small map was the whole map already"
    page.keyboard.press("Escape")
    picker(page).fill("L20 L30H1")
    page.keyboard.press("Enter")
    expect(page.locator(".rw-cell")).to_have_count(4)
    wait_for_maps(page)
    assert set(source.asked[seen:]) <= {(20, 0), (20, 1), (20, 2), (30, 1)}


def test_heads_are_picked_by_name(page: Page, show, until) -> None:
    component = show(traits_of(several(3, 2), TOKENS))
    box = picker(page)
    for text, expected in [("l1", [[1, 0], [1, 1]]), ("L0H1, 2.0", [[0, 1], [2, 0]]), ("", [])]:
        box.fill(text)
        box.press("Enter")
        until(lambda wanted=expected: component.shown == wanted)
    box.fill("L9")
    box.press("Enter")
    expect(box).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text("No head is named 'L9' here")).to_be_visible()
    component.shown = [[2, 0], [2, 1], [0, 1]]
    expect(page.locator(".rw-cell > .rw-label")).to_have_text(["L2H0", "L2H1", "L0H1"])


def test_a_click_on_a_token_a_row_or_a_column_selects(page: Page, show, until) -> None:
    component = show(traits_of(PATTERN, TOKENS, title="a prompt"))
    expect(page.locator(".rw-title")).to_have_text("L0H0 on a prompt")
    option(page, 5).click()
    until(lambda: component.token == 5)
    said = "Query '·gave' (5) attends most to '·Mary' (2) 0.63, '<bos>' (0) 0.20, '·gave' (5) 0.10."
    expect(live(page)).to_have_text(said)
    page.locator(".rw-label[data-axis=query]", has_text="When").click()
    until(lambda: component.token == 1)
    expect(page.locator(".rw-strong")).to_have_text("When")
    page.locator(".rw-label[data-axis=key]", has_text="Mary").click()
    until(lambda: (component.token, component.role) == (2, "key"))
    expect(live(page)).to_have_text(
        "Key '·Mary' (2) is attended to most by '·gave' (5) 0.63, '·Mary' (2) 0.50, '↵' (3) 0.25."
    )
    box = canvas(page).bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.6 * box["height"])
    until(lambda: component.token == 0)
    choose(page, "role", "query")
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.6 * box["height"])
    until(lambda: (component.token, component.role) == (3, "query"))


def test_the_prompt_is_shaded_by_what_the_query_attends_to_and_who_attends_to_the_key(
    page: Page, show, painted
) -> None:
    component = show(traits_of(PATTERN, TOKENS))

    def shades() -> list[list[int]]:
        return [painted(option(page, position))[:3] for position in range(6)]

    table = ramp(page)[:, :3]
    component.token = 5
    expect(chosen(page)).to_have_text("·gave")
    for position, colour in enumerate(shades()):
        assert np.abs(table[round(255 * PATTERN[5, position])] - colour).max() <= 4
    component.role = "key"
    component.token = 2
    expect(chosen(page)).to_have_text("·Mary")
    expect(page.locator(".rw-later")).to_have_text(["<bos>", "When"])
    for position in (2, 3, 4, 5):
        assert np.abs(table[round(255 * PATTERN[position, 2])] - shades()[position]).max() <= 4
    frame, whole = page.locator(".rw-line").bounding_box(), canvas(page).bounding_box()
    assert frame["x"] - whole["x"] == pytest.approx(2 * whole["width"] / 6, abs=1)
    assert frame["height"] == pytest.approx(4 * whole["height"] / 6, abs=1)


def test_hovering_says_the_value_marks_both_sides_and_never_tells_python(page: Page, show) -> None:
    component = show(traits_of(PATTERN, TOKENS))
    before = component._want
    hover(page, 5, 2)
    expect(page.locator(".rw-read")).to_have_text("L0H0: query '·gave' (5) → key '·Mary' (2): 0.63")
    expect(page.locator(".rw-asks")).to_have_text("·gave")
    hover(page, 1, 3)
    expect(page.locator(".rw-read")).to_have_text("L0H0: query 'When' (1) cannot see the later token '↵' (3)")
    expect(page.locator(".rw-later")).to_have_count(4)
    page.mouse.move(2, 2)
    expect(page.locator(".rw-read")).to_be_empty()
    assert component.token == -1 and component._want == before
    expect(page.get_by_text("▾ sink")).to_be_visible()


def test_without_the_sink_every_row_sums_to_one_again(page: Page, show, until) -> None:
    component = show(traits_of(PATTERN, TOKENS))
    page.get_by_label("without sink").check()
    until(lambda: component.masked)
    expect(page.locator(".rw-quantity")).to_have_text("attention probability, without the sink")
    wait_for_maps(page)
    rest = PATTERN[:, 1:] / np.maximum(1 - PATTERN[:, :1], 1e-9)
    found, table = cells(page, 6), ramp(page)[:, :3]
    for query, key in zip(*np.tril_indices(6, -1), strict=True):
        if key and query:
            assert np.abs(table[round(255 * rest[query, key - 1])] - found[query, key, :3]).max() <= 6
    masked = {tuple(colour) for colour in found[:, 0, :3]}
    assert len(masked) == 1 and not any((table == next(iter(masked))).all(1))
    hover(page, 5, 2)
    expect(page.locator(".rw-read")).to_have_text(re.compile(r"'·Mary' \(2\): 0\.79$"))  # 0.63 / 0.8
    hover(page, 5, 0)
    expect(page.locator(".rw-read")).to_have_text(re.compile(": masked$"))
    component.token = 0
    expect(live(page)).to_have_text("Query '<bos>' (0) has nothing left.")
    component.param.update(sinks=[0, 2], token=5)
    expect(live(page)).to_have_text(re.compile(r"attends most to '·gave' \(5\) 0\.59, "))  # 0.1 / 0.17
    expect(page.get_by_text("▾ masked")).to_have_count(2)


def test_three_scales(page: Page, show, until) -> None:
    scores = np.where(np.tri(6) > 0, np.arange(36).reshape(6, 6) - 20.0, -np.inf)
    component = show(traits_of(PATTERN, TOKENS, scores=scores))
    choose(page, "scale", "log")
    expect(page.locator(".rw-ends")).to_have_text("≤ −12−6.000.00")
    wait_for_maps(page)
    expect_painted(page, 1 + np.log(np.maximum(PATTERN, np.exp(-12))) / 12)
    hover(page, 5, 2)
    expect(page.locator(".rw-read")).to_have_text(re.compile(r": −0\.4[5-8]$"))  # ln 0.63 = -0.462, in steps of 0.047
    choose(page, "scale", "score")
    until(lambda: component.scale == "score")
    expect(page.locator(".rw-ends")).to_have_text("−20.00−2.5015.00")
    expect_painted(page, (np.where(np.tri(6) > 0, scores, 0) + 20) / 35)
    hover(page, 3, 1)
    expect(page.locator(".rw-read")).to_have_text(re.compile(r": −(0\.9[3-9]|1\.0[0-7])$"))  # a step is 0.14
    component.param.update(**traits_of(PATTERN, TOKENS))
    expect(page.locator("select[name=scale] option")).to_have_text(["probability", "log"])
    expect(page.locator(".rw-quantity")).to_have_text("attention probability")


def test_two_sides_beside_each_other_and_their_difference(page: Page, show, until) -> None:
    a, b = several(2, 2), several(2, 2)[::-1]
    traits = traits_of(a, TOKENS, other=b, tokens_b=["<s>", *TOKENS[1:]], names=["step 1", "step 2"], token=5)
    component = show({**traits, "compare": "beside", "selected": [0, 1]})
    expect(page.locator(".rw-title")).to_have_text("L0H1 · step 1 L0H1 and step 2 L0H1")
    expect_painted(page, a[0, 1], 0)
    expect_painted(page, b[0, 1], 1)
    expect(chosen(page)).to_have_text(["·gave", "·gave"])
    hover(page, 5, 0, at=1)
    expect(page.locator(".rw-read")).to_have_text(re.compile(r"^step 2 L0H1: query '·gave' \(5\) → key '<s>' \(0\)"))
    choose(page, "compare", "difference")
    until(lambda: component.compare == "difference")
    expect(page.locator(".rw-title")).to_have_text("L0H1 · step 1 L0H1 − step 2 L0H1")
    expect(page.locator(".rw-canvas")).to_have_count(1)
    difference = a[0, 1] - b[0, 1]
    limit = np.abs(difference).max()
    expect(page.locator(".rw-ends")).to_have_text(f"−{limit:.2f}0.00+{limit:.2f}")
    wait_for_maps(page)
    expect_painted(page, 0.5 + difference / limit / 2)
    expect(option(page, 0)).to_have_text("<bos>|<s>")
    most = int(np.abs(difference[5]).argmax())
    sign = "+" if difference[5, most] > 0 else "−"
    expect(live(page)).to_have_text(re.compile(rf"differs most at '[^']+' \({most}\) \{sign}"))
    page.keyboard.press("Escape")
    choose(page, "head", "")
    expect(page.locator(".rw-canvas")).to_have_count(4)
    choose(page, "compare", "b")
    wait_for_maps(page)
    expect_painted(page, b[1, 0], 2)


def test_two_heads_are_compared_on_one_prompt(page: Page, show, until) -> None:
    pattern = several(2, 2)
    component = show(traits_of(pattern, TOKENS, selected=[0, 0]))
    choose(page, "compare", "beside")
    until(lambda: (component.compare, component.versus) == ("beside", [0, 1]))
    wait_for_maps(page)
    expect_painted(page, pattern[0, 1], 1)
    choose(page, "versus", "1,1")
    choose(page, "compare", "difference")
    until(lambda: component.versus == [1, 1])
    expect(page.locator(".rw-title")).to_have_text("L0H0 · L0H0 − L1H1")
    wait_for_maps(page)
    difference = pattern[0, 0] - pattern[1, 1]
    expect_painted(page, 0.5 + difference / np.abs(difference).max() / 2)
    choose(page, "versus", "")
    until(lambda: component.compare == "a")


def test_prompts_of_different_lengths_stand_side_by_side_only(page: Page, show) -> None:
    traits = traits_of(several(1, 2), TOKENS, other=several(1, 2, 4), tokens_b=TOKENS[:4], selected=[0, 1], token=5)
    show({**traits, "compare": "beside"})
    expect_painted(page, several(1, 2, 4)[0, 1], 1)
    expect(chosen(page)).to_have_count(1)
    assert page.locator("select[name=compare] option[value=difference]").count() == 0


def test_the_keyboard_reaches_everything(page: Page, show, until) -> None:
    component = show(traits_of(several(2, 3), TOKENS))
    page.locator(".rw-cell[tabindex='0']").focus()
    for key, name in [("ArrowRight", "L0H1"), ("ArrowDown", "L1H1"), ("ArrowDown", "L1H1"), ("End", "L1H2"),
                      ("ArrowUp", "L0H2"), ("Home", "L0H0"), ("ArrowLeft", "L0H0"), ("ArrowDown", "L1H0")]:  # fmt: skip
        page.keyboard.press(key)
        expect(head(page, name)).to_be_focused()
    page.keyboard.press("Enter")
    until(lambda: component.selected == [1, 0])
    large = page.get_by_role("application", name=re.compile(r"^L1H0, 6 queries \(rows\) by keys"))
    expect(large).to_be_focused()
    for key, token in [("ArrowDown", 0), ("ArrowDown", 1), ("PageDown", 5), ("ArrowUp", 4), ("Home", 0), ("End", 5)]:
        page.keyboard.press(key)
        until(lambda expected=token: component.token == expected)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".rw-read")).to_contain_text("query '·gave' (5) → key '<img")
    page.keyboard.press("n")
    until(lambda: component.selected == [1, 1])
    page.keyboard.press("p")
    page.keyboard.press("p")
    until(lambda: component.selected == [0, 2])
    page.keyboard.press("Escape")
    until(lambda: component.selected == [])
    expect(page.locator(".rw-cell").first).to_be_visible()
    expect(page.locator(".rw-cell:focus")).to_have_count(1)
    option(page, 5).focus()
    for key, token in [("ArrowLeft", 4), ("ArrowUp", 3), ("ArrowRight", 4), ("Home", 0), ("Escape", -1)]:
        page.keyboard.press(key)
        until(lambda expected=token: component.token == expected)
    unnamed = page.locator(".rw-tools :is(select, input, button)").evaluate_all(
        "all => all.filter(it => !it.labels?.length && !it.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_a_map_in_both_directions_is_a_square(page: Page, show) -> None:
    pattern = np.random.default_rng(3).dirichlet(np.ones(6), size=6)
    component = show(traits_of(pattern, TOKENS, causal=False, token=1))
    found, table = cells(page, 6), ramp(page)[:, :3]
    assert (found[..., 3] == 255).all()
    for query, key in np.ndindex(6, 6):
        assert np.abs(table[round(255 * pattern[query, key])] - found[query, key, :3]).max() <= 6
    expect(page.locator(".rw-later")).to_have_count(0)
    component.param.update(source=traits_of(np.eye(6), TOKENS)["source"])
    expect(live(page)).to_have_text(re.compile(r"^Query 'When' \(1\) attends most to 'When' \(1\) 1\.00"))


def test_tokens_are_text_and_nothing_else(page: Page, show) -> None:
    component = show(traits_of(PATTERN, TOKENS, title="<i>a</i> prompt", token=4))
    expect(option(page, 4)).to_have_text(HOSTILE)
    expect(option(page, 3)).to_have_text("↵")
    expect(page.get_by_text("L0H0 on <i>a</i> prompt")).to_be_visible()
    hover(page, 5, 4)
    component.param.update(
        tokens_b=["\u202e", "\x00", "\ud800", "", "\ufeff", "日本"], names=["<b>", "</b>"], compare="beside"
    )
    expect(page.locator(".rw-strip").nth(1).get_by_role("option")).to_have_text(["�", "␀", "�", "∅", "�", "日本"])
    assert page.locator(".rw-attention").locator("img, i, b, script").count() == 0
    assert page.title() != "gone"


def test_what_goes_wrong_is_said_on_the_page(page: Page, show) -> None:
    def broken(*_):
        raise RuntimeError("<b>the file is gone</b>")

    component = show({"source": broken, "tokens": TOKENS, "layers": [0], "heads": [0, 1]}, maps=False)
    expect(page.get_by_role("status")).to_contain_text("L0H0: RuntimeError: <b>the file is gone</b>")
    component.source = traits_of(several(1, 2), TOKENS)["source"]
    expect(page.get_by_role("status")).to_be_empty()
    expect_painted(page, several(1, 2)[0, 1], 1)
    component.tokens = []
    expect(page.get_by_text("No prompt to show.")).to_be_visible()
    component.tokens = TOKENS
    expect(page.locator(".rw-cell")).to_have_count(2)


# Renders the module outside any host, against a model without Python that counts its listeners.
STANDALONE = """async ([source, css, state]) => {
  document.head.appendChild(document.createElement('style')).textContent = css
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))
  const { default: widget } = await import(url)
  const listeners = []
  window.wanted = []
  const model = {
    get: name => state[name], save_changes() {},
    set: (name, value) => { state[name] = value; if (name === '_want') window.wanted.push(value.items.length) },
    on: (event, call) => listeners.push([event, call]),
    off: (event, call) => listeners.splice(listeners.findIndex(([e, c]) => e === event && c === call), 1),
  }
  const el = document.body.appendChild(document.createElement('div'))
  const cleanup = widget.render({ model, el })
  window.finish = () => { cleanup(); return [listeners.length, el.childElementCount] }
  return listeners.length
}"""


def test_python_that_never_answers_is_noted_and_nothing_is_left_behind(page: Page, serve) -> None:
    page.goto(serve(pn.pane.Str("empty page")))
    state = {name: trait.default() for name, trait in AttentionView.class_traits(sync=True).items() if name[0] != "_"}
    state |= {"tokens": TOKENS, "layers": [0], "heads": [0, 1, 2], "_parts": None}
    state = {name: value for name, value in state.items() if isinstance(value, (str, int, list, type(None)))}
    listeners = page.evaluate(STANDALONE, [AttentionView.ESM, AttentionView.CSS, state])
    assert listeners == 18
    expect(page.get_by_role("status")).to_contain_text("Python has not answered: it may be busy or stopped.")
    page.wait_for_function("() => wanted.length === 3")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_function("() => wanted.length === 4")
    assert page.evaluate("wanted") == [3] * 4
    assert page.evaluate("finish()") == [0, 0]


def lower(sizes: tuple[int, int, int], sink: int) -> np.ndarray:
    """Heads that look at themselves, but for one token in ten, which looks at the sink."""
    layers, heads, size = sizes
    one = np.eye(size)
    one[5::10] = 0
    one[5::10, sink] = 1
    return np.broadcast_to(one, (layers, heads, size, size))


def test_two_thousand_tokens_are_usable(page: Page, show, until) -> None:
    size = 2048
    tokens = [f" t{position}" for position in range(size)]
    component = show(traits_of(lower((1, 2, size), 3), tokens, sinks=[3], token=1995))
    assert len(component._parts) < 200_000, "a grid gets blocks, not pairs"
    head(page, "L0H1").click()
    until(lambda: len(component._parts) > size * size // 2)
    wait_for_maps(page)
    # Every pixel shows its largest cell, so that a column thinner than a pixel is there, from top to bottom.
    column = np.array(
        canvas(page).evaluate(
            """it => { const x = Math.floor(3 * it.width / 2048)
              return [...it.getContext('2d').getImageData(x, 20, 1, it.height - 20).data] }"""
        )
    ).reshape(-1, 4)
    top = ramp(page)[255, :3]
    assert (np.abs(column[:, :3] - top).max(1) <= 3).mean() > 0.25
    expect(page.locator(".rw-chip")).to_have_count(96)
    expect(chosen(page)).to_have_text("·t1995")
    expect(live(page)).to_have_text(re.compile(r"attends most to '·t3' \(3\) 1\.00"))
    assert page.locator(".rw-label[data-axis=query]").count() < 60
    # The bar above the strip leads to any other part of the prompt.
    bar = page.locator(".rw-overview").bounding_box()
    page.mouse.click(bar["x"] + bar["width"] / 2, bar["y"] + 5)
    until(lambda: abs(component.token - 1024) < 10)
    page.locator(".rw-large .rw-plate").focus()
    for _ in range(6):
        page.keyboard.press("+")
    until(lambda: page.locator(".rw-label[data-axis=query]").count() == 32)
    expect(page.locator(".rw-strong")).to_have_text(f"·t{component.token}")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    expect(page.locator(".rw-strong")).to_be_visible()
    first = int(page.locator(".rw-label[data-axis=key]").first.get_attribute("data-position"))
    box = canvas(page).bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 300 + 5 * box["width"] / 32, box["y"] + 300, steps=4)
    page.mouse.up()
    expect(page.locator(".rw-label[data-axis=key]").first).to_have_attribute("data-position", str(first - 5))
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Whole map")).to_be_hidden()


def saved(page: Page, kind: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=f"as {kind.upper()}").click()
    assert download.value.suggested_filename.endswith(f".{kind}")
    return Path(download.value.path()).read_bytes()


def pixels(png: bytes) -> np.ndarray:
    """The colours [row, column, 4] of a PNG of 8-bit RGBA without interlacing."""
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 6)
    stream, data = io.BytesIO(png[8:]), b""
    while head := stream.read(8):
        length, kind = struct.unpack(">I4s", head)
        body = stream.read(length + 4)[:length]
        data += body if kind == b"IDAT" else b""
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 4 * width).astype(int)
    rows = np.zeros((height + 1, width + 1, 4), int)
    for row, (kind, *line) in enumerate(raw.tolist(), 1):
        for column, part in enumerate(np.reshape(line, (width, 4)), 1):
            left, up, corner = rows[row, column - 1], rows[row - 1, column], rows[row - 1, column - 1]
            guess = left + up - corner
            away = [abs(guess - each) for each in (left, up, corner)]
            paeth = np.where(
                (away[0] <= away[1]) & (away[0] <= away[2]), left, np.where(away[1] <= away[2], up, corner)
            )
            rows[row, column] = (part + [0 * left, left, up, (left + up) // 2, paeth][kind]) % 256
    return rows[1:, 1:]


@pytest.fixture
def exported(page: Page, show):
    """A view with a selection, a hostile token and one that no PDF font has."""
    tokens = [*TOKENS[:4], HOSTILE + ")\\(", "日本"]
    show(traits_of(PATTERN, tokens, title="a prompt", token=5))
    expect(live(page)).to_contain_text("日本")


def test_the_svg_is_what_is_on_screen(page: Page, exported) -> None:
    page.get_by_label("without sink").check()
    expect(live(page)).to_contain_text("0.79")
    text = saved(page, "svg").decode()
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert "L0H0 on a prompt" in texts and "attention probability, without the sink" in texts
    assert texts.count("日本") == 3 and texts.count("▾ masked") == 1 and any("0.79" in each for each in texts)
    assert not list(root.iter(f"{space}img")) and "<img" not in text
    images = list(root.iter(f"{space}image"))
    assert len(images) == 2
    address = images[0].get("href")
    picture = pixels(base64.b64decode(address.removeprefix("data:image/png;base64,")))
    middle = ((np.arange(6) + 0.5) * len(picture) / 6).astype(int)
    np.testing.assert_array_equal(picture[np.ix_(middle, middle)], cells(page, 6))
    box, figure = canvas(page).bounding_box(), page.locator(".rw-figure").bounding_box()
    place = [float(images[0].get(name)) for name in ("x", "y", "width", "height")]
    assert place == pytest.approx(
        [box["x"] - figure["x"] + 8, box["y"] - figure["y"] + 8, box["width"], box["height"]], abs=0.6
    )
    strokes = [node for node in root.iter(f"{space}rect") if node.get("stroke")]
    assert len(strokes) == 8 and "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", text)


def test_the_pdf_is_a_page_that_readers_can_read(page: Page, exported) -> None:
    data = saved(page, "pdf")
    assert data.startswith(b"%PDF-1.4\n") and data.endswith(b"%%EOF\n")
    start = int(data.rsplit(b"startxref\n", 1)[1].split(b"\n")[0])
    lines = data[start:].split(b"\n")
    assert lines[0] == b"xref"
    count = int(lines[1].split()[1])
    entries = lines[2 : 2 + count]
    assert entries[0] == b"0000000000 65535 f " and all(len(entry) == 19 for entry in entries)
    objects = {}
    for number, entry in enumerate(entries[1:], 1):
        at = int(entry[:10])
        assert data[at:].startswith(b"%d 0 obj\n" % number)
        objects[number] = data[at : data.index(b"endobj", at)]
    for body in objects.values():
        length = re.search(rb"/Length (\d+)>>\nstream\n", body)
        if length:
            stream = body[length.end() :]
            assert stream[int(length[1]) :] == b"\nendstream\n"
        for wanted in re.findall(rb"(\d+) 0 R", body[: body.find(b"stream") if b"stream" in body else None]):
            assert int(wanted) in objects
    catalog = objects[int(re.search(rb"/Root (\d+) 0 R", data)[1])]
    assert b"/Type /Catalog" in catalog
    sheet = next(body for body in objects.values() if b"/Type /Page " in body)
    content = objects[int(re.search(rb"/Contents (\d+)", sheet)[1])]
    drawn = zlib.decompress(content.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]).decode("latin-1")
    shown = [re.sub(r"\\(.)", r"\1", text) for text in re.findall(r"\((.*)\) Tj ET", drawn)]
    assert "L0H0 on a prompt" in shown and HOSTILE + ")\\(" in shown and "\u00b7Mary" in shown
    assert drawn.count("q ") == drawn.count("Q") and drawn.count("BT ") == drawn.count(" ET")
    # The map, the legend, and a picture of every text that the fonts do not have.
    pictures = re.findall(rb"/I(\d+) (\d+) 0 R", sheet)
    assert len(pictures) >= 2 + 3
    widths = [int(re.search(rb"/Width (\d+)", objects[int(number)])[1]) for _, number in pictures]
    at = widths.index(max(width for width in widths if width != 256))
    raw = zlib.decompress(objects[int(pictures[at][1])].split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0])
    picture = np.frombuffer(raw, np.uint8).reshape(widths[at], widths[at], 3)
    middle = ((np.arange(6) + 0.5) * widths[at] / 6).astype(int)
    found = cells(page, 6)
    inside = np.tril_indices(6)
    np.testing.assert_array_equal(picture[np.ix_(middle, middle)][inside], found[inside][:, :3])


def test_text_is_readable_in_light_and_dark_and_maps_follow_the_theme(page: Page, serve, unreadable) -> None:
    # The last query attends in every shade, so that the text of a chip meets every ground.
    shades = np.tri(50)
    shades[-1] = np.linspace(0, 1, 50)
    pattern = np.stack([shades, shades])
    component = panelize(AttentionView)(**traits_of(pattern, list("abcde" * 10), token=49, masked=False))
    page.goto(serve(pmui.Page(title="View", theme_toggle=True, main=[component])))
    page.locator(".rw-plate").first.wait_for()
    wait_for_maps(page)
    expect(page.locator(".rw-later")).to_have_count(0)
    light = cells(page, 50)
    assert unreadable(TEXTS) == []
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".rw-title").first).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    page.wait_for_function("() => true")
    component.selected = [0, 1]
    page.locator(".rw-large").wait_for()
    wait_for_maps(page)
    expect_painted(page, shades)
    assert unreadable(TEXTS) == []
    dark = cells(page, 50)
    assert light[40, 40, :3].sum() < 200 < 500 < dark[40, 40, :3].sum(), "what is most stands out from the page"
    component.compare, component.versus = "difference", [0, 0]
    expect(page.locator(".rw-quantity")).to_have_text("difference of attention probability")
    assert unreadable(TEXTS) == []
    for part in (".rw-ramp", ".rw-canvas"):
        page.locator(part).wait_for()


def test_the_theme_alone_repaints_the_maps(page: Page, serve, until) -> None:
    component = panelize(AttentionView)(**traits_of(several(1, 2), TOKENS))
    page.goto(serve(pmui.Page(title="View", theme_toggle=True, main=[component])))
    page.locator(".rw-plate").first.wait_for()
    wait_for_maps(page)
    until(lambda: cells(page, 6)[0, 0, 3] == 255)
    before = cells(page, 6)[0, 0]
    page.get_by_role("button", name="Toggle theme").click()
    until(lambda: cells(page, 6)[0, 0, :3].sum() > before[:3].sum() + 200)


def test_a_removed_component_comes_back_alive(page: Page, serve, until) -> None:
    component = panelize(AttentionView)(**traits_of(several(1, 2), TOKENS))
    column = pn.Column(component, pn.pane.Str("below"))
    page.goto(serve(column))
    page.locator(".rw-plate").first.wait_for()
    wait_for_maps(page)
    column.pop(0)
    expect(page.locator(".rw-attention")).to_have_count(0)
    component.token = 4
    column.append(component)
    expect(chosen(page)).to_have_text(HOSTILE)
    head(page, "L0H1").click()
    until(lambda: component.selected == [0, 1])
    wait_for_maps(page)
    expect_painted(page, several(1, 2)[0, 1])


MADE = f"""import numpy as np
from widgets import AttentionView
from widgets.attention_view import traits_of
pattern = np.stack([np.eye(6), np.array({PATTERN.tolist()!r})])
asked = []
traits = traits_of(pattern, {TOKENS!r}, title="a prompt")
source = traits.pop("source")
def counted(*place):
    asked.append(place)
    return source(*place)
view = AttentionView(source=counted, **traits)
import ipywidgets
told = ipywidgets.Label()
def tell(_):
    told.value = f"Python knows {{view.selected}} {{view.token}} {{view.masked}}"
view.observe(tell, ["selected", "token", "masked"])
display(view, told)"""


def test_the_same_file_works_in_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    opened = run_notebook(MADE)
    assert opened.errors() == []
    page.locator(".rw-plate").first.wait_for()
    wait_for_maps(page)
    expect_painted(page, PATTERN, 1)
    assert opened.run("assert asked == [(0, 0, 0, 'pattern'), (0, 0, 1, 'pattern')], asked") == []
    head(page, "L0H1").click()
    expect(page.locator(".rw-title")).to_have_text("L0H1 on a prompt")
    # The arrow keys stay with the widget instead of moving to another notebook cell.
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    expect(chosen(page)).to_have_text(HOSTILE)
    expect(page.get_by_text("Python knows [0, 1] 4 False")).to_be_visible()
    option(page, 5).click()
    expect(live(page)).to_contain_text("attends most to '·Mary' (2) 0.63")
    page.get_by_label("without sink").check()
    expect(live(page)).to_contain_text("attends most to '·Mary' (2) 0.79")
    expect(page.get_by_text("Python knows [0, 1] 5 True")).to_be_visible()
    assert opened.run("view.show(masked=False, token=2, scale='log')") == []
    expect(live(page)).to_have_text(re.compile(r"^Query '·Mary' \(2\) attends most to '·Mary' \(2\) −0\.[67]"))
    assert saved(page, "pdf").startswith(b"%PDF")
    assert unreadable(TEXTS) == []
    before = cells(page, 6)[0, 0]
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.wait_for_function(
        f"sum => ({CELL})(document.querySelector('.rw-canvas'), [0, 0, 6]).slice(0, 3).reduce((a, b) => a + b) > sum",
        arg=int(before[:3].sum()) + 200,
    )
    assert unreadable(TEXTS) == []
