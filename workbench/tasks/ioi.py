"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> Mary."""

import random
from collections.abc import Sequence

from workbench.tasks._base import Example, task_family
from workbench.tasks._lexicon import GIFTS, NAMES, PLACES, held_out

TEMPLATES = (
    "When {A} and {B} went to the {P} , {S} gave a {G} to",
    "Then , {A} and {B} went to the {P} . {S} gave a {G} to",
    "After {A} and {B} went to the {P} , {S} handed a {G} to",
    "While {A} and {B} were working at the {P} , {S} decided to give a {G} to",
    "Then , {A} and {B} had a long day at the {P} . {S} gave a {G} to",
    "When {A} and {B} had a lot of fun at the {P} , {S} passed a {G} to",
    "{A} and {B} were at the {P} . Then , {S} gave a {G} to",
)
UNSEEN_TEMPLATE = "After {A} and {B} were working at the {P} . {S} decided to give a {G} to"


def sentence(
    rng: random.Random,
    *,
    names: Sequence[str] = NAMES,
    unseen: bool | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> tuple[list[str], dict[str, int]]:
    """Words up to the answer, and where IO, S1 and S2 stand; ABBA and BABA orders are equally likely.

    `unseen` True draws only name pairs the zoo was never trained on, False only the others, None both.
    """
    first, second = rng.sample(names, 2)
    while unseen is not None and held_out(first, second) is not unseen:
        first, second = rng.sample(names, 2)
    roles = ["S1", "IO"] if rng.random() < 0.5 else ["IO", "S1"]
    subject = (first, second)[roles.index("S1")]
    slots = {"{A}": first, "{B}": second, "{S}": subject, "{P}": rng.choice(PLACES), "{G}": rng.choice(GIFTS)}
    frame = rng.choice(templates).split()
    marks = {roles[0]: frame.index("{A}"), roles[1]: frame.index("{B}"), "S2": frame.index("{S}")}
    return [slots.get(word, word) for word in frame], marks


@task_family(
    "ioi",
    corruptions=("s2_to_io", "abc", "value_swap"),
    about="Who receives the gift? Two names are given, one is repeated; the answer is the other.",
    paper="2211.00593 (Wang et al.): the task and its ABC corruption; 2310.08744 (Merullo et al.): the S2-to-IO one",
)
def ioi(rng: random.Random, corruption: str) -> Example:
    """One prompt; s2_to_io repeats the other name, abc uses three new names, value_swap replaces the receiver."""
    words, marks = sentence(rng)
    receiver, giver = words[marks["IO"]], words[marks["S1"]]
    others = rng.sample([name for name in NAMES if name not in (receiver, giver)], 3)
    changes = {
        "s2_to_io": {"S2": receiver},
        "abc": dict(zip(("IO", "S1", "S2"), others, strict=True)),
        "value_swap": {"IO": others[0]},
    }[corruption]
    corrupted = list(words)
    for role, name in changes.items():
        corrupted[marks[role]] = name
    wrong = others[0] if corruption == "value_swap" else giver
    return Example(tuple(words), tuple(corrupted), (receiver,), (wrong,), marks)
