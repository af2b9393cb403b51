"""How long work says where it is and hears that it should stop: `track` for the loop, `reporting` for who listens."""

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from workbench.registry import WorkbenchError

Item = TypeVar("Item")
Report = Callable[[str, int, int], bool]  # (what, done, of) -> go on?

_report: contextvars.ContextVar[Report | None] = contextvars.ContextVar("report", default=None)


class Cancelled(WorkbenchError):
    """The work was stopped before it had anything to show."""


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a progress bar in a notebook or script, or the engine's report in a worker.

    Stops early when the person cancels; the caller then returns what it has, or raises `Cancelled`.
    """
    report = _report.get()
    if report is None:
        from tqdm.auto import tqdm

        yield from tqdm(items, total=total, desc=what, delay=1, leave=False)
        return
    go_on = report(what, 0, total)
    for done, item in enumerate(items, 1):
        if not go_on:
            return
        yield item
        go_on = report(what, done, total)


def tell(what: str, done: int, total: int) -> None:
    """Say where work stands that has a loop of its own; nothing where nobody listens.

    Raises:
        Cancelled: when it should stop.
    """
    report = _report.get()
    if report is not None and not report(what, done, total):
        raise Cancelled("Stopped.")


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Within the block, `track` tells `report` instead of drawing a bar."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
