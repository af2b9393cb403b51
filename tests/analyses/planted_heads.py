"""A GPT-2 in which heads are set by hand: one number each of query, key, value and output, and nothing else written."""

import numpy as np
import torch

from workbench.tasks import Task

HEADS, SIZE, WIDTH = 4, 8, 32
BOS, A, B, ANSWER = 0, 2, 4, 6  # axes of the residual stream; each is used with the next one, which is its opposite
MARKS = {"Mary": (A, 1), "John": (A, -1), "Tom": (B, 1), "Dan": (B, -1), "is": (ANSWER, 1), "are": (ANSWER, -1)}


def blank(fresh, words):
    """Only the embeddings are there: BOS, four names and two answers lie along axes that no other word has."""
    module = fresh("gpt2")
    table = module.transformer.wte.weight
    with torch.no_grad():
        table[:, :8], module.transformer.wpe.weight[:] = 0, 0
        table[:, 8:] -= table[:, 8:].mean(1, keepdim=True)  # so that the norm leaves an axis that is 0 at 0
        _mark(module.transformer.wpe.weight[0], BOS, 10)
        for word, (axis, sign) in MARKS.items():
            _mark(table[words.get_vocab()[word]], axis, 2 * sign)
        for block in module.transformer.h:
            for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    return module


def _mark(vector, axis, size):
    vector[axis], vector[axis + 1] = size, -size


def set_head(block, head, *, query=1.0, query_reads=None, key=None, value=None, constant=0.0, writes=1.0):
    """Scores are (query + what it reads) x (what the key reads); the value is `constant` and what it reads.

    Readings are axis -> weight, of the normed residual; what the head says is written towards the right answer.
    """
    first = head * SIZE
    with torch.no_grad():
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        bias[first] = query * SIZE**0.5
        bias[2 * WIDTH + first] = constant
        for part, readings in enumerate((query_reads, key, value)):
            for axis, strength in (readings or {}).items():
                weight[axis, part * WIDTH + first] = strength * (SIZE**0.5 if part == 0 else 1)
        _mark(block.attn.c_proj.weight[first], ANSWER, writes)


def normed(module, token, position):
    """The embedding of a token as attention reads it, written out."""
    found = (module.transformer.wte.weight[token] + module.transformer.wpe.weight[position]).detach().double().numpy()
    found = found - found.mean()
    return found / np.sqrt((found**2).mean() + module.config.layer_norm_epsilon)


def names(one, other, name, both=False):
    """Prompts in which the first word alone tells the answer; with `both`, every second begins with the other name."""
    nouns = ("key", "boy", "girl", "cat", "dog", "teacher", "doctor", "painter")
    rows = []
    for index, noun in enumerate(nouns):
        pair, answers = [f"{one} saw the {noun}", f"{other} saw the {noun}"], [" is", " are"]
        if both and index % 2:
            pair.reverse()
            answers.reverse()
        rows.append(dict(zip(("clean", "corrupted", "answer", "wrong"), pair + answers, strict=True)))
    return Task.from_records(rows, name=name)
