"""Attention sinks: how much attention each key gets from all the queries that can see it, head by head."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, interval, resamples
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

PATTERN, VALUE, RESIDUAL = "blocks.{}.attn.hook_pattern", "blocks.{}.attn.hook_v", "blocks.{}.hook_resid_post"


@analysis(
    about="Attention each key receives (alpha), sink rate over epsilon, and the norms that go with a sink.",
    sign="alpha 0 = the key gets no attention, 1 = all of it from every query that sees it",
    primary="alpha",
    paper="2410.10781 (Gu et al.): importance score alpha and sink rate, equations 3 and 4",
)
def sink_scores(
    model: "Model", task: Task, *, length: int = 64, sequences: int = 32, epsilon: float = 0.3, batch: int = 8
) -> xr.Dataset:
    """Importance score, sink rate, value norm and residual norm of every key.

    alpha[k] = sum over queries i >= k of A[i, k], divided by T - k (positions from 0, T = `length`): the mean attention
    key k gets from the queries that can see it. The sink rate is the share of sequences with alpha > epsilon.
    Sequences are the task's prompts with their answers, one after the other, cut at `length` tokens.

    Args:
        model: raw weights, since folding changes norms.
        task: whose text is read.
        length: T, tokens in a sequence, BOS included.
        sequences: how many sequences.
        epsilon: threshold of the sink rate.
        batch: sequences in one forward pass.

    Returns:
        Means over sequences `alpha` (with `_low`, `_high`, and `alpha_null`, uniform attention) and `sink_rate`
        [layer, head, key_pos]; `value_norm` [layer, head, key_pos] and `residual_norm` [layer, key_pos], each relative
        to the median of its sequence; `sink_rate_mean` [key_pos] over all heads, with its interval; and
        `alpha_prompt` [prompt, layer, head, key_pos] for single sequences. When stopped early: the sequences done.

    Raises:
        AnalysisError: when `length` is longer than the model's context or under 2, or epsilon outside (0, 1).
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    if not 0 < epsilon < 1 or sequences < 1 or batch < 1:
        found = f"epsilon is {epsilon}, sequences {sequences} and batch {batch}"
        raise AnalysisError(f"{found}; use 0 < epsilon < 1, sequences >= 1, batch >= 1.")
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    starts = range(0, sequences, batch)
    parts = []
    for start in track(starts, f"sink_scores {task.name}", len(starts)):
        parts.append(_measure(model, tokens[start : start + batch]))
    if not parts:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    alpha, value, residual = (np.concatenate(column) for column in zip(*parts, strict=True))
    ds = _dataset(alpha, value, residual, epsilon, task.seed)
    ds = ds.assign_coords(token=(("prompt", "key_pos"), np.array([model.tokens(row) for row in tokens[: len(alpha)]])))
    ds.attrs |= {
        "epsilon": epsilon,
        "length": length,
        "n": len(alpha),
        "corruption": "none: clean text",
        "task": task.name,
    }
    return ds


def _measure(model: "Model", tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Alpha and relative value norm [row, layer, head, key], relative residual norm [row, layer, key] of one batch."""
    layers = range(model.n_layers)
    names = [hook.format(layer) for layer in layers for hook in (PATTERN, VALUE, RESIDUAL)]
    _, kept = model.capture(tokens, names)
    queries = np.arange(tokens.shape[1], 0, -1)
    alpha, value, residual = [], [], []
    for layer in layers:
        alpha.append(_array(kept[PATTERN.format(layer)].sum(-2)) / queries)
        value.append(_per_head(_relative_norm(kept[VALUE.format(layer)].transpose(1, 2)), model.n_heads))
        residual.append(_relative_norm(kept[RESIDUAL.format(layer)]))
    return np.stack(alpha, 1), np.stack(value, 1), np.stack(residual, 1)


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.double().cpu().numpy()


def _relative_norm(vectors: "torch.Tensor") -> np.ndarray:
    """Euclidean norms over the last axis, divided by their median over the positions (the axis before it)."""
    norms = _array(vectors.double().norm(dim=-1))
    return norms / np.median(norms, axis=-1, keepdims=True)


def _per_head(norms: np.ndarray, heads: int) -> np.ndarray:
    """[row, key-value head, key] -> [row, head, key]: grouped query heads share their value norms."""
    return np.repeat(norms, heads // norms.shape[1], axis=1)


def uniform_alpha(length: int) -> np.ndarray:
    """Alpha under uniform causal attention, [key]: the mean of 1/(i+1) over the queries i >= key."""
    return np.cumsum(1 / np.arange(1, length + 1)[::-1])[::-1] / np.arange(length, 0, -1)


def _dataset(
    alpha: np.ndarray, value: np.ndarray, residual: np.ndarray, epsilon: float, seed: int, draws: int = 1000
) -> xr.Dataset:
    over = alpha > epsilon
    weights = resamples(len(alpha), draws, seed)
    low, high = _mean_interval(alpha, weights)
    rate_low, rate_high = _mean_interval(over.mean((1, 2)), weights)
    by_head, attention = ("layer", "head", "key_pos"), {"long_name": "mean attention received", "units": "probability"}
    share = {"long_name": f"share of sequences with alpha > {epsilon}", "units": "share"}
    rate = {"long_name": f"share of heads and sequences with alpha > {epsilon}", "units": "share"}
    variables = {
        "alpha": (by_head, alpha.mean(0), attention),
        "alpha_low": (by_head, low, attention),
        "alpha_high": (by_head, high, attention),
        "alpha_null": ("key_pos", uniform_alpha(alpha.shape[-1]), {"long_name": "alpha of uniform attention"}),
        "alpha_prompt": (("prompt", *by_head), alpha.astype(np.float32), attention),
        "sink_rate": (by_head, over.mean(0), share),
        "sink_rate_mean": ("key_pos", over.mean((0, 1, 2)), rate),
        "sink_rate_mean_low": ("key_pos", rate_low, rate),
        "sink_rate_mean_high": ("key_pos", rate_high, rate),
        "value_norm": (by_head, value.mean(0), {"long_name": "value norm / median", "units": "ratio"}),
        "residual_norm": (("layer", "key_pos"), residual.mean(0), {"long_name": "residual norm / median"}),
    }
    sizes = dict(zip(("prompt", "layer", "head", "key_pos"), alpha.shape, strict=True))
    return xr.Dataset(variables, coords={dim: np.arange(size) for dim, size in sizes.items()})


def _mean_interval(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over the first axis; one layer at a time keeps the resamples small."""
    ends = [interval(np.tensordot(weights, values[:, part], 1)) for part in range(values.shape[1])]
    return np.stack([low for low, _ in ends]), np.stack([high for _, high in ends])
