"""Dormant heads: which heads rest on the attention sink, and whether the task does without them."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, batches, interval, resamples
from workbench.analyses._one_head import OneHead
from workbench.analyses._patching import gap_between, groups, place_of, share, two_runs
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Heads, Layer

STATES = {
    0: "undecided: the interval of its ablation crosses the limit",
    1: "dormant: rests on the sink (D > epsilon), and its ablation stays within the limit",
    2: "active: its ablation changes the task by more than the limit",
    3: "idle: its ablation stays within the limit, and it does not rest on the sink",
}
TINY = 1e-12  # instead of a median of 0
LABELS = {
    "dormancy": ("mean attention on the first token, D", "probability"),
    "dormancy_at": ("attention on the first token from the position in the attribute", "probability"),
    "value_drain": ("value norm of the first token / median", "ratio"),
    "output_norm": ("mean norm of what the head writes / that of the median head", "ratio"),
}
BY_HEAD = ("layer", "head")
NULL = "lost when the head's output moves as far in a random direction"


@analysis(
    about="Heads that rest on the attention sink, what they write, and what the task loses without each of them.",
    sign="D 0 = no attention on the first token, 1 = all; lost 0 = the task does without the head, 1 = all is lost",
    primary="dormancy",
    paper="2410.13835 (Guo et al.): active-dormant heads; 2504.03889: heads that can be removed, by output norm",
)
def dormant_heads(
    model: "Model",
    task: Task,
    *,
    length: int = 64,
    sequences: int = 32,
    epsilon: float = 0.3,
    position: str = "END",
    margin: float = 0.02,
    draws: int = 1000,
    batch: int = 64,
) -> xr.Dataset:
    """How much each head rests on the first token, what it writes, and what the task loses without it.

    D = mean over all queries of the attention on the first token, in running text of the task. The ablation is on the
    task's own clean prompts: one head's z is replaced by its mean over prompts and positions, all else is computed
    anew; lost = (m_clean - m_ablated) / (m_clean - m_corrupted), m means over prompts. The null moves the same z
    exactly as far, prompt by prompt and position by position, but in a random direction of the head's output space:
    what a change of that size does whatever it says. The limit of a head is the farther end of the null's interval, or
    `margin` where that is more. A head is active where the interval of `lost` lies wholly outside +-limit, and does
    nothing for the task where it lies wholly inside: dormant if D > epsilon, else idle.

    Args:
        model: raw weights, since folding changes norms.
        task: its text gives D and norms, its prompts the ablation.
        length: tokens in a sequence of running text, BOS included.
        sequences: how many sequences.
        epsilon: D from where on a head counts as resting on the sink.
        position: where D is taken in the task's prompts beside that (END, S2, ...): a head that wakes at some tokens
            only, such as the trigger at the END of a backcopy prompt, has a small D there and a large one elsewhere.
        margin: share of the task's clean-minus-corrupted metric that does not matter in any case.
        draws: bootstrap resamples.
        batch: prompts, or sequences, in one forward pass.

    Returns:
        With intervals, [layer, head]: `dormancy` (D) beside `dormancy_null` (uniform attention), `dormancy_at` (at the
        position) beside `dormancy_at_null`, `value_drain` (|v| of the first token over the sequence's median; heads
        that share their values share it), `output_norm` (mean |A V W_O| over that of the model's median head), `lost`,
        `lost_null`; `limit`; `state`, coded as in the attribute `states`; `metric` [prompt, layer, head] and
        `metric_clean`, `metric_corrupted` [prompt]. When stopped early: the layers that were ablated; or, if none was,
        the attention of the sequences done.

    Raises:
        AnalysisError: for a length the model does not take, an epsilon or margin out of range, a position that not
            every prompt has, or a corruption that changes nothing.
        ModelError: when the family's attention cannot be read, or its weights are folded.
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    if not 0 < epsilon < 1 or not 0 <= margin < 1:
        raise AnalysisError(f"epsilon is {epsilon} and margin {margin}; use 0 < epsilon < 1 and 0 <= margin < 1.")
    at_least_one(sequences=sequences, draws=draws, batch=batch)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    place = place_of(prompts, position)
    if place is None:
        raise AnalysisError("position is 'all', which `dormancy` already is; name one, like END.")
    ds = _resting(model, task, length, sequences, batch, draws)
    done = ds.attrs["n"]
    if done == sequences:
        ds = ds.assign(_at(model, task, prompts, place, batch, draws))
        lost = _lost(model, task, prompts, batch, draws)
        if lost is not None:
            ds = ds.isel(layer=slice(lost.sizes["layer"])).assign(lost.data_vars).assign_coords(lost.coords)
            ds = ds.assign(_state(ds, epsilon, margin)).assign_attrs(lost.attrs)
    known = {"epsilon": epsilon, "length": length, "sequences": done, "position": position, "margin": margin}
    return ds.assign_attrs(known, states=json.dumps(STATES))


def _resting(model: "Model", task: Task, length: int, sequences: int, batch: int, draws: int) -> xr.Dataset:
    """D, value drain and output norm of the sequences of running text that were finished."""
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    starts, parts = range(0, sequences, batch), []
    for start in track(starts, f"dormant_heads {task.name}, attention", len(starts)):
        parts.append(_read(model, tokens[start : start + batch]))
    if not parts:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    norms = found["output_norm"]
    found["output_norm"] = norms / np.maximum(np.median(norms, axis=(1, 2), keepdims=True), TINY)
    weights = resamples(len(norms), draws, task.seed)
    ds = xr.Dataset(
        {end: value for name, values in found.items() for end, value in _mean(name, values, weights).items()},
        coords={dim: np.arange(size) for dim, size in zip(BY_HEAD, norms.shape[1:], strict=True)},
        attrs={"n": len(norms), "corruption": "none: clean text", "task": task.name},
    )
    uniform = 1 / np.arange(1, length + 1) if model.scanner.causal() else np.full(length, 1 / length)
    say = {"long_name": "D of uniform attention", "units": "probability"}
    return ds.assign(dormancy_null=((), uniform.mean(), say))


def _read(model: "Model", tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What one batch of sequences shows, each [row, layer, head]."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("dormancy", "value_drain", "output_norm")}

    def read(layer: "Heads") -> None:
        norms = _array(layer.values.float().norm(dim=-1))  # [row, key-value head, pos]
        drain = norms[..., 0] / np.maximum(np.median(norms, axis=-1), TINY)
        found["dormancy"].append(_array(layer.columns[..., 0].mean(-1)))
        found["value_drain"].append(np.repeat(drain, model.n_heads // drain.shape[1], axis=1))
        found["output_norm"].append(_array(model.scanner.written(layer.index, layer.z).mean(1)))

    model.scanner.run(model.tensor(tokens), heads=read, watched=[0])
    return {name: np.stack(layers, 1) for name, layers in found.items()}


def _at(model: "Model", task: Task, prompts: Prompts, place: np.ndarray, batch: int, draws: int) -> dict[str, Any]:
    """Attention on the first token from one position of each clean prompt."""
    found = np.empty((len(prompts), model.n_layers, model.n_heads))
    for rows in batches(prompts, batch):
        seen: list[np.ndarray] = []

        def read(layer: "Layer", rows: np.ndarray = rows, seen: list[np.ndarray] = seen) -> None:
            seen.append(_array(layer.columns[np.arange(len(rows)), :, place[rows], 0]))

        model.scanner.run(model.tensor(np.stack([prompts.clean[row] for row in rows])), read, watched=[0])
        found[rows] = np.stack(seen, 1)
    seen_by = place + 1 if model.scanner.causal() else prompts.lengths
    say = {"long_name": "uniform attention at that position", "units": "probability"}
    null = {"dormancy_at_null": ((), (1 / seen_by).mean(), say)}
    return _mean("dormancy_at", found, resamples(len(prompts), draws, task.seed)) | null


def _lost(model: "Model", task: Task, prompts: Prompts, batch: int, draws: int) -> xr.Dataset | None:
    """What the task loses without each head of the layers that were finished; None where none was."""
    parts = groups(prompts, task.metric, batch)
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "keys", "values")
    gap_between(clean, corrupted, task)
    one, done = OneHead(model, parts, runs, batch), []
    layers = range(model.n_layers)
    for layer in track(layers, f"dormant_heads {task.name}, ablation", len(layers)):
        done.append(_ablated(one, layer, task.seed))
    if not done:
        return None
    metric = np.stack(done, axis=2)  # [ablated and null, prompt, layer, head]
    raw = {"long_name": task.metric.replace("_", " "), "units": "logits" if task.metric == "logit_diff" else "1"}
    variables: dict[str, Any] = {
        "metric": (("prompt", *BY_HEAD), metric[0], raw | {"long_name": f"{raw['long_name']} without the head"}),
        "metric_clean": ("prompt", clean, raw),
        "metric_corrupted": ("prompt", corrupted, raw),
    }
    for name, values in zip(("lost", "lost_null"), metric, strict=True):
        say = {"long_name": NULL if name == "lost_null" else "lost metric", "units": "share", "signed": 1}
        ends = share(clean[:, None, None] - values, clean - corrupted, draws, task.seed)
        variables |= {name + end: (BY_HEAD, part, say) for end, part in zip(("", "_low", "_high"), ends, strict=True)}
    coords = {"prompt": np.arange(len(clean)), "text": ("prompt", prompts.texts)}
    attrs = {"metric_name": task.metric, "n": len(clean), "accuracy": float((clean > 0).mean()), "way": model.way}
    attrs |= {"clean": float(clean.mean()), "corrupted": float(corrupted.mean()), "corruption": task.corruption}
    return xr.Dataset(variables, coords=coords, attrs=attrs | {"task": task.title})


def _ablated(one: OneHead, layer: int, seed: int) -> np.ndarray:
    """Metric [2, prompt, head] with a head's z at its mean, and moved as far in a random direction."""
    import torch

    outputs = [one.z("clean", layer, index) for index in range(len(one.parts))]
    mean = torch.cat([z.flatten(0, 1) for z in outputs]).mean(0)
    metric = np.empty((2, sum(len(group.rows) for group in one.parts), one.model.n_heads))
    for index, (group, z) in enumerate(zip(one.parts, outputs, strict=True)):
        elsewhere = _elsewhere(z, mean, np.random.default_rng([seed, layer, index]))
        for which, other in enumerate((mean.expand_as(z), elsewhere)):
            metric[which, group.rows] = one.metric("clean", layer, index, other).T
    return metric


def _elsewhere(z: "torch.Tensor", mean: "torch.Tensor", rng: np.random.Generator) -> "torch.Tensor":
    """Z [row, pos, head, d_head] moved as far as to its mean, but in a random direction."""
    import torch

    direction = torch.from_numpy(rng.standard_normal(z.shape)).to(z)
    distance = (mean - z).norm(dim=-1, keepdim=True)
    return z + distance * direction / direction.norm(dim=-1, keepdim=True)


def _state(ds: xr.Dataset, epsilon: float, margin: float) -> dict[str, Any]:
    """The limit of each head, and which of `STATES` it is in."""
    low, high, null_low, null_high = (
        ds[name].values for name in ("lost_low", "lost_high", "lost_null_low", "lost_null_high")
    )
    limit = np.maximum(np.maximum(abs(null_low), abs(null_high)), margin)
    active, needless = (low > limit) | (high < -limit), (low > -limit) & (high < limit)
    state = np.where(active, 2, np.where(needless, np.where(ds["dormancy"].values > epsilon, 1, 3), 0))
    return {
        "limit": (BY_HEAD, limit, {"long_name": "loss that does not matter", "units": "share"}),
        "state": (BY_HEAD, state.astype(np.int8), {"long_name": "state, coded as in the attribute states"}),
    }


def _mean(name: str, values: np.ndarray, weights: np.ndarray) -> dict[str, tuple]:
    """A variable, the mean over the first axis, with the ends of its bootstrap interval."""
    say = dict(zip(("long_name", "units"), LABELS[name], strict=True))
    parts = (values.mean(0, dtype=float), *interval(np.tensordot(weights, values, 1)))
    return {name + end: (BY_HEAD, part, say) for end, part in zip(("", "_low", "_high"), parts, strict=True)}


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.float().cpu().numpy()
