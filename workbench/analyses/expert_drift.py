"""What a task lost to its experts between two checkpoints: what stays lost when only the routers are fitted again."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.analyses._expert_weights import SCORES, answer_losses, loaded, put, score, with_own_routers
from workbench.analyses._experts import RESAMPLES, ends, mean_of, routes, unit_of
from workbench.analyses._patching import Group, groups
from workbench.analyses._routing import entropy
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

APART = 1_000_003  # added to a task's seed for the prompts routers are fitted on
FEWEST = 8  # prompts, to be fitted on and to be measured
STRETCHES = 5  # of the fitting, after each of which every router is measured
EPSILON = 1e-6  # of AdamW: rounding errors of gradients that are 0 must not move a router
SPREAD = 0.25  # of a fresh router's logits, for an input of norm sqrt(d_model)
SNAPSHOTS = ("earlier", "later")
ROUTERS = ("own router", "fitted router")
CHANGES = {  # name: snapshot and router measured, less snapshot and router compared with
    "in all": ((1, 0), (0, 0)),
    "router": ((1, 0), (1, 1)),
    "experts": ((1, 1), (0, 0)),
    "experts, both fitted": ((1, 1), (0, 1)),
    "fitting alone": ((0, 1), (0, 0)),
}
PARTS = ("router", "experts", "rest")


@analysis(
    about="Whether a task is lost between two checkpoints by the routers, or by the experts: the routers fitted again.",
    sign="loss_change: nats, positive = worse; experts: what is lost even with a freshly fitted router",
    primary="loss_change",
    paper="2602.01990 (SAME): expert drift = experts of a later snapshot, only the router retrained, on the first task",
    other="later",
)
def expert_drift(
    model: "Model",
    task: Task,
    *,
    later: str = "",
    rest: Literal["later", "earlier"] = "later",
    steps: int = 200,
    rate: float = 0.01,
    examples: int = 512,
    draws: int = 1,
    batch: int = 32,
) -> xr.Dataset:
    """The task's score at two checkpoints, with their own routers and with routers fitted again to the task.

    Only the routers are trained (AdamW, the rate falling to 0 along half a cosine), on the loss of the answers of other
    prompts than those measured, and at both checkpoints in the same way; at the earlier one this is the control: what
    fitting alone gives. Every fit is started from the checkpoint's own router and from fresh ones; that with the least
    loss over its last stretch of training is the fitted router. With m the mean over prompts, the change in all splits
    as [m(later, own) - m(later, fitted)] + [m(later, fitted) - m(earlier, own)]: by the router, and by the experts.
    Entropy is that of the shares of all choices, over ln of the number of experts: 1 where all are used alike.

    Args:
        model: the earlier checkpoint.
        task: whose prompts are measured. The fit draws others; a task of given records is fitted on every second one.
        later: reference of the later checkpoint; empty for the model's own without its `@...`: the final weights.
        rest: whose weights other than experts and routers are used for the later one: its own, or the earlier one's.
        steps: of each fit.
        rate: the learning rate at the start.
        examples: prompts to fit on, before those that are measured too are left out.
        draws: fresh routers a fit is started from, beside the own.
        batch: prompts in a step, and in a forward pass.

    Returns:
        By snapshot (`measured`) and router (`method`): `loss` (nats, of the answer), `accuracy`, `metric`; by layer
        too: `entropy`. `loss_change`, `accuracy_change`, `metric_change` by what changed (`component`). All with
        `_low`, `_high` (prompts resampled). `loss_start` [measured, seed, step], of every start (0: the own router) on
        the prompts measured; `loss_fitted` [measured, seed], in the last stretch on those it was fitted on; `chosen`
        [measured]. Attributes `changed_router`, `changed_experts`, `changed_rest`: norm of what changed over that of
        what was. When stopped early: the routers as they were after the last stretch that all went through.

    Raises:
        AnalysisError: when the checkpoints have other shapes, the weights are not float32 or float64, or there are too
            few prompts.
        ModelError: when a model has no routers or they cannot be believed, or there is no later checkpoint.
    """
    at_least_one(steps=steps, examples=examples, draws=draws, batch=batch)
    _refuse_coarse(model)
    prompts, lessons = _prompts(model, task, examples)
    second = _later(model, later, rest)
    parts, rng = groups(prompts, task.metric, batch), np.random.default_rng(task.seed)
    fits = [_Fit(with_own_routers(each), seed, steps, rate) for each in (model, second) for seed in range(draws + 1)]
    for fit in fits:
        fit.measure(parts, len(prompts))
    batches = [lessons.batch(rng, batch) for _ in range(steps)]
    stops = np.unique(np.linspace(0, steps, STRETCHES + 1).round().astype(int))
    work = [(step, fit) for a, b in itertools.pairwise(stops) for fit in fits for step in range(a, b)]
    for step, fit in track(work, f"expert_drift {task.name}", len(work)):
        fit.learn(*batches[step])
        if step + 1 in stops:
            fit.measure(parts, len(prompts))
    done = min(len(fit.scores) for fit in fits)
    if done < 2:
        raise Cancelled("Stopped before the routers were fitted, so there is no result to keep.")
    ds = _dataset([fits[: draws + 1], fits[draws + 1 :]], stops[:done], task)
    ds = ds.assign_coords(layer=model.routers.layers)
    ds.attrs = {"n": len(prompts), "metric_name": task.metric, "corruption": task.corruption, "rest": rest}
    ds.attrs |= {"later": second.reference, "later_hash": second.hash, "fitted_on": len(lessons.rows)}
    return ds.assign_attrs({f"changed_{name}": value for name, value in _changed(model, second).items()})


def _refuse_coarse(model: "Model") -> None:
    if model.attrs["dtype"] not in ("float32", "float64"):
        raise AnalysisError(
            f"Routers are fitted in float32, but this model is in {model.attrs['dtype']}; load it with dtype='float32'."
        )


@dataclass(frozen=True)
class _Lessons:
    """What routers are fitted on: tokens int64 [pos] and answers of each prompt, and its length."""

    rows: list[np.ndarray]
    answers: list[np.ndarray]

    def batch(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Random prompts of one length, int64 [row, pos], and their answers; a length as often as it has prompts."""
        lengths = np.array([len(row) for row in self.rows])
        same = np.flatnonzero(lengths == rng.choice(lengths))
        drawn = rng.choice(same, min(size, len(same)), replace=False)
        return np.stack([self.rows[index] for index in drawn]), [self.answers[index] for index in drawn]


def _prompts(model: "Model", task: Task, examples: int) -> tuple[Prompts, _Lessons]:
    """The prompts that are measured, and others to fit on."""
    measured, other = task, replace(task, n=examples, seed=task.seed + APART)
    if task.records:
        measured, other = (replace(task, records=part, n=len(part)) for part in (task.records[::2], task.records[1::2]))
    prompts, more = (each.encode(model.tokenizer, bos=model.bos) for each in (measured, other) if each.n)
    seen = {tokens.tobytes() for tokens in prompts.clean}
    keep = [index for index, tokens in enumerate(more.clean) if tokens.tobytes() not in seen]
    if min(len(prompts), len(keep)) < FEWEST:
        raise AnalysisError(
            f"'{task.name}' gives {len(prompts)} prompts to measure and {len(keep)} others to fit routers on; both "
            f"must be {FEWEST} or more: give more examples (or records), or a task with more different prompts."
        )
    return prompts, _Lessons([more.clean[index] for index in keep], [more.answers[index] for index in keep])


def _later(model: "Model", later: str, rest: str) -> "Model":
    """The later checkpoint, or the earlier one with its experts and routers."""
    own = str(model.spec["reference"])
    later = later or (own if Path(own).is_dir() else own.partition("@")[0])
    if not later:
        raise AnalysisError("A live model has no reference, so name the later checkpoint: later='zoo/...' or a path.")
    other = loaded(model, later)
    shapes = [{name: tuple(p.shape) for name, p in each.plain.named_parameters()} for each in (model, other)]
    differ = [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]
    if differ:
        raise AnalysisError(
            f"'{later}' differs from '{model.reference}' in the shape of {differ[0]}; give a checkpoint of one model."
        )
    if rest == "later":
        return other
    mixed = with_own_routers(model).routers
    for layer, pair in other.routers.parts.items():
        for mine, theirs in zip(mixed.parts[layer], pair, strict=True):
            put(mine, theirs.state_dict())
    return replace(model, plain=mixed.module, reference=other.reference, hash=other.hash)


@dataclass
class _Fit:
    """A router of each layer while it is fitted, and what was measured before and after every stretch.

    Seed 0 starts from the model's own routers, others from small normal weights and no bias. scores: [score, prompt];
    counts: choices [prompt, layer, expert]; losses: of each step.
    """

    model: "Model"
    seed: int
    steps: int
    rate: float
    scores: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    learned: "list[torch.Tensor]" = field(init=False)
    optimizer: "torch.optim.Optimizer" = field(init=False)

    def __post_init__(self) -> None:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        routers = [router for router, _ in self.model.routers.parts.values()]
        for router in routers:
            own = dict(router.named_parameters())
            put(router, {name: self._start(value, generator) for name, value in own.items()})
        self.learned = [value.requires_grad_() for router in routers for value in router.parameters()]
        self.optimizer = torch.optim.AdamW(self.learned, lr=self.rate, eps=EPSILON)

    def _start(self, own: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        import torch

        if self.seed == 0:
            return own.detach().clone()
        if own.ndim < 2:
            return torch.zeros_like(own)
        return (torch.randn(own.shape, generator=generator) * SPREAD / math.sqrt(own.shape[-1])).to(own)

    def learn(self, tokens: np.ndarray, answers: list[np.ndarray]) -> None:
        """One step on prompts [row, pos]."""
        from workbench.models.ends import run_base, unembed

        module = self.model.routers.module
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (1 + math.cos(math.pi * len(self.losses) / self.steps)) / 2
        last = run_base(module, self.model.tensor(tokens)).last_hidden_state[:, -1]
        loss = answer_losses(unembed(module, last), answers).mean()
        self.optimizer.zero_grad()
        loss.backward(inputs=self.learned)
        self.optimizer.step()
        self.losses.append(loss.item())

    def measure(self, parts: list[Group], count: int) -> None:
        """Score the prompts and count what they use, BOS left out."""
        layers, experts = self.model.routers.layers, self.model.routers.experts
        scores, counts = np.empty((len(SCORES), count)), np.empty((count, len(layers), experts))
        for part in parts:
            normed, heard = routes(self.model, self.model.tensor(part.clean))
            scores[:, part.rows] = score(self.model, part, normed)
            for place, layer in enumerate(layers):
                chosen = heard[layer].chosen[:, int(self.model.bos) :].flatten(1).cpu().numpy()
                counts[part.rows, place] = (chosen[..., None] == np.arange(experts)).sum(1)
        self.scores.append(scores)
        self.counts.append(counts)

    def final(self, stops: np.ndarray) -> float:
        """Mean loss of the steps in the last stretch."""
        return float(np.mean(self.losses[stops[-2] : stops[-1]]))


def _dataset(fits: list[list[_Fit]], stops: np.ndarray, task: Task) -> xr.Dataset:
    """What was measured, of fits by snapshot and start."""
    last, losses = len(stops) - 1, np.array([[fit.final(stops) for fit in each] for each in fits])
    chosen = losses.argmin(1)
    used = [(each[0], 0, each[best], last) for each, best in zip(fits, chosen, strict=True)]
    scores = np.array(
        [[own.scores[a], fitted.scores[b]] for own, a, fitted, b in used]
    )  # [snapshot, router, score, ..]
    counts = np.array([[own.counts[a], fitted.counts[b]] for own, a, fitted, b in used])
    start = np.array([[[each[0].mean() for each in fit.scores[: last + 1]] for fit in each] for each in fits])
    nats = {"long_name": "loss of the answer", "units": "nats"}
    variables: dict[str, tuple] = dict(_scored(scores, task))
    variables |= ends("entropy", ("measured", "method", "layer"), *_entropies(counts, task.seed))
    variables["loss_start"] = (("measured", "seed", "step"), start, nats)
    variables["loss_fitted"] = (("measured", "seed"), losses, nats | {"long_name": "loss on what it was fitted on"})
    variables["chosen"] = (
        "measured",
        chosen.astype(np.int8),
        {"long_name": "start of the fitted router", "units": "1"},
    )
    coords = {"measured": list(SNAPSHOTS), "method": list(ROUTERS), "component": list(CHANGES), "step": stops}
    seeds = np.arange(len(fits[0]))
    return xr.Dataset(variables, coords=coords | {"seed": seeds})


def _scored(scores: np.ndarray, task: Task) -> Iterator[tuple[str, tuple]]:
    """Scores, and their changes, as variables; of scores [snapshot, router, score, prompt]."""
    says = (
        {"long_name": "loss of the answer", "units": "nats"},
        {"long_name": "share of prompts with an answer above every wrong one", "units": "share"},
        {"long_name": "metric", "units": unit_of(task)},
    )
    for place, (name, say) in enumerate(zip(SCORES, says, strict=True)):
        values = np.moveaxis(scores[:, :, place], -1, 0)
        changes = np.stack([values[:, *after] - values[:, *before] for after, before in CHANGES.values()], -1)
        change = say | {"long_name": f"change of {say['long_name']}", "signed": 1}
        yield from ends(name, ("measured", "method"), mean_of(values, task.seed), say).items()
        yield from ends(f"{name}_change", ("component",), mean_of(changes, task.seed), change).items()


def _entropies(counts: np.ndarray, seed: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], dict[str, Any]]:
    """Normalised entropy of shares with its interval, of counts [snapshot, router, prompt, layer, expert]."""

    def of(summed: np.ndarray) -> np.ndarray:
        return entropy(summed / summed.sum(-1, keepdims=True)) / np.log(summed.shape[-1])

    by_prompt = np.moveaxis(counts, 2, 0)
    drawn = of(np.tensordot(resamples(len(by_prompt), RESAMPLES, seed), by_prompt, 1))
    say = {"long_name": "entropy of the shares of all choices, over ln E", "units": "1"}
    return (of(by_prompt.sum(0)), *interval(drawn)), say


def _changed(model: "Model", later: "Model") -> dict[str, float]:
    """For routers, experts and other weights, the norm of the change over that of the earlier ones."""
    sums = {name: np.zeros(2) for name in PARTS}
    theirs = dict(later.routers.module.named_parameters())
    kinds = {
        id(value): kind
        for pair in model.routers.parts.values()
        for kind, part in zip(PARTS, pair, strict=False)
        for value in part.parameters()
    }
    for name, value in model.routers.module.named_parameters():
        before, after = value.detach().double(), theirs[name].detach().double()
        sums[kinds.get(id(value), "rest")] += [float((after - before).square().sum()), float(before.square().sum())]
    return {name: float(np.sqrt(change / (was or 1))) for name, (change, was) in sums.items()}
