"""Attention sinks: how much attention each key gets from all the queries that can see it, head by head."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.analyses._tokens import FEW, KINDS, kinds_of
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Heads, Layer

DRAWS = 1000
TINY = 1e-12  # instead of a median of 0
CONTROLS = ("text", "random tokens", "one repeated token")
BY_HEAD = ("layer", "head", "key_pos")
Parts = dict[str, np.ndarray]
LABELS = {
    "alpha": ("mean attention received", "probability"),
    "value_norm": ("value norm / median", "ratio"),
    "key_norm": ("key norm / median", "ratio"),
    "query_key_cosine": ("mean cosine of the later queries with the key", "1"),
    "residual_norm": ("residual norm / median", "ratio"),
    "output_norm": ("mean norm of what the head writes", "residual units"),
}


@analysis(
    about="Attention each key receives (alpha), sink rate over epsilon, and the norms that go with a sink.",
    sign="alpha 0 = the key gets no attention, 1 = all of it from every query that sees it",
    primary="alpha",
    paper="2410.10781 (Gu et al.): importance score alpha and sink rate, equations 3 and 4",
)
def sink_scores(
    model: "Model",
    task: Task,
    *,
    length: int = 64,
    sequences: int = 32,
    epsilon: float = 0.3,
    batch: int = 8,
    bos: Literal["model", "on", "off"] = "model",
) -> xr.Dataset:
    """Importance score, sink rate and the norms of every key, at any length the model takes.

    alpha[k] = sum over queries i >= k of A[i, k], divided by T - k (positions from 0, T = `length`): the mean attention
    key k gets from the queries that can see it (all T of them in a bidirectional model). The sink rate is the share of
    sequences with alpha > epsilon. Attention is read a few queries at a time; no pattern is ever held whole.

    Sequences are the task's prompts with their answers, one after the other, cut at `length` tokens. Beside them stand
    as many as one batch holds of random tokens, and of one random token repeated (without BOS), which is known to
    undo the sink at the first position in models without learned positions (Gu et al., section 3).

    Args:
        model: raw weights, since folding changes norms.
        task: whose text is read.
        length: T, tokens in a sequence, BOS included.
        sequences: how many sequences.
        epsilon: threshold of the sink rate.
        batch: sequences in one forward pass.
        bos: whether sequences begin with BOS: as the model is run, always, or never.

    Returns:
        Means over sequences `alpha` (with `_low`, `_high`, and `alpha_null`, uniform attention), `sink_rate`,
        `value_norm`, `key_norm` (relative to the median of their sequence) and `query_key_cosine`
        [layer, head, key_pos]; `output_norm` [layer, head], what a head adds to the residual stream; `residual_norm`
        [layer, key_pos]; `sink_rate_mean` [key_pos] over all heads, with its interval; `kind_alpha`
        [layer, head, component], the mean alpha of BOS, delimiters, white space, digits and content that at least
        8 queries see, with its interval and `kind_alpha_null` [component]; `kind_share` [component] of all tokens;
        `control_alpha` [measured, layer, head] and `control_rate` [measured] of position 0 for the text, random
        tokens and one repeated token; and `alpha_prompt` [prompt, layer, head, key_pos] for single sequences. When
        stopped early: the sequences done.

    Raises:
        AnalysisError: when `length` is longer than the model's context or under 2, epsilon outside (0, 1), or BOS is
            asked for of a tokenizer without one.
        ModelError: when the family's attention cannot be read, or its weights are folded.
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    if not 0 < epsilon < 1:
        raise AnalysisError(f"epsilon is {epsilon}; use 0 < epsilon < 1.")
    at_least_one(sequences=sequences, batch=batch)
    front = _front(model, bos)
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=front)
    starts = range(0, sequences, batch)
    parts = []
    for start in track(starts, f"sink_scores {task.name}", len(starts)):
        parts.append(measure(model, tokens[start : start + batch]))
    if not parts:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tokens = tokens[: len(found["alpha"])]
    variables = _scores(found, epsilon, task.seed, model.scanner.causal())
    variables |= _by_kind(found["alpha"], kinds_of(model, tokens), variables["alpha_null"][1], task.seed)
    variables |= _controls(model, found["alpha"], front, min(batch, len(tokens)), epsilon, task.seed)
    ds = _dataset(variables, tokens, model)
    ds.attrs = {
        "epsilon": epsilon,
        "length": length,
        "n": len(tokens),
        "corruption": "none: clean text",
        "task": task.name,
        "bos": int(front),
    }
    return ds


def _front(model: "Model", bos: str) -> bool:
    if bos == "on" and model.tokenizer.bos_token_id is None:
        raise AnalysisError("bos is 'on', but this tokenizer has no BOS token; use bos='off'.")
    return model.bos if bos == "model" else bos == "on"


def measure(model: "Model", tokens: np.ndarray, lengths: np.ndarray | None = None) -> Parts:
    """What one batch of sequences shows, the first axis being the row; see `sink_scores` for what and in which units.

    `lengths` are the tokens of each row that are not padding, where there is any on the right.
    """
    (rows, length), causal = tokens.shape, model.scanner.causal()
    ends = np.full(rows, length) if lengths is None else lengths
    real = np.arange(length) < ends[:, None]
    queries = model.tensor(np.maximum(ends[:, None] - np.arange(length) * causal, 1))[:, None]  # that see each key
    asking = model.tensor(real)[..., None]
    shapes = {"residual_norm": (length,), "output_norm": (model.n_heads,)}
    # Made before the run: small arrays kept between its large ones would scatter the memory.
    found = {
        name: np.empty((rows, model.n_layers, *shapes.get(name, (model.n_heads, length))), np.float32)
        for name in LABELS
    }

    def attention(heads: "Heads") -> None:
        at, group = heads.index, heads.queries.shape[1] // heads.keys.shape[1]
        found["alpha"][:, at] = _array(heads.received / queries)
        found["value_norm"][:, at] = np.repeat(_relative_norm(heads.values, real[:, None]), group, axis=1)
        found["key_norm"][:, at] = np.repeat(_relative_norm(heads.keys, real[:, None]), group, axis=1)
        found["query_key_cosine"][:, at] = _array(_cosines(heads, asking, causal) / queries)
        written = (model.scanner.written(at, heads.z) * asking).sum(1) / asking.sum(1)
        found["output_norm"][:, at] = _array(written)

    def stream(layer: "Layer") -> None:
        found["residual_norm"][:, layer.index] = _relative_norm(layer.hidden, real)

    padded = None if lengths is None else model.tensor(lengths)
    model.scanner.run(model.tensor(tokens), stream, heads=attention, lengths=padded)
    return found


def _cosines(heads: "Heads", asking: "torch.Tensor", causal: bool) -> "torch.Tensor":
    """Cosines of each key with the queries that can see it, summed, [row, head, key]; `asking` [row, pos, 1]."""
    from torch import empty_like
    from torch.nn.functional import normalize

    found, group = empty_like(heads.received), heads.queries.shape[1] // heads.keys.shape[1]
    for head in range(found.shape[1]):  # one at a time, so that little is held
        queries, keys = normalize(heads.queries[:, head], dim=-1), normalize(heads.keys[:, head // group], dim=-1)
        queries *= asking
        seeing = queries.sum(1, keepdim=True)
        if causal:
            seeing = seeing - queries.cumsum(1) + queries
        found[:, head] = (seeing * keys).sum(-1)
    return found * asking[:, None, :, 0]


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.float().cpu().numpy()


def _relative_norm(vectors: "torch.Tensor", real: np.ndarray) -> np.ndarray:
    """Norms over the last axis, divided by their median over the positions (the axis before it); 0 for padding."""
    norms = _array(vectors.float().norm(dim=-1))
    middle = np.median(norms, axis=-1) if real.all() else np.nanmedian(np.where(real, norms, np.nan), axis=-1)
    return norms / np.maximum(middle, TINY)[..., None] * real


def uniform_alpha(length: int) -> np.ndarray:
    """Alpha under uniform causal attention, [key]: the mean of 1/(i+1) over the queries i >= key."""
    return np.cumsum(1 / np.arange(1, length + 1)[::-1])[::-1] / np.arange(length, 0, -1)


def _named(name: str) -> dict[str, str]:
    return dict(zip(("long_name", "units"), LABELS[name], strict=True))


def _scores(found: Parts, epsilon: float, seed: int, causal: bool) -> dict[str, Any]:
    alpha, over = found["alpha"], found["alpha"] > epsilon
    count, length = len(alpha), alpha.shape[-1]
    weights = resamples(count, DRAWS, seed)
    low, high = _mean_interval(alpha, weights)
    rate_low, rate_high = interval(weights @ over.mean((1, 2)))
    share = {"long_name": f"share of sequences with alpha > {epsilon}", "units": "share"}
    rate = {"long_name": f"share of heads and sequences with alpha > {epsilon}", "units": "share"}
    null = uniform_alpha(length) if causal else np.full(length, 1 / length)
    means = {name: found[name].mean(0, dtype=np.float64) for name in LABELS}
    dims = {"residual_norm": ("layer", "key_pos"), "output_norm": ("layer", "head")}
    return {
        **{name: (dims.get(name, BY_HEAD), mean, _named(name)) for name, mean in means.items()},
        "alpha_low": (BY_HEAD, low, _named("alpha")),
        "alpha_high": (BY_HEAD, high, _named("alpha")),
        "alpha_null": ("key_pos", null, {"long_name": "alpha of uniform attention"}),
        "alpha_prompt": (("prompt", *BY_HEAD), alpha, _named("alpha")),
        "sink_rate": (BY_HEAD, over.mean(0), share),
        "sink_rate_mean": ("key_pos", over.mean((0, 1, 2)), rate),
        "sink_rate_mean_low": ("key_pos", rate_low, rate),
        "sink_rate_mean_high": ("key_pos", rate_high, rate),
    }


def _by_kind(alpha: np.ndarray, kinds: np.ndarray, null: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean alpha of each kind of token that occurs early enough, over all its tokens."""
    early = max(1, alpha.shape[-1] - FEW + 1)
    present = [kind for kind in range(len(KINDS)) if (kinds[:, :early] == kind).any()]
    weights, means, lows, highs, nulls = resamples(len(alpha), DRAWS, seed), [], [], [], []
    for kind in present:
        here = (kinds[:, :early] == kind).astype(float)  # [row, key]
        sums = np.einsum("rlhk,rk->rlh", alpha[..., :early], here)
        counts, drawn = here.sum(1), weights @ here.sum(1)
        drawn_sums = np.tensordot(weights[drawn > 0], sums, 1) / drawn[drawn > 0][:, None, None]
        means.append(sums.sum(0) / counts.sum())
        lows.append(interval(drawn_sums)[0])
        highs.append(interval(drawn_sums)[1])
        nulls.append((here * null[:early]).sum() / counts.sum())
    dims, say = ("layer", "head", "component"), {"long_name": "mean attention received by the kind of token"}
    return {
        "kind_alpha": (dims, np.stack(means, -1), say),
        "kind_alpha_low": (dims, np.stack(lows, -1), say),
        "kind_alpha_high": (dims, np.stack(highs, -1), say),
        "kind_alpha_null": ("component", np.array(nulls), {"long_name": "the same under uniform attention"}),
        "kind_share": ("component", np.array([(kinds == k).mean() for k in present]), {"long_name": "share of tokens"}),
        "component": ("component", [KINDS[kind] for kind in present]),
        "kind": (("prompt", "key_pos"), np.array(KINDS)[kinds]),
    }


def _controls(model: "Model", alpha: np.ndarray, front: bool, rows: int, epsilon: float, seed: int) -> dict[str, Any]:
    """Alpha and sink rate of position 0 for the text itself, random tokens, and one token repeated."""
    rng, length = np.random.default_rng(seed), alpha.shape[-1]
    ordinary = sorted(set(range(len(model.tokenizer))) - set(model.tokenizer.all_special_ids))
    random = rng.choice(ordinary, (rows, length))
    if front:
        random[:, 0] = model.tokenizer.bos_token_id
    repeated = np.repeat(rng.choice(ordinary, (rows, 1)), length, axis=1)
    firsts = [alpha[..., 0], *(measure(model, tokens)["alpha"][..., 0] for tokens in (random, repeated))]
    rate = {"long_name": f"share of heads and sequences with alpha > {epsilon} at position 0", "units": "share"}
    return {
        "control_alpha": (("measured", "layer", "head"), np.stack([a.mean(0) for a in firsts]), _named("alpha")),
        "control_rate": ("measured", np.array([(a > epsilon).mean() for a in firsts]), rate),
        "measured": ("measured", list(CONTROLS)),
    }


def _dataset(variables: dict[str, Any], tokens: np.ndarray, model: "Model") -> xr.Dataset:
    labels = {name: variables.pop(name) for name in ("component", "measured", "kind")}
    sizes = dict(zip(("prompt", *BY_HEAD), variables["alpha_prompt"][1].shape, strict=True))
    coords = {dim: np.arange(size) for dim, size in sizes.items()}
    token = (("prompt", "key_pos"), np.array([model.tokens(row) for row in tokens]))
    return xr.Dataset(variables, coords={**coords, **labels, "token": token})


def _mean_interval(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over the first axis, [layer, head, key]; a head at a time keeps it small."""
    low, high = np.empty(values.shape[1:]), np.empty(values.shape[1:])
    for layer, head in np.ndindex(*values.shape[1:3]):
        low[layer, head], high[layer, head] = interval(weights @ values[:, layer, head])
    return low, high
