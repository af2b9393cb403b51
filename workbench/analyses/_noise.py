"""How far a difference of two checkpoints may be noise: for all cells at once, from prompts or from intervals."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workbench.analyses._base import LEVEL, AnalysisError

FEWEST = 6  # prompts: of fewer, one sign in 20 or more is that of all
MEMORY = 2e7  # numbers of a chunk of draws
NORMAL = 1e9  # degrees of freedom of a t that is normal
CONSTANT = 1e-12  # of the mean square, under which a variance is rounding


@dataclass(frozen=True)
class Noise:
    """What the difference of an unchanged cell may be.

    error: standard error of the difference of every cell. critical: how many standard errors no unchanged cell
    exceeds, in 95 % of comparisons. tail: from |difference| / error, the chance that any unchanged cell has as much.
    """

    error: np.ndarray
    critical: float
    tail: Callable[[np.ndarray], np.ndarray]

    @property
    def band(self) -> np.ndarray:
        """Half the width of the simultaneous 95 % interval of every cell."""
        return self.critical * self.error

    def p(self, difference: np.ndarray) -> np.ndarray:
        """Of every cell, the chance that any unchanged one differs as much."""
        return self.tail(_ratio(np.abs(difference), self.error))

    def widened(self, factor: float) -> "Noise":
        """The same with larger standard errors."""
        return replace(self, error=self.error * factor)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """A quotient that is 0 where both are, and infinite where only the lower one is."""
    return np.divide(over, under, out=np.where(over > 0, np.inf, 0.0), where=under > 0)


def pseudo_values(gain: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """What each prompt says of a ratio of means, [prompt, ...]: their mean is the ratio, their spread its noise.

    The ratio is mean gain [prompt, ...] over mean gap [prompt, ...], linear in small changes (the delta method).
    """
    gap = gap.reshape(*gap.shape, *[1] * (gain.ndim - gap.ndim))
    ratio = gain.mean(0) / gap.mean(0)
    return ratio + (gain - ratio * gap) / gap.mean(0)


def by_signs(differences: np.ndarray, draws: int, seed: int) -> Noise:
    """Noise of the mean of paired differences [prompt, cell], by the largest |t| of all cells when signs are drawn.

    Where nothing changed, before and after may be exchanged in any prompt (the same for all its cells), which turns the
    sign of its differences. The greatest |t| of any cell, over draws of signs, is what chance gives: the maximum
    statistic of Westfall and Young (1993), which holds the share of comparisons with any false change at 5 %, however
    the cells hang together.

    Raises:
        AnalysisError: for fewer than 6 prompts.
    """
    count = len(differences)
    if count < FEWEST:
        raise AnalysisError(f"{count} prompts show no noise; compare results of {FEWEST} prompts or more.")
    squares = (differences**2).mean(0)
    values = differences[:, squares > 0]
    squares, rng, greatest = squares[squares > 0], np.random.default_rng(seed), []
    size = max(1, int(MEMORY / max(1, values.shape[1])))
    for start in range(0, draws, size):
        signs = rng.choice((-1.0, 1.0), (min(size, draws - start), count))
        greatest.append(_statistic(signs @ values / count, squares, count).max(1, initial=0))
    top = np.sort(np.concatenate(greatest))

    def tail(t: np.ndarray) -> np.ndarray:
        return (1 + draws - np.searchsorted(top, t * (1 - CONSTANT))) / (1 + draws)

    error = differences.std(0, ddof=1) / np.sqrt(count)
    return Noise(error, float(np.quantile(top, LEVEL, method="higher")), tail)


def _statistic(mean: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """|t| from the mean and the mean square of `count` values; infinite where they are all the same."""
    variance = (squares - mean**2) * count / (count - 1)
    with np.errstate(divide="ignore"):
        return np.abs(mean) * np.sqrt(count) / np.sqrt(np.where(variance > CONSTANT * squares, variance, 0))


def by_errors(error: np.ndarray, count: int, freedom: float) -> Noise:
    """Noise of differences whose standard errors [cell] are known, after Šidák (1967).

    Student's t with `freedom` degrees of freedom (infinite: normal). Each of `count` cells is tested at the level
    1 - 0.95^(1/count), which is enough for errors that are normal, however they hang together.
    """
    from scipy.special import stdtr, stdtrit

    freedom, count = min(freedom, NORMAL), max(1, count)

    def tail(t: np.ndarray) -> np.ndarray:
        one = np.minimum(2 * stdtr(freedom, -t), 1 - 1e-16)
        return -np.expm1(count * np.log1p(-one))

    level = -np.expm1(np.log(LEVEL) / count)  # of one cell, on both sides
    return Noise(error, float(-stdtrit(freedom, level / 2)), tail)


def error_of(low: np.ndarray, value: np.ndarray, high: np.ndarray, freedom: float) -> np.ndarray:
    """Standard error of a value with a 95 % interval, of whose sides the wider counts (one may be cut off)."""
    from scipy.special import stdtrit

    half = np.maximum(high - value, value - low)
    return np.maximum(half, 0) / stdtrit(min(freedom, NORMAL), (1 + LEVEL) / 2)


def inflation(first: np.ndarray, second: np.ndarray, errors: tuple[np.ndarray, np.ndarray]) -> float:
    """How much wider than their standard errors two independent measurements [cell] of a difference lie apart.

    The root mean square of (first - second) / sqrt(e1^2 + e2^2), at least 1: noise that prompts of one trace do not
    show, such as that of the templates drawn, never makes a band narrower.
    """
    spread = np.sqrt(errors[0] ** 2 + errors[1] ** 2)
    live = spread > 0
    return float(max(1.0, np.sqrt(np.mean(((first - second)[live] / spread[live]) ** 2)))) if live.any() else 1.0
