"""A browser, a Panel server and a private JupyterLab for the tests that look at real pages."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import panel as pn
import panel_material_ui as pmui
import pytest
from dashboards import PLOTS, App, dashboard, expect_to_fit
from playwright.sync_api import BrowserContext, Locator, Page, expect

from workbench.app.parts import apart

NO_BROWSER = "no Chromium found; install Debian's chromium package or set CHROMIUM"
# A shared machine may be slow; a wait that succeeds costs nothing.
PATIENCE_MS = 60_000


@pytest.fixture(scope="session", autouse=True)
def chromium() -> str:
    """Path of the browser; without one the tests are skipped, or fail where a browser is required."""
    found = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    if found is None and os.environ.get("WORKBENCH_REQUIRE_BROWSER") == "1":
        pytest.fail(NO_BROWSER, pytrace=False)
    if found is None:
        pytest.skip(NO_BROWSER)
    return found


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict, chromium: str) -> dict:
    # The browser's own traffic would be noise; the page's is what the tests watch.
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    return {**browser_type_launch_args, "executable_path": chromium, "args": ["--disable-gpu", *quiet]}


@pytest.fixture
def loops() -> None:
    """Playwright's own loop, which all tests share, stays open."""


@pytest.fixture(scope="session")
def base_url() -> None:
    """No prefix: the tests name whole addresses. The plugin's own fixture warns, and warnings are errors here."""


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict) -> dict:
    return {**browser_context_args, "viewport": {"width": 1280, "height": 900}}


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")


@pytest.fixture
def page(context: BrowserContext, page: Page) -> Iterator[Page]:
    """A page whose errors, and whose requests to anything but this machine, fail the test."""
    problems = []
    context.on("weberror", lambda error: problems.append(f"page error: {error.error}"))
    context.on("request", lambda request: _is_local(request.url) or problems.append(f"request to {request.url}"))
    page.on("websocket", lambda socket: _is_local(socket.url) or problems.append(f"socket to {socket.url}"))

    def read_console(message) -> None:
        # Panel reports a component that cannot be drawn here, not as a page error.
        if message.type == "error" and "Error rendering" in message.text:
            problems.append(f"console: {message.text}")

    context.on("console", read_console)
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield page
    assert not problems, "\n".join(problems)


@pytest.fixture
def until(page: Page) -> Callable[[Callable[[], bool]], None]:
    """`until(condition)` waits for Python to hear from the page, which is always a little ahead."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < end, f"the condition did not come true in {PATIENCE_MS / 1000:.0f} s"
            page.wait_for_timeout(50)

    return wait


# The colour that a canvas really paints for any notation of the style sheets: red, green, blue, alpha up to 255.
_PIXEL = """colour => {
  const known = (window.rwPixels ??= new Map())
  if (!known.has(colour)) {
    const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    const pen = canvas.getContext('2d', { willReadFrequently: true })
    pen.fillStyle = colour
    pen.fillRect(0, 0, 1, 1)
    known.set(colour, [...pen.getImageData(0, 0, 1, 1).data])
  }
  return known.get(colour)
}"""
# WCAG contrast of each text with what is painted behind it, also through shadow roots.
_CONTRASTS = f"""elements => {{
  const pixel = {_PIXEL}
  const mix = (front, back, alpha) => [0, 1, 2].map(i => (front[i] * alpha + back[i] * (255 - alpha)) / 255)
  const linear = part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4
  const light = rgb => [.2126, .7152, .0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i] / 255), 0)
  const ground = element => {{
    if (!element) return [255, 255, 255]
    const colour = pixel(getComputedStyle(element).backgroundColor)
    const behind = () => ground(element.parentElement ?? element.getRootNode().host)
    return colour[3] === 255 ? colour : mix(colour, behind(), colour[3])
  }}
  return elements.map(element => {{
    const style = getComputedStyle(element)
    const [back, front] = [ground(element), pixel(element instanceof SVGElement ? style.fill : style.color)]
    const [dark, bright] = [light(mix(front, back, front[3])), light(back)].sort((a, b) => a - b)
    return [element.textContent, (bright + .05) / (dark + .05)]
  }})
}}"""


@pytest.fixture
def painted() -> Callable[[Locator], list[int]]:
    """`painted(locator)`: the background colour of an element as [red, green, blue, alpha], each up to 255."""
    return lambda locator: locator.evaluate(f"it => ({_PIXEL})(getComputedStyle(it).backgroundColor)")


@pytest.fixture
def unreadable(page: Page) -> Callable[[str], list]:
    """`unreadable(selector)`: every matching text with less than 4.5 times the light of its ground, with the ratio."""

    def find(selector: str) -> list:
        found = page.locator(selector).evaluate_all(_CONTRASTS)
        assert found, f"nothing matches {selector}"
        return [text for text in found if text[1] < 4.5]

    return find


@pytest.fixture
def readable(page: Page, unreadable: Callable, until: Callable) -> Callable[..., None]:
    """`readable(texts, name, drawn)`: all texts stand out from their ground, and nothing is wider than the window."""

    def look(texts: str, name: str, drawn: str = PLOTS) -> None:
        until(lambda: unreadable(texts) == [])  # colours fade into each other
        expect_to_fit(page, name, drawn)

    return look


@pytest.fixture
def no_console_errors(page: Page) -> Iterator[None]:
    """The page writes no error to the console."""
    said = []
    page.context.on("console", lambda message: message.type == "error" and said.append(message.text))
    yield
    assert said == []


@pytest.fixture(scope="session")
def app(running: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One dashboard for the tests of single pages, so that each result is computed once."""
    with dashboard(running, tmp_path_factory.mktemp("pages")) as started:
        yield started


@pytest.fixture
def kept(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are looked for, and kept, where the dashboard keeps them."""
    monkeypatch.setenv("WORKBENCH_HOME", str(app.home))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, seconds: float = 120) -> None:
    """Returns when something listens; asking for a page instead would start a session that no test sees."""
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing listens at port {port} after {seconds} s") from error
        time.sleep(0.1)


@contextmanager
def _running(command: Callable[[int], list[str]], log: Path, **environment: str) -> Iterator[tuple[int, int]]:
    port = free_port()
    with log.open("w") as out:
        full = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        server = subprocess.Popen(command(port), env=full, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for_port(port)
        yield port, server.pid
    finally:
        # Its children belong to the server's process group and end with it.
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(60)


@pytest.fixture(scope="session")
def running(chromium: str) -> Callable:
    """`with running(lambda port: [...], log, **environment) as (port, pid)`: a server that listens, until the end."""
    return _running


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(app, **options)` serves a Panel object, or a function that makes one, and returns its address."""

    def start(app, **options) -> str:
        port = free_port()
        if isinstance(app, pmui.Page):
            apart(app)  # or the page of one test would follow what is done in the next one's
        pn.serve(app, port=port, address="127.0.0.1", threaded=True, show=False, verbose=False, **options)
        wait_for_port(port)
        return f"http://127.0.0.1:{port}/"

    yield start
    pn.state.kill_all_servers()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, the token that opens it, and the folder with its notebooks."""

    url: str
    token: str
    root: Path


def _private_environment(folder: Path) -> dict[str, str]:
    """Settings that neither read nor change those of the person who runs the tests."""
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "WORKBENCH_HOME": "results",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**{name: str(folder / place) for name, place in places.items()}, "PATH": path}


@pytest.fixture
def private_environment(tmp_path: Path) -> dict[str, str]:
    """Settings for a Jupyter server of one test, all in a folder of its own."""
    return _private_environment(tmp_path / "private")


@pytest.fixture(scope="session")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for all tests, with folders of its own."""
    folder = tmp_path_factory.mktemp("lab")
    root = folder / "notebooks"
    root.mkdir()
    token = secrets.token_hex(16)

    def command(port: int) -> list[str]:
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
        options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--expose-app-in-browser"]
        if os.geteuid() == 0:
            options.append("--allow-root")
        return [sys.executable, "-m", "jupyterlab", *options]

    with _running(command, folder / "log", **_private_environment(folder)) as (port, _):
        yield Lab(f"http://127.0.0.1:{port}", token, root)


_ERRORS = """() => jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code').flatMap(cell => cell.model.outputs.toJSON())
  .filter(output => output.output_type === 'error').map(output => `${output.ename}: ${output.evalue}`)"""
_RUN_ALL = """async () => {
  await jupyterapp.shell.currentWidget.context.sessionContext.ready
  return await jupyterapp.commands.execute('notebook:run-all-cells')
}"""
_RUN_NEXT = """async source => {
  const notebook = jupyterapp.shell.currentWidget.content
  notebook.activeCellIndex = notebook.widgets.length - 1
  await jupyterapp.commands.execute('notebook:insert-cell-below')
  notebook.activeCell.model.sharedModel.setSource(source)
  return await jupyterapp.commands.execute('notebook:run-cell')
}"""


@dataclass(frozen=True)
class OpenNotebook:
    """A notebook in the page, after all its cells have run."""

    page: Page

    def errors(self) -> list[str]:
        """Every error that a cell shows, as 'name: message'."""
        return self.page.evaluate(_ERRORS)

    def run(self, source: str) -> list[str]:
        """Adds a cell at the end, runs it, and returns the errors of the notebook."""
        self.page.evaluate(_RUN_NEXT, source)
        return self.errors()


def _copy(notebook: Path | str, cells: tuple[str, ...], root: Path) -> str:
    """Puts a file, or a notebook made of code cells, into the folder of the lab and returns its name."""
    if isinstance(notebook, Path):
        return Path(shutil.copy(notebook, root)).name
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (notebook, *cells)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    name = f"{secrets.token_hex(4)}.ipynb"
    nbformat.write(made, root / name)
    return name


@pytest.fixture
def run_notebook(lab: Lab, page: Page) -> Callable[..., OpenNotebook]:
    """`run_notebook(path)`, or `run_notebook(*sources)` of code cells, runs every cell in JupyterLab."""

    def run(notebook: Path | str, *cells: str) -> OpenNotebook:
        name = _copy(notebook, cells, lab.root)
        page.goto(f"{lab.url}/lab/tree/{name}?reset&token={lab.token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady")
        # JupyterLab keeps the theme in its settings, so an earlier test may have left a dark one.
        page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "true")
        # A first start may ask for a kernel although the notebook names one.
        page.add_locator_handler(
            page.get_by_role("dialog", name="Select Kernel"),
            lambda dialog: dialog.get_by_role("button", name="Select").last.click(),
        )
        page.evaluate(_RUN_ALL)
        return OpenNotebook(page)

    return run
