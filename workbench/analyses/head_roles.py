"""Head roles: what each head does, by the field's own tests for it, with the scores that say so."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.analyses._patching import Group, gap_between, groups, named, two_runs
from workbench.analyses._paths import Stage, fitting, patched_by, paths
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

PATTERN, VALUE = "blocks.{}.attn.hook_pattern", "blocks.{}.attn.hook_v"
STREAM = "blocks.{}.hook_resid_pre"
LENGTH, SEQUENCES = 24, 16  # of the repeated random tokens
BEST = 5  # an answer copied is among the first of all logits
ROLES = {
    "previous token": "attention to the token before, on random tokens",
    "duplicate token": "attention to the same token's earlier place, on random tokens repeated",
    "induction": "attention to the token after the same token's earlier place, on random tokens repeated",
    "mover": "attention from END to the answer, where the head's OV circuit puts the answer among the first 5 logits",
    "negative mover": "attention from END to the answer, where it puts the answer among the last 5 logits",
    "inhibition": "share of the task lost when only the path from the head to the movers' queries is corrupted",
    "content gatherer": "attention from END to the word asked for (the position 'query')",
}


@analysis(
    about="What each head does: previous-token, duplicate-token, induction, mover, inhibition and the like, scored.",
    sign="0 = not at all, 1 = fully; attention roles in probability, inhibition as a share of the task",
    primary="score",
    paper="2211.00593 (Wang et al.), copy scores and inhibition; 2209.11895 (Olsson et al.), induction; 2310.08744",
)
def head_roles(model: "Model", task: Task, *, threshold: float = 0.3, batch: int = 64) -> xr.Dataset:
    """The score of every head on every role that the task can show, and the role it is labelled with.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: gives the prompts for mover, inhibition and gatherer; the others are measured on random tokens. Mover
            roles need the answer to stand in the prompt, gatherers a position named `query`.
        threshold: a head is labelled with its highest-scoring role from there on.
        batch: prompts in one forward pass.

    Returns:
        `score` [component, layer, head], with what uniform attention (or chance) would give as `score_null`
        [component]; `role` [layer, head], the place in `component` of the label, -1 for none; the movers whose queries
        inhibition is measured at (attribute `movers`).

    Raises:
        AnalysisError: when the threshold is outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise AnalysisError(f"threshold is {threshold}; it must be above 0 and at most 1.")
    prompts = task.encode(model.tokenizer, bos=model.bos)
    found = _on_random(model, task.seed)
    if not found:
        raise Cancelled("Stopped before the first role was measured, so there is no result to keep.")
    found |= _on_task(model, task, prompts, batch)
    found |= _inhibition(model, task, prompts, found, threshold, batch)
    return _dataset({name: found[name] for name in ROLES if name in found}, threshold, len(prompts))


def _on_random(model: "Model", seed: int) -> dict[str, tuple[np.ndarray, float]]:
    """Roles seen on random tokens that are repeated once."""
    rng, front = np.random.default_rng(seed), int(model.bos)
    length = min(LENGTH, (model.context - front) // 2)
    special = set(model.tokenizer.all_special_ids)
    words = np.array([token for token in range(len(model.tokenizer)) if token not in special])
    once = rng.choice(words, (SEQUENCES, length))
    start = np.full((SEQUENCES, front), model.tokenizer.bos_token_id or 0)
    tokens = np.concatenate([start, once, once], axis=1)
    total = tokens.shape[1]
    again = np.arange(front + length, total)
    before = np.arange(1, total)
    targets = {
        "previous token": (before, before - 1),
        "duplicate token": (again, again - length),
        "induction": (again, again - length + 1),
    }
    names, patterns = [PATTERN.format(layer) for layer in range(model.n_layers)], []
    for name in track(names, "head_roles, random tokens", len(names)):
        patterns.append(_array(model.capture(tokens, [name])[1][name].mean(0)))  # [head, query, key]
    if len(patterns) < len(names):
        return {}
    return {
        name: (np.stack([p[:, query, key].mean(-1) for p in patterns]), float((1 / (query + 1)).mean()))
        for name, (query, key) in targets.items()
    }


def _on_task(model: "Model", task: Task, prompts: Prompts, batch: int) -> dict[str, tuple[np.ndarray, float]]:
    """Movers, negative movers and content gatherers, at the last position of the clean prompts."""
    sums, counts, uniform = {}, {}, {}
    places, marks = {"answer": _answers(prompts)}, named(prompts)
    if "query" in marks:
        places["content gatherer"] = marks["query"]
    parts = groups(prompts, task.metric, batch)
    for group in track(parts, f"head_roles {task.name}", len(parts)):
        attention = _last_row(model, group)
        for name, place in places.items():
            rows = np.flatnonzero(place[group.rows] >= 0)
            if not len(rows):
                continue
            looks = attention[rows, :, :, place[group.rows][rows]]  # [row, layer, head]
            scores = {name: looks}
            if name == "answer":
                best, worst = _copies(model, group, rows, place[group.rows][rows])
                scores = {"mover": looks * best, "negative mover": looks * worst}
            for role, values in scores.items():
                sums[role] = sums.get(role, 0) + values.sum(0)
                counts[role] = counts.get(role, 0) + len(rows)
                uniform[role] = uniform.get(role, 0) + len(rows) / group.clean.shape[1]
    chance = BEST / len(model.tokenizer)
    share = {"mover": chance, "negative mover": chance, "content gatherer": 1.0}
    return {role: (sums[role] / counts[role], share[role] * uniform[role] / counts[role]) for role in sums}


def _answers(prompts: Prompts) -> np.ndarray:
    """Where the answer last stands in each prompt, int64 [prompt]; -1 where it does not."""
    found = [
        np.flatnonzero(np.isin(ids[:-1], answer)) for ids, answer in zip(prompts.clean, prompts.answers, strict=True)
    ]
    return np.array([places[-1] if len(places) else -1 for places in found])


def _last_row(model: "Model", group: Group) -> np.ndarray:
    """Attention of the last token, [row, layer, head, key]."""
    names = [PATTERN.format(layer) for layer in range(model.n_layers)]
    kept = model.capture(group.clean, names)[1]
    return np.stack([_array(kept[name][:, :, -1]) for name in names], axis=1)


def _copies(model: "Model", group: Group, rows: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each head's OV circuit, fed the answer's place, puts the answer first, or last, [row, layer, head].

    The head's value at that place is written alone through W_O, the last norm and the unembedding.
    """
    names = [VALUE.format(layer) for layer in range(model.n_layers)]
    kept = model.capture(group.clean, names)[1]
    best, worst = np.zeros((2, len(rows), model.n_layers, model.n_heads), bool)
    answers = [group.meter.answers[row] for row in rows]
    for layer, name in enumerate(names):
        value = kept[name][rows, place]  # [row, key-value head, d_head]
        value = value.repeat_interleave(model.n_heads // value.shape[1], 1)
        for row, answer in enumerate(answers):
            logits = model.written_logits(layer, value[row : row + 1])[0]
            ranks = (logits > logits[:, answer].max(-1, keepdim=True).values).sum(-1).cpu().numpy()
            best[row, layer], worst[row, layer] = ranks < BEST, ranks >= logits.shape[-1] - BEST
    return best, worst


def _inhibition(
    model: "Model", task: Task, prompts: Prompts, found: dict, threshold: float, batch: int
) -> dict[str, tuple[np.ndarray, float]]:
    """What each head sends to the queries of the movers, negative ones included, at the last position."""
    heads = tuple(
        (int(layer), int(head))
        for role in ("mover", "negative mover")
        if role in found
        for layer, head in np.argwhere(found[role][0] >= threshold)
    )
    if not any(layer for layer, _ in heads):
        return {}
    place = np.array([marks["END"] for marks in prompts.positions])
    parts = groups(prompts, task.metric, fitting(model, prompts, [place], batch))
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "attention", "mlp", "keys", "values")
    gap = gap_between(clean, corrupted, task)
    path, shape = paths(model, parts, runs, False), (model.n_layers, model.n_heads)
    patched = patched_by(Stage("END", {"q": heads}), parts, place, path, clean, shape, task.name)
    return {} if patched is None else {"inhibition": ((clean[:, None, None] - patched).mean(0) / gap, 0.0)}


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.float().cpu().numpy()


def _dataset(found: dict[str, tuple[np.ndarray, float]], threshold: float, count: int) -> xr.Dataset:
    score = np.stack([values for values, _ in found.values()]).astype(float)
    role = np.where(score.max(0) >= threshold, score.argmax(0), -1)
    names = list(found)
    ds = xr.Dataset(
        {
            "score": (("component", "layer", "head"), score, {"long_name": "role score", "units": "1"}),
            "score_null": ("component", np.array([null for _, null in found.values()]), {"long_name": "by chance"}),
            "role": (("layer", "head"), role.astype(np.int8), {"long_name": "place of the label; -1 none"}),
        },
        coords={
            "component": names,
            "meaning": ("component", [ROLES[name] for name in names]),
            "layer": np.arange(score.shape[1]),
            "head": np.arange(score.shape[2]),
        },
    )
    ds.attrs = {"threshold": threshold, "n": count, "random_tokens": LENGTH, "random_sequences": SEQUENCES}
    return ds
