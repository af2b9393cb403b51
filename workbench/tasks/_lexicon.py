"""The words the tasks are made of, and which combinations are kept out of the zoo's training text."""

import hashlib


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mary John Tom James Dan Sid Martin Amy Anna Paul Mark Kate Lucy Peter Simon Alice Bob Carol David Emma"
    " Frank Grace Henry Irene Jack Karen Leo Mia Nina Oscar Rosa Sam Tina Victor Wendy Zoe Adam Beth Carl Diana"
    " Eric Fiona George Helen Ivan Julia Kevin Laura Max Nora Owen Paula Quinn Ruth Steve Tara Uma Vera Will Yara"
)
UNSEEN_NAMES = NAMES[-12:]  # never the names of a training IOI sentence
SEEN_NAMES = NAMES[:-12]
PLACES = _words("store park school office garden station market library hospital beach museum cafe farm church river")
GIFTS = _words("drink book ring bone necklace kiss letter basketball computer flower ticket sandwich")
COLORS = _words("red blue green orange purple black white yellow pink brown gray gold")
OBJECTS = _words(
    "textbook puzzle cup pen pencil keychain mug notebook plate bracelet scarf ball envelope lamp jug teddy sheet"
    " brush bottle box candle clock hat jacket kettle knife ladder mirror napkin phone pillow radio ruler spoon towel"
    " umbrella vase wallet"
)
NOUNS = tuple((noun, noun + "s") for noun in _words("key boy girl cat dog teacher doctor painter guard pilot"))
PREPOSITIONS = _words("near behind beside above under")
ADJECTIVES = _words("old new small big happy sad clean dirty")
PAST_VERBS = _words("saw found took liked moved cleaned")
EVENTS = _words("war party trip strike festival voyage reign project")
CAPITALS = dict(
    zip(
        _words("France Spain Italy Egypt Japan China India Peru Chile Cuba Kenya Norway Greece Russia Poland Turkey"),
        _words(
            "Paris Madrid Rome Cairo Tokyo Beijing Delhi Lima Santiago Havana Nairobi Oslo Athens Moscow Warsaw Ankara"
        ),
        strict=True,
    )
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
CENTURIES = ("17", "18")
YEARS = tuple(f"{year:02d}" for year in range(100))
LETTERS = tuple("bcdefghijklmnopqrstuvwxyz")


def held_out(*words: str) -> bool:
    """True for the fifth of all combinations that the zoo's training text never contains; order does not matter."""
    return int(hashlib.md5("|".join(sorted(words)).encode()).hexdigest(), 16) % 5 == 0


def article(color: str) -> str:
    """The indefinite article that goes before a colour."""
    return "an" if color == "orange" else "a"
