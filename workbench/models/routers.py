"""Where a mixture of experts really routes: what its routers said, and what its experts were called with.

In transformers every family's block hands its experts the tokens, the experts chosen and their weights; that call is
read and, for an intervention, changed. Nothing is believed before it was proved on a small run.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from workbench.models.checks import TOLERANCE
from workbench.models.ends import run_base, token_losses

NAMES = ("gate", "router")  # of the router, beside the module `experts`
PROBE = 12
Rescored = Callable[[Tensor], Tensor]  # logits [row, pos, expert] -> logits
Rerouted = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # chosen, weights [row, pos, k] -> chosen, weights


class RouterError(Exception):
    """Why a model's routing cannot be read, or not be believed."""


@dataclass(frozen=True)
class Routed:
    """How one layer routed: logits [row, pos, expert]; chosen int64 and weights [row, pos, k], as its experts got."""

    layer: int
    logits: Tensor
    chosen: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Rule:
    """How a layer's weights come from its logits.

    weights: one of `WEIGHTS`. factor: what they are multiplied with. ranked: whether the experts chosen are those with
    the largest logits; with groups or a bias they need not be.
    """

    weights: str
    factor: float
    ranked: bool


WEIGHTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax over all": lambda logits, chosen: logits.softmax(-1).gather(-1, chosen),
    "softmax over the chosen": lambda logits, chosen: logits.gather(-1, chosen).softmax(-1),
    "sigmoid": lambda logits, chosen: logits.sigmoid().gather(-1, chosen),
    "sigmoid over its sum": lambda logits, chosen: _shares(logits.sigmoid().gather(-1, chosen)),
}


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)


class _Rescoring(TorchFunctionMode):
    """Within it, the first linear map's result, which is a router's logits, becomes what a function makes of it."""

    def __init__(self, edit: Callable[[Tensor], Tensor]) -> None:
        self.edit, self.done = edit, False

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is F.linear and not self.done:
            self.done = True
            return self.edit(found)
        return found


class Routers:
    """The routers of a transformers model.

    Args:
        module: the causal language model, in a copy these routers may keep.
        blocks: the module's name of its list of blocks.

    Raises:
        RouterError: when it has no routers, or what is read of them is not what its experts work with.
    """

    by_task = False  # whether all tokens of a task are routed alike
    absolute = False  # whether a logit is the size of a score, and so never negative
    name = family = task = ""  # of the module that routes, its kind and its task, where it is an adapter's

    def __init__(self, module: Any, blocks: str) -> None:
        self.module, self.lock = module, threading.RLock()
        self.parts = dict(_found(module.get_submodule(blocks)))
        if not self.parts:
            raise RouterError("its blocks have no experts")
        self.rules = self._proved()

    @property
    def layers(self) -> list[int]:
        """The blocks that route."""
        return list(self.parts)

    @property
    def experts(self) -> int:
        """Experts in each layer that routes."""
        return self._experts

    @property
    def k(self) -> int:
        """Experts that a token chooses."""
        return self._k

    def run(
        self,
        tokens: Tensor,
        read: Callable[[Routed], None] | None = None,
        *,
        lengths: Tensor | None = None,
        rescore: Mapping[int, Rescored] | None = None,
        reroute: Mapping[int, Rerouted] | None = None,
    ) -> Tensor:
        """One forward pass; `read` is called with each routing layer in turn. Returns the normed last residuals.

        Args:
            tokens: int64 [row, pos], padded on the right where rows differ in length.
            read: is given each layer's `Routed`, as it was after any change.
            lengths: int64 [row], tokens that are not padding; None where there is none.
            rescore: for a layer, what its logits become before the family's own rule chooses and weighs.
            reroute: for a layer, what the experts chosen and their weights become after it.
        """
        real = None if lengths is None else torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        with self.lock, torch.no_grad(), contextlib.ExitStack() as stack:
            for layer, (router, experts) in self.parts.items():
                if edit := (rescore or {}).get(layer):
                    stack.enter_context(_rescored(router, _shaped(edit, tokens.shape)))
                seen = _Seen(layer, tokens.shape, read, (reroute or {}).get(layer))
                stack.callback(router.register_forward_hook(seen.router).remove)
                stack.callback(experts.register_forward_pre_hook(seen.experts).remove)
            return run_base(self.module, tokens, real).last_hidden_state

    def losses(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """Next-token cross-entropy in nats [row, pos - 1], float32, of normed last residuals [row, pos, d_model]."""
        return token_losses(self.module, normed, tokens)

    def select(self, task: str, name: str = "") -> "Routers":
        """These routers: the same for every task, and one a layer.

        Raises:
            RouterError: when a module is named.
        """
        if name:
            raise RouterError(f"its layers route once, not at modules like '{name}'; leave the module out")
        return self

    @contextlib.contextmanager
    def listening(self, hear: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Within it, a pass tells each layer what its router works on, hidden [token, d]."""
        with contextlib.ExitStack() as stack:
            for layer, (router, _) in self.parts.items():

                def on_call(module: Any, args: tuple, layer: int = layer) -> None:
                    hear(layer, args[0].flatten(0, -2))

                stack.callback(router.register_forward_pre_hook(on_call).remove)
            yield

    def _proved(self) -> dict[int, Rule]:
        """The rule of each layer, once everything that is read was found to be what the experts work with."""
        config = self.module.config.get_text_config()
        tokens = torch.randint(0, config.vocab_size, (2, PROBE), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(next(self.module.parameters()).device)
        found: list[Routed] = []
        plain = self.run(tokens, found.append)
        if [routed.layer for routed in found] != self.layers:
            raise RouterError("its routers do not run once in each block")
        self._experts, self._k = found[0].logits.shape[-1], found[0].chosen.shape[-1]
        rules = {routed.layer: _rule(routed) for routed in found}
        for layer in self.layers:
            self._proved_by_change(tokens, layer, plain, found)
        return rules

    def _proved_by_change(self, tokens: Tensor, layer: int, plain: Tensor, found: list[Routed]) -> None:
        """A closed expert must get no weight any more; weights of zero must change the model's output."""
        most = int(found[self.layers.index(layer)].chosen.flatten().bincount().argmax())
        heard: list[Routed] = []
        self.run(tokens, heard.append, rescore={layer: closing(most)})
        closed = heard[self.layers.index(layer)]
        if bool(((closed.chosen == most) & (closed.weights != 0)).any()):
            raise RouterError(f"layer {layer} still uses an expert whose logit is minus infinity")
        silent = self.run(tokens, reroute={layer: lambda chosen, weights: (chosen, torch.zeros_like(weights))})
        if torch.equal(silent, plain):
            raise RouterError(f"the experts of layer {layer} do not work with the weights that were read")


def closing(*experts: int) -> Rescored:
    """Logits with some experts at minus infinity, so that the family's rule chooses among the others."""

    def edit(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., list(experts)] = -torch.inf
        return logits

    return edit


def _found(blocks: Any) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """Layer, and its router and experts, of each block that has them."""
    for layer, block in enumerate(blocks):
        for part in block.modules():
            router = next((getattr(part, name) for name in NAMES if hasattr(part, name)), None)
            if router is not None and hasattr(part, "experts"):
                yield layer, (router, part.experts)


@dataclass
class _Seen:
    """Hooks of one layer: they check what passes, change it where asked, and tell it."""

    layer: int
    shape: tuple[int, ...]
    read: Callable[[Routed], None] | None
    reroute: Rerouted | None
    told: tuple[Tensor, Tensor, Tensor] | None = None

    def router(self, module: Any, args: tuple, out: Any) -> None:
        if not (isinstance(out, tuple) and len(out) == 3 and all(isinstance(part, Tensor) for part in out)):
            raise RouterError(f"the router of layer {self.layer} does not give logits, weights and choices")
        logits, weights, chosen = out
        tokens = self.shape[0] * self.shape[1]
        if chosen.dtype != torch.int64 or not logits.is_floating_point() or not weights.is_floating_point():
            raise RouterError(f"the router of layer {self.layer} gives its choices as {chosen.dtype}")
        if logits.shape[0] != tokens or weights.shape != chosen.shape or chosen.shape[0] != tokens:
            raise RouterError(f"the router of layer {self.layer} gives {tuple(logits.shape)} for {tokens} tokens")
        self.told = logits, weights, chosen

    def experts(self, module: Any, args: tuple) -> tuple | None:
        assert self.told is not None
        logits, weights, chosen = self.told
        hidden, *rest = args
        if len(rest) != 2 or not torch.equal(rest[0], chosen) or not torch.equal(rest[1], weights.to(rest[1].dtype)):
            raise RouterError(f"the experts of layer {self.layer} are not called with what its router gave")
        chosen, weights = (part.view(*self.shape, -1) for part in rest)
        if self.reroute is not None:
            chosen, weights = self.reroute(chosen, weights)
        if self.read is not None:
            self.read(Routed(self.layer, logits.view(*self.shape, -1), chosen, weights))
        return None if self.reroute is None else (hidden, chosen.flatten(0, 1), weights.flatten(0, 1))


def _shaped(edit: Rescored, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda logits: edit(logits.view(*shape, -1)).view_as(logits)


@contextlib.contextmanager
def _rescored(router: Any, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the router works with changed logits, for the tokens whose experts they concern.

    A token that keeps its experts, with the logits they had, is left as it was to the last bit.
    """
    plain = router.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        before = plain(*args, **kwargs)
        with _Rescoring(edit):
            after = plain(*args, **kwargs)
        if not (isinstance(before, tuple) and len(before) == 3):
            return after  # which the next hook refuses
        logits, chosen = before[0], before[2]
        same = (after[2].sort(-1).values == chosen.sort(-1).values).all(-1)
        same &= (after[0].gather(-1, chosen) == logits.gather(-1, chosen)).all(-1)
        return after[0], *(torch.where(same[:, None], old, new) for old, new in zip(before[1:], after[1:], strict=True))

    router.forward = forward
    try:
        yield
    finally:
        del router.forward


def _rule(routed: Routed) -> Rule:
    """How the weights of a layer come from its logits.

    Raises:
        RouterError: when a choice is out of range or made twice, or the weights come from the logits in no known way.
    """
    logits, chosen, weights = routed.logits.float(), routed.chosen, routed.weights.float()
    count, k = logits.shape[-1], chosen.shape[-1]
    ordered = chosen.sort(-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()) or not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
        raise RouterError(f"layer {routed.layer} chooses an expert twice, or one that is not there")
    ranked = torch.equal(logits.topk(k).indices.sort(-1).values, ordered)
    for name, rule in WEIGHTS.items():
        expected = rule(logits, chosen)
        factor = float((weights / expected).median())
        if torch.allclose(weights, factor * expected, atol=TOLERANCE[routed.weights.dtype], rtol=0):
            return Rule(name, factor, ranked)
    raise RouterError(f"the weights of layer {routed.layer} come from its logits in no known way")
