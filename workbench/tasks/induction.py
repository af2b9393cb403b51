"""Induction: a list of random words begins again, and the next word is the one that followed before."""

import random

from workbench.tasks._base import Example, task_family
from workbench.tasks._lexicon import ADJECTIVES, CAPITALS, COLORS, GIFTS, NAMES, NOUNS, OBJECTS, PLACES

WORDS = tuple(
    dict.fromkeys(
        (*NAMES, *PLACES, *GIFTS, *COLORS, *OBJECTS, *(n for n, _ in NOUNS), *ADJECTIVES, *CAPITALS, *CAPITALS.values())
    )
)


@task_family(
    "induction",
    corruptions=("value_swap", "no_match"),
    about="Which word came next last time? A list of random words is repeated in part.",
    paper="2209.11895 (Olsson et al.): induction heads on repeated random tokens",
)
def induction(rng: random.Random, corruption: str) -> Example:
    """Eight words and the first few again; value_swap changes the word to copy, no_match the one before it."""
    length, repeated = 8, rng.randrange(3, 7)
    *words, fresh = rng.sample(WORDS, length + 1)
    answer = words[repeated]
    corrupted = list(words)
    if corruption == "value_swap":
        corrupted[repeated], wrong = fresh, fresh
    else:
        corrupted[repeated - 1] = fresh
        wrong = rng.choice([word for word in words if word not in (answer, words[repeated - 1])])
    marks = {"match": repeated - 1, "copied": repeated}
    again = words[:repeated]
    return Example((*words, *again), (*corrupted, *again), (answer,), (wrong,), marks)
