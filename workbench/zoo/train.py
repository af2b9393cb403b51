"""Trains the shipped models again from nothing: `python -m workbench.zoo.train tasks` (or `make zoo`).

Decoders of one to four layers read packed documents of the synthetic language. Hidden matrices are updated by Muon,
embeddings, norms and biases by AdamW; the learning rate warms up and then falls along a cosine to a tenth.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from workbench.zoo.evaluate import evaluate
from workbench.zoo.language import BOS, PAD, packed, tokenizer, vocabulary

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a zoo model; one thread and one seed give the same model again on one machine."""

    layers: int = 3
    heads: int = 8
    width: int = 128
    positions: int = 128
    steps: int = 6000
    batch: int = 16
    length: int = 64
    learning_rate: float = 4e-3
    warm_up: int = 200
    weight_decay: float = 0.1
    answer_weight: float = 12.0
    backcopy_share: float = 0.0
    experts: int = 0  # 0: a GPT-2; else a Mixtral with so many, two a token
    expert_width: int = 128
    balance: float = 0.1  # weight of the load-balancing loss, where there are experts
    seed: int = 0
    checkpoints: tuple[int, ...] = (0, 500, 1000, 1500, 2000, 3500)


RECIPES = {
    "tasks": Recipe(),
    "tasks-backcopy": Recipe(
        layers=4, steps=10000, backcopy_share=0.3, checkpoints=(0, 500, 1000, 2000, 3500, 5000, 7500)
    ),
    "backcopy": Recipe(
        layers=1, heads=1, width=64, steps=2000, backcopy_share=1.0, checkpoints=(0, 100, 200, 300, 500, 1000)
    ),
    "tasks-moe": Recipe(experts=8, expert_width=64, steps=9000, seed=1, checkpoints=(0, 500, 1000, 2000, 4000, 6500)),
}
# Three tasks, their opposites, and one more, learned by one adapter that gives each its own mix of a few skills.
SKILLS: dict[str, Any] = {
    "model": "zoo/tasks-moe",
    "tasks": [
        *({"name": name, "target": t} for name in ("ioi", "greater_than", "subject_verb") for t in ("answer", "wrong")),
        "colored_objects",
    ],
    "method": "poly",
    "options": {"r": 4, "skills": 4, "heads": 1, "router_rate": 10.0},
    "steps": 300,
    "batch": 56,
    "learning_rate": 3e-3,
    "checkpoint": 100,
    "held": 128,
}
TABLES = ("wte", "wpe", "embed_tokens", "lm_head")


def build(recipe: Recipe) -> Any:
    """An untrained model of the recipe's shape, from its seed."""
    torch.manual_seed(recipe.seed)
    words = vocabulary()
    special: dict[str, Any] = {"bos_token_id": words[BOS], "eos_token_id": words[BOS], "pad_token_id": words[PAD]}
    if recipe.experts:
        return _mixture(recipe, vocab_size=len(words), **special)
    config = GPT2Config(
        vocab_size=len(words),
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_positions=recipe.positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **special,
    )
    return GPT2LMHeadModel(config)


def _mixture(recipe: Recipe, **words: Any) -> MixtralForCausalLM:
    config = MixtralConfig(
        hidden_size=recipe.width,
        intermediate_size=recipe.expert_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        num_local_experts=recipe.experts,
        num_experts_per_tok=2,
        router_aux_loss_coef=recipe.balance,
        **words,
    )
    return MixtralForCausalLM(config)


def optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest (no decay on norms and biases)."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and not any(table in name for table in TABLES)]
    vectors = [p for _, p in named if p.ndim < 2]
    others = [p for name, p in named if p.ndim > 2 or any(table in name for table in TABLES)]
    rest = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    decay = recipe.weight_decay
    return [
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98)),
        torch.optim.Muon(hidden, lr=recipe.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    ]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up times a cosine from the full rate to a tenth of it."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm_up) * (0.1 + 0.9 * cosine)


def steps(model: Any, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Train, yielding (steps done, loss of the last one), first at 0 steps before anything is changed."""
    rng, words = random.Random(recipe.seed + 1), vocabulary()
    updates, shares = optimizers(model, recipe), {"backcopy_share": recipe.backcopy_share}
    yield 0, math.nan
    for step in range(recipe.steps):
        ids, weights = (
            torch.from_numpy(array).to(model.device)
            for array in packed(
                rng, words, batch=recipe.batch, length=recipe.length, answer_weight=recipe.answer_weight, **shares
            )
        )
        out = model(ids, output_router_logits=True) if recipe.experts else model(ids)
        losses = cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        if recipe.experts:
            loss = loss + recipe.balance * out.aux_loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for update in updates:
            for group in update.param_groups:
                group["lr"] = learning_rate(step, recipe)
            update.step()
        yield step + 1, loss.item()


def save(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write config, tokenizer and safetensors to `folder` in the given precision; the model itself is left alone."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(dtype)
    copy.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def train(recipe: Recipe, folder: Path, threads: int = 1) -> dict:
    """Train one model into `folder` with a progress bar; returns (and writes as training.json) its record."""
    torch.set_num_threads(threads)
    started, model, log = time.perf_counter(), build(recipe), []
    for done, loss in tqdm(steps(model, recipe), total=recipe.steps + 1, desc=folder.name, mininterval=2):
        if done in recipe.checkpoints:
            save(model, folder / "checkpoints" / f"step_{done:05d}", torch.float16)
        if done in recipe.checkpoints or done == recipe.steps:
            last = done == recipe.steps
            log.append({"step": done, "loss": loss, **evaluate(model, n=500 if last else 100)})
            tqdm.write(json.dumps(log[-1]))
    save(model, folder, torch.float32)
    minutes = round((time.perf_counter() - started) / 60, 2)
    record = {"recipe": asdict(recipe), "torch": torch.__version__, "minutes": minutes, "log": log}
    (folder / "training.json").write_text(json.dumps(record, indent=1))
    return record


def train_skills(folder: Path, seed: int = 0, threads: int = 1) -> dict:
    """Tune the skills of the adapter-routed model into `folder`; returns (and writes as training.json) their record."""
    from workbench.tuning import tune

    torch.set_num_threads(threads)
    run = tune({**SKILLS, "seed": seed, "device": "cpu"})
    for step in run.checkpoints:
        last = step == run.spec.steps
        target = folder if last else folder / "checkpoints" / f"step_{step:05d}"
        shutil.copytree(run.folder / "checkpoints" / f"step_{step:05d}", target, dirs_exist_ok=True)
    log = [record for record in run.records if record["kind"] == "evaluation"]
    minutes = round(float(run.curves().attrs["seconds"]) / 60, 2)
    record = {"spec": run.spec.plain, "torch": torch.__version__, "minutes": minutes, "log": log}
    (folder / "training.json").write_text(json.dumps(record, indent=1))
    return record


def main() -> None:
    """Command line: names of zoo models, optionally other seeds and another folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*RECIPES, "skills"]
    parser.add_argument("names", nargs="*", default=known, help=f"any of {', '.join(known)}")
    parser.add_argument("--seed", type=int, help="another seed than the shipped one")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: the shipped models)")
    options = parser.parse_args()
    for name in options.names:
        if name == "skills":
            train_skills(options.out / name, options.seed or 0)
            continue
        recipe = RECIPES[name]
        if options.seed is not None:
            recipe = Recipe(**{**asdict(recipe), "seed": options.seed})
        train(recipe, options.out / name)


if __name__ == "__main__":
    main()
