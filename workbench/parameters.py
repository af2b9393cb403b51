"""Typed keyword-only parameters of a function as its configuration: checked, completed, listed for CLI and pages."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workbench.registry import WorkbenchError


class ParameterError(WorkbenchError):
    """A parameter that does not exist, or a value it cannot take."""


@dataclass(frozen=True)
class Parameter:
    """One typed keyword of a function: what the CLI, the app and the cache key are derived from."""

    name: str
    kind: type
    default: Any
    choices: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """The value in the parameter's type, from a person's or a command line's spelling of it."""
        if self.choices:
            if value not in self.choices:
                known = ", ".join(map(str, self.choices))
                raise ParameterError(f"{self.name} is {value!r}; it must be one of {known}.")
            return value
        if self.kind is bool:
            return self._switch(value)
        try:
            read = self.kind(value)
        except (TypeError, ValueError):
            raise ParameterError(f"{self.name} is {value!r}; it must be a {self.kind.__name__}.") from None
        if self.kind is int and read != float(value):
            raise ParameterError(f"{self.name} is {value!r}; it must be a whole number.")
        return read

    def _switch(self, value: Any) -> bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in known:
            raise ParameterError(f"{self.name} is {value!r}; it must be true or false.")
        return known[str(value).lower()]


def parameters_of(function: Callable) -> dict[str, Parameter]:
    """The keyword-only parameters of a function, each with its type, default and choices."""
    hints, found = typing.get_type_hints(function, localns={"Model": object}), {}
    for name, p in inspect.signature(function).parameters.items():
        if p.kind is p.KEYWORD_ONLY:
            choices = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ()
            found[name] = Parameter(name, type(choices[0]) if choices else hints[name], p.default, choices)
    return found


def complete(owner: str, parameters: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `owner`: those given, checked, and the defaults of the others.

    Raises:
        ParameterError: naming the parameter that is unknown or has a value it cannot take.
    """
    unknown = [name for name in given if name not in parameters]
    if unknown:
        known = ", ".join(parameters) or "none"
        raise ParameterError(f"{owner} has no parameter '{unknown[0]}'; it has: {known}.")
    return {name: p.read(given.get(name, p.default)) for name, p in parameters.items()}
