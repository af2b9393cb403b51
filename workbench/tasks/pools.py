"""What a fine-tune reads: rows of token ids whose last tokens are the answer, and which of them are held out."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.tasks._base import LEAST, TaskError, make_task, render, splits_on_spaces_only
from workbench.tasks._records import numbered

HELD_OUT = 0.1  # share of a person's own rows that is kept for evaluation
TARGETS = ("answer", "wrong")
OWN = ("prompt", "answer")


@dataclass(frozen=True)
class Pool:
    """Rows to train on and rows held out, for one tokenizer.

    ids: each row's tokens int64 [pos], BOS included where the model takes one, the answer last. answers: how many of
    them are the answer. `held` and `held_answers` are the same for rows that are never trained on; `allowed` are, for
    each of those, the last tokens that count as right.
    """

    name: str
    ids: list[np.ndarray]
    answers: list[int]
    held: list[np.ndarray]
    held_answers: list[int]
    allowed: list[np.ndarray]

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits of every row."""
        digest = hashlib.sha256()
        for row, count in zip((*self.ids, *self.held), (*self.answers, *self.held_answers), strict=True):
            digest.update(f"{count}:".encode() + row.tobytes())
        return digest.hexdigest()[:16]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in (*self.ids, *self.held))

    def drawn(self, first: int, count: int, seed: int) -> list[int]:
        """Rows number `first` to `first + count` of an endless reading, each pass in an order of its own."""
        size, found = len(self.ids), []
        for epoch, numbers in itertools.groupby(range(first, first + count), lambda number: number // size):
            order = np.random.default_rng([seed, epoch]).permutation(size)
            found += [int(order[number % size]) for number in numbers]
        return found


def make_pool(entry: Mapping[str, Any], tokenizer: Any, *, bos: bool, examples: int, held: int, seed: int) -> Pool:
    """The rows of one task of a fine-tune.

    Args:
        entry: `name`, and either `corruption` and `target` of a registered task, or `rows` of a person's own.
        tokenizer: a fast tokenizer.
        bos: put BOS in front.
        examples: training rows drawn from a registered task.
        held: rows of a registered task held out; they are the prompts that `workbench.task(name, n=held, seed=seed)`
            traces, and none of them is among the training rows.
        seed: of the draws; training and evaluation never share a stream.

    Raises:
        TaskError: naming the row that cannot be used.
    """
    if "rows" in entry:
        return _own(entry["name"], entry["rows"], tokenizer, bos, seed)
    return _registered(entry, tokenizer, bos, (examples, held), seed)


def _registered(entry: Mapping[str, Any], tokenizer: Any, bos: bool, sizes: tuple[int, int], seed: int) -> Pool:
    task = make_task(entry["name"], corruption=entry.get("corruption"), n=sizes[1], seed=seed)
    target = entry.get("target", "answer")
    prompts = task.encode(tokenizer, bos=bos)
    known, rng, spaced = set(prompts.texts), random.Random(f"tune/{seed}"), splits_on_spaces_only(tokenizer)
    head = [tokenizer.bos_token_id] if bos else []
    texts: list[str] = []
    for example in itertools.islice(task.stream(f"tune/{seed}"), 8 * sizes[0]):
        pair = render(example, spaced)
        word = rng.choice(pair.answers if target == "answer" else pair.wrongs)
        if pair.clean not in known:
            texts.append(pair.clean + word)
        if len(texts) == sizes[0]:
            break
    if len(texts) < LEAST:
        raise TaskError(
            f"Task '{task.title}' has {len(texts)} prompts besides the {sizes[1]} held out; hold out fewer."
        )
    ids = [np.array(head + row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    allowed = prompts.answers if target == "answer" else prompts.wrongs
    rows = [np.append(row, end[0]) for row, end in zip(prompts.clean, allowed, strict=True)]
    return Pool(title(entry), ids, [1] * len(ids), rows, [1] * len(rows), allowed)


def _own(name: str, rows: list[dict[str, str]], tokenizer: Any, bos: bool, seed: int) -> Pool:
    found = [_row(row, f"{name}, row {number}", tokenizer, bos) for number, row in enumerate(rows, 1)]
    if len(found) < 2 * LEAST:
        raise TaskError(f"'{name}' has {len(found)} rows; give at least {2 * LEAST}, of which {LEAST} are held out.")
    held = max(LEAST, round(HELD_OUT * len(found)))
    order = np.random.default_rng(seed).permutation(len(found))
    (kept, counts), (out, out_counts) = (
        zip(*(found[i] for i in part), strict=True) for part in (order[held:], order[:held])
    )
    return Pool(name, list(kept), list(counts), list(out), list(out_counts), [row[-1:] for row in out])


def _row(row: Mapping[str, str], where: str, tokenizer: Any, bos: bool) -> tuple[np.ndarray, int]:
    """Tokens of a row, and how many are the answer's."""
    head = [tokenizer.bos_token_id] if bos else []
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    whole = tokenizer(row["prompt"] + row["answer"], add_special_tokens=False)["input_ids"]
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt) or not head + prompt:
        raise TaskError(
            f"{where}: the answer {row['answer']!r} does not begin at a token of its own after the prompt; "
            "begin it with a space, or end the prompt elsewhere."
        )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in whole:
        raise TaskError(f"{where} has a word that this vocabulary lacks; write it with words the model knows.")
    return np.array(head + whole, dtype=np.int64), len(whole) - len(prompt)


def read_rows(rows: Any) -> list[dict[str, str]]:
    """A person's own rows as plain data: a list of mappings, a DataFrame, or the path of a `.jsonl` or `.csv` file.

    Raises:
        TaskError: naming the row that lacks a prompt or an answer.
    """
    found = []
    for where, row in numbered(rows):
        if not isinstance(row, Mapping) or any(not isinstance(row.get(key), str) or not row[key] for key in OWN):
            shown = json.dumps(row, default=str)[:80]
            raise TaskError(f"{where} needs '{OWN[0]}' and '{OWN[1]}', both text and not empty; found {shown}.")
        found.append({key: str(row[key]) for key in OWN})
    return found


def title(entry: Mapping[str, Any]) -> str:
    """What figures call a task of a fine-tune; with its wrong answers as the target it is another task."""
    return entry["name"] + (" (wrong)" if entry.get("target", "answer") == "wrong" else "")


def padded(rows: Iterable[np.ndarray]) -> np.ndarray:
    """Rows as one array int64 [row, pos]; shorter ones repeat their last token, which a causal model never looks at."""
    rows = list(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
