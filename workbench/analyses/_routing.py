"""What is kept of routing while it streams by, and a router of random weights beside it.

Kept are sums for each sequence, the choices for each token, and everything for the tokens of a few sequences.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.routers import Routed

GROUPS = 20  # of sequences, whose pair counts are kept apart for an interval
RANDOM = 5  # routers of random weights beside each router
Parts = dict[str, np.ndarray]  # sums by name
SUMS = ("entropy", "z_loss", "margin", "mass", "square", "square_chosen")
Scores = dict[int, "torch.Tensor"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def probabilities(logits: np.ndarray, rule: str) -> np.ndarray:
    """What a router holds of each expert, sum 1 over the last axis: softmax, or sigmoid over its sum by such a rule."""
    if rule.startswith("sigmoid"):
        scores = 1 / (1 + np.exp(-logits))
        return scores / scores.sum(-1, keepdims=True)
    return softmax(logits)


def as_sure(scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Scores with the mean and the spread that the logits have over the last axis."""
    own = scores - scores.mean(-1, keepdims=True)
    spread = own.std(-1, keepdims=True)
    own = np.divide(own, spread, out=np.zeros_like(own), where=spread > 0)
    return own * logits.std(-1, keepdims=True) + logits.mean(-1, keepdims=True)


def entropy(probability: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    return -(probability * np.log(np.maximum(probability, np.finfo(float).tiny))).sum(-1)


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _members(chosen: np.ndarray, shape: tuple[int, ...], counted: np.ndarray) -> np.ndarray:
    """1 where an expert is among the chosen [row, pos, k] and the token counts, float32 [row, pos, expert]."""
    member = np.zeros(shape, np.float32)
    np.put_along_axis(member, chosen, 1, -1)
    return member * counted[..., None]


@dataclass(frozen=True)
class Batch:
    """One layer's routing of a batch: logits, probability [row, pos, expert]; chosen, weight [row, pos, k], best first.

    `member` is 1 where an expert is among the chosen and the token counts.
    """

    logits: np.ndarray
    probability: np.ndarray
    chosen: np.ndarray
    weight: np.ndarray
    member: np.ndarray

    @classmethod
    def of(cls, routed: "Routed", rule: str, counted: np.ndarray) -> "Batch":
        """From what was read; the chosen are ordered by their logits, which the family's own order need not be."""
        logits, chosen, weight = _array(routed.logits), routed.chosen.cpu().numpy(), _array(routed.weights)
        order = np.argsort(-np.take_along_axis(logits, chosen, -1), axis=-1, kind="stable")
        chosen, weight = (np.take_along_axis(part, order, -1) for part in (chosen, weight))
        return cls(logits, probabilities(logits, rule), chosen, weight, _members(chosen, logits.shape, counted))

    def margin(self) -> np.ndarray:
        """The least logit chosen less the greatest that is not, [row, pos]; negative where a bias or groups decide.

        Where all are chosen, the greatest less the next.
        """
        if self.chosen.shape[-1] == self.logits.shape[-1]:
            ordered = np.sort(self.logits, -1)
            return ordered[..., -1] - ordered[..., -2]
        others = self.logits.copy()
        np.put_along_axis(others, self.chosen, -np.inf, -1)
        return np.take_along_axis(self.logits, self.chosen, -1).min(-1) - others.max(-1)

    def z_loss(self) -> np.ndarray:
        """Squared logsumexp of the logits, [row, pos]."""
        top = self.logits.max(-1)
        return (top + np.log(np.exp(self.logits - top[..., None]).sum(-1))) ** 2

    def moments(self) -> dict[str, np.ndarray]:
        """Of each token's probabilities: the sum over the chosen, and of the squares over all and over them."""
        chosen = np.take_along_axis(self.probability, self.chosen, -1)
        square, own = (self.probability**2).sum(-1), (chosen**2).sum(-1)
        return {"mass": chosen.sum(-1), "square": square, "square_chosen": own}

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values [row, pos, k] of the chosen, in the place of their expert [row, pos, expert]."""
        found = np.zeros_like(self.logits)
        np.put_along_axis(found, self.chosen, values, -1)
        return found


class Tally:
    """What is kept of the routing of many sequences.

    Args:
        rules: the name of each routing layer's rule.
        counted: bool [prompt, pos], which tokens count.
        shown: of how many sequences, from the first on, everything is kept.
        dense: whether tokens may go to every expert, so that only weights tell them apart.

    Made with the first batch: `count`, `top1` (int32), `gate`, `probability` (sums over tokens) [prompt, layer,
    expert]; `entropy`, `z_loss`, `margin`, and of probabilities `mass` (of the chosen), `square`, `square_chosen` (of
    their squares), sums too, [prompt, layer]; `margins` float32 [prompt, pos, layer]; `chosen` int16 [prompt, pos,
    layer, k], best first; of each random router `count_random` [prompt, seed, layer, expert] and `first_random` int16
    [prompt, pos, seed, layer]; `pairs` [group, layer, expert, expert], tokens that chose both, of every `GROUPS`-th
    sequence; if dense, `mass_random` [prompt, seed, layer, expert], sums of the probabilities of random routers made as
    sure of every token as the router is; and `shown_logits`, `shown_probability`, `shown_weight`, `shown_entropy` of
    the sequences shown.
    """

    def __init__(self, rules: Mapping[int, str], counted: np.ndarray, shown: int, *, dense: bool = False) -> None:
        self.dense, self.rules, self.counted, self.shown = dense, dict(rules), counted, min(shown, len(counted))
        self.layers = {layer: place for place, layer in enumerate(self.rules)}
        self.kept: dict[str, np.ndarray] = {}

    def _make(self, k: int, experts: int) -> None:
        if k >= experts and not self.dense:
            raise AnalysisError(f"Every token goes to all {experts} experts of this model, so nothing is routed.")
        (prompts, length), layers = self.counted.shape, len(self.layers)
        by_expert, by_token = (prompts, layers, experts), (prompts, length, layers)
        few = (self.shown, length, layers)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            **{name: (by_expert, np.int32) for name in ("count", "top1")},
            **{name: (by_expert, np.float64) for name in ("gate", "probability")},
            **{name: ((prompts, layers), np.float64) for name in SUMS},
            "margins": (by_token, np.float32),
            "chosen": ((*by_token, k), np.int16),
            "count_random": ((prompts, RANDOM, layers, experts), np.int32),
            **({"mass_random": ((prompts, RANDOM, layers, experts), np.float32)} if self.dense else {}),
            "first_random": ((prompts, length, RANDOM, layers), np.int16),
            "pairs": ((min(GROUPS, prompts), layers, experts, experts), np.float64),
            **{name: ((*few, experts), np.float32) for name in ("shown_logits", "shown_probability")},
            "shown_weight": ((*few, k), np.float32),
            "shown_entropy": (few, np.float32),
        }
        self.kept = {name: np.zeros(shape, kind) for name, (shape, kind) in shapes.items()}

    def add(self, start: int, routed: "Routed", random: "torch.Tensor") -> None:
        """Take in a layer of the sequences from row `start` on, and random routers' logits [row, pos, seed, expert]."""
        if not self.kept:
            self._make(routed.chosen.shape[-1], routed.logits.shape[-1])
        rows = slice(start, start + len(routed.logits))
        here, at = self.counted[rows], self.layers[routed.layer]
        batch, kept = Batch.of(routed, self.rules[routed.layer], here), self.kept
        kept["chosen"][rows, :, at] = batch.chosen
        others = random.topk(batch.chosen.shape[-1]).indices.cpu().numpy()
        kept["first_random"][rows, :, :, at] = others[..., 0]
        for seed in range(RANDOM):
            kept["count_random"][rows, seed, at] = _members(others[:, :, seed], batch.logits.shape, here).sum(1)
        if self.dense:
            logits = as_sure(_array(random), batch.logits[:, :, None])
            likely = probabilities(logits, self.rules[routed.layer])
            kept["mass_random"][rows, :, at] = np.einsum("rpse,rp->rse", likely, here)
        first = np.arange(batch.logits.shape[-1]) == batch.chosen[..., :1]
        kept["count"][rows, at] = batch.member.sum(1)
        kept["top1"][rows, at] = (first & here[..., None]).sum(1)
        kept["gate"][rows, at] = np.einsum("rpe,rp->re", batch.spread(batch.weight), here)
        kept["probability"][rows, at] = np.einsum("rpe,rp->re", batch.probability, here)
        values = {"entropy": entropy(batch.probability), "z_loss": batch.z_loss(), "margin": batch.margin()}
        values |= batch.moments()
        for name, value in values.items():
            kept[name][rows, at] = (value * here).sum(1)
        kept["margins"][rows, :, at] = values["margin"]
        groups = np.arange(rows.start, rows.stop) % len(kept["pairs"])
        np.add.at(kept["pairs"][:, at], groups, batch.member.transpose(0, 2, 1) @ batch.member)
        self._show(start, at, batch, values["entropy"])

    def _show(self, start: int, at: int, batch: Batch, entropies: np.ndarray) -> None:
        few = slice(start, min(start + len(batch.logits), self.shown))
        rows = max(0, few.stop - few.start)
        if rows:
            found = {"logits": batch.logits, "probability": batch.probability, "weight": batch.weight}
            for name, values in (found | {"entropy": entropies}).items():
                self.kept[f"shown_{name}"][few, :, at] = values[:rows]

    def first(self, prompts: int) -> dict[str, np.ndarray]:
        """What is kept of the first so many sequences; the pairs are of those already."""
        return {name: values if name == "pairs" else values[:prompts] for name, values in self.kept.items()}


@contextlib.contextmanager
def random_routers(model: "Model", seed: int) -> Iterator[Scores]:
    """Within it, a forward pass leaves for each layer what random routers score its tokens, [token, seed x expert].

    There are `RANDOM` of them, with standard normal weights and no bias; only which logit is larger matters. Where a
    logit is the size of a score, so is theirs; where routing is by task, they score the task.
    """
    import torch

    generator, routers = torch.Generator().manual_seed(seed), model.routers
    found: Scores = {}
    drawn: Scores = {}

    def hear(layer: int, hidden: "torch.Tensor") -> None:
        hidden = hidden.float()
        if layer not in drawn:
            weights = torch.randn(RANDOM * routers.experts, hidden.shape[-1], generator=generator)
            drawn[layer] = weights.to(hidden.device)
        scores = hidden @ drawn[layer].T
        found[layer] = scores.abs() if routers.absolute else scores

    with routers.listening(hear):
        yield found
