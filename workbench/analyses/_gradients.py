"""Inner products of the gradients of several losses, for every part of a model, in memory that does not grow with them.

Exact products of T x B gradients need all of them. They are taken one after the other; when they are too many for
memory they stand in a temporary file, of which a few columns are read back at a time.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import LEVEL, AnalysisError

if TYPE_CHECKING:
    import torch

    from workbench.models.parameters import Division, Unit

HELD = 2.5e8  # bytes of gradients kept in memory, at most
BLOCK = 4e6  # bytes of all gradients multiplied at a time
RELIABLE = 0.25  # least ceiling of both tasks at which a cosine is corrected for noise


@dataclass(frozen=True)
class Grams:
    """Inner products of gradients, float64, by piece of a division.

    gram [piece, batch, task, batch, task]. Of the tasks' mean gradients: energy [piece, task, task], the squared norm
    of the first task's where the second has a gradient; common [piece, task, task], the parameters where both have one.
    """

    gram: np.ndarray
    energy: np.ndarray
    common: np.ndarray

    def of(self, units: "Sequence[Unit]") -> "Grams":
        """The same by unit: the sums over each one's pieces."""
        member = np.zeros((len(units), len(self.gram)))
        for row, unit in enumerate(units):
            member[row, list(unit.pieces)] = 1
        return Grams(*(np.tensordot(member, part, 1) for part in (self.gram, self.energy, self.common)))


class Shelf:
    """Gradients, a row each: batch by batch, and in a batch the tasks in their order; in memory if they are few.

    Beyond `HELD` they stand in a temporary file, so that memory does not grow with their number. Used as a context;
    the file is gone afterwards.

    Args:
        division: of the parameters the gradients are of.
        tasks: rows of one batch.
        batches: batches there will be, at most.
        dtype: of the gradients.

    Raises:
        AnalysisError: when they are too many for memory and the temporary folder has no room for them.
    """

    def __init__(self, division: "Division", tasks: int, batches: int, dtype: str = "float32") -> None:
        self.division, self.tasks, self.dtype, self.rows = division, tasks, np.dtype(dtype), 0
        self.width = int(division.sizes.sum())
        need = tasks * batches * self.width * self.dtype.itemsize
        self._held: list[Mapping[str, torch.Tensor]] = []
        self._file = _temporary(need) if need > HELD else None

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._file:
            self._file.close()

    def add(self, gradients: "Mapping[str, torch.Tensor]") -> None:
        """Keep the gradient of the next loss, by parameter name; a parameter that is missing has none."""
        self.rows += 1
        if self._file is None:
            self._held.append(gradients)
            return
        for piece in self.division.cut(gradients):
            self._file.write(piece.detach().cpu().numpy().data)

    def grams(self) -> Grams:
        """Inner products of all complete batches."""
        count, tasks, pieces = self.rows // self.tasks, self.tasks, len(self.division.pieces)
        gram = np.zeros((pieces, count * tasks, count * tasks))
        energy, common = np.zeros((2, pieces, tasks, tasks))
        for piece, rows in (self._from_memory if self._file is None else self._from_file)(count * tasks):
            mean = rows.view(count, tasks, -1).mean(0)
            there = (mean != 0).to(rows.dtype)
            gram[piece] += (rows @ rows.T).double().cpu().numpy()
            energy[piece] += (mean.square() @ there.T).double().cpu().numpy()
            common[piece] += (there @ there.T).double().cpu().numpy()
        return Grams(gram.reshape(pieces, count, tasks, count, tasks), energy, common)

    def _wide(self, rows: int) -> int:
        """Columns of all rows looked at together; few, so that the sums of single precision are short."""
        return max(1, int(BLOCK / max(1, rows) / self.dtype.itemsize))

    def _from_memory(self, rows: int) -> "Iterator[tuple[int, torch.Tensor]]":
        """Piece and some of its columns of every row, [row, column]."""
        import torch

        cut = (self.division.cut(gradients) for gradients in self._held[:rows])
        for piece, flat in enumerate(zip(*cut, strict=True)):
            for parts in zip(*(one.split(self._wide(rows)) for one in flat), strict=True):
                yield piece, torch.stack(parts)

    def _from_file(self, rows: int) -> "Iterator[tuple[int, torch.Tensor]]":
        """The same from the file, whose columns are the pieces one after the other."""
        import torch

        assert self._file is not None
        wide, ends = self._wide(rows), np.cumsum(self.division.sizes)
        for first in range(0, self.width, wide):
            table = np.empty((rows, min(wide, self.width - first)), self.dtype)
            for row in range(rows):
                self._file.seek((row * self.width + first) * self.dtype.itemsize)
                self._file.readinto(table[row].data)
            last, block = first + table.shape[1], torch.from_numpy(table)
            for piece in range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last)) + 1):
                start, stop = ends[piece] - self.division.pieces[piece].size, ends[piece]
                yield piece, block[:, max(start, first) - first : min(stop, last) - first].contiguous()


def _temporary(need: float) -> Any:
    """A file without a name with room for so many bytes."""
    folder = tempfile.gettempdir()
    room = shutil.disk_usage(folder).free
    if need > room:
        raise AnalysisError(
            f"The gradients take {need / 1e9:.1f} GB on disk, and '{folder}' has {room / 1e9:.1f} GB left; name fewer "
            "tasks or batches, or set TMPDIR to a folder on a larger disk."
        )
    return tempfile.TemporaryFile(prefix="workbench-gradients-")


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
