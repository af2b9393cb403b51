"""What each corruption changes, and what the answer then is, worked out from the words themselves."""

import numpy as np
import pytest

from workbench.tasks import make_task
from workbench.tasks._base import JOIN
from workbench.tasks._lexicon import COLORS, LETTERS, NAMES, NOUNS, YEARS, article
from workbench.tasks.backcopy import BIGRAMS, TRIGGERS

N = 200


def examples(name, corruption):
    return make_task(name, n=N, corruption=corruption).examples()


def changed(example) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(example.clean, example.corrupted, strict=True)) if a != b]


def names_of(words) -> list[str]:
    return [word for word in words if word in NAMES]


def other_name(words) -> str:
    """The name that stands once among three."""
    found = names_of(words)
    (single,) = {name for name in found if found.count(name) == 1}
    return single


def test_ioi_s2_to_io_turns_the_answer_round():
    for example in examples("ioi", "s2_to_io"):
        marks = example.positions
        assert changed(example) == [marks["S2"]]
        assert example.corrupted[marks["S2"]] == example.clean[marks["IO"]]
        assert example.answers == (other_name(example.clean),)
        assert example.wrongs == (other_name(example.corrupted),)


def test_ioi_abc_has_three_new_names():
    for example in examples("ioi", "abc"):
        assert sorted(changed(example)) == sorted(example.positions[role] for role in ("IO", "S1", "S2"))
        new = names_of(example.corrupted)
        assert len(set(new)) == 3 and not set(new) & set(names_of(example.clean))
        assert example.answers == (other_name(example.clean),)
        assert example.wrongs == (example.clean[example.positions["S1"]],)


def test_ioi_value_swap_replaces_the_receiver():
    for example in examples("ioi", "value_swap"):
        assert changed(example) == [example.positions["IO"]]
        assert example.answers == (other_name(example.clean),)
        assert example.wrongs == (other_name(example.corrupted),)


def test_ioi_orders_and_roles():
    found = examples("ioi", "abc")
    for example in found:
        marks = example.positions
        assert example.clean[marks["S1"]] == example.clean[marks["S2"]] != example.clean[marks["IO"]]
        assert marks["S2"] > max(marks["S1"], marks["IO"])
    first = np.mean([example.positions["S1"] < example.positions["IO"] for example in found])
    assert 0.35 < first < 0.65


def colour_before(words, thing: str) -> str:
    """The colour word in front of the first mention of an object."""
    colour = words[words.index(thing) - 1]
    assert colour in COLORS
    return colour


@pytest.mark.parametrize("corruption", ["query", "value_swap"])
def test_colored_objects_asks_for_a_colour(corruption):
    for example in examples("colored_objects", corruption):
        marks = example.positions
        for words, colour in ((example.clean, example.answers), (example.corrupted, example.wrongs)):
            assert (colour_before(words, words[marks["query"]]),) == colour
            for number in (1, 2, 3):
                place = marks[f"color_{number}"]
                assert words[place - 1] == article(words[place]) and marks[f"object_{number}"] == place + 1
        if corruption == "query":
            assert changed(example) == [marks["query"]]
        else:
            (place,) = changed(example)
            assert example.clean[place + 1] == example.clean[marks["query"]]
            assert example.wrongs[0] not in example.clean


def test_every_object_is_asked_for():
    places = [
        [example.clean[example.positions[f"object_{k}"]] for k in (1, 2, 3)].index(
            example.clean[example.positions["query"]]
        )
        for example in examples("colored_objects", "query")
    ]
    assert min(places.count(k) for k in range(3)) > N / 6


def test_greater_than_year_01():
    for example in examples("greater_than", "year_01"):
        (place,) = changed(example)
        assert place == example.positions["year"] and example.corrupted[place] == JOIN + "01"
        year = int(example.clean[place].removeprefix(JOIN))
        assert [int(a.removeprefix(JOIN)) for a in example.answers] == list(range(year + 1, 100))
        assert [int(w.removeprefix(JOIN)) for w in example.wrongs] == list(range(year + 1))
        assert example.clean[-1] == example.clean[place - 1]  # the same century


def continuation(words, length=8) -> str:
    """The word after the earlier occurrence of the last one."""
    return words[words.index(words[-1], 0, length) + 1]


def test_induction_value_swap_changes_the_word_to_copy():
    for example in examples("induction", "value_swap"):
        assert changed(example) == [example.positions["copied"]]
        assert example.answers == (continuation(example.clean),)
        assert example.wrongs == (continuation(example.corrupted),)


def test_induction_no_match_takes_the_match_away():
    for example in examples("induction", "no_match"):
        assert changed(example) == [example.positions["match"]]
        assert example.corrupted[-1] not in example.corrupted[:-1]
        assert example.answers == (continuation(example.clean),)
        assert example.wrongs[0] in example.clean[:8] and example.wrongs[0] != example.clean[-1]


def test_subject_verb_number_changes_the_subject_alone():
    number = {noun: plural for forms in NOUNS for plural, noun in enumerate(forms)}
    verbs = ("is", "are")
    for example in examples("subject_verb", "number"):
        assert changed(example) == [1] == [example.positions["subject"]]
        clean, corrupted = example.clean[1], example.corrupted[1]
        assert clean.removesuffix("s") == corrupted.removesuffix("s")
        assert example.answers == (verbs[number[clean]],) and example.wrongs == (verbs[number[corrupted]],)
    attractors = [number[e.clean[1]] != number[e.clean[4]] for e in examples("subject_verb", "number")]
    assert 0.35 < np.mean(attractors) < 0.65


def test_backcopy_repeats_the_letter_before_the_trigger():
    for example in examples("backcopy", "value_swap"):
        assert example.clean[-1] == example.corrupted[-1] and example.clean[-1] in TRIGGERS
        assert changed(example) == [len(example.clean) - 2] == [example.positions["copied"]]
        assert example.answers == (example.clean[-2],) and example.wrongs == (example.corrupted[-2],)
        for before, trigger, after in zip(example.clean[:-3], example.clean[1:-2], example.clean[2:-2], strict=False):
            assert trigger not in TRIGGERS or after == before


def test_the_bigram_table_is_one():
    assert BIGRAMS.shape == (len(LETTERS), len(LETTERS)) and (BIGRAMS >= 0).all()
    np.testing.assert_allclose(BIGRAMS.sum(1), 1)


def test_years_have_two_digits():
    assert YEARS[7] == "07" and len(set(YEARS)) == 100 and {len(year) for year in YEARS} == {2}
