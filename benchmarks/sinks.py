"""The sink scan against the forward pass it is part of, and against the way that holds every pattern.

One random model, one sequence, one process and one thread; ways take turns, medians are shown. The unit is one forward
pass of the same blocks with scaled-dot-product attention and without logits. The scan is all that `sink_scores`
measures of a sequence: alpha of every key in every head, value, key, residual and output norms, query-key cosines.

python benchmarks/sinks.py [--lengths 512,1024,2048] [--repeats 5] [--shapes small,tiny] [--device cpu]
"""

import argparse

import numpy as np
import torch
from clock import Clock
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.analyses.sink_scores import measure
from workbench.models.load import wrap
from workbench.models.trunk import share_weights
from workbench.zoo.language import tokenizer

SHAPES = {"small": {"n_layer": 12, "n_head": 12, "n_embd": 768}, "tiny": {"n_layer": 4, "n_head": 8, "n_embd": 256}}
PATTERN = "blocks.{}.attn.hook_pattern"


def whole_patterns(model, tokens: np.ndarray) -> np.ndarray:
    """Alpha [row, layer, head, key] from patterns that transformer_lens keeps of all layers at once."""
    names = [PATTERN.format(layer) for layer in range(model.n_layers)]
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(torch.from_numpy(tokens), names_filter=names)
        found = torch.stack([cache[name].sum(-2) for name in names], 1)
    return found.numpy() / np.arange(tokens.shape[1], 0, -1)


def random_model(shape: str, longest: int, device: str):
    """A model of a shape with random weights, and its own blocks with scaled-dot-product attention."""
    torch.manual_seed(0)
    config = GPT2Config(n_positions=longest, initializer_range=0.05, **SHAPES[shape])
    model = wrap(GPT2LMHeadModel(config).eval().to(device), tokenizer(), override=True)
    plain = share_weights(model.plain)
    plain.set_attn_implementation("sdpa")
    measure(model, np.zeros((1, 8), dtype=np.int64))  # checks the scanner, once
    return model, plain


def row(shape: str, model, plain, tokens: np.ndarray, clock: Clock, repeats: int) -> str:
    """One line of the table."""

    def forward():
        with torch.inference_mode():
            return plain.base_model(model.tensor(tokens), use_cache=False)

    times, memory, found = clock.turns(
        repeats,
        forward=forward,
        scan=lambda: measure(model, tokens)["alpha"],
        patterns=lambda: whole_patterns(model, tokens),
    )
    unit, held = times["forward"], memory["forward"]
    gap = abs(found["scan"] - found["patterns"]).max()
    ratios = f"{1000 * unit:7.0f} ms {times['scan'] / unit:6.2f}x {times['patterns'] / unit:8.2f}x"
    space = f"{held:6.0f} {memory['scan'] / held:6.2f}x {memory['patterns'] / held:8.2f}x"
    return f"{shape:6} {tokens.shape[1]:6} {ratios} {space} {gap:.0e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="512,1024,2048")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", default="small,tiny")
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(1)
    clock, lengths = Clock(o.device), [int(length) for length in o.lengths.split(",")]
    columns = f"{'forward':>10} {'scan':>7} {'patterns':>9} {'MB':>6} {'scan':>7} {'patterns':>9} gap"
    print(f"{'shape':6} {'tokens':>6} {columns}")
    for shape in o.shapes.split(","):
        model, plain = random_model(shape, max(lengths), o.device)
        for length in lengths:
            tokens = np.random.default_rng(0).integers(3, 400, (1, length))
            print(row(shape, model, plain, tokens, clock, o.repeats), flush=True)


if __name__ == "__main__":
    main()
