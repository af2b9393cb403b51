"""Subject-verb agreement across another noun: "The keys near the cat" -> are."""

import random

from workbench.tasks._base import Example, task_family
from workbench.tasks._lexicon import NOUNS, PREPOSITIONS, held_out

VERBS = ("is", "are")


def sentence(rng: random.Random, *, unseen: bool | None = None) -> tuple[list[str], int, bool]:
    """Words up to the verb, the subject's index among the nouns, and whether it is plural."""
    while True:
        subject, other = rng.randrange(len(NOUNS)), rng.randrange(len(NOUNS))
        plural, other_plural, between = rng.random() < 0.5, rng.random() < 0.5, rng.choice(PREPOSITIONS)
        # marked, so that the order of the two nouns counts
        if unseen is None or held_out("1" + NOUNS[subject][0], "2" + NOUNS[other][0], "3" + between) == unseen:
            text = f"The {NOUNS[subject][plural]} {between} the {NOUNS[other][other_plural]}"
            return text.split(), subject, plural


@task_family(
    "subject_verb",
    corruptions=("number",),
    about="Is or are? The verb agrees with the first noun, whatever the second one is.",
    paper="1611.01368 (Linzen et al.): agreement with an attractor noun in between",
)
def subject_verb(rng: random.Random, corruption: str) -> Example:
    """One prompt; the corrupted one has the subject in the other number."""
    words, subject, plural = sentence(rng)
    corrupted = [words[0], NOUNS[subject][not plural], *words[2:]]
    marks = {"subject": 1, "attractor": 4}
    return Example(tuple(words), tuple(corrupted), (VERBS[plural],), (VERBS[not plural],), marks)
