"""Routed adapters on a tiny random Llama whose routing is set by hand, and the same model added up skill by skill."""

from collections.abc import Callable

import torch
from peft import LoraConfig, PolyConfig, XLoraConfig, get_peft_model
from peft.tuners.lora import ArrowConfig, create_arrow_model

TARGETS = ("q_proj", "v_proj")
TASKS = ("ioi", "colored_objects", "subject_verb")
SKILLS, RANK, K = 4, 2, 2
OFF = -200.0  # a logit whose sigmoid is 0 in single precision
# Logits by task; their weights are (1/2, 1/2, 0, 0), (0, 0, 1, 0), (1/2, 0, 0, 1/2).
LOGITS = torch.tensor([[0.0, 0.0, OFF, OFF], [OFF, OFF, 0.0, OFF], [0.0, OFF, OFF, 0.0]])
MIX = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 1.0, 0], [0.5, 0, 0, 0.5]])
KINDS = ("poly", "mhr", "xlora", "xlora_top", "arrow")


def make(kind: str, fresh: Callable, folder, words) -> torch.nn.Module:
    """A PEFT model of a kind; folder: where its skills, and its base model, are saved on the way."""
    base = fresh("llama")
    base.config.use_cache = False
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    torch.manual_seed(7)
    if kind in ("poly", "mhr"):
        return poly(base, splits=2 if kind == "mhr" else 1)
    paths = [_lora(fresh, folder, index) for index in range(SKILLS)]
    if kind == "arrow":
        return create_arrow_model(base, paths, ArrowConfig(top_k=K, router_temperature=0.5, rng_seed=0)).eval()
    return xlora(base, paths, top=None if kind == "xlora" else K)


def poly(base: torch.nn.Module, splits: int = 1) -> torch.nn.Module:
    """Poly or its multi-head form: split q routes a task as the table says for the task q later."""
    options = {"n_tasks": len(TASKS), "n_skills": SKILLS, "n_splits": splits, "target_modules": list(TARGETS)}
    module = get_peft_model(base, PolyConfig(r=RANK, init_weights=False, **options)).eval()
    for name, value in module.named_parameters():
        if "module_logits" in name:
            value.data = torch.cat([LOGITS.roll(-split, 0) for split in range(splits)], 1)
    return module


def xlora(base: torch.nn.Module, paths: list[str], top: int | None, **options) -> torch.nn.Module:
    """X-LoRA whose classifier tells tokens, and layers, apart; the last skill is never used."""
    config = XLoraConfig(
        hidden_size=32,
        adapters={str(index): path for index, path in enumerate(paths)},
        top_k_lora=top,
        layerwise_scalings=True,
        softmax_temperature=0.8,
        **options,
    )
    module = get_peft_model(base, config).eval()
    last = module.base_model.internal_xlora_classifier.layers[-1]
    torch.nn.init.normal_(last.weight, std=0.3)
    last.bias.data = torch.tensor([0.0, 0.3, -0.3, OFF]).repeat(2 * len(TARGETS))
    return module


def _lora(fresh: Callable, folder, index: int) -> str:
    """A skill of rank 1, so that its first right singular vector is its A; they point 1, 2, ... apart."""
    base = fresh("llama")
    torch.manual_seed(20 + index)
    config = LoraConfig(r=1, lora_alpha=2 + index, target_modules=list(TARGETS), init_lora_weights=False)
    module = get_peft_model(base, config)
    path = folder / f"skill_{index}"
    module.save_pretrained(path)
    return str(path)


def linears(module: torch.nn.Module) -> dict[tuple[int, str], torch.nn.Module]:
    """Every routed linear map, by layer and name."""
    bare = module.get_base_model() if hasattr(module, "get_base_model") else module
    blocks = bare.model.layers
    return {(layer, name): getattr(block.self_attn, name) for layer, block in enumerate(blocks) for name in TARGETS}


def mixed(linear: torch.nn.Module, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What skills add for x [row, pos, d], weights [row, pos, split, skill]: loops over splits and skills."""
    if not hasattr(linear, "poly_router"):
        total = 0
        for skill in range(SKILLS):
            name = f"task_{skill}" if f"task_{skill}" in linear.lora_A else str(skill)
            out = x @ linear.lora_A[name].weight.T @ linear.lora_B[name].weight.T
            total = total + weights[..., 0, skill, None] * linear.scaling[name] * out
        return total
    a, b = linear.poly_lora_A["default"], linear.poly_lora_B["default"]
    inner, width = 0, a.shape[2]
    for split in range(len(a)):
        part = x[..., split * width : (split + 1) * width]
        inner = inner + sum(weights[..., split, skill, None] * (part @ a[split, skill]) for skill in range(SKILLS))
    outs = [
        sum(weights[..., split, skill, None] * (inner @ b[split, skill]) for skill in range(SKILLS))
        for split in range(len(a))
    ]
    return torch.cat(outs, -1) / RANK


def weights_by_hand(kind: str, module: torch.nn.Module, base: torch.nn.Module, ids: torch.Tensor, task: int):
    """A function of (layer, name) and x that gives weights [row, pos, split, skill]."""
    if kind in ("poly", "mhr"):
        splits = 2 if kind == "mhr" else 1
        mine = torch.stack([MIX[(task + split) % len(TASKS)] for split in range(splits)])
        return lambda at, x: mine.expand(*x.shape[:2], splits, SKILLS)
    if kind == "arrow":
        return lambda at, x: _arrow_weights(linears(module)[at], x)
    last = module.base_model.internal_xlora_classifier.layers[-1]
    hidden = base.model(ids).last_hidden_state
    likely = ((hidden @ last.weight.T + last.bias) / 0.8).view(*ids.shape, -1, SKILLS).softmax(-1)
    if kind == "xlora_top":
        kept = likely >= likely.topk(K).values[..., -1:]
        likely = likely * kept
    order = list(linears(module))
    return lambda at, x: likely[:, :, order.index(at), None]


def _arrow_weights(linear: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    directions = torch.stack([linear.lora_A[f"task_{skill}"].weight[0] for skill in range(SKILLS)])
    size = (x @ (directions / directions.norm(dim=-1, keepdim=True)).T).abs() / 0.5
    kept = size >= size.topk(K).values[..., -1:]
    return size.masked_fill(~kept, -torch.inf).softmax(-1)[:, :, None]


def by_hand(
    kind: str, module: torch.nn.Module, base: torch.nn.Module, ids: torch.Tensor, task: int = 0, change=None
) -> tuple[torch.Tensor, dict[tuple[int, str], torch.Tensor]]:
    """Logits of the plain base model with skills added to its linear maps, and every map's weights.

    change: {(layer, name): function of weights [row, pos, split, skill]}.
    """
    seen, handles = {}, []
    with torch.no_grad():
        weigh, skills = weights_by_hand(kind, module, base, ids, task), linears(module)
        for at, linear in linears(base).items():

            def add(plain, args, out, at=at):
                seen[at] = (change or {}).get(at, lambda weights: weights)(weigh(at, args[0]))
                return out + mixed(skills[at], args[0], seen[at])

            handles.append(linear.register_forward_hook(add))
        try:
            return base(input_ids=ids).logits, seen
        finally:
            for handle in handles:
                handle.remove()
