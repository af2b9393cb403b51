"""Mixtures of experts as plain transformers runs them, every expert on every token; and one with a planted expert."""

import contextlib
import math

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from workbench.models.load import wrap
from workbench.tasks import Task

EXPERTS, K = 4, 2  # of the tiny models
STRENGTH, WIDTH = 3.0, 32  # of what the planted expert writes; of the residual stream


def gates(logits, normal):
    """Weight of every expert for every token, 0 where it is not among the two chosen."""
    likely = logits.softmax(-1)
    rank = likely.argsort(-1, descending=True).argsort(-1)
    found = likely * (rank < K)
    return found / found.sum(-1, keepdim=True) if normal else found


class Plain:
    """A saved tiny model; its experts are added up by hand from dense weights [row, pos, expert]."""

    def __init__(self, folder, family):
        self.module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.normal = family == "mixtral"

    def run(self, tokens, gate=None, part=None):
        """Logits [row, pos, vocab] and, a layer each, router logits, weights and parts [row, pos, expert, d_model].

        gate: for a layer, what (router logits, weights) become; part: what the experts' parts become.
        """
        seen, blocks = {}, self.module.model.layers

        def experts(layer):
            def forward(module, args, out):
                logits = F.linear(args[0], module.gate.weight)
                weights = gates(logits, self.normal)
                weights = (gate or {}).get(layer, lambda logits, weights: weights)(logits, weights)
                up = torch.einsum("rpd,eid->rpei", args[0], module.experts.gate_up_proj)
                inner = F.silu(up[..., : up.shape[-1] // 2]) * up[..., up.shape[-1] // 2 :]
                parts = torch.einsum("rpei,edi->rped", inner, module.experts.down_proj) * weights[..., None]
                parts = (part or {}).get(layer, lambda parts: parts)(parts)
                seen[layer] = (logits, weights, parts)
                return parts.sum(2)

            return forward

        with torch.no_grad(), contextlib.ExitStack() as stack:
            for layer, block in enumerate(blocks):
                stack.callback(block.mlp.register_forward_hook(experts(layer)).remove)
            return self.module(torch.from_numpy(tokens)).logits, seen

    def closed(self, expert, mask=None):
        """For `gate`: an expert at minus infinity for those of the tokens (of a mask [row, pos]) that use it."""

        def change(logits, weights):
            mine = (weights[..., expert] > 0) & (True if mask is None else mask)
            shut = logits.clone()
            shut[..., expert] = -math.inf
            return gates(shut, self.normal).where(mine[..., None], weights)

        return change


def metric(logits, answers, wrongs):
    """Mean logit of the answers minus mean logit of the wrongs at the last position, [row]."""
    last = logits[:, -1].double().numpy()
    return np.array([row[a].mean() - row[w].mean() for row, a, w in zip(last, answers, wrongs, strict=True)])


def loss(logits, tokens):
    """Next-token loss [row]."""
    ids = torch.from_numpy(tokens)
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).mean(1).double().numpy()


def planted(fresh, words):
    """A model in which only L0E0 writes what is read: `STRENGTH` of the answer's direction, at the clean last word.

    L0E0 is used at that word only, L0E1 at the corrupted prompts' last word; all other words, at both layers, go to
    experts 2 and 3. A last word's second expert is 2 in both.
    """
    module = fresh("mixtral", rms_norm_eps=1e-12)
    names = [word for word in words.get_vocab() if word.isalpha()][:40]
    clean, corrupted, answer, wrong = (words.convert_tokens_to_ids(word) for word in names[:4])
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" not in name:
                value.zero_()
        embedding = module.model.embed_tokens.weight
        embedding[:, 7] = 1
        embedding[:, 2] = 1
        for token, dim in ((clean, 0), (corrupted, 1)):
            embedding[token, 2], embedding[token, dim] = 0, 1
        first, second = (block.mlp for block in module.model.layers)
        for expert in range(EXPERTS):
            second.gate.weight[expert, 7] = expert
        first.gate.weight[0, 0] = first.gate.weight[1, 1] = 3
        first.gate.weight[2, 7] = 1
        first.gate.weight[3, 2] = 2
        first.experts.gate_up_proj[0, 0, 7] = first.experts.gate_up_proj[0, 64, 7] = 1
        reach = float(embedding[clean].norm()) / math.sqrt(WIDTH)
        seen = 1 / reach  # what the constant is after the norm
        for block in (first, second):  # what nobody reads, so that the experts do something
            block.experts.gate_up_proj[2:, 0, 7] = block.experts.gate_up_proj[2:, 64, 7] = 1
            block.experts.down_proj[2:, 20, 0] = 1e-3
        first.experts.down_proj[0, 5, 0] = STRENGTH / float(F.silu(torch.tensor(seen)) * seen)
        module.lm_head.weight[answer, 5], module.lm_head.weight[wrong, 5] = 1, -1
    rows = [
        {"clean": " ".join([*names[5 : 10 + row % 2], names[0]]), "answer": f" {names[2]}", "wrong": f" {names[3]}"}
        | {"corrupted": " ".join([*names[5 : 10 + row % 2], names[1]])}
        for row in range(16)
    ]
    return wrap(module, words, override=True), Task.from_records(rows)


def weight_of_planted(beside=2):
    """The weight of L0E0 at the clean prompts' last word, beside expert 2, or another."""
    seen = math.sqrt(WIDTH / 2)
    other = {2: seen, 3: 0}[beside]
    return math.exp(3 * seen) / (math.exp(3 * seen) + math.exp(other))


def logit_diff(written):
    """Of the planted model, when so much of the answer's direction is added to the last word's two ones."""
    return 2 * written / math.sqrt((2 + written**2) / WIDTH)
