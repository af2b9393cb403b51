"""Circuits here against the tools people use today, and against the operations that cannot be avoided.

One random model of GPT-2 small's shape (12 layers, 12 heads, width 768, 50,257 tokens), the same prompts, the same
numbers, one process and one thread; ways take turns, medians are shown. The unit is one forward pass of the plain
transformers model with all its logits. The floor counts multiplications that no exact method can leave out, in the
same unit (a forward pass is less efficient than large products are, so a ratio under 1 can be measured).

python benchmarks/circuits.py [--pairs 4] [--length 20] [--repeats 3] [--device cpu] [--layers 12] [--only heads,paths]
"""

import argparse
import random
from collections.abc import Callable

import numpy as np
import torch
from clock import Clock
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.analyses import edge_attribution, head_patching, path_patching
from workbench.models.load import wrap
from workbench.progress import reporting
from workbench.tasks import Task
from workbench.zoo.language import tokenizer

WIDTH, HEADS, VOCABULARY = 768, 12, 50257


def random_model(layers: int, device: str):
    """A model of GPT-2 small's shape with random weights, spread so that heads matter, and its plain module."""
    torch.manual_seed(0)
    shape = {"n_layer": layers, "n_embd": WIDTH, "n_head": HEADS, "n_positions": 256, "vocab_size": VOCABULARY}
    module = GPT2LMHeadModel(GPT2Config(initializer_range=0.05, **shape)).eval().to(device)
    return wrap(module, tokenizer(), override=True), module


def pairs(model, count: int, length: int, shared: float) -> Task:
    """Random words; the two prompts of a pair are the same up to `shared` of their length and differ from there on."""
    words = [word for word in model.tokenizer.get_vocab() if word.isalpha()]
    rng, rows = random.Random(0), []
    first = max(1, round(shared * length)) - model.bos
    for _ in range(count):
        clean = rng.choices(words, k=length - model.bos)
        corrupted = clean[:first] + rng.choices(words, k=len(clean) - first)
        right, wrong = (f" {word}" for word in rng.sample(words, 2))
        rows.append({"clean": " ".join(clean), "corrupted": " ".join(corrupted), "answer": right, "wrong": wrong})
    return Task.from_records(rows)


def arrays(model, task):
    """Clean and corrupted tokens [pair, pos], and the mean logit difference as transformer_lens wants it."""
    prompts = task.encode(model.tokenizer, bos=model.bos)
    clean, corrupted = (model.tensor(np.stack(side)) for side in (prompts.clean, prompts.corrupted))
    right, wrong = (model.tensor(np.stack(side)[:, 0]) for side in (prompts.answers, prompts.wrongs))

    def metric(logits, rows=slice(None)):
        rows = torch.arange(len(clean), device=logits.device)[rows]
        place = torch.arange(len(rows), device=logits.device)
        return (logits[place, -1, right[rows]] - logits[place, -1, wrong[rows]]).mean()

    return clean, corrupted, metric


def forward(model, module, task) -> Callable:
    """One plain forward pass of transformers with all logits."""
    clean, *_ = arrays(model, task)

    def run():
        with torch.inference_mode():
            return module(input_ids=clean, use_cache=False).logits

    return run


def heads_by_library(model, task) -> np.ndarray:
    """Metric [layer, head] by transformer_lens.patching.get_act_patch_attn_head_out_all_pos."""
    clean, corrupted, metric = arrays(model, task)
    with torch.inference_mode():
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
        _, cache = model.bridge.run_with_cache(clean, names_filter=names)
        found = patching.get_act_patch_attn_head_out_all_pos(model.bridge, corrupted, cache, metric)
        return found.float().cpu().numpy()


def paths_naively(model, task) -> np.ndarray:
    """Metric [layer, head] of paths to the logits from END by two forward passes a sender, as the papers' code does."""
    clean, corrupted, metric = arrays(model, task)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
    final, found = f"blocks.{model.n_layers - 1}.hook_resid_post", np.empty((model.n_layers, model.n_heads))
    with torch.inference_mode():
        _, kept = model.bridge.run_with_cache(clean, names_filter=names)
        _, other = model.bridge.run_with_cache(corrupted, names_filter=names)
        for layer, name in enumerate(names):
            for head in range(model.n_heads):
                sent = kept[name].clone()
                sent[:, -1, head] = other[name][:, -1, head]
                held = {**{each: kept[each] for each in names}, name: sent}
                hooks = [(each, lambda value, hook, held=value: held) for each, value in held.items()]
                heard: list = []
                hooks.append((final, lambda value, hook, heard=heard: heard.append(value[:, -1].clone())))
                model.bridge.run_with_hooks(clean, fwd_hooks=hooks)

                def receive(value, hook, heard=heard):
                    value = value.clone()
                    value[:, -1] = heard[0]
                    return value

                found[layer, head] = metric(model.bridge.run_with_hooks(clean, fwd_hooks=[(final, receive)]))
    return found


def edges_by_library(model, task) -> np.ndarray:
    """Edge scores [reader, writer] by transformer_lens' attribution_patch, one pair at a time, positions summed."""
    clean, corrupted, metric = arrays(model, task)
    graph = model.edges.graph
    found = np.zeros(graph.valid.shape)
    model.bridge.requires_grad_(True)  # as the library boots it, and needs it
    config = EdgeAttributionConfig(granularity="edge")
    for row in range(len(clean)):
        one = slice(row, row + 1)
        result = attribution_patch(
            model.bridge, clean[one], corrupted[one], lambda logits, one=one: metric(logits, one), config
        )
        for (writer, reader), score in result.edge_scores.items():
            found[_reader(graph, reader), _writer(graph, writer)] += score / len(clean)
    model.bridge.requires_grad_(False)
    return found


def _writer(graph, node) -> int:
    if node.kind == "embed":
        return 0
    return graph.writer(node.layer, -1 if node.head is None else node.head)


def _reader(graph, node) -> int:
    if node.kind == "logits":
        return len(graph.readers) - 1
    part = "mlp" if node.kind == "mlp_in" else node.kind[0]
    return graph.readers_of(node.layer, part).start + (node.head or 0)


class Floor:
    """Multiplications of the unavoidable work, in forward passes; a layer is 12 d^2 a token, 8 of them the MLP."""

    def __init__(self, layers: int, length: int, pairs: int) -> None:
        self.layers, self.pairs = layers, pairs
        self.layer = 12 * WIDTH**2 + WIDTH * length
        self.trunk = length * layers * self.layer
        self.unit = pairs * (self.trunk + length * WIDTH * VOCABULARY)

    def heads(self, positions: int) -> float:
        """Two recorded runs, then for each head its layer's MLP and the layers after it, the last for one query."""
        mlp, last = 8 * WIDTH**2, 2 * WIDTH**2 * positions + 10 * WIDTH**2
        each = [
            positions * (mlp + (self.layers - 2 - layer) * self.layer) + last if layer < self.layers - 1 else mlp
            for layer in range(self.layers)
        ]
        return self.pairs * (2 * self.trunk + HEADS * sum(each)) / self.unit

    def paths(self) -> float:
        """Two recorded runs, then for each head the MLPs from its layer on, at one position."""
        mlps = sum(self.layers - layer for layer in range(self.layers)) * 8 * WIDTH**2
        return self.pairs * (2 * self.trunk + HEADS * mlps) / self.unit

    def edges(self, steps: int = 1) -> float:
        """Two recorded runs, then a forward and a backward pass for each step."""
        return self.pairs * (2 + 2 * steps) * self.trunk / self.unit


def report(what: str, times: dict, memory: dict, floor: float, gap: float) -> None:
    """One line of the table."""
    unit, ours = times["forward"], times["workbench"] / times["forward"]
    line = f"{what:34} {ours:8.1f} {floor:8.1f} {ours / floor:8.2f}"
    if "library" in times:
        theirs = times["library"] / unit
        line += f" {theirs:9.1f} {theirs / ours:8.1f}x {memory['workbench']:8.0f} {memory['library']:8.0f} {gap:10.1e}"
    print(f"{line}   (one forward {1000 * unit:.0f} ms)" if what.startswith("heads") else line, flush=True)


def heads(model, module, clock: Clock, o) -> None:
    """All-head patching, prompts sharing nothing and half."""
    for shared in (0.0, 0.5):
        task = pairs(model, o.pairs, o.length, shared)
        ways = {
            "forward": forward(model, module, task),
            "workbench": lambda task=task: head_patching(model, task, draws=1)["metric"].mean("prompt").values,
            "library": lambda task=task: heads_by_library(model, task),
        }
        times, memory, found = clock.turns(o.repeats, **ways)
        floor = Floor(o.layers, o.length, o.pairs).heads(o.length - max(1, round(shared * o.length)))
        gap = abs(found["workbench"] - found["library"]).max()
        report(f"heads, {shared:.0%} of a pair shared", times, memory, floor, gap)


def paths(model, module, clock: Clock, o) -> None:
    """Path patching of all heads to the logits."""
    task = pairs(model, o.pairs, o.length, 0.0)
    ways = {
        "forward": forward(model, module, task),
        "workbench": lambda: path_patching(model, task, draws=1)["metric"].mean("prompt").values[0],
        "library": lambda: paths_naively(model, task),
    }
    times, memory, found = clock.turns(min(2, o.repeats), **ways)
    gap = abs(found["workbench"] - found["library"]).max()
    report("paths to the logits, naive beside", times, memory, Floor(o.layers, o.length, o.pairs).paths(), gap)


def edges(model, module, clock: Clock, o) -> None:
    """Edge attribution, and EAP-IG with five steps."""
    task, floor = pairs(model, o.pairs, o.length, 0.0), Floor(o.layers, o.length, o.pairs)

    def ours(method: str, steps: int = 1):
        ds = edge_attribution(model, task, method=method, steps=steps, exact=0)
        return ds["score"].values * (ds.attrs["clean"] - ds.attrs["corrupted"])

    ways = {"forward": forward(model, module, task), "workbench": lambda: ours("eap")}
    times, memory, found = clock.turns(o.repeats, **ways, library=lambda: edges_by_library(model, task))
    report("edges, EAP", times, memory, floor.edges(), abs(found["workbench"] - found["library"]).max())
    ways["workbench"] = lambda: ours("inputs", 5)
    times, memory, _ = clock.turns(o.repeats, **ways)
    report("edges, EAP-IG, 5 steps", times, memory, floor.edges(5), 0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 4), ("length", 20), ("repeats", 3), ("layers", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="heads,paths,edges")
    o = parser.parse_args()
    torch.set_num_threads(1)
    (model, module), clock = random_model(o.layers, o.device), Clock(o.device)
    print(
        f"{o.layers} layers, {o.pairs} pairs of {o.length} tokens, {model.device}; costs in forward passes; {model.way}"
    )
    titles = f"{'':34} {'workbench':>8} {'floor':>7} {'of floor':>8} {'library':>9} {'faster':>9}"
    print(f"{titles} {'MB':>8} {'MB lib.':>8} largest gap")
    with reporting(lambda *_: True):
        head_patching(model, pairs(model, o.pairs, o.length, 0.0), draws=1)  # warms up
        for name, part in (("heads", heads), ("paths", paths), ("edges", edges)):
            if name in o.only.split(","):
                part(model, module, clock, o)


if __name__ == "__main__":
    main()
