"""The curves of a fine-tune in real pages: as a Panel component and, from the same files, in JupyterLab."""

import re
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import TrainingCurves
from widgets.training_curves import Line, Panel, pack
from workbench.app.hosting import panelize

COLOURS = {"ioi": "#0072b2", "<b>verbs": "#e69f00"}
PANELS = [
    Panel("Training loss", "nats", "loss"),
    Panel("Held-out rows answered rightly", "share", "share"),
    Panel("sink_scores: attention", "", "value"),
]
TEXTS = ".rw-title, .rw-note, .rw-status, .rw-tool, .rw-output, .rw-button, .rw-toggle, .rw-panel-title, .rw-when, "
TEXTS += ".rw-tick, .rw-entry > span:not(:empty), .rw-axis, .rw-hint"
PIXEL = 0.06  # what rounding a place to a tenth of a pixel may move it


def losses(steps: int) -> np.ndarray:
    """Losses [task, step], the second task's in pairs of equal ones."""
    found = 0.05 + np.random.default_rng(1).random((2, steps)) * np.exp(-np.arange(steps) / 20)
    found[1, 1::2] = found[1, ::2]
    return found


def traits(steps: int = 40) -> dict[str, Any]:
    """Two tasks: the first sent step by step, the second as means of pairs of steps."""
    step, values = np.arange(1, steps + 1), losses(steps)
    lines = [Line(0, task, name, step, values[task], role="raw") for task, name in enumerate(COLOURS)]
    lines.append(Line(0, 0, "ioi", step, values[0], role="mean"))
    lines.append(Line(0, 1, "<b>verbs", step[1::2], values[1, 1::2], counts=np.full(steps // 2, 2), role="mean"))
    checks = np.arange(0, steps + 1, 10)
    right = 1 - np.exp(-checks / 15)
    for task, name in enumerate(COLOURS):
        lines.append(Line(1, task, name, checks, right * (1 - task / 9), right * 0.8, np.minimum(1, right + 0.1)))
    lines.append(Line(2, 0, "ioi L0H1", checks[1:], right[1:] - 0.5))
    lines.append(Line(2, -1, "another", checks[1:], right[1:] - 0.7))
    said = {"heading": "lora on <i>two tasks", "note": "bars: intervals", "status": f"running, {steps} of 90"}
    return pack(PANELS, lines, COLOURS) | said


def weighed(values: np.ndarray, width: float) -> np.ndarray:
    """Each value's mean with all before it, whose weight falls by `1 - 1 / width` a step, by its definition."""
    keep = 1 - 1 / width
    weights = [keep ** np.arange(last, -1, -1.0) for last in range(len(values))]
    return np.array([weight @ values[: len(weight)] / weight.sum() for weight in weights])


def ways(page: Page, panel: int) -> list[np.ndarray]:
    """Of each line drawn in a panel its places [point, (x, y)] in pixels."""
    found = page.locator(".rw-panel").nth(panel).locator(".rw-line > .rw-way")
    paths = found.evaluate_all("ways => ways.map(way => way.getAttribute('d'))")
    return [np.array(re.findall(r"[-\d.]+", path), float).reshape(-1, 2) for path in paths]


def scale(page: Page, panel: int, log: bool = False) -> np.poly1d:
    """From values, or their logarithms, to pixels, by the ticks of the axis."""
    ticks = page.locator(".rw-panel").nth(panel).locator(".rw-tick[text-anchor=end]")
    found = ticks.evaluate_all("ticks => ticks.map(it => [it.textContent, Number(it.getAttribute('y')) - 10])")
    values = [float(text.rstrip(" %")) / (100 if "%" in text else 1) for text, _ in found]
    assert len(values) > 1
    return np.poly1d(np.polyfit(np.log(values) if log else values, [y for _, y in found], 1))


def plot(page: Page) -> Locator:
    return page.get_by_role("application", name="Curves over training steps")


@pytest.fixture
def curves(page: Page, serve) -> Any:
    component = panelize(TrainingCurves)(**traits(), span=0.1)
    page.goto(serve(component))
    page.locator(".rw-line").first.wait_for(state="attached")
    return component


def test_lines_are_the_values_the_smoothing_and_the_intervals(page: Page, curves, until) -> None:
    def drawn(expected: list[np.ndarray], log: bool = False) -> None:
        to_pixels = scale(page, 0, log)
        for way, values in zip(ways(page, 0), expected, strict=True):
            np.testing.assert_allclose(way[:, 1], to_pixels(np.log(values) if log else values), atol=2 * PIXEL)
            assert np.ptp(np.diff(way[:, 0])) <= 4 * PIXEL  # steps are as far from one another

    raw = losses(40)
    smooth = [weighed(raw[0], 4), weighed(raw[1], 4)[1::2]]
    drawn([*raw, *smooth])
    expect(page.locator(".rw-output")).to_have_text("mean over 4 steps")
    page.get_by_label("Logarithmic loss").check()
    until(lambda: curves.logarithmic)
    drawn([*raw, *smooth], log=True)
    slider = page.get_by_role("slider", name="Smoothing")
    slider.focus()
    page.keyboard.press("ArrowRight")
    until(lambda: curves.span == pytest.approx(0.105))
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    until(lambda: curves.span == 0)
    expect(page.locator(".rw-output")).to_have_text("off")
    drawn([*raw, *raw], log=True)
    curves.param.update(span=1.0, logarithmic=False)
    expect(page.locator(".rw-output")).to_have_text("mean over 40 steps")
    drawn([*raw, weighed(raw[0], 40), weighed(raw[1], 40)[1::2]])
    bars = page.locator(".rw-panel").nth(1).locator(".rw-line").nth(1).locator(".rw-bars").get_attribute("d")
    ends = np.array(re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", bars), float)
    right, to_pixels = 1 - np.exp(-np.arange(0, 41, 10) / 15), scale(page, 1)
    np.testing.assert_allclose(ends[:, 0], to_pixels(right * 0.8), atol=2 * PIXEL)
    np.testing.assert_allclose(ends[:, 1], to_pixels(np.minimum(1, right + 0.1)), atol=2 * PIXEL)


def test_new_data_leaves_the_reader_where_they_are(page: Page, curves, until) -> None:
    verbs = page.get_by_role("checkbox", name="<b>verbs")
    verbs.focus()
    page.keyboard.press("Space")
    until(lambda: curves.hidden == ["<b>verbs"])
    assert [len(ways(page, panel)) for panel in range(3)] == [2, 1, 2]
    box = page.locator(".rw-svg").first.bounding_box()
    first, last = ways(page, 0)[0][[0, -1], 0] + box["x"] + 54
    at = [first + (last - first) * (step - 1) / 39 for step in (9.5, 20.5)]
    page.mouse.move(at[0], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(at[1], box["y"] + 60, steps=4)
    page.mouse.up()
    across = page.locator(".rw-tick[text-anchor=middle]")
    expect(across.first).not_to_have_text("0")
    shown = across.all_text_contents()
    assert 9 <= int(shown[0]) <= int(shown[-1]) <= 21
    plot(page).focus()
    page.mouse.move(2, 2)
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator(".rw-when").first).to_have_text("step 11")
    value = weighed(losses(40)[0], 4)[10]
    said = page.locator(".rw-live")
    expect(said).to_contain_text(f"Training loss (nats), step 11: ioi {value:.3f} raw {losses(40)[0][10]:.3f}")
    expect(said).to_contain_text("rightly, step 10, the last before: ioi 48.7 % 38.9 to 58.7 %")
    page.locator(".rw-line").first.evaluate("line => line.setAttribute('data-mark', 'same')")
    for steps in (42, 50, 60):
        curves.param.update(**traits(steps))
        expect(page.locator(".rw-status")).to_have_text(f"running, {steps} of 90")
    expect(plot(page)).to_be_focused()
    expect(page.locator("[data-mark=same]")).to_have_count(1)
    assert across.all_text_contents() == shown and curves.hidden == ["<b>verbs"]
    page.keyboard.press("ArrowRight")
    expect(page.locator(".rw-when").first).to_have_text("step 12")
    page.keyboard.press("Escape")
    expect(page.locator(".rw-when").first).to_have_text("last: step 60")
    page.keyboard.press("0")
    expect(across.first).to_have_text("0")
    assert len(ways(page, 0)[0]) == 60
    page.locator(".rw-svg").nth(1).hover(position={"x": 300, "y": 80})
    expect(page.locator(".rw-when").nth(1)).to_have_text(re.compile(r"^step \d+"))
    page.mouse.move(2, 2)
    expect(page.locator(".rw-when").nth(1)).to_have_text("last: step 60")


def test_text_is_readable_in_light_and_dark_whatever_there_is(page: Page, serve, unreadable) -> None:
    made = panelize(TrainingCurves)(**traits())
    page.goto(serve(pmui.Page(title="Curves", theme_toggle=True, main=[pn.Column(made)])))
    page.locator(".rw-line").first.wait_for(state="attached")
    assert unreadable(TEXTS) == []
    assert page.locator(".rw-training-curves").locator("b, i").count() == 0
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".rw-title")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    assert unreadable(TEXTS) == []
    for width in (1920, 620):
        page.set_viewport_size({"width": width, "height": 900})
        drawn = "svgs => Math.max(...svgs.map(svg => svg.getBoundingClientRect().right))"
        room = page.locator(".rw-training-curves").evaluate("root => root.getBoundingClientRect().right")
        expect(page.locator(".rw-narrow")).to_have_count(int(width == 620))
        assert 300 < page.locator(".rw-svg").evaluate_all(drawn) <= room
    made.y = made.y[:8]
    expect(page.get_by_role("alert")).to_contain_text("y has 8 bytes")
    one = [Line(0, 0, "ioi", [1], [2.5], role=role) for role in ("raw", "mean")]
    made.param.update(**pack(PANELS[:2], one, COLOURS))
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator(".rw-panel")).to_have_count(2)
    expect(page.locator(".rw-value")).to_have_text(["2.500"])
    assert page.locator(".rw-dots").nth(1).evaluate("dots => dots.getBBox().x") > 0
    assert unreadable(TEXTS) == []
    made.param.update(**pack([], [], {}))
    expect(page.get_by_text("No step yet.")).to_be_visible()
    expect(page.locator(".rw-body, .rw-tools, .rw-hint").locator("visible=true")).to_have_count(0)


def test_the_same_files_work_in_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    opened = run_notebook(
        f"from widgets import TrainingCurves\ncurves = TrainingCurves(**{traits()!r}, span=0.1)\ncurves"
    )
    assert opened.errors() == []
    page.locator(".rw-line").first.wait_for(state="attached")
    raw = losses(40)
    for way, values in zip(ways(page, 0), [*raw, weighed(raw[0], 4), weighed(raw[1], 4)[1::2]], strict=True):
        np.testing.assert_allclose(way[:, 1], scale(page, 0)(values), atol=2 * PIXEL)
    verbs = page.get_by_role("checkbox", name="<b>verbs")
    verbs.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Logarithmic loss").check()
    plot(page).focus()
    page.keyboard.press("ArrowLeft")  # the keys stay with the widget
    expect(page.locator(".rw-when").first).to_have_text("step 40")
    expect(plot(page)).to_be_focused()
    assert opened.run("assert curves.hidden == ['<b>verbs'] and curves.logarithmic, curves.hidden") == []
    assert opened.run(f"curves.show(**{traits(50)!r})") == []
    expect(page.locator(".rw-status")).to_have_text("running, 50 of 90")
    expect(verbs).to_have_attribute("aria-checked", "false")
    assert len(ways(page, 0)[0]) == 50
    light = page.locator(".rw-title").evaluate("title => getComputedStyle(title).color")
    assert unreadable(TEXTS) == []
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator(".rw-title")).not_to_have_css("color", light)
    assert unreadable(TEXTS) == []


# Renders the module outside any host: the model counts its listeners and hands over bytes as JupyterLab does.
STANDALONE = """async ([source, states]) => {
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))
  const { default: widget } = await import(url)
  const bytes = ['x', 'y', 'low', 'high', 'counts']
  let state = states[0]
  const listeners = []
  const model = {
    get: name => bytes.includes(name) ? new DataView(new Uint8Array([7, ...state[name]]).buffer, 1) : state[name],
    set() {}, save_changes() {},
    on: (event, call) => listeners.push([event, call]),
    off: (event, call) => listeners.splice(listeners.findIndex(([e, c]) => e === event && c === call), 1),
  }
  const el = document.body.appendChild(document.createElement('div'))
  const cleanup = widget.render({ model, el })
  const most = listeners.length
  const before = new Set(el.querySelectorAll('*'))
  const start = performance.now()
  for (state of states) {
    for (const [, call] of listeners) call()
    await new Promise(done => setTimeout(done))
  }
  const took = (performance.now() - start) / states.length
  const kept = [...before].every(element => el.contains(element))
  cleanup()
  return { most, took, kept, left: listeners.length + el.childElementCount }
}"""


def test_growing_curves_reuse_what_is_drawn_and_clean_up(page: Page, serve) -> None:
    page.goto(serve(pn.pane.Str("empty page")))
    defaults = {name: TrainingCurves.class_traits()[name].default() for name in TrainingCurves.own_traits()}
    states = [defaults | traits(steps) for steps in range(400, 480, 2)]
    plain = [{name: list(v) if isinstance(v, bytes) else v for name, v in state.items()} for state in states]
    found = page.evaluate(STANDALONE, [TrainingCurves.ESM, plain])
    assert found["most"] == len(defaults) == 21 and found["kept"] and found["left"] == 0
    assert found["took"] < 100, found["took"]  # milliseconds an update: ten a second, on a slow machine
