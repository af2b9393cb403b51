"""What parameters are compared by: pieces of matrices, and the heads, experts and layers that these make up."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.models.expert_names import expert_name
from workbench.models.heads import head_name

ADAPTER, ROUTING = "adapter", "adapter router"  # kinds of what an adapter adds
MATRICES = (
    *("embed", "norm", "W_Q", "W_K", "W_V", "W_O", "attention", "MLP_in", "MLP_gate", "MLP_out", "router", "other"),
    *("unembed", ADAPTER, ROUTING),
)
ALL, BASE = "all", "base"


@dataclass(frozen=True)
class Piece:
    """A part of one parameter that no unit divides: `places` along `axis`, or all of it where there are none.

    kind is one of `MATRICES`; layer, head and expert are -1 where it belongs to none. The head of keys and values is
    the key-value head.
    """

    parameter: int
    size: int
    kind: str
    layer: int = -1
    head: int = -1
    expert: int = -1
    axis: int = 0
    places: tuple[int, ...] | None = None

    def of(self, block: Tensor, rows: range, columns: range) -> Tensor:
        """What lies in a block [..., row, column] of the parameter as a table of its first axis and all others.

        Args:
            block: of some parameter-shaped tables.
            rows: those of the table that are in the block.
            columns: the same.

        Returns:
            [..., number], in the table's order.
        """
        if self.places is None:
            return block.flatten(-2)
        inside, axis = (rows, columns)[self.axis], block.ndim - 2 + self.axis
        found = [place - inside.start for place in self.places if place in inside]
        if not found or found[-1] - found[0] == len(found) - 1:
            return block.narrow(axis, found[0] if found else 0, len(found)).flatten(-2)
        return block.index_select(axis, torch.tensor(found, device=block.device)).flatten(-2)


@dataclass(frozen=True)
class Unit:
    """What gradients are compared on: the whole model, a kind of matrix, a layer, a matrix of a layer, a head, ...

    `pieces` are indices into those of the division; `kind` is whole, kind, layer, matrix, head or expert.
    """

    name: str
    kind: str
    pieces: tuple[int, ...]
    matrix: str = ""
    layer: int = -1
    head: int = -1
    expert: int = -1


@dataclass(frozen=True)
class Division:
    """The parameters named, cut into pieces, and the units these make up."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    pieces: tuple[Piece, ...]
    units: tuple[Unit, ...]

    @property
    def sizes(self) -> np.ndarray:
        """Numbers in each piece, int64 [piece]."""
        return np.array([piece.size for piece in self.pieces], dtype=np.int64)


def units_of(pieces: list[Piece], n_heads: int) -> Iterator[Unit]:
    """The whole, every kind of matrix, then layer by layer: the layer, its matrices, heads and experts."""
    every = tuple(range(len(pieces)))
    added = [i for i in every if pieces[i].kind in (ADAPTER, ROUTING)]
    yield Unit(ALL, "whole", every)
    if 0 < len(added) < len(every):
        yield Unit(BASE, "whole", tuple(i for i in every if i not in set(added)))
    for matrix in _kinds(pieces, every):
        yield Unit(matrix, "kind", tuple(i for i in every if pieces[i].kind == matrix), matrix)
    for layer in sorted({piece.layer for piece in pieces} - {-1}):
        inside = tuple(i for i in every if pieces[i].layer == layer)
        yield Unit(f"L{layer}", "layer", inside, "", layer)
        for matrix in _kinds(pieces, inside):
            members = tuple(i for i in inside if pieces[i].kind == matrix)
            yield Unit(f"L{layer}.{matrix}", "matrix", members, matrix, layer)
        yield from _heads(pieces, inside, layer, n_heads)
        for expert in sorted({pieces[i].expert for i in inside} - {-1}):
            members = tuple(i for i in inside if pieces[i].expert == expert)
            yield Unit(expert_name(layer, expert), "expert", members, "", layer, expert=expert)


def _kinds(pieces: list[Piece], among: tuple[int, ...]) -> list[str]:
    there = {pieces[i].kind for i in among}
    return [kind for kind in MATRICES if kind in there]


def _heads(pieces: list[Piece], inside: tuple[int, ...], layer: int, n_heads: int) -> Iterator[Unit]:
    """The heads of a layer, each with the keys and values it reads."""
    found = [i for i in inside if pieces[i].head >= 0]
    counts = {kind: 1 + max((pieces[i].head for i in found if pieces[i].kind == kind), default=-1) for kind in MATRICES}
    for head in range(n_heads if found else 0):
        mine = [i for i in found if pieces[i].head == head * counts[pieces[i].kind] // n_heads]
        yield Unit(head_name(layer, head), "head", tuple(mine), "", layer, head)
