"""Rank correlation of what was measured in some sequences, with its interval and its null."""

import numpy as np

from workbench.analyses._base import interval

RESAMPLES, PERMUTATIONS, FEW = 1000, 1000, 3  # fewer pairs than the last have no rank correlation


def rank_correlation(name: str, what: str, pairs: list[np.ndarray], seed: int) -> dict[str, tuple]:
    """Spearman correlation of pairs [2, token], an array a sequence, with its interval and two-sided p.

    Tokens of a sequence are resampled together, since they share its primary sink.
    """
    a, b = np.concatenate(pairs, 1)
    rho, low, high, p = 0.0, -1.0, 1.0, 1.0
    if _ranked(a, b):
        rho = spearman(a, b)
        low, high = _resampled(pairs, seed)
        rng, x, y = np.random.default_rng(seed), _centred(a), _centred(b)
        drawn = np.array([rng.permutation(x) @ y for _ in range(PERMUTATIONS)])
        p = float((1 + (abs(drawn) >= abs(rho) - 1e-12).sum()) / (1 + PERMUTATIONS))
    words = {"long_name": f"Spearman of {what}", "signed": 1}
    ends = {"": rho, "_low": low, "_high": high, "_p": p}
    return {f"{name}{end}": ((), value, words) for end, value in ends.items()}


def _resampled(pairs: list[np.ndarray], seed: int) -> tuple[float, float]:
    """Interval over sequences drawn anew; all there is between -1 and 1 where too few tell."""
    telling = [pair for pair in pairs if pair.size]
    rng, found = np.random.default_rng(seed), []
    for _ in range(RESAMPLES if len(telling) > 1 else 0):
        a, b = np.concatenate([telling[i] for i in rng.integers(len(telling), size=len(telling))], 1)
        if _ranked(a, b):
            found.append(spearman(a, b))
    if not found:
        return -1.0, 1.0
    low, high = interval(np.array(found))
    return float(low), float(high)


def _ranked(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) >= FEW and len(np.unique(a)) > 1 and len(np.unique(b)) > 1


def _centred(values: np.ndarray) -> np.ndarray:
    """Ranks, ties sharing their mean rank, as a vector of mean 0 and length 1."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[which]
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two arrays neither of which is constant."""
    return float(_centred(a) @ _centred(b))
