"""Many gradients, kept in memory or in a file, and their inner products: no more than a block of each is ever made.

Exact products of T x B gradients need all of them. They are taken one after the other; when they are too many for
memory they stand in a temporary file, of which a little is read back at a time.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.analyses._slopes import Gradients, Product, Slope, settled

if TYPE_CHECKING:
    import torch

    from workbench.models.division import Division, Unit

HELD = 2.5e8  # bytes of gradients kept in memory, at most
BLOCK = 1.6e7  # bytes of all gradients multiplied at a time
SIDES = 3.2e7  # bytes of one side of their products that are held meanwhile
LEAST = 16  # rows of a block, where there are so many: fewer make poor use of the processor


@dataclass(frozen=True)
class Grams:
    """Inner products of gradients, float64, by piece of a division.

    gram [piece, batch, task, batch, task]. Of the tasks' gradients: energy [piece, task, task], the squared norm of the
    first task's mean where the second has a gradient; common [piece, task, task], the parameters where both have one.
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


Rows = Callable[[range], "torch.Tensor"]  # some rows of a tensor, wherever it stands
Reader = Callable[["torch.Tensor", range, int], object]  # some rows, into a table [row, column] times 0 or 1


@dataclass(frozen=True)
class Part:
    """Of a gradient: `open` gives a reader of some of its columns, which meanwhile holds `tokens` numbers of each."""

    open: Callable[[range], Reader]
    tokens: int


class Shelf:
    """Gradients, a row each: batch by batch, and in a batch the tasks in their order; in memory if they are few.

    Beyond `HELD` they stand in a temporary file, so that memory does not grow with their number. Used as a context;
    the file is gone afterwards.

    Args:
        division: of the parameters the gradients are of.
        tasks: rows of one batch.
        batches: batches there will be, at most.
    """

    def __init__(self, division: "Division", tasks: int, batches: int) -> None:
        self.division, self.tasks, self.batches = division, tasks, batches
        self._shapes = dict(zip(division.names, division.shapes, strict=True))
        self._rows: list[dict[str, list[Part]]] = []
        self._file: Any = None
        self._like: Any = None  # an empty tensor of the gradients' kind, where they are computed
        self._block: Any = None  # room for one, used again and again

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.clear()
        if self._file:
            self._file.close()

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._rows)

    def add(self, gradients: Gradients) -> None:
        """Keep the gradient of the next loss.

        Raises:
            AnalysisError: when they are too many for memory and the temporary folder has no room for them.
        """
        found = {name: settled(slope, self._shapes[name]) for name, slope in gradients.items()}
        if self._like is None and found:
            self._begin(found)
        self._rows.append({name: self._parts(slope) for name, slope in found.items()})

    def _begin(self, first: Gradients) -> None:
        slopes = [part for slope in first.values() for part in (slope if isinstance(slope, list) else [slope])]
        self._like = next(slope.right if isinstance(slope, Product) else slope for slope in slopes).new_empty(0)
        numbers = sum(slope.numbers if isinstance(slope, Product) else slope.numel() for slope in slopes)
        need = numbers * self._like.element_size() * self.tasks * self.batches
        self._file = _temporary(need) if need > HELD else None

    def _parts(self, slope: Slope) -> list[Part]:
        if isinstance(slope, list):
            return [self._product(each) for each in slope]
        table = self._placed(slope.reshape(_table(slope.shape)))
        return [Part(lambda columns: lambda out, rows, _: out.copy_(table(rows)[:, columns.start : columns.stop]), 0)]

    def _product(self, product: Product) -> Part:
        tokens, right = len(product.right), self._placed(product.right.T)
        left = self._placed(product.left if product.picks else product.left.T)

        def multiplied(columns: range) -> Reader:
            held = right(columns).T
            return lambda out, rows, times: out.addmm_(left(rows), held, beta=times)

        def picked(columns: range) -> Reader:
            held, at = right(columns).T, left(range(tokens))

            def add(out: "torch.Tensor", rows: range, times: int) -> None:
                if not times:
                    out.zero_()
                inside = ((at >= rows.start) & (at < rows.stop)).nonzero().flatten()
                out.index_add_(0, at[inside] - rows.start, held[inside])

            return add

        return Part(picked if product.picks else multiplied, tokens)

    def _placed(self, tensor: "torch.Tensor") -> Rows:
        """The tensor, in memory or in the file."""
        if self._file is None:
            return lambda rows: tensor[rows.start : rows.stop]
        start, kind, width = self._file.tell(), tensor.dtype, tensor.shape[1:]
        self._write(tensor)
        return lambda rows: self._read(start, rows, kind, width)

    def _write(self, tensor: "torch.Tensor") -> None:
        try:
            self._file.write(tensor.detach().contiguous().cpu().numpy().data)
        except OSError as error:
            raise _no_room(error.strerror or str(error)) from error

    def _read(self, start: int, rows: range, kind: "torch.dtype", width: "torch.Size") -> "torch.Tensor":
        import torch

        found = torch.empty((len(rows), *width), dtype=kind)
        if found.numel():
            self._file.seek(start + rows.start * width.numel() * found.element_size())
            self._file.readinto(found.numpy().data)
        return found.to(self._like.device)

    def grams(self) -> Grams:
        """Inner products of all complete batches."""
        count, tasks, pieces = self.rows // self.tasks, self.tasks, len(self.division.pieces)
        gram = np.zeros((pieces, count, tasks, count, tasks))
        energy, common = np.zeros((2, pieces, tasks, tasks))
        for piece, rows in self._pieces(count * tasks):
            product = (rows @ rows.T).double().cpu().numpy().reshape(gram.shape[1:])
            gram[piece] += product
            if int(rows[:tasks].count_nonzero()) == rows[:tasks].numel():  # all tasks have a gradient everywhere
                energy[piece] += np.einsum("btct->t", product)[:, None] / count**2
                common[piece] += rows.shape[1]
                continue
            each = rows.view(count, tasks, -1)
            there = each.any(0).to(rows.dtype)
            energy[piece] += (each.mean(0).square() @ there.T).double().cpu().numpy()
            common[piece] += (there @ there.T).double().cpu().numpy()
        return Grams(gram, energy, common)

    def _pieces(self, count: int) -> "Iterator[tuple[int, torch.Tensor]]":
        """Piece and some of its numbers of every row, [row, number]."""
        for parameter in range(len(self._shapes)):
            inside = [i for i, piece in enumerate(self.division.pieces) if piece.parameter == parameter]
            for block, rows, columns in self._blocks(parameter, count):
                for index in inside:
                    found = self.division.pieces[index].of(block, rows, columns)
                    if found.numel():
                        yield index, found

    def _shared(self, *shape: int) -> "torch.Tensor":
        """A block of a shape; the one before is overwritten."""
        need = int(np.prod(shape))
        if self._block is None or need > len(self._block):
            self._block = self._like.new_empty(need)
        return self._block[:need].view(shape)

    def _blocks(self, parameter: int, count: int) -> "Iterator[tuple[torch.Tensor, range, range]]":
        """A parameter as a table, block by block, [gradient, row, column], with the rows and columns of each."""
        tall, wide = _table(self.division.shapes[parameter])
        parts = [row.get(self.division.names[parameter], []) for row in self._rows[:count]]
        if not any(parts):
            return
        size, tokens = self._like.element_size(), sum(part.tokens for row in parts for part in row)
        most = min(BLOCK / count / min(tall, LEAST), SIDES / max(1, tokens)) / size
        for columns in _ranges(wide, most):
            readers = [[part.open(columns) for part in row] for row in parts]
            for rows in _ranges(tall, BLOCK / size / count / len(columns)):
                block = self._shared(count, len(rows), len(columns))
                for out, row in zip(block, readers, strict=True):
                    for place, read in enumerate(row or [_nothing]):
                        read(out, rows, min(place, 1))
                yield block, rows, columns


def _nothing(out: "torch.Tensor", rows: range, times: int) -> None:
    out.zero_()


def _ranges(length: int, most: float) -> Iterator[range]:
    step = max(1, int(most))
    return (range(start, min(start + step, length)) for start in range(0, length, step))


def _table(shape: "torch.Size") -> tuple[int, int]:
    """A parameter's shape as rows and columns."""
    rows = shape[0] if len(shape) else 1
    return rows, shape.numel() // max(1, rows)


def _temporary(need: float) -> Any:
    """A file without a name with room for so many bytes."""
    folder = tempfile.gettempdir()
    room = shutil.disk_usage(folder).free
    if need > room:
        raise _no_room(f"they need {need / 1e9:.1f} GB, and {room / 1e9:.1f} GB are left")
    return tempfile.TemporaryFile(prefix="workbench-gradients-")


def _no_room(reason: str) -> AnalysisError:
    return AnalysisError(
        f"The gradients do not fit on the disk of '{tempfile.gettempdir()}' ({reason}); name fewer tasks or batches, "
        "or set TMPDIR to a folder on a larger disk."
    )
