"""Attention read while it is computed: a forward pass in which no query x key pattern is ever held whole.

Each layer's attention is computed in blocks of a few queries, and of every block only what is asked for is kept: the
attention each key receives, and the columns of chosen keys. The family's own blocks run everything else.
"""

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from workbench.models.blocks import first
from workbench.models.checks import TOLERANCE
from workbench.models.ends import base_of, run_base, token_losses
from workbench.models.reading import matrix

NAME = "workbench_scan"
BLOCK = {"cpu": 64, "cuda": 256, "mps": 128}  # queries at once: small enough for a core's cache
PROBE = 12
EXTRAS = ("softcap", "position_bias", "sinks", "s_aux")  # what some families' attention has beside the scores


class ScanError(Exception):
    """Why this family's attention cannot be read while it is computed."""


@dataclass
class Heads:
    """What the attention of one layer shows, while it is being computed.

    received [row, head, key]: attention summed over the row's queries (padding left out). columns [row, head, query,
    watched key]. queries, keys, values [row, (key-value) head, pos, d_head] as attention sees them, after rotation;
    z [row, pos, head, d_head].
    """

    index: int
    received: Tensor
    columns: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    z: Tensor
    options: Mapping[str, Any]

    def scores(self) -> Tensor:
        """Pre-softmax scores [row, head, query, key], scaled and capped as the family does; later keys included.

        Raises:
            ScanError: when a position bias is added to them.
        """
        if self.options.get("position_bias") is not None:
            raise ScanError("its attention adds a position bias to the scores")
        keys = self.keys.repeat_interleave(self.queries.shape[1] // self.keys.shape[1], 1)
        scale, cap = self.options.get("scaling"), self.options.get("softcap")
        found = self.queries @ keys.transpose(2, 3) * (keys.shape[-1] ** -0.5 if scale is None else scale)
        return found if cap is None else cap * torch.tanh(found / cap)


@dataclass
class Layer:
    """What one block shows when it is done: as in `Heads`, and hidden [row, pos, d_model], the block's output."""

    index: int
    received: Tensor
    columns: Tensor
    hidden: Tensor


@dataclass
class _Run:
    """What the attention function needs to know of the run it is part of."""

    real: Tensor | None  # bool [row, pos]: not padding
    watched: list[int]
    hidden_keys: Mapping[int, Tensor]  # layer -> bool [row, key]
    heads: Callable[[Heads], None] | None
    seen: dict[int, tuple[Tensor, Tensor]]


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any):
    scanner, layer = module.workbench_scan
    return scanner.attend(layer, module, query, key, value, attention_mask, options)


class Scanner:
    """A transformers model whose attention is read block by block; its forward pass gives the model's own numbers.

    Args:
        module: the model as transformers made it, in a copy this scanner may keep (see `share_weights`).
        blocks: the module's name of its list of blocks.
        output: the name, inside a block, of the projection that reads the head outputs.
        mlp: the name, inside a block, of the module that returns what the MLP adds.
        n_heads: query heads a layer.

    Raises:
        ScanError: when what it reads is not what the model computes.
    """

    def __init__(self, module: Any, blocks: str, output: str, mlp: str, n_heads: int) -> None:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        self.module, self.n_heads, self.own = module, n_heads, True
        self._run: _Run | None = None
        self.lock = threading.RLock()
        try:
            self.blocks = list(module.get_submodule(blocks))
            self.outputs = [block.get_submodule(output) for block in self.blocks]
            self.mlps = [block.get_submodule(mlp) for block in self.blocks]
        except AttributeError as error:
            raise ScanError(f"its blocks have other parts ({error})") from error
        for layer, block in enumerate(self.blocks):
            for part in block.modules():
                part.workbench_scan = (self, layer)
        self._check()

    def _check(self) -> None:
        """The fast blocks, or else the family's own attention on them, must give what whole patterns give."""
        base, vocab = base_of(self.module), self.module.config.get_text_config().vocab_size
        tokens = torch.randint(0, vocab, (2, PROBE), generator=torch.Generator().manual_seed(0)).to(self.device)
        try:
            self.module.set_attn_implementation("eager")
            with torch.no_grad():
                plain = base(input_ids=tokens, output_attentions=True)
            self.module.set_attn_implementation(NAME)
        except (ValueError, TypeError) as error:
            raise ScanError(f"its attention does not go through transformers' attention interface ({error})") from error
        patterns = [pattern for pattern in plain.attentions or () if pattern is not None]
        if len(patterns) != len(self.blocks):
            raise ScanError("it does not give its attention patterns, so that nothing can be checked")
        for self.own in (True, False):
            if self._agrees(tokens, plain.last_hidden_state, patterns):
                return
        raise ScanError("its attention, computed a few queries at a time, gives other numbers")

    def _agrees(self, tokens: Tensor, expected: Tensor, patterns: list[Tensor]) -> bool:
        found: list[Tensor] = []
        try:
            last = self.run(tokens, lambda layer: found.append(layer.received))
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
            return False
        allowed = TOLERANCE[expected.dtype]
        return (
            len(found) == len(patterns)
            and torch.allclose(last, expected, atol=allowed * expected.abs().max().item(), rtol=0)
            and all(
                torch.allclose(a, p.to(a.dtype).sum(-2), atol=PROBE * allowed)
                for a, p in zip(found, patterns, strict=True)
            )
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def causal(self) -> bool:
        """Whether queries see no later key."""
        attention = next(part for part in self.blocks[0].modules() if hasattr(part, "is_causal"))
        return bool(attention.is_causal)

    def run(
        self,
        tokens: Tensor,
        read: Callable[[Layer], None] | None = None,
        *,
        heads: Callable[[Heads], None] | None = None,
        lengths: Tensor | None = None,
        watched: list[int] | None = None,
        hide: Mapping[int, Tensor] | None = None,
        mlps: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        streams: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """One forward pass; `read` is called with each layer in turn. Returns the normed last residuals.

        Args:
            tokens: int64 [row, pos], padded on the right where rows differ in length.
            read: is given each `Layer`.
            heads: is given the `Heads` of each layer before; what it does not keep is freed before the MLP runs.
            lengths: int64 [row], tokens that are not padding; None where there is none.
            watched: keys whose columns are kept.
            hide: for a layer, bool [row, key]: keys that no other position may attend to.
            mlps: for a layer, what the MLP's output [row, pos, d_model] becomes.
            streams: for a layer, what the block's output [row, pos, d_model] becomes; `read` sees it so.

        Returns:
            [row, pos, d_model], what the unembedding reads.
        """
        real = None if lengths is None else torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        state = _Run(real, watched or [], hide or {}, heads, {})
        with self.lock, torch.no_grad(), contextlib.ExitStack() as stack:
            self._run = state
            stack.callback(setattr, self, "_run", None)
            for index, edit in (streams or {}).items():  # before the reading hooks, which come in this order
                stack.callback(self.blocks[index].register_forward_hook(_edited(edit)).remove)
            for index, block in enumerate(self.blocks):
                stack.callback(block.register_forward_hook(self._told(index, read, state)).remove)
            for index, edit in (mlps or {}).items():
                stack.callback(self.mlps[index].register_forward_hook(_edited(edit)).remove)
            return run_base(self.module, tokens, real).last_hidden_state

    def _told(self, index: int, read: Callable[[Layer], None] | None, state: _Run) -> Callable:
        def tell(module: Any, args: tuple, out: Any) -> None:
            received, columns = state.seen.pop(index)
            if read is not None:
                read(Layer(index, received, columns, first(out)))

        return tell

    def attend(
        self, layer: int, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict
    ) -> tuple[Tensor, None]:
        """Attention of one layer, a block of queries at a time."""
        state, length = self._run, query.shape[2]
        assert state is not None
        causal = mask is None and bool(getattr(module, "is_causal", True))
        keep, size = state.hidden_keys.get(layer), BLOCK[query.device.type]
        plain = self.own and not any(options.get(name) is not None for name in EXTRAS)
        attention: _Blocks | _Eager = _Eager(module, query, key, value, options)
        if plain:
            attention = _Blocks(query, key, value, options.get("scaling"))
        received = query.new_zeros(*query.shape[:2], length, dtype=torch.promote_types(query.dtype, torch.float32))
        columns = received.new_zeros(*query.shape[:3], len(state.watched))
        z = query.new_empty(query.shape[0], length, query.shape[1], value.shape[-1])
        for start in range(0, length, size):
            rows = slice(start, min(start + size, length))
            visible = _visible(rows, length, causal, mask, keep, query.device)
            z[:, rows], weights = attention(rows, visible)
            if state.real is not None:
                weights = weights * state.real[:, None, rows, None]
            received[:, :, : visible.end] += weights.sum(2, dtype=received.dtype)
            for index, watched in enumerate(state.watched):
                if watched < visible.end:
                    columns[:, :, rows, index] = weights[..., watched].to(columns.dtype)
        state.seen[layer] = (received, columns)
        if state.heads is not None:
            state.heads(Heads(layer, received, columns, query, key, value, z, options))
        return z, None

    def written(self, layer: int, z: Tensor) -> Tensor:
        """Norm of what each head writes to the residual stream, ||z W_O|| [row, pos, head], for z as in `Layer`."""
        weight = matrix(self.outputs[layer])[0].unflatten(1, (self.n_heads, -1))
        found = torch.empty(z.shape[:3], device=z.device)
        for head in range(self.n_heads):  # z W_O itself would be d_model wide for every head
            own, read = weight[:, head].float(), z[:, :, head].float()
            found[:, :, head] = ((read @ (own.T @ own)) * read).sum(-1)
        return found.clamp_min_(0).sqrt_()

    def losses(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """Next-token cross-entropy in nats [row, pos - 1], float32, of normed last residuals [row, pos, d_model]."""
        return token_losses(self.module, normed, tokens)


def _edited(edit: Callable[[Tensor], Tensor]) -> Callable:
    def put(module: Any, args: tuple, out: Any) -> Any:
        return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

    return put


@dataclass(frozen=True)
class _Visible:
    """Which keys the queries of a block may see: all before `start`, and from it on those of `allowed`.

    allowed is bool [row or 1, 1, query, key from `start` to `end`], or None where nothing is closed.
    """

    end: int
    start: int = 0
    allowed: Tensor | None = None


def _visible(rows: slice, length: int, causal: bool, mask: Tensor | None, keep: Tensor | None, at: Any) -> _Visible:
    queries, end = torch.arange(rows.start, rows.stop, device=at), rows.stop if causal else length
    if mask is None and keep is None:  # only the square on the diagonal is partly closed
        return _Visible(end, rows.start, (queries <= queries[:, None])[None, None]) if causal else _Visible(end)
    keys = torch.arange(end, device=at)
    allowed = (keys <= queries[:, None])[None, None] if causal else None
    if mask is not None:
        allowed = mask[:, :, rows, :end] if mask.dtype == torch.bool else mask[:, :, rows, :end] == 0
    if keep is None:
        return _Visible(end, 0, allowed)
    open_ = ~keep[:, None, None, :end] | (keys == queries[:, None])  # a token may always look at itself
    return _Visible(end, 0, open_ if allowed is None else allowed & open_)


class _Blocks:
    """Scaled dot-product attention of a block of queries; heads that share keys and values are one product."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        self.rows, self.heads, length, width = query.shape
        self.scale = width**-0.5 if scaling is None else scaling
        self.query = query.unflatten(1, (key.shape[1], -1))  # [row, key-value head, group, pos, d_head]
        self.key, self.value = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
        self.space = query.new_empty(self.rows * self.heads * BLOCK[query.device.type] * length)

    def __call__(self, rows: slice, visible: _Visible) -> tuple[Tensor, Tensor]:
        """What heads read [row, query, head, d_head], and weights [row, head, query, key up to the last visible]."""
        query = (self.query[:, :, :, rows] * self.scale).flatten(2, 3).flatten(0, 1)
        shape = (*query.shape[:2], visible.end)
        scores = torch.bmm(query, self.key[:, :, : visible.end], out=self.space[: math.prod(shape)].view(shape))
        split = scores.view(self.rows, self.heads, -1, visible.end)
        if visible.allowed is not None:
            split[..., visible.start :].masked_fill_(~visible.allowed, torch.finfo(scores.dtype).min)
        weights = _softmax(scores)
        z = torch.bmm(weights.to(self.value.dtype), self.value[:, : visible.end])
        return z.view(self.rows, self.heads, -1, z.shape[-1]).transpose(1, 2), weights.view_as(split)


class _Eager:
    """The family's own attention, on a block of queries."""

    def __init__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, options: dict) -> None:
        self.attention = sys.modules[type(module).__module__].eager_attention_forward
        self.module, self.query, self.key, self.value, self.options = module, query, key, value, options

    def __call__(self, rows: slice, visible: _Visible) -> tuple[Tensor, Tensor]:
        """As `_Blocks`."""
        query, end, bias = self.query[:, :, rows], visible.end, None
        if visible.allowed is not None:
            bias = query.new_zeros(*visible.allowed.shape[:3], end)
            bias[..., visible.start :].masked_fill_(~visible.allowed, torch.finfo(query.dtype).min)
        return self.attention(self.module, query, self.key[:, :, :end], self.value[:, :, :end], bias, **self.options)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 at least, in place where it can be."""
    if scores.dtype in (torch.float16, torch.bfloat16):
        return torch.softmax(scores, -1, dtype=torch.float32)
    return torch.softmax(scores, -1, out=scores)
