"""Rows of a fine-tune: the answer last, held-out ones never trained on, an order that the seed decides."""

import numpy as np
import pytest

from workbench.tasks import make_task
from workbench.tasks._base import TaskError
from workbench.tasks.pools import make_pool, padded

SIZES = {"bos": True, "examples": 40, "held": 16, "seed": 0}
IOI = {"name": "ioi", "corruption": "s2_to_io"}


def test_rows_are_prompts_with_one_answer_and_held_out_ones_are_what_is_traced(words):
    pool, prompts = make_pool(IOI, words, **SIZES), make_task("ioi", n=16).encode(words, bos=True)
    assert len(pool.ids) == 40 and len(pool.held) == 16 and set(pool.answers) == {1}
    for row, prompt, answers in zip(pool.held, prompts.clean, prompts.answers, strict=True):
        assert row[:-1].tolist() == prompt.tolist() and row[-1] in answers
    held = {tuple(row[:-1]) for row in pool.held}
    assert not held & {tuple(row[:-1]) for row in pool.ids}
    assert all(row[0] == words.bos_token_id for row in pool.ids)


def test_the_wrong_answer_can_be_the_target(words):
    right, wrong = make_pool(IOI, words, **SIZES), make_pool({**IOI, "target": "wrong"}, words, **SIZES)
    for a, b in zip(right.ids, wrong.ids, strict=True):
        assert a[:-1].tolist() == b[:-1].tolist() and a[-1] != b[-1]


def test_each_pass_reads_every_row_once_and_any_part_of_it_can_be_asked_for(words):
    pool = make_pool(IOI, words, **SIZES)
    assert sorted(pool.drawn(0, 40, 3)) == list(range(40)) == sorted(pool.drawn(40, 40, 3))
    assert pool.drawn(0, 40, 3) != pool.drawn(40, 40, 3)
    whole = pool.drawn(0, 100, 3)
    assert whole[33:77] == pool.drawn(33, 44, 3)
    assert pool.drawn(0, 40, 4) != pool.drawn(0, 40, 3)


def test_own_rows_may_have_answers_of_several_tokens(words):
    rows = [{"prompt": "Mary went to the", "answer": " store with John"}] * 30
    pool = make_pool({"name": "mine", "rows": rows}, words, **SIZES)
    assert set(pool.answers) == {3} and len(pool.held) == 8 and len(pool.ids) == 22
    assert words.decode(pool.ids[0][-3:]) == "store with John"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Mary", "answer": " xyzzy"}, "row 3 has a word that this vocabulary lacks"),
        ({"prompt": "Mary went", "answer": "~"}, "row 3"),
    ],
)
def test_a_row_that_the_tokenizer_cannot_read_is_named(words, row, said):
    rows = [{"prompt": "Mary went to the", "answer": " store"}] * 20
    rows[2] = row
    with pytest.raises(TaskError, match=said):
        make_pool({"name": "mine", "rows": rows}, words, **SIZES)


def test_too_few_rows_are_refused(words):
    with pytest.raises(TaskError, match="has 3 rows; give at least 16"):
        make_pool({"name": "mine", "rows": [{"prompt": "Mary", "answer": " went"}] * 3}, words, **SIZES)


def test_padding_repeats_the_last_token():
    found = padded([np.array([1, 2]), np.array([3, 4, 5])])
    assert found.tolist() == [[1, 2, 2], [3, 4, 5]]
