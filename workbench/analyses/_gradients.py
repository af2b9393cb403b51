"""What is said of the gradients of several tasks, from their inner products."""

from typing import Any

import numpy as np

from workbench.analyses._base import LEVEL
from workbench.analyses._shelf import Grams

RELIABLE = 0.25  # least ceiling of both tasks at which a cosine is corrected for noise


def cosines(mean: np.ndarray) -> np.ndarray:
    """Cosines [..., task, task] from inner products; 0 where a gradient is zero."""
    norm = np.sqrt(np.diagonal(mean, axis1=-2, axis2=-1))
    return np.clip(_ratio(mean, norm[..., :, None] * norm[..., None, :]), -1, 1)  # of rounding


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.zeros(np.broadcast_shapes(over.shape, under.shape)), where=under > 0)


def measures(grams: Grams) -> dict[str, np.ndarray]:
    """Everything that is said of each unit, by name: [unit, task, task], or [unit, task] for norm and ceiling.

    Batches are taken to be independent of each other; those of one number may share their prompts between tasks.
    """
    gram, count = grams.gram, grams.gram.shape[1]
    whole = gram.sum((1, 3))  # [unit, task, task], of sums over batches
    same = np.einsum("ubsbt->ust", gram)
    unbiased = (whole - same) / (count * (count - 1))  # different batches only, so that no noise meets itself
    mean = whole / count**2
    squared = np.diagonal(mean, axis1=1, axis2=2)
    found = {"cosine": cosines(mean), "norm": np.sqrt(squared)}
    found["ceiling"] = _ratio(np.diagonal(unbiased, axis1=1, axis2=2), squared)
    low, high = _jackknifed(gram, whole, found["cosine"])
    found |= {"cosine_low": low, "cosine_high": high}
    norms = found["norm"][:, :, None], found["norm"][:, None]
    found["magnitude"] = _ratio(2 * norms[0] * norms[1], norms[0] ** 2 + norms[1] ** 2)
    found |= _chance(found["cosine"], grams.common)
    found["support_cosine"] = _ratio(mean, np.sqrt(grams.energy * grams.energy.transpose(0, 2, 1)))
    found["conflict"] = _conflicts(gram)
    found["reliable"] = (found["ceiling"] >= RELIABLE).astype(np.int8)
    both = found["reliable"][:, :, None] * found["reliable"][:, None] > 0
    found["disattenuated"] = np.where(both, cosines(np.where(both, unbiased, 0)), 0)
    clear = (low > 0) | (high < 0)
    found["clear"] = (clear & (np.abs(found["z"]) > _normal())).astype(np.int8)
    return found


def _chance(cosine: np.ndarray, common: np.ndarray) -> dict[str, np.ndarray]:
    """Standard deviation of the cosine of unrelated gradients, each spread evenly over where it is, and z."""
    own = np.sqrt(np.diagonal(common, axis1=1, axis2=2))
    floor = _ratio(np.sqrt(common), own[:, :, None] * own[:, None])
    return {"floor": floor, "z": _ratio(cosine, floor)}


def _conflicts(gram: np.ndarray) -> np.ndarray:
    """Share of the pairs of different batches whose gradients point against each other."""
    count = gram.shape[1]
    against = np.einsum("ubsct,bc->ust", (gram < 0).astype(float), 1 - np.eye(count))
    return against / (count * (count - 1))


def _jackknifed(gram: np.ndarray, whole: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of the cosines: the jackknife over batches with Student's t.

    The percentile bootstrap draws a batch twice, which makes the norm, and so the noise, of a resample larger than
    that of the sample: its intervals lie too close to zero.
    """
    from scipy.special import stdtrit

    count = gram.shape[1]
    without = np.stack([whole - gram[:, b].sum(2) - gram[:, :, :, b].sum(1) + gram[:, b, :, b] for b in range(count)])
    left = cosines(without)
    error = np.sqrt((count - 1) / count * ((left - left.mean(0)) ** 2).sum(0))
    half = stdtrit(count - 1, (1 + LEVEL) / 2) * error
    return np.clip(cosine - half, -1, 1), np.clip(cosine + half, -1, 1)


def _normal() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + LEVEL) / 2))


SAID: dict[str, dict[str, Any]] = {
    "cosine": {"long_name": "cosine of two tasks' gradients", "units": "cosine", "signed": 1},
    "norm": {"long_name": "norm of a task's gradient", "units": "nats"},
    "ceiling": {
        "long_name": "cosine expected of two independent gradients of one task, of as many prompts",
        "units": "cosine",
        "signed": 1,
    },
    "magnitude": {"long_name": "similarity of the norms", "units": "share"},
    "floor": {"long_name": "standard deviation of the cosine of unrelated gradients", "units": "cosine"},
    "z": {"long_name": "cosine / floor", "units": "standard deviations", "signed": 1},
    "common": {"long_name": "share of the parameters where both tasks have a gradient", "units": "share"},
    "support_cosine": {"long_name": "cosine where both tasks have a gradient", "units": "cosine", "signed": 1},
    "conflict": {"long_name": "pairs of independent batches with a negative cosine", "units": "share"},
    "reliable": {"long_name": f"ceiling of at least {RELIABLE}"},
    "disattenuated": {"long_name": "cosine of the expected gradients", "units": "cosine", "signed": 1},
    "clear": {"long_name": "outside the noise: interval without 0, and beyond chance"},
}


def said(name: str) -> dict[str, Any]:
    """Attributes of a measure, or of an end of its interval."""
    return SAID[name.removesuffix("_low").removesuffix("_high")]
