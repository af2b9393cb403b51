"""Analyses of a model while it is tuned, within the share of time that was allowed; training never notices."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses import ANALYSES
from workbench.methods import METHODS
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.spec import Spec
from workbench.tasks import Task, make_task

if TYPE_CHECKING:
    from workbench.training import Training


class Telemetry:
    """Measures the analyses of a spec on the model being trained.

    An analysis is measured when it is due and what telemetry has taken so far, with what this analysis took last,
    stays within `telemetry_budget` of the time spent training; else it waits for the next time it is due. How long an
    analysis takes is not known before its first measurement, which is therefore made at the first step that is due and
    may overdraw the budget by itself; the next ones wait until it is paid back.
    """

    def __init__(self, spec: Spec, run: Run) -> None:
        self.spec, self.run = spec, run
        named = dict.fromkeys((e["name"], e["corruption"]) for e in spec.tasks if "rows" not in e)
        self.tasks = [make_task(name, corruption=c, n=spec.telemetry_n, seed=spec.seed) for name, c in named]
        found = [record for record in run.records if record["kind"] == "telemetry"]
        self.spent = sum(record["seconds"] for record in found)
        self.last = {record["analysis"]: record["seconds"] for record in found}
        self.refused: set[str] = set()

    def look(self, training: "Training") -> None:
        """Measure what is due after this step."""
        if not self.tasks or training.done == 0 or training.done % self.spec.telemetry_every:
            return
        for analysis in self.spec.telemetry:
            cost = self.last.get(analysis, 0.0)
            due = analysis not in self.refused
            if due and self.spent + cost <= self.spec.telemetry_budget * training.seconds:
                self._try(analysis, training)

    def _try(self, analysis: str, training: "Training") -> None:
        """Measure, unless the analysis does not fit this model: then the log says why, and training goes on."""
        try:
            self._measure(analysis, training)
        except WorkbenchError as error:
            self.refused.add(analysis)
            self.run.log("note", step=training.done, text=f"{analysis} is not measured: {error}")

    def _measure(self, analysis: str, training: "Training") -> None:
        started = time.perf_counter()
        with _unnoticed(training.device):
            for task, params in self._parts(analysis):
                ds = self._one(analysis, training, task, params)
                self.run.keep_telemetry(training.done, analysis, task.name, ds)
        taken = time.perf_counter() - started
        self.spent += taken
        self.last[analysis] = taken
        share = self.spent / training.seconds
        self.run.log("telemetry", step=training.done, analysis=analysis, seconds=taken, share=share)

    def _parts(self, analysis: str) -> list[tuple[Task, dict[str, Any]]]:
        """The tasks it is measured on: one after the other, or all at once where the analysis compares tasks."""
        params = self.spec.telemetry[analysis]
        if "tasks" not in ANALYSES[analysis].parameters:
            return [(task, params) for task in self.tasks]
        others = ",".join(f"{task.name}:{task.corruption}" for task in self.tasks[1:])
        return [(self.tasks[0], {**params, "tasks": params["tasks"] or others})]

    def _one(self, analysis: str, training: "Training", task: Task, params: dict[str, Any]) -> xr.Dataset:
        from workbench.models.load import wrap

        options: dict[str, Any] = {"name": f"{self.run.reference}@{training.done}", "override": True}
        if training.attached.select is not None:
            training.attached.select(training.titles.index(task.name))
        if METHODS[self.spec.method].per_task and training.attached.select is None:
            options |= {"route": task.name, "tasks": ",".join(training.titles)}
        model = wrap(training.module, training.tokenizer, merge="route" not in options, **options)
        return ANALYSES[analysis].run(model, task, **params)


@contextmanager
def _unnoticed(device: Any) -> Iterator[None]:
    """Within it random numbers are drawn that the training does not miss, and no progress is told."""
    import torch

    from workbench.progress import reporting

    state, numbers = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), reporting(lambda what, done, of: True):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
