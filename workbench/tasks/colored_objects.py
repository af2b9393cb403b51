"""Colored Objects: three objects of three colours are named, and one object's colour is asked for."""

import random
from collections.abc import Sequence

from workbench.tasks._base import Example, task_family
from workbench.tasks._lexicon import COLORS, OBJECTS, article, held_out

SCENES = ("On the table , I see {X} .", "On the desk , there is {X} .", "On the floor , I see {X} .")
QUESTIONS = ("What color is the {Q} ? A :", "Q : What color is the {Q} ? A :", "The {Q} is")
FRAMES = tuple(zip(SCENES, QUESTIONS, strict=True))
UNSEEN_FRAMES = (("On the desk , I see {X} .", "What color is the {Q} ? A :"),)
LINKS = {1: ((),), 2: ((), ("and",)), 3: ((), (",",), (",", "and"))}  # what stands before each object


def scene(
    rng: random.Random, count: int = 3, *, unseen: bool | None = None, template: str = SCENES[0]
) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """Words of a scene, its colours and objects, and where each stands (`color_1`, `object_1`, ...).

    `unseen` True draws only (colour, object) pairs the zoo was never trained on, False only the others, None both.
    """
    colors = rng.sample(COLORS, count)
    objects: list[str] = []
    for color in colors:
        fitting = [o for o in OBJECTS if o not in objects and (unseen is None or held_out(color, o) == unseen)]
        objects.append(rng.choice(fitting))
    before, after = (part.split() for part in template.split("{X}"))
    words, marks = before, {}
    for index, (color, thing) in enumerate(zip(colors, objects, strict=True), 1):
        words += [*LINKS[count][index - 1], article(color), color, thing]
        marks |= {f"color_{index}": len(words) - 2, f"object_{index}": len(words) - 1}
    return words + after, colors, objects, marks


def question(thing: str, template: str) -> list[str]:
    """Words that ask for the colour of `thing`; the answer follows them."""
    return template.replace("{Q}", thing).split()


def prompt(
    rng: random.Random, *, unseen: bool | None = None, frames: Sequence[tuple[str, str]] = FRAMES
) -> tuple[list[str], list[str], list[str], int, dict[str, int]]:
    """A three-object prompt: words, colours, objects, the index asked for, and the marks (`query` among them)."""
    setting, asking = rng.choice(frames)
    words, colors, objects, marks = scene(rng, 3, unseen=unseen, template=setting)
    asked = rng.randrange(3)
    marks["query"] = len(words) + asking.split().index("{Q}")
    others = [index for index in range(3) if index != asked]
    roles = {"color_asked": marks[f"color_{asked + 1}"]}
    roles |= {f"color_other_{place}": marks[f"color_{index + 1}"] for place, index in enumerate(others, 1)}
    marks = roles | marks  # what a token is for comes before where it stands
    return words + question(objects[asked], asking), colors, objects, asked, marks


@task_family(
    "colored_objects",
    corruptions=("query", "value_swap"),
    about="What colour is the object asked for? Three objects are named, each of its own colour.",
    paper="2310.08744 (Merullo et al.): the task and its corruption by another question",
)
def colored_objects(rng: random.Random, corruption: str) -> Example:
    """One prompt; query asks for another object, value_swap gives the object asked for another colour."""
    words, colors, objects, asked, marks = prompt(rng)
    corrupted, color = list(words), colors[asked]
    if corruption == "query":
        other = rng.choice([index for index in range(3) if index != asked])
        corrupted[marks["query"]] = objects[other]
        wrong = colors[other]
    else:
        fitting = [c for c in COLORS if c not in colors and article(c) == article(color)]
        if not fitting:  # "an orange": no other colour takes this article
            return colored_objects(rng, corruption)
        wrong = rng.choice(fitting)
        corrupted[marks[f"color_{asked + 1}"]] = wrong
    return Example(tuple(words), tuple(corrupted), (color,), (wrong,), marks)
