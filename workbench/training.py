"""The one training loop: rows in, a loss for each task, one step; it knows no method, task or aggregator by name.

A run is decided by its spec: which rows each step reads follows from the seed and the step's number alone, so that two
runs of one seed read the same data in the same order, and a resumed run goes on as if it had never stopped.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from workbench.aggregators import TORCHJD, WEIGHTINGS, make_aggregator
from workbench.methods import METHODS
from workbench.registry import WorkbenchError
from workbench.spec import Spec
from workbench.tasks.pools import Pool, make_pool, padded

BETAS = (0.9, 0.98)
LEAST_RATE = 0.1  # of the learning rate, at the end of its cosine
EVALUATED = 64  # rows of a pass without gradients


class TrainingError(WorkbenchError):
    """A fine-tune that cannot go on."""


@dataclass(frozen=True)
class Step:
    """What one step was: number of steps done, loss of each task [task] in nats, gradient norm, rate, seconds."""

    done: int
    losses: list[float]
    norm: float
    rate: float
    seconds: float


@dataclass(frozen=True)
class Batch:
    """Rows of one pass: ids int64 [row, pos], and of each answer token its row, position, id and task, all [answer]."""

    ids: Tensor
    tasks: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor


def make_batch(rows: Sequence[np.ndarray], answers: Sequence[int], tasks: Sequence[int], device: Any) -> Batch:
    """A batch of rows whose last `answers` tokens are to be predicted, each for the task of that number."""
    at = np.repeat(np.arange(len(rows)), answers)
    ends = [np.arange(len(row) - count, len(row)) for row, count in zip(rows, answers, strict=True)]
    ids, positions = padded(rows), np.concatenate(ends)
    arrays = ids, np.asarray(tasks), at, positions - 1, ids[at, positions]
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))


def shares(pools: Sequence[Pool], spec: Spec) -> np.ndarray:
    """The mixture's weights [task], which sum to one."""
    weights = np.array([entry["weight"] for entry in spec.tasks])
    if spec.temperature is not None:
        weights = weights * np.array([len(pool.ids) for pool in pools]) ** (1 / spec.temperature)
    return weights / weights.sum()


def counts(weights: np.ndarray, batch: int) -> np.ndarray:
    """Rows of each task in a step, int [task]: `batch` in all by largest remainder, at least one each."""
    left = batch - len(weights)
    exact = weights * left
    found = np.floor(exact).astype(int)
    found[np.argsort(found - exact, kind="stable")[: left - found.sum()]] += 1
    return found + 1


class Training:
    """A module being tuned.

    Args:
        spec: what was asked for.
        module: the transformers model, which this object may change.
        tokenizer: its tokenizer.
        bos: whether rows begin with BOS.
        logs: where the spec's logger writes, if it has one.

    Raises:
        MethodError, TaskError: when the method does not fit the module, or the tasks the tokenizer.
        TrainingError: when a row is longer than the model takes.
    """

    def __init__(self, spec: Spec, module: Any, tokenizer: Any, bos: bool, logs: Path | None = None) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.spec, self.tokenizer, self.titles = spec, tokenizer, spec.titles
        AcceleratorState._reset_state()  # a process that ran another fine-tune keeps that one's precision
        options = {"log_with": spec.logger, "project_dir": logs} if spec.logger and logs else {}
        self.accelerator = Accelerator(cpu=spec.device == "cpu", mixed_precision=spec.precision, **options)
        if options:
            self.accelerator.init_trackers("workbench")
        torch.manual_seed(spec.seed)
        sizes = {"bos": bos, "examples": spec.examples, "held": spec.held, "seed": spec.seed}
        self.pools = [make_pool(entry, tokenizer, **sizes) for entry in spec.tasks]
        self._fits(module)
        self.attached = METHODS[spec.method].attach(module, spec.titles, **spec.options)
        self.module = self.attached.module.to(self.device)
        self.head = _bare(self.module).get_output_embeddings()
        self.named = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        self.weights = torch.from_numpy(shares(self.pools, spec)).float().to(self.device)
        self.counts = counts(shares(self.pools, spec), spec.batch)
        self.weighting = WEIGHTINGS.get(spec.aggregator, WEIGHTINGS["mean"])(len(self.pools)).to(self.device)
        self.aggregator = make_aggregator(spec.aggregator) if spec.aggregator in TORCHJD else None
        self.optimizer = torch.optim.AdamW(self._groups(), lr=spec.learning_rate, betas=BETAS)
        self.done, self.seconds, self.settled = 0, 0.0, True

    @property
    def device(self) -> Any:
        """Where it runs: the device asked for, or the best accelerate knows."""
        return torch.device(self.spec.device) if self.spec.device else self.accelerator.device

    def _fits(self, module: Any) -> None:
        context = getattr(module.config.get_text_config(), "max_position_embeddings", None) or math.inf
        for pool in self.pools:
            if pool.longest > context:
                raise TrainingError(
                    f"A row of '{pool.name}' has {pool.longest} tokens, but the model takes {context}; shorten it."
                )

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by the factor of their learning rate; those of the weighting learn at the plain rate."""
        groups: dict[float, list[Tensor]] = {1.0: list(self.weighting.parameters())}
        for name, value in self.named.items():
            factor = next((rate for part, rate in self.attached.rates.items() if part in name), 1.0)
            groups.setdefault(factor, []).append(value)
        decay = self.spec.weight_decay
        return [{"params": found, "factor": factor, "weight_decay": decay} for factor, found in groups.items() if found]

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to a tenth."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.spec.steps))
        warm = min(1.0, (step + 1) / max(self.spec.warm_up, 1))
        return self.spec.learning_rate * warm * (LEAST_RATE + (1 - LEAST_RATE) * cosine)

    def batch(self, step: int, tasks: Sequence[int]) -> Batch:
        """The rows that this process reads of the given tasks in a step."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        rows, answers, numbers = [], [], []
        for task in tasks:
            pool, count = self.pools[task], int(self.counts[task])
            for row in pool.drawn(step * count, count, self.spec.seed)[own::processes]:
                rows.append(pool.ids[row])
                answers.append(pool.answers[row])
                numbers.append(task)
        return make_batch(rows, answers, numbers, self.device)

    def scores(self, batch: Batch) -> Tensor:
        """Logits [answer, vocab] in float32 at least, of the tokens before each answer token."""
        with _head_reads(self.head, batch), self.accelerator.autocast():
            logits = self.module(input_ids=batch.ids, use_cache=False, **self.attached.inputs(batch.tasks)).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def losses(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of each task's answer tokens in nats [task], over all processes' rows; 0 for others."""
        each = cross_entropy(self.scores(batch), batch.targets, reduction="none")
        numbers, ones = batch.tasks[batch.rows], torch.ones_like(each)
        total = each.new_zeros(len(self.pools)).index_add(0, numbers, each)
        return total / self._summed(torch.zeros_like(total).index_add(0, numbers, ones)).clamp_min(1)

    def _summed(self, values: Tensor) -> Tensor:
        reduced: Any = self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values
        return reduced

    def step(self) -> Step:
        """Train one step.

        Raises:
            TrainingError: when a loss is no longer a number.
        """
        started, rate = time.perf_counter(), self.rate(self.done)
        self.settled = False
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._by_jacobian() if self.aggregator else self._by_loss()
        seen = self._summed(losses).tolist()
        for title, value in zip(self.titles, seen, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss of '{title}' is {value} at step {self.done + 1}; lower learning_rate from "
                    f"{self.spec.learning_rate:g}, or clip below {self.spec.clip:g}."
                )
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.spec.clip or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.done += 1
        self.settled = True
        self.seconds += time.perf_counter() - started
        self.accelerator.log(dict(zip((f"loss/{title}" for title in self.titles), seen, strict=True)), step=self.done)
        return Step(self.done, seen, norm.item(), rate, self.seconds)

    def _by_loss(self) -> Tensor:
        """Gradients of the weighed losses; of all tasks in one pass where the method lets them share it."""
        tasks = range(len(self.pools))
        passes = [list(tasks)] if self.attached.select is None else [[task] for task in tasks]
        found = torch.zeros(len(self.pools), device=self.device)
        for members in passes:
            losses = self._of(members)
            shown = torch.zeros_like(found)
            shown[members] = 1
            (self.weighting(losses, self.weights * shown)).backward()
            found += losses.detach()
        if self.accelerator.num_processes > 1:
            for value in self.named.values():
                value.grad = self._summed(torch.zeros_like(value) if value.grad is None else value.grad)
        return found

    def _of(self, tasks: list[int]) -> Tensor:
        if self.attached.select is not None:
            self.attached.select(tasks[0])
        return self.losses(self.batch(self.done, tasks))

    def _by_jacobian(self) -> Tensor:
        """The aggregation of the tasks' gradients; row k of the Jacobian is weighed K w_k, so 1 in an even mixture."""
        found = torch.zeros(len(self.pools), device=self.device)
        jacobian = torch.stack([self._gradient(task, found) for task in range(len(self.pools))])
        assert self.aggregator is not None
        whole = self.aggregator(self._summed(jacobian) * (len(found) * self.weights[:, None]).to(jacobian.dtype))
        for value, part in zip(self.named.values(), whole.split([v.numel() for v in self.named.values()]), strict=True):
            value.grad = part.view_as(value)
        return found

    def _gradient(self, task: int, found: Tensor) -> Tensor:
        loss = self._of([task])[task]
        found[task] = loss.detach()
        parts = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    def evaluate(self) -> list[dict[str, Any]]:
        """Of each task's held-out rows: `loss` in nats a row, `right` rows whose answer is the model's own, `n`.

        `each` says of every row in turn whether it was right, as 1 or 0.
        """
        found = [self.held_out(task) for task in range(len(self.pools))]
        return [
            {
                "loss": float(losses.mean()),
                "right": int(right.sum()),
                "n": len(right),
                "each": "".join("01"[hit] for hit in right.astype(int)),
            }
            for losses, right in found
        ]

    def held_out(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        """Loss in nats, float64, and whether the answer is the model's own, bool, of each held-out row of a task."""
        pool, losses, right = self.pools[task], [], []
        self.module.eval()
        if self.attached.select is not None:
            self.attached.select(task)
        for start in range(0, len(pool.held), EVALUATED):
            part = slice(start, start + EVALUATED)
            rows, answers = pool.held[part], pool.held_answers[part]
            batch = make_batch(rows, answers, [task] * len(rows), self.device)
            with torch.no_grad():
                scores = self.scores(batch)
            each = cross_entropy(scores, batch.targets, reduction="none").cpu().double()
            losses.append(torch.zeros(len(rows), dtype=each.dtype).index_add(0, batch.rows.cpu(), each).numpy())
            right.append(_right(scores.argmax(-1).cpu().numpy(), batch, pool.allowed[part]))
        return np.concatenate(losses), np.concatenate(right)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors."""
        found = {f"parameter.{name}": value.detach() for name, value in self.named.items()}
        found |= {f"weighting.{name}": value for name, value in self.weighting.state_dict().items()}
        for index, kept in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": value for name, value in kept.items()}
        found |= {"rng.cpu": torch.get_rng_state(), "done": torch.tensor(self.done)}
        found["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        if self.device.type == "cuda":
            found["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return {name: value.cpu().clone() for name, value in found.items()}

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Take the trained parameters of a state, which may be that of a run with fewer tasks."""
        with torch.no_grad():
            for name, value in self.named.items():
                value.copy_(state[f"parameter.{name}"])

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.adopt(state)
        self.weighting.load_state_dict(_under("weighting.", state))
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", state).items():
            index, _, what = name.partition(".")
            kept.setdefault(int(index), {})[what] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        torch.set_rng_state(state["rng.cpu"])
        if "rng.cuda" in state:
            torch.cuda.set_rng_state(state["rng.cuda"], self.device)
        self.done, self.seconds = int(state["done"]), float(state["seconds"])


def _under(start: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _right(predicted: np.ndarray, batch: Batch, allowed: Sequence[np.ndarray]) -> np.ndarray:
    """Whether every answer token of a row was predicted, bool [row]; of the last, any that is allowed."""
    rows, targets = batch.rows.cpu().numpy(), batch.targets.cpu().numpy()
    hit, last = predicted == targets, np.append(rows[1:] != rows[:-1], True)
    hit[last] = [token in ends for token, ends in zip(predicted[last], allowed, strict=True)]
    wrong = np.zeros(len(allowed), dtype=int)
    np.add.at(wrong, rows, ~hit)
    return wrong == 0


def _bare(module: Any) -> Any:
    return module.get_base_model() if hasattr(module, "get_base_model") else module


@contextlib.contextmanager
def _head_reads(head: Any, batch: Batch) -> Iterator[None]:
    """Within it the output head is given the tokens before the answers only, [answer, d_model]: most logits are unread.

    Virtual tokens that a method puts in front move every position by their number.
    """

    def choose(_: Any, args: tuple) -> tuple:
        hidden = args[0]
        return (hidden[batch.rows, batch.positions + hidden.shape[1] - batch.ids.shape[1]], *args[1:])

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
