"""The edges of a decoder: who writes to the residual stream, and which input of which module reads it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.models.heads import head_name
from workbench.registry import WorkbenchError

KINDS = ("q", "k", "v", "mlp", "logits")  # of readers, by code
INPUT, MLP = "input", "MLP"
SHAPE = ("layers", "heads", "kv_heads", "parallel")  # attributes of a result by edges


@dataclass(frozen=True)
class Graph:
    """Writers and readers of a model, in the order of its layers.

    Writers are `input` (what enters the first block), the heads `L0H0`, ... and `MLP0`, ... . Readers are the queries
    of each head (`L0H0.q`), the keys and values of each key-value head (`L0H0.k`, or `L0KV0.k` where heads are
    grouped), the MLPs and `logits`. In a parallel block the MLP does not read the heads beside it.
    """

    layers: int
    heads: int
    kv_heads: int
    parallel: bool = False

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> "Graph":
        """The graph that a result by edges was made on, from its attributes."""
        layers, heads, kv_heads, parallel = (int(attrs[name]) for name in SHAPE)
        return cls(layers, heads, kv_heads, bool(parallel))

    @property
    def attrs(self) -> dict[str, int]:
        """What a result has to say of its graph, for `of`."""
        return {name: int(getattr(self, name)) for name in SHAPE}

    @functools.cached_property
    def writers(self) -> list[str]:
        """Names, input first; `writer` gives the index."""
        blocks = [[*(head_name(layer, h) for h in range(self.heads)), f"{MLP}{layer}"] for layer in range(self.layers)]
        return [INPUT, *(name for block in blocks for name in block)]

    @functools.cached_property
    def readers(self) -> list[str]:
        """Names, logits last; `reader` gives the index."""
        names = []
        for layer in range(self.layers):
            names += [f"{head_name(layer, h)}.q" for h in range(self.heads)]
            names += [f"{self._keyed(layer, h)}.{part}" for part in "kv" for h in range(self.kv_heads)]
            names.append(f"{MLP}{layer}")
        return [*names, KINDS[-1]]

    def _keyed(self, layer: int, head: int) -> str:
        return head_name(layer, head) if self.kv_heads == self.heads else f"L{layer}KV{head}"

    @property
    def readers_a_layer(self) -> int:
        """Inputs of one block."""
        return self.heads + 2 * self.kv_heads + 1

    def writer(self, layer: int, head: int = -1) -> int:
        """Index of a head, or of the layer's MLP (-1)."""
        return 1 + layer * (self.heads + 1) + (self.heads if head < 0 else head)

    def readers_of(self, layer: int, part: str) -> slice:
        """Where the readers of a part (q, k, v, mlp) of a layer are."""
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads, "mlp": 1}
        first = layer * self.readers_a_layer + sum(sizes[p] for p in KINDS[: KINDS.index(part)])
        return slice(first, first + sizes[part])

    def before(self, layer: int, part: str) -> int:
        """How many writers stand before the readers of a part of a layer (`logits`: all)."""
        if part == KINDS[-1]:
            return len(self.writers)
        beside = self.heads if part == "mlp" and not self.parallel else 0
        return 1 + layer * (self.heads + 1) + beside

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Whether there is an edge, bool [reader, writer]."""
        found = np.zeros((len(self.readers), len(self.writers)), bool)
        for layer in range(self.layers):
            for part in KINDS[:4]:
                found[self.readers_of(layer, part), : self.before(layer, part)] = True
        found[-1] = True
        return found

    @functools.cached_property
    def writer_cells(self) -> np.ndarray:
        """Layer and head of each writer, int32 [writer, 2]; head -1 is the MLP, layer -1 the input."""
        cells = [(layer, h) for layer in range(self.layers) for h in (*range(self.heads), -1)]
        return np.array([(-1, 0), *cells], dtype=np.int32)

    @functools.cached_property
    def reader_cells(self) -> np.ndarray:
        """Layer, head and kind (see `KINDS`) of each reader, int32 [reader, 3]; -1 where there is none."""
        cells = []
        for layer in range(self.layers):
            cells += [(layer, h, 0) for h in range(self.heads)]
            cells += [(layer, h, kind) for kind in (1, 2) for h in range(self.kv_heads)]
            cells.append((layer, -1, 3))
        return np.array([*cells, (-1, -1, 4)], dtype=np.int32)

    @functools.cached_property
    def types(self) -> np.ndarray:
        """Which kind of writer meets which kind of reader, as one code an edge, int [reader, writer]."""
        wrote = np.where(self.writer_cells[:, 0] < 0, 0, np.where(self.writer_cells[:, 1] < 0, 2, 1))
        return self.reader_cells[:, 2][:, None] * 3 + wrote[None]

    def edge(self, text: str) -> tuple[int, int]:
        """(reader, writer) indices of an edge written `L2H3->L4H1.q`."""
        writer, _, reader = (part.strip() for part in text.partition("->"))
        known = writer in self.writers and reader in self.readers
        place = (self.readers.index(reader), self.writers.index(writer)) if known else (0, 0)
        if not known or not self.valid[place]:
            raise WorkbenchError(f"'{text}' is no edge of this model; write it like L0H1->L1H2.q or MLP0->logits.")
        return place

    def name(self, reader: int, writer: int) -> str:
        """An edge's name."""
        return f"{self.writers[writer]}->{self.readers[reader]}"
