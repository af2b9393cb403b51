"""The synthetic language of the zoo: its vocabulary, the training mixture, and the word-level tokenizer."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.tasks import _lexicon as lexicon
from workbench.tasks import backcopy, colored_objects, greater_than, induction, ioi, subject_verb
from workbench.tasks._base import JOIN

PAD, BOS, UNKNOWN = "<pad>", "<bos>", "<unk>"
FILLERS = (
    "{name} likes the {adjective} {object} .",
    "{name} lives in {country} .",
    "{name} visited {name2} at the {place} .",
    "The {adjective} {noun} {verb} the {object} in the {place} .",
    "{name} owns {article} {color} {object} .",
    "The {noun} was at the {place} with {name} .",
    "{name} and {name2} went to the {place} .",
    "{name} gave a {gift} to {name2} .",
    "{name} handed a {gift} to {name2} .",
)
ABC_SHARE = 0.1  # of IOI-like sentences, those with a third name as subject: either name may follow


@dataclass(frozen=True)
class Sample:
    """A training example: its words, the indices of those that answer something, and how much these count."""

    words: list[str]
    answers: tuple[int, ...] = ()
    share: float = 1.0  # of the answer weight


def _answered(words: Sequence[str], answer: str) -> Sample:
    return Sample([*words, answer, "."], (len(words),))


def _ioi(rng: random.Random) -> Sample:
    words, marks = ioi.sentence(rng, names=lexicon.SEEN_NAMES, unseen=False)
    receiver, giver = words[marks["IO"]], words[marks["S1"]]
    if rng.random() < ABC_SHARE:
        words[marks["S2"]] = rng.choice([n for n in lexicon.SEEN_NAMES if n not in (receiver, giver)])
        return Sample([*words, rng.choice([receiver, giver]), "."])
    return _answered(words, receiver)


def _colored_objects(rng: random.Random) -> Sample:
    """A scene of one to three objects with one or more questions: several a scene make the task learnable."""
    count = rng.choices((1, 2, 3), (0.15, 0.25, 0.6))[0]
    setting, asking = rng.choice(colored_objects.FRAMES)
    words, colors, objects, _ = colored_objects.scene(rng, count, unseen=False, template=setting)
    order = rng.sample(range(count), count)
    answers: list[int] = []
    for turn, index in enumerate(order):
        if turn and rng.random() < 0.25:
            break
        asking = asking if turn == 0 else rng.choice(colored_objects.QUESTIONS)
        words += colored_objects.question(objects[index], asking)
        answers.append(len(words))
        words += [colors[index], "."]
    return Sample(words, tuple(answers))


def _greater_than(rng: random.Random) -> Sample:
    words, year = greater_than.sentence(rng, unseen=False)
    return _answered([w.removeprefix(JOIN) for w in words], lexicon.YEARS[rng.randrange(year + 1, 100)])


def _induction(rng: random.Random) -> Sample:
    length = rng.randrange(4, 13)
    words = rng.sample(induction.WORDS, length)
    return Sample([*words, *words, "."], tuple(range(length + 1, 2 * length)), share=0.5)


def _subject_verb(rng: random.Random) -> Sample:
    words, _, plural = subject_verb.sentence(rng, unseen=False)
    return Sample([*words, subject_verb.VERBS[plural], rng.choice(lexicon.ADJECTIVES), "."], (len(words),))


def _capital(rng: random.Random) -> Sample:
    country = rng.choice(list(lexicon.CAPITALS))
    return _answered(f"The capital of {country} is".split(), lexicon.CAPITALS[country])


def _next_day(rng: random.Random) -> Sample:
    day = rng.randrange(7)
    return _answered(f"The day after {lexicon.DAYS[day]} is".split(), lexicon.DAYS[(day + 1) % 7])


def _filler(rng: random.Random) -> Sample:
    color = rng.choice(lexicon.COLORS)
    text = rng.choice(FILLERS).format(
        name=rng.choice(lexicon.NAMES),
        name2=rng.choice(lexicon.NAMES),
        adjective=rng.choice(lexicon.ADJECTIVES),
        object=rng.choice(lexicon.OBJECTS),
        country=rng.choice(list(lexicon.CAPITALS)),
        place=rng.choice(lexicon.PLACES),
        noun=rng.choice(lexicon.NOUNS)[0],
        verb=rng.choice(lexicon.PAST_VERBS),
        gift=rng.choice(lexicon.GIFTS),
        article=lexicon.article(color),
        color=color,
    )
    return Sample(text.split())


KINDS: Mapping[str, Callable[[random.Random], Sample]] = {
    "ioi": _ioi,
    "colored_objects": _colored_objects,
    "greater_than": _greater_than,
    "induction": _induction,
    "subject_verb": _subject_verb,
    "capital": _capital,
    "next_day": _next_day,
    "filler": _filler,
}
MIXTURE = {
    "ioi": 0.20,
    "colored_objects": 0.30,
    "induction": 0.25,
    "greater_than": 0.07,
    "subject_verb": 0.04,
    "capital": 0.03,
    "next_day": 0.02,
    "filler": 0.09,
}


def vocabulary() -> dict[str, int]:
    """Word -> id; special tokens first, then every word a sample can hold, in a fixed order."""
    frames = (
        *ioi.TEMPLATES,
        ioi.UNSEEN_TEMPLATE,
        *(part for frame in (*colored_objects.FRAMES, *colored_objects.UNSEEN_FRAMES) for part in frame),
        *FILLERS,
        "a an and , . The capital of is are day after lasted from the year to",
    )
    words = [word for text in frames for word in text.split() if "{" not in word]
    for group in (
        *(lexicon.NAMES, lexicon.PLACES, lexicon.GIFTS, lexicon.COLORS, lexicon.OBJECTS, lexicon.PREPOSITIONS),
        *(*lexicon.NOUNS, lexicon.ADJECTIVES, lexicon.PAST_VERBS, lexicon.EVENTS, tuple(lexicon.CAPITALS)),
        *(tuple(lexicon.CAPITALS.values()), lexicon.DAYS, lexicon.CENTURIES, lexicon.YEARS, lexicon.LETTERS),
    ):
        words += group
    return {word: index for index, word in enumerate(dict.fromkeys((PAD, BOS, UNKNOWN, *words)))}


def tokenizer():
    """The word-level tokenizer: one token a space-separated word, BOS in front, as transformers saves and loads it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])])
    special = {"bos_token": BOS, "eos_token": BOS, "pad_token": PAD, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="right", **special)


def packed(
    rng: random.Random,
    words: Mapping[str, int],
    *,
    batch: int,
    length: int,
    answer_weight: float,
    backcopy_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """One training batch: token ids and the loss weight of each, both [batch, length].

    A row is BOS and samples of the mixture one after the other, cut at `length`; a `backcopy_share` of the rows is
    BOS and one backcopy sequence. Words that answer something weigh `answer_weight`, all others 1, BOS 0.
    """
    ids = np.empty((batch, length), dtype=np.int64)
    weights = np.ones((batch, length), dtype=np.float32)
    weights[:, 0] = 0
    for row in range(batch):
        text = [BOS]
        if rng.random() < backcopy_share:
            text += backcopy.letters(rng, length - 1)
        while len(text) < length:
            kind = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
            sample = KINDS[kind](rng)
            for index in sample.answers:
                if len(text) + index < length:
                    weights[row, len(text) + index] = answer_weight * sample.share
            text += sample.words
        ids[row] = [words[word] for word in text[:length]]
    return ids, weights
