"""What makes a function an analysis, and the pieces analyses share: batches and the bootstrap."""

import functools
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from workbench.parameters import Parameter, complete, parameters_of
from workbench.registry import Registry, WorkbenchError
from workbench.schema import check, provenance
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:  # a page reads the registry without loading torch
    from workbench.models.model import Model

F = TypeVar("F", bound=Callable[..., xr.Dataset])
LEVEL = 0.95  # of every bootstrap interval


class AnalysisError(WorkbenchError):
    """An analysis asked for something it cannot give."""


@dataclass(frozen=True)
class Analysis:
    """A registered analysis."""

    name: str
    run: Callable[..., xr.Dataset]
    about: str
    paper: str
    parameters: Mapping[str, Parameter]
    other: str = ""  # the parameter that names another model, whose weights the result depends on too

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters: those given, checked, and the defaults of the others."""
        return complete(self.name, self.parameters, given)


ANALYSES: Registry[Analysis] = Registry("analysis")


def analysis(*, about: str, sign: str, primary: str, paper: str = "", other: str = "") -> Callable[[F], F]:
    """Register `f(model, task, *, typed keywords) -> Dataset`; its results come out stamped and checked.

    `sign` says how to read the numbers, `primary` names the variable a view draws first, `other` a parameter that takes
    the reference of another model (empty: this one's own, without its `@...`). A model whose trust card is
    red is refused unless it was loaded with `override=True`.
    """

    def register(function: F) -> F:
        name, parameters = function.__name__, parameters_of(function)

        @functools.wraps(function)
        def run(model: "Model", task: Task, **given: Any) -> xr.Dataset:
            params = ANALYSES[name].complete(given)
            _trusted(model)
            started = time.perf_counter()
            ds = function(model, task, **params)
            attrs = {"analysis": name, "params": params, "sign": sign, "primary": primary, "seed": task.seed}
            ds.attrs = {**provenance(**attrs, **_origin(model, task)), **ds.attrs}
            ds.attrs["seconds"] = round(time.perf_counter() - started, 3)
            ds.attrs.setdefault("title", f"{name} of {ds.attrs['task']} in {model.reference}")
            return check(ds)

        ANALYSES.add(name, Analysis(name, run, about, paper, parameters, other))
        return typing.cast(F, run)

    return register


def _trusted(model: "Model") -> None:
    problems = model.card.problems()
    if problems and not model.spec["override"]:
        worst = problems[0]
        raise AnalysisError(
            f"The trust card of '{model.reference}' is red ({worst.name}: {worst.found}); {worst.fix}, "
            "or load it with override=True."
        )


def _origin(model: "Model", task: Task) -> dict[str, Any]:
    return {
        "model": model.reference,
        "model_hash": model.hash,
        "model_spec": dict(model.spec),
        "checkpoint": model.checkpoint,
        "task": task.title,
        "task_hash": task.hash,
        "task_spec": task.spec,
        "trust": model.card.to_json(),
        **model.attrs,
    }


def at_least_one(**counts: int) -> None:
    """Refuse a count under 1, by name."""
    for name, value in counts.items():
        if value < 1:
            raise AnalysisError(f"{name} is {value}; it must be 1 or more.")


def batches(prompts: Prompts, size: int, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Indices of prompts of one length at a time, at most `size` of them, by `order`: nothing is ever padded."""
    at_least_one(batch=size)
    lengths = prompts.lengths
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        if order is not None:
            members = members[np.argsort(order[members], kind="stable")]
        for start in range(0, len(members), size):
            yield members[start : start + size]


def resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """Bootstrap weights, float64 [draw, item]: each row counts how often an item was drawn, divided by n."""
    at_least_one(draws=draws)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) / n


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central 95 % along the first axis."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
