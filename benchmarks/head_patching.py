"""Head patching here against transformer_lens' own helper: same model, prompts and numbers, one process, one ratio.

python benchmarks/head_patching.py [--model zoo/tasks] [--n 64] [--repeats 5]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from transformer_lens import patching

from workbench.analyses._base import batches, measure
from workbench.analyses.head_patching import Z, head_patching
from workbench.models.load import load
from workbench.tasks import make_task


def with_transformer_lens(model, task) -> np.ndarray:
    """The same effects [layer, head] from get_act_patch_attn_head_out_all_pos, one length of prompts at a time."""
    prompts = task.encode(model.tokenizer, bos=model.bos)
    total = np.zeros((3, model.n_layers, model.n_heads))
    for rows in batches(prompts, len(prompts)):
        clean, corrupted = (
            torch.from_numpy(np.stack([side[i] for i in rows])) for side in (prompts.clean, prompts.corrupted)
        )

        def metric(logits, rows=rows):
            return torch.tensor(measure(logits, prompts, rows, task.metric).sum())

        with torch.inference_mode():
            names = [Z.format(layer) for layer in range(model.n_layers)]
            logits, cache = model.bridge.run_with_cache(clean, names_filter=names)
            found = patching.get_act_patch_attn_head_out_all_pos(model.bridge, corrupted, cache, metric)
            total += np.stack(np.broadcast_arrays(found.numpy(), metric(logits), metric(model.bridge(corrupted))))
    patched, best, worst = total
    return (patched - worst) / (best - worst)


def main() -> None:
    """Print both times (median of interleaved runs), their ratio, and the largest difference of the effects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo/tasks")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, task = load(options.model, device="cpu"), make_task("ioi", n=options.n)
    times: dict[str, list[float]] = {"workbench": [], "transformer_lens": []}
    for _ in range(options.repeats):
        started = time.process_time()
        ours = head_patching(model, task, draws=10)["effect"].values
        times["workbench"].append(time.process_time() - started)
        started = time.process_time()
        theirs = with_transformer_lens(model, task)
        times["transformer_lens"].append(time.process_time() - started)
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.model}, {task.title}, n = {options.n}, one thread, CPU seconds, median of {options.repeats}")
    print(f"workbench {middle['workbench']:.2f}   transformer_lens {middle['transformer_lens']:.2f}")
    ratio, gap = middle["transformer_lens"] / middle["workbench"], abs(ours - theirs).max()
    print(f"ratio {ratio:.2f}, largest difference {gap:.1e}")


if __name__ == "__main__":
    main()
