"""The browser in which a person's waiting is timed: Debian's Chromium, or the one that CHROMIUM names."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright


@contextmanager
def windows() -> Iterator[Callable[[], Page]]:
    """A function that opens one more window, 1280 x 900, until the end."""
    with sync_playwright() as play:
        path = shutil.which(os.environ.get("CHROMIUM") or "chromium")
        browser = play.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield lambda: browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()
