"""Gradient alignment of tasks against the bare passes it is made of, all gradients held, and torchjd's Jacobian.

One random GPT-2, random prompts of 24 tokens, one process and one thread; ways take turns, medians are shown. The unit
is a loop of forward and backward passes, one for each batch of each task, whose gradients are thrown away. `ours` is
all that `gradient_alignment` measures: inner products of all gradients on every layer, matrix and head, intervals,
ceilings. `held` keeps every gradient and multiplies them as one matrix; `jac` is torchjd.autojac.jac on all losses,
`rows` the same a row at a time, both with the inner products of the whole Jacobian alone. MB: growth of memory.

python benchmarks/gradients.py [--shapes tiny,small] [--tasks 2,4,8] [--batches 4] [--prompts 8] [--ways held,jac]
"""

import argparse

import numpy as np
import torch
from clock import Clock
from torchjd.autojac import jac
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.analyses._gradients import measures
from workbench.analyses._several import Encoded, answer_losses, batches_of, rows_of
from workbench.analyses.gradient_alignment import divided, gathered
from workbench.models.load import wrap
from workbench.models.parameters import differentiable
from workbench.progress import reporting
from workbench.tasks import Prompts, Task
from workbench.zoo.language import tokenizer

SHAPES = {
    "small": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "tiny": {"n_layer": 4, "n_head": 8, "n_embd": 256, "vocab_size": 4096},
}
LENGTH = 24
HELD = 12e9  # bytes that all gradients may take in the ways that hold them


def random_task(number: int, prompts: int) -> Encoded:
    """Random prompts, each with a random answer."""
    rng = np.random.default_rng(number)
    tokens, answers = rng.integers(3, 400, (prompts, LENGTH)), rng.integers(3, 400, (prompts, 1))
    empty: list = [{} for _ in range(prompts)]
    read = Prompts(list(tokens), list(tokens), list(answers), list(answers), empty, [""] * prompts, {})
    return Encoded(Task(f"task {number}", "none", prompts, number), read)


class Ways:
    """The ways to compare the gradients of some tasks of a model."""

    def __init__(self, model, read: list[Encoded], batches: int) -> None:
        self.model, self.read, self.batches = model, read, batches
        self.module, self.division = differentiable(model.plain), divided(model)
        self.parameters = list(self.module.parameters())
        parts = [batches_of(each.prompts, batches) for each in read]
        self.work = [(each.prompts, parts[t][b]) for b in range(batches) for t, each in enumerate(read)]

    def loop(self) -> None:
        """The passes alone."""
        for prompts, rows in self.work:
            self.gradient(prompts, rows)

    def gradient(self, prompts: Prompts, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """One forward and backward pass."""
        return torch.autograd.grad(answer_losses(self.module, rows_of(prompts, rows)).mean(), self.parameters)

    def ours(self) -> np.ndarray:
        """Everything the analysis measures; the cosines on the whole model."""
        with reporting(lambda what, done, total: True):
            grams, _ = gathered(self.model, self.division, self.read, self.batches, 10**6)
        return measures(grams.of(self.division.units))["cosine"][0]

    def held(self) -> np.ndarray:
        """Every gradient kept, as one matrix."""
        rows = [torch.cat([part.flatten() for part in self.gradient(*each)]) for each in self.work]
        return self._cosines(torch.stack(rows))

    def jac(self, chunk: int | None = None) -> np.ndarray:
        """The Jacobian of all losses."""
        losses = [answer_losses(self.module, rows_of(*each)).mean() for each in self.work]
        found = jac(losses, self.parameters, parallel_chunk_size=chunk)
        return self._cosines(torch.cat([table.flatten(1) for table in found], 1))

    def _cosines(self, rows: torch.Tensor) -> np.ndarray:
        mean = rows.view(self.batches, len(self.read), -1).mean(0).double()
        scaled = torch.nn.functional.normalize(mean, dim=1)
        return (scaled @ scaled.T).numpy()


def random_model(shape: str):
    """A model of a shape with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(n_positions=64, initializer_range=0.05, **SHAPES[shape])
    return wrap(GPT2LMHeadModel(config).eval(), tokenizer(), override=True)


def row(shape: str, model, tasks: int, o: argparse.Namespace, clock: Clock) -> str:
    """One line of the table; ways that would need too much memory are left out."""
    ways = Ways(model, [random_task(number, o.prompts * o.batches) for number in range(tasks)], o.batches)
    fits = 3 * tasks * o.batches * 4 * ways.division.sizes.sum() < HELD
    peers = {"held": ways.held, "rows": lambda: ways.jac(1), "jac": ways.jac}
    more = {name: way for name, way in peers.items() if fits and name in o.ways.split(",")}
    times, memory, found = clock.turns(o.repeats, loop=ways.loop, ours=ways.ours, **more)
    names = ("ours", "held", "rows", "jac")
    ratios = "".join(f"{times[n] / times['loop']:7.2f}x" if n in times else f"{'-':>8}" for n in names)
    space = "".join(f"{memory[n]:7.0f}" if n in memory else f"{'-':>7}" for n in ("loop", *names))
    gaps = [abs(found["ours"] - found[name]).max() for name in more]
    gap = f"{max(gaps):.0e}" if gaps else "-"
    return f"{shape:6} {tasks:5} {1000 * times['loop']:8.0f} ms{ratios} {space}  {gap}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="tiny,small")
    parser.add_argument("--tasks", default="2,4,8")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8, help="in a batch")
    parser.add_argument("--ways", default="held,rows,jac", help="to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock("cpu")
    columns = "".join(f"{name:>8}" for name in ("ours", "held", "rows", "jac"))
    space = "".join(f"{name:>7}" for name in ("loop", "ours", "held", "rows", "jac"))
    print(f"{'shape':6} {'tasks':>5} {'loop':>11}{columns} {space} MB  gap")
    for shape in o.shapes.split(","):
        model = random_model(shape)
        for tasks in map(int, o.tasks.split(",")):
            print(row(shape, model, tasks, o, clock), flush=True)


if __name__ == "__main__":
    main()
