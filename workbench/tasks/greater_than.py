"""Greater-than: "The war lasted from the year 1723 to the year 17" -> any later year of the century."""

import random

from workbench.tasks._base import JOIN, Example, task_family
from workbench.tasks._lexicon import CENTURIES, EVENTS, YEARS, held_out


def sentence(rng: random.Random, *, unseen: bool | None = None) -> tuple[list[str], int]:
    """Words up to the answer, and the first year; `unseen` chooses (event, year) pairs as elsewhere."""
    event, year = rng.choice(EVENTS), rng.randrange(2, 98)
    while unseen is not None and held_out(event, YEARS[year]) is not unseen:
        event, year = rng.choice(EVENTS), rng.randrange(2, 98)
    century = rng.choice(CENTURIES)
    text = f"The {event} lasted from the year {century} {JOIN}{YEARS[year]} to the year {century}"
    return text.split(), year


@task_family(
    "greater_than",
    corruptions=("year_01",),
    metric="prob_diff",
    about="In which year did it end? Any year after the first is right.",
    paper="2305.00586 (Hanna et al.): the task, its 01 corruption and the probability difference",
)
def greater_than(rng: random.Random, corruption: str) -> Example:
    """One prompt; the corrupted one begins in the year 01, so that every later year is allowed."""
    words, year = sentence(rng)
    marks = {"year": words.index(JOIN + YEARS[year])}
    corrupted = [JOIN + YEARS[1] if index == marks["year"] else word for index, word in enumerate(words)]
    years = tuple(JOIN + y for y in YEARS)
    return Example(tuple(words), tuple(corrupted), years[year + 1 :], years[: year + 1], marks)
