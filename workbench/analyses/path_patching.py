"""Path patching: what each head sends to chosen receivers along the residual stream, with all other heads frozen."""

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.analyses._patching import gap_between, groups, place_of, share, two_runs
from workbench.analyses._paths import LOGITS, PARTS, Stage, fitting, patched_by, paths
from workbench.models.heads import parse_head
from workbench.progress import Cancelled
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    from workbench.models.model import Model

SIGN = "share of the clean-to-corrupted drop that the path alone causes: 0 = clean run, 1 = corrupted run, not clipped"


@analysis(
    about="Path patching: each head's corrupted output, sent to the logits or to other heads' queries, keys or values.",
    sign=SIGN,
    primary="effect",
    paper="2211.00593 (Wang et al.), section 3.1, and 2310.08744 (Merullo et al.): path patching, in stages backwards",
)
def path_patching(
    model: "Model",
    task: Task,
    *,
    stages: str = "logits@END",
    top: float = 0.02,
    freeze_mlps: bool = False,
    batch: int = 64,
    draws: int = 1000,
) -> xr.Dataset:
    """How much of the task is lost when only the path from one head to the receivers is corrupted.

    In the clean run the sender's z is set to its corrupted value at the stage's position, every other head's z is held
    at its clean value everywhere, MLPs and norms are computed anew (or MLPs held too, with `freeze_mlps`); what then
    arrives at the receivers is put into another clean run. effect = (m_patched - m_clean) / (m_corrupted - m_clean).

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its corruption is part of what is measured.
        stages: from the output backwards, separated by `;`, each `receivers@position`. Receivers are `logits`, `q`,
            `k` or `v` (of the strongest heads of the stage before), or named ones, `L9H9.q+L10H0.q`. The position is
            a name of the task's (END, S2, ...) or `all`; logits are read at END.
        top: the share of all heads that counts as the strongest of a stage, by |effect|; at least one head.
        freeze_mlps: hold MLP outputs at their clean values as well.
        batch: prompts recorded together, at most.
        draws: bootstrap resamples.

    Returns:
        `effect`, `effect_low`, `effect_high` [receiver, layer, head], `metric` [prompt, receiver, layer, head],
        `metric_clean`, `metric_corrupted` [prompt]. Heads that no path leads from have effect 0. In grouped-query
        models the keys (or values) of a head are those of its group. Stages end where
        no head has a path to the one before. When stopped early: the stages that were finished.

    Raises:
        AnalysisError: for a stage that cannot be read, or a corruption that changes nothing.
    """
    wanted = [_parse(text, model) for text in stages.split(";")]
    if wanted[0][1] is None:
        raise AnalysisError(f"The first stage, '{stages.split(';', maxsplit=1)[0]}', needs named receivers or logits.")
    prompts = task.encode(model.tokenizer, bos=model.bos)
    places = [place_of(prompts, position) for position, *_ in wanted]
    parts = groups(prompts, task.metric, fitting(model, prompts, places, batch))
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "attention", "mlp", "keys", "values")
    gap_between(clean, corrupted, task)
    path = paths(model, parts, runs, freeze_mlps)
    found: dict[str, tuple] = {}
    for (position, heads, component), place in zip(wanted, places, strict=True):
        stage = Stage(position, heads if heads is not None else {component: _strongest(found, top)})
        if heads is None and not stage.layers:
            break  # no head sends anything to the stage before
        patched = patched_by(stage, parts, place, path, clean, (model.n_layers, model.n_heads), task.name)
        if patched is None:
            break
        found[stage.label] = (*share(patched - clean[:, None, None], corrupted - clean, draws, task.seed), patched)
    if not found:
        raise Cancelled("Stopped before the first stage was finished, so there is no result to keep.")
    return _dataset(found, clean, corrupted, prompts, task, model.way)


def _parse(text: str, model: "Model") -> tuple[str, dict | None, str]:
    """Position, receivers by part (None: the heads of the stage before), and the part wanted of those."""
    match = re.fullmatch(r"\s*(\S+?)\s*@\s*(\S+)\s*", text)
    if not match:
        raise AnalysisError(f"The stage '{text.strip()}' has no position; write it like logits@END or q@END.")
    receivers, position = match.groups()
    if receivers == LOGITS:
        if position not in ("END", "all"):
            raise AnalysisError(f"The logits are read at END, so a path to them at '{position}' carries nothing.")
        return position, {}, ""
    if receivers in PARTS:
        return position, None, receivers
    heads: dict[str, list[tuple[int, int]]] = {}
    for name in receivers.split("+"):
        head, dot, part = name.rpartition(".")
        if not dot or part not in PARTS:
            raise AnalysisError(f"'{name}' is not a receiver; write logits, q, k or v, or a head's like L9H9.q.")
        layer, index = parse_head(head)
        if layer >= model.n_layers or index >= model.n_heads:
            raise AnalysisError(f"There is no head {head}: the model has {model.n_layers} layers of {model.n_heads}.")
        heads.setdefault(part, []).append((layer, index))
    return position, {part: tuple(known) for part, known in heads.items()}, ""


def _strongest(found: dict[str, tuple], top: float) -> tuple[tuple[int, int], ...]:
    if not 0 < top <= 1:
        raise AnalysisError(f"top is {top}; it is a share of all heads, above 0 and at most 1.")
    effect = list(found.values())[-1][0]
    count = min(max(1, round(top * effect.size)), int((effect != 0).sum()))  # a head without a path is none
    order = np.argsort(-np.abs(effect), axis=None, kind="stable")[:count]
    return tuple(
        (int(row), int(head)) for row, head in sorted(zip(*np.unravel_index(order, effect.shape), strict=True))
    )


def _dataset(
    found: dict[str, tuple], clean: np.ndarray, corrupted: np.ndarray, prompts: Prompts, task: Task, way: str
) -> xr.Dataset:
    dims, raw = ("receiver", "layer", "head"), {"long_name": task.metric.replace("_", " "), "units": "logits"}
    if task.metric != "logit_diff":
        raw["units"] = "1"
    say = {"long_name": f"lost {raw['long_name']}", "units": "share", "signed": 1}
    effect, low, high, patched = (np.stack(column) for column in zip(*found.values(), strict=True))
    ds = xr.Dataset(
        {name: (dims, value, say) for name, value in (("effect", effect), ("effect_low", low), ("effect_high", high))}
        | {"metric": (("prompt", *dims), patched.transpose(1, 0, 2, 3), raw)}
        | {"metric_clean": ("prompt", clean, raw), "metric_corrupted": ("prompt", corrupted, raw)},
        coords={
            "prompt": np.arange(len(clean)),
            "receiver": list(found),
            "layer": np.arange(effect.shape[1]),
            "head": np.arange(effect.shape[2]),
            "text": ("prompt", prompts.texts),
        },
    )
    ds.attrs = {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "stages": json.dumps(list(found)),
        "n": len(prompts),
        "dropped": sum(prompts.dropped.values()),
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "way": way,
    }
    return ds
