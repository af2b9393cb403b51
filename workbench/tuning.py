"""A fine-tune from its spec to checkpoints on disk: started, stopped, resumed; and before that, what it will take."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.launch import launched
from workbench.methods import METHODS
from workbench.progress import track
from workbench.registry import WorkbenchError
from workbench.runs import Hear, Onlooker, Run
from workbench.spec import Spec, SpecError, read_spec

if TYPE_CHECKING:
    from workbench.training import Training

SPARE = 0.9  # of the memory that is free, what a run may take
ADAM = 2  # numbers of the optimizer for each trained one


def tune(given: "Spec | Mapping[str, Any] | str | Path", hear: Hear | None = None) -> Run:
    """Fine-tune a model on several tasks; a run of the same spec that was stopped goes on, a finished one is returned.

    Args:
        given: a `Spec`, plain data for one, or the path of a YAML or JSON file that holds it.
        hear: is told each line of the run's log when it is written.

    Returns:
        The run: its `curves()`, its `reference` (and `reference@step`) to be loaded and traced, its `status`.

    Raises:
        SpecError, TaskError, MethodError: when something was asked for that cannot be, before anything is changed.
        RunError: when the run is under way in another process, or its disk is full.
        TrainingError: when a loss is no longer a number.
    """
    spec = read_spec(given)
    first = int(os.environ.get("RANK", "0")) == 0  # of the processes that accelerate launched
    run = Run(spec.name) if first else Onlooker(spec.name)
    run.hear = hear or run.hear
    if run.status["state"] == "finished":
        return run
    if spec.processes > 1 and "WORLD_SIZE" not in os.environ:  # which each of several processes finds there
        run.begin(spec)
        return launched(spec, run)
    with run.hold():
        run.begin(spec)
        try:
            _train(spec, run)
        except WorkbenchError as error:
            run.mark("failed", run.status["done"], spec.steps, str(error))
            raise
    return run


def make_training(spec: Spec, logs: Path | None = None) -> "Training":
    """The model of a spec with its method attached, before the first step; curves are also logged under `logs`."""
    from workbench.models.load import read_module
    from workbench.training import Training

    if spec.logger and find_spec(spec.logger) is None:
        raise SpecError(f"{spec.logger} is not installed; install it, or leave logger empty.")
    return Training(spec, *read_module(spec.model, spec.dtype), logs=logs)


def _train(spec: Spec, run: Run) -> None:
    from workbench.telemetry import Telemetry

    training = make_training(spec, run.folder / "logs")
    state = run.state
    if state is not None:
        training.restore(state)
    run.forget_after(training.done if state else -1)
    run.mark("running", training.done, spec.steps)
    if state is None:
        _keep(training, run)
    telemetry, left = Telemetry(spec, run), spec.steps - training.done
    try:
        for _ in track(range(left), f"tuning {run.name}", left):
            step = training.step()
            run.log("step", step=step.done, losses=step.losses, norm=step.norm, rate=step.rate, seconds=step.seconds)
            telemetry.look(training)
            if training.done % spec.checkpoint == 0:
                _keep(training, run)
    finally:  # a stop leaves what there is; a step that was not finished is done again
        if training.settled and training.done not in run.checkpoints:
            _keep(training, run)
        training.accelerator.end_training()
    run.mark("finished" if training.done == spec.steps else "paused", training.done, spec.steps)


def _keep(training: "Training", run: Run) -> None:
    """A checkpoint, what it does on the held-out rows, and the state to go on from, in this order."""

    def save(folder: Path) -> None:
        training.attached.save(folder)
        per_task = METHODS[run.spec.method].per_task
        about = {"tasks": training.titles, "per_task": per_task, "run": run.name, "step": training.done}
        for place in (folder, *folder.glob("task_*")):
            (place / "workbench.json").write_text(json.dumps(about), encoding="utf-8")
            (place / "README.md").unlink(missing_ok=True)  # PEFT's empty form
            training.tokenizer.save_pretrained(place)

    run.keep(training.done, save)
    run.log("evaluation", step=training.done, tasks=training.evaluate())
    run.keep_state(training.state())


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: bytes at most, and bytes free; seconds; parameters, and how many are trained."""

    memory: int
    free: int
    seconds: float
    parameters: int
    trained: int

    @property
    def fits(self) -> bool:
        """Whether it is expected to fit in the memory that is free."""
        return self.memory <= SPARE * self.free


def estimate(given: "Spec | Mapping[str, Any] | str | Path") -> Estimate:
    """What a fine-tune is expected to take, from its parameters and from one pass over one row of each task.

    Memory is that of the weights, gradients, AdamW's two moments (with an aggregator of gradients, one gradient a task
    more) and of what the pass kept for going backwards, times the rows and tokens of a step. Seconds are those of one
    step, times the steps.

    Raises:
        SpecError: when it cannot fit, naming the setting that would.
    """
    spec = read_spec(given)
    training = make_training(spec)
    parameters, trained = (
        sum(value.numel() * value.element_size() for value in values)
        for values in (training.module.parameters(), training.named.values())
    )
    gradients = len(spec.tasks) + 1 if training.aggregator else 1
    fixed = parameters + trained * (gradients + ADAM)
    rows = int(training.counts.sum() if training.attached.select is None else training.counts.max())
    free, row = _free(training.device), _kept_by_a_row(training)
    memory = fixed + row * rows
    if memory > SPARE * free:
        raise SpecError(_advice(spec, memory, free, fixed, row))
    training.step()  # a first step is slower than all others
    started = time.perf_counter()
    training.step()
    seconds = (time.perf_counter() - started) * spec.steps
    sizes = (sum(v.numel() for v in values) for values in (training.module.parameters(), training.named.values()))
    return Estimate(memory, free, seconds, *sizes)


def _kept_by_a_row(training: "Training") -> int:
    """Bytes that a forward pass keeps for the backward one, of the longest row of any task."""
    import torch

    from workbench.training import make_batch

    seen: dict[int, int] = {value.untyped_storage().data_ptr(): 0 for value in training.module.parameters()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        seen.setdefault(storage.data_ptr(), storage.nbytes())
        return value

    pools = training.pools
    task = max(range(len(pools)), key=lambda number: pools[number].longest)
    row = max(range(len(pools[task].ids)), key=lambda number: len(pools[task].ids[number]))
    if training.attached.select is not None:
        training.attached.select(task)
    batch = make_batch([pools[task].ids[row]], [pools[task].answers[row]], [task], training.device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        training.losses(batch)
    return sum(seen.values())


def _free(device: Any) -> int:
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _advice(spec: Spec, memory: int, free: int, fixed: int, row: int) -> str:
    """What would fit."""
    rows = int((SPARE * free - fixed) / row)
    if rows >= len(spec.tasks):
        change = f"set batch to {rows} or less"
    elif spec.method in ("full", "separate_lora"):
        change = "use the method lora"
    else:
        change = "use a smaller model, or dtype bfloat16"
    return f"The tune needs about {memory / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; {change}."
