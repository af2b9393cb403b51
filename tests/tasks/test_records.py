"""A person's own pairs: every form they may come in, and an error that names the row for every flaw."""

import json

import numpy as np
import pandas as pd
import pytest

from workbench.tasks import TASKS, Task, TaskError, make_task

ROWS = [
    {"clean": f"{a} saw the {n}", "corrupted": f"{b} saw the {n}", "answer": " is", "wrong": [" are", " was"]}
    for n in ("key", "boy", "girl", "cat")
    for a, b in (("Mary", "John"), ("Tom", "Dan"))
]
PLAIN = [{**row, "wrong": " are"} for row in ROWS]


def test_a_list_of_mappings(words):
    prompts = Task.from_records(ROWS, name="saw").encode(words, bos=True)
    assert len(prompts) == 8 and prompts.texts[0] == "Mary saw the key"
    ids = words.get_vocab()
    assert prompts.clean[0].tolist() == [ids[w] for w in ("<bos>", "Mary", "saw", "the", "key")]
    assert prompts.answers[0].tolist() == [ids["is"]] and prompts.wrongs[0].tolist() == [ids["are"], ids["was"]]
    assert prompts.positions[0] == {"END": 4}


def test_a_frame_a_csv_and_json_lines_say_the_same(tmp_path):
    frame = pd.DataFrame(PLAIN)
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(map(json.dumps, PLAIN)), encoding="utf-8")
    expected = Task.from_records(PLAIN)
    for given in (frame, tmp_path / "pairs.csv", str(tmp_path / "pairs.jsonl"), iter(PLAIN), tuple(PLAIN)):
        task = Task.from_records(given)
        assert task.spec == expected.spec and task.hash == expected.hash and task.n == 8


def test_the_hash_follows_the_rows():
    changed = [*ROWS[:-1], {**ROWS[-1], "answer": " was"}]
    hashes = {Task.from_records(rows).hash for rows in (ROWS, ROWS[:-1], changed, ROWS[::-1])}
    assert len(hashes) == 4


def test_a_spec_makes_the_same_task_again(words):
    task = Task.from_records(ROWS, name="saw", metric="prob_diff")
    again = Task.from_spec(json.loads(json.dumps(task.spec)))
    assert again.hash == task.hash and again.title == "saw (as given)"
    first, second = task.encode(words, bos=True), again.encode(words, bos=True)
    assert all(np.array_equal(a, b) for a, b in zip(first.clean, second.clean, strict=True))


def flawed(**change) -> list[dict]:
    """Good rows whose third has a flaw; a column set to None is taken away."""
    row = {key: value for key, value in {**ROWS[2], **change}.items() if value is not None}
    return [*ROWS[:2], row, *ROWS[3:]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (flawed(answer=None), "row 3 lacks answer; each row needs clean, corrupted, answer, wrong"),
        (flawed(clean=None, wrong=None), "row 3 lacks clean, wrong"),
        (flawed(clean=""), "row 3: 'clean' is ''"),
        (flawed(wrong=[]), r"row 3: 'wrong' is \[\]"),
        (flawed(answer=[" is", ""]), "row 3: 'answer'"),
        (flawed(answer=3), "row 3: 'answer' is 3; it must be text"),
        (flawed(answer=float("nan")), "row 3: 'answer' is nan"),
        (flawed(clean=["a", "b"]), "row 3: 'clean' holds 2 texts"),
        ([*ROWS[:2], "Mary saw"], "row 3 is a str; each row is a mapping"),
        ([*ROWS[:2], ["a", "b", "c", "d"]], "row 3 is a list"),
        ([], "There are no rows"),
        (pd.DataFrame(ROWS)[["clean", "corrupted"]], "row 0 lacks answer, wrong"),
        (pd.DataFrame(columns=["clean"]), "There are no rows"),
        (7, "cannot be read from a int"),
        (None, "cannot be read from a NoneType"),
        (ROWS[0], "cannot be read from a dict; give a list of mappings"),
    ],
)
def test_a_flaw_is_named_with_its_row(rows, message):
    with pytest.raises(TaskError, match=message):
        Task.from_records(rows)


def test_a_flaw_in_a_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{{broken", encoding="utf-8")
    with pytest.raises(TaskError, match=r"pairs\.jsonl line 3 is not JSON"):
        Task.from_records(path)
    path.write_text(f"{json.dumps(ROWS[0])}\n[1, 2]", encoding="utf-8")
    with pytest.raises(TaskError, match="line 2 is a list"):
        Task.from_records(path)
    table = tmp_path / "pairs.csv"
    pd.DataFrame([{**row, "answer": "" if number == 1 else " is"} for number, row in enumerate(PLAIN)]).to_csv(
        table, index=False
    )
    with pytest.raises(TaskError, match="line 3: 'answer' is ''"):  # the header is line 1
        Task.from_records(table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "There is no file"),
        ("pairs.txt", b"x", "neither .jsonl nor .csv"),
        ("pairs.csv", b"", "pairs.csv"),
        ("pairs.csv", b"clean,corrupted\n\xff\xfe,b\n", "pairs.csv"),
        ("pairs.jsonl", b"", "There are no rows"),
        ("pairs.jsonl", b"\xff\xfe", "pairs.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        Task.from_records(tmp_path / name)


def test_json_text_may_hold_any_line_separator(tmp_path):
    text = "Mary\u2028saw the key"
    (tmp_path / "pairs.jsonl").write_text(json.dumps({**ROWS[0], "clean": text}, ensure_ascii=False), encoding="utf-8")
    (pair,) = Task.from_records(tmp_path / "pairs.jsonl").records
    assert pair.clean == text


@pytest.mark.parametrize("metric", ["logit", "", "accuracy"])
def test_an_unknown_metric_lists_the_known(metric):
    with pytest.raises(TaskError, match="use 'logit_diff' or 'prob_diff'"):
        Task.from_records(ROWS, metric=metric)


def test_an_answer_without_its_space_gives_the_hint(bpe):
    known = bpe.get_vocab()
    word = next(w[1:] for w in sorted(known) if w[0] == "Ġ" and w[1:].isalpha() and w[1:] not in known)
    rows = [{**row, "answer": word} for row in PLAIN]
    with pytest.raises(TaskError, match=rf"'{word}' after the prompt \(write it with its leading space, ' {word}',"):
        Task.from_records(rows).encode(bpe, bos=False)
    assert len(Task.from_records([{**row, "answer": f" {word}"} for row in PLAIN]).encode(bpe, bos=False)) == 8


def test_pairs_that_do_not_fit_are_dropped_and_counted(words):
    longer = {**ROWS[0], "corrupted": "John and Mary saw the key"}
    same = {**ROWS[0], "corrupted": ROWS[0]["clean"]}
    strange = {**ROWS[0], "clean": "Zaphod saw the key"}
    both = {**ROWS[0], "wrong": " is"}
    two = {**ROWS[0], "answer": " is old"}
    prompts = Task.from_records([*ROWS, longer, longer, same, strange, both, two]).encode(words, bos=True)
    assert len(prompts) == 8
    assert prompts.dropped == {
        "lengths differ": 2,
        "corrupted equals clean": 1,
        "unknown word": 1,
        "answer equals wrong": 1,
        "answer is not one token": 1,
    }


def test_too_few_that_fit_are_refused_with_the_counts(words):
    longer = {**ROWS[0], "corrupted": "John and Mary saw the key"}
    with pytest.raises(TaskError) as caught:
        Task.from_records([*ROWS[:5], longer, longer, longer]).encode(words, bos=True)
    message = str(caught.value)
    assert "keeps 5 of the 8 prompts" in message
    assert "3 x row 6: lengths differ: clean has 4 tokens and corrupted 6" in message


def test_a_few_rows_are_enough_if_there_are_no_more(words):
    assert len(Task.from_records(ROWS[:3]).encode(words, bos=True)) == 3


def test_a_task_the_vocabulary_does_not_know_is_refused(words):
    rows = [{**row, "clean": row["clean"].replace("saw", "glorped")} for row in ROWS]
    with pytest.raises(TaskError, match=r"8 x row 1: unknown word.*Task\.from_records"):
        Task.from_records(rows).encode(words, bos=True)


@pytest.mark.parametrize("n", [0, -3])
def test_an_empty_task_is_refused(n):
    with pytest.raises(TaskError, match=rf"n is {n}, so the task is empty"):
        make_task("ioi", n=n)


def test_an_unknown_task_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(
        Exception, match=r"no task 'coloured_objects'; there are: .*Did you mean 'colored_objects'\?"
    ) as e:
        make_task("coloured_objects")
    assert all(name in str(e.value) for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_corruption_lists_the_known(name):
    with pytest.raises(TaskError, match=", ".join(TASKS[name].corruptions)):
        make_task(name, corruption="noise")
    assert make_task(name).corruption == TASKS[name].corruptions[0]
