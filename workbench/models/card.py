"""The trust card as it is shown and stored; needs no torch, so that a page can read the card of a result."""

import html
import json
from dataclasses import asdict, dataclass

ORDER = ("green", "amber", "red")
MARKS = {"green": "✓", "amber": "!", "red": "✗"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its colour, what was found, and what to do if it is not green."""

    name: str
    colour: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Card:
    """All checks of one load; as good as its worst check."""

    checks: tuple[Check, ...]

    @property
    def colour(self) -> str:
        """green, amber or red: the worst of the checks."""
        return max((check.colour for check in self.checks), key=ORDER.index)

    def to_json(self) -> str:
        """The card as stored in results."""
        return json.dumps({"colour": self.colour, "checks": [asdict(check) for check in self.checks]})

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """The card that a result carries."""
        return cls(tuple(Check(**check) for check in json.loads(text)["checks"]))

    def problems(self) -> list[Check]:
        """The red checks."""
        return [check for check in self.checks if check.colour == "red"]

    def __repr__(self) -> str:
        lines = [f"{MARKS[c.colour]} {c.name}: {c.found}" + (f" -> {c.fix}" if c.fix else "") for c in self.checks]
        return "\n".join([f"trust card: {self.colour}", *lines])

    def html(self, title: str) -> str:
        """The card as a small table; every text escaped."""
        rows = "".join(
            f"<tr><td>{MARKS[check.colour]} {check.colour}</td><th scope='row' style='text-align:left'>"
            f"{html.escape(check.name)}</th><td style='text-align:left'>{html.escape(check.found)}"
            f"{' <b>' + html.escape(check.fix) + '</b>' if check.fix else ''}</td></tr>"
            for check in self.checks
        )
        return f"<table><caption>{html.escape(title)}: trust card {self.colour}</caption>{rows}</table>"
