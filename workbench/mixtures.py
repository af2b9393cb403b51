"""Every mixture of some tasks, tuned on and measured on all of them: what each task adds, and what two do together."""

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import interval, resamples
from workbench.experiments import (
    SCORES,
    ExperimentError,
    Given,
    Runner,
    attrs_of,
    distinct,
    finished,
    in_turn,
    over_seeds,
)
from workbench.methods import METHODS
from workbench.runs import Run
from workbench.schema import check
from workbench.spec import Spec, read_spec
from workbench.tuning import estimate, make_training

if TYPE_CHECKING:
    from workbench.training import Training

MOST = 5  # tasks of a mixture study: 31 mixtures
MEAN = "mean of the tasks"
NONE = "not tuned"
CHANGES = {
    "gain": "after tuning, less before",
    "main": "with the task in the mixture less without, mean over what else is in it",
    "synergy": "of both tasks together beyond the sum of their own",
}


def mixtures(spec: Given, tasks: Sequence[Any] = (), *, rows: Literal["task", "all"] = "task") -> list[Spec]:
    """One spec for every mixture of the tasks: all their subsets but the empty one, the smallest first.

    Args:
        spec: everything but the mixture.
        tasks: as a spec names them; empty for the spec's own.
        rows: what is the same in all mixtures: the rows of each `task` in a step (the spec's batch for each, so that a
            task is read the same wherever it is), or of `all` together.

    Raises:
        ExperimentError: for fewer than 2 or more than 5 tasks, or a method with parts for each task.
    """
    whole = read_spec(spec)
    whole = whole.changed(tasks=list(tasks) or whole.tasks, batch=max(whole.batch, len(tasks)))
    given, count = read_spec(spec).batch, len(whole.tasks)
    if not 2 <= count <= MOST:
        raise ExperimentError(f"There are {count} tasks; a study of mixtures takes 2 to {MOST} (2^5 - 1 = 31 runs).")
    if METHODS[whole.method].per_task:
        raise ExperimentError(
            f"'{whole.method}' has parts for each task, so that nothing of one can be seen on another; use a method "
            "that all tasks share, such as lora."
        )
    return [
        whole.changed(
            tasks=[whole.tasks[task] for task in members], batch=given * (len(members) if rows == "task" else 1)
        )
        for members in subsets(count)
    ]


def subsets(count: int) -> list[tuple[int, ...]]:
    """All subsets of 0 ... count - 1 but the empty one, the smallest first."""
    return [found for size in range(1, count + 1) for found in itertools.combinations(range(count), size)]


@dataclass(frozen=True)
class Cost:
    """What a study is expected to take: runs in all and still to be made, seconds for those, bytes of the largest."""

    runs: int
    left: int
    seconds: float
    memory: int


def study_cost(
    spec: Given, tasks: Sequence[Any] = (), *, seeds: Sequence[int] = (), rows: Literal["task", "all"] = "task"
) -> Cost:
    """What `mixture_study` with the same arguments would take, from one estimate for each size of a mixture.

    Raises:
        SpecError: when the largest does not fit, naming the setting that would.
    """
    specs = [
        each.changed(seed=seed) for seed in seeds or [read_spec(spec).seed] for each in mixtures(spec, tasks, rows=rows)
    ]
    left = [each for each in specs if Run(each.name).status["state"] != "finished"]
    each = {len(one.tasks): one for one in left}
    found = {size: estimate(one) for size, one in each.items()}
    seconds = sum(found[len(one.tasks)].seconds for one in left)
    return Cost(len(specs), len(left), seconds, max((one.memory for one in found.values()), default=0))


def mixture_study(
    spec: Given,
    tasks: Sequence[Any] = (),
    *,
    seeds: Sequence[int] = (),
    rows: Literal["task", "all"] = "task",
    run: Runner = in_turn,
    draws: int = 2000,
) -> xr.Dataset:
    """Every mixture of up to five tasks tuned on, and measured on the held-out rows of all of them.

    With y(S) a score after tuning on the mixture S, y() that before tuning, and G(S) = y(S) - y(): `gain` is G(S);
    `main` of task i the mean over the mixtures S without i of y(S and i) - y(S), the main effect of the full factorial;
    `synergy` of tasks i, j is G(ij) - G(i) - G(j), what the two do together beyond the sum of what each does alone. An
    accuracy cannot pass 1: where either task alone brings it there, the synergy is negative without any conflict; the
    loss does not saturate so. Runs are kept by name, so that a study that was stopped goes on where it was.

    Args:
        spec: everything but the mixture.
        tasks: as `mixtures` takes them; empty for the spec's own.
        seeds: the study is made with each; empty for the spec's own.
        rows: as `mixtures` takes it.
        run: makes runs of specs; the engine's, to have them side by side.
        draws: bootstrap resamples of held-out rows.

    Returns:
        For each score, `accuracy` and `loss` (nats): itself and `_gain` [method, measured], `_main` [task, measured],
        `_synergy` [task, receiver, measured] (0 on the diagonal), the latter three with a 95 % interval: Student's t
        over seeds, or of one seed held-out rows drawn again. `method` names the mixtures, the first being the untuned
        model; `member` [method, task] says what is in them; `measured` are the tasks and, last, their mean.

    Raises:
        ExperimentError: as `mixtures`.
        Cancelled: when a run was stopped; started again, the study goes on from there.
    """
    started = time.perf_counter()
    seeds = distinct(list(seeds) or [read_spec(spec).seed])
    plans = [[each.changed(seed=seed) for each in mixtures(spec, tasks, rows=rows)] for seed in seeds]
    runs = finished([each for plan in plans for each in plan], run)
    found = [_measured(plan, runs) for plan in plans]
    whole = plans[0][-1]
    ds = _study(found, len(whole.tasks), draws)
    labels = [NONE, *(" + ".join(each.titles) for each in plans[0])]
    coords = {"method": labels, "task": whole.titles, "receiver": whole.titles, "measured": [*whole.titles, MEAN]}
    ds = ds.assign_coords(coords)
    ds.attrs = attrs_of("mixture_study", whole, seeds, started) | {
        "primary": "accuracy",
        "sign": "gain, main, synergy of the accuracy: positive = better; of the loss: positive = worse",
        "title": f"mixtures of {', '.join(whole.titles)}: {whole.method} from {whole.model}",
        "rows": f"the same rows in a step for {'each task' if rows == 'task' else 'all tasks together'}",
        "runs": json.dumps([[each.name for each in plan] for plan in plans]),
    }
    return check(ds)


def _measured(plan: Sequence[Spec], runs: Mapping[str, Run]) -> dict[str, list[np.ndarray]]:
    """By score, of each task's held-out rows [mixture, row], the untuned model first."""
    training = make_training(plan[-1])
    found = [_held_out(training)]
    for spec in plan:
        state = runs[spec.name].state
        if state is None:
            raise ExperimentError(f"The run '{spec.name}' has lost its weights; delete it and start this again.")
        training.adopt(state)
        found.append(_held_out(training))
    count = range(len(plan[-1].tasks))
    return {name: [np.stack([each[task][name] for each in found]) for task in count] for name in SCORES}


def _held_out(training: "Training") -> list[dict[str, np.ndarray]]:
    """Scores of every held-out row, task by task."""
    pairs = (training.held_out(task) for task in range(len(training.pools)))
    return [{"loss": losses, "accuracy": right.astype(float)} for losses, right in pairs]


def contrasts(count: int) -> dict[str, np.ndarray]:
    """How changes are made of scores: weights [..., mixture], the empty mixture first; see `mixture_study`."""
    known = {members: place for place, members in enumerate([(), *subsets(count)])}
    eye = np.eye(len(known))

    def y(*members: int) -> np.ndarray:
        return eye[known[tuple(sorted(members))]]

    others = {task: [s for s in known if task not in s] for task in range(count)}
    main = [np.mean([y(*s, task) - y(*s) for s in others[task]], axis=0) for task in range(count)]
    synergy = np.zeros((count, count, len(known)))
    for i, j in itertools.permutations(range(count), 2):
        synergy[i, j] = y(i, j) - y(i) - y(j) + y()
    return {"gain": eye - y(), "main": np.stack(main), "synergy": synergy}


def _study(found: list[dict[str, list[np.ndarray]]], count: int, draws: int) -> xr.Dataset:
    """The dataset without labels, of each seed's scores."""
    dims = {"gain": ("method",), "main": ("task",), "synergy": ("task", "receiver")}
    variables: dict[str, Any] = {}
    for name, (text, units) in SCORES.items():
        say = {"long_name": text, "units": units}
        mean = np.mean([_with_mean([task.mean(-1) for task in seed[name]]) for seed in found], axis=0)
        variables[name] = (("method", "measured"), mean, say)
        for kind, weights in contrasts(count).items():
            values = [[weights @ task for task in seed[name]] for seed in found]
            more = say | {"long_name": f"{text}: {CHANGES[kind]}", "signed": 1}
            for end, numbers in zip(("", "_low", "_high"), _ends(values, draws), strict=True):
                variables[f"{name}_{kind}{end}"] = ((*dims[kind], "measured"), numbers, more)
    member = np.array([[task in members for task in range(count)] for members in [(), *subsets(count)]])
    variables["member"] = (("method", "task"), member.astype(np.int8), {"long_name": "the mixture has the task"})
    return xr.Dataset(variables)


def _with_mean(by_task: Sequence[np.ndarray]) -> np.ndarray:
    """Values of each task, and their mean, along a new last axis."""
    return np.stack([*by_task, np.mean(by_task, axis=0)], -1)


def _ends(values: list[list[np.ndarray]], draws: int) -> Iterator[np.ndarray]:
    """Mean, lower and upper end [..., measured] of values [seed][task] [..., row]."""
    means = np.array([_with_mean([task.mean(-1) for task in seed]) for seed in values])
    yield means.mean(0)
    if len(values) > 1:
        yield from over_seeds(means)
        return
    drawn = [
        np.moveaxis(task @ resamples(task.shape[-1], draws, place).T, -1, 0) for place, task in enumerate(values[0])
    ]
    yield from interval(_with_mean(drawn))
