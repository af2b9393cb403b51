"""How the losses of several tasks become one step: weights for the losses, or an aggregation of their gradients.

A *weighting* sees the losses only and costs one backward pass. An *aggregator* sees the Jacobian, one gradient a task
(torchjd's own classes), and costs a backward pass and the memory of a gradient for each task.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Aggregator = Callable[[Tensor], Tensor]


class Weighting(nn.Module):
    """Losses in, the one to be minimised out; what it remembers are buffers or parameters, so that it resumes."""

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Scalar loss from losses [task] and the mixture's weights [task], which sum to one."""
        raise NotImplementedError


class Mean(Weighting):
    """The mean by mixture weight."""

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """sum_k w_k L_k."""
        return (weights * losses).sum()


class Uncertainty(Weighting):
    """Learned variances, Kendall, Gal and Cipolla (1705.07115), equation 7, with s = ln sigma^2."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """sum_k w_k (exp(-s_k) L_k + s_k)."""
        return (weights * (torch.exp(-self.log_variance) * losses + self.log_variance)).sum()


class DynamicAverage(Weighting):
    """Dynamic weight average, Liu, Johns and Davison (1803.10704), equation 2: slower tasks weigh more.

    Its epochs are windows of `WINDOW` steps, and its temperature is 2 as in the paper.
    """

    WINDOW, TEMPERATURE = 20, 2.0
    total: Tensor
    last: Tensor
    before: Tensor
    seen: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        for name in ("total", "last", "before"):
            self.register_buffer(name, torch.zeros(tasks))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Tensor, weights: Tensor) -> Tensor:
        """sum_k w_k K softmax_k(r_k / 2) L_k, r_k = the loss of the last window over that of the one before."""
        ratio = torch.where(self.before > 0, self.last / self.before.clamp_min(1e-12), 1.0)
        scale = len(losses) * torch.softmax(ratio / self.TEMPERATURE, 0)
        self.total += losses.detach()
        self.seen += 1
        if self.seen % self.WINDOW == 0:
            self.before.copy_(self.last)
            self.last.copy_(self.total / self.WINDOW)
            self.total.zero_()
        return (weights * scale * losses).sum()


WEIGHTINGS: dict[str, Callable[[int], Weighting]] = {
    "mean": lambda tasks: Mean(),
    "uncertainty": Uncertainty,
    "dynamic_average": DynamicAverage,
}

# Those of torchjd that remember nothing from step to step, so that a run resumes bit for bit.
TORCHJD: dict[str, tuple[str, dict[str, Any]]] = {
    "upgrad": ("UPGrad", {}),
    "dual_proj": ("DualProj", {}),
    "mgda": ("MGDA", {}),
    "pcgrad": ("PCGrad", {}),
    "cagrad": ("CAGrad", {"c": 0.5}),
    "aligned_mtl": ("AlignedMTL", {}),
    "imtl_g": ("IMTLG", {}),
    "config": ("ConFIG", {}),
    "grad_drop": ("GradDrop", {}),
    "random": ("Random", {}),
}


def make_aggregator(name: str) -> Aggregator:
    """The aggregator of torchjd of that name: a Jacobian [task, parameter] in, a gradient [parameter] out."""
    import torchjd.aggregation

    kind, options = TORCHJD[name]
    return getattr(torchjd.aggregation, kind)(**options)
