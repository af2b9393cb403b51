"""A dashboard in a process of its own, and what tests of several of its pages do with it."""

import http.client
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import psutil
from playwright.sync_api import Locator, Page, expect

RESULT = re.compile(r"In (\S+), .* share (\d+) of their (\d+) strongest heads \((.*?)\)")
SLOW = 180_000  # the first result starts an engine and traces two tasks
FIGURES = ".gtitle, .annotation-text, .xtick text, .ytick text, .legendtext"  # the words of Plotly's
PLOTS = ".js-plotly-plot:visible"
HIDDEN_WIDTH = "e => getComputedStyle(e).overflowX === 'hidden' ? 0 : e.scrollWidth - e.clientWidth"


@dataclass(frozen=True)
class App:
    """A running dashboard: its port, its token, its process and the folder of its results."""

    port: int
    token: str
    process: psutil.Process
    home: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def address(self, **state: object) -> str:
        return f"{self.url}?{urlencode({'token': self.token, **state})}"

    def get(self, path: str, host: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{self.port}", **headers})
            answer = connection.getresponse()
            moved = answer.getheader("Location")
            if moved:
                answer.read()
                return self.get(urljoin(path, moved), host, **headers)
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def has_torch(self) -> bool:
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text()

    def workers(self) -> list[psutil.Process]:
        """Children that do the engine's work; multiprocessing's own helper is none."""
        children = self.process.children(recursive=True)
        return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


@contextmanager
def dashboard(running: Callable, folder: Path) -> Iterator[App]:
    """`workbench app`, once it has printed its address."""
    log, home = folder / f"log-{time.monotonic_ns()}", folder / "home"
    script = str(Path(sys.executable).with_name("workbench"))
    with running(lambda port: [script, "app", "--port", str(port)], log, WORKBENCH_HOME=str(home)) as (port, pid):
        printed = re.search(rf"http://127\.0\.0\.1:{port}/\?token=(\S+)", log.read_text())
        assert printed, log.read_text()
        yield App(port, printed[1], psutil.Process(pid), home)
        # Tornado writes tracebacks of its own when a page is closed while it is being told something.
        assert not re.search(r'File ".*/workbench/', log.read_text()), log.read_text()


def state(page: Page) -> dict[str, str]:
    """What the address says."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def tab(page: Page, name: str) -> Locator:
    return page.get_by_role("tab", name=name)


def choose(page: Page, field: str, option: str) -> None:
    """Pick from one of the sidebar's lists."""
    page.get_by_role("combobox", name=field).click()
    page.get_by_role("listbox").filter(has=page.locator(".MuiListItemText-primary")).get_by_text(
        option, exact=True
    ).click()


def headline(page: Page) -> Locator:
    """The framed sentence above a part."""
    return page.locator(".MuiAlert-message:visible").first


def visible(*selectors: str) -> str:
    """A selector of what is visible of several lists of selectors."""
    return ", ".join(f"{selector}:visible" for listed in selectors for selector in listed.split(", "))


def expect_outlined(page: Page, name: str) -> None:
    """The head is selected in both panels of the page that is open, and no other is."""
    chosen = page.locator(".rw-cell[aria-selected=true]:visible")
    expect(chosen).to_have_count(2)
    labels = chosen.evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-label').split(',')[0])")
    assert labels == [name, name]


def expect_to_fit(page: Page, name: str, drawn: str = PLOTS) -> None:
    """Nothing is wider than the window."""
    for scrolled in ("html", ".main-content", ".sidebar"):
        assert page.locator(scrolled).evaluate(HIDDEN_WIDTH) <= 0, f"{name}: {scrolled} scrolls sideways"
    ends = page.locator(drawn).evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
    assert all(end <= page.viewport_size["width"] for end in ends), name
