"""A model's own blocks, run piece by piece: from any layer, at few positions, with attention, heads or MLPs replaced.

A forward pass with a hook recomputes everything before the hook and unembeds every position. Here a run is recorded
once, and what an intervention cannot change is read from the recording. The family's own code runs each block, and
transformers' attention interface gives its queries, keys and values, so nothing here knows a family by name.
"""

import contextlib
import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import NewGELUActivation
from transformers.masking_utils import eager_mask

from workbench.models.blocks import KINDS, Act, Part, Recording, first, keeper, last_only, listeners, part_of, returning
from workbench.models.ends import base_of, finished

Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # of queries, keys and values
ATTENTION = "workbench"
FRAMES = 16  # kept (length, start) pairs
BUDGET = {"cpu": 0.5e9, "cuda": 8e9, "mps": 1e9}  # bytes of activations in one folded forward, at most
SHARE = 0.25  # of the memory that is free


class TrunkError(Exception):
    """Why this family cannot be run piece by piece."""


class _Seen(Exception):
    """Carries queries, keys and values out of a block that need not run on."""


@dataclass(frozen=True)
class Frame:
    """What the blocks of a run are called with besides the hidden state; masks are those of the whole length."""

    start: int
    calls: list[tuple[tuple, dict]]
    masks: list[Tensor | None]


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any):
    """The attention function the blocks call: the family's own eager one, or what `Trunk.acting` put there."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    act = getattr(module, "workbench_act", None)
    if act is None:
        return eager(module, query, key, value, attention_mask, **options)
    return act(eager, module, query, key, value, attention_mask, **options)


def share_weights(module: torch.nn.Module) -> torch.nn.Module:
    """A second module of the same structure over the very same parameters and buffers: no memory but the structure.

    Where the family spells GELU's tanh form out in six operations, the copy has torch's one.
    """
    held = [*module.parameters(), *module.buffers()]
    shared = copy.deepcopy(module, {id(tensor): tensor for tensor in held})
    for parent in shared.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))
    return shared


class Trunk:
    """A transformers decoder whose blocks can be run one by one.

    Args:
        module: the causal language model as transformers made it.
        mapping: the bridge's component mapping: what the blocks and their parts are called in this family.
        n_heads: query heads a layer.

    Raises:
        TrunkError: when a part is missing.
    """

    def __init__(self, module: Any, mapping: dict[str, Any], n_heads: int) -> None:
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        self.module, self.n_heads, self.lock = module, n_heads, threading.RLock()
        try:
            names = mapping["blocks"].submodules
            blocks = module.get_submodule(mapping["blocks"].name)
            self.norm, self.head = (module.get_submodule(mapping[name].name) for name in ("ln_final", "unembed"))
            self.parts = [part_of(block, names) for block in blocks]
            module.set_attn_implementation(ATTENTION)
        except (KeyError, AttributeError, ValueError) as error:
            raise TrunkError(f"its blocks have other parts than attention, MLP and norms ({error})") from error
        configs = [getattr(part.attention, "config", None) for part in self.parts]
        if any(getattr(config, "_attn_implementation", "") != ATTENTION for config in configs):
            raise TrunkError("its attention does not go through transformers' attention interface")
        self._frames: dict[tuple, Frame] = {}
        self._pairs = False  # whether its MLPs return something beside their output; seen in the first recording

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.parts)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def record(self, tokens: Tensor, *kinds: str) -> Recording:
        """A plain run on tokens int64 [batch, pos], of which the kinds named are kept (all, if none is)."""
        kept = Recording(tokens)
        with self.lock, torch.no_grad(), contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(self.acting(part, keeper(kept)))
                for handle in listeners(part, kept, self.n_heads):
                    stack.callback(handle.remove)
            stack.callback(self.parts[0].mlp.register_forward_hook(self._see_pairs).remove)
            base_of(self.module)(input_ids=tokens, use_cache=False)
        if len(kept.keys) != self.n_layers:
            raise TrunkError("its attention does not go through transformers' attention interface")
        return replace(kept, **{kind: [] for kind in KINDS if kinds and kind not in kinds})

    def _see_pairs(self, module: Any, args: tuple, out: Any) -> None:
        self._pairs = isinstance(out, tuple)

    def frame(self, length: int, start: int = 0) -> Frame:
        """How the blocks are called in a run of `length` tokens of which those from `start` on are computed."""
        key = (length, start, str(self.device))
        if key not in self._frames:
            while len(self._frames) >= FRAMES:
                self._frames.pop(next(iter(self._frames)))
            self._frames[key] = self._make_frame(length, start)
        return self._frames[key]

    def _make_frame(self, length: int, start: int) -> Frame:
        calls: list[tuple[tuple, dict]] = []
        masks: list[Tensor | None] = []

        def call(module: Any, args: tuple, kwargs: dict) -> None:
            named = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append((args[1:] if args else (), named))

        def mask_only(eager: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any):
            masks.append(mask)
            return eager(module, query, key, value, mask, **options)

        where = torch.arange(start, length, device=self.device)[None]
        with self.lock, torch.no_grad(), contextlib.ExitStack() as stack:
            for part in self.parts:
                handle = part.block.register_forward_pre_hook(call, with_kwargs=True)
                stack.callback(handle.remove)
                stack.enter_context(self.acting(part, mask_only))
            base_of(self.module)(input_ids=torch.zeros_like(where), position_ids=where, use_cache=False)
        if start:
            masks = [None if m is None else m[:, :, start:] for m in self.frame(length).masks]
        return Frame(start, calls, masks)

    @contextlib.contextmanager
    def acting(self, part: Part, act: Act | None) -> Iterator[None]:
        """Within the block, this layer's attention is computed by `act`."""
        part.attention.workbench_act = act
        try:
            yield
        finally:
            part.attention.workbench_act = None

    @contextlib.contextmanager
    def _editing(self, edits: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Within the block, head outputs z [row, pos, head, d_head] of a layer are what its function makes of them."""
        with self.lock, contextlib.ExitStack() as stack:
            for layer, edit in edits.items():

                def put(module: Any, args: tuple, edit: Callable[[Tensor], Tensor] = edit) -> tuple:
                    return (edit(args[0].unflatten(-1, (self.n_heads, -1))).flatten(-2), *args[1:])

                stack.callback(self.parts[layer].output.register_forward_pre_hook(put).remove)
            yield

    def step(
        self,
        layer: int,
        hidden: Tensor,
        frame: Frame,
        *,
        act: Act | None = None,
        attention: Tensor | None = None,
        mlp: Tensor | None = None,
    ) -> Tensor:
        """One block on hidden [row, pos, d_model]; `attention` and `mlp` stand for what these modules would return."""
        part, (args, kwargs) = self.parts[layer], frame.calls[layer]
        instead = returning(part.attention, attention, True), returning(part.mlp, mlp, self._pairs)
        with self.lock, self.acting(part, act), instead[0], instead[1]:
            return first(part.block(hidden, *args, **kwargs))

    def seen(self, layer: int, hidden: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [row, head, pos, d_head] that a block's attention would work on; no attention."""

        def stop(eager: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any):
            raise _Seen(query, key, value)

        try:
            self.step(layer, hidden, frame, act=stop)
        except _Seen as found:
            return found.args
        raise TrunkError("its attention does not go through transformers' attention interface")

    def out(self, layer: int, z: Tensor) -> Tensor:
        """What the attention of a layer returns for head outputs z [row, pos, head, d_head]."""
        return self.parts[layer].output(z.flatten(-2).contiguous())

    def run_on(
        self,
        layer: int,
        hidden: Tensor,
        recorded: Recording,
        start: int,
        *,
        attention: Tensor | None = None,
        acts: Mapping[int, Callable[[Tensor], Change]] | None = None,
        edits: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """The last block's output at the last position, [row, d_model], of a run changed in or after `layer`.

        Args:
            layer: the first block to run.
            hidden: its input at the positions from `start` on, [row, pos, d_model]; rows are the recorded prompts
                repeated, prompts fastest.
            recorded: the unchanged run, whose keys and values before `start` are read.
            start: first position that is computed.
            attention: what the attention of `layer` returns, if that is what was changed.
            acts: for a layer, a function of its input that gives the change to queries, keys and values.
            edits: for a layer, what its head outputs z [row, pos, head, d_head] become.
        """
        length = recorded.tokens.shape[1]
        frame, last = self.frame(length, start), self.n_layers - 1
        with torch.no_grad(), self._editing(edits or {}):
            for index in range(layer, self.n_layers):
                given = attention if index == layer else None
                change = acts[index](hidden) if acts and index in acts else None
                act = self.resume(recorded, index, frame, index == last, change)
                with last_only(self.parts[index], index == last and given is None, index == last):
                    cut = given[:, -1:] if given is not None and index == last else given
                    hidden = self.step(index, hidden, frame, act=act, attention=cut)
        return hidden[:, -1]

    def resume(
        self, recorded: Recording, layer: int, frame: Frame, last: bool = False, change: Change | None = None
    ) -> Act:
        """Attention over recorded keys and values before the frame's start and computed ones from it on.

        With `last` only the last query is computed; `change` is applied to queries, keys and values first.
        """
        keys, values = (kept[layer][:, :, : frame.start] for kept in (recorded.keys, recorded.values))
        mask = frame.masks[layer]

        def act(eager: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **options: Any):
            if change is not None:
                query, key, value = change(query, key, value)
            if frame.start:
                times = len(key) // len(keys)
                key = torch.cat([keys.repeat(times, 1, 1, 1), key], 2)
                value = torch.cat([values.repeat(times, 1, 1, 1), value], 2)
            if not last:
                return eager(module, query, key, value, mask, **options)
            end = None if mask is None else mask[:, :, -1:]
            z, weights = eager(module, query[:, :, -1:], key, value, end, **options)
            return z.expand(-1, query.shape[2], -1, -1), weights

        return act

    def logits(self, last: Tensor, columns: Tensor | None = None) -> Tensor:
        """Logits, float32 at least [row, column], of final residuals [row, d_model], at the `columns` only."""
        normed, weight, bias = self.norm(last), self.head.weight, getattr(self.head, "bias", None)
        if columns is not None:
            weight, bias = weight[columns], None if bias is None else bias[columns]
        return finished(F.linear(normed, weight, bias), self.module.config.get_text_config())

    def rows(self, positions: int, length: int) -> int:
        """How many rows of so many positions one folded forward takes, from the memory at hand; at least 1."""
        config = self.module.config.get_text_config()
        width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        each = 4 * positions * (8 * config.hidden_size + 3 * width + 2 * self.n_heads * length)
        return max(1, int(min(BUDGET[self.device.type], SHARE * _free(self.device)) / each))


def _free(device: torch.device) -> float:
    """Bytes of memory free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
