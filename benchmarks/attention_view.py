"""Bytes and times of the attention view in a real browser, at 512 and 2,048 tokens.

A Panel server and Chromium on this machine; random attention of one layer of 12 heads (4 at 2,048 tokens). Bytes are
those of `_parts`, everything that Python sends for maps: first the grid, then each head made large in turn. Times are
from the browser's clock: from opening the page to the grid's last map, and from choosing a head to its map on the
canvas. CircuitsVis 1.43.3 writes 43.4 MB into the page for the same 12 heads of 512 tokens; that figure was measured
elsewhere, and is not measured here.

python benchmarks/attention_view.py [--repeats 3]
"""

import argparse
import socket
import statistics
import time
from collections.abc import Iterator

import numpy as np
import panel as pn
from browser import windows
from playwright.sync_api import Page

from widgets import AttentionView
from widgets.attention_view import traits_of
from workbench.app.hosting import panelize

CIRCUITSVIS = 43.4e6
SIZES = {512: 12, 2048: 4}  # tokens: heads
# Every map on the page has its last row.
PAINTED = """() => {
  const views = [...document.querySelectorAll('*')].map(it => it.shadowRoot?.querySelector('.rw-attention'))
  const plates = [...views.find(Boolean)?.querySelectorAll('.rw-plate:not(.rw-waiting) .rw-canvas') ?? []]
  const ink = it => it.getContext('2d').getImageData(0, it.height - 1, 1, 1).data[3]
  return plates.length > 0 && !views.find(Boolean).querySelector('.rw-waiting') && plates.every(ink)
}"""
# Chooses a head as a person does, and waits for the frame after its map is painted.
SWITCH = f"""value => new Promise(done => {{
  const find = name => [...document.querySelectorAll('*')].map(it => it.shadowRoot?.querySelector(name)).find(Boolean)
  const select = find('select[name=head]')
  const title = select.querySelector(`option[value="${{value}}"]`).textContent
  const started = performance.now()
  select.value = value
  select.dispatchEvent(new Event('change'))
  const painted = {PAINTED}
  const look = () => find('.rw-title').textContent.startsWith(title) && painted()
    ? requestAnimationFrame(() => done(performance.now() - started)) : setTimeout(look, 2)
  look()
}})"""


def attention(heads: int, size: int) -> np.ndarray:
    """Random causal attention float32 [layer, head, query, key] with a sink."""
    scores = np.random.default_rng(0).normal(0, 2, (1, heads, size, size)).astype(np.float32)
    scores[..., 0] += 5
    weights = np.exp(scores) * np.tri(size, dtype=np.float32)
    return weights / weights.sum(-1, keepdims=True)


def port() -> int:
    """A free one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Counted(panelize(AttentionView)):
    """The component, counting what it sends."""

    def __init__(self, **params) -> None:
        super().__init__(**params)
        self.sent = 0
        self.param.watch(self._count, "_parts")

    def _count(self, event) -> None:
        self.sent += len(event.new)


def measure(page: Page, size: int, heads: int) -> dict[str, float]:
    """Bytes of the grid and of all, seconds to the first paint, and milliseconds of new and of known heads."""
    component = Counted(**traits_of(attention(heads, size), [f" t{position}" for position in range(size)]))
    at = port()
    server = pn.serve(component, port=at, address="127.0.0.1", threaded=True, show=False, verbose=False)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", at)) == 0:
                break
        time.sleep(0.05)
    started = time.perf_counter()
    page.goto(f"http://127.0.0.1:{at}/")
    page.wait_for_function(PAINTED, polling=20)
    found = {"paint": time.perf_counter() - started, "grid": component.sent}
    names = [f"0,{head}" for head in range(heads)]
    found["new"] = statistics.median(page.evaluate(SWITCH, name) for name in names)
    found["known"] = statistics.median(page.evaluate(SWITCH, name) for name in names)
    found["all"] = component.sent
    page.goto("about:blank")
    server.stop()
    return found


def rows(page: Page, repeats: int) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Tokens, heads and medians."""
    for size, heads in SIZES.items():
        runs = [measure(page, size, heads) for _ in range(repeats)]
        yield size, heads, {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{'tokens':>6} {'heads':>5} {'grid MB':>8} {'all MB':>7} {'paint s':>8} {'new head ms':>12} {'known ms':>9}")
    with windows() as opened:
        page = opened()
        for size, heads, found in rows(page, repeats):
            print(
                f"{size:6d} {heads:5d} {found['grid'] / 1e6:8.3f} {found['all'] / 1e6:7.2f} {found['paint']:8.2f} "
                f"{found['new']:12.0f} {found['known']:9.0f}",
                flush=True,
            )
            if size == 512:
                ratio = CIRCUITSVIS / found["all"]
                print(f"       CircuitsVis 1.43.3 (measured elsewhere): 43.4 MB, {ratio:.0f} times as much")


if __name__ == "__main__":
    main()
