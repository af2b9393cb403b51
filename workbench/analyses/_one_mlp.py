"""One layer's MLP: what chosen tokens give it, the directions in which that differs, and the MLP called alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.analyses._sinks import array

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Layer

SAME = 1e-5  # share of the inputs' own size under which what they differ by is rounding


@dataclass(frozen=True)
class Heard:
    """What one layer shows of a pass over some sequences.

    inputs and outputs [token, d] of the sinks in its MLP; sample [token, d], the inputs that principal components are
    taken of; counts [row], sinks in each; primary [row, reference, d], block and MLP output of the primary sink; dtype
    of the MLP.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    sample: np.ndarray
    counts: np.ndarray
    primary: np.ndarray
    dtype: Any


def joined(parts: list[Heard]) -> Heard:
    """Several passes as one."""
    names = ("inputs", "outputs", "sample", "counts", "primary")
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Heard(dtype=parts[0].dtype, **whole)


@dataclass(frozen=True)
class Directions:
    """Unit vectors [component, d]: the mean, then principal components.

    explained is each one's share of the variance, power that of the mean squared input norm, extent the size along it:
    the standard deviation, for the mean its own norm.
    """

    unit: np.ndarray
    explained: np.ndarray
    power: np.ndarray
    extent: np.ndarray


def refuse_no_module(model: "Model", layer: int) -> None:
    """Raise AnalysisError for a family whose MLP cannot be called."""
    if not any(True for _ in model.scanner.mlps[layer].children()):
        raise AnalysisError(
            "This family has no module for its MLP, only its projections inside the block, so an input cannot be "
            "pushed through it; see the stages in secondary_sinks, or trace another family."
        )


def hear(model: "Model", tokens: np.ndarray, layer: int, masks: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Heard:
    """One layer's MLP over tokens [row, key]; masks: sinks and sample, bool [row, key], and primary positions [row]."""
    from workbench.models.blocks import first

    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    hidden: list[torch.Tensor] = []
    chosen, sample, primary = masks

    def on_mlp(module: Any, args: tuple, kwargs: dict, out: Any) -> None:
        calls.append((args[0] if args else next(iter(kwargs.values())), first(out)))

    def read(at: "Layer") -> None:
        if at.index == layer:
            hidden.append(at.hidden)

    scanner, rows = model.scanner, np.arange(len(tokens))
    with scanner.lock, scanner.mlps[layer].register_forward_hook(on_mlp, with_kwargs=True):
        scanner.run(model.tensor(tokens), read)
    dtype = calls[0][0].dtype
    values = (array(value.reshape(*tokens.shape, -1)).astype(float) for value in (*calls[0], hidden[0]))
    given, out, stream = values
    both = np.stack([stream[rows, primary], out[rows, primary]], 1)
    return Heard(given[chosen], out[chosen], given[sample], chosen.sum(1), both, dtype)


def push(model: "Model", layer: int, vectors: np.ndarray, dtype: Any) -> np.ndarray:
    """The MLP's outputs [..., d] for inputs [..., d], each called as one token of one sequence."""
    import torch

    from workbench.models.blocks import first

    given = model.tensor(vectors.reshape(1, -1, vectors.shape[-1])).to(dtype)
    with model.scanner.lock, torch.no_grad():
        out = array(first(model.scanner.mlps[layer](given)))
    return out.astype(float).reshape(vectors.shape)


def check_alone(model: "Model", layer: int, heard: Heard) -> None:
    """Raise AnalysisError unless the MLP, given the sinks' own inputs alone, writes what it wrote in its block."""
    from workbench.models.checks import TOLERANCE

    found = push(model, layer, heard.inputs, heard.dtype)
    off, largest = abs(found - heard.outputs).max(), abs(heard.outputs).max()
    if off > TOLERANCE[heard.dtype] * largest:
        raise AnalysisError(
            f"The MLP of layer {layer}, given the sinks' own inputs alone, is off by {off:.2g} (largest output "
            f"{largest:.2g}): it reads more than its input, so directions cannot be pushed through it; trace another "
            "family."
        )


def principal(sample: np.ndarray, components: int, layer: int) -> Directions:
    """Mean and principal components of inputs [token, d]; sizes in the inputs' own units.

    Raises:
        AnalysisError: when all inputs are one and the same.
    """
    mean = sample.mean(0)
    _, sizes, axes = np.linalg.svd(sample - mean, full_matrices=False)
    axes = axes[: min(components, int((sizes > SAME * np.linalg.norm(sample)).sum()))]
    if not len(axes):
        raise AnalysisError(
            f"The {len(sample)} tokens of layer {layer} give its MLP one and the same input, so there are no principal "
            "components; take tokens that are no sinks in as well (among='balanced'), or read another text."
        )
    axes = axes * np.sign(axes[np.arange(len(axes)), abs(axes).argmax(1)])[:, None]
    variance, length = sizes**2 / len(sample), np.linalg.norm(mean)
    kept, power = variance[: len(axes)], (sample**2).sum(1).mean()
    return Directions(
        np.concatenate([unit(mean)[None], axes]),
        np.concatenate([[0], kept / variance.sum()]),
        np.concatenate([[length**2], kept]) / power,
        np.concatenate([[length], np.sqrt(kept)]),
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., d] of length 1; zero vectors stay so."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
