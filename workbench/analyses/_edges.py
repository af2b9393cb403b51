"""Attribution to edges: gradients at the readers times differences of the writers, a batched product a layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.analyses._patching import Group, Runs, gap_between, groups, slopes_of, two_runs
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.edges import Edges
    from workbench.models.model import Model

MEMORY = 2e8  # bytes for what writers add in one pass
KEPT = ("z", "attention", "mlp", "keys", "values")  # of both runs


@dataclass
class Sums:
    """Sums over prompts of each edge's score, of its square, and of every other prompt's, float64 [reader, writer]."""

    total: np.ndarray
    squares: np.ndarray
    odd: np.ndarray
    count: int = 0
    odd_count: int = 0

    def add(self, scores: np.ndarray) -> None:
        """Add the scores of some prompts [prompt, reader, writer]."""
        odd = scores[(self.count + np.arange(len(scores))) % 2 == 1]
        self.total += scores.sum(0)
        self.squares += (scores**2).sum(0)
        self.odd += odd.sum(0)
        self.count += len(scores)
        self.odd_count += len(odd)

    @property
    def mean(self) -> np.ndarray:
        """Mean over prompts."""
        return self.total / self.count

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean."""
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0) / max(1, self.count - 1))

    @property
    def halves(self) -> np.ndarray:
        """Mean over either half of the prompts, [2, reader, writer]."""
        even = (self.total - self.odd) / (self.count - self.odd_count)
        return np.stack([even, self.odd / max(1, self.odd_count)])


def attribute(edges: "Edges", both: "Prepared", method: str, steps: int, what: str) -> Sums:
    """The scores of every edge, in units of the metric; see `edge_attribution` for the methods.

    Raises:
        Cancelled: when it was stopped before the first prompts were finished.
    """
    shape = len(edges.graph.readers), len(edges.graph.writers)
    sums = Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape))
    for group, run in track(list(zip(both.parts, both.runs, strict=True)), what, len(both.parts)):
        sums.add(_scores(edges, group, run, method, 1 if method == "eap" else steps))
    if not sums.count:
        raise Cancelled("Stopped before the first prompts were finished, so there is no result to keep.")
    return sums


@dataclass(frozen=True)
class Prepared:
    """A task's prompts in groups whose writers fit into one pass, with both runs and metrics [prompt] of each."""

    prompts: Prompts
    parts: list[Group]
    clean: np.ndarray
    corrupted: np.ndarray
    runs: list[Runs]
    gap: float


def prepared(model: "Model", task: Task, batch: int) -> Prepared:
    """Both runs of a task, for what is computed edge by edge.

    Raises:
        AnalysisError: when the corruption leaves the metric as it is.
    """
    prompts = task.encode(model.tokenizer, bos=model.bos)
    each = 8 * len(model.edges.graph.writers) * int(prompts.lengths.max()) * model.bridge.cfg.d_model
    parts = groups(prompts, task.metric, min(batch, max(1, int(MEMORY / each))))
    clean, corrupted, runs = two_runs(model, prompts, parts, *KEPT)
    return Prepared(prompts, parts, clean, corrupted, runs, gap_between(clean, corrupted, task))


def _scores(edges: "Edges", group: Group, run: Runs, method: str, steps: int) -> np.ndarray:
    """The scores of a group's prompts [prompt, reader, writer], means over the steps of gradient times difference."""
    import torch

    scores: torch.Tensor | None = None
    with torch.no_grad():
        for found, delta, first in _gradients(edges, group, run, method, steps):
            for readers, before, grads in found:
                writers = slice(first.start or 0, min(before, first.stop or before))
                if writers.start >= writers.stop:
                    continue
                flat = grads.flatten(2).to(delta.dtype)
                wrote = delta[:, : writers.stop - writers.start].flatten(2)
                if scores is None:
                    scores = flat.new_zeros(len(flat), *edges.graph.valid.shape)
                scores[:, readers, writers] += torch.bmm(flat, wrote.transpose(1, 2)) / steps  # type: ignore[index]
    assert scores is not None
    return scores.cpu().double().numpy()


def _gradients(edges: "Edges", group: Group, run: Runs, method: str, steps: int) -> Iterator[tuple]:
    """(gradients at the readers, difference of the writers, which writers) for each point of each line."""
    metric, start = slopes_of(edges.trunk, group), group.start
    low, high = run.corrupted.inputs[0][:, start:], run.clean.inputs[0][:, start:]
    if method == "activations":
        yield from _one_at_a_time(edges, run, metric, start, steps)
        return
    delta = edges.differences(run.clean, run.corrupted, start) if edges.additive else None
    for share in [0.0] if method == "eap" else [(step + 0.5) / steps for step in range(steps)]:
        hidden = low + share * (high - low)
        if delta is not None:
            yield edges.slopes(metric, hidden, run.corrupted, start), delta, slice(None)
            continue
        at = edges.attention_along(hidden, run.corrupted, start)
        moved = edges.differences(run.clean, run.corrupted, start, at)
        yield edges.slopes(metric, hidden, run.corrupted, start), moved, slice(None)


def _one_at_a_time(edges: "Edges", run: Runs, metric: Callable, start: int, steps: int) -> Iterator[tuple]:
    """The input, then each layer's heads, then its MLP, from corrupted to clean in the corrupted run."""
    graph, low, high = edges.graph, run.corrupted, run.clean
    at = None if edges.additive else [value[:, start:] for value in low.attention]
    delta = edges.differences(high, low, start, at)
    for share in [(step + 0.5) / steps for step in range(steps)]:

        def between(kind: str, layer: int, share: float = share) -> "torch.Tensor":
            a, b = (getattr(recorded, kind)[layer][:, start:] for recorded in (low, high))
            return a + share * (b - a)

        yield edges.slopes(metric, between("inputs", 0), low, start), delta[:, :1], slice(0, 1)
        for layer in range(graph.layers):
            hidden, first, last = low.inputs[layer][:, start:], graph.writer(layer, 0), graph.writer(layer)
            moved = edges.slopes(metric, hidden, low, start, layer=layer, attention=between("attention", layer))
            yield moved, delta[:, first:last], slice(first, last)
            given = {"attention": low.attention[layer][:, start:], "mlp": between("mlp", layer)}
            moved = edges.slopes(metric, hidden, low, start, layer=layer, **given)
            yield moved, delta[:, last : last + 1], slice(last, last + 1)
