"""Loading a model so that its every head can be read and changed: references, live modules, adapters."""

import contextlib
import copy
import dataclasses
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from workbench.models.adapter_files import base_reference, hash_of, read_adapter, task_names
from workbench.models.adapter_routers import merged
from workbench.models.adapter_sites import family_of
from workbench.models.card import Check
from workbench.models.checks import SAME, inspect
from workbench.models.model import Model
from workbench.models.reference import ModelError, Source, find
from workbench.models.trunk import share_weights
from workbench.registry import WorkbenchError

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
ABOUT = "workbench.json"  # beside the checkpoints of the workbench's own fine-tunes
ROUTE = "route"  # the check of the card
NO_MERGE = "routes every token by itself, so no one matrix holds it; load it without merge to trace its routing"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_device(device: str | None = None) -> str:
    """The device asked for, or the first there is of cuda, mps and cpu."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(
            f"The device '{device}' is not available on this machine; use 'cpu' or leave it out."
        ) from None
    return device


def load(
    reference: str | os.PathLike,
    *,
    device: str | None = None,
    dtype: str = "float32",
    fold: bool = False,
    bos: bool | None = None,
    merge: bool = False,
    override: bool = False,
    trust_remote_code: bool = False,
    route: str = "",
    tasks: str = "",
) -> Model:
    """A model ready to trace.

    Args:
        reference: `zoo/<name>` or `run/<name>` (with `@step` for a checkpoint), a local directory, or a hub id.
        device: `cuda`, `mps` or `cpu`; the first available if left out.
        dtype: `float32`, `bfloat16`, `float16`, or `float64` for checks.
        fold: fold layer norms and value biases and centre the writing weights, as direct logit attribution wants.
            Raw weights (the default) are what norms and sink figures want.
        bos: put BOS in front of prompts; as the tokenizer does if left out.
        merge: merge an adapter into a copy of the weights, where the bridge cannot carry it live; the adapters of one's
            own fine-tunes always are.
        override: trace even if the trust card is red.
        trust_remote_code: let the model's own code run.
        route: of a Poly adapter, the task whose mix of skills is merged into a copy of the weights, so that every
            analysis sees the model as that task uses it; without it only its routing can be traced.
        tasks: of a Poly adapter, the names of its tasks in the order of their ids, as `ioi,colored_objects`, where no
            `workbench.json` beside its configuration lists them; numbers, if left out there too.

    Raises:
        ModelError: naming what is wrong with the reference, the files or the device.
    """
    source = find(reference)
    with _quiet():
        module, tokenizer = _read(source, DTYPES[_known_dtype(dtype)], trust_remote_code)
    ours = (source.folder / ABOUT).is_file()
    merge = merge or (ours and hasattr(module, "merge_and_unload") and not family_of(module))
    options = {"device": device, "dtype": dtype, "fold": fold, "bos": bos, "merge": merge, "override": override}
    spec = {"reference": source.reference, **options, "trust_remote_code": trust_remote_code}
    return _boot(module, tokenizer, source, spec | {"route": route or source.route, "tasks": tasks}, hash_of(source))


def wrap(
    module: torch.nn.Module,
    tokenizer: Any,
    *,
    name: str = "live",
    fold: bool = False,
    bos: bool | None = None,
    merge: bool = False,
    override: bool = False,
    route: str = "",
    tasks: str = "",
) -> Model:
    """A live transformers or PEFT model ready to trace; the module itself is copied, never changed.

    The arguments are those of `load`. The result cannot be sent to the engine, which loads by reference.
    """
    copied = copy.deepcopy(module)
    bare = _bare(copied)
    bare.config.architectures = bare.config.architectures or [type(bare).__name__]  # by which the bridge knows it
    device, dtype = str(next(module.parameters()).device), str(next(module.parameters()).dtype).removeprefix("torch.")
    options = {"device": device, "dtype": dtype, "fold": fold, "bos": bos, "merge": merge, "override": override}
    spec = {"reference": "", **options, "route": route, "tasks": tasks}
    return _boot(copied, tokenizer, Source(name, Path(), -1), spec, _weights_hash(module))


def _known_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise ModelError(f"There is no dtype '{dtype}'; use one of {', '.join(DTYPES)}.")
    return dtype


def _read(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """Module and tokenizer from a checked directory; an adapter's base model is found by its own reference."""
    safe: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": trust_remote_code, "local_files_only": True}
    safe["dtype"] = dtype
    if dtype == torch.float64:  # torch groups the products of experts in single precision and below only
        safe["experts_implementation"] = "eager"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        if (source.folder / "adapter_config.json").is_file():
            base, _ = _read(find(base_reference(source.folder)), dtype, trust_remote_code)
            module = read_adapter(source.folder, _merged(base))
            if dtype == torch.float64:  # peft reads what is adapted in single precision
                for parameter in module.parameters():
                    parameter.data = parameter.data.double()
            return module, tokenizer
        return _read_whole(source.folder, safe), tokenizer
    except WorkbenchError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions for a damaged file
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"'{source.reference}' could not be read by transformers ({type(error).__name__}: {reason}); "
            "save the model and its tokenizer there again with save_pretrained, or load another one."
        ) from error


def read_module(reference: str, dtype: str = "float32") -> tuple[Any, Any, bool]:
    """What a fine-tune starts from: the transformers module, an adapter merged into it; its tokenizer; BOS or not.

    Raises:
        ModelError: when it cannot be read, or its adapter cannot be merged.
    """
    with _quiet():
        module, tokenizer = _read(find(reference), DTYPES[_known_dtype(dtype)], False)
        module = _merged(module)
    module.name_or_path = reference  # which an adapter is saved with
    return module, tokenizer, _bos(tokenizer, None)


def _merged(module: Any) -> Any:
    """The module with its adapter, if it has one, in its weights.

    Raises:
        ModelError: for an adapter that no one matrix holds.
    """
    if not hasattr(module, "merge_and_unload"):
        return module
    if family := family_of(module):
        raise ModelError(f"An adapter of the kind {family} cannot be tuned further or be the base of another.")
    return module.merge_and_unload()


def _read_whole(folder: Path, safe: dict[str, Any]) -> torch.nn.Module:
    """The module in a directory; transformers would fill a weight that the files lack with random numbers."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **safe)
    module, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights in '{folder}' lack {len(missing)} that its config.json asks for ({missing[0]}); "
            "save the whole causal language model there with save_pretrained."
        )
    return module


def _task_of(family: str, tasks: tuple[str, ...], source: Source, spec: dict[str, Any]) -> int:
    """The id of the task whose route is taken; the first, where none is asked for.

    Raises:
        ModelError: for a task that is not there, or options that this kind of adapter cannot follow.
    """
    if family != "Poly" and (spec["route"] or spec["tasks"]):
        raise ModelError(f"'{source.reference}' does not route by task; leave out route= and tasks=.")
    if family and spec["merge"]:
        why = "routes by task; load it with route= and a task's name" if family == "Poly" else NO_MERGE
        raise ModelError(f"'{source.reference}' cannot be merged: {family} {why}.")
    if spec["route"] and spec["route"] not in tasks:
        known = ", ".join(tasks)
        raise ModelError(f"'{source.reference}' has no route of a task '{spec['route']}'; it has: {known}.")
    return tasks.index(spec["route"]) if spec["route"] else 0


def _boot(module: Any, tokenizer: Any, source: Source, spec: dict[str, Any], weights_hash: str | None = None) -> Model:
    """Bridge a module this function may change, and inspect the result."""
    if getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            f"'{source.reference}' was tuned by trained vectors in front of its prompts, which no token stands for, so"
            " it cannot be traced; tune it with another method, such as lora."
        )
    device = choose_device(spec["device"])
    training = module.training
    module = module.eval().to(device)
    probe = probe_tokens(tokenizer, module.config)
    experts = max(getattr(module.config, name, 0) or 0 for name in EXPERT_COUNTS)
    family = family_of(module)
    tasks = task_names(module, source, spec["tasks"]) if family == "Poly" else ()
    task = _task_of(family, tasks, source, spec)
    original, adapter_effect = _original_logits(module, probe.to(device), task if tasks else None)
    if spec["merge"] and hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        live = _bare(module)
        bare = merged(live, task) if tasks else live
        plain = None if spec["fold"] else share_weights(live if tasks and not spec["route"] else bare)
        saved = _saved_tokenizer(tokenizer, folder)
        try:
            bridge = TransformerBridge.boot_transformers(
                str(source.folder), hf_model=bare, tokenizer=saved, device=device, dtype=DTYPES[spec["dtype"]]
            )
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise ModelError(f"transformer_lens cannot bridge '{source.reference}': {error}") from error
        if spec["fold"]:
            bridge.enable_compatibility_mode(disable_warnings=True)
    bridge.eval().requires_grad_(False)
    bos = _bos(tokenizer, spec["bos"])
    card = inspect(
        bridge,
        tokenizer,
        probe=probe,
        original=original,
        adapter_effect=adapter_effect,
        was_training=training and not source.folder.parts,
        folded=spec["fold"],
        bos=bos,
        experts=experts,
        router="" if tasks else family,
        more=_route_check(tasks, spec["route"]),
    )
    reason = next((check.fix for check in card.checks if check.name in (SAME, ROUTE) and check.colour == "amber"), "")
    attrs = {"dtype": spec["dtype"], "device": device, "folding": "folded" if spec["fold"] else "raw", "bos": int(bos)}
    attrs |= {"route": spec["route"]} if spec["route"] else {}
    model_hash = weights_hash or source.hash
    model = Model(bridge, tokenizer, source.reference, model_hash, card, spec, source.checkpoint, bos, attrs, plain)
    return dataclasses.replace(model, tasks=tasks, unbridged=reason)


def _route_check(tasks: tuple[str, ...], route: str) -> list[Check]:
    if not tasks:
        return []
    if route:
        return [Check(ROUTE, "green", f"the weights hold the mix of skills of the task '{route}'")]
    fix = f"load it with route= and one of {', '.join(tasks)} to trace the model as that task uses it"
    return [Check(ROUTE, "amber", f"skills are mixed by task; this card is of '{tasks[0]}'", fix)]


def _bare(module: Any) -> Any:
    """The transformers module inside an adapter's wrapper, adapter layers included."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def probe_tokens(tokenizer: Any, config: Any) -> torch.Tensor:
    """Random token ids, the same at every load, int64 [2, 12]: what the trust card compares logits on."""
    size = min(len(tokenizer), getattr(config, "vocab_size", len(tokenizer)))
    return torch.randint(0, size, (2, 12), generator=torch.Generator().manual_seed(0))


def _original_logits(module: Any, probe: torch.Tensor, task: int | None) -> tuple[torch.Tensor, float | None]:
    """Logits of the module before it is bridged, and how far its adapter moves them (None without one)."""
    asked: dict[str, Any] = {"input_ids": probe, "use_cache": False}
    if family_of(module) == "X-LoRA":
        module = share_weights(module)  # its first pass leaves transformers' hooks behind
    run = module
    if task is not None:
        asked["task_ids"] = torch.full((len(probe),), task, device=probe.device)
        run = module.base_model  # a PeftModel without a kind of task keeps the id to itself
    with torch.inference_mode():
        logits = run(**asked).logits.float()
        if not hasattr(module, "disable_adapter"):
            return logits, None
        with module.disable_adapter():
            off = run(**asked).logits.float()
    return logits, (logits - off).abs().max().item()


def _saved_tokenizer(tokenizer: Any, folder: str) -> Any:
    """A copy the bridge may change (it adds BOS and padding), read from disk if the original was never saved."""
    if tokenizer.init_kwargs.get("name_or_path"):
        return copy.deepcopy(tokenizer)
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _bos(tokenizer: Any, wanted: bool | None) -> bool:
    if wanted and tokenizer.bos_token_id is None:
        raise ModelError("This tokenizer has no BOS token; load the model with bos=False.")
    if wanted is not None:
        return wanted
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _weights_hash(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading bars and the dozens of notes that transformers and transformer_lens write."""
    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disabled, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.manager.disable = disabled
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
