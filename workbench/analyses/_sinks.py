"""What analyses of attention sinks share: the text read, a pass that keeps a few numbers a token, and who is a sink."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError, at_least_one
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Layer

LABELS = ("none", "primary", "secondary", "noise")  # by their numbers in a dataset
NONE, PRIMARY, SECONDARY, NOISE = range(4)
FIRST = 2  # tokens, from the first on, that may be the primary sink
DEPTH, LEAST, MOST = 48, 4, 33  # the depth the paper's constants were made for, and the lifetimes they stand for there
SHALLOWER = 15  # layers by which the lifetime of a primary sink may fall short of the depth


@dataclass(frozen=True)
class Rule:
    """What makes a token a sink, in a model of `layers` blocks.

    cosine is the threshold of |cos| to the primary sink. `preset` chooses the lifetimes: `paper` has the paper's (noise
    up to 4, as the primary from layers - 15), `relative` the same shares of the depth (1/12 and 11/16), as they are at
    48 layers, except that what is seen in a single layer's output is always noise. `window` says in which layers
    cosines count: those between the primary's birth and removal, or `all`.
    """

    cosine: float
    preset: str
    window: str
    layers: int

    @property
    def noise_to(self) -> float:
        """The longest lifetime that is still noise."""
        return LEAST if self.preset == "paper" else max(1, LEAST / DEPTH * self.layers)

    @property
    def primary_from(self) -> float:
        """The shortest lifetime of a token that behaves as the primary sink does."""
        return self.layers - SHALLOWER if self.preset == "paper" else MOST / DEPTH * self.layers

    def label(self, lifetime: np.ndarray) -> np.ndarray:
        """Numbers of `LABELS`, int8, by lifetime alone."""
        long = np.where(lifetime > self.noise_to, SECONDARY, NOISE)
        found = np.where(lifetime >= self.primary_from, PRIMARY, long)
        return np.where(lifetime > 0, found, NONE).astype(np.int8)

    @property
    def attrs(self) -> dict[str, Any]:
        """The rule as a result says it."""
        return {
            "cosine": self.cosine,
            "preset": self.preset,
            "window": self.window,
            "noise_to": self.noise_to,
            "primary_from": self.primary_from,
            "rule": f"sink: |cos| to the primary > {self.cosine}; noise: lifetime <= {self.noise_to:.4g} layers; "
            f"secondary: under {self.primary_from:.4g}; primary: from there on",
        }


@dataclass(frozen=True)
class Sinks:
    """The sinks of some sequences.

    primary [row] is the primary's position; start and stop [row] the window's first layer and the one after its last;
    inside bool [row, layer, key]: a sink there; lifetime, creation (-1: no sink) and label [row, key].
    """

    primary: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    inside: np.ndarray
    lifetime: np.ndarray
    creation: np.ndarray
    label: np.ndarray


@dataclass
class Trace:
    """A forward pass in a few numbers a token, lists with an entry a layer.

    norms [row, key] of the block output; scores [row, key], attention received from each query that sees the key, mean
    over heads; cosines [row, direction, key] to the directions asked for; last: normed last residuals.
    """

    norms: list[np.ndarray]
    scores: list[np.ndarray]
    cosines: list[np.ndarray]
    last: "torch.Tensor"

    def stacked(self, name: str) -> np.ndarray:
        """One of the lists as an array with the layer before the key."""
        return np.stack(getattr(self, name), -2)


def rule_of(model: "Model", cosine: float, preset: str, window: str) -> Rule:
    """The rule asked for.

    Raises:
        AnalysisError: when `cosine` is not between 0 and 1.
    """
    if not 0 < cosine < 1:
        raise AnalysisError(f"cosine is {cosine}; the threshold must lie between 0 and 1.")
    return Rule(cosine, preset, window, model.n_layers)


def documents(model: "Model", task: Task, length: int, sequences: int, batch: int) -> np.ndarray:
    """The task's running text, int64 [row, key].

    Raises:
        AnalysisError: when `length` is longer than the model's context or under 3, or a count under 1.
    """
    at_least_one(sequences=sequences, batch=batch)
    if not FIRST < length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes {FIRST + 1} to {model.context} tokens.")
    return task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)


def single(values: "torch.Tensor") -> "torch.Tensor":
    """Values in float32, or in float64 where they are."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32))


def array(values: "torch.Tensor") -> np.ndarray:
    """Values on the CPU, float32."""
    return values.detach().float().cpu().numpy()


def cosines(vectors: "torch.Tensor", directions: "torch.Tensor") -> "torch.Tensor":
    """Cosines [row, direction, key] of vectors [row, key, d] to directions [row, direction, d]; 0 of a zero vector."""
    unit = [v / v.norm(dim=-1, keepdim=True).clamp_min(1e-30) for v in (single(directions), single(vectors))]
    return (unit[0] @ unit[1].transpose(1, 2)).clamp(-1, 1)


def trace(model: "Model", tokens: np.ndarray, directions: Callable[["Layer"], "torch.Tensor"], **options: Any) -> Trace:
    """A pass over tokens [row, key] in which no layer's residuals outlive the layer.

    Args:
        model: whose scanner runs.
        tokens: int64 [row, key].
        directions: of a layer, what cosines are taken to, [row, direction, d_model].
        options: what `Scanner.run` takes: `hide` and `mlps`.
    """
    length = tokens.shape[1]
    seen = np.arange(length, 0, -1) if model.scanner.causal() else np.full(length, length)
    found = Trace([], [], [], model.tensor(tokens))

    def read(layer: "Layer") -> None:
        found.norms.append(array(single(layer.hidden).norm(dim=-1)))
        found.scores.append(array(layer.received.mean(1)) / seen.astype(np.float32))
        found.cosines.append(array(cosines(layer.hidden, directions(layer))))

    found.last = model.scanner.run(model.tensor(tokens), read, **options)
    return found


def windows(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The layer of the steepest rise of each norm curve [row, layer], and that of the steepest drop after it.

    As the paper's code has it, with what it leaves open settled: a curve that never rises begins at layer 0, and one
    that never falls again lasts to the end.
    """
    start, stop = np.zeros(len(curves), int), np.full(len(curves), curves.shape[1])
    for row, steps in enumerate(np.diff(curves, axis=1)):
        if steps.size and steps.max() > 0:
            start[row] = steps.argmax() + 1
        after = steps[start[row] :]
        if after.size and after.min() < 0:
            stop[row] = start[row] + after.argmin() + 1
    return start, stop


def open_layers(start: np.ndarray, stop: np.ndarray, rule: Rule) -> np.ndarray:
    """In which layers cosines count, bool [row, layer]."""
    layers = np.arange(rule.layers)
    if rule.window == "all":
        return np.ones((len(start), rule.layers), bool)
    return (layers >= start[:, None]) & (layers < stop[:, None])


def born(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lifetime and creation layer (-1: never) of what is a sink in the layers of the axis before the last."""
    lifetime = inside.sum(-2)
    return lifetime, np.where(lifetime > 0, inside.argmax(-2), -1)


def readers(inside: np.ndarray) -> np.ndarray:
    """The layers whose attention reads what are sinks in the outputs bool [row, layer, key]: each one later."""
    found = np.roll(inside, 1, 1)
    found[:, 0] = False
    return found


def find_sinks(norms: np.ndarray, near: np.ndarray, rule: Rule) -> Sinks:
    """The sinks among tokens with residual norms [row, layer, key] and cosines to the first two [row, 2, layer, key].

    The primary sink is the one of the first two tokens with the higher mean norm; tokens before it are not looked at.
    """
    rows, keys = np.arange(len(norms)), np.arange(norms.shape[-1])
    primary = norms[:, :, :FIRST].mean(1).argmax(1)
    start, stop = windows(norms[rows, :, primary])
    inside = (abs(near[rows, primary]) > rule.cosine) & open_layers(start, stop, rule)[:, :, None]
    inside &= (keys >= primary[:, None])[:, None]
    inside[rows, :, primary] = open_layers(start, stop, rule)  # whatever the rounding of its cosine to itself
    lifetime, creation = born(inside)
    label = rule.label(lifetime)
    label[rows, primary] = PRIMARY
    return Sinks(primary, start, stop, inside, lifetime, creation, label)


def named_tokens(model: "Model", tokens: np.ndarray) -> tuple[tuple[str, str], np.ndarray]:
    """The coordinate that says the text of every token."""
    return ("prompt", "key_pos"), np.array([model.tokens(row) for row in tokens])
