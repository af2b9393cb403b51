"""Where a model reference points, and the fingerprint of what is there; needs no torch.

A reference is `zoo/<name>`, `run/<name>` for a fine-tune of one's own, a hub id, or a local directory; `@` adds a
training checkpoint of the first two (`zoo/tasks@500`) or a hub revision (`EleutherAI/pythia-70m@step1000`). Where each
task has a part of its own in the first two, `:` names the task whose is meant (`zoo/skills:ioi`, `run/x:ioi@50`).
"""

import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from workbench.disk import home
from workbench.registry import WorkbenchError

ZOO = Path(__file__).parent.parent / "zoo"
CONFIGS = ("config.json", "adapter_config.json")
KEPT = ("zoo", "run")  # kinds of references with training checkpoints
WEIGHTS = ("*.safetensors",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
CONVERSION = (
    "Convert them once, where you trust the file: "
    "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory)"
)


class ModelError(WorkbenchError):
    """A model that cannot be found, read or trusted."""


@dataclass(frozen=True)
class Source:
    """A checked model directory: safetensors weights, a configuration and a tokenizer lie in it."""

    reference: str
    folder: Path
    checkpoint: int = -1  # training step; -1 for the final weights
    route: str = ""  # the task whose mix of a routed adapter is meant

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change whenever a weight, the configuration or the tokenizer does."""
        files = [path for pattern in ("*.safetensors", "*.json") for path in sorted(self.folder.glob(pattern))]
        stats = tuple((str(path), path.stat().st_mtime_ns) for path in files if path.name != "training.json")
        return _content_hash(stats, _base_hash(self.folder))


def _base_hash(folder: Path) -> str:
    """Hash of the model an adapter was made for; empty for a whole model."""
    config = folder / "adapter_config.json"
    return find(json.loads(config.read_text()).get("base_model_name_or_path") or "").hash if config.is_file() else ""


@functools.lru_cache(maxsize=64)
def _content_hash(stats: tuple[tuple[str, int], ...], base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for path, _ in stats:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def zoo_names() -> list[str]:
    """The shipped models, as references: `zoo/<name>`."""
    found = {path.parent.name for kind in CONFIGS for path in ZOO.glob(f"*/{kind}")}
    return [f"zoo/{name}" for name in sorted(found)]


def run_names() -> list[str]:
    """The fine-tunes that have a checkpoint, as references: `run/<name>`, in the order of `run_folders`."""
    return [f"run/{folder.name}" for folder in run_folders() if any(folder.glob("checkpoints/step_*"))]


def run_folders() -> list[Path]:
    """Where the fine-tunes on this machine are kept, the one that was asked for last first."""
    asked = sorted((home() / "runs").glob("*/spec.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent for path in asked]


def checkpoints(reference: str) -> list[int]:
    """Training steps at which a zoo model or a fine-tune was kept, in order; empty for other models."""
    kind, _, name = re.split("[:@]", reference, maxsplit=1)[0].partition("/")
    if kind not in KEPT or not name or Path(name).name != name:
        return []
    return sorted(int(path.name.removeprefix("step_")) for path in _kept(kind, name).glob("step_*"))


def _kept(kind: str, name: str) -> Path:
    return (ZOO if kind == "zoo" else home() / "runs") / name / "checkpoints"


def references(name: str) -> list[str]:
    """By which a model of the zoo or a fine-tune is loaded: as a whole, where it is one, and each task's part of it."""
    kind, _, short = name.partition("/")
    folder = ZOO / short if kind == "zoo" else _kept(kind, short) / f"step_{checkpoints(name)[-1]:05d}"
    whole = [] if (folder / "task_0").is_dir() else [name]
    return whole + [f"{name}:{task}" for task in tasks_of(folder)]


def find(reference: str | os.PathLike) -> Source:
    """The directory a reference points to, fetched from the hub if it must be, and checked.

    Raises:
        ModelError: when there is no such model, its weights are pickled, damaged or missing, or it has no tokenizer.
    """
    text = str(reference)
    if not text:
        raise ModelError("There is no model reference to load from (a live model has none); wrap the module again.")
    name, _, mark = text.partition("@")
    if name.startswith(("zoo/", "run/")):
        name, _, route = name.partition(":")
        return _ours(text, name, route, mark)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return Source(text, check_folder(folder.resolve()))
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise ModelError(f"There is no directory '{text}'; give the path of a model saved by transformers.")
    return Source(text, check_folder(_from_hub(name, mark or None)))


def _ours(text: str, name: str, route: str, mark: str) -> Source:
    """A model of the zoo or a fine-tune: its last weights, or those of a step; one task's part of them, if asked."""
    kept = checkpoints(name)
    if name.startswith("zoo/") and name not in zoo_names():
        raise ModelError(f"The zoo has no model '{name}'; it has: {', '.join(zoo_names())}.")
    if name.startswith("run/") and not kept:
        known = ", ".join(run_names()) or "none yet"
        raise ModelError(f"There is no run '{name}' with a checkpoint; there are: {known}.")
    if mark and (not mark.isdigit() or int(mark) not in kept):
        steps = ", ".join(map(str, kept))
        raise ModelError(f"'{name}' has no checkpoint '{mark}'; it was kept at the steps {steps}.")
    kind, _, short = name.partition("/")
    step = int(mark) if mark else -1 if kind == "zoo" else kept[-1]
    folder = ZOO / short if step < 0 else _kept(kind, short) / f"step_{step:05d}"
    tasks = tasks_of(folder)
    if route and route not in tasks:
        known = f"it has: {', '.join(tasks)}" if tasks else "its tasks share all of it, so leave out the colon"
        raise ModelError(f"'{name}' has no part of a task '{route}'; {known}.")
    if not (folder / "task_0").is_dir():
        return Source(text, check_folder(folder), step, route)
    if not route:
        raise ModelError(f"'{name}' has an adapter for each task; load one, like '{name}:{tasks[0]}'.")
    return Source(text, check_folder(folder / f"task_{tasks.index(route)}"), step)


def tasks_of(folder: Path) -> list[str]:
    """Tasks that have a part of their own in a checkpoint, in the order of their numbers; none where all is shared."""
    file = folder / "workbench.json"
    if not file.is_file():
        return []
    about = json.loads(file.read_text(encoding="utf-8"))
    return about["tasks"] if about.get("per_task", True) else []


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"'{name}' is not a model reference; {_known()}.")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"There is no model '{name}' here, and the hub gave none ({type(error).__name__}: {reason}); {_known()}."
        ) from None


def _known() -> str:
    return f"use one of {', '.join(zoo_names())}, the path of a directory saved by transformers, or a hub id"


def check_folder(folder: Path) -> Path:
    """The folder, once it is known to hold whole safetensors weights, a configuration and a tokenizer.

    Raises:
        ModelError: saying what is missing or damaged and how to mend it.
    """
    if not any((folder / name).is_file() for name in CONFIGS):
        raise ModelError(f"'{folder}' has no config.json; save the model there with model.save_pretrained(directory).")
    weights = [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    if not weights:
        pickled = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        if pickled:
            raise ModelError(f"'{folder}' holds pickled weights ({pickled[0]}), which can run code. {CONVERSION}.")
        raise ModelError(f"'{folder}' has no .safetensors weights; save the model there with save_pretrained.")
    for path in (*weights, *_listed_shards(folder)):
        _check_safetensors(path)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"'{folder}' has no tokenizer; save it there with tokenizer.save_pretrained(directory).")
    return folder


def _listed_shards(folder: Path) -> set[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"'{index}' is damaged ({reason}); copy or download it again.") from None


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        reason = "is missing" if not path.exists() else f"is truncated or damaged ({error})"
        raise ModelError(f"'{path}' {reason}; copy or download it again.") from None
