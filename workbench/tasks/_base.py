"""What a task is: pairs of clean and corrupted prompts with a right and a wrong answer, and how they become tokens."""

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.registry import Registry, WorkbenchError

JOIN = "~"  # before a word: no space in running text ("17" then "~23" is the year 1723)
PUNCTUATION = frozenset(",.?:")
LEAST = 8  # fewer prompts than this give no interval worth reading


class TaskError(WorkbenchError):
    """A task that cannot be used with this tokenizer, or that was described wrongly."""


@dataclass(frozen=True)
class Example:
    """One pair as words; `positions` names word indices that are the same in both prompts.

    `answers` are the right continuations of the clean prompt, `wrongs` those it is weighed against.
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    answers: tuple[str, ...]
    wrongs: tuple[str, ...]
    positions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """One pair as text; `spans` are the character ranges of the named positions in the clean text."""

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrongs: tuple[str, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    row: str = ""


@dataclass(frozen=True)
class Prompts:
    """The tokens of a task for one tokenizer.

    Lists run over prompts, which may differ in length; clean and corrupted of one prompt never do. Token arrays are
    int64 [pos], BOS included where the model takes one. `positions[i][name]` is a token index (END is the last token).
    """

    clean: list[np.ndarray]
    corrupted: list[np.ndarray]
    answers: list[np.ndarray]
    wrongs: list[np.ndarray]
    positions: list[dict[str, int]]
    texts: list[str]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each prompt, [prompt]."""
        return np.array([len(tokens) for tokens in self.clean])


@dataclass(frozen=True)
class Family:
    """A registered task before its corruption, size and seed are chosen."""

    name: str
    draw: Callable[[random.Random, str], Example]
    corruptions: tuple[str, ...]
    metric: str
    about: str
    paper: str = ""


TASKS: Registry[Family] = Registry("task")


def task_family(name: str, *, corruptions: Sequence[str], about: str, metric: str = "logit_diff", paper: str = ""):
    """Register `draw(rng, corruption) -> Example` as a task; the first corruption is the default."""

    def register(draw: Callable[[random.Random, str], Example]) -> Callable[[random.Random, str], Example]:
        TASKS.add(name, Family(name, draw, tuple(corruptions), metric, about, paper))
        return draw

    return register


@dataclass(frozen=True)
class Task:
    """Prompts with a known answer, each beside a corrupted twin of the same length.

    Made by `workbench.task(name, ...)` or `Task.from_records(rows)`; `metric` is `logit_diff` (mean logit of the
    answers minus mean logit of the wrongs) or `prob_diff` (their probability masses), at the last position.
    """

    name: str
    corruption: str
    n: int
    seed: int
    metric: str = "logit_diff"
    records: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise TaskError(f"{self.name}: n is {self.n}, so the task is empty; ask for n >= {LEAST}.")
        if self.metric not in ("logit_diff", "prob_diff"):
            raise TaskError(f"{self.name}: unknown metric '{self.metric}'; use 'logit_diff' or 'prob_diff'.")

    @property
    def title(self) -> str:
        """Name and corruption, as every figure shows them."""
        return f"{self.name} ({self.corruption})"

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON from which `from_spec` makes the same task."""
        plain = {key: getattr(self, key) for key in ("name", "corruption", "n", "seed", "metric")}
        if self.records:
            plain["records"] = [
                {"clean": p.clean, "corrupted": p.corrupted, "answer": list(p.answers), "wrong": list(p.wrongs)}
                for p in self.records
            ]
        return plain

    @property
    def hash(self) -> str:
        """Identifies the prompts: sixteen hexadecimal digits of the spec's SHA-256."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Task":
        """The task a `spec` describes."""
        if "records" in spec:
            return cls.from_records(spec["records"], name=spec["name"], metric=spec["metric"])
        return make_task(spec["name"], **{k: spec[k] for k in ("corruption", "n", "seed") if k in spec})

    @classmethod
    def from_records(cls, rows: Any, name: str = "mine", metric: str = "logit_diff") -> "Task":
        """A task of your own pairs.

        `rows` is a list of mappings, a DataFrame, or the path of a `.jsonl` or `.csv` file, with the columns `clean`,
        `corrupted`, `answer` and `wrong`. Answers are continued exactly as written, so most begin with a space. A list
        of strings in `answer` or `wrong` means any of them.

        Raises:
            TaskError: naming the row, where a column is missing, empty or not text.
        """
        from workbench.tasks._records import read_records

        pairs = read_records(rows)
        return cls(name=name, corruption="as given", n=len(pairs), seed=0, metric=metric, records=pairs)

    def examples(self, n: int | None = None, seed: int | None = None) -> list[Example]:
        """The first `n` pairs as words (not for a task made from records, which has text only)."""
        stream = self.stream(self.seed if seed is None else seed)
        return [next(stream) for _ in range(self.n if n is None else n)]

    def stream(self, seed: int | str) -> Iterator[Example]:
        """Pairs without end; another seed gives another order and other pairs."""
        family, rng = TASKS[self.name], random.Random(f"{self.name}/{self.corruption}/{seed}")
        while True:
            yield family.draw(rng, self.corruption)

    def encode(self, tokenizer: Any, *, bos: bool) -> Prompts:
        """Tokens of the first `n` pairs that fit the tokenizer.

        Pairs whose answers are not one token after the prompt, or whose corrupted twin has another length, are dropped
        and counted; up to 8 n pairs are tried.

        Raises:
            TaskError: when fewer than `min(n, 8)` fit, with the count of each reason.
        """
        if self.records:
            candidates: Iterator[Pair] = iter(self.records)
        else:
            spaced = splits_on_spaces_only(tokenizer)
            stream = self.stream(self.seed)
            candidates = (render(next(stream), spaced) for _ in range(8 * self.n))
        return _encode(self, candidates, tokenizer, bos)

    def documents(self, tokenizer: Any, *, length: int, count: int, bos: bool) -> np.ndarray:
        """Running text of the task, int64 [count, length]: prompts with their answers, cut at `length` tokens."""
        spaced = splits_on_spaces_only(tokenizer)
        if self.records:
            pairs: Iterator[Pair] = itertools.cycle(self.records)
        else:
            pairs = (render(example, spaced) for example in self.stream(self.seed))
        rows = np.empty((count, length), dtype=np.int64)
        for row in rows:
            text, ids, most = "", [], int(bos)
            while len(ids) < length:
                pair = next(pairs)
                piece = (" " if text else "") + pair.clean + pair.answers[0] + (" ." if spaced else ".")
                text += piece
                # The whole is read again only when it may be long enough: a join is worth one token more at most.
                most += len(tokenizer(piece, add_special_tokens=False)["input_ids"]) + 1
                if most >= length:
                    ids = [tokenizer.bos_token_id] * bos + tokenizer(text, add_special_tokens=False)["input_ids"]
            row[:] = ids[:length]
        return rows


def make_task(name: str, *, n: int = 64, seed: int = 0, corruption: str | None = None) -> Task:
    """A shipped task: its first `n` pairs under `seed`, corrupted in the way named (default: the family's first)."""
    family = TASKS[name]
    corruption = corruption or family.corruptions[0]
    if corruption not in family.corruptions:
        known = ", ".join(family.corruptions)
        raise TaskError(f"Task '{name}' has no corruption '{corruption}'; it has: {known}.")
    return Task(name=name, corruption=corruption, n=n, seed=seed, metric=family.metric)


def splits_on_spaces_only(tokenizer: Any) -> bool:
    """True for a word-level vocabulary in which "Mary," is unknown although "Mary" and "," are not."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown in tokenizer("Mary,", add_special_tokens=False)["input_ids"]


def join(words: Sequence[str], spaced: bool, start: str = "") -> tuple[str, list[tuple[int, int]]]:
    """Text of `words` after `start`, and the character span of each word (its leading space excluded)."""
    text, spans = start, []
    for word in words:
        glued = not text or (not spaced and (word[:1] == JOIN or word in PUNCTUATION))
        text += "" if glued else " "
        spans.append((len(text), len(text) + len(word.removeprefix(JOIN))))
        text += word.removeprefix(JOIN)
    return text, spans


def render(example: Example, spaced: bool) -> Pair:
    """An example as the text this kind of tokenizer reads."""
    clean, spans = join(example.clean, spaced)
    corrupted, _ = join(example.corrupted, spaced)

    def after(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(join((word,), spaced, clean)[0][len(clean) :] for word in words)

    marks = {name: spans[index] for name, index in example.positions.items()}
    return Pair(clean, corrupted, after(example.answers), after(example.wrongs), marks)


def _encode(task: Task, candidates: Iterator[Pair], tokenizer: Any, bos: bool) -> Prompts:
    if not tokenizer.is_fast:
        raise TaskError("This tokenizer gives no character offsets; save its fast (tokenizer.json) form and load that.")
    kept: list[tuple] = []
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}
    head = [tokenizer.bos_token_id] if bos else []
    for pair in candidates:
        if len(kept) == task.n:
            break
        found = _fit(pair, tokenizer, head)
        if isinstance(found, str):
            reason = found.split(":")[0]
            dropped[reason] += 1
            first.setdefault(reason, f"{pair.row}{found}")
        else:
            kept.append(found)
    least = min(task.n, LEAST)
    if len(kept) < least:
        reasons = "; ".join(f"{count} x {first[reason]}" for reason, count in dropped.items())
        raise TaskError(
            f"Task '{task.title}' keeps {len(kept)} of the {least} prompts it needs with this tokenizer ({reasons}). "
            "Choose a task whose words are single tokens here, or give your own pairs with Task.from_records."
        )
    clean, corrupted, answers, wrongs, positions, texts = (list(column) for column in zip(*kept, strict=True))
    return Prompts(clean, corrupted, answers, wrongs, positions, texts, dict(dropped))


def _fit(pair: Pair, tokenizer: Any, head: list[int]) -> tuple | str:
    """The pair's arrays, or why it does not fit."""
    coded = tokenizer(pair.clean, add_special_tokens=False, return_offsets_mapping=True)
    clean = coded["input_ids"]
    corrupted = tokenizer(pair.corrupted, add_special_tokens=False)["input_ids"]
    if reason := _mismatch(clean, corrupted, tokenizer.unk_token_id):
        return reason
    ends = []
    for word in (*pair.answers, *pair.wrongs):
        ids = tokenizer(pair.clean + word, add_special_tokens=False)["input_ids"]
        if ids[:-1] != clean or ids[-1] == tokenizer.unk_token_id:
            return f"answer is not one token: {word!r} after the prompt{_space_hint(pair, word)}"
        ends.append(ids[-1])
    answers, wrongs = ends[: len(pair.answers)], ends[len(pair.answers) :]
    if set(answers) & set(wrongs):
        return "answer equals wrong: a token is in both"
    positions = {name: _token_at(coded["offset_mapping"], span) + len(head) for name, span in pair.spans.items()}
    positions["END"] = len(head) + len(clean) - 1
    arrays = (np.array(ids, dtype=np.int64) for ids in (head + clean, head + corrupted, answers, wrongs))
    return (*arrays, positions, pair.clean)


def _mismatch(clean: list[int], corrupted: list[int], unknown: int | None) -> str | None:
    """Why two prompts cannot be compared token by token."""
    if not clean:
        return "empty: the clean prompt has no tokens"
    if len(clean) != len(corrupted):
        return f"lengths differ: clean has {len(clean)} tokens and corrupted {len(corrupted)}"
    if clean == corrupted:
        return "corrupted equals clean: the two prompts have the same tokens"
    if unknown is not None and unknown in (*clean, *corrupted):
        return "unknown word: this vocabulary lacks a word of the prompt"
    return None


def _space_hint(pair: Pair, word: str) -> str:
    spaced = word[:1].isspace() or pair.clean[-1:].isspace()
    return "" if spaced else f" (write it with its leading space, {' ' + word!r}, if it is a word of its own)"


def _token_at(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> int:
    """Index of the last token that overlaps a character span."""
    return max(index for index, (start, stop) in enumerate(offsets) if start < span[1] and stop > span[0])
