"""Where on the residual stream each task's loss leans, and whether different tasks lean on different places."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import analysis, at_least_one, interval, resamples
from workbench.analyses._several import Encoded, answer_losses, check_differentiable, encoded, rows_of, said_of
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

LOW = 0.05
SHARE = {"long_name": "share of the saliency", "units": "share"}
ENTROPY = {"long_name": "entropy of the tasks' shares / ln K", "units": "share"}


@analysis(
    about="Share of every task in the loss gradient on the residual stream, by layer and token, beside shuffled tasks.",
    sign="entropy: 0 = one task alone leans on the place, 1 = all alike; under the null's 5 % point = tasks are apart",
    primary="share",
    paper="2507.21049 (Wang et al.): Rep-MTL, task saliency of a shared representation and its entropy",
)
def task_saliency(
    model: "Model",
    task: Task,
    *,
    tasks: str = "",
    positions: int = 8,
    scale: Literal["unit", "raw"] = "unit",
    draws: int = 200,
    batch: int = 32,
) -> xr.Dataset:
    """How much each task's loss would change with the residual stream that enters a block, token by token.

    The saliency of a prompt is |dL / dZ|, Z the stream that enters block l and L = -log p(answer | prompt) in nats at
    END. In the paper all tasks read one image and places are its pixels. Tasks of a language model read prompts of
    their own, so that no token is the same to two of them: a place is a distance from END here, which every prompt has,
    and a channel is a place too. P_t, the share of task t at a place, is its mean saliency over its own prompts, over
    the sum of the tasks'; the entropy of P is over ln K for K tasks.

    The paper averages the signed gradient over channels before it takes the absolute value. Where a LayerNorm reads the
    stream that average is 0, since a constant added to all channels changes nothing; here absolute values are averaged.

    The null gives every prompt to a task at random, as many to each. It says whether tasks differ, not why: at one
    distance from END each has words of its own.

    Args:
        model: from `workbench.load` or `workbench.wrap`, with raw weights.
        task: the first task; its clean prompts are read.
        tasks: the others; see `gradient_alignment`.
        positions: tokens up to END that are compared; fewer where a prompt is shorter.
        scale: `unit` lets the saliency of a prompt sum to 1 in each layer, so that shares are of places and not of how
            large a loss is; `raw` is the paper's.
        draws: of the bootstrap over prompts, and of the null.
        batch: prompts in one pass, at most.

    Returns:
        `share` [task, layer, pos] with 95 % intervals over prompts and `_null_low`, `_null_high` (95 % of shuffled
        tasks); `saliency` [task, layer, pos], mean |dL / dZ| in nats over one unit of one channel; `entropy` [layer,
        pos] and `channel_entropy` [layer] (mean over channels) with intervals, `_null` (mean), `_null_low` (5 % point)
        and `_p` (share of the shuffled at or under what was seen); `loss` [task, prompt]. `pos` counts back from END,
        which is 0.

    Raises:
        AnalysisError: for fewer than two tasks, folded weights, an adapter with other weights for every task, or no
            positions.
    """
    at_least_one(draws=draws, batch=batch, positions=positions)
    check_differentiable(model)
    read = encoded(model, task, tasks)
    found = _gathered(model, read, positions, batch)
    ds = _dataset(found, [each.task.title for each in read], scale, draws, task.seed)
    ds.attrs = said_of(read) | {"n": found.losses.shape[1], "scale": scale}
    ds.attrs["title"] = f"saliency of {', '.join(ds['task'].values)} in {model.reference}"
    return ds


@dataclass(frozen=True)
class Saliency:
    """Mean |dL / dZ| of each prompt, over channels or over positions; and the losses [task, prompt].

    by_pos [task, prompt, layer, pos], by_channel [task, prompt, layer, channel].
    """

    by_pos: np.ndarray
    by_channel: np.ndarray
    losses: np.ndarray


def _gathered(model: "Model", read: list[Encoded], positions: int, batch: int) -> Saliency:
    """The saliency of as many prompts of each task, those that were done."""
    from workbench.models.parameters import differentiable

    module = differentiable(model.plain).requires_grad_(False)
    mapping: Any = model.bridge.adapter.component_mapping
    blocks = list(module.get_submodule(mapping["blocks"].name))
    count = min(len(each.prompts) for each in read)
    wide = min(positions, *(int(each.prompts.lengths[:count].min()) for each in read))
    work = [(first, t) for first in range(0, count, batch) for t in range(len(read))]
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in read]
    for first, t in track(work, "task_saliency", len(work)):
        found[t].append(saliency_of(module, blocks, read[t].prompts, np.arange(first, min(first + batch, count)), wide))
    rounds = min(len(parts) for parts in found)
    if not rounds:
        raise Cancelled("Stopped before a batch of every task was done, so there is nothing to compare.")
    stacked = [[np.concatenate(part) for part in zip(*parts[:rounds], strict=True)] for parts in found]
    return Saliency(*(np.stack(part) for part in zip(*stacked, strict=True)))


def saliency_of(
    module: Any, blocks: list, prompts: Prompts, rows: np.ndarray, wide: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean |dL / dZ| of some prompts, Z what enters each of the blocks, at the last `wide` tokens; and their losses.

    Over channels [row, layer, pos], over these tokens [row, layer, channel]; losses [row].
    """
    import torch

    some = rows_of(prompts, rows)
    with torch.enable_grad(), _entering(blocks) as streams:
        losses = answer_losses(module, some)
    slopes = torch.stack(torch.autograd.grad(losses.sum(), streams), 1).abs()  # [row, layer, pos, channel]
    device = slopes.device
    at = torch.as_tensor(some.ends, device=device)[:, None] + torch.arange(1 - wide, 1, device=device)
    near = slopes.gather(2, at[:, None, :, None].expand(-1, slopes.shape[1], -1, slopes.shape[-1])).double()
    return near.mean(-1).cpu().numpy(), near.mean(-2).cpu().numpy(), losses.detach().double().cpu().numpy()


@contextlib.contextmanager
def _entering(blocks: list) -> "Iterator[list[torch.Tensor]]":
    """Within the block, the stream that enters each block is kept, to be differentiated by."""
    kept: list[torch.Tensor] = []

    def keep(block: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
        kept.append(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _shares(profile: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shares of the tasks [..., task, layer, place], even where no task leans on a place.

    Of profiles [task, prompt, layer, place], averaged with weights [..., task, prompt].
    """
    mean = np.einsum("...tp,tplx->...tlx", weights, profile, optimize=True)
    total = mean.sum(-3, keepdims=True)
    return np.divide(mean, total, out=np.full(mean.shape, 1 / len(profile)), where=total > 0)


def entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy of shares [..., task, layer, place] over that of even ones, [..., layer, place]."""
    safe = np.where(shares > 0, shares, 1)
    return -(shares * np.log(safe)).sum(-3) / np.log(shares.shape[-3])


def _dataset(found: Saliency, titles: list[str], scale: str, draws: int, seed: int) -> xr.Dataset:
    tasks, prompts = found.losses.shape
    rng = np.random.default_rng(seed)
    weights = np.stack([resamples(prompts, draws, seed + t) for t in range(tasks)], 1)  # [draw, task, prompt]
    orders = [rng.permutation(tasks * prompts) for _ in range(draws)]
    even = np.full((tasks, prompts), 1 / prompts)
    by_pos, by_channel = (_scaled(part, scale) for part in (found.by_pos, found.by_channel))
    share, drawn = _shares(by_pos, even), _shares(by_pos, weights)
    null = np.stack([_shares(_dealt(by_pos, order), even) for order in orders])
    variables: dict[str, Any] = {"share": (("task", "layer", "pos"), share, SHARE)}
    for ends, bounds in (("", interval(drawn)), ("_null", interval(null))):
        for side, bound in zip(("low", "high"), bounds, strict=True):
            variables[f"share{ends}_{side}"] = (("task", "layer", "pos"), bound, SHARE)
    say = {"long_name": "mean |dL / dZ|", "units": "nats"}
    variables["saliency"] = (("task", "layer", "pos"), found.by_pos.mean(1), say)
    variables |= _entropies("entropy", ("layer", "pos"), entropy(share), entropy(drawn), entropy(null))
    over = [entropy(_shares(by_channel, even)).mean(-1)]
    over += [np.stack([entropy(_shares(by_channel, w)).mean(-1) for w in weights])]
    over += [np.stack([entropy(_shares(_dealt(by_channel, order), even)).mean(-1) for order in orders])]
    variables |= _entropies("channel_entropy", ("layer",), *over)
    variables["loss"] = (("task", "prompt"), found.losses, {"long_name": "-log p(answer)", "units": "nats"})
    layers, wide = found.by_pos.shape[2:]
    coords = {"task": titles, "layer": np.arange(layers), "pos": np.arange(1 - wide, 1), "prompt": np.arange(prompts)}
    return xr.Dataset(variables, coords=coords)


def _scaled(profile: np.ndarray, scale: str) -> np.ndarray:
    """Profiles [..., place] as they are, or each prompt's with sum 1 in a layer."""
    total = profile.sum(-1, keepdims=True)
    return profile if scale == "raw" else np.divide(profile, total, out=np.zeros(profile.shape), where=total > 0)


def _dealt(profile: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Profiles [task, prompt, ...] with every prompt given to a task by an order of all of them."""
    return profile.reshape(-1, *profile.shape[2:])[order].reshape(profile.shape)


def _entropies(name: str, dims: tuple[str, ...], seen: np.ndarray, drawn: np.ndarray, null: np.ndarray) -> dict:
    """An entropy with its interval, null, and share of the null at or under it."""
    low, high = interval(drawn)
    at_or_under = (1 + (null <= seen + 1e-12).sum(0)) / (1 + len(null))
    found = {"": seen, "_low": low, "_high": high, "_null": null.mean(0), "_null_low": np.quantile(null, LOW, axis=0)}
    variables = {f"{name}{end}": (dims, values, ENTROPY) for end, values in found.items()}
    return variables | {f"{name}_p": (dims, at_or_under, ENTROPY | {"units": "p"})}
