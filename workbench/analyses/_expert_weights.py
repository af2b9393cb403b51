"""Experts and routers changed in a copy of a model's routing, the weights they are stored in, and what prompts lose."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.analyses._experts import last_logits
from workbench.analyses._patching import Group

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

NAMES = ("gate_up_proj", "down_proj")
SCORES = ("loss", "accuracy", "metric")


def stored(experts: Any, layer: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The weights of a layer's experts, [expert, row, column] each: gate and up in one, and down.

    Raises:
        AnalysisError: when they are stored in another form.
    """
    found = dict(experts.named_parameters(recurse=False))
    for name in NAMES:
        if name not in found or found[name].ndim != 3:
            raise AnalysisError(
                f"The experts of layer {layer} ({type(experts).__name__}) have no 3-D parameter '{name}', so their "
                "weights cannot be told apart; this works for families that transformers stores so."
            )
    return found[NAMES[0]].detach(), found[NAMES[1]].detach()


def with_own_routers(model: "Model") -> "Model":
    """The same model with routers of its own: weights put there are seen by its `routers` only, and by nobody else."""
    return dataclasses.replace(model)


def put(module: Any, weights: Mapping[str, "torch.Tensor"]) -> None:
    """Give a router or a layer's experts other tensors by name, in place of those it has, which stay as they are."""
    module.load_state_dict(dict(weights), strict=False, assign=True)


def loaded(model: "Model", reference: str) -> "Model":
    """Another model, loaded as this one was."""
    from workbench.models.load import load

    return load(**{**model.spec, "reference": reference, "device": str(model.device)})


def score(model: "Model", part: Group, normed: "torch.Tensor") -> np.ndarray:
    """`SCORES` of a group's prompts, float64 [score, row], of normed last residuals [row, pos, d_model].

    loss: nats, -log of the probability of any of the answers. accuracy: whether an answer is above every wrong one.
    metric: the task's.
    """
    logits = last_logits(model, normed)
    losses = answer_losses(logits, part.meter.answers).double().cpu().numpy()
    return np.stack([losses, part.meter.right(logits)[0], part.meter(logits)[0]])


def answer_losses(logits: "torch.Tensor", answers: Sequence[np.ndarray]) -> "torch.Tensor":
    """-log of the probability of any of the answers, in nats [row], of logits [row, vocab]."""
    import torch

    others = torch.ones_like(logits, dtype=torch.bool)
    for row, right in enumerate(answers):
        others[row, right.tolist()] = False
    return logits.logsumexp(-1) - logits.masked_fill(others, -torch.inf).logsumexp(-1)
