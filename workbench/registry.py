"""One small registry for the five kinds of thing a person adds, and the error every boundary raises."""

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class WorkbenchError(Exception):
    """Something a person can put right; the message is one sentence that says how."""


class Registry(Generic[T]):
    """Names to things of one kind; an unknown name lists the known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Register `thing`; a name is taken once."""
        if name in self._things:
            raise ValueError(f"There is already a {self.kind} called '{name}'.")
        self._things[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            close = difflib.get_close_matches(str(name), self._things, n=1)
            guess = f" Did you mean '{close[0]}'?" if close else ""
            raise WorkbenchError(f"There is no {self.kind} '{name}'; there are: {', '.join(self)}.{guess}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)

    def items(self) -> Iterator[tuple[str, T]]:
        """Names with their things, by name."""
        return ((name, self._things[name]) for name in self)
