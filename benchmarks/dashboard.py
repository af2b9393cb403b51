"""How long a person waits at the dashboard, in a real browser: to see it, to see a fine-tune learn, to close the loop.

`workbench app` and Chromium on this machine, an empty store. `open` is from asking for the page to the head maps of
two tasks, with nothing computed before; `again` the same in a new window. `first point` is from the click on Start (a
LoRA on three tasks, as the form offers it) to the first point of its curves on screen; `loop` from asking for the page
to the head maps of the tuned model: trace, tune, trace again.

python benchmarks/dashboard.py [--model zoo/tasks]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from browser import windows
from playwright.sync_api import Page

PATIENCE = 180_000  # milliseconds
PAIR = {"task_a": "ioi", "corruption_a": "value_swap", "task_b": "colored_objects", "corruption_b": "value_swap"}


@contextmanager
def dashboard() -> Iterator[str]:
    """The address of a running dashboard with an empty store."""
    home = tempfile.mkdtemp()
    script = str(Path(sys.executable).with_name("workbench"))
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([script, "app"], env={**os.environ, "WORKBENCH_HOME": home}, **quiet)
    try:
        assert server.stdout is not None
        found = re.search(r"http\S+", server.stdout.readline())
        assert found, "the dashboard did not start"
        yield found[0]
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(home, ignore_errors=True)


def seen(page: Page, model: str) -> None:
    """Wait for the head maps of a model."""
    page.get_by_text(re.compile(rf"In {re.escape(model)}, .* strongest heads")).wait_for()
    page.locator(".rw-head-grid:visible .rw-cell").first.wait_for()


def opened(page: Page, address: str, model: str) -> float:
    """Seconds until the head maps are there."""
    page.set_default_timeout(PATIENCE)
    started = time.perf_counter()
    page.goto(f"{address}&{urlencode({'model': model, **PAIR})}")
    seen(page, model)
    return time.perf_counter() - started


def tuned(page: Page) -> tuple[float, str]:
    """Start a fine-tune and wait for its end; seconds to the first point of its curves, and the run's name."""
    page.get_by_role("tab", name="Tune", exact=True).click()
    page.get_by_role("button", name="Add a task", exact=True).locator("visible=true").click()
    page.get_by_role("combobox", name="Taught").locator("visible=true").nth(2).wait_for()
    page.get_by_text(re.compile(r"About .* for \d+ steps")).locator("visible=true").wait_for()
    started = time.perf_counter()
    page.get_by_role("button", name="Start", exact=True).locator("visible=true").click()
    page.locator(".rw-training-curves:visible .rw-line").first.wait_for(state="attached")
    first = time.perf_counter() - started
    row = page.locator(".rt-list tbody tr[aria-selected=true]")
    row.filter(has_text="finished").wait_for()
    return first, row.locator(".rt-name").inner_text()


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo/tasks")
    model = parser.parse_args().model
    with dashboard() as address, windows() as window:
        page = window()
        begun = time.perf_counter()
        first = opened(page, address, model)
        print(f"open {first:.1f} s", flush=True)
        point, run = tuned(page)
        print(f"first point {point:.1f} s", flush=True)
        page.get_by_role("button", name="Trace again", exact=True).locator("visible=true").click()
        seen(page, f"run/{run}")
        print(f"loop {time.perf_counter() - begun:.1f} s", flush=True)
        page.close()
        print(f"again {opened(window(), address, model):.1f} s")


if __name__ == "__main__":
    main()
