"""The head grid in real pages: as a Panel component and, from the same file, in JupyterLab."""

import re

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import HeadGrid, head_grid
from workbench.app.hosting import panelize

LAYERS = [0, 2, 4]
TEXTS = ".rw-title, .rw-layer, .rw-head, .rw-quantity, .rw-ends > *, .rw-entry, .rw-chosen"


def heads() -> dict[str, np.ndarray]:
    """Two panels of three layers and four heads with every kind of cell: marked, beyond the limit, without value."""
    values = np.linspace(-0.3, 0.39, 24).reshape(2, 3, 4)
    values[0, 1, 2], values[1, 1, 2] = 0.42, 0.9
    values[1, 0, 0] = np.nan
    marks = np.zeros(values.shape, int)
    marks[:, 1, 2] = 2
    marks[0, 2, 3] = 1
    return {"values": values, "low": values - 0.04, "high": values + 0.04, "marks": marks}


def grid_traits() -> dict:
    more = {"titles": ["IOI", "Colours"], "layers": LAYERS, "limit": 0.5, "quantity": "recovered logit difference"}
    return head_grid.pack(**heads()) | more


def expected_label(panel: int, row: int, head: int) -> str:
    value, mark = heads()["values"][panel, row, head], heads()["marks"][panel, row, head]
    name = f"L{LAYERS[row]}H{head}"
    if np.isnan(value):
        return f"{name}, no value"
    words = ["", ", top", ", shared"][mark]
    return f"{name}, {value:.2f}, interval {value - 0.04:.2f} to {value + 0.04:.2f}{words}".replace("-0.00", "0.00")


def cell(page: Page, name: str, panel: int = 0) -> Locator:
    return page.get_by_role("grid").nth(panel).get_by_role("gridcell", name=re.compile(f"^{name},"))


@pytest.fixture
def grid(page: Page, serve):
    component = panelize(HeadGrid)(**grid_traits())
    page.goto(serve(component))
    page.get_by_role("grid").nth(1).wait_for()
    return component


def test_every_cell_says_its_numbers(page: Page, grid) -> None:
    for panel in range(2):
        labels = (
            page.get_by_role("grid")
            .nth(panel)
            .get_by_role("gridcell")
            .evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-label'))")
        )
        rows = range(len(LAYERS) - 1, -1, -1)
        assert labels == [expected_label(panel, row, head) for row in rows for head in range(4)]
    expect(page.get_by_role("grid", name="Colours, recovered logit difference, by layer and head")).to_be_visible()


def test_a_click_selects_the_head_in_every_panel_and_in_python(page: Page, grid, until) -> None:
    cell(page, "L2H1", panel=1).click()
    until(lambda: grid.selected == [2, 1])
    for panel in range(2):
        expect(cell(page, "L2H1", panel)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".rw-cell[aria-selected=true]")).to_have_count(2)
    page.keyboard.press("Escape")
    until(lambda: grid.selected == [])
    expect(page.locator(".rw-cell[aria-selected=true]")).to_have_count(0)


def test_python_selects_a_head_and_replaces_the_data(page: Page, grid) -> None:
    grid.selected = [4, 3]
    expect(cell(page, "L4H3")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".rw-chosen")).to_have_text(re.compile(r"^L4H3IOI: 0.03 \[-0.01, 0.07\], topColours: 0.39"))
    grid.param.update(**head_grid.pack([[[0.125, -7]]]), titles=["Only"], layers=[5], selected=[5, 1], limit=0)
    expect(page.get_by_role("gridcell")).to_have_count(2)
    expect(page.get_by_label("L5H1, -7.00", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".rw-ends")).to_have_text("-7.0007.00")
    expect(page.locator(".rw-legend")).to_be_empty()


def test_the_keyboard_moves_within_a_panel(page: Page, grid, until) -> None:
    cell(page, "L0H0").focus()
    # Up leads to the next layer, and the rims hold.
    keys = ["ArrowUp", "ArrowRight", "End", "ArrowRight", "ArrowUp", "ArrowUp", "Home", "ArrowDown"]
    names = ["L2H0", "L2H1", "L2H3", "L2H3", "L4H3", "L4H3", "L4H0", "L2H0"]
    for key, name in zip(keys, names, strict=True):
        page.keyboard.press(key)
        expect(cell(page, name)).to_be_focused()
    page.keyboard.press("Enter")
    until(lambda: grid.selected == [2, 0])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    until(lambda: grid.selected == [2, 1])
    assert page.locator(".rw-cell[tabindex='0']").count() == 2
    page.keyboard.press("Tab")
    expect(cell(page, "L2H1", panel=1)).to_be_focused()


def test_hovering_tells_the_value_and_never_python(page: Page, grid) -> None:
    cell(page, "L2H2").hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_have_text("L2H2IOI: 0.42 [0.38, 0.46], sharedColours: 0.90 [0.86, 0.94], shared")
    assert grid.selected == []
    page.mouse.move(1200, 880)
    expect(tip).to_be_hidden()


def test_layers_go_up_and_numbers_stand_beside_their_cells(page: Page, grid) -> None:
    bottom, top, right = (cell(page, name).bounding_box() for name in ("L0H0", "L4H0", "L0H3"))
    assert bottom["y"] > top["y"] and right["x"] > bottom["x"]
    panel = page.get_by_role("grid").first
    layer = panel.get_by_role("rowheader", name="layer 4").bounding_box()
    head = panel.get_by_role("columnheader", name="head 3").bounding_box()
    assert layer["y"] + layer["height"] / 2 == pytest.approx(top["y"] + top["height"] / 2, abs=1)
    assert head["x"] + head["width"] / 2 == pytest.approx(right["x"] + right["width"] / 2, abs=1)
    assert layer["x"] + layer["width"] <= top["x"] + 1 and head["y"] >= right["y"] + right["height"] - 1


def test_colours_tell_signs_apart_and_stop_at_the_limit(page: Page, grid, painted) -> None:
    def colour(name: str, panel: int) -> list[int]:
        return painted(cell(page, name, panel))

    negative, positive, beyond = colour("L0H0", 0), colour("L2H2", 0), colour("L2H2", 1)
    assert negative[2] > negative[0] + 40 and positive[0] > positive[2] + 40
    grid.param.update(**head_grid.pack([[[0.0, 0.5, 2.0]]]), titles=[], layers=[])
    expect(page.get_by_role("gridcell")).to_have_count(3)
    zero, end = colour("L0H0", 0), colour("L0H1", 0)
    assert end == beyond == colour("L0H2", 0)
    assert max(zero[:3]) - min(zero[:3]) < 8  # grey
    expect(page.locator(".rw-ends")).to_have_text("-0.500≥ 0.50")


def test_marks_have_shapes_and_a_legend(page: Page, grid) -> None:
    expect(page.locator(".rw-legend")).to_have_text("topsharedno value")
    width = "cell => parseFloat(getComputedStyle(cell, '::after').width)"
    assert cell(page, "L2H2").evaluate(width) > 1.5 * cell(page, "L4H3").evaluate(width) > 0
    assert cell(page, "L0H0").evaluate("cell => getComputedStyle(cell, '::after').content") == "none"
    image = "cell => getComputedStyle(cell).backgroundImage"
    assert "gradient" in cell(page, "L0H0", panel=1).evaluate(image)


def test_traits_that_do_not_fit_are_said_in_the_page(page: Page, grid) -> None:
    grid.marks = b"\0" * 5
    expect(page.get_by_text("marks has 5 bytes, the shape [2,3,4] needs 24")).to_be_visible()
    grid.marks = b""
    expect(page.get_by_role("gridcell")).to_have_count(24)


def test_a_removed_component_comes_back_alive(page: Page, serve, until) -> None:
    component = panelize(HeadGrid)(**grid_traits())
    column = pn.Column(component, pn.pane.Str("below"))
    page.goto(serve(column))
    cell(page, "L2H1").click()
    until(lambda: component.selected == [2, 1])
    column.pop(0)
    expect(page.locator(".rw-head-grid")).to_have_count(0)
    component.selected = [4, 0]
    column.append(component)
    expect(cell(page, "L4H0")).to_have_attribute("aria-selected", "true")
    cell(page, "L2H2").click()
    until(lambda: component.selected == [2, 2])


def test_text_is_readable_in_light_and_dark(page: Page, serve, unreadable, painted) -> None:
    made = panelize(HeadGrid)(**grid_traits())
    page.goto(serve(pmui.Page(title="Widgets", theme_toggle=True, main=[made])))
    cell(page, "L0H0").wait_for()
    light = painted(cell(page, "L0H0"))
    assert unreadable(TEXTS) == []
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".rw-title").first).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    assert painted(cell(page, "L0H0")) != light
    assert unreadable(TEXTS) == []


# Renders the module outside any host, against a model that counts its listeners.
STANDALONE = """async ([source, css, state]) => {
  document.head.appendChild(document.createElement('style')).textContent = css
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))
  const { default: widget } = await import(url)
  const listeners = []
  const model = {
    get: name => name === 'values' ? new Float32Array(state.values).buffer : state[name],
    set() {}, save_changes() {},
    on: (event, call) => listeners.push([event, call]),
    off: (event, call) => listeners.splice(listeners.findIndex(([e, c]) => e === event && c === call), 1),
  }
  let [most, cells] = [0, 0]
  for (let round = 0; round < 2; round++) {
    const el = document.body.appendChild(document.createElement('div'))
    const cleanup = widget.render({ model, el })
    cells = el.querySelectorAll('.rw-cell').length
    most = Math.max(most, listeners.length)
    cleanup()
    if (el.childElementCount) throw new Error('render left something behind')
    el.remove()
  }
  return { cells, listeners: listeners.length, most }
}"""


def test_a_large_map_draws_and_cleans_up(page: Page, serve) -> None:
    page.goto(serve(pn.pane.Str("empty page")))
    values = np.sin(np.arange(2 * 48 * 32)).tolist()
    state = {
        "values": values,
        "shape": [2, 48, 32],
        "titles": [],
        "layers": [],
        "signed": True,
        "limit": 0,
        "quantity": "",
        "mark_names": ["top", "shared"],
    }
    found = page.evaluate(STANDALONE, [HeadGrid.ESM, HeadGrid.CSS, state | {"selected": []}])
    assert found["most"] == 12 and found["listeners"] == 0
    assert found["cells"] == 2 * 48 * 32


def test_the_same_files_work_in_jupyterlab(page: Page, run_notebook) -> None:
    opened = run_notebook(f"from widgets import HeadGrid\ngrid = HeadGrid(**{grid_traits()!r})\ngrid")
    assert opened.errors() == []
    expect(cell(page, "L2H2", panel=1)).to_have_attribute("aria-label", expected_label(1, 1, 2))
    cell(page, "L2H1", panel=1).click()
    assert opened.run("assert grid.selected == [2, 1], grid.selected") == []
    # The arrow keys stay with the widget instead of moving to another notebook cell.
    cell(page, "L2H1").click()
    page.keyboard.press("ArrowUp")
    expect(cell(page, "L4H1")).to_be_focused()
    page.keyboard.press("Enter")
    expect(cell(page, "L4H1", panel=1)).to_have_attribute("aria-selected", "true")
    assert opened.run("assert grid.selected == [4, 1], grid.selected\ngrid.selected = [0, 3]") == []
    expect(cell(page, "L0H3")).to_have_attribute("aria-selected", "true")


def test_text_is_readable_in_a_dark_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    shown = f"display(HeadGrid(**{grid_traits()!r}))"
    assert run_notebook("from widgets import HeadGrid", shown).errors() == []
    cell(page, "L0H0").wait_for()
    assert unreadable(TEXTS) == []
    light = page.locator(".rw-title").first.evaluate("title => getComputedStyle(title).color")
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator(".rw-title").first).not_to_have_css("color", light)
    assert unreadable(TEXTS) == []


def test_a_failing_cell_is_reported(run_notebook) -> None:
    assert run_notebook("1 / 0").errors() == ["ZeroDivisionError: division by zero"]
