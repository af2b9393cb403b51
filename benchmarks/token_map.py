"""Bytes and times of the token map in a real browser, at 10,000 and 100,000 tokens.

A Panel server and Chromium on this machine; random points of eight experts. `paint` is from opening the page to the
points on the canvas; `drag` a lasso of 40 mouse moves around about a quarter of the map, one after the other; `python`
from letting the mouse go to the selection in Python, of which `page` is the page's own part: from there to the message
leaving it. Without a graphics card the browser draws on the processor, which then is most of every figure.

python benchmarks/token_map.py [--repeats 5]
"""

import argparse
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import numpy as np
import panel as pn
from attention_view import port
from browser import windows
from playwright.sync_api import Page

from widgets import TokenMap
from widgets.token_map import Colouring, pack
from workbench.app.hosting import panelize

SIZES = (10_000, 100_000)
LIMIT = 0.5  # seconds a selection of 100,000 points may take
# When the mouse was let go and when the selection was sent, by the page's clock.
WATCH = """() => {
  window.addEventListener('pointerup', () => { window.released = performance.now() }, true)
  const send = WebSocket.prototype.send
  WebSocket.prototype.send = function (data) {
    if (data.byteLength > 1000) window.sent = performance.now()
    return send.call(this, data)
  }
}"""


def clouds(count: int) -> dict:
    """The traits of so many points in eight clouds."""
    rng = np.random.default_rng(0)
    expert = rng.integers(0, 8, count)
    x, y = (rng.normal(size=(8, 2)) * 3)[expert].T + rng.normal(size=(2, count))
    words = [f" word{number}" for number in range(500)]
    colouring = Colouring("expert", expert, [f"E{number}" for number in range(8)])
    return pack(x, y, [colouring], texts=words, text_codes=rng.integers(0, 500, count))


def until_listening(at: int) -> None:
    """Returns when something listens at the port."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", at)) == 0:
                return
        time.sleep(0.05)


def lasso(page: Page) -> float:
    """Draws a circle around the middle of the map; the seconds until the mouse is let go."""
    box = page.locator(".rw-canvas").bounding_box()
    assert box
    radius, started = 0.25 * box["height"], time.perf_counter()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for step in range(41):
        angle = 2 * np.pi * step / 42
        page.mouse.move(middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle))
        if not step:
            page.mouse.down()
    return time.perf_counter() - started


def measure(page: Page, count: int) -> dict[str, float]:
    """Megabytes sent, seconds of each step, tokens selected and kilobytes that came back."""
    traits, heard, at = clouds(count), threading.Event(), port()
    component = panelize(TokenMap)(**traits)
    server = pn.serve(component, port=at, address="127.0.0.1", threaded=True, show=False, verbose=False)
    until_listening(at)
    started = time.perf_counter()
    page.goto(f"http://127.0.0.1:{at}/")
    page.locator(".rw-token-map[data-drawn]").wait_for()
    found = {"paint": time.perf_counter() - started, "sent": sum(len(v) for v in traits.values() if type(v) is bytes)}
    page.evaluate(WATCH)
    component.param.watch(lambda event: heard.set(), "selected")
    found["drag"] = lasso(page)
    started = time.perf_counter()
    page.mouse.up()
    assert heard.wait(60), "no selection came"
    found["python"] = time.perf_counter() - started
    found["page"] = page.evaluate("() => window.sent - window.released") / 1e3
    found |= {"back": len(component.selected), "selected": len(component.selected) / 4}
    page.goto("about:blank")
    server.stop()
    return found


def rows(page: Page, repeats: int) -> Iterator[tuple[int, dict[str, float], float]]:
    """Tokens, medians, and the slowest selection."""
    for count in SIZES:
        runs = [measure(page, count) for _ in range(repeats)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        yield count, medians, max(run["python"] for run in runs)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} processors; median of {repeats}")
    print(f"{'tokens':>7} {'sent MB':>8} {'paint s':>8} {'drag s':>7} {'selected':>9} {'back kB':>8}", end="")
    print(f" {'page s':>7} {'python s':>9} {'slowest':>8}")
    with windows() as opened:
        page = opened()
        for count, found, slowest in rows(page, repeats):
            print(
                f"{count:7d} {found['sent'] / 1e6:8.2f} {found['paint']:8.2f} {found['drag']:7.2f} "
                f"{found['selected']:9.0f} {found['back'] / 1e3:8.0f} {found['page']:7.2f} {found['python']:9.2f} "
                f"{slowest:8.2f}",
                flush=True,
            )
            if count == SIZES[-1]:
                print(f"        a selection within {LIMIT} s: {'yes' if found['python'] < LIMIT else 'NO'}")


if __name__ == "__main__":
    main()
