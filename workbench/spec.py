"""What a fine-tune is asked for with: plain data, checked once, the same in a notebook, a shell and a job."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.analyses import ANALYSES
from workbench.methods import METHODS
from workbench.models.reference import find
from workbench.registry import WorkbenchError
from workbench.tasks import TASKS
from workbench.tasks.pools import TARGETS, read_rows, title

AGGREGATORS = {
    "mean": "mean of the losses by mixture weight",
    "uncertainty": "losses weighed by a learned variance (1705.07115)",
    "dynamic_average": "tasks that fall slowly weigh more (1803.10704)",
    "upgrad": "each gradient projected so that none is opposed, then averaged (2406.16232)",
    "dual_proj": "the mean gradient projected so that none is opposed (1706.08840)",
    "mgda": "the shortest convex combination of the gradients (1810.04650)",
    "pcgrad": "each gradient freed of its part against every other (2001.06782)",
    "cagrad": "near the mean, with the least improvement as large as can be (2110.14048)",
    "aligned_mtl": "gradients made orthogonal and as long as the shortest (2305.19000)",
    "imtl_g": "equal projections on every gradient (IMTL, ICLR 2021)",
    "config": "equal cosines with every gradient (2408.11104)",
    "grad_drop": "each coordinate keeps one sign, drawn by its purity (2010.06808)",
    "random": "weights drawn anew at each step (2111.10603)",
}
ENTRY = ("name", "corruption", "weight", "target", "rows", "path")
PRECISIONS = ("no", "bf16")
LOGGERS = ("tensorboard", "trackio", "wandb")


class SpecError(WorkbenchError):
    """A fine-tune asked for wrongly; the message says which setting to change."""


@dataclass(frozen=True)
class Spec:
    """A multi-task fine-tune.

    model: a reference, as `workbench.load` takes. tasks: for each `name`, `weight` in the mixture, and either
    `corruption` and `target` (`answer`, or `wrong` to teach the wrong answer) of a registered task, or `rows` with
    `prompt` and `answer` (or `path`, a .jsonl or .csv of them). method: its name, with its parameters in `options`.
    aggregator: how the tasks' losses or gradients become one step. temperature: where given, mixture weights are the
    sizes of the tasks' data to the power 1 / temperature, times their `weight`.

    Every step reads `batch` rows, shared among the tasks by the mixture's weights, at least one each. The loss of a
    task is the mean cross-entropy of its answer tokens, in nats. AdamW; the learning rate warms up linearly, then
    falls along a cosine to a tenth.

    examples: training rows drawn from each registered task. held: rows of each held out for evaluation. checkpoint:
    steps between two checkpoints, at which the held-out rows are evaluated too. telemetry: analyses, with their
    parameters, measured on the model every `telemetry_every` steps, or more seldom so as to take no more than
    `telemetry_budget` of the time spent training; `telemetry_n` prompts each.

    processes: that share the rows of each step, one for each GPU of the machine, launched by accelerate.
    """

    model: str
    tasks: list[dict[str, Any]]
    method: str = "lora"
    options: dict[str, Any] = field(default_factory=dict)
    aggregator: str = "mean"
    temperature: float | None = None
    steps: int = 200
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warm_up: int = 10
    clip: float = 1.0
    seed: int = 0
    examples: int = 2048
    held: int = 64
    checkpoint: int = 50
    telemetry: dict[str, dict[str, Any]] = field(default_factory=dict)
    telemetry_every: int = 50
    telemetry_budget: float = 0.5
    telemetry_n: int = 16
    precision: str = "no"
    processes: int = 1
    device: str | None = None
    dtype: str = "float32"
    logger: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """Plain JSON from which `read_spec` makes the same spec."""
        return asdict(self)

    @property
    def titles(self) -> list[str]:
        """What figures call the tasks."""
        return [title(entry) for entry in self.tasks]

    @property
    def data_key(self) -> str:
        """Hash of everything that decides which rows are read in which order; paired runs share it."""
        parts = [self.tasks, self.temperature, self.batch, self.seed, self.examples, self.held]
        return _hash(parts)

    @property
    def name(self) -> str:
        """The run's name: the method, and a hash of the spec and of the model's files; one spec has one run."""
        decisive = {key: value for key, value in self.plain.items() if key not in ("device", "logger")}
        return f"{self.method}-{_hash([decisive, find(self.model).hash])[:10]}"

    def changed(self, **changes: Any) -> "Spec":
        """The same spec with other settings, checked."""
        return read_spec(self, changes)


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_spec(given: "Spec | Mapping[str, Any] | str | os.PathLike", changes: Mapping[str, Any] | None = None) -> Spec:
    """A checked spec from itself, from plain data, or from a YAML or JSON file.

    Args:
        given: what it is read from.
        changes: settings to have instead; `options.r` is a part of one.

    Raises:
        SpecError: naming the setting that is wrong and what it may be.
        TaskError: naming the row of a person's own data that is wrong.
    """
    if isinstance(given, Spec):
        if not changes:
            return given
        given = given.plain
    folder = Path()
    if not isinstance(given, Mapping):
        folder, given = Path(given).parent, _from_file(Path(given))
    given = _with(given, changes or {})
    known = {f.name: f for f in fields(Spec)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise SpecError(f"A tune has no setting '{unknown[0]}'; it has: {', '.join(known)}.")
    for name in ("model", "tasks"):
        if not given.get(name):
            raise SpecError(f"The tune lacks '{name}'; {_wanted(name)}.")
    typed = {
        name: _typed(name, value) for name, value in given.items() if name not in ("tasks", "options", "telemetry")
    }
    spec = Spec(
        **typed,
        tasks=[_entry(entry, folder) for entry in given["tasks"]],
        options=METHODS[given.get("method", "lora")].complete(given.get("options") or {}),
        telemetry={name: ANALYSES[name].complete(p or {}) for name, p in (given.get("telemetry") or {}).items()},
    )
    _check(spec)
    return spec


def _with(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(given)
    for name, value in changes.items():
        whole, _, part = name.partition(".")
        if part and not isinstance(found.get(whole) or {}, Mapping):
            raise SpecError(f"'{whole}' has no parts, so '{name}' cannot be set; set '{whole}' itself.")
        found[whole] = {**(found.get(whole) or {}), part: value} if part else value
    return found


def _wanted(name: str) -> str:
    return (
        "give a reference such as 'zoo/tasks'" if name == "model" else f"give a list of names, from {', '.join(TASKS)}"
    )


def _from_file(path: Path) -> Mapping[str, Any]:
    import yaml

    if not path.is_file():
        raise SpecError(f"There is no file '{path}'; give the path of a .yaml or .json with the tune's settings.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"'{path.name}' is not YAML ({reason}); mend it there.") from None
    if not isinstance(found, Mapping):
        raise SpecError(f"'{path.name}' holds a {type(found).__name__}; write one 'setting: value' a line.")
    return found


def _typed(name: str, value: Any) -> Any:
    """A setting in the type its default has."""
    kinds: dict[str, Any] = {"model": str, "temperature": float, "device": str}
    default: Any = next(f.default for f in fields(Spec) if f.name == name)
    if default is None and value is None:
        return value
    kind: Any = kinds.get(name) or type(default)
    wanted = "whole number" if kind is int else kind.__name__
    try:
        read = kind(value)
    except (TypeError, ValueError):
        read = None
    if read is None or (kind is int and str(value) != str(read) and value != read):
        raise SpecError(f"{name} is {value!r}; it must be a {wanted}.")
    return read


def _entry(given: Any, folder: Path) -> dict[str, Any]:
    """One task of the mixture, completed."""
    entry = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    unknown = [key for key in entry if key not in ENTRY]
    if unknown or not entry.get("name"):
        found = f"has '{unknown[0]}'" if unknown else f"is {given!r}"
        raise SpecError(f"A task {found}; give its name, or a mapping with some of {', '.join(ENTRY)}.")
    weight = _weight(entry["name"], entry.get("weight", 1.0))
    if "path" in entry:
        entry["rows"] = str(folder / entry.pop("path"))
    if "rows" in entry:
        return {"name": entry["name"], "weight": weight, "rows": read_rows(entry["rows"])}
    family = TASKS[entry["name"]]
    corruption = entry.get("corruption") or family.corruptions[0]
    if corruption not in family.corruptions:
        known = ", ".join(family.corruptions)
        raise SpecError(f"Task '{family.name}' has no corruption '{corruption}'; it has: {known}.")
    target = entry.get("target") or "answer"
    if target not in TARGETS:
        raise SpecError(f"The target of '{family.name}' is {target!r}; it must be one of {', '.join(TARGETS)}.")
    return {"name": family.name, "corruption": corruption, "target": target, "weight": weight}


def _weight(name: str, given: Any) -> float:
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise SpecError(f"The weight of '{name}' is {given!r}; it must be a number over 0.")
    return weight


def _check(spec: Spec) -> None:
    for name in ("steps", "batch", "examples", "held", "checkpoint", "telemetry_every", "telemetry_n", "processes"):
        if getattr(spec, name) < 1:
            raise SpecError(f"{name} is {getattr(spec, name)}; it must be 1 or more.")
    for name in ("learning_rate", "weight_decay", "warm_up", "clip", "telemetry_budget", "seed"):
        if not 0 <= getattr(spec, name) < float("inf"):
            raise SpecError(f"{name} is {getattr(spec, name)}; it must be 0 or more.")
    choices = {"aggregator": AGGREGATORS, "precision": PRECISIONS, "dtype": ("float32", "bfloat16", "float64")}
    for name, known in (choices | {"logger": ("", *LOGGERS)}).items():
        if getattr(spec, name) not in known:
            raise SpecError(f"{name} is {getattr(spec, name)!r}; it must be one of {', '.join(filter(None, known))}.")
    if spec.temperature is not None and not spec.temperature > 0:
        raise SpecError(f"temperature is {spec.temperature}; it must be over 0 (1: in proportion to the data).")
    _check_shares(spec)


def _check_shares(spec: Spec) -> None:
    if len(set(spec.titles)) < len(spec.titles):
        raise SpecError(f"Two tasks have the same name ({', '.join(spec.titles)}); give each one of its own.")
    for what, count in (("tasks", len(spec.tasks)), ("processes", spec.processes)):
        if spec.batch < count:
            raise SpecError(f"batch is {spec.batch}, but there are {count} {what}; give each at least one row.")
