"""Every expert closed, one at a time: what a task and running text lose, beside losing any expert at as many tokens."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import analysis, at_least_one
from workbench.analyses._experts import (
    RESAMPLES,
    controls,
    ends,
    last_logits,
    mean_of,
    plain_metrics,
    refuse_few,
    routes,
    unit_of,
)
from workbench.analyses._patching import Group, chunks, gap_between, groups, share
from workbench.analyses._sinks import documents
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

MEANING = {
    "close": "its logit is minus infinity, and the family's own rule chooses and weighs among the others",
    "zero": "its weight is zero, and the others keep theirs",
}
BY = ("layer", "expert")


@dataclass(frozen=True)
class _Part:
    """Sequences of one length, int64 [row, pos]: prompts or running text (`kind`), and their rows in the whole.

    `read` gives a number a row, from normed last residuals of several copies of them [copy, row]; `plain` [row] is that
    of the pass with nothing changed.
    """

    kind: Literal["prompts", "text"]
    rows: np.ndarray
    tokens: "torch.Tensor"
    read: "Callable[[torch.Tensor], np.ndarray]"
    plain: np.ndarray


class _Tally:
    """What was measured of prompts or of text.

    values [row, layer, expert] without the expert; random [layer, expert, draw], sums over rows of the controls; used
    [layer, expert], tokens that use the expert, of `tokens` in all.
    """

    def __init__(self, parts: list[_Part], layers: int, experts: int, draws: int) -> None:
        count = sum(len(part.rows) for part in parts)
        self.plain = np.empty(count)
        self.values = np.empty((count, layers, experts))
        self.random = np.zeros((layers, experts, draws))
        self.used = np.zeros((layers, experts))
        self.tokens = sum(part.tokens.numel() for part in parts)
        for part in parts:
            self.plain[part.rows] = part.plain

    def cut(self, layers: int) -> "_Tally":
        """The first layers only."""
        self.values, self.random, self.used = self.values[:, :layers], self.random[:layers], self.used[:layers]
        return self

    @property
    def drawn(self) -> np.ndarray:
        """Mean over rows of the controls, [layer, expert, draw]."""
        return self.random / len(self.plain)


@analysis(
    about="Each expert closed or given no weight: what the task and running text lose, beside random experts.",
    sign="lost: share of the clean-to-corrupted drop, 0 = nothing, 1 = all; loss_change: nats, positive = it hurts",
    primary="lost",
)
def expert_ablation(
    model: "Model",
    task: Task,
    *,
    mode: Literal["close", "zero"] = "close",
    module: str = "",
    length: int = 64,
    sequences: int = 16,
    draws: int = 20,
    batch: int = 64,
) -> xr.Dataset:
    """What goes when the tokens that use an expert must do without it, for every expert of every layer that routes.

    lost = (m_clean - m_without) / (m_clean - m_corrupted), m means over prompts. A control of an expert takes away, in
    each sequence, one of their experts from as many random tokens as use that expert there. A token that does not use
    it keeps its routing to the last bit. It costs a pass for each expert and for each of its controls.

    Of a routed adapter skills are the experts, at one routed module. Where every token uses all of them (Poly, X-LoRA)
    a control takes a random skill from each token.

    Args:
        model: a mixture of experts or a routed adapter whose routing can be read.
        task: whose clean prompts, and whose running text, are measured.
        mode: see `MEANING`.
        module: of an adapter, the routed module of a layer, like `q_proj`; the first, if left out.
        length: tokens in a sequence of running text, BOS included.
        sequences: how many of them.
        draws: controls of each expert, 20 or more.
        batch: prompts or sequences in one forward pass, or those of several controls.

    Returns:
        By layer that routes and expert: `lost` and `metric_change` (metric without less with) of the prompts,
        `loss_change` of the text (nats a token), each with `_low` and `_high` (prompts or sequences resampled); for
        `lost` and `loss_change` the controls `_random` [layer, expert, seed], their mean `_null`, central 95 %
        `_null_low`, `_null_high`, and `_p`, the share of controls that lose as much; `load` and `load_text`, the share
        of tokens that use the expert. When stopped early: the layers that were finished.

    Raises:
        AnalysisError: when corrupted and clean prompts give the same metric, or a count is too small.
        ModelError: when the model has no routers, or they cannot be believed.
    """
    at_least_one(sequences=sequences, batch=batch)
    refuse_few(draws)
    model = model.routed(task.name, module)
    text = documents(model, task, length, sequences, batch)
    layers, prompts = model.routers.layers, task.encode(model.tokenizer, bos=model.bos)
    chosen = groups(prompts, task.metric, batch)
    clean, corrupted = plain_metrics(model, prompts, chosen)
    gap_between(clean, corrupted, task)
    parts = [_of_prompts(model, group) for group in chosen] + _of_text(model, text, batch)
    tallies = {
        kind: _Tally([part for part in parts if part.kind == kind], len(layers), model.routers.experts, draws)
        for kind in ("prompts", "text")
    }
    work = list(itertools.product(range(len(layers)), range(len(parts))))
    left = Counter(at for at, _ in work)
    for at, index in track(work, f"expert_ablation {task.name}", len(work)):
        rng = np.random.default_rng([task.seed, at, index])
        take = _Taking(model, mode, layers[at], batch)
        _measure(take, parts[index], rng, (tallies[parts[index].kind], at))
        left[at] -= 1
    finished = sum(left[at] == 0 for at in range(len(layers)))
    if not finished:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    ds = _dataset(tallies["prompts"].cut(finished), tallies["text"].cut(finished), clean - corrupted, task)
    ds = ds.assign_coords(layer=layers[:finished])
    ds.attrs = {
        "corruption": task.corruption,
        "metric_name": task.metric,
        "n": len(prompts),
        "length": length,
        "sequences": sequences,
        "mode": mode,
        "meaning": MEANING[mode],
        "clean": float(clean.mean()),
        "corrupted": float(corrupted.mean()),
        "loss": float(tallies["text"].plain.mean()),
    }
    ds.attrs |= {"module": model.routers.name} if model.routers.name else {}
    return ds


def _of_prompts(model: "Model", group: Group) -> _Part:
    tokens = model.tensor(group.clean)

    def read(normed: "torch.Tensor") -> np.ndarray:
        return group.meter(last_logits(model, normed))

    return _Part("prompts", group.rows, tokens, read, read(model.routers.run(tokens))[0])


def _of_text(model: "Model", text: np.ndarray, batch: int) -> list[_Part]:
    rows = np.arange(len(text))
    return [_one_of_text(model, text, rows[start : start + batch]) for start in range(0, len(text), batch)]


def _one_of_text(model: "Model", text: np.ndarray, rows: np.ndarray) -> _Part:
    tokens = model.tensor(text[rows])

    def read(normed: "torch.Tensor") -> np.ndarray:
        losses = model.routers.losses(normed, tokens.repeat(len(normed) // len(tokens), 1))
        return losses.cpu().double().mean(1).numpy().reshape(-1, len(tokens))

    return _Part("text", rows, tokens, read, read(model.routers.run(tokens))[0])


def _measure(take: "_Taking", part: _Part, rng: np.random.Generator, into: tuple[_Tally, int]) -> None:
    """One layer's experts taken away from one part, each beside its controls; `into` the tally's layer."""
    tally, at = into
    chosen = routes(take.model, part.tokens)[1][take.layer].chosen
    for expert in range(take.model.routers.experts):
        lost = chosen == expert
        count = lost.sum((1, 2)).cpu().numpy()
        other = [random_slots(count, tuple(chosen.shape), rng) for _ in range(tally.random.shape[-1])]
        found = take(part, chosen, [lost, *map(take.model.tensor, other)])
        tally.used[at, expert] += count.sum()
        tally.values[part.rows, at, expert] = found[0]
        tally.random[at, expert] += found[1:].sum(1)


def random_slots(count: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """One of the experts of `count` [row] random tokens of each row, bool [row, pos, k] of the shape given."""
    rows, length, k = shape
    rank = rng.random((rows, length)).argsort(1).argsort(1)
    return (rank < count[:, None])[..., None] & (rng.integers(k, size=(rows, length, 1)) == np.arange(k))


@dataclass(frozen=True)
class _Taking:
    """How experts of a layer are taken away from tokens, in passes of at most `batch` rows."""

    model: "Model"
    mode: str
    layer: int
    batch: int

    def __call__(self, part: _Part, chosen: "torch.Tensor", masks: "list[torch.Tensor]") -> np.ndarray:
        """What is read [mask, row] when tokens lose those of the experts chosen [row, pos, k] that a mask says."""
        found = np.tile(part.plain, (len(masks), 1))
        changing = [index for index, mask in enumerate(masks) if mask.any()]  # else nothing is changed
        for some in chunks(len(changing), self.batch // len(part.rows)):
            mine = [changing[index] for index in some]
            found[mine] = part.read(self._run(part.tokens, chosen, [masks[index] for index in mine]))
        return found

    def _run(self, tokens: "torch.Tensor", chosen: "torch.Tensor", masks: "list[torch.Tensor]") -> "torch.Tensor":
        """Normed last residuals of a copy of the tokens for each mask."""
        import torch

        lost, chosen = torch.cat(masks), chosen.repeat(len(masks), 1, 1)

        def close(logits: "torch.Tensor") -> "torch.Tensor":
            shut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, lost)
            return logits.masked_fill(shut, -torch.inf)

        def silence(same: "torch.Tensor", weights: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
            return same, weights.masked_fill(lost, 0)

        tokens = tokens.repeat(len(masks), 1)
        if self.mode == "close":
            return self.model.routers.run(tokens, rescore={self.layer: close})
        return self.model.routers.run(tokens, reroute={self.layer: silence})


def _dataset(prompts: _Tally, text: _Tally, gap: np.ndarray, task: Task) -> xr.Dataset:
    seed = task.seed
    fall, change = prompts.plain[:, None, None] - prompts.values, text.values - text.plain[:, None, None]
    lost, hurt = share(fall, gap, RESAMPLES, seed), mean_of(change, seed)
    say = {"long_name": "lost metric", "units": "share", "signed": 1}
    raw = {"long_name": "change of the metric", "units": unit_of(task), "signed": 1}
    nats = {"long_name": "change of next-token loss", "units": "nats", "signed": 1}
    drawn = (prompts.plain.mean() - prompts.drawn) / gap.mean()
    variables = ends("lost", BY, lost, say) | controls("lost", BY, drawn, lost[0], say)
    variables |= ends("metric_change", BY, mean_of(-fall, seed), raw) | ends("loss_change", BY, hurt, nats)
    variables |= controls("loss_change", BY, text.drawn - text.plain.mean(), hurt[0], nats)
    for name, tally, where in (("load", prompts, "the prompts"), ("load_text", text, "the running text")):
        load = {"long_name": f"share of the tokens of {where} that use the expert", "units": "share"}
        variables[name] = (BY, tally.used / tally.tokens, load)
    return xr.Dataset(variables, coords={"expert": np.arange(lost[0].shape[1]), "seed": np.arange(drawn.shape[-1])})
