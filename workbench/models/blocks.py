"""The pieces of a decoder's blocks: what a run records of them, and what can stand in their place for a while."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

Act = Callable[..., tuple[Tensor, Any]]  # eager, module, query, key, value, mask, **options -> output, weights


@dataclass
class Recording:
    """What one plain run computed, a list entry a layer.

    tokens int64 [batch, pos]; inputs (one entry more: the last block's output), attention and mlp (what the two
    modules return) [batch, pos, d_model]; z [batch, pos, head, d_head]; queries, keys, values [batch, (key-value)
    head, pos, d_head] as attention sees them, after rotation.
    """

    tokens: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


KINDS = tuple(f.name for f in fields(Recording) if f.name != "tokens")


@dataclass(frozen=True)
class Part:
    """The modules of one block."""

    block: Any
    attention: Any
    output: Any
    mlp: Any
    norm: Any
    mlp_norm: Any

    @property
    def before_mlp(self) -> Any:
        """The norm that feeds the MLP: its own, or the one it shares with attention."""
        return self.mlp_norm or self.norm

    def run_mlp(self, stream: Tensor) -> Tensor:
        """What the MLP returns for a residual stream, its norm included."""
        return first(self.mlp(self.before_mlp(stream)))


def first(value: Any) -> Tensor:
    """The output of a module that may return more beside it."""
    return value[0] if isinstance(value, tuple) else value


def part_of(block: Any, names: dict[str, Any]) -> Part:
    """The modules of a block, by the bridge's names for them."""
    attention, mlp = (block.get_submodule(names[name].name) for name in ("attn", "mlp"))
    norms = [block.get_submodule(names[name].name) if name in names else None for name in ("ln1", "ln2")]
    return Part(block, attention, attention.get_submodule(names["attn"].submodules["o"].name), mlp, norms[0], norms[1])


def keeper(kept: Recording) -> Act:
    """An attention function that is the family's own and records what it is given."""

    def act(eager: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any):
        kept.queries.append(query)
        kept.keys.append(key)
        kept.values.append(value)
        return eager(module, query, key, value, mask, **options)

    return act


def listeners(part: Part, kept: Recording, n_heads: int) -> Iterator[Any]:
    """Hooks that fill a recording with the residual stream, head outputs and module outputs of a block."""

    def on_block(module: Any, args: tuple, kwargs: dict, out: Any) -> None:
        if not kept.inputs:
            kept.inputs.append(args[0] if args else kwargs["hidden_states"])
        kept.inputs.append(first(out))

    yield part.block.register_forward_hook(on_block, with_kwargs=True)
    yield part.attention.register_forward_hook(lambda m, a, out: kept.attention.append(first(out)))
    yield part.mlp.register_forward_hook(lambda m, a, out: kept.mlp.append(first(out)))
    yield part.output.register_forward_pre_hook(lambda m, args: kept.z.append(args[0].unflatten(-1, (n_heads, -1))))


@contextlib.contextmanager
def returning(module: Any, value: Tensor | None, paired: bool) -> Iterator[None]:
    """Within the block, calling the module gives `value`; nothing is computed."""
    if value is None:
        yield
        return
    module.forward = lambda *args, **kwargs: (value, None) if paired else value
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def last_only(part: Part, output: bool, mlp: bool) -> Iterator[None]:
    """Within the block, head outputs are projected, and the MLP computed, at the last position only.

    Both are added to the residual stream of all positions; that is right at the last one, which alone is read.
    """
    cut = [module for module, wanted in ((part.output, output), (part.mlp, mlp)) if wanted]
    handles = [m.register_forward_pre_hook(lambda m, args: (args[0][:, -1:], *args[1:])) for m in cut]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
