"""What a kind of routed adapter has to tell, and how its routing is read and steered."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.models.adapter_sites import Site
from workbench.models.routers import Rerouted, Rescored, Routed, RouterError

Stack = contextlib.ExitStack
Hear = Callable[[int, Tensor], None]


@dataclass
class Steering:
    """One layer's routing in a pass: it changes the weights where asked, and tells them."""

    layer: int
    read: Callable[[Routed], None] | None = None
    rescore: Rescored | None = None
    reroute: Rerouted | None = None

    def __call__(self, logits: Tensor, weights: Tensor, k: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """The weights [row, pos, skill] to mix with; `weights` itself where nothing changes them.

        rule: the family's own, which makes weights of logits.
        """
        found = weights
        if self.rescore is not None:
            before, logits = logits, self.rescore(logits)
            found = _rescored(before, logits, weights, rule(logits), k)
        ranked = found.sort(stable=True, dim=-1, descending=True)  # of equal weights the first skill's comes first
        own, chosen = ranked.values[..., :k], ranked.indices[..., :k]
        if self.reroute is not None:
            chosen, own = self.reroute(chosen, own)
            found = torch.zeros_like(found).scatter_add(-1, chosen, own)
        if self.read is not None:
            self.read(Routed(self.layer, logits, chosen, own))
        return weights if torch.equal(found, weights) else found


def _rescored(before: Tensor, logits: Tensor, weights: Tensor, after: Tensor, k: int) -> Tensor:
    """The new weights; a token that keeps its skills, with the logits they had, is left as it was to the last bit."""
    old, new = weights.topk(k).indices, after.topk(k).indices
    same = (old.sort(-1).values == new.sort(-1).values).all(-1)
    same &= (logits.gather(-1, old) == before.gather(-1, old)).all(-1)
    return torch.where(same[..., None], weights, after)


class Family(ABC):
    """How one kind of adapter routes.

    weighing: the name in `WEIGHTS` of how weights come from logits. by_task: one choice for all tokens of a task.
    absolute: logits are sizes of scores, so none is negative.
    """

    weighing = "softmax over all"
    by_task = False
    absolute = False

    def __init__(self, module: Any, sites: Sequence[Site], task: int) -> None:
        self.module, self.sites, self.task = module, sites, task
        self.adapter = self.adapter_of(sites[0].linear)

    @property
    @abstractmethod
    def skills(self) -> int:
        """How many there are."""

    @property
    def k(self) -> int:
        """How many a token chooses."""
        return self.skills

    @abstractmethod
    def enter(self, stack: Stack, tokens: Tensor, real: Tensor | None) -> None:
        """What a pass over tokens needs before the first layer runs."""

    @abstractmethod
    def steer(self, stack: Stack, site: Site, steering: Steering, mixed: dict[int, Tensor]) -> None:
        """Read and steer a site's weights in the pass; all weights it mixes with are left in `mixed` by layer."""

    @abstractmethod
    def source(self, site: Site) -> Any:
        """The module that is called with what a site's router works on."""

    def hidden(self, x: Tensor) -> Tensor:
        """What the router works on, [token, d], when that module is called with x [row, pos, d]."""
        return x.flatten(0, 1)

    def listen(self, stack: Stack, sites: Mapping[int, Site], hear: Hear) -> None:
        """Tell what each layer's router works on, hidden [token, d]."""
        for layer, site in sites.items():

            def on_call(module: Any, args: tuple, layer: int = layer) -> None:
                hear(layer, self.hidden(args[0]))

            stack.callback(self.source(site).register_forward_pre_hook(on_call).remove)

    @abstractmethod
    def mix(self, site: Site, x: Tensor, weights: Tensor) -> Tensor:
        """What skills add to the map's output for x [row, pos, d], computed from the weights alone."""

    def own_logits(self, tokens: Tensor) -> Tensor | None:
        """Logits of a pass that peft runs by itself, where its way to it is another than `enter`."""
        return None

    @staticmethod
    def adapter_of(linear: Any) -> str:
        """The name of the one adapter that is active in a layer."""
        active = list(linear.active_adapters)
        if len(active) != 1:
            raise RouterError(f"{len(active)} adapters are active at once ({', '.join(active)}); set one")
        return active[0]
