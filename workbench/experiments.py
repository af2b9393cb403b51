"""Two fine-tunes that read the same rows in the same order, so that what differs is the one thing that was changed."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.analyses._base import LEVEL, interval, resamples
from workbench.analyses.flips import mcnemar
from workbench.progress import Cancelled
from workbench.registry import WorkbenchError
from workbench.runs import Run
from workbench.schema import check, provenance
from workbench.spec import Spec, read_spec
from workbench.tuning import make_training, tune

ORDER = ("tasks", "temperature", "batch", "examples", "held")  # settings that decide which rows are read when
SCORES = {"accuracy": ("held-out rows answered rightly", "share"), "loss": ("loss on held-out rows", "nats")}
Given = Spec | Mapping[str, Any] | str
Runner = Callable[[Sequence[Spec]], Sequence[Run]]


class ExperimentError(WorkbenchError):
    """Fine-tunes that cannot be set beside each other."""


def in_turn(specs: Sequence[Spec]) -> list[Run]:
    """Every fine-tune in this process, one after the other, up to the first that is stopped."""
    runs = []
    for spec in specs:
        runs.append(tune(spec))
        if runs[-1].status["state"] != "finished":
            break
    return runs


def paired(
    first: Given, second: Given, *, seeds: Sequence[int] = (0, 1, 2), run: Runner = in_turn, draws: int = 2000
) -> xr.Dataset:
    """Two fine-tunes with the same rows in the same order, seed by seed: the second less the first on each task.

    Args:
        first: a spec, or what `read_spec` takes.
        second: another, which shares the settings that decide what is read when: tasks, temperature, batch, examples
            and held; and a tokenizer.
        seeds: in whose place the specs' own are not used.
        run: makes runs of specs; the engine's, to have them side by side.
        draws: bootstrap resamples of held-out rows.

    Returns:
        `accuracy`, `loss` [method, seed, task] after the last step, on held-out rows; `difference` of the accuracy
        [seed, task] with the 95 % interval of held-out rows drawn again (the same rows for both), and `p`, McNemar's
        exact test on them; `accuracy_change`, `loss_change` [task], means over seeds. Their intervals are Student's t
        over seeds, which holds the noise of rows and of training; of one seed that of the rows alone (for the
        accuracy), as the attribute `interval` says.

    Raises:
        ExperimentError: naming the settings in which the reading differs; without seeds; or of runs too old to say
            which rows were right.
        Cancelled: when a run was stopped; started again, the experiment goes on from there.
    """
    started = time.perf_counter()
    specs = [[read_spec(given).changed(seed=seed) for seed in distinct(seeds)] for given in (first, second)]
    for a, b in zip(*specs, strict=True):
        _same_reading(a, b)
    runs = finished([*specs[0], *specs[1]], run)
    ends = [[_last(runs[spec.name]) for spec in each] for each in specs]
    right = [[[_rows(task) for task in tasks] for tasks in each] for each in ends]
    loss = np.array([[[task["loss"] for task in tasks] for tasks in each] for each in ends])
    ds = _paired(right, loss, draws)
    coords = {"method": _names(specs[0][0], specs[1][0]), "seed": list(seeds), "task": specs[0][0].titles}
    ds = ds.assign_coords(coords)
    ds.attrs = attrs_of("paired", specs[0][0], coords["seed"], started) | {
        "primary": "accuracy_change",
        "sign": "the second less the first; accuracy: positive = the second is better",
        "title": f"{coords['method'][1]} against {coords['method'][0]} on {', '.join(coords['task'])}",
        "runs": json.dumps([[spec.name for spec in each] for each in specs]),
    }
    return check(ds)


def distinct(seeds: Sequence[int]) -> list[int]:
    """The seeds, once it is known that there are some and none is there twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ExperimentError(f"The seeds are {list(seeds)}; give one or more, each once.")
    return list(seeds)


def _same_reading(a: Spec, b: Spec) -> None:
    """Refuse two specs that read other rows, or in another order."""
    differ = [name for name in ORDER if getattr(a, name) != getattr(b, name)]
    if differ:
        raise ExperimentError(
            f"These fine-tunes differ in {', '.join(differ)}, so they read other rows or in another order; a paired "
            "experiment needs both to share " + ", ".join(ORDER) + "."
        )
    if a.model != b.model and _read(a) != _read(b):
        raise ExperimentError(
            f"'{a.model}' and '{b.model}' cut the tasks into other tokens, so that their rows are not the same; start "
            "both from checkpoints of one model."
        )


def _read(spec: Spec) -> list[str]:
    """Hashes of the rows of every task."""
    return [pool.hash for pool in make_training(spec).pools]


def finished(specs: Sequence[Spec], run: Runner) -> dict[str, Run]:
    """Runs by name, once all are at their end; each spec is run once, however often it is named.

    Raises:
        Cancelled: when one was stopped before its end.
    """
    wanted = {spec.name: spec for spec in specs}
    found = {each.name: each for each in run(list(wanted.values()))}
    for name, spec in wanted.items():
        if name not in found or found[name].status["state"] != "finished":
            done = found[name].status["done"] if name in found else 0
            raise Cancelled(f"The run '{name}' was stopped at step {done} of {spec.steps}; start this again to go on.")
    return found


def _last(run: Run) -> list[dict[str, Any]]:
    """What the evaluation after the last step says of each task."""
    found = [record for record in run.records if record["kind"] == "evaluation"][-1]["tasks"]
    if any("each" not in task for task in found):
        raise ExperimentError(
            f"The run '{run.name}' does not say which held-out rows it got right (it was made by an earlier version); "
            f"delete '{run.folder}' and start this again."
        )
    return found


def _rows(task: Mapping[str, Any]) -> np.ndarray:
    return np.array([mark == "1" for mark in task["each"]], dtype=float)


def _names(a: Spec, b: Spec) -> list[str]:
    """What tells two specs apart, as names of both."""
    plain = a.plain, b.plain
    differ = [name for name in plain[0] if plain[0][name] != plain[1][name] and name not in ("device", "logger")]
    if not differ:
        return ["first", "second"]
    return [", ".join(f"{name} {_told(spec[name])}" for name in differ) for spec in plain]


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _paired(right: list[list[list[np.ndarray]]], loss: np.ndarray, draws: int) -> xr.Dataset:
    """The dataset without labels, of right [method][seed][task] [row] and loss [method, seed, task]."""
    accuracy = np.array([[[task.mean() for task in tasks] for tasks in each] for each in right])
    apart = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(*right, strict=True)]
    ends = np.array([[_drawn(rows, draws, seed) for rows in tasks] for seed, tasks in enumerate(apart)])
    p = [[mcnemar(int((rows < 0).sum()), int((rows > 0).sum())) for rows in tasks] for tasks in apart]
    says = {name: {"long_name": text, "units": units} for name, (text, units) in SCORES.items()}
    change = {name: say | {"long_name": f"change of {say['long_name']}", "signed": 1} for name, say in says.items()}
    by, each = ("method", "seed", "task"), ("seed", "task")
    one = len(right[0]) == 1
    middle = accuracy[1] - accuracy[0]
    variables: dict[str, Any] = {"accuracy": (by, accuracy, says["accuracy"]), "loss": (by, loss, says["loss"])}
    for end, values in (("", middle), ("_low", ends[..., 0]), ("_high", ends[..., 1])):
        variables[f"difference{end}"] = (each, values, change["accuracy"])
    variables["p"] = (each, np.array(p), {"long_name": "McNemar's exact test", "units": "probability"})
    for name, values in (("accuracy", middle), ("loss", loss[1] - loss[0])):
        variables[f"{name}_change"] = ("task", values.mean(0), change[name])
        sides = (ends[0, :, 0], ends[0, :, 1]) if one else over_seeds(values)
        if not one or name == "accuracy":
            for end, side in zip(("_low", "_high"), sides, strict=True):
                variables[f"{name}_change{end}"] = ("task", side, change[name])
    return xr.Dataset(variables)


def _drawn(rows: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    """Bootstrap interval of the mean over rows."""
    low, high = interval(resamples(len(rows), draws, seed) @ rows)
    return float(low), float(high)


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of the mean over the first axis."""
    from scipy.special import stdtrit

    count = len(values)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * values.std(0, ddof=1) / np.sqrt(count)
    return values.mean(0) - half, values.mean(0) + half


def attrs_of(analysis: str, spec: Spec, seeds: Sequence[int], started: float) -> dict[str, Any]:
    """Attributes of an experiment, made of runs like `spec`."""
    return provenance(
        analysis=analysis,
        params=spec.plain,
        model=spec.model,
        model_hash="",
        checkpoint=spec.steps,
        task=json.dumps(spec.titles),
        task_hash=spec.data_key[:16],
        seed=json.dumps(list(seeds)),
        seconds=round(time.perf_counter() - started, 3),
        trust="{}",
        interval=f"Student's t over {len(seeds)} seeds" if len(seeds) > 1 else "held-out rows drawn again, of one seed",
        n=spec.held,
    )
