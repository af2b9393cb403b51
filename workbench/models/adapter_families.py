"""How routed adapters route: Poly and its multi-head form by task, X-LoRA and Arrow token by token.

peft's own layers run; what is read, and for an intervention changed, are the weights with which they mix their skills.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workbench.models.adapter_family import Family, Stack, Steering
from workbench.models.adapter_sites import Site, kind_of
from workbench.models.ends import run_base
from workbench.models.routers import RouterError
from workbench.models.trunk import share_weights

EPS = 1e-12  # that peft's Poly adds to a sum it divides by


class _Poly(Family):
    """sigmoid(z) over its sum, z by task; A and B are mixed apart, each head its own part of them (2211.03831, eq. 4).

    peft mixes for whole rows; where an edit is not the same for all tokens of a row, each is run as a row of its own.
    """

    weighing = "sigmoid over its sum"
    by_task = True

    @property
    def skills(self) -> int:
        return self.sites[0].linear.n_skills[self.adapter]

    def enter(self, stack: Stack, tokens: Tensor, real: Tensor | None) -> None:
        ids = torch.full((len(tokens),), self.task, device=tokens.device)
        _inject(stack, [part for part in self.module.modules() if kind_of(part) == "poly"], "task_ids", ids)

    def steer(self, stack: Stack, site: Site, steering: Steering, mixed: dict[int, Tensor]) -> None:
        router, given = site.linear.poly_router[self.adapter], _Given()

        def before(linear: Any, args: tuple, kwargs: dict) -> tuple | None:
            x, given.weights = args[0], None
            whole = router(task_ids=kwargs["task_ids"], input_ids=x)  # [row, split, skill]
            logits = router.module_logits[kwargs["task_ids"]].view_as(whole)[:, site.split]
            plain = _by_token(whole[:, site.split], x)
            found = steering(_by_token(logits, x), plain, whole.shape[-1], _sigmoid_shares)
            mixed[site.layer] = _by_token(whole, x).clone()
            mixed[site.layer][:, :, site.split] = found
            if found is plain:
                return None
            given.weights = mixed[site.layer][:, 0]
            if torch.equal(found, found[:, :1].expand_as(found)):
                return None
            given.weights, given.shape = mixed[site.layer].flatten(0, 1), x.shape[:2]
            return (x.flatten(0, 1)[:, None], *args[1:]), kwargs

        def after(linear: Any, args: tuple, out: Tensor) -> Tensor | None:
            shape, given.shape, given.weights = given.shape, None, None
            return None if shape is None else out.view(*shape, -1)

        stack.callback(site.linear.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(router.register_forward_hook(lambda module, args, out: given.weights).remove)
        stack.callback(site.linear.register_forward_hook(after).remove)

    def source(self, site: Site) -> Any:
        return site.linear

    def hidden(self, x: Tensor) -> Tensor:
        """The task's id as a one among zeros."""
        found = x.new_zeros(x.shape[:2].numel(), self.sites[0].linear.n_tasks[self.adapter])
        found[:, self.task] = 1
        return found

    def mix(self, site: Site, x: Tensor, weights: Tensor) -> Tensor:
        a, b = site.linear.poly_lora_A[self.adapter], site.linear.poly_lora_B[self.adapter]
        parts = x.to(a.dtype).unflatten(-1, (a.shape[0], -1))
        inner = torch.einsum("bpqd,bpqs,qsdr->bpr", parts, weights, a)
        return torch.einsum("bpr,bpqs,qsro->bpqo", inner, weights, b).flatten(-2) / site.linear.r[self.adapter]


@dataclass
class _Given:
    """Weights [row, split, skill] that a Poly layer is given instead of its router's, and the shape of its rows."""

    weights: Tensor | None = None
    shape: Any = None


def _by_token(values: Tensor, x: Tensor) -> Tensor:
    """Values [row, ...] for each token of x [row, pos, d]."""
    return values[:, None].expand(-1, x.shape[1], *values.shape[1:])


def _sigmoid_shares(logits: Tensor) -> Tensor:
    found = logits.sigmoid()
    return found / (found.sum(-1, keepdim=True) + EPS)


class _XLora(Family):
    """Softmax of a classifier on the last hidden state of a first pass without skills (2402.07148)."""

    def __init__(self, module: Any, sites: Sequence[Site], task: int) -> None:
        super().__init__(module, sites, task)
        self.owner = _inner(sites[0].linear).model
        self.config, self.classifier = self.owner.xlora_config, self.owner.internal_xlora_classifier
        first, again = self.config.enable_softmax, self.config.enable_softmax_topk
        if first == again:
            raise RouterError("X-LoRA's weights must come from one softmax, and its configuration has none or two")
        self.weighing = "softmax over all" if first else "softmax over the chosen"
        self.logits = torch.empty(0)

    @staticmethod
    def adapter_of(linear: Any) -> str:
        """Empty: all are active."""
        return ""

    @property
    def skills(self) -> int:
        return self.classifier.n_classes

    @property
    def k(self) -> int:
        return self.config.top_k_lora or self.skills

    def enter(self, stack: Stack, tokens: Tensor, real: Tensor | None) -> None:
        layers = [part for part in self.module.modules() if kind_of(part) == "xlora"]
        with Stack() as first:
            _inject(first, layers, "scalings", self.classifier.make_dummy_scalings(input_ids=tokens))
            hidden = run_base(self.module, tokens, real).last_hidden_state
        with self.classifier.layers[-1].register_forward_hook(self._told):
            scalings = self.classifier(SimpleNamespace(hidden_states=(hidden,)), input_ids=tokens)
        _inject(stack, layers, "scalings", scalings)

    def _told(self, module: Any, args: tuple, out: Tensor) -> None:
        """Keep the classifier's logits [row, pos, site, skill], as its softmax gets them."""
        count = self.classifier.n_layers
        logits = out if self.config.layerwise_scalings else out[:, :, None].expand(-1, -1, count, -1)
        scale = self.classifier.softmax.temperature if self.config.enable_softmax else 1.0
        self.logits = logits.reshape(*out.shape[:2], count, -1) / scale

    def steer(self, stack: Stack, site: Site, steering: Steering, mixed: dict[int, Tensor]) -> None:
        inner = _inner(site.linear)
        plain, at = inner.get_maybe_topk_scalings, inner.layer_number

        def weigh(scalings: Tensor) -> Tensor:
            def rule(logits: Tensor) -> Tensor:
                changed = scalings.clone()
                changed[:, :, at] = logits.softmax(-1) if self.config.enable_softmax else logits
                return plain(changed)

            mixed[site.layer] = steering(self.logits[:, :, at], plain(scalings), self.k, rule)
            return mixed[site.layer]

        inner.get_maybe_topk_scalings = weigh
        stack.callback(lambda: delattr(inner, "get_maybe_topk_scalings"))

    def source(self, site: Site) -> Any:
        return self.classifier.layers[0]

    def mix(self, site: Site, x: Tensor, weights: Tensor) -> Tensor:
        linear, scale = site.linear, self.config.global_scaling_weight
        return scale * _skills_of(linear, linear.active_adapters, x, weights)

    def own_logits(self, tokens: Tensor) -> Tensor | None:
        copy = share_weights(self.module)  # transformers leaves hooks behind when it is asked for hidden states
        owner = _inner(next(part for part in copy.modules() if kind_of(part) == "xlora")).model
        with owner._enable_peft_forward_hooks():
            return copy(input_ids=tokens, use_cache=False).logits


def _inner(linear: Any) -> Any:
    """The X-LoRA layer of peft, which took over the forward of the linear map."""
    return linear.forward.__self__


def _skills_of(linear: Any, names: Sequence[str], x: Tensor, weights: Tensor) -> Tensor:
    """Sum over skills, each run alone, of its output times its scaling and weight [row, pos, skill]."""
    total = torch.zeros(())
    for index, name in enumerate(names):
        alone = linear.lora_B[name](linear.lora_A[name](x.to(linear.lora_A[name].weight.dtype)))
        total = total + alone * linear.scaling[name] * weights[..., index, None]
    return total


class _Arrow(Family):
    """Softmax over the top k of |x p|: p is the first right singular vector of each skill (2405.11157, section 3.2)."""

    weighing = "softmax over the chosen"
    absolute = True

    @property
    def router(self) -> Any:
        return self.sites[0].linear.lora_arrow[self.adapter]

    @property
    def skills(self) -> int:
        return len(self.router.task_adapter_names)

    @property
    def k(self) -> int:
        return self.router.top_k

    def enter(self, stack: Stack, tokens: Tensor, real: Tensor | None) -> None:
        """Nothing: its layers route by themselves."""

    def steer(self, stack: Stack, site: Site, steering: Steering, mixed: dict[int, Tensor]) -> None:
        router = site.linear.lora_arrow[self.adapter]
        plain = router.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def weigh(scores: Tensor, weights: Tensor) -> Tensor:
                shape = (*x.shape[:-1], weights.shape[-1])
                logits = (scores / router.temperature).view(shape)
                found = steering(
                    logits, weights.view(shape), router.top_k, lambda new: _softmax_of_top(new, router.top_k)
                )
                mixed[site.layer] = found
                return found.view_as(weights)

            with _Weighing(weigh):
                return plain(x, *args, **kwargs)

        router.forward = forward
        stack.callback(lambda: delattr(router, "forward"))

    def source(self, site: Site) -> Any:
        return site.linear.lora_arrow[self.adapter]

    def mix(self, site: Site, x: Tensor, weights: Tensor) -> Tensor:
        return _skills_of(site.linear, site.linear.lora_arrow[self.adapter].task_adapter_names, x, weights)


class _Weighing(TorchFunctionMode):
    """Within it, the first softmax after a top-k gives what a function makes of the scores and the softmax."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.weigh, self.scores = weigh, None

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.topk:
            self.scores = args[0]
        elif function is torch.softmax and self.scores is not None:
            scores, self.scores = self.scores, None
            return self.weigh(scores, found)
        return found


def _softmax_of_top(logits: Tensor, k: int) -> Tensor:
    best, chosen = logits.topk(k)
    return torch.full_like(logits, -torch.inf).scatter(-1, chosen, best).softmax(-1)


def _inject(stack: Stack, parts: Sequence[Any], name: str, value: Tensor) -> None:
    """Give every part a keyword in each call, as peft's own wrapper does."""

    def before(module: Any, args: tuple, kwargs: dict) -> tuple:
        return args, kwargs | {name: value}

    for part in parts:
        stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)


KINDS: Mapping[str, type[Family]] = {"poly": _Poly, "xlora": _XLora, "arrow": _Arrow}
