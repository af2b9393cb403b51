"""Many numbers a token become two, and what that keeps of who was near whom, beside chance."""

import io
import warnings

import numpy as np

from workbench.progress import tell

INPUT = 50  # principal components that UMAP works on where tokens have more numbers
CHUNK = 4096  # tokens at once, so that no second copy of all numbers is made
SHUFFLES = 20  # of the map


def principal(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores on the first principal components, float32 [token, count], and each one's share of the variance.

    The components are the right singular vectors of the centred values, found as eigenvectors of their covariance in
    double precision; in each the loading of greatest size is positive.
    """
    from scipy.linalg import eigh

    mean, width = values.mean(0, dtype=np.float64), values.shape[1]
    covariance = np.zeros((width, width))
    for chunk in _chunks(values, mean):
        covariance += chunk.T @ chunk
    variance, axes = eigh(covariance, subset_by_index=[width - count, width - 1])
    variance, axes = variance[::-1], axes[:, ::-1]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    scores = np.concatenate([(chunk @ axes).astype(np.float32) for chunk in _chunks(values, mean)])
    return scores, np.maximum(variance, 0) / np.trace(covariance)


def _chunks(values: np.ndarray, mean: np.ndarray):
    return (values[start : start + CHUNK] - mean for start in range(0, len(values), CHUNK))


def umap(values: np.ndarray, n_neighbors: int, min_dist: float, seed: int) -> np.ndarray:
    """UMAP of [token, number], float32 [token, 2]; the same for the same seed, on one core.

    Raises:
        Cancelled: when it is stopped while it lays the tokens out; looking for neighbours before cannot be stopped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it says that TensorFlow is missing, which nothing here needs
        from umap import UMAP

    told = {"disable": False, "file": _Epochs(f"UMAP of {len(values)} tokens"), "bar_format": "{n} {total}"}
    reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1, tqdm_kwds=told)
    return np.asarray(reducer.fit_transform(values), dtype=np.float32)


class _Epochs(io.StringIO):
    """What UMAP's progress bar writes to: it tells on which epoch UMAP is, and raises Cancelled when it should stop."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def write(self, text: str) -> int:
        """Take "epoch, of all"; the bar clears its line too."""
        numbers = text.split()
        if len(numbers) == 2:
            tell(self._what, *map(int, numbers))
        return len(text)


def distances(values: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 [token, token]; infinite from a token to itself."""
    exact = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    square = (exact**2).sum(1)
    found = square[:, None] + square - 2 * exact @ exact.T
    np.fill_diagonal(found, np.inf)
    return found


def nearest(far: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other tokens of each, [token, k]."""
    return np.argsort(far, axis=1, kind="stable")[:, :k]


def trust(far: np.ndarray, near: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Trustworthiness of a map whose nearest neighbours are `near` [token, k], and its mean for shuffled maps.

    Venna and Kaski (2001): 1 less a penalty for each neighbour on the map that is none of the k nearest at the
    distances `far`, by its rank there; 1 = all neighbours on the map are true ones.
    """
    count = len(far)
    ranks = np.empty(far.shape, np.int32)
    np.put_along_axis(ranks, np.argsort(far, axis=1, kind="stable"), np.arange(1, count + 1, dtype=np.int32)[None], 1)
    drawn = []
    for _ in range(SHUFFLES):
        place = rng.permutation(count)  # token i stands where place[i] stood
        drawn.append(_trusted(ranks, np.argsort(place)[near[place]]))
    return _trusted(ranks, near), float(np.mean(drawn))


def _trusted(ranks: np.ndarray, near: np.ndarray) -> float:
    count, k = near.shape
    penalty = np.clip(np.take_along_axis(ranks, near, 1) - k, 0, None).sum(dtype=np.int64)
    return float(1 - penalty * 2 / (count * k * (2 * count - 3 * k - 1)))
