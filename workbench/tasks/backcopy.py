"""Bigram-Backcopy: letters follow a fixed bigram table, but after a trigger letter the letter before it comes again."""

import random

import numpy as np

from workbench.tasks._base import Example, task_family
from workbench.tasks._lexicon import LETTERS

TRIGGERS = LETTERS[:3]
LENGTH = 62  # with BOS and the answer it fills the 64 tokens of a training sequence
TRIGGER_SHARE = 0.06  # of each trigger after any letter


def bigram_table() -> np.ndarray:
    """P(next | letter), shape [letter, letter], rows sum to 1; the same table at every call."""
    table = np.exp(2.5 * np.random.default_rng(1).standard_normal((len(LETTERS), len(LETTERS))))
    table[:, : len(TRIGGERS)] = 0
    table *= (1 - TRIGGER_SHARE * len(TRIGGERS)) / table.sum(1, keepdims=True)
    table[:, : len(TRIGGERS)] = TRIGGER_SHARE
    return table


BIGRAMS = bigram_table()


def letters(rng: random.Random, length: int) -> list[str]:
    """A sequence of `length` letters; it does not begin with a trigger."""
    words = [rng.choice(LETTERS[len(TRIGGERS) :])]
    while len(words) < length:
        if words[-1] in TRIGGERS and len(words) > 1:
            words.append(words[-2])
        else:
            words.append(rng.choices(LETTERS, BIGRAMS[LETTERS.index(words[-1])])[0])
    return words


@task_family(
    "backcopy",
    corruptions=("value_swap",),
    about="Which letter stood before the trigger letter? Only for models trained on such letters.",
    paper="2410.13835 (Guo et al.): the task on which active-dormant attention sinks emerge",
)
def backcopy(rng: random.Random, corruption: str) -> Example:
    """One prompt that ends in a trigger; value_swap replaces the letter before it, which is the answer."""
    words = letters(rng, LENGTH - 2)
    plain = LETTERS[len(TRIGGERS) :]
    answer, wrong = rng.sample(plain, 2)
    words += [answer, rng.choice(TRIGGERS)]
    corrupted = [*words[:-2], wrong, words[-1]]
    return Example(tuple(words), tuple(corrupted), (answer,), (wrong,), {"copied": len(words) - 2})
