"""Adapters on disk: read onto their base model with nothing missing, saved with nothing lost, and the skills' hash."""

import copy
import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from workbench.models.reference import ModelError, Source

WEIGHTS = "adapter_model.safetensors"
CLASSIFIER = "internal_xlora_classifier"  # of X-LoRA, in the names of its weights


def base_reference(folder: Path) -> str:
    """The reference of the model an adapter was made for; empty where it names none."""
    return _config(folder).get("base_model_name_or_path") or ""


def read_adapter(folder: Path, base: Any) -> Any:
    """The adapter in a checked directory on its base model, a transformers module that this may change.

    Raises:
        ModelError: when files lack weights, which peft would fill with random numbers, or hold them pickled.
    """
    from peft import PeftConfig, PeftModel
    from peft.tuners.lora import create_arrow_model

    config: Any = PeftConfig.from_pretrained(str(folder))
    experts = _expert_folders(folder)
    for expert in experts:
        if not (expert / WEIGHTS).is_file():
            raise ModelError(f"'{expert}' has no {WEIGHTS}, though '{folder}' routes to it; save it there again.")
    if arrow := getattr(config, "arrow_config", None):
        if arrow.use_gks:
            raise ModelError(f"'{folder}' takes general knowledge off its experts; save what is left, without use_gks.")
        arrow.rng_seed = arrow.rng_seed or 0  # of the start of a power iteration, else another at every load
        return create_arrow_model(base, [str(expert) for expert in experts], arrow)
    if experts:
        base.config.use_cache = False  # without which X-LoRA refuses
        config.adapters = {str(index): str(expert) for index, expert in enumerate(experts)}
        _refuse_not_whole(folder, config, experts)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        module = PeftModel.from_pretrained(base, str(folder), config=config)
    if lacking := [str(note.message) for note in notes if "missing adapter keys" in str(note.message)]:
        raise ModelError(f"The weights in '{folder}' are not whole ({lacking[0]}); save the adapter there again.")
    return module


def _expert_folders(folder: Path) -> list[Path]:
    """Where the skills of X-LoRA or Arrow lie, in their order: beside their router, as peft saves them, or as named."""
    config = _config(folder)
    if config.get("peft_type") == "XLORA":
        known = (config.get("adapters") or {}).items()
        return [folder / name if (folder / name).is_dir() else folder / path for name, path in known]
    arrow = config.get("arrow_config") or {}
    return [folder.parent / name for name in arrow.get("task_adapter_names") or ()]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _refuse_not_whole(folder: Path, config: Any, experts: list[Path]) -> None:
    """Raise ModelError for an X-LoRA as peft's own saving leaves it, on which its loading hangs."""
    lacks = [] if len(_names(folder, CLASSIFIER)) == 2 * config.xlora_depth else ["its classifier"]
    lacks += [f"the skill {expert.name}" for expert in experts if _names(expert) != _names(expert, ".lora_")]
    if lacks:
        raise ModelError(
            f"The weights in '{folder}' lack {', '.join(lacks)}: peft's save_pretrained leaves out what is numbered "
            "like an expert. Save it there again with workbench.models.adapter_files.save_adapter(model, directory)."
        )


def _names(folder: Path, part: str = "") -> list[str]:
    """Names of the weights in a folder that contain a text."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        return [name for name in list(file.keys()) if part in name]


def save_adapter(module: Any, folder: str | os.PathLike) -> None:
    """Save a PEFT model's adapter as safetensors.

    As its `save_pretrained` does, but for X-LoRA, whose classifier and skills that loses: what is saved there holds the
    classifier, and each skill as a LoRA in a folder beside it.
    """
    config = module.peft_config[module.active_adapter]
    if config.peft_type != "XLORA":
        module.save_pretrained(folder, safe_serialization=True)
        return
    state, skills = module.state_dict(), list(config.adapters)
    config = copy.copy(config)
    config.adapters, config.base_model_name_or_path = {name: name for name in skills}, module.config.name_or_path
    _write(Path(folder), {name: value for name, value in state.items() if CLASSIFIER in name}, config)
    for name in skills:
        form = re.compile(rf"base_model\.lora_model\.model\.(.+\.lora_\w+)\.{re.escape(name)}(\.\w+)?")
        found = {key: form.fullmatch(key) for key in state}
        own = {f"base_model.model.{at[1]}{at[2] or ''}": state[key] for key, at in found.items() if at}
        _write(Path(folder) / name, own, module.base_model.lora_model.peft_config[name])


def _write(folder: Path, weights: dict[str, Any], config: Any) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    config.save_pretrained(str(folder))


def hash_of(source: Source) -> str:
    """The source's hash, with that of skills that lie in folders of their own."""
    digest = hashlib.sha256(source.hash.encode())
    experts = _expert_folders(source.folder)
    for expert in experts:
        with open(expert / WEIGHTS, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if experts else source.hash


def task_names(module: Any, source: Source, given: str) -> tuple[str, ...]:
    """The names of a Poly adapter's tasks in the order of their ids.

    Raises:
        ModelError: when there are not as many as tasks, two are the same, or the file says otherwise.
    """
    layer = next(part for part in module.modules() if hasattr(part, "poly_router"))
    count, file = layer.n_tasks[layer.active_adapters[0]], source.folder / "workbench.json"
    kept = json.loads(file.read_text()).get("tasks", []) if source.folder.parts and file.is_file() else []
    named = [name.strip() for name in given.split(",") if name.strip()]
    if kept and named and kept != named:
        raise ModelError(f"The tasks of '{source.reference}' are {', '.join(kept)}, by its own file; leave out tasks=.")
    names = kept or named or [str(index) for index in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise ModelError(f"'{source.reference}' routes {count} tasks, but these are named: {', '.join(names)}.")
    return tuple(names)
