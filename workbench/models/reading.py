"""How the queries, keys and values of a block come from its normed input."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from transformers.pytorch_utils import Conv1D

from workbench.models.blocks import returning
from workbench.models.trunk import Trunk, TrunkError

PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Reading:
    """How the queries, keys and values of a block come from its normed input.

    modules are the projections; `columns[part]` says which module and which of its outputs, int64 [head, d_head];
    weights [head, d_head, d_model] and biases [head, d_head] of each part.
    """

    modules: list[Any]
    columns: dict[str, tuple[int, Tensor]]
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    def split(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        """Each part [row, pos, head, d_head] of what the projections give."""
        return {part: outputs[index][..., columns] for part, (index, columns) in self.columns.items()}

    def joined(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """What the projections give when each reader has a normed input of its own, [row, reader, pos, d_model]."""
        widths = [sum(c.numel() for i, c in self.columns.values() if i == index) for index in range(len(self.modules))]
        some = inputs[PARTS[0]]
        outputs = [some.new_empty(len(some), some.shape[2], width) for width in widths]
        for part, value in inputs.items():
            index, columns = self.columns[part]
            outputs[index][..., columns] = torch.einsum("bhpd,hed->bphe", value, self.weights[part]) + self.biases[part]
        return outputs

    @contextlib.contextmanager
    def giving(self, outputs: list[Tensor]) -> Iterator[None]:
        """Within the block, the projections give `outputs`; nothing is computed."""
        with contextlib.ExitStack() as stack:
            for module, output in zip(self.modules, outputs, strict=True):
                stack.enter_context(returning(module, output, False))
            yield


def matrix(module: Any) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of an affine module, adapters included."""
    if isinstance(module, Conv1D):
        return module.weight.T, module.bias
    if type(module) is torch.nn.Linear:
        bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
        return module.weight, bias
    with torch.no_grad():
        eye = torch.eye(module.in_features, device=module.weight.device, dtype=module.weight.dtype)
        bias = module(torch.zeros_like(eye[:1]))
        return (module(eye) - bias).T, bias[0]


def reading_of(trunk: Trunk, layer: int, names: Any) -> Reading:
    """The projections of a block: three modules, or one whose outputs are told apart by what attention gets of them."""
    attention, parts = trunk.parts[layer].attention, names["attn"].submodules
    if trunk.parts[layer].norm is None:
        raise TrunkError("it has no norm before attention")
    if "qkv" not in parts and any(part not in parts for part in PARTS):
        raise TrunkError("its queries, keys and values do not come from one projection each")
    if "qkv" not in parts:
        modules = [attention.get_submodule(parts[part].name) for part in PARTS]
        sizes = [matrix(module)[0].shape[0] for module in modules]
        width = trunk.parts[layer].output.in_features // trunk.n_heads
        columns = {
            part: (i, torch.arange(size, device=trunk.device).view(-1, width))
            for i, (part, size) in enumerate(zip(PARTS, sizes, strict=True))
        }
    else:
        modules = [attention.get_submodule(parts["qkv"].name)]
        columns = {part: (0, found) for part, found in zip(PARTS, _told_apart(trunk, layer, modules[0]), strict=True)}
    matrices = [matrix(module) for module in modules]
    weights = {part: _picked(matrices[i][0], found) for part, (i, found) in columns.items()}
    biases = {part: _picked(matrices[i][1], found) for part, (i, found) in columns.items()}
    return Reading(modules, columns, weights, biases)


def _picked(values: Tensor, rows: Tensor) -> Tensor:
    """Rows [head, d_head] of values, as a view where they follow one another."""
    first, count = int(rows[0, 0]), rows.numel()
    if torch.equal(rows.flatten(), torch.arange(first, first + count, device=rows.device)):
        return values[first : first + count].unflatten(0, rows.shape)
    return values[rows]


def _told_apart(trunk: Trunk, layer: int, module: Any) -> list[Tensor]:
    """Which outputs of a fused projection are queries, keys and values of which head, int64 [head, d_head] each.

    The projection is made to give its own column numbers; at position 0 rotation changes nothing.
    """
    size = matrix(module)[0].shape[0]
    numbers = torch.arange(size, device=trunk.device, dtype=torch.float32).view(1, 1, -1)  # exact to 2^24
    nothing, frame = trunk.norm.weight.new_zeros(1, 1, trunk.norm.weight.shape[0]), trunk.frame(1)
    with torch.no_grad(), returning(module, numbers, False):
        seen = trunk.seen(layer, nothing, frame)
    query, key, value = (part[0, :, 0].float() for part in seen)
    stretched = (query.sum() + key.sum()) / (numbers.sum() - value.sum())  # by some rotations, even at position 0
    found = [part.round().long() for part in (query / stretched, key / stretched, value)]
    if sorted(torch.cat([part.flatten() for part in found]).tolist()) != list(range(size)):
        raise TrunkError("its fused projection gives queries, keys and values in an unknown order")
    return found


def through(norm: Any, at: Tensor, grads: Tensor) -> Tensor:
    """Gradients [row, reader, pos, d_model] after a norm, as gradients before it, at its input [row, pos, d_model]."""
    back = vjp(norm, at)[1]
    return vmap(lambda grad: back(grad)[0], in_dims=1, out_dims=1)(grads)
