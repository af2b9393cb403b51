"""What every parameter of a model belongs to: a matrix of a layer, a head, an expert, an adapter.

Fused matrices are taken apart by trying, not by a family's name: which features of a projection reach the queries, keys
or values of which head is seen in their derivatives.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.models.blocks import first
from workbench.models.division import ADAPTER, ROUTING, Division, Piece, units_of
from workbench.models.ends import at_least_single
from workbench.models.trunk import Trunk, TrunkError

ROUTERS = ("gate", "router", "shared_expert_gate")  # modules that choose experts
OUT = ("down_proj", "w2", "fc2", "output_linear")  # names of what leaves an MLP or expert, beside the bridge's own
GATES = ("gate_proj", "w1")
EXPERT = re.compile(r"\bexperts\.(\d+)\.")


def differentiable(module: nn.Module) -> Any:
    """A second module over the same weights, in float32 at least, whose parameters can be differentiated.

    The weights take no more memory where they are float32 already, and the module itself never learns of it: no flag
    of its parameters changes and no gradient reaches them. Dropout is off.
    """
    held: dict[int, Any] = {id(p): nn.Parameter(_single(p)) for p in module.parameters()}
    held |= {id(buffer): _single(buffer) for buffer in module.buffers()}
    copied: Any = copy.deepcopy(module, held)
    copied.set_attn_implementation("eager")
    return copied.eval()


def _single(tensor: Tensor) -> Tensor:
    return at_least_single(tensor.detach()) if tensor.is_floating_point() else tensor


def adapter_parameters(module: nn.Module) -> dict[str, str]:
    """The kind, `ADAPTER` or `ROUTING`, of each parameter that a PEFT adapter added, by its name."""
    found = {}
    for name, layer in module.named_modules():
        for part in getattr(layer, "adapter_layer_names", ()):
            held = getattr(layer, part, None)
            if isinstance(held, nn.Module):
                kind = ROUTING if part.endswith("router") else ADAPTER
                found |= {f"{name}.{part}.{inner}": kind for inner, _ in held.named_parameters()}
    return found


def divide(module: Any, mapping: Mapping[str, Any], n_heads: int, names: Collection[str] | None = None) -> Division:
    """A model's parameters by what they belong to.

    A head holds its slices of the query and output matrices and those of the keys and values it reads, biases
    included: heads of one group share their keys and values, and each of them holds these. An adapter's parameters are
    pieces of their own, not of the matrix they change. Where attention does not go through transformers' interface,
    its parameters are of the kind `attention` and there are no heads.

    Args:
        module: the transformers model, adapter layers included; it is only read.
        mapping: the bridge's component mapping: what the blocks and their parts are called in this family.
        n_heads: query heads a layer.
        names: of the parameters to divide; all if left out.
    """
    shapes = {n: p.shape for n, p in module.named_parameters() if names is None or n in names}
    finder = _Finder(module, mapping, n_heads)
    pieces = [
        piece for index, (name, shape) in enumerate(shapes.items()) for piece in finder.pieces(index, name, shape)
    ]
    return Division(tuple(shapes), tuple(shapes.values()), tuple(pieces), tuple(units_of(pieces, n_heads)))


Label = tuple[str, int]  # kind and head


class _Finder:
    """Says of each parameter what it belongs to."""

    def __init__(self, module: Any, mapping: Mapping[str, Any], n_heads: int) -> None:
        blocks = mapping["blocks"]
        self.module, self.n_heads, self.prefix = module, n_heads, f"{blocks.name}."
        self.attention, self.mlp = (f"{blocks.submodules[name].name}." for name in ("attn", "mlp"))
        self.output = f"{self.attention}{blocks.submodules['attn'].submodules['o'].name}."
        self.out = _named(blocks.submodules["mlp"], "out", "dense_out")
        self.gates = _named(blocks.submodules["mlp"], "gate", "dense_gate")
        self.unembed = module.get_output_embeddings()
        self.adapters = adapter_parameters(module)
        self.routed = any(hasattr(block, "experts") for block in module.modules())
        self.features = _features(module, mapping, n_heads)

    def pieces(self, index: int, name: str, shape: torch.Size) -> list[Piece]:
        layer, inner = self._place(name)
        if name in self.adapters:
            return [Piece(index, shape.numel(), self.adapters[name], layer)]
        inner = inner.replace("base_layer.", "")
        if layer >= 0 and inner.startswith(self.output):
            return self._written(index, name, shape, layer)
        if layer >= 0 and inner.startswith(self.attention):
            return self._read(index, name, shape, layer)
        if layer >= 0 and inner.startswith(self.mlp):
            return self._of_mlp(index, inner, shape, layer)
        return [Piece(index, shape.numel(), self._elsewhere(name, shape, layer), layer)]

    def _place(self, name: str) -> tuple[int, str]:
        """Layer and name inside its block; -1 and the whole name outside of the blocks."""
        number, _, inner = name.removeprefix(self.prefix).partition(".")
        return (int(number), inner) if name.startswith(self.prefix) else (-1, name)

    def _written(self, index: int, name: str, shape: torch.Size, layer: int) -> list[Piece]:
        """The output matrix by the head it reads; its bias belongs to none."""
        axis = 1 - _axis(self._owner(name))
        if len(shape) != 2 or shape[axis] % self.n_heads or not self.features:
            return [Piece(index, shape.numel(), "W_O", layer)]
        labels = [("W_O", head) for head in range(self.n_heads) for _ in range(shape[axis] // self.n_heads)]
        return _sliced(index, shape, layer, axis, labels)

    def _read(self, index: int, name: str, shape: torch.Size, layer: int) -> list[Piece]:
        """Query, key and value matrices by head."""
        owner = self._owner(name)
        if getattr(owner, "weight", np.empty(0)).ndim < 2:
            return [Piece(index, shape.numel(), "norm" if len(shape) == 1 else "attention", layer)]
        labels, axis = self.features.get(name.rpartition(".")[0], []), _axis(owner) if len(shape) > 1 else 0
        if len(labels) != shape[axis]:
            return [Piece(index, shape.numel(), "attention", layer)]
        return _sliced(index, shape, layer, axis, labels)

    def _of_mlp(self, index: int, inner: str, shape: torch.Size, layer: int) -> list[Piece]:
        names = inner.split(".")
        leaf = names[-2] if names[-1] in ("weight", "bias") else names[-1]
        numbered = EXPERT.search(inner)
        expert = int(numbered[1]) if numbered else -1
        stacked = "experts" in names and not numbered
        kind = self._mlp_kind(leaf, names, shape)
        if not stacked:
            return [Piece(index, shape.numel(), kind, layer, expert=expert)]
        size = shape[1:].numel()
        return [Piece(index, size, kind, layer, expert=e, places=(e,)) for e in range(shape[0])]

    def _mlp_kind(self, leaf: str, names: list[str], shape: torch.Size) -> str:
        if self.routed and leaf in ROUTERS and "experts" not in names:
            return "router"
        if leaf in (*self.out, *OUT):
            return "MLP_out"
        if leaf in (*self.gates, *GATES):
            return "MLP_gate"
        return "norm" if len(shape) == 1 and "norm" in leaf else "MLP_in"

    def _elsewhere(self, name: str, shape: torch.Size, layer: int) -> str:
        if layer < 0 and self._owner(name) is self.unembed:
            return "unembed"
        if len(shape) == 1:
            return "norm"
        return "embed" if layer < 0 else "other"

    def _owner(self, name: str) -> Any:
        return self.module.get_submodule(name.rpartition(".")[0])


def _named(component: Any, *roles: str) -> tuple[str, ...]:
    """What the parts of a component are called in this family."""
    parts = getattr(component, "submodules", None) or {}
    return tuple(parts[role].name for role in roles if role in parts and parts[role].name)


def _axis(owner: Any) -> int:
    """The axis of a matrix that runs over what it gives."""
    return 1 if type(owner).__name__ == "Conv1D" else 0


def _sliced(index: int, shape: torch.Size, layer: int, axis: int, labels: list[Label]) -> list[Piece]:
    """A parameter by the labels of the places along one axis."""
    size, by_label = shape.numel() // shape[axis], {}
    for place, label in enumerate(labels):
        by_label.setdefault(label, []).append(place)
    return [
        Piece(index, size * len(places), kind, layer, head, axis=axis, places=tuple(places))
        for (kind, head), places in by_label.items()
    ]


def _features(module: Any, mapping: Mapping[str, Any], n_heads: int) -> dict[str, list[Label]]:
    """Kind and head of every feature that an attention's projections give, by the projection's name.

    A feature that reaches several heads has none, one that reaches several kinds is `attention`. Empty where the
    family's attention cannot be seen.
    """
    copied = differentiable(module)
    for layer in copied.modules():
        if hasattr(layer, "adapter_layer_names"):
            layer.enable_adapters(False)
    try:
        trunk = Trunk(copied, dict(mapping), n_heads)
        frame = trunk.frame(2)
        return {name: labels for layer in range(trunk.n_layers) for name, labels in _probed(trunk, layer, frame)}
    except (TrunkError, RuntimeError, TypeError, IndexError, ValueError):
        return {}


def _probed(trunk: Trunk, layer: int, frame: Any) -> Iterator[tuple[str, list[Label]]]:
    """The labels of one layer's projections. Norms let everything pass: one over all heads would join them."""
    part, kept = trunk.parts[layer], {}
    known = {id(m): name for name, m in trunk.module.named_modules()}
    written = {id(m) for m in part.output.modules()}
    leaves = [m for m in part.attention.modules() if getattr(m, "weight", None) is not None and id(m) not in written]
    drawn = torch.Generator().manual_seed(0)
    width = trunk.module.config.get_text_config().hidden_size
    hidden = torch.randn(1, 2, width, generator=drawn).to(trunk.device, next(trunk.module.parameters()).dtype)

    def keep(module: Any, args: tuple, out: Any) -> Any:
        if module.weight.ndim < 2:
            return args[0]
        kept[known[id(module)]] = first(out)
        return None

    hooks = [module.register_forward_hook(keep) for module in leaves]
    try:
        with torch.enable_grad():
            made = trunk.seen(layer, hidden, frame)
    finally:
        for hook in hooks:
            hook.remove()
    for name, out in kept.items():
        by_label = _reached(made, out, drawn)
        yield name, [_label([label for label, mask in by_label.items() if mask[f]]) for f in range(out.shape[-1])]


def _reached(made: tuple[Tensor, ...], out: Tensor, drawn: torch.Generator) -> dict[Label, np.ndarray]:
    """Which features of a projection reach the queries, keys and values of each head, bool [feature]."""
    found = {}
    for kind, tensor in zip(("W_Q", "W_K", "W_V"), made, strict=True):
        weights = torch.randn(tensor.shape, generator=drawn).to(tensor)
        for head in range(tensor.shape[1]):
            total = (tensor[:, head] * weights[:, head]).sum()
            (slope,) = torch.autograd.grad(total, out, retain_graph=True, allow_unused=True)
            if slope is not None:
                found[kind, head] = (slope.flatten(0, -2) != 0).any(0).cpu().numpy()
    return found


def _label(reached: list[Label]) -> Label:
    kinds = {kind for kind, _ in reached}
    if len(kinds) != 1:
        return "attention", -1
    return (kinds.pop(), reached[0][1] if len(reached) == 1 else -1)
