"""The curves of a fine-tune without a browser: what is sent of them, what is refused, and how a job is followed."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traitlets as T
import xarray as xr

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from widgets import TrainingCurves
from widgets.training_curves import Line, Panel, pack
from workbench import live, theme
from workbench.live import Telemetry, duration, follow
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.spec import Spec, read_spec
from workbench.tuning import tune
from workbench.views import ViewError, show, training_curves
from workbench.views.training_curves import SHOWN, extremes, part_means

TASK = ["ioi", "subject_verb"]
WORDS = ("lengths", "roles", "panels", "owners", "names")
WIDTHS = {"x": "<f8", "y": "<f4", "low": "<f4", "high": "<f4", "counts": "<u4"}
COLOURS = {"one": "#0072b2", "other": "#d55e00"}


@pytest.fixture
def make(saved: Callable[[str], Path]) -> Callable[..., Spec]:
    """`make(seed=...)`: a spec of a small fine-tune."""

    def made(**changes: Any) -> Spec:
        given = {"model": str(saved("llama")), "tasks": TASK, "steps": 4, "batch": 6, "examples": 24, "held": 8}
        return read_spec({**given, "checkpoint": 2, "device": "cpu", **changes})

    return made


def lines(traits: dict | TrainingCurves) -> list[dict]:
    """The lines that traits hold, each with its arrays."""
    state = traits if isinstance(traits, dict) else {name: getattr(traits, name) for name in (*WORDS, *WIDTHS)}
    ends = np.cumsum(state["lengths"])[:-1]
    words = [dict(zip(WORDS, each, strict=True)) for each in zip(*(state[name] for name in WORDS), strict=True)]
    for name, width in WIDTHS.items():
        if state[name]:
            for line, part in zip(words, np.split(np.frombuffer(state[name], width), ends), strict=True):
                line[name] = part
    return words


def of(found: list[dict], panel: int, role: str, owner: int) -> list[dict]:
    return [line for line in found if (line["panels"], line["roles"], line["owners"]) == (panel, role, owner)]


def test_lines_are_packed_one_after_another():
    raw = Line(0, 0, "one", [1, 2, 3], [3.0, np.nan, 1.0], role="raw")
    mean = Line(0, 1, "other", [2, 4], [1.5, 0.5], counts=[2, 2], role="mean")
    bars = Line(1, -1, "L0H1", [0, 4], [0.5, 1.0], low=[0.25, 0.75], high=[0.75, 1.0])
    traits = pack([Panel("loss", "nats", "loss"), Panel("share", "", "share")], [raw, mean, bars], COLOURS)
    assert traits["titles"] == ["loss", "share"] and traits["units"] == ["nats", ""]
    assert traits["kinds"] == ["loss", "share"] and traits["tasks"] == list(COLOURS)
    first, second, third = lines(TrainingCurves(**traits))
    np.testing.assert_array_equal(first["y"], np.float32([3, np.nan, 1]))
    assert second["x"].tolist() == [2, 4] and second["counts"].tolist() == [2, 2]
    assert third["low"].tolist() == [0.25, 0.75] and third["high"].tolist() == [0.75, 1]
    assert np.isnan(first["low"]).all() and first["counts"].tolist() == [1, 1, 1]
    plain = pack([Panel("loss")], [raw], COLOURS)
    assert plain["low"] == plain["high"] == plain["counts"] == b""
    assert pack([], [], {})["x"] == b""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": [1.0]}, r"y of a must be one number a step, \(2,\), found \(1,\)"),
        ({"x": [[1, 2]]}, "x of a must be one number a step"),
        ({"x": [2, 2]}, "x of a must be increasing steps"),
        ({"x": [1, np.inf]}, "x of a must be increasing steps"),
        ({"low": [0, 0]}, "low and high of a must be given together"),
        ({"counts": [1, 0]}, "counts of a must be whole numbers of steps"),
        ({"counts": [1, 1.5]}, "counts of a must be whole numbers of steps"),
        ({"panel": 1}, "a is of panel 1 and task 0; there are 1 and 2"),
        ({"task": 2}, "a is of panel 0 and task 2"),
        ({"role": "bars"}, "role must be one of raw, mean, line, found 'bars'"),
    ],
)
def test_arrays_that_are_no_line_are_refused(changes: dict, message: str):
    given = {"panel": 0, "task": 0, "name": "a", "x": [1, 2], "y": [1.0, 2.0]}
    with pytest.raises(ValueError, match=message):
        pack([Panel("loss")], [Line(**given | changes)], COLOURS)


def small(**traits) -> dict:
    return pack([Panel("loss")], [Line(0, 0, "a", [1, 2], [1.0, 2.0])], COLOURS) | traits


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (small(x=bytes(8)), "x must have 16 bytes for 2 points, found 8"),
        (small(low=bytes(8)), "low and high must be given together"),
        (small(high=bytes(4), low=bytes(8)), "high must have 8 bytes for 2 points, found 4"),
        (small(counts=bytes(2)), "counts must have 8 bytes"),
        (small(names=[]), r"names must have one entry a line, found \[1, 1, 1, 1, 0\]"),
        (small(units=[]), "kinds must have one entry a panel"),
        (small(colours=["#000000"]), r"tasks, colours must have one entry a task, found \[2, 1\]"),
        (small(panels=[3]), "panels must be numbers below 1, found 3"),
        (small(owners=[2]), "owners must be numbers below 2, found 2"),
        (small(kinds=["log"]), "kinds"),
        (small(span=float("nan")), "span must be a share of the steps from 0 to 1"),
        (small(span=1.5), "span must be a share"),
    ],
)
def test_curves_that_do_not_fit_together_are_refused(traits: dict, message: str):
    with pytest.raises(T.TraitError, match=message):
        TrainingCurves(**traits)


def test_what_depends_on_each_other_is_changed_at_once():
    curves = TrainingCurves(**small(), hidden=["one"], logarithmic=True)
    longer = pack([Panel("loss")], [Line(0, 0, "a", [1, 2, 3], [1.0, 2.0, 0.5])], COLOURS)
    with pytest.raises(T.TraitError, match=r"x must have 16 bytes .*show"):
        curves.x = longer["x"]
    curves.show(**longer)
    assert curves.lengths == [3] and curves.hidden == ["one"] and curves.logarithmic


def test_the_curves_are_those_of_the_run(make):
    ds = tune(make(telemetry={})).curves()
    drawing = training_curves(ds, span=0.5, log=True)
    assert drawing.widget is TrainingCurves and drawing.traits["span"] == 0.5 and drawing.traits["logarithmic"]
    assert drawing.traits["heading"] == ds.attrs["title"] and "95 % Wilson intervals" in drawing.traits["note"]
    assert drawing.traits["titles"] == ["Training loss", "Held-out rows answered rightly"]
    assert drawing.traits["units"][0] == "nats" and drawing.traits["kinds"] == ["loss", "share"]
    assert drawing.traits["tasks"] == TASK and drawing.traits["colours"] == list(theme.TASKS[:2])
    found = lines(drawing.traits)
    assert len(found) == 3 * len(TASK)
    for number in range(len(TASK)):
        for role in ("raw", "mean"):  # a short run is sent step by step
            (line,) = of(found, 0, role, number)
            assert line["x"].tolist() == [1, 2, 3, 4]
            np.testing.assert_allclose(line["y"], ds["loss"].values[:, number], rtol=1e-6)
        (right,) = of(found, 1, "line", number)
        assert right["x"].tolist() == [0, 2, 4]
        for name, variable in (("y", "accuracy"), ("low", "accuracy_low"), ("high", "accuracy_high")):
            np.testing.assert_allclose(right[name], ds[variable].values[:, number], rtol=1e-6)


def test_telemetry_is_drawn_on_the_same_steps_by_what_moved_most(make):
    run = tune(make(telemetry={"head_patching": {"draws": 3}}, telemetry_every=2, telemetry_budget=1e9))
    reader = Telemetry(run)
    assert reader.read(run.records, -1.0) == {} and not reader.whole
    measured = reader.read(run.records, 60.0)
    assert reader.whole and set(measured) == {"head_patching"}
    for task in TASK:
        effect = run.telemetry("head_patching", task)["effect"]
        xr.testing.assert_equal(measured["head_patching"][task]["effect"], effect)
    traits = training_curves(run.curves(), telemetry=measured).traits
    assert traits["titles"][2].startswith("head_patching: ") and traits["kinds"][2] == "value"
    part = run.telemetry("head_patching", "ioi").transpose("step", "layer", "head")
    effect = part["effect"]
    layer, head = np.unravel_index(np.ptp(effect.values, axis=0).argmax(), effect.shape[1:])
    drawn = of(lines(traits), 2, "line", 0)
    assert len(drawn) == 3 and len(of(lines(traits), 2, "line", 1)) == 3
    assert drawn[0]["names"] == f"ioi L{layer}H{head}" and drawn[0]["x"].tolist() == [2, 4]
    for name, variable in (("y", "effect"), ("low", "effect_low"), ("high", "effect_high")):
        np.testing.assert_allclose(drawn[0][name], part[variable].values[:, layer, head], rtol=1e-6)


def test_what_is_measured_of_a_task_that_is_not_learned_has_no_colour():
    step = np.array([1, 3])
    measured = xr.Dataset({"alpha": ("step", [0.1, 0.2], {"long_name": "alpha"})}, {"step": step})
    measured.attrs["primary"] = "alpha"
    both = {synthetic.TASKS[0]: measured, f"{synthetic.TASKS[1]} (wrong)": measured, "a third": measured}
    traits = training_curves(synthetic.tuned(), telemetry={"sinks": both}).traits
    assert traits["owners"][-3:] == [0, 1, -1] and traits["names"][-1] == "a third"
    assert traits["units"][2] == ""


def test_a_run_joined_with_another_is_refused():
    with pytest.raises(ViewError, match="select it first"):
        show(synthetic.tuned().expand_dims(seed=[0, 1]), "training_curves")


def test_of_many_steps_the_extremes_remain():
    values = np.random.default_rng(0).normal(size=10_000)
    kept = extremes(values)
    assert len(kept) < 500 and kept[0] == 0 and kept[-1] == 9_999 and (np.diff(kept) > 0).all()
    assert {int(values.argmin()), int(values.argmax())} <= set(kept.tolist())
    np.testing.assert_array_equal(extremes(values[:100]), np.arange(100))


def test_means_of_parts_keep_every_step():
    values = np.random.default_rng(0).normal(size=10_007)
    ends, means, counts = part_means(values)
    assert len(ends) == 2 * SHOWN and counts.sum() == len(values) and ends[-1] == len(values) - 1
    starts = ends - counts + 1
    assert starts[0] == 0 and (starts[1:] == ends[:-1] + 1).all()
    expected = [values[start : end + 1].mean() for start, end in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(means, expected)
    for found, wanted in zip(part_means(values[:5]), (np.arange(5), values[:5], np.ones(5)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_long_run_takes_few_bytes_and_says_that_it_is_thinned():
    ds = synthetic.tuned()
    steps = np.arange(1, 100_001)
    losses = np.random.default_rng(0).random((len(steps), 2))
    parts = {"loss": (("step", "task"), losses, ds["loss"].attrs)}
    more = ds.drop_dims("step").assign(parts).assign_coords(step=steps)
    traits = training_curves(more.assign_attrs(ds.attrs)).traits
    assert sum(len(traits[name]) for name in WIDTHS) < 60_000
    assert "of 100,000 the extremes of 240 parts" in traits["note"]
    (mean,) = of(lines(traits), 0, "mean", 0)
    assert mean["counts"].sum() == len(steps) and mean["x"][-1] == steps[-1]
    assert mean["y"] @ mean["counts"] / len(steps) == pytest.approx(losses[:, 0].mean(), rel=1e-5)


class Tuning:
    """A job of the engine whose log comes line by line, as a test lets it."""

    def __init__(self, run: Run, error: Exception | None = None) -> None:
        self.run, self.spec, self.error = run, run.spec, error
        self.records: list[dict[str, Any]] = []
        self.progress, self.memory, self.seconds_left, self.stopping = ("waiting", 0, 1), 0, None, False
        self.done, self._told = False, threading.Event()

    def when_done(self, told: Callable[[], None]) -> None:
        threading.Thread(target=lambda: self._told.wait() and told(), daemon=True).start()

    def end(self) -> None:
        self.done = True
        self._told.set()

    def result(self) -> str:
        if self.error is not None:
            raise self.error
        return self.run.name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE", 0.01)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """`until(condition)` waits for the thread that follows."""

    def wait(condition: Callable[[], bool]) -> None:
        pause = threading.Event()
        assert any(condition() or pause.wait(0.02) for _ in range(1000)), "the condition did not come true"

    return wait


@pytest.mark.usefixtures("quick")
def test_a_job_is_followed_until_it_is_done(make, until):
    run = tune(make(telemetry={"sink_scores": {"length": 16, "sequences": 2}}, telemetry_every=2, telemetry_budget=1e9))
    job: Any = Tuning(run)
    curves = follow(job)
    assert curves.status == "waiting for a worker" and curves.lengths == []
    log = run.records
    job.records = [record for record in log if record["step"] <= 2]
    job.progress, job.memory, job.seconds_left = (f"tuning {run.name}", 2, 4), 2**30, 35.2
    until(lambda: curves.status == "running, 2 of 4, 0:35 left, 1.0 GiB" and len(curves.titles) == 3)
    (raw,) = of(lines(curves), 0, "raw", 1)
    np.testing.assert_allclose(raw["y"], run.curves()["loss"].values[:2, 1], rtol=1e-6)
    curves.show(span=0.3, logarithmic=True, hidden=["ioi"])  # the reader
    job.records = log
    until(lambda: of(lines(curves), 0, "raw", 1)[0]["x"].tolist() == [1, 2, 3, 4])
    job.stopping = True
    until(lambda: curves.status.startswith("pausing, "))
    job.end()
    until(lambda: curves.status == "finished, 4 of 4")
    assert (curves.span, curves.logarithmic, curves.hidden) == (0.3, True, ["ioi"])
    assert curves.y == training_curves(run.curves(), telemetry=Telemetry(run).read(log, 60.0)).traits["y"]
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == f"follow {run.name}"])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkbenchError("There is no room."), "failed: There is no room."),
        (OSError("x"), "failed: Unexpected OSError: x"),
    ],
)
def test_what_ends_a_job_is_said(error, said, make, until):
    spec = make(seed=1)
    run = Run(spec.name)
    run.begin(spec)
    job: Any = Tuning(run, error)
    curves = follow(job)
    job.end()
    until(lambda: curves.status == said)
    assert curves.lengths == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (65, "1:05"), (754, "12:34"), (3600, "1:00:00")]
)
def test_a_duration_reads_as_a_person_says_it(seconds, text):
    assert duration(seconds) == text
