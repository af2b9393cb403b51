"""A loaded model: what every analysis talks to."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from workbench.models.adapter_routers import AdapterRouters
from workbench.models.adapter_sites import family_of
from workbench.models.card import Card
from workbench.models.edges import Edges
from workbench.models.ends import at_least_single
from workbench.models.reference import ModelError
from workbench.models.routers import RouterError, Routers
from workbench.models.scan import ScanError, Scanner
from workbench.models.trunk import Trunk, TrunkError, share_weights
from workbench.models.trunk_check import checked_trunk

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model, its tokenizer and its trust card.

    Every analysis talks to this object only: `logits`, `capture`, `encode`, and the sizes. Hooks are named as
    transformer_lens names them, `blocks.{layer}.attn.hook_z` and so on.
    """

    bridge: TransformerBridge
    tokenizer: Any
    reference: str
    hash: str
    card: Card
    spec: Mapping[str, Any]
    checkpoint: int = -1
    bos: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)
    plain: Any = None
    tasks: tuple[str, ...] = ()  # of an adapter that routes by task, in the order of their ids
    unbridged: str = ""  # why only its routing can be traced; empty for most

    @functools.cached_property
    def trunk(self) -> Trunk | None:
        """The model's blocks to be run piece by piece, once they gave the bridge's numbers; None where they do not."""
        return self._trunk_or_reason if isinstance(self._trunk_or_reason, Trunk) else None

    @property
    def way(self) -> str:
        """How patching is computed: the fast way, or plain hooks and why."""
        if self.trunk is not None:
            return "recorded run, recomputed only where the patch reaches"
        return f"plain hooks, slower: {self._trunk_or_reason}"

    @functools.cached_property
    def edges(self) -> Edges:
        """The model as edges between heads, MLPs, input and logits.

        Raises:
            ModelError: when the family's blocks cannot be run piece by piece, so that its edges cannot be told apart.
        """
        if self.trunk is None:
            raise ModelError(f"The edges of '{self.reference}' cannot be told apart ({self._trunk_or_reason}).")
        mapping: Any = self.bridge.adapter.component_mapping
        try:
            return Edges(self.trunk, mapping["blocks"].submodules)
        except (TrunkError, AttributeError, KeyError) as error:
            raise ModelError(f"The edges of '{self.reference}' cannot be told apart: {error}.") from error

    @functools.cached_property
    def scanner(self) -> Scanner:
        """The model with its attention read while it is computed, for sequences of any length.

        Raises:
            ModelError: when the family's attention cannot be read so, with the reason.
        """
        self._refuse_unbridged()
        if self.plain is None:
            raise ModelError("Attention is read from raw weights; load the model with fold=False.")
        mapping: Any = self.bridge.adapter.component_mapping
        names = mapping["blocks"].submodules
        attention, mlp = names["attn"], names["mlp"]
        output = f"{attention.name}.{attention.submodules['o'].name}"
        try:
            return Scanner(
                share_weights(self.plain),
                mapping["blocks"].name,
                output,
                mlp.name or mlp.submodules["out"].name,
                self.n_heads,
            )
        except (ScanError, KeyError) as error:
            raise ModelError(f"The attention of '{self.reference}' cannot be read: {error}.") from error

    @functools.cached_property
    def routers(self) -> Routers | AdapterRouters:
        """The routers of a mixture of experts or of a routed adapter, once what is read was proved to be used.

        Raises:
            ModelError: when the model has none, or they cannot be read or believed, with the reason.
        """
        if self.plain is None:
            raise ModelError("Routing is read from raw weights; load the model with fold=False.")
        mapping: Any = self.bridge.adapter.component_mapping
        module, blocks = share_weights(self.plain), mapping["blocks"].name
        try:
            return AdapterRouters(module, blocks, self.tasks) if family_of(module) else Routers(module, blocks)
        except RouterError as error:
            raise self._unreadable(error) from error

    def routed(self, task: str, module: str = "") -> "Model":
        """The same model with the routers it has for a task: of an adapter, those of one routed module.

        Args:
            task: its name, which an adapter that routes by task must have been trained on.
            module: like `q_proj`; the first routed module of a layer, if left out.

        Raises:
            ModelError: for a task or module that is not there, or routing that cannot be read or believed.
        """
        try:
            routers = self.routers.select(task, module)
        except RouterError as error:
            raise self._unreadable(error) from error
        found = replace(self)
        vars(found)["routers"] = routers
        return found

    def _unreadable(self, error: RouterError) -> ModelError:
        return ModelError(f"The routing of '{self.reference}' cannot be read: {error}.")

    def _refuse_unbridged(self) -> None:
        if self.unbridged:
            raise ModelError(f"Of '{self.reference}' only the routing can be traced: {self.unbridged}.")

    @functools.cached_property
    def _trunk_or_reason(self) -> Trunk | str:
        self._refuse_unbridged()
        if self.plain is None:
            return "the weights are folded, which the blocks of the original model are not"
        try:
            return checked_trunk(self.bridge, self.plain)
        except TrunkError as error:
            return f"for this family, {error}"

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.bridge.cfg.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads in each block."""
        return self.bridge.cfg.n_heads

    @property
    def context(self) -> int:
        """Longest prompt the model takes, in tokens."""
        return self.bridge.cfg.n_ctx

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.parameters()).device

    def logits(self, tokens: np.ndarray, edits: Mapping[str, Edit] | None = None) -> torch.Tensor:
        """Logits, float32 at least [batch, pos, vocab], with each hook in `edits` replaced by its function's result."""
        if tokens.shape[-1] > self.context:
            raise ModelError(
                f"A prompt has {tokens.shape[-1]} tokens, but '{self.reference}' takes {self.context}; shorten it."
            )
        self._refuse_unbridged()
        hooks: list[Any] = [(name, _as_hook(edit)) for name, edit in (edits or {}).items()]
        with torch.inference_mode():
            logits = self.bridge.run_with_hooks(self.tensor(tokens), fwd_hooks=hooks, return_type="logits")
            return at_least_single(logits)

    def capture(self, tokens: np.ndarray, names: Sequence[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits as above, and the activation at each named hook."""
        kept: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Edit:
            return lambda value: kept.setdefault(name, value.detach())

        logits = self.logits(tokens, {name: keep(name) for name in names})
        missing = [name for name in names if name not in kept]
        if missing:
            raise ModelError(f"This model family has no hook '{missing[0]}', so this analysis cannot read it.")
        return logits, kept

    def written_logits(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        """Logits float32 [row, head, vocab] if what one head writes, for z [row, head, d_head], were all there is."""
        self._refuse_unbridged()
        rows, heads, width = z.shape
        alone = torch.diag_embed(z.transpose(1, 2), dim1=1, dim2=3)  # [row, head, d_head, head]
        with torch.inference_mode():
            written = self.bridge.blocks[layer].attn.o(alone.transpose(2, 3).reshape(rows, heads, heads * width))
            none = self.bridge.blocks[layer].attn.o(torch.zeros_like(written[:1, :1, :1]).expand(1, 1, heads * width))
            return self.bridge.unembed(self.bridge.ln_final(written - none)).float()

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int64 [pos], with BOS in front where this model is run with one."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.array([self.tokenizer.bos_token_id] * self.bos + ids, dtype=np.int64)

    def tokens(self, ids: np.ndarray) -> list[str]:
        """The text of each token id."""
        return [self.tokenizer.decode([int(i)]) or "·" for i in ids]

    def _repr_html_(self) -> str:
        return self.card.html(self.reference)

    def __repr__(self) -> str:
        size = f"{self.n_layers} layers x {self.n_heads} heads"
        return f"Model({self.reference!r}, {size}, {self.attrs['dtype']} on {self.device}, card {self.card.colour})"


def _as_hook(edit: Edit) -> Callable:
    return lambda value, hook: edit(value)
