"""The matrix of tasks in real pages: as a Panel component and, from the same files, in JupyterLab."""

import numpy as np
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import TaskMatrix, task_matrix
from workbench.app.hosting import panelize

NAMES = ["ioi (abc)", "<b>colours</b>", "a task with a name that is too long to be written above its cells"]
VALUES = np.array([[1, -0.6, 0.04], [-0.6, 1, np.nan], [0.6, np.nan, 1]])
TEXTS = ".rw-cell, .rw-title, .rw-note, .rw-row-name, .rw-column-name span, .rw-quantity, .rw-entry, .rw-ends > *"
TEXTS += ", .rw-chosen"


def traits() -> dict:
    """Three tasks with every kind of cell: clear on both sides of 0, inside the noise, without a number."""
    arrays = {"low": VALUES - 0.1, "high": VALUES + 0.1, "clear": [[1, 1, 0], [1, 1, 0], [1, 0, 1]]}
    details = {"unrelated: ±{}": np.where(VALUES == 1, np.nan, 0.05), "{}% in conflict": 50 - 50 * VALUES}
    words = {"title": "Alignment", "note": "n = 5\ntwo batches", "quantity": "cosine", "diagonal_name": "ceiling"}
    packed = task_matrix.pack(VALUES, NAMES, **arrays, diagonal=[0.5, 0.25, np.nan], details=details)
    return packed | words | {"limit": 0.6, "absent": "no gradient"}


def cell(page: Page, row: int, column: int) -> Locator:
    return page.get_by_role("row").nth(row + 1).get_by_role("gridcell").nth(column)


def edges(locator: Locator) -> list[float]:
    """Where it begins and ends from left to right, in pixels."""
    return locator.evaluate("it => { const { left, right } = it.getBoundingClientRect(); return [left, right] }")


def labels(page: Page) -> list[str]:
    return page.get_by_role("gridcell").evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-label'))")


@pytest.fixture
def matrix(page: Page, serve):
    component = panelize(TaskMatrix)(**traits())
    page.goto(serve(pmui.Page(title="Widgets", theme_toggle=True, main=[component])))
    page.get_by_role("grid", name="Alignment, cosine, task by task").wait_for()
    return component


def test_cells_say_their_numbers_and_the_keyboard_selects_a_pair_in_python(page: Page, matrix, until) -> None:
    one, two, three = NAMES
    assert labels(page) == [
        f"{one} with itself, ceiling 0.50",
        f"{one} and {two}, -0.600, interval -0.700 to -0.500, outside the noise",
        f"{one} and {three}, 0.040, interval -0.060 to 0.140, inside the noise",
        f"{two} and {one}, -0.600, interval -0.700 to -0.500, outside the noise",
        f"{two} with itself, ceiling 0.25",
        f"{two} and {three}, no gradient",
        f"{three} and {one}, 0.600, interval 0.500 to 0.700, outside the noise",
        f"{three} and {two}, no gradient",
        f"{three} with itself, no gradient",
    ]
    written = ["(0.50)", "-0.60", "0.04", "-0.60", "(0.25)", "no gradient", "0.60", "no gradient", "no gradient"]
    expect(page.get_by_role("gridcell")).to_have_text(written)
    cell(page, 0, 0).focus()
    keys = ["Enter", "ArrowUp", "End", "ArrowRight", "ArrowDown", "Home", "ArrowDown", "ArrowDown"]
    places = [(0, 0), (0, 0), (0, 2), (0, 2), (1, 2), (1, 0), (2, 0), (2, 0)]
    for key, place in zip(keys, places, strict=True):
        page.keyboard.press(key)
        expect(cell(page, *place)).to_be_focused()
    expect(page.get_by_role("tooltip")).to_have_text(
        f"{three} and {one}0.600, interval 0.500 to 0.700, outside the noiseunrelated: ±0.05020.0% in conflict"
    )
    assert matrix.selected == [], "a task with itself is no pair"
    page.keyboard.press("Space")
    until(lambda: matrix.selected == [2, 0])
    expect(cell(page, 2, 0)).to_have_attribute("aria-selected", "true")
    assert page.locator(".rw-cell[tabindex='0']").count() == 1
    matrix.param.update(title="Alignment later")  # draws anew; the keyboard stays
    expect(page.get_by_text("Alignment later")).to_be_visible()
    expect(cell(page, 2, 0)).to_be_focused()
    page.keyboard.press("Escape")
    until(lambda: matrix.selected == [])
    cell(page, 1, 1).click()
    cell(page, 0, 1).click()
    until(lambda: matrix.selected == [0, 1])
    matrix.selected = [1, 0]
    expect(cell(page, 1, 0)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".rw-chosen")).to_contain_text(f"{two} and {one}-0.600, interval")
    expect(page.locator(".rw-cell[aria-selected=true]")).to_have_count(1)


def test_only_what_is_clear_has_a_colour_and_all_is_readable_in_light_and_dark(
    page: Page, matrix, unreadable, painted
) -> None:
    def colours() -> tuple[list[int], ...]:
        return tuple(painted(cell(page, *place)) for place in ((0, 1), (2, 0), (0, 2)))

    matrix.selected = [0, 1]
    expect(cell(page, 0, 1)).to_have_attribute("aria-selected", "true")
    for theme in ("light", "dark"):
        below, above, noise = colours()
        assert below[2] > below[0] + 40 and above[0] > above[2] + 40, theme
        assert max(noise[:3]) - min(noise[:3]) < 8, theme
        assert unreadable(TEXTS) == [], theme
        if theme == "light":
            page.get_by_role("button", name="Toggle theme").click()
            expect(page.locator(".rw-title")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    # A name too long for its place is cut, not spread: the cells stay on the page and under their names.
    assert edges(cell(page, 2, 2))[1] < 1280
    name = page.get_by_role("rowheader").nth(2)
    assert name.evaluate("name => name.scrollWidth > name.clientWidth") and name.get_attribute("title") == NAMES[2]
    (start, end), named = edges(cell(page, 2, 0)), edges(name)[1]
    assert named <= start and end - start >= 48


def test_the_same_files_work_in_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    shown = f"from widgets import TaskMatrix\nfrom numpy import nan\nmatrix = TaskMatrix(**{traits()!r})\nmatrix"
    opened = run_notebook(shown)
    assert opened.errors() == []
    expect(cell(page, 0, 1)).to_have_text("-0.60")
    cell(page, 0, 1).click()
    assert opened.run("assert matrix.selected == [0, 1], matrix.selected") == []
    cell(page, 0, 1).focus()
    # The arrow keys stay with the widget instead of moving to another notebook cell.
    page.keyboard.press("ArrowRight")
    expect(cell(page, 0, 2)).to_be_focused()
    page.keyboard.press("Enter")
    expect(cell(page, 0, 2)).to_have_attribute("aria-selected", "true")
    assert opened.run("assert matrix.selected == [0, 2], matrix.selected\nmatrix.selected = [1, 0]") == []
    expect(cell(page, 1, 0)).to_have_attribute("aria-selected", "true")
    assert unreadable(TEXTS) == []
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    expect(page.locator(".rw-title")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    assert unreadable(TEXTS) == []
