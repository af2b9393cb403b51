"""Head patching beyond the sink: what a head's clean output restores once it rests on the sink as in the clean run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.analyses._one_head import OneHead
from workbench.analyses._patching import gap_between, groups, share, two_runs
from workbench.progress import Cancelled, track
from workbench.schema import SIGN
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

PATTERN, VALUE = "blocks.{}.attn.hook_pattern", "blocks.{}.attn.hook_v"
LEAST = 1e-3  # attention outside the sink; a head with less of it says nothing there that could be scaled up
BY_HEAD = ("layer", "head")
SIDES = ("clean", "corrupted")
Rest = tuple["torch.Tensor", "torch.Tensor"]  # attention on the first token [row, pos, head], its value [row, head, d]


@analysis(
    about="Head patching split in two: what resting on the attention sink does by itself, and what is left beyond it.",
    sign=SIGN,
    primary="effect",
    paper="2410.13835 (Guo et al.): heads that rest on the sink are dormant; their weight is told apart from patching",
)
def sink_aware_patching(
    model: "Model",
    task: Task,
    *,
    margin: float = 0.02,
    within: float = 0.25,
    batch: int = 64,
    draws: int = 1000,
) -> xr.Dataset:
    """The part of each head's patching effect that is not just more, or less, attention on the first token.

    A head's output is z_i = a_i v_0 + (1 - a_i) m_i: a_i its attention on the first token (the sink), v_0 that token's
    value, m_i the mean of the other values by the rest of its attention, scaled to sum 1. Activation patching puts
    the clean z into the corrupted run, and with it both the clean a and the clean m. Here the corrupted run is patched
    twice, head by head: with the clean z (`effect_plain`, as head_patching), and with the corrupted z in which only a
    is the clean run's (`effect_sink`). What the first restores beyond the second is `effect`:

        z_sink = a_clean v_0 + (1 - a_clean) m_corrupted,   effect_plain = effect_sink + effect.

    A head whose whole effect is that it rests on the sink in one run and wakes in the other has effect 0, whatever it
    would have said. One that leaves the sink to say something keeps what it says: with a held at its corrupted value
    instead, its effect would be lost, for a head at rest says nothing. Exchanging the sink's term a v_0 alone would
    not do either: v_0 is almost 0 where the sink is drained, and the attention would no longer sum to 1. A head that
    tells something only by leaving the sink, saying the same whenever it does, counts as parked too; `sink_clean` and
    `sink_corrupted` show in which run it rests.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its corruption is part of what is measured.
        margin: |effect_plain| from where on a head can be parked.
        within: a parked head's effect, with its whole interval, is less than this share of its plain effect.
        batch: prompts recorded together.
        draws: bootstrap resamples.

    Returns:
        [layer, head]: `effect`, `effect_plain` and `effect_sink`, each with `_low` and `_high`; `sink_clean` and
        `sink_corrupted` with intervals, the mean attention on the first token from the positions at which the runs can
        differ, beside `sink_null` (uniform attention); `parked`. Raw: `metric` (the corrupted run's plus what `effect`
        adds), `metric_plain`, `metric_sink` [prompt, layer, head], `metric_clean`, `metric_corrupted` [prompt]. It
        compares as a head_patching result does: `overlap` of two such results leaves out what parked heads share.
        When stopped early: the layers that were finished.

    Raises:
        AnalysisError: for shares out of range, or when corrupted and clean prompts give the same metric.
    """
    if not 0 <= margin < 1 or not 0 < within < 1:
        raise AnalysisError(f"margin is {margin} and within {within}; use 0 <= margin < 1 and 0 < within < 1.")
    at_least_one(draws=draws)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    parts = groups(prompts, task.metric, batch)
    clean, corrupted, runs = two_runs(model, prompts, parts, "z", "keys", "values")
    gap_between(clean, corrupted, task)
    one, done = OneHead(model, parts, runs, batch), []
    layers = range(model.n_layers)
    for layer in track(layers, f"sink_aware_patching {task.name}", len(layers)):
        done.append(_patched(one, layer, len(prompts)))
    if not done:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    metric, resting = (np.stack(values, axis=2) for values in zip(*done, strict=True))  # [2, prompt, layer, head]
    ds = _dataset(metric, clean, corrupted, prompts, task, draws)
    weights = resamples(len(clean), draws, task.seed)
    for side, values in zip(SIDES, resting, strict=True):
        say = {"long_name": f"attention on the first token, {side} run", "units": "probability"}
        ends = (values.mean(0), *interval(np.tensordot(weights, values, 1)))
        ds = ds.assign({f"sink_{side}{end}": (BY_HEAD, part, say) for end, part in _ends(ends)})
    ds["sink_null"] = (
        (),
        _uniform(parts),
        {"long_name": "uniform attention on the first token", "units": "probability"},
    )
    ds["parked"] = (BY_HEAD, _parked(ds, margin, within), {"long_name": "the effect is resting on the sink"})
    return ds.assign_attrs(margin=margin, within=within, way=model.way)


def _patched(one: OneHead, layer: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Metric with the clean z or only its rest on the sink, and that rest in both runs; each [2, prompt, head]."""
    metric, resting = np.empty((2, 2, count, one.model.n_heads))
    for index, group in enumerate(one.parts):
        start, rest = group.start, [_resting(one.model, getattr(group, side), layer) for side in SIDES]
        z = {side: one.z(side, layer, index) for side in SIDES}
        patches = z["clean"], at_rest(z["corrupted"], rest[0][0], *rest[1])
        for which, patch in enumerate(patches):
            metric[which, group.rows] = one.metric("corrupted", layer, index, patch, start).T
            resting[which, group.rows] = rest[which][0][:, start:].double().mean(1).cpu().numpy()
    return metric, resting


def _resting(model: "Model", tokens: np.ndarray, layer: int) -> Rest:
    """Attention of each query on the first token [row, pos, head], and that token's value [row, head, d_head]."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, part: Callable[["torch.Tensor"], "torch.Tensor"]) -> Callable[["torch.Tensor"], "torch.Tensor"]:
        def edit(value: "torch.Tensor") -> "torch.Tensor":
            kept[name] = part(value).clone()
            return value

        return edit

    parts: dict[str, Any] = {PATTERN: lambda pattern: pattern[..., 0].transpose(1, 2), VALUE: lambda value: value[:, 0]}
    model.logits(tokens, {name.format(layer): keep(name, part) for name, part in parts.items()})
    value = kept[VALUE]
    return kept[PATTERN], value.repeat_interleave(model.n_heads // value.shape[1], 1)


def at_rest(
    z: "torch.Tensor", wanted: "torch.Tensor", attention: "torch.Tensor", value: "torch.Tensor"
) -> "torch.Tensor":
    """Head outputs z [row, pos, head, d_head] with another attention on the first token, and as much less elsewhere.

    Args:
        z: a run's head outputs.
        wanted: attention on the first token that is to be [row, pos, head].
        attention: what it is in that run [row, pos, head].
        value: that token's value in that run [row, head, d_head].

    Returns:
        wanted v_0 + (1 - wanted) m, where m = (z - attention v_0) / (1 - attention); a head with (almost) no attention
        elsewhere has nothing there to be scaled up, and m falls to 0.
    """
    wanted, attention, value = wanted[..., None].float(), attention[..., None].float(), value[:, None].float()
    elsewhere = (z.float() - attention * value) / (1 - attention).clamp_min(LEAST)
    return (wanted * value + (1 - wanted) * elsewhere).to(z.dtype)


def _uniform(parts: list) -> float:
    """Uniform attention on the first token, mean over the positions from the first that differs."""
    found = [(len(group.rows), (1 / np.arange(group.start + 1, group.clean.shape[1] + 1)).mean()) for group in parts]
    rows, means = zip(*found, strict=True)
    return float(np.average(means, weights=rows))


def _dataset(
    metric: np.ndarray, clean: np.ndarray, corrupted: np.ndarray, prompts: Prompts, task: Task, draws: int
) -> xr.Dataset:
    plain, sink = metric
    name = task.metric.replace("_", " ")
    raw, by_prompt = {"units": "logits" if task.metric == "logit_diff" else "1"}, ("prompt", *BY_HEAD)
    what = {
        "": ("beyond the sink", corrupted[:, None, None] + plain - sink),
        "_plain": ("the clean output patched", plain),
        "_sink": ("the clean attention on the sink patched", sink),
    }
    variables: dict[str, Any] = {
        "metric_clean": ("prompt", clean, raw | {"long_name": name}),
        "metric_corrupted": ("prompt", corrupted, raw | {"long_name": name}),
    }
    for part, (words, values) in what.items():
        variables[f"metric{part}"] = (by_prompt, values, raw | {"long_name": f"{name}, {words}"})
        say = {"long_name": f"recovered {name}, {words}", "units": "share", "signed": 1}
        ends = share(values - corrupted[:, None, None], clean - corrupted, draws, task.seed)
        variables |= {f"effect{part}{end}": (BY_HEAD, value, say) for end, value in _ends(ends)}
    coords = {dim: np.arange(size) for dim, size in zip(by_prompt, plain.shape, strict=True)}
    attrs = {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "n": len(prompts),
        "dropped": sum(prompts.dropped.values()),
        "accuracy": float((clean > 0).mean()),
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
    }
    return xr.Dataset(variables, coords=coords | {"text": ("prompt", prompts.texts)}, attrs=attrs)


def _ends(values: tuple[np.ndarray, ...]) -> Any:
    """A mean and the two ends of its interval beside the endings of their names."""
    return zip(("", "_low", "_high"), values, strict=True)


def _parked(ds: xr.Dataset, margin: float, within: float) -> np.ndarray:
    """1 for heads that have a plain effect, next to nothing of which is left beyond the sink; [layer, head]."""
    plain, limit = ds["effect_plain"].values, within * abs(ds["effect_plain"].values)
    sure = (ds["effect_plain_low"].values > 0) | (ds["effect_plain_high"].values < 0)
    left = np.maximum(abs(ds["effect_low"].values), abs(ds["effect_high"].values))
    return (sure & (abs(plain) >= margin) & (left < limit)).astype(np.int8)
