"""Accuracy of a zoo model on names, objects, pairs and templates that its training text never held."""

import random
from collections.abc import Callable

import numpy as np
import torch

from workbench.tasks import backcopy, colored_objects, greater_than, induction, ioi, subject_verb
from workbench.tasks._base import JOIN
from workbench.tasks._lexicon import UNSEEN_NAMES, YEARS
from workbench.zoo.language import BOS, PAD, vocabulary

Question = tuple[list[str], list[str], list[str]]  # prompt, right answers, wrong answers


def _ioi(rng: random.Random, **choice) -> Question:
    words, marks = ioi.sentence(rng, **choice)
    return words, [words[marks["IO"]]], [words[marks["S1"]]]


def _colored_objects(rng: random.Random, frames=colored_objects.FRAMES) -> Question:
    words, colors, _, asked, _ = colored_objects.prompt(rng, unseen=True, frames=frames)
    return words, [colors[asked]], [c for c in colors if c != colors[asked]]


def _induction(rng: random.Random) -> Question:
    length = rng.randrange(5, 12)
    words = rng.sample(induction.WORDS, length)
    repeated = rng.randrange(2, length)
    return [*words, *words[:repeated]], [words[repeated]], words[:repeated]


def _subject_verb(rng: random.Random) -> Question:
    words, _, plural = subject_verb.sentence(rng, unseen=True)
    return words, [subject_verb.VERBS[plural]], [subject_verb.VERBS[not plural]]


def _greater_than(rng: random.Random) -> Question:
    words, year = greater_than.sentence(rng, unseen=True)
    return [word.removeprefix(JOIN) for word in words], list(YEARS[year + 1 :]), list(YEARS[: year + 1])


def _backcopy(rng: random.Random) -> Question:
    words = [*backcopy.letters(rng, 20), rng.choice(backcopy.LETTERS[len(backcopy.TRIGGERS) :])]
    words.append(rng.choice(backcopy.TRIGGERS))
    return words, [words[-2]], [letter for letter in backcopy.LETTERS if letter != words[-2]]


EXAMS: dict[str, Callable[[random.Random], Question]] = {
    "ioi, unseen name pairs": lambda rng: _ioi(rng, unseen=True),
    "ioi, unseen names": lambda rng: _ioi(rng, names=UNSEEN_NAMES),
    "ioi, unseen template": lambda rng: _ioi(rng, templates=(ioi.UNSEEN_TEMPLATE,)),
    "ioi, unseen names and template": lambda rng: _ioi(rng, names=UNSEEN_NAMES, templates=(ioi.UNSEEN_TEMPLATE,)),
    "colored_objects, unseen pairs": _colored_objects,
    "colored_objects, unseen pairs and template": lambda rng: _colored_objects(rng, colored_objects.UNSEEN_FRAMES),
    "subject_verb, unseen combinations": _subject_verb,
    "induction, random words": _induction,
    "greater_than, unseen combinations": _greater_than,
    "backcopy": _backcopy,
}


def exams_of(backcopy_share: float) -> list[str]:
    """The exams that a model with so large a share of backcopy rows was trained for."""
    return [exam for exam in EXAMS if (backcopy_share > 0 if exam == "backcopy" else backcopy_share < 1)]


@torch.inference_mode()
def evaluate(model: torch.nn.Module, n: int = 500, seed: int = 999) -> dict[str, float]:
    """Share of `n` fresh prompts a task whose likeliest next word is right (BOS in front).

    Greater-than is scored by the probability of the later years minus that of the others: 0 is chance.
    """
    words, rng = vocabulary(), random.Random(seed)
    model.eval()
    scores = {}
    for name, exam in EXAMS.items():
        questions = [exam(rng) for _ in range(n)]
        probabilities = _last_probabilities(model, [[words[w] for w in (BOS, *q[0])] for q in questions], words[PAD])
        marks = []
        for (_, right, wrong), row in zip(questions, probabilities, strict=True):
            if name.startswith("greater_than"):
                marks.append(row[[words[w] for w in right]].sum() - row[[words[w] for w in wrong]].sum())
            else:
                marks.append(row.argmax() == words[right[0]])
        scores[name] = round(float(np.mean(marks)), 4)
    model.train()
    return scores


def _last_probabilities(model: torch.nn.Module, prompts: list[list[int]], pad: int) -> np.ndarray:
    """Next-word probabilities after each prompt, [prompt, word]; right padding cannot be seen by a causal model."""
    ids = torch.full((len(prompts), max(map(len, prompts))), pad)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return model(ids).logits[torch.arange(len(prompts)), ends].softmax(-1).numpy()
