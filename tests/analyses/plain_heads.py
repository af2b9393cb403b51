"""Attention, values, head outputs and patched runs of plain transformers, for tests that compare with them."""

import contextlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HEADS, SIZE = 4, 8  # of the tiny models


class Plain:
    """A saved tiny model as transformers runs it; every number is float64 NumPy."""

    def __init__(self, folder, family):
        self.module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        gpt2 = family == "gpt2"
        blocks = self.module.transformer.h if gpt2 else self.module.model.layers
        self.sources = [block.attn.c_attn if gpt2 else block.self_attn.v_proj for block in blocks]
        self.outputs = [block.attn.c_proj if gpt2 else block.self_attn.o_proj for block in blocks]
        self.written = [out.weight if gpt2 else out.weight.T for out in self.outputs]  # [head x d_head, d_model]
        self.shared = 1 if gpt2 else 2  # query heads with the same values

    def seen(self, tokens):
        """Attention [layer, row, head, query, key] and values [layer, row, key, head, d_head]."""
        values, handles = [], []

        def keep(part, given, found):
            own = found[..., -HEADS * SIZE :] if self.shared == 1 else found
            values.append(own.unflatten(-1, (-1, SIZE)).repeat_interleave(self.shared, 2))

        for source in self.sources:
            handles.append(source.register_forward_hook(keep))
        with torch.no_grad():
            patterns = self.module(torch.from_numpy(tokens), output_attentions=True).attentions
        for handle in handles:
            handle.remove()
        return tuple(np.stack([part.double().numpy() for part in parts]) for parts in (patterns, values))

    def metric(self, tokens, answers, wrongs, layer=0, head=0, z=None):
        """Mean logit of the answers minus that of the wrongs [row], where one head's z may be another."""

        def put(module, args):
            value = args[0].clone()
            value[..., head * SIZE : (head + 1) * SIZE] = torch.from_numpy(z).to(value)
            return (value,)

        with torch.no_grad(), contextlib.ExitStack() as stack:
            if z is not None:
                stack.callback(self.outputs[layer].register_forward_pre_hook(put).remove)
            last = self.module(torch.from_numpy(tokens)).logits[:, -1].double().numpy()
        return np.array([row[a].mean() - row[w].mean() for row, a, w in zip(last, answers, wrongs, strict=True)])


def mixed(pattern, values):
    """Head outputs z [row, query, head, d_head], summed key by key."""
    z = np.zeros(values.shape)
    for row, query, head in np.ndindex(z.shape[:3]):
        for key in range(query + 1):
            z[row, query, head] += pattern[row, head, query, key] * values[row, key, head]
    return z
