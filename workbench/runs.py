"""Fine-tunes on disk: what was asked, where it stands, what each step gave, and checkpoints that can be traced.

A run's folder holds `spec.json`, `status.json`, `log.jsonl`, `checkpoints/step_00050` (ordinary ones, for transformers
or PEFT), `telemetry/`, and `resume.safetensors` with all that is needed to go on from the last checkpoint.
"""

import contextlib
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import store
from workbench.disk import home, write_whole
from workbench.models.reference import checkpoints, run_folders
from workbench.registry import WorkbenchError
from workbench.schema import check, concat, provenance
from workbench.spec import Spec, read_spec

if TYPE_CHECKING:
    import torch

STATES = ("new", "running", "paused", "stopped", "finished", "failed")
Hear = Callable[[dict[str, Any]], None]
Z = 1.959963984540054  # of a 95 % interval
GLANCE = 1.0  # seconds; who only looks whether a run is held lets go of it sooner


class RunError(WorkbenchError):
    """A run that is not there, cannot be read, or is under way elsewhere."""


class Run:
    """One fine-tune on disk, by its name."""

    def __init__(self, name: str) -> None:
        if not name or Path(name).name != name:
            raise RunError(f"'{name}' is not the name of a run; there are: {', '.join(run_names()) or 'none yet'}.")
        self.name, self.folder = name, home() / "runs" / name
        self.hear: Hear = lambda record: None

    @property
    def reference(self) -> str:
        """By which its last checkpoint is loaded; `@` and a step gives another."""
        return f"run/{self.name}"

    @property
    def spec(self) -> Spec:
        """What was asked for."""
        return read_spec(self._json("spec.json"))

    @property
    def status(self) -> dict[str, Any]:
        """`state`, one of `STATES`, steps `done` and `of`, and `error`.

        A run whose process is gone without a word (a killed worker, a switched-off machine) is `paused` at its last
        checkpoint.
        """
        found = self._json("status.json") if (self.folder / "status.json").is_file() else {"state": "new", "done": 0}
        if found["state"] == "running" and not self.held:
            found |= {"state": "paused", "done": max(self.checkpoints, default=0)}
        return found

    @property
    def held(self) -> bool:
        """True while some process works on it."""
        path = self.folder / "lock"
        if not path.is_file():
            return False
        with open(path, encoding="utf-8") as file:
            return not _locked(file, fcntl.LOCK_SH)  # which others who only look share

    @property
    def checkpoints(self) -> list[int]:
        """Steps at which it was kept."""
        return checkpoints(self.reference)

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(run_names()) or "none yet"
            raise RunError(f"There is no run '{self.name}' here; there are: {known}.") from None
        except ValueError as error:
            raise RunError(f"'{self.folder / name}' is damaged ({error}); delete the run and start it again.") from None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Work on the run in this process alone; the operating system lets go of it when the process ends.

        Raises:
            RunError: when another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w", encoding="utf-8") as file:
            end = time.monotonic() + GLANCE
            while not _locked(file, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise RunError(f"The run '{self.name}' is under way in another process; stop it there first.")
                time.sleep(GLANCE / 20)
            yield

    def begin(self, spec: Spec) -> None:
        """Write down what was asked for."""
        write_whole(self.folder / "spec.json", json.dumps(spec.plain, indent=1).encode())

    def mark(self, state: str, done: int, of: int, error: str = "") -> None:
        """Write down where it stands."""
        found = {"state": state, "done": done, "of": of, "error": error}
        write_whole(self.folder / "status.json", json.dumps(found).encode())
        self.hear({"kind": "status", **found})

    def log(self, kind: str, **record: Any) -> None:
        """Add a line to the log, and tell who listens."""
        line = {"kind": kind, **record}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.hear(line)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of the log; one that was cut off by a kill is left out."""
        path, found = self.folder / "log.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def forget_after(self, done: int) -> None:
        """Take back what was logged and kept after a step, from which the run is about to go on."""
        kept = [record for record in self.records if record["step"] <= done]
        write_whole(self.folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in kept).encode())
        for step in self.checkpoints:
            if step > done:
                shutil.rmtree(self.folder / "checkpoints" / f"step_{step:05d}")

    def keep(self, step: int, save: Callable[[Path], None]) -> None:
        """A checkpoint, written by `save` into a folder that gets its name when it is whole."""
        target = self.folder / "checkpoints" / f"step_{step:05d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=self.folder, prefix=".part-"))
        try:
            save(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        except OSError as error:
            raise RunError(
                f"The checkpoint at step {step} could not be written ({error.strerror or error}); free some space and "
                "resume the run."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def keep_state(self, state: "dict[str, torch.Tensor]") -> None:
        """What `state` gives back."""
        from safetensors.torch import save

        write_whole(self.folder / "resume.safetensors", save(state))

    @property
    def state(self) -> "dict[str, torch.Tensor] | None":
        """The tensors to go on from; None before the first checkpoint."""
        from safetensors.torch import load_file

        path = self.folder / "resume.safetensors"
        return load_file(path) if path.is_file() else None

    def keep_telemetry(self, step: int, analysis: str, task: str, ds: xr.Dataset) -> None:
        """What an analysis of a task found in the model after a step."""
        store.save(ds, self.folder / "telemetry" / analysis / task / f"step_{step:05d}.nc")

    def telemetry_at(self, step: int, analysis: str, task: str) -> xr.Dataset | None:
        """What an analysis of a task found after a step; None where it was not measured."""
        path = self.folder / "telemetry" / analysis / task / f"step_{step:05d}.nc"
        return store.load(path) if path.is_file() else None

    def telemetry(self, analysis: str, task: str) -> xr.Dataset | None:
        """What an analysis of a task found along training, with a dimension `step`; None where nothing was measured."""
        known = [r["step"] for r in self.records if r["kind"] == "telemetry" and r["analysis"] == analysis]
        found = {step: self.telemetry_at(step, analysis, task) for step in known}
        parts = {step: ds for step, ds in found.items() if ds is not None}
        return concat(parts, dim="step") if parts else None

    def curves(self, records: Sequence[Mapping[str, Any]] | None = None) -> xr.Dataset:
        """Losses along training and on held-out rows.

        Args:
            records: lines of the log; those on disk if there are none given.

        Returns:
            `loss` [step, task], training loss in nats of each step; `rate` and `norm` [step]; on the held-out rows
            `held_loss` and `accuracy` [checkpoint, task] with its 95 % Wilson interval.

        Raises:
            RunError: before the first step and evaluation.
        """
        known = self.records if records is None else records
        steps, held = ([record for record in known if record["kind"] == kind] for kind in ("step", "evaluation"))
        if not steps or not held:
            raise RunError(f"The run '{self.name}' has no step yet; start it with workbench.tune.")
        right, n = (
            np.array([[task[name] for task in r["tasks"]] for r in held], dtype=float) for name in ("right", "n")
        )
        low, high = wilson(right, n)
        by_step, by_task, by_check = "step", ("step", "task"), ("checkpoint", "task")
        share = {"long_name": "held-out rows answered rightly", "units": "share"}
        variables: dict[str, Any] = {
            "loss": (by_task, [r["losses"] for r in steps], {"long_name": "training loss", "units": "nats"}),
            "rate": (by_step, [r["rate"] for r in steps], {"long_name": "learning rate", "units": "1"}),
            "norm": (by_step, [r["norm"] for r in steps], {"long_name": "norm of the gradient", "units": "1"}),
            "held_loss": (
                by_check,
                [[task["loss"] for task in r["tasks"]] for r in held],
                {"long_name": "loss on held-out rows", "units": "nats"},
            ),
            "accuracy": (by_check, right / n, share),
            "accuracy_low": (by_check, low, share),
            "accuracy_high": (by_check, high, share),
        }
        spec = self.spec
        coords = {"step": [r["step"] for r in steps], "task": spec.titles, "checkpoint": [r["step"] for r in held]}
        ds = xr.Dataset(variables, coords)
        ds.attrs = provenance(**self._attrs(spec), seconds=steps[-1]["seconds"])
        return check(ds)

    def _attrs(self, spec: Spec) -> dict[str, Any]:
        return {
            "analysis": "tune",
            "params": spec.plain,
            "model": spec.model,
            "model_hash": "",
            "checkpoint": self.status["done"],
            "task": json.dumps(spec.titles),
            "task_hash": spec.data_key[:16],
            "seed": spec.seed,
            "sign": "loss in nats, lower is better; accuracy 1 = every held-out row answered rightly",
            "primary": "loss",
            "trust": "{}",
            "title": f"{spec.method} on {', '.join(spec.titles)} from {spec.model}",
            "run": self.name,
        }


def _locked(file: IO[str], kind: int) -> bool:
    """Whether a file could be locked; closing it lets go."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Onlooker(Run):
    """A run as the other processes of one fine-tune see it: read, and never written."""

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """The first process holds it."""
        yield

    def _nothing(self, *_: Any, **__: Any) -> None:
        """The first process does that."""

    begin = mark = log = forget_after = keep = keep_state = keep_telemetry = _nothing


def wilson(right: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's 95 % interval of a share, from counts of any shape."""
    share, extra = right / n, Z**2 / n
    centre, half = share + extra / 2, Z * np.sqrt(share * (1 - share) / n + extra / (4 * n))
    return (centre - half) / (1 + extra), (centre + half) / (1 + extra)


def accuracy(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the held-out rows answered rightly at the last evaluation of a log, mean over tasks; None before it."""
    found = next((record["tasks"] for record in reversed(records) if record["kind"] == "evaluation"), None)
    return float(np.mean([task["right"] / task["n"] for task in found])) if found else None


def run_names() -> list[str]:
    """All runs on this machine, the one that was asked for last first."""
    return [folder.name for folder in run_folders()]
