"""Which linear maps of a transformers model mix the skills of a routed adapter, and what they are called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FAMILIES = {"poly": "Poly", "xlora": "X-LoRA", "arrow": "Arrow"}


@dataclass(frozen=True)
class Site:
    """A linear map of a layer that mixes skills; `split` is the head of a multi-head router it stands for."""

    layer: int
    name: str
    linear: Any
    split: int = 0


def family_of(module: Any) -> str:
    """Poly, X-LoRA or Arrow, by the first routed layer of a module; empty where none is."""
    return FAMILIES.get(next(filter(None, map(kind_of, module.modules())), ""), "")


def kind_of(part: Any) -> str:
    """The key in `FAMILIES` of a module that mixes skills; empty for any other."""
    if hasattr(part, "poly_router"):
        return "poly"
    if hasattr(part, "lora_arrow") and set(part.active_adapters) & set(part.lora_arrow):
        return "arrow"
    return "xlora" if hasattr(getattr(part.forward, "__self__", part), "get_maybe_topk_scalings") else ""


def sites_of(blocks: Any) -> Iterator[Site]:
    """Every routed linear map of the blocks, a multi-head one once a split, in the order of the layers."""
    for layer, block in enumerate(blocks):
        taken: set[str] = set()
        for path, part in block.named_modules():
            if not kind_of(part):
                continue
            leaf = path.rpartition(".")[2]
            name = path if leaf in taken else leaf
            taken.add(name)
            splits = part.n_splits[part.active_adapters[0]] if kind_of(part) == "poly" else 1
            for split in range(splits):
                yield Site(layer, f"{name}/{split}" if splits > 1 else name, part, split)
