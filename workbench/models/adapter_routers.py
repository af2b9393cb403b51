"""Where a routed adapter really routes, with the interface of a mixture of experts' routers; skills are its experts.

Nothing is believed before it was proved on a small run.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.models.adapter_families import KINDS
from workbench.models.adapter_family import Hear, Stack, Steering
from workbench.models.adapter_sites import FAMILIES, Site, kind_of, sites_of
from workbench.models.checks import TOLERANCE
from workbench.models.ends import run_base, token_losses, unembed
from workbench.models.reference import ModelError
from workbench.models.routers import PROBE, WEIGHTS, Rerouted, Rescored, Routed, RouterError, Rule
from workbench.models.trunk import share_weights

Calls = dict[int, tuple[Tensor, Tensor]]


class AdapterRouters:
    """The routers of one routed module of a transformers model's layers: read and changed as `Routers` is.

    Args:
        module: the causal language model with its adapter's layers, in a copy these routers may keep.
        blocks: the module's name of its list of blocks.
        tasks: of an adapter that routes by task, their names in the order of their ids.
        task: the one whose route is taken; where it is left out, an adapter that routes by task cannot be run.
        name: the routed module that is read, like `q_proj`, or `q_proj/0` for a split; the first, if left out.
        lock: shared by routers of one module.

    Raises:
        RouterError: when there is none, or what is read is not what the layers mix their skills with.
    """

    def __init__(
        self,
        module: Any,
        blocks: str,
        tasks: Sequence[str] = (),
        *,
        task: str = "",
        name: str = "",
        lock: Any = None,
    ) -> None:
        self.module, self.blocks, self.tasks = module, blocks, tuple(tasks)
        self.lock = lock or threading.RLock()
        sites = list(sites_of(module.get_submodule(blocks)))
        kinds = {kind_of(site.linear) for site in sites}
        if len(kinds) != 1:
            raise RouterError("its blocks have no routed adapter" if not kinds else "it mixes routed adapters")
        (kind,) = kinds
        self.family, self.modules = FAMILIES[kind], list(dict.fromkeys(site.name for site in sites))
        self.name = name or self.modules[0]
        if self.name not in self.modules:
            raise RouterError(f"there is no routed module '{name}'; there are: {', '.join(self.modules)}")
        self.task = task if KINDS[kind].by_task else ""
        self._kind = KINDS[kind](module, sites, self._id(self.task) if self.task else -1)
        self.sites = {site.layer: site for site in sites if site.name == self.name}
        if self.experts < 2:
            raise RouterError("it has one skill, so nothing is routed")
        self._rules = {} if self.by_task and not self.task else self._proved()

    @property
    def layers(self) -> list[int]:
        """The blocks whose module of this name routes."""
        return list(self.sites)

    @property
    def experts(self) -> int:
        """Skills at each routed module."""
        return self._kind.skills

    @property
    def k(self) -> int:
        """Skills that a token chooses; all of them in dense families."""
        return self._kind.k

    @property
    def rules(self) -> dict[int, Rule]:
        """How the weights of each layer come from its logits."""
        return self._rules

    @property
    def by_task(self) -> bool:
        """Whether all tokens of a task are routed alike, by its id."""
        return self._kind.by_task

    @property
    def absolute(self) -> bool:
        """Whether a logit is the size of a score, and so never negative."""
        return self._kind.absolute

    @property
    def parts(self) -> Any:
        """Routers and experts of a mixture of experts, which an adapter does not have."""
        raise ModelError(f"{self.family}'s skills are no blocks of experts, so this analysis cannot read them.")

    def select(self, task: str, name: str = "") -> "AdapterRouters":
        """The routers of another module, or as another task uses them; proved anew."""
        return AdapterRouters(self.module, self.blocks, self.tasks, task=task, name=name, lock=self.lock)

    def run(
        self,
        tokens: Tensor,
        read: Callable[[Routed], None] | None = None,
        *,
        lengths: Tensor | None = None,
        rescore: Mapping[int, Rescored] | None = None,
        reroute: Mapping[int, Rerouted] | None = None,
    ) -> Tensor:
        """One forward pass, as `Routers.run`: `chosen` are the k skills of the largest weight, best first.

        Dense families (Poly, X-LoRA without top-k) choose every skill. Poly routes whole rows: a change for some of
        their tokens is one it could not make itself.

        Raises:
            ModelError: for an adapter that routes by task, when none was selected.
        """
        rescore, reroute = rescore or {}, reroute or {}
        steering = {at: Steering(at, read, rescore.get(at), reroute.get(at)) for at in self.layers}
        return self._run(tokens, steering, {}, lengths)

    def _run(
        self, tokens: Tensor, steering: dict[int, Steering], mixed: dict[int, Tensor], lengths: Tensor | None = None
    ) -> Tensor:
        if self.by_task and not self.task:
            raise ModelError(f"{self.family} routes by task, and this analysis gave none; load the model with route=.")
        real = None if lengths is None else torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        with self.lock, torch.no_grad(), Stack() as stack:
            self._kind.enter(stack, tokens, real)
            for layer, site in self.sites.items():
                self._kind.steer(stack, site, steering[layer], mixed)
            return run_base(self.module, tokens, real).last_hidden_state

    def losses(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """Next-token cross-entropy in nats [row, pos - 1], float32, of normed last residuals [row, pos, d_model]."""
        return token_losses(self.module, normed, tokens)

    @contextlib.contextmanager
    def listening(self, hear: Hear) -> Iterator[None]:
        """Within it, a pass tells each layer what its router works on, hidden [token, d]; of Poly, the task's id."""
        with Stack() as stack:
            self._kind.listen(stack, self.sites, hear)
            yield

    def _id(self, task: str) -> int:
        if task not in self.tasks:
            known = ", ".join(self.tasks)
            raise RouterError(f"it was not trained on the task '{task}'; it knows: {known} (load's tasks= names them)")
        return self.tasks.index(task)

    def _proved(self) -> dict[int, Rule]:
        """The rule of each layer, once everything that is read was found to be what skills are mixed with."""
        config = self.module.config.get_text_config()
        tokens = torch.randint(0, config.vocab_size, (2, PROBE), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(next(self.module.parameters()).device)
        found: list[Routed] = []
        mixed: dict[int, Tensor] = {}
        calls: Calls = {}
        with Stack() as stack:
            for layer, site in self.sites.items():
                stack.callback(site.linear.register_forward_hook(_keeper(calls, layer)).remove)
            plain = self._run(tokens, {at: Steering(at, found.append) for at in self.layers}, mixed)
        if [routed.layer for routed in found] != self.layers:
            raise RouterError("its routers do not run once in each block")
        self._prove_own_pass(tokens, plain)
        rules = {routed.layer: self._rule(routed, tokens) for routed in found}
        for layer, site in self.sites.items():
            self._prove_output(site, *calls[layer], mixed[layer])
            self._prove_change(tokens, layer, plain)
        return rules

    def _rule(self, routed: Routed, tokens: Tensor) -> Rule:
        shape, name = (*tokens.shape, self.experts), self._kind.weighing
        if routed.logits.shape != shape or not routed.logits.is_floating_point():
            raise RouterError(f"layer {routed.layer} gives logits {tuple(routed.logits.shape)} {routed.logits.dtype}")
        expected = WEIGHTS[name](routed.logits.float(), routed.chosen)
        if not torch.allclose(routed.weights.float(), expected, atol=TOLERANCE[routed.weights.dtype], rtol=0):
            raise RouterError(f"the weights of layer {routed.layer} are not a {name} of its logits")
        least = routed.logits.gather(-1, routed.chosen).min(-1, keepdim=True).values
        ranked = bool(((routed.logits > least).sum(-1) < routed.chosen.shape[-1]).all())
        return Rule(name, 1.0, ranked)

    def _prove_own_pass(self, tokens: Tensor, plain: Tensor) -> None:
        with torch.no_grad():
            own = self._kind.own_logits(tokens)
            if own is None:
                return
            gap, largest = (unembed(self.module, plain) - own).abs().max(), own.abs().max()
        if not gap <= TOLERANCE[own.dtype] * largest.clamp_min(1):
            raise RouterError(f"its two passes give other logits than peft's own, by {float(gap):.1e}")

    def _prove_output(self, site: Site, x: Tensor, out: Tensor, weights: Tensor) -> None:
        with torch.no_grad():
            expected = site.linear.base_layer(x) + self._kind.mix(site, x, weights)
        gap, largest = (out - expected).abs().max(), out.abs().max()
        if not gap <= TOLERANCE[out.dtype] * largest:
            raise RouterError(
                f"{self.name} of layer {site.layer} does not give its skills mixed by the weights that were read: "
                f"off by {float(gap):.1e} of {float(largest):.1e}"
            )

    def _prove_change(self, tokens: Tensor, layer: int, plain: Tensor) -> None:
        silent = self.run(tokens, reroute={layer: lambda chosen, weights: (chosen, torch.zeros_like(weights))})
        if torch.equal(silent, plain):
            raise RouterError(
                f"{self.name} of layer {layer} gives the same without its skills: they do not work with the weights "
                "that were read, or were never trained"
            )


def _keeper(calls: Calls, layer: int) -> Callable:
    def keep(module: Any, args: tuple, out: Tensor) -> None:
        calls[layer] = args[0], out

    return keep


def merged(module: Any, task: int) -> Any:
    """A copy of a Poly model in which one task's mix of skills is part of the weights; the others are shared.

    Exact up to rounding, since Poly routes by task alone: W + (A B / r) with A and B each mixed by the task's weights.
    """
    copy = share_weights(module)
    for path, part in list(copy.named_modules()):
        if kind_of(part) == "poly":
            parent, _, name = path.rpartition(".")
            setattr(copy.get_submodule(parent), name, _merged_linear(part, task))
    return copy


def _merged_linear(part: Any, task: int) -> torch.nn.Linear:
    adapter, base = KINDS["poly"].adapter_of(part), part.base_layer
    with torch.no_grad():
        ids = torch.tensor([task], device=base.weight.device)
        weights = part.poly_router[adapter].eval()(task_ids=ids, input_ids=None)[0]  # [split, skill]
        a = torch.einsum("qs,qsdr->qdr", weights, part.poly_lora_A[adapter]).flatten(0, 1)
        b = torch.einsum("qs,qsro->rqo", weights, part.poly_lora_B[adapter]).flatten(1)
        whole = base.weight + ((a @ b) / part.r[adapter]).T.to(base.weight.dtype)
    found = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    found.weight, found.bias = torch.nn.Parameter(whole, requires_grad=False), base.bias
    return found.eval()
