"""What every registered task promises, for a word-level and for a byte-level tokenizer."""

import numpy as np
import pytest
import torch

from workbench.analyses._patching import Meter
from workbench.tasks import TASKS, TaskError, make_task
from workbench.tasks._base import JOIN

KINDS = [(name, corruption) for name, family in TASKS.items() for corruption in family.corruptions]
every_kind = pytest.mark.parametrize(("name", "corruption"), KINDS)
every_tokenizer = pytest.mark.parametrize("kind", ["words", "bpe"])


@pytest.fixture
def tokenizer(kind, request):
    return request.getfixturevalue(kind)


def encoded(task, tokenizer, *, bos=True):
    """The task's prompts; letters alone need not be single tokens of a byte-level vocabulary."""
    try:
        return task.encode(tokenizer, bos=bos)
    except TaskError:
        if task.name == "backcopy" and tokenizer.unk_token != "<unk>":
            pytest.skip("letters are not single tokens of this vocabulary")
        raise


@every_kind
def test_the_seed_decides_the_examples(name, corruption):
    task = make_task(name, n=12, seed=3, corruption=corruption)
    assert task.examples() == make_task(name, n=12, seed=3, corruption=corruption).examples()
    assert task.examples(n=5) == task.examples()[:5]
    other = make_task(name, n=12, seed=4, corruption=corruption)
    assert other.examples() != task.examples() and other.hash != task.hash


@every_kind
def test_an_example_is_well_formed(name, corruption):
    for example in make_task(name, n=100, corruption=corruption).examples():
        assert len(example.clean) == len(example.corrupted)
        assert example.clean != example.corrupted
        assert example.answers and example.wrongs and not set(example.answers) & set(example.wrongs)
        assert all(0 <= index < len(example.clean) for index in example.positions.values())


@every_kind
@every_tokenizer
def test_prompts_have_equal_lengths_and_single_token_answers(name, corruption, kind, tokenizer):
    prompts = encoded(make_task(name, n=16, corruption=corruption), tokenizer)
    assert len(prompts) == 16
    for clean, corrupted, answers, wrongs in zip(
        prompts.clean, prompts.corrupted, prompts.answers, prompts.wrongs, strict=True
    ):
        assert clean.dtype == np.int64 and clean[0] == tokenizer.bos_token_id
        assert len(clean) == len(corrupted) and (clean != corrupted).any()
        assert answers.ndim == wrongs.ndim == 1 and not set(answers) & set(wrongs)
        if tokenizer.unk_token != tokenizer.bos_token:
            assert tokenizer.unk_token_id not in {*clean, *corrupted, *answers, *wrongs}


@every_kind
@every_tokenizer
def test_prompts_read_back_as_the_task_s_text(name, corruption, kind, tokenizer):
    prompts = encoded(make_task(name, n=8, corruption=corruption), tokenizer, bos=False)
    for tokens, text in zip(prompts.clean, prompts.texts, strict=True):
        assert tokenizer.decode(tokens) == text


@every_kind
@every_tokenizer
@pytest.mark.parametrize("bos", [True, False])
def test_named_positions_point_at_the_end_of_their_word(name, corruption, kind, tokenizer, bos):
    task = make_task(name, n=8, corruption=corruption)
    prompts = encoded(task, tokenizer, bos=bos)
    assert not prompts.dropped
    for example, tokens, marks in zip(task.examples(), prompts.clean, prompts.positions, strict=True):
        assert marks["END"] == len(tokens) - 1
        assert set(marks) == {"END", *example.positions}
        for mark, index in example.positions.items():
            word = example.clean[index].removeprefix(JOIN)
            upto = tokenizer.decode(tokens[bos : marks[mark] + 1])
            assert upto.endswith(word), (mark, word, upto)


@every_kind
@every_tokenizer
def test_the_metric_favours_an_oracle(name, corruption, kind, tokenizer):
    task = make_task(name, n=8, corruption=corruption)
    prompts = encoded(task, tokenizer)
    for sign, favoured in ((1, prompts.answers), (-1, prompts.wrongs)):
        logits = torch.zeros(8, 3, len(tokenizer))
        for row, tokens in enumerate(favoured):
            logits[row, -1, tokens] = 9.0
        values = Meter(prompts.answers, prompts.wrongs, task.metric)(logits[:, -1])[0]
        assert (sign * values > 0).all()
        if task.metric == "logit_diff":
            np.testing.assert_allclose(values, sign * 9.0)


@every_kind
@every_tokenizer
def test_running_text_is_the_prompts_with_their_answers(name, corruption, kind, tokenizer):
    task = make_task(name, n=8, corruption=corruption)
    rows = task.documents(tokenizer, length=40, count=3, bos=True)
    assert rows.shape == (3, 40) and (rows[:, 0] == tokenizer.bos_token_id).all()
    first = task.examples(n=1)[0]
    opening = [word.removeprefix(JOIN) for word in (*first.clean, first.answers[0])]
    expected = "".join(opening)
    text = tokenizer.decode(rows[0, 1:]).replace(" ", "")
    assert text.startswith(expected[: len(text)])
    if kind == "words":
        assert tokenizer.unk_token_id not in rows


@every_kind
def test_a_spec_makes_the_same_task_again(name, corruption):
    task = make_task(name, n=9, seed=2, corruption=corruption)
    again = type(task).from_spec(task.spec)
    assert again == task and again.hash == task.hash


@pytest.mark.parametrize("name", TASKS)
def test_a_family_says_what_it_is(name):
    family = TASKS[name]
    assert family.about.endswith(".") and family.corruptions and family.metric in ("logit_diff", "prob_diff")
