"""What reading a model's routing costs, over the forward pass it is read from, and what 100,000 tokens leave in memory.

One random mixture of experts, one process and one thread; ways take turns, medians are shown. The unit is one forward
pass of the blocks, without logits. `capture` reads every layer's logits, experts and weights in that pass; `summary` is
all that the analysis `routing` keeps of it: loads, entropies, pairs, choices, five random routers beside each router.
The last table is that summary of many tokens, a few sequences at a time: growth of memory and arrays kept.

python benchmarks/routing.py [--tokens 512] [--many 100000] [--repeats 25] [--shapes small,tiny] [--device cpu]
"""

import argparse

import numpy as np
import torch
from clock import Clock
from transformers import MixtralConfig, MixtralForCausalLM

from workbench.analyses._routing import Tally, random_routers
from workbench.analyses.routing import _reader
from workbench.models.load import wrap
from workbench.models.trunk import share_weights
from workbench.zoo.language import tokenizer

SHAPES = {
    "small": {"num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 768}
    | {"intermediate_size": 768, "num_local_experts": 8},
    "tiny": {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 256}
    | {"intermediate_size": 256, "num_local_experts": 8},
}


def random_model(shape: str, device: str):
    """A model of a shape with random weights, and its own blocks as transformers runs them."""
    torch.manual_seed(0)
    words = tokenizer()
    config = MixtralConfig(vocab_size=len(words), num_experts_per_tok=2, max_position_embeddings=4096, **SHAPES[shape])
    model = wrap(MixtralForCausalLM(config).eval().to(device), words, override=True)
    model.routers  # proves itself, once  # noqa: B018
    return model, share_weights(model.plain)


def summarise(model, tokens: np.ndarray, size: int) -> Tally:
    """What `routing` keeps of token ids [row, pos], `size` rows at a time."""
    routers = model.routers
    tally = Tally({layer: rule.weights for layer, rule in routers.rules.items()}, np.ones(tokens.shape, bool), 4)
    with random_routers(model, 0) as scores:
        for start in range(0, len(tokens), size):
            rows = tokens[start : start + size]
            routers.run(model.tensor(rows), _reader(tally, start, rows.shape, scores))
    return tally


def row(shape: str, model, plain, tokens: np.ndarray, clock: Clock, repeats: int) -> str:
    """One line of the first table."""
    seen: list[int] = []

    def forward():
        with torch.no_grad():
            return plain.base_model(model.tensor(tokens), use_cache=False)

    times, _, _ = clock.turns(
        repeats,
        forward=forward,
        capture=lambda: model.routers.run(model.tensor(tokens), lambda routed: seen.append(routed.layer)),
        summary=lambda: summarise(model, tokens, len(tokens)),
    )
    unit = times["forward"]
    ratios = f"{times['capture'] / unit:7.2f}x {times['summary'] / unit:7.2f}x"
    return f"{shape:6} {tokens.size:7} {1000 * unit:9.0f} ms {ratios}"


def many(shape: str, model, count: int, clock: Clock) -> str:
    """One line of the second table."""
    tokens = np.random.default_rng(0).integers(3, 400, (count // 64, 64))
    seconds, grown, tally = clock.once(lambda: summarise(model, tokens, 8))
    kept = sum(array.nbytes for array in tally.kept.values()) / 1e6  # pyright: ignore[reportAttributeAccessIssue]
    return f"{shape:6} {tokens.size:7} {len(model.routers.layers):6} {seconds:9.0f} {grown:10.0f} {kept:10.0f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--shapes", default="small,tiny")
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(1)
    clock, models = Clock(o.device), {shape: random_model(shape, o.device) for shape in o.shapes.split(",")}
    print(f"{'shape':6} {'tokens':>7} {'forward':>12} {'capture':>8} {'summary':>8}")
    for shape, (model, plain) in models.items():
        tokens = np.random.default_rng(0).integers(3, 400, (o.tokens // 64, 64))
        print(row(shape, model, plain, tokens, clock, o.repeats), flush=True)
    print(f"\n{'shape':6} {'tokens':>7} {'layers':>6} {'seconds':>9} {'MB, peak':>10} {'MB, kept':>10}")
    last = o.shapes.split(",")[-1]
    print(many(last, models[last][0], o.many, clock))


if __name__ == "__main__":
    main()
