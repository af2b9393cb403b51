"""Edits of routing as a person writes and unwrites them: one text, what is added to it, and its history."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from html import escape

ALL = "all"


@dataclass(frozen=True)
class History:
    """A text, what it was before, latest last, and what was undone, next first."""

    now: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()

    def edited(self, text: str) -> "History":
        """With another text; what was undone is forgotten. The same text again is no edit."""
        return self if text == self.now else History(text, (*self.past, self.now))

    def undone(self) -> "History":
        """One edit back, if there is one."""
        if not self.past:
            return self
        return replace(self, now=self.past[-1], past=self.past[:-1], future=(self.now, *self.future))

    def redone(self) -> "History":
        """One edit on again, if one was undone."""
        if not self.future:
            return self
        return replace(self, now=self.future[0], past=(*self.past, self.now), future=self.future[1:])


def edits_of(text: str) -> list[str]:
    """The single edits of a text, like `L2E5=mute`."""
    return [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]


def written(expert: str, what: str, factor: float, at: Collection[str]) -> str:
    """One edit: `mute`, `force` or `weigh` (by the factor) of an expert at positions, or at all tokens."""
    done = f"{factor:g}" if what == "weigh" else what
    return f"{expert}={done}" + (f"@{','.join(at)}" if at else "")


def with_edit(text: str, edit: str) -> str:
    """The text with an edit at its end; one of the same expert at the same tokens gives way to it."""
    return "; ".join([*(other for other in edits_of(text) if _aim(other) != _aim(edit)), edit])


def without(text: str, place: int) -> str:
    """The text without one of its edits."""
    edits = edits_of(text)
    return "; ".join(edits[:place] + edits[place + 1 :])


def _aim(edit: str) -> tuple[str, frozenset[str]]:
    """Whose edit it is, and at which tokens."""
    done, _, at = edit.partition("@")
    names = frozenset(name.strip() for name in at.split(",") if name.strip())
    return done.partition("=")[0].strip().upper(), frozenset() if ALL in names else names


def beside(prompt: str, before: str, after: str) -> str:
    """A prompt with its continuation before and after, as HTML; words that changed are marked."""
    words = [text.split() for text in (before, after)]
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, *ends in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, (start, stop) in enumerate((ends[:2], ends[2:])):
            found = escape(" ".join(words[side][start:stop]))
            marked[side].append(f"<mark>{found}</mark>" if found and kind != "equal" else found)
    rows = "".join(
        f"<tr><th>{name}</th><td><q>{escape(prompt)}</q> {' '.join(filter(None, parts))}</td></tr>"
        for name, parts in zip(("before", "after"), marked, strict=True)
    )
    return f"<table>{rows}</table>"
