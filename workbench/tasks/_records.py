"""Reading a person's own pairs: a list, a DataFrame, JSON lines or CSV, with errors that name the row."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.tasks._base import Pair, TaskError

COLUMNS = ("clean", "corrupted", "answer", "wrong")


def read_records(rows: Any) -> tuple[Pair, ...]:
    """The pairs in `rows`; see `Task.from_records`."""
    pairs = tuple(_pair(row, where) for where, row in numbered(rows))
    if not pairs:
        raise TaskError("There are no rows, so the task is empty; give at least one clean/corrupted/answer/wrong pair.")
    return pairs


def numbered(rows: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Each row with what a person would call it: its number, its label in a table, or its line in a file."""
    if isinstance(rows, (str, Path)):
        yield from _from_file(Path(rows))
    elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        yield from ((f"row {label}", row) for label, row in zip(rows.index, rows.to_dict("records"), strict=True))
    elif not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise TaskError(
            f"Pairs cannot be read from a {type(rows).__name__}; give a list of mappings, a table or a path."
        )
    else:
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _from_file(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise TaskError(f"There is no file '{path}'; give the path of a .jsonl or .csv file.")
    if path.suffix == ".csv":
        import pandas

        with _readable(path):
            table = pandas.read_csv(path, dtype=str, keep_default_na=False)
        yield from ((f"line {number}", row) for number, row in enumerate(table.to_dict("records"), 2))
    elif path.suffix in (".jsonl", ".ndjson"):
        with _readable(path):
            lines = path.read_text(encoding="utf-8").split("\n")  # JSON text may hold other line separators
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _json_row(line, number, path)
    else:
        raise TaskError(f"'{path.name}' is neither .jsonl nor .csv; save the pairs in one of these forms.")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise TaskError(f"'{path.name}' cannot be read ({error}); save it again as UTF-8 text.") from None


def _json_row(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path.name} line {number} is not JSON ({error.msg}); write one object a line.") from None


def _pair(row: Any, where: str) -> Pair:
    if not isinstance(row, Mapping):
        raise TaskError(f"{where} is a {type(row).__name__}; each row is a mapping with {', '.join(COLUMNS)}.")
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise TaskError(f"{where} lacks {', '.join(missing)}; each row needs {', '.join(COLUMNS)}.")
    texts = {column: _texts(row[column], column, where) for column in COLUMNS}
    for column in ("clean", "corrupted"):
        if len(texts[column]) != 1:
            raise TaskError(f"{where}: '{column}' holds {len(texts[column])} texts; it must be one.")
    return Pair(texts["clean"][0], texts["corrupted"][0], texts["answer"], texts["wrong"], row=f"{where}: ")


def _texts(value: Any, column: str, where: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or any(not isinstance(text, str) or not text for text in values):
        raise TaskError(f"{where}: '{column}' is {value!r}; it must be text, or a list of texts, and not empty.")
    return values
