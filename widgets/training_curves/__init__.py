"""Curves of a fine-tune while it learns: panels over one axis of steps, a colour a task, smoothed by the reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import traitlets as T
from numpy.typing import ArrayLike

from widgets._base import Widget, front_end, packed, style_sheet

__all__ = ["Line", "Panel", "TrainingCurves", "pack"]

_HERE = Path(__file__).parent
# One module for the page, which cannot import from its own folder.
_FILES = ("base.js", "scales.js", "panel.js", "tools.js", "curves.js", "widget.js")
KINDS = ("loss", "share", "value")  # from 0 or logarithmic; 0 to 100 %; as wide as its values
ROLES = ("raw", "mean", "line")  # each step, faint; smoothed in the page; measured now and then
_OF_PANELS, _OF_LINES = ("titles", "units", "kinds"), ("lengths", "roles", "panels", "owners", "names")
# Traits that only make sense together, so that one check looks at all of them.
_TOGETHER = ("x", "y", "low", "high", "counts", *_OF_PANELS, *_OF_LINES, "tasks", "colours")


@dataclass(frozen=True)
class Panel:
    """A panel: its title, the units of what it shows, and a kind that says how its axis runs, one of `KINDS`."""

    title: str
    unit: str = ""
    kind: str = "value"


@dataclass(frozen=True)
class Line:
    """A line of a panel: `x` are steps, increasing; `y` their values, NaN where there is none.

    `panel` and `task` are numbers; a line of no task has -1. `low` and `high` are the ends of 95 % intervals. Each
    point of a `mean` stands for so many steps, the last of them at its `x`, as `counts` says; by default for one.
    """

    panel: int
    task: int
    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    counts: ArrayLike | None = None
    role: str = "line"


def pack(panels: Sequence[Panel], lines: Sequence[Line], tasks: Mapping[str, str]) -> dict:
    """The traits of `TrainingCurves` that draw these lines; `tasks` are names and colours, like '#0072b2'.

    Raises:
        ValueError: A line has no such panel, task or role, its arrays differ in length, its steps do not increase, an
            interval has one end, or a count is not a whole number of steps.
    """
    if wrong := next((panel for panel in panels if panel.kind not in KINDS), None):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, found {wrong.kind!r}")
    arrays = [_arrays(line, len(panels), len(tasks)) for line in lines]
    joined = {name: np.concatenate([np.zeros(0), *(of[name] for of in arrays)]) for name in ("x", "y", "low", "high")}
    bounded = np.isfinite(joined["low"]).any()
    counts = np.concatenate([np.zeros(0), *(of["counts"] for of in arrays)])
    return {
        "x": joined["x"].astype("<f8").tobytes(),
        "y": joined["y"].astype("<f4").tobytes(),
        "low": joined["low"].astype("<f4").tobytes() if bounded else b"",
        "high": joined["high"].astype("<f4").tobytes() if bounded else b"",
        "counts": counts.astype("<u4").tobytes() if (counts != 1).any() else b"",
        "lengths": [len(of["x"]) for of in arrays],
        "roles": [line.role for line in lines],
        "panels": [line.panel for line in lines],
        "owners": [line.task for line in lines],
        "names": [line.name for line in lines],
        "titles": [panel.title for panel in panels],
        "units": [panel.unit for panel in panels],
        "kinds": [panel.kind for panel in panels],
        "tasks": list(tasks),
        "colours": list(tasks.values()),
    }


def _arrays(line: Line, panels: int, tasks: int) -> dict[str, np.ndarray]:
    """A line's numbers, with NaN for the ends of intervals that it has not."""
    if not 0 <= line.panel < panels or not -1 <= line.task < tasks:
        raise ValueError(f"{line.name} is of panel {line.panel} and task {line.task}; there are {panels} and {tasks}")
    if line.role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, found {line.role!r}")
    if (line.low is None) != (line.high is None):
        raise ValueError(f"low and high of {line.name} must be given together, found only one of them")
    x = np.asarray(line.x, dtype=float)
    given = {"x": x, "y": line.y, "low": line.low, "high": line.high, "counts": line.counts}
    filled = {"low": np.nan, "high": np.nan, "counts": 1.0}
    found = {
        name: np.full(x.shape, filled[name]) if array is None else np.asarray(array, dtype=float)
        for name, array in given.items()
    }
    if wrong := next((name for name, array in found.items() if array.shape != x.shape or x.ndim != 1), None):
        raise ValueError(f"{wrong} of {line.name} must be one number a step, {x.shape}, found {found[wrong].shape}")
    if not np.isfinite(x).all() or (np.diff(x) <= 0).any():
        raise ValueError(f"x of {line.name} must be increasing steps")
    if (found["counts"] < 1).any() or (found["counts"] % 1 != 0).any():
        raise ValueError(f"counts of {line.name} must be whole numbers of steps, 1 or more")
    return found


class TrainingCurves(Widget):
    """Lines in panels, one above the other, over the steps of a fine-tune; a colour is a task.

    `pack` turns arrays into the traits. Traits that depend on each other are set together, at construction or with
    `show`. `span`, `logarithmic` and `hidden` are the reader's, who sets them in the page; a drag there shows a part of
    the steps, and pointing or the arrow keys read the values at one.
    """

    # anywidget replaces `_esm` and `_css` when the class is made; other hosts need what they were.
    ESM = _esm = front_end(_HERE, *_FILES)
    CSS = _css = style_sheet(_HERE)

    x = packed("float64, little-endian [point]: steps, line after line. Default: empty.")
    y = packed("float32, little-endian [point]: values; NaN is 'no value'. Default: empty.")
    low = packed("float32 [point]: lower ends of 95 % intervals, NaN where there is none, or empty. Default: empty.")
    high = packed("float32 [point]: upper ends, like low. Default: empty.")
    counts = packed("uint32 [point]: how many steps each point is the mean of; empty for 1. Default: empty.")
    lengths = T.List(T.Int(min=0), help="list of int: points of each line. Default: [].").tag(sync=True)
    roles = T.List(T.Enum(ROLES), help="list of str: each line's role: raw, mean, line. Default: [].").tag(sync=True)
    panels = T.List(T.Int(min=0), help="list of int: number of each line's panel. Default: [].").tag(sync=True)
    owners = T.List(T.Int(min=-1), help="list of int: number of each line's task, or -1. Default: [].").tag(sync=True)
    names = T.List(T.Unicode(), help="list of str: name of each line. Default: [].").tag(sync=True)
    titles = T.List(T.Unicode(), help="list of str: title of each panel. Default: [].").tag(sync=True)
    units = T.List(T.Unicode(), help="list of str: units of each panel. Default: [].").tag(sync=True)
    kinds = T.List(T.Enum(KINDS), help="list of str: each panel's axis: loss, share, value. Default: [].").tag(
        sync=True
    )
    tasks = T.List(T.Unicode(), help="list of str: names of the tasks. Default: [].").tag(sync=True)
    colours = T.List(T.Unicode(), help="list of str: a colour a task, like '#0072b2'. Default: [].").tag(sync=True)
    span = T.Float(0.05, help="float: share of all steps that the strong lines are a mean of. Default: 0.05.").tag(
        sync=True
    )
    logarithmic = T.Bool(False, help="bool: losses on a logarithmic axis. Default: False.").tag(sync=True)
    hidden = T.List(T.Unicode(), help="list of str: tasks that are not drawn. Default: [].").tag(sync=True)
    heading = T.Unicode("", help="str: what these are curves of. Default: ''.").tag(sync=True)
    note = T.Unicode("", help="str: what is to be said below the heading. Default: ''.").tag(sync=True)
    status = T.Unicode("", help="str: how far the fine-tune is. Default: ''.").tag(sync=True)

    @T.validate("span")
    def _span_is_a_share(self, proposal: dict) -> float:
        if not math.isfinite(proposal["value"]) or not 0 <= proposal["value"] <= 1:
            raise T.TraitError(f"span must be a share of the steps from 0 to 1, found {proposal['value']}")
        return proposal["value"]

    @T.validate(*_TOGETHER)
    def _belongs_together(self, proposal: dict) -> object:
        state = {name: getattr(self, name) for name in _TOGETHER} | {proposal["trait"].name: proposal["value"]}
        if problem := _wrong_lists(state) or _wrong_bytes(state):
            raise T.TraitError(f"{problem}; set traits that depend on each other in one call of show()")
        return proposal["value"]


def _wrong_lists(state: dict) -> str | None:
    """What is wrong with the lists of lines, panels or tasks."""
    for group, of in ((_OF_LINES, "line"), (_OF_PANELS, "panel"), (("tasks", "colours"), "task")):
        sizes = {name: len(state[name]) for name in group}
        if len(set(sizes.values())) > 1:
            return f"{', '.join(group)} must have one entry a {of}, found {list(sizes.values())}"
    for name, known in (("panels", len(state["titles"])), ("owners", len(state["tasks"]))):
        if wrong := [number for number in state[name] if number >= known]:
            return f"{name} must be numbers below {known}, found {wrong[0]}"
    return None


def _wrong_bytes(state: dict) -> str | None:
    """What is wrong with the first byte trait that does not fit the lengths."""
    points = sum(state["lengths"])
    for name, width in (("x", 8), ("y", 4), ("low", 4), ("high", 4), ("counts", 4)):
        found, expected = len(state[name]), width * points
        optional = name not in ("x", "y")
        if found != expected and not (optional and found == 0):
            return f"{name} must have {expected} bytes for {points} points, found {found}"
    if bool(state["low"]) != bool(state["high"]):
        return "low and high must be given together, found only one of them"
    return None
