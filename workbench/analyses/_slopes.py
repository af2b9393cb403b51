"""Gradients of a loss by parameter, those of matrices as the outer products that they are the sum of.

A linear layer that reads n tokens has a gradient of rank n at most, which takes n (rows + columns) numbers instead of
rows x columns; an embedding has one of n rows. Both are all that is needed of it until it is multiplied with others.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORTH = 1.0  # products are kept where they are at most so many times the numbers of the matrix
ALIKE = 1e-3  # of the largest slope: within it products and autograd agree


@dataclass(frozen=True)
class Product:
    """left^T right, a matrix [row, column], of left [n, row] and right [n, column].

    Where `left` is int64 [n], it says which row each of `right` is added to.
    """

    left: "torch.Tensor"
    right: "torch.Tensor"

    @property
    def picks(self) -> bool:
        """True where rows are picked."""
        return not self.left.is_floating_point()

    @property
    def numbers(self) -> int:
        """How many it takes."""
        return self.left.numel() + self.right.numel()

    def onto(self, table: "torch.Tensor") -> None:
        """Add the matrix to one."""
        if self.picks:
            table.index_add_(0, self.left, self.right)
        else:
            table.addmm_(self.left.T, self.right)


Slope = Any  # a tensor of the parameter's shape, or a list of products that add up to it
Gradients = Mapping[str, Slope]  # by parameter name; a parameter that is missing has none


class Slopes:
    """Takes gradients of losses of a module; no `.grad` and no flag of its parameters is left changed by it.

    Args:
        module: the model; its parameters are this object's to mark as differentiable or not.
        names: of the parameters whose gradients are wanted.
    """

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        parameters = dict(module.named_parameters())
        self.module = module
        self._wanted = {name: parameters[name] for name in names}
        self._owners = _owners(module, self._wanted)
        self._kept: list[tuple[Any, Any, Any]] = []  # of each call: the layer, what went in, what came out
        self._mark()

    def _mark(self, *also: str) -> None:
        """Let autograd differentiate what no product gives, and some more."""
        self.module.requires_grad_(False)
        self._plain = {name: self._wanted[name] for name in self._wanted if name not in self._owners or name in also}
        for value in self._plain.values():
            value.requires_grad_(True)

    def believe(self, loss: "Callable[[], torch.Tensor]") -> None:
        """Leave to autograd what the products do not give: a weight that is also used outside its layer.

        Args:
            loss: of a prompt or two, which is differentiated both ways; compared is what both make of a random vector.
        """
        import torch

        self._mark(*self._owners)
        _, plain, products = self._both(loss)
        drawn = torch.Generator().manual_seed(0)
        for name in list(self._owners):
            expected = plain.get(name, torch.zeros_like(self._wanted[name]))
            vector = torch.randn(expected.shape[1], generator=drawn).to(expected)
            expected, found = expected @ vector, torch.zeros_like(expected[:, 0])
            for product in products.get(name, []):
                Product(product.left, (product.right @ vector)[:, None]).onto(found[:, None])
            if float((found - expected).abs().max()) > ALIKE * float(expected.abs().max()):
                del self._owners[name]
        self._mark()

    def __call__(self, loss: "Callable[[], torch.Tensor]") -> "tuple[float, dict[str, Slope]]":
        """What `loss` gives, a scalar, and its `Slope` by parameter name."""
        value, plain, products = self._both(loss)
        return value, {**plain, **products}

    def _both(
        self, loss: "Callable[[], torch.Tensor]"
    ) -> "tuple[float, dict[str, torch.Tensor], dict[str, list[Product]]]":
        """A loss, and what autograd and the layers give of its gradient."""
        import torch

        with torch.enable_grad(), self._watching():
            value = loss()
        kept, self._kept = self._kept, []
        slopes = torch.autograd.grad(value, [*(out for *_, out in kept), *self._plain.values()], allow_unused=True)
        plain = {name: s for name, s in zip(self._plain, slopes[len(kept) :], strict=True) if s is not None}
        products: dict[str, list[Product]] = {}
        for (layer, given, _), slope in zip(kept, slopes, strict=False):
            if slope is not None:
                products.setdefault(self._names[id(layer)], []).append(_product(layer, given, slope))
        return float(value.detach()), plain, products

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        self._kept = []
        self._names = {id(layer): name for name, layers in self._owners.items() for layer in layers}
        handles = [layer.register_forward_hook(self._keep) for layers in self._owners.values() for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, layer: Any, given: tuple, out: Any) -> Any:
        out = out if out.requires_grad else out.detach().requires_grad_()
        self._kept.append((layer, given[0].detach(), out))
        return out


def together(one: Gradients, other: Gradients) -> dict[str, Slope]:
    """The sum of two gradients."""
    return {
        name: one[name] + other[name] if name in one and name in other else one.get(name, other.get(name))
        for name in {**one, **other}
    }


def settled(slope: Slope, shape: "torch.Size") -> Slope:
    """Products as they are where they take less room than the matrix that they make up, else that matrix."""
    if not isinstance(slope, list) or sum(part.numbers for part in slope) <= WORTH * shape.numel():
        return slope
    return dense(slope, shape)


def dense(slope: Slope, shape: "torch.Size") -> "torch.Tensor":
    """The whole tensor."""
    if not isinstance(slope, list):
        return slope
    table = slope[0].right.new_zeros(shape)
    for product in slope:
        product.onto(table)
    return table


def _owners(module: Any, wanted: "Mapping[str, torch.Tensor]") -> dict[str, list]:
    """The layers each parameter is the matrix of, of those that are one of plain linear layers and embeddings only."""
    names, found, other = {id(value): name for name, value in wanted.items()}, {}, set()
    for layer in module.modules():
        for role, value in layer._parameters.items():
            name = names.get(id(value))
            if name is not None and role == "weight" and _kind(layer):
                found.setdefault(name, []).append(layer)
            elif name is not None:
                other.add(name)
    return {name: layers for name, layers in found.items() if name not in other}


def _kind(layer: Any) -> str:
    """Linear, Conv1D (which holds its matrix the other way round), Embedding, or nothing."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = {nn.Linear: "Linear", Conv1D: "Conv1D", nn.Embedding: "Embedding"}
    return kinds.get(type(layer), "")


def _product(layer: Any, given: "torch.Tensor", slope: "torch.Tensor") -> Product:
    """The gradient of a layer's matrix from what went in and the slopes of what came out, without rows of zeros."""
    slope = slope.reshape(-1, slope.shape[-1])
    used = slope[:, 0] != 0
    if not used.all():
        used[~used] = slope[~used].any(-1)
    if _kind(layer) == "Embedding":
        given = given.reshape(-1)
        if layer.padding_idx is not None:
            used &= given != layer.padding_idx
        return Product(given[used], slope[used])
    given = given.reshape(-1, given.shape[-1])
    if not used.all():
        given, slope = given[used], slope[used]
    return Product(given, slope) if _kind(layer) == "Conv1D" else Product(slope, given)
