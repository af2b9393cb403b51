"""What a fine-tune costs over the plain PyTorch loop it could be written as, and what its first second of waiting is.

Both train the same LoRA on the same rows of the shipped model, one thread, taking turns. The plain loop calls the
module, takes the cross-entropy of the answers, and steps AdamW; it gathers no losses by task, clips nothing, writes
nothing. Ours does all of that, with the log written to disk and no checkpoint in between; its batches are made anew at
each step, those of the plain loop before the clock starts.

python benchmarks/tune.py [--steps 60] [--repeats 3] [--device cpu] [--model zoo/tasks]
"""

import argparse
import os
import shutil
import tempfile

import torch
from clock import Clock
from torch.nn.functional import cross_entropy

from workbench.runs import Run
from workbench.spec import Spec, read_spec
from workbench.training import BETAS
from workbench.tuning import make_training, tune

TASKS = ["ioi", "colored_objects", "subject_verb"]
METHODS = ("lora", "full")


def plain(spec: Spec):
    """The same fine-tune as a loop of its own, as far as the last step."""
    made = make_training(spec)
    module, batches = made.module, [made.batch(step, [0, 1, 2]) for step in range(spec.steps)]

    def loop() -> float:
        optimizer = torch.optim.AdamW(made.named.values(), lr=spec.learning_rate, betas=BETAS)
        loss = torch.zeros(())
        module.train()
        for batch in batches:
            logits = module(input_ids=batch.ids, use_cache=False).logits
            loss = cross_entropy(logits[batch.rows, batch.positions], batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return loop


def ours(spec: Spec):
    """The product's loop, with its log; everything before the first step is done beforehand."""
    training, run = make_training(spec), Run(spec.name)
    run.folder.mkdir(parents=True, exist_ok=True)

    def loop() -> float:
        found = None
        for _ in range(spec.steps):
            found = training.step()
            run.log("step", step=found.done, losses=found.losses, norm=found.norm, rate=found.rate, seconds=0.0)
        assert found is not None
        return found.losses[0]

    return loop


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="zoo/tasks")
    o = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["WORKBENCH_HOME"] = folder = tempfile.mkdtemp()
    clock = Clock(o.device)
    print(f"{'method':8} {'plain ms a step':>16} {'ours':>7} {'whole tune, seconds':>20}")
    try:
        for method in METHODS:
            given = {"model": o.model, "tasks": TASKS, "method": method, "steps": o.steps, "device": o.device}
            spec = read_spec({**given, "checkpoint": o.steps, "learning_rate": 1e-4})
            times: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(o.repeats):
                for name, make in (("plain", plain), ("ours", ours)):
                    times[name].append(clock.once(make(spec))[0])
            least = {name: min(values) for name, values in times.items()}
            shutil.rmtree(folder)
            whole = clock.once(lambda spec=spec: tune(spec))[0]
            unit = 1000 * least["plain"] / o.steps
            print(f"{method:8} {unit:16.1f} {least['ours'] / least['plain']:6.2f}x {whole:20.1f}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
