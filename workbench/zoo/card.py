"""Writes a zoo model's card from what was measured: `python -m workbench.zoo.card NAME FOLDER...`, one folder a seed.

The first folder is the shipped model. Every number in the card comes from the folders' training records and from
tracing the models here; the choice of seed is the only thing typed by hand (`--why`).
"""

import argparse
import json
from pathlib import Path

import xarray as xr

from workbench.analyses import head_patching, overlap, sink_scores
from workbench.models.heads import head_name
from workbench.models.load import Model, load
from workbench.tasks import make_task
from workbench.zoo.language import MIXTURE, vocabulary
from workbench.zoo.train import HERE, RECIPES

PAIRS = {
    "answer swapped (value_swap / value_swap)": ("value_swap", "value_swap"),
    "question changed (s2_to_io / query)": ("s2_to_io", "query"),
}
TOP = 0.125
PROMPTS = 128
OVERLAP_HEAD = [
    *("seed", "corruption (IOI / Colored Objects)", "IoU", "95 % point, all heads", "95 % point, within layers"),
    *("weighted overlap of all heads, 95 % point within layers", "shared heads"),
]
CARD = """---
license: mit
language: en
library_name: transformers
---
# zoo/{name}

A GPT-2 of {layers} layers x {heads} heads, width {width}, trained from nothing on a synthetic word-level language of
{words} words. transformers loads it by itself; the weights are safetensors in float32, the training checkpoints in
float16.

**Shipped: seed {seed}.** {why}

## Data

Packed documents of {length} tokens, BOS first, examples drawn from: {mixture}. Never in the training text: twelve names as names of an IOI
sentence, a fifth of all name pairs, of (colour, object) pairs and of the other tasks' combinations, one IOI template and
one Colored Objects template.

## Recipe

`make zoo`, or `python -m workbench.zoo.train {name} --seed S`: Muon on the matrices of the blocks, AdamW on the rest,
{recipe}.

## Accuracy on held-out material, every seed

500 fresh prompts each, likeliest word of the whole vocabulary; greater_than: probability of the later years minus that
of the others (0 is chance).

{accuracy}

## Do IOI and Colored Objects share heads? Every seed

Denoising patching of each head's z at all positions, {prompts} prompts a task; top {top} of heads by |effect|. In brackets
p, from 2,000 permutations.

{shared}

## Attention sinks at BOS, every seed

{sinks}

## Training of the shipped seed

100 fresh prompts each, 500 for the last line.

{history}

Checkpoints: {checkpoints}.
"""


def shared_heads(model: Model, corruptions: tuple[str, str]) -> xr.Dataset:
    """Overlap of the IOI and Colored Objects circuits of a model under two corruptions."""
    names = ("ioi", "colored_objects")
    tasks = [make_task(name, n=PROMPTS, corruption=c) for name, c in zip(names, corruptions, strict=True)]
    return overlap(*(head_patching(model, task) for task in tasks), top=TOP)


def overlap_row(seed: int, label: str, ds: xr.Dataset) -> list:
    """One line of the overlap table."""
    at, whole = ds.sel(size=ds.attrs["chosen"]), ds.isel(size=-1)
    layers, heads = (ds[dim].values for dim in ("layer", "head"))
    names = [head_name(int(layers[i]), int(heads[j])) for i, j in zip(*ds["shared"].values.nonzero(), strict=True)]
    points = [f"{float(at[f'iou_{null}_high']):.2f} ({float(at[f'iou_{null}_p']):.4f})" for null in ("null", "within")]
    point, p = float(whole["weighted_within_high"]), float(whole["weighted_within_p"])
    weighted = f"{float(whole['weighted']):.2f}, {point:.2f} ({p:.4f})"
    return [seed, label, f"{float(at['iou']):.2f}", *points, weighted, " ".join(names) or "none"]


def sink_row(seed: int, model: Model, task: str) -> list:
    """One line of the sink table: how much BOS gets at most, and from how many heads more than 0.3."""
    alpha = sink_scores(model, make_task(task))["alpha"].sel(key_pos=0)
    best = alpha.argmax(["layer", "head"])
    name = head_name(int(best["layer"]), int(best["head"]))
    return [seed, task, f"{float(alpha.max()):.2f} ({name})", f"{int((alpha > 0.3).sum())} of {alpha.size}"]


def card(name: str, folders: list[Path], why: str) -> str:
    """The card's Markdown."""
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    models = [load(folder) for folder in folders]
    seeds = [record["recipe"]["seed"] for record in records]
    backcopy = RECIPES[name].backcopy_share
    exams = [exam for exam in list(records[0]["log"][-1])[2:] if backcopy or exam != "backcopy"]
    recipe = {k: v for k, v in records[0]["recipe"].items() if k not in ("seed", "checkpoints")}
    tasks = ("ioi", "colored_objects", *(("backcopy",) if backcopy else ()))
    accuracy = [
        [seed, *scores(r["log"][-1], exams), round(r["minutes"])] for seed, r in zip(seeds, records, strict=True)
    ]
    shared = [
        overlap_row(seed, label, shared_heads(model, corruptions))
        for seed, model in zip(seeds, models, strict=True)
        for label, corruptions in PAIRS.items()
    ]
    sinks = [sink_row(seed, model, task) for seed, model in zip(seeds, models, strict=True) for task in tasks]
    mixture = ", ".join(f"{kind} {share:.0%}" for kind, share in MIXTURE.items())
    return CARD.format(
        name=name,
        why=why,
        seed=seeds[0],
        layers=recipe["layers"],
        heads=recipe["heads"],
        width=recipe["width"],
        length=recipe["length"],
        words=len(vocabulary()),
        mixture=mixture
        + (f"; {backcopy:.0%} of the rows are one Bigram-Backcopy sequence instead" if backcopy else ""),
        recipe=", ".join(f"{k.replace('_', ' ')} {v}" for k, v in recipe.items()),
        prompts=PROMPTS,
        top=f"{TOP:.1%}",
        accuracy=table(["seed", *exams, "minutes"], accuracy),
        shared=table(OVERLAP_HEAD, shared),
        sinks=table(["seed", "task", "largest alpha of a head", "heads over 0.3"], sinks),
        history=table(["step", *exams], [[row["step"], *scores(row, exams)] for row in records[0]["log"]]),
        checkpoints=", ".join(f"`zoo/{name}@{step}`" for step in records[0]["recipe"]["checkpoints"]),
    )


def scores(row: dict, exams: list[str]) -> list[str]:
    """One line of a training log as table cells."""
    return [f"{row[exam]:.3f}" for exam in exams]


def table(head: list, rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    """Command line: the model's name, one folder a seed (the shipped one first), and why it was chosen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--why", required=True, help="one sentence: how the shipped seed was chosen")
    options = parser.parse_args()
    text = card(options.name, options.folders, options.why)
    (HERE / options.name / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
