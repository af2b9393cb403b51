"""The token map in real pages: as a Panel component and, from the same files, in JupyterLab."""

from itertools import pairwise

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from playwright.sync_api import Locator, Page, expect

from widgets import TokenMap
from widgets.token_map import Colouring, pack, unpack
from workbench.app.hosting import panelize

COUNT, SPAN = 3000, 50
TEXTS = ".rw-title, .rw-note, .rw-tool, .rw-button, .rw-name, .rw-count, .rw-pick, .rw-status, .rw-hint, .rw-axis"
POLYGON = ((0.25, 0.2), (0.62, 0.3), (0.7, 0.75), (0.45, 0.55), (0.3, 0.8))  # shares of the canvas; not convex


def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three clouds: x, y, and which cloud."""
    rng = np.random.default_rng(3)
    cloud = rng.integers(0, 3, COUNT)
    places = rng.normal(size=(COUNT, 2)) + np.array([[0, 0], [6, 1], [2, 4]])[cloud]
    return *places.T.astype(np.float32), cloud


def traits(**more) -> dict:
    x, y, cloud = points()
    third = Colouring("third", np.arange(COUNT) % 3, ["a", "<b>b</b>", "c"], ["#d55e00", "#0072b2", "#009e73"])
    words = ["<i>x</i>", " Mia", "\n", "went"]
    made = pack(x, y, [Colouring("cloud", cloud, ["E0", "E1", "E2"]), third], texts=words, text_codes=cloud)
    named = {"axes": ["PC 1", "PC 2"], "heading": "Tokens of <b>one</b> task", "note": "trustworthiness 0.9"}
    return made | named | {"span": SPAN, "start": 1} | more


def pixels(box: dict) -> np.ndarray:
    """Where each point is in the page when all are in view, [point, 2]: on one scale for x and y, 6 % to spare."""
    x, y, _ = points()
    middle = np.array([x.max() + x.min(), y.max() + y.min()]) / 2
    spread = np.array([np.ptp(x), np.ptp(y)]) * 1.06
    scale = min(box["width"] / spread[0], box["height"] / spread[1])
    centre = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    return (np.stack([x, y], 1) - middle) * [scale, -scale] + centre


def inside(at: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Which points a polygon holds: a ray to the right of them crosses its edges an odd number of times."""
    found = np.zeros(len(at), bool)
    for (x0, y0), (x1, y1) in pairwise([*polygon, polygon[0]]):
        between = (y0 > at[:, 1]) != (y1 > at[:, 1])
        found ^= between & (at[:, 0] < x0 + (at[:, 1] - y0) * (x1 - x0) / (y1 - y0))
    return found


def clear_of(at: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Which points are more than two pixels from every edge, where a mouse can tell them apart."""
    near = np.zeros(len(at), bool)
    for start, end in pairwise([*polygon, polygon[0]]):
        along = np.clip(((at - start) @ (end - start)) / ((end - start) ** 2).sum(), 0, 1)
        near |= np.hypot(*(at - start - along[:, None] * (end - start)).T) < 2
    return ~near


def canvas(page: Page) -> Locator:
    return page.locator(".rw-token-map .rw-canvas")


def status(page: Page) -> Locator:
    return page.locator(".rw-token-map").get_by_role("status")


def wait_until_drawn(page: Page, colouring: str = "cloud") -> None:
    expect(page.locator(".rw-token-map")).to_have_attribute("data-drawn", f"{COUNT} {colouring}")


def settle(page: Page) -> None:
    """Until the page has drawn what the mouse did: moves within one frame would be one move."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def lasso(page: Page, *keys: str, zoom: float = 1, right: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws the polygon; which points are inside, and which can be told.

    The map was enlarged by `zoom` and then moved by the share `right` of its height.
    """
    box = canvas(page).bounding_box()
    corners = np.array(POLYGON) * [box["width"], box["height"]] + [box["x"], box["y"]]
    for key in keys:
        page.keyboard.down(key)
    page.mouse.move(*corners[0])
    page.mouse.down()
    settle(page)
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=12)
        settle(page)
    # Back towards the start; a lasso that ends there would count as a click.
    page.mouse.move(*(corners[0] + 0.03 * (corners[-1] - corners[0])), steps=12)
    settle(page)
    page.mouse.up()
    for key in keys:
        page.keyboard.up(key)
    centre = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    at = (pixels(box) - centre) * zoom + centre - [right * box["height"], 0]
    return inside(at, corners), clear_of(at, corners)


# Share of the canvas that has the colour, for each of the colours.
PAINTED = """(canvas, colours) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  const near = (at, colour) => data[at + 3] > 100 && [0, 1, 2].every(i => Math.abs(data[at + i] - colour[i]) < 30)
  return colours.map(colour => {
    let found = 0
    for (let at = 0; at < data.length; at += 4) found += near(at, colour)
    return found / data.length * 4
  })
}"""


def painted_shares(page: Page, colours: list[str]) -> list[float]:
    parts = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours]
    return canvas(page).evaluate(PAINTED, parts)


@pytest.fixture
def made(page: Page, serve):
    component = panelize(TokenMap)(**traits())
    page.goto(serve(component))
    wait_until_drawn(page)
    return component


def test_a_lasso_takes_the_points_inside_it_and_keys_add_and_take_away(page: Page, made, until) -> None:
    until(lambda: min(painted_shares(page, made.colours[0])) > 0.001)
    expect(status(page)).to_have_text("Nothing selected of 3,000 tokens")
    within, clear = lasso(page)
    until(lambda: made.selected != b"")
    taken = np.isin(np.arange(COUNT), unpack(made.selected))
    assert 300 < within.sum() < COUNT - 300 and clear.mean() > 0.95
    np.testing.assert_array_equal(taken[clear], within[clear])
    expect(status(page)).to_contain_text(f"{taken.sum():,} of 3,000 tokens selected: ")
    made.selected = np.uint32([0, COUNT - 1]).tobytes()
    expect(status(page)).to_contain_text("2 of 3,000 tokens selected")
    lasso(page, "Control")
    until(lambda: len(unpack(made.selected)) > 2)
    assert set(unpack(made.selected)) == {0, COUNT - 1} | set(np.flatnonzero(taken))
    lasso(page, "Alt")
    until(lambda: len(unpack(made.selected)) < taken.sum())
    assert set(unpack(made.selected)) == {0, COUNT - 1} - set(np.flatnonzero(taken))
    page.keyboard.press("Escape")
    until(lambda: made.selected == b"")
    expect(status(page)).to_have_text("Nothing selected of 3,000 tokens")
    for key in ("+", "+", "ArrowRight"):
        page.keyboard.press(key)
    within, clear = lasso(page, zoom=1.3**2, right=0.1)
    until(lambda: made.selected != b"")
    taken = np.isin(np.arange(COUNT), unpack(made.selected))
    np.testing.assert_array_equal(taken[clear], within[clear])


def test_the_legend_hides_and_selects_categories_by_mouse_and_keyboard(page: Page, made, until) -> None:
    _, _, cloud = points()
    first = page.get_by_role("checkbox", name=f"E0, {(cloud == 0).sum():,} tokens")
    first.click()
    until(lambda: made.hidden == [0])
    expect(first).to_have_attribute("aria-checked", "false")
    until(lambda: painted_shares(page, made.colours[0])[0] < 1e-5)
    within, clear = lasso(page)
    until(lambda: made.selected != b"")
    taken = np.isin(np.arange(COUNT), unpack(made.selected))
    np.testing.assert_array_equal(taken[clear], (within & (cloud != 0))[clear])
    page.locator(".rw-toggle").first.focus()
    page.keyboard.press("Enter")
    until(lambda: made.hidden == [])
    made.hidden = [0, 1, 2]
    until(lambda: max(painted_shares(page, made.colours[0])) < 1e-5)
    page.get_by_role("button", name="Show all").click()
    until(lambda: made.hidden == [])
    page.locator(".rw-toggle").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    until(lambda: set(unpack(made.selected)) == set(np.flatnonzero(cloud == 2)))
    expect(status(page)).to_contain_text("selected: E2 100 %")
    page.get_by_label("Colour by").select_option("third")
    until(lambda: made.colour_by == "third")
    wait_until_drawn(page, "third")
    expect(page.get_by_role("checkbox", name="<b>b</b>")).to_be_visible()
    page.get_by_role("button", name="Clear selection").click()
    until(lambda: made.selected == b"" and min(painted_shares(page, made.colours[1])) > 0.001)


def test_pointing_at_a_point_says_its_token_and_moving_the_map_moves_it(page: Page, made) -> None:
    at = pixels(canvas(page).bounding_box())
    alone = int(at[:, 0].argmax())  # the point at the right rim
    _, _, cloud = points()
    tip = page.get_by_role("tooltip")
    page.mouse.move(*at[alone] - 3)
    page.mouse.move(*at[alone])
    expect(tip.locator(".rw-own")).to_have_text(["<i>x</i>", "·Mia", "↵", "went"][cloud[alone]])
    expect(tip).to_contain_text(f"cloud: E{cloud[alone]}")
    expect(tip).to_contain_text(f"position {1 + alone % SPAN} of sequence {alone // SPAN}")
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    page.get_by_role("button", name="Move").click()
    page.mouse.move(*at[alone])
    page.mouse.down()
    page.mouse.move(*(at[alone] - [200, 0]), steps=5)
    page.mouse.up()
    page.mouse.move(*(at[alone] - [203, 3]))
    page.mouse.move(*(at[alone] - [200, 0]))
    expect(tip).to_contain_text(f"position {1 + alone % SPAN} of sequence {alone // SPAN}")
    assert unpack(made.selected).tolist() in ([], [alone])
    assert page.locator(".rw-token-map").locator("b, i").count() == 0


def test_text_is_readable_in_light_and_dark(page: Page, serve, unreadable) -> None:
    made = panelize(TokenMap)(**traits(selected=np.arange(100, dtype="<u4").tobytes(), hidden=[1]))
    page.goto(serve(pmui.Page(title="Map", theme_toggle=True, main=[pn.Column(made)])))
    wait_until_drawn(page)
    assert unreadable(TEXTS) == []
    page.get_by_role("button", name="Toggle theme").click()
    expect(page.locator(".rw-title")).not_to_have_css("color", "rgba(0, 0, 0, 0.87)")
    page.wait_for_timeout(300)
    assert unreadable(TEXTS) == []
    made.points = made.points[:80]
    expect(page.get_by_text("codes has 12000 bytes, 10 points need 40")).to_be_visible()


def test_without_webgl_the_page_says_so_and_the_legend_still_selects(page: Page, serve, until) -> None:
    page.add_init_script(
        "const plain = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext ="
        " function (kind, ...more) { return kind.includes('webgl') ? null : plain.call(this, kind, ...more) }"
    )
    made = panelize(TokenMap)(**traits())
    page.goto(serve(made))
    expect(page.get_by_role("alert")).to_contain_text("this browser gives no WebGL")
    expect(canvas(page)).to_be_hidden()
    page.get_by_role("button", name="tokens of E1").click()
    until(lambda: set(unpack(made.selected)) == set(np.flatnonzero(points()[2] == 1)))


# Renders the module outside any host: the model counts its listeners and hands over bytes as JupyterLab does.
STANDALONE = """async ([source, state]) => {
  const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }))
  const { default: widget } = await import(url)
  const contexts = []
  const plain = HTMLCanvasElement.prototype.getContext
  HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
    const made = plain.call(this, kind, ...more)
    if (kind.includes('webgl') && !contexts.includes(made)) contexts.push(made)
    return made
  }
  const bytes = ['points', 'codes', 'text_codes', 'selected']
  const listeners = []
  const model = {
    get: name => bytes.includes(name) ? new DataView(new Uint8Array([7, ...state[name]]).buffer, 1) : state[name],
    set() {}, save_changes() {},
    on: (event, call) => listeners.push([event, call]),
    off: (event, call) => listeners.splice(listeners.findIndex(([e, c]) => e === event && c === call), 1),
  }
  const el = document.body.appendChild(document.createElement('div'))
  const cleanup = widget.render({ model, el })
  while (!el.firstElementChild.dataset.drawn) await new Promise(requestAnimationFrame)
  const most = listeners.length
  cleanup()
  await new Promise(done => setTimeout(done, 50))
  return { most, left: listeners.length + el.childElementCount, lost: contexts.map(each => each.isContextLost()) }
}"""


def test_a_removed_map_gives_its_graphics_memory_back(page: Page, serve) -> None:
    page.goto(serve(pn.pane.Str("empty page")))
    defaults = {name: TokenMap.class_traits()[name].default() for name in TokenMap.own_traits()}
    state = {name: list(v) if isinstance(v, bytes) else v for name, v in (defaults | traits()).items()}
    found = page.evaluate(STANDALONE, [TokenMap.ESM, state])
    assert found == {"most": 15, "left": 0, "lost": [True]}


MADE = """import numpy as np
from widgets import TokenMap
from widgets.token_map import Colouring, pack
rng = np.random.default_rng(3)
cloud = rng.integers(0, 3, 3000)
places = rng.normal(size=(3000, 2)) + np.array([[0, 0], [6, 1], [2, 4]])[cloud]
tokens = TokenMap(**pack(*places.T, [Colouring("cloud", cloud, ["E0", "E1", "E2"])], texts=["a"], text_codes=cloud * 0))
tokens"""


def test_the_same_files_work_in_jupyterlab(page: Page, run_notebook, unreadable) -> None:
    opened = run_notebook(MADE)
    assert opened.errors() == []
    wait_until_drawn(page)
    canvas(page).scroll_into_view_if_needed()
    within, clear = lasso(page)
    expect(status(page)).to_contain_text("tokens selected")
    page.locator(".rw-canvas").focus()
    page.keyboard.press("+")  # the keys stay with the widget
    expected = ",".join(map(str, np.flatnonzero(within & clear)))
    unsure = ",".join(map(str, np.flatnonzero(~clear)))
    assert opened.run("None") == []
    assert opened.run(f"found = set(tokens.indices) - {{{unsure}}}\nassert found == {{{expected}}}, len(found)") == []
    assert opened.run("tokens.selected = np.uint32([5, 6]).tobytes()") == []
    expect(status(page)).to_contain_text("2 of 3,000 tokens selected")
    page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.wait_for_timeout(300)
    assert unreadable(".rw-tool, .rw-button, .rw-name, .rw-count, .rw-pick, .rw-status, .rw-hint") == []
    assert max(painted_shares(page, ["#0072b2", "#d55e00", "#009e73"])) > 0
