"""Writes a zoo model's card from what was measured: `python -m workbench.zoo.card NAME FOLDER...`, one folder a seed.

The first folder is the shipped model. Every number in the card comes from the folders' training records and from
tracing the models here; the choice of seed is the only thing typed by hand (`--why`).
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import xarray as xr
from safetensors.numpy import load_file

from workbench.analyses import expert_ablation, head_patching, overlap, routing, sink_scores, task_routing
from workbench.models.expert_names import expert_name
from workbench.models.heads import head_name
from workbench.models.load import Model, load
from workbench.models.reference import checkpoints
from workbench.tasks import make_task
from workbench.tasks.backcopy import TRIGGERS
from workbench.zoo.card_texts import (
    CARD,
    EXPERTS,
    EXPERTS_HEAD,
    LETTERS,
    MIXED,
    OVERLAP_HEAD,
    RESTING,
    RESTING_HEAD,
    ROUTING,
    ROUTING_HEAD,
    SHARED,
    SINK_HEAD,
    SINKS,
    SKILLS_CARD,
)
from workbench.zoo.evaluate import exams_of
from workbench.zoo.language import BOS, MIXTURE, packed, vocabulary
from workbench.zoo.train import HERE, RECIPES

PAIRS = {
    "answer swapped (value_swap / value_swap)": ("value_swap", "value_swap"),
    "question changed (s2_to_io / query)": ("s2_to_io", "query"),
}
TOP = 0.125
PROMPTS = 128
ROUTED_TASKS = ("ioi", "colored_objects", "induction", "greater_than", "subject_verb")
ROWS = 64


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


def resting_rows(seed: int, model: Model) -> list[list]:
    """The lines of the table of resting heads."""
    words = vocabulary()
    ids, _ = packed(random.Random(seed), words, batch=ROWS, length=64, answer_weight=1, backcopy_share=1)
    trigger = np.isin(ids, [words[letter] for letter in TRIGGERS])
    tokens, heads, weights = model.tensor(ids), [], {}
    for hide in (False, True):
        closed = {layer: tokens == words[BOS] for layer in range(model.n_layers)} if hide else {}
        last = model.scanner.run(tokens, heads=None if hide else heads.append, watched=[0], hide=closed)
        losses = model.scanner.losses(last, tokens).cpu().numpy()
        weights[hide] = [losses[:, 3:][mask[:, 3:-1]].mean() for mask in (trigger, ~trigger)]
    onto = np.stack([part.columns[..., 0].cpu().numpy() for part in heads], 1)[..., 3:]  # [row, layer, head, query]
    at, other = (np.moveaxis(onto, -1, 1)[mask[:, 3:]].mean(0) for mask in (trigger, ~trigger))
    norms = np.stack([(v := part.values.norm(dim=-1).cpu().numpy())[..., 0] / np.median(v, -1) for part in heads], 1)
    best = np.argsort((at - other).ravel())[:3]
    rows = []
    for cell in (tuple(int(i) for i in np.unravel_index(flat, at.shape)) for flat in best):
        loss = [f"{before:.2f}, {after:.2f}" for before, after in zip(weights[False], weights[True], strict=True)]
        shown = (f"{value[cell]:.2f}" for value in (other, at, norms.mean(0)))
        rows.append([seed, head_name(*cell), *shown, *loss])
    return rows


def routing_rows(seed: int, model: Model) -> list[list]:
    """The lines of the table of what routers know of the task, one a layer."""
    results = [routing(model, make_task(name)) for name in ROUTED_TASKS]
    ds = task_routing(*results)
    rows = []
    for layer in ds["layer"].values:
        found = [seed, int(layer)]
        for kind in ("task, first choice", "task given the token"):
            at = ds.sel(layer=layer, measured=kind)
            ends = ("", "_null_high", "_random_high")
            found += [f"{float(at[f'specialisation{end}']):.3f}" for end in ends]
        load = np.mean([float(result["max_load"].sel(layer=layer)) for result in results])
        rows.append([*found, f"{load:.2f}"])
    return rows


def routing_said(rows: list[list]) -> str:
    """In one sentence, in which layers the information lies above both of its nulls."""
    parts = []
    for seed in dict.fromkeys(row[0] for row in rows):
        above = [str(row[1]) for row in rows if row[0] == seed and float(row[2]) > max(map(float, row[3:5]))]
        where = f"in layer{'s' * (len(above) > 1)} {', '.join(above)}" if above else "nowhere"
        parts.append(f"{where} of seed {seed}")
    return f"By the first choice it lies above both {'; '.join(parts)}."


def expert_rows(seed: int, model: Model) -> list[list]:
    """The lines of the table of closed experts, one a task."""
    rows = []
    for name in ROUTED_TASKS:
        ds = expert_ablation(model, make_task(name))
        at = ds.isel(ds["lost"].argmax(["layer", "expert"]))
        ends = f"{float(at['lost_low']):.2f} to {float(at['lost_high']):.2f}"
        closed = expert_name(int(at["layer"]), int(at["expert"]))
        rows.append([seed, name, closed, f"{float(at['lost']):.2f}", ends, f"{float(at['lost_null_high']):.2f}"])
    return rows


def routed(models: dict[int, Model]) -> list[str]:
    """The parts of the card that look at routers."""
    rows = [row for seed, model in models.items() for row in routing_rows(seed, model)]
    closed = [row for seed, model in models.items() for row in expert_rows(seed, model)]
    shown = {"tasks": ", ".join(ROUTED_TASKS), "sequences": 32, "table": table(ROUTING_HEAD, rows)}
    return [ROUTING.format(**shown, said=routing_said(rows)), EXPERTS.format(table=table(EXPERTS_HEAD, closed))]


def sections(models: dict[int, Model], share: float, experts: int) -> str:
    """The parts of the card that trace the models, by what they were trained on."""
    tasks = (*(("ioi", "colored_objects") if share < 1 else ()), *(("backcopy",) if share else ()))
    sinks = [sink_row(seed, model, task) for seed, model in models.items() for task in tasks]
    found = []
    if share < 1:
        shared = [
            overlap_row(seed, label, shared_heads(model, corruptions))
            for seed, model in models.items()
            for label, corruptions in PAIRS.items()
        ]
        found.append(SHARED.format(prompts=PROMPTS, top=f"{TOP:.1%}", table=table(OVERLAP_HEAD, shared)))
    found.append(SINKS.format(sequences=32, table=table(SINK_HEAD, sinks)))
    if share:
        resting = [row for seed, model in models.items() for row in resting_rows(seed, model)]
        found.append(RESTING.format(sequences=ROWS, table=table(RESTING_HEAD, resting)))
    if experts:
        found += routed(models)
    return "\n\n".join(found)


def data(share: float, length: int) -> str:
    """What the model was trained on."""
    if share == 1:
        return LETTERS.format(length=length, triggers=", ".join(TRIGGERS))
    letters = f"; {share:.0%} of the rows are one Bigram-Backcopy sequence instead" if share else ""
    mixture = ", ".join(f"{kind} {part:.0%}" for kind, part in MIXTURE.items())
    return MIXED.format(length=length, mixture=mixture, letters=letters)


def card(name: str, folders: list[Path], why: str) -> str:
    """The card's Markdown."""
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    models = {record["recipe"]["seed"]: load(folder) for record, folder in zip(records, folders, strict=True)}
    share = RECIPES[name].backcopy_share
    exams = list(exams_of(share))
    recipe = {k: v for k, v in records[0]["recipe"].items() if k not in ("seed", "checkpoints")}
    accuracy = [
        [seed, *scores(r["log"][-1], exams), round(r["minutes"], 1)] for seed, r in zip(models, records, strict=True)
    ]
    layers, heads = recipe["layers"], recipe["heads"]
    return CARD.format(
        name=name,
        kind="Mixtral" if RECIPES[name].experts else "GPT-2",
        why=why,
        seed=next(iter(models)),
        size=f"{layers} layer{'s' * (layers > 1)} x {heads} head{'s' * (heads > 1)}",
        width=recipe["width"],
        words=len(vocabulary()),
        data=data(share, recipe["length"]),
        recipe=", ".join(f"{k.replace('_', ' ')} {v}" for k, v in recipe.items()),
        accuracy=table(["seed", *exams, "minutes"], accuracy),
        greater="; greater_than: probability of the later years minus that of the others (0 is chance)" * (share < 1),
        sections=sections(models, share, RECIPES[name].experts),
        history=table(["step", *exams], [[row["step"], *scores(row, exams)] for row in records[0]["log"]]),
        checkpoints=", ".join(f"`zoo/{name}@{step}`" for step in checkpoints(f"zoo/{name}")),
    )


def skills_card(folder: Path) -> str:
    """The card of the adapter-routed model, from its record and its own weights."""
    record = json.loads((folder / "training.json").read_text())
    spec, weights = record["spec"], load_file(folder / "adapter_model.safetensors")
    titles = json.loads((folder / "workbench.json").read_text())["tasks"]
    options, mixes = spec["options"], []
    for name, logits in weights.items():
        if name.endswith("module_logits"):
            mixes.append(_shares(1 / (1 + np.exp(-logits.reshape(len(titles), options["skills"])))))
    history = [
        [entry["step"], *(f"{task['right'] / task['n']:.3f}" for task in entry["tasks"])] for entry in record["log"]
    ]
    apart = 0.5 * abs(np.stack(mixes)[:, :, None] - np.stack(mixes)[:, None]).sum(-1)  # [module, task, task]
    between = [[title, *(f"{value:.2f}" for value in row)] for title, row in zip(titles, apart.mean(0), strict=True)]
    return SKILLS_CARD.format(
        base=spec["model"],
        tasks=", ".join(titles),
        recipe=", ".join(f"{k.replace('_', ' ')} {spec[k]}" for k in ("steps", "batch", "learning_rate", "seed")),
        options=", ".join(f"{k.replace('_', ' ')} {v}" for k, v in options.items()),
        minutes=record["minutes"],
        held=spec["held"],
        history=table(["step", *titles], history),
        modules=len(mixes),
        apart=table(["", *titles], between),
        checkpoints=", ".join(f"`zoo/skills@{step}`" for step in checkpoints("zoo/skills")),
    )


def _shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum(-1, keepdims=True)


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
    parser.add_argument("name", choices=[*RECIPES, "skills"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--why", default="", help="one sentence: how the shipped seed was chosen")
    options = parser.parse_args()
    tuned = options.name == "skills"
    text = skills_card(options.folders[0]) if tuned else card(options.name, options.folders, options.why)
    (HERE / options.name / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
