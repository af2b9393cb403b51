"""Panel components made of the notebook widgets, so that both worlds run the same front-end files."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import anywidget
import param
import traitlets
from panel.custom import AnyWidgetComponent

_PARAMETERS = {
    traitlets.Bool: param.Boolean,
    traitlets.Int: param.Integer,
    traitlets.Float: param.Number,
    traitlets.Unicode: param.String,
    traitlets.Bytes: param.Bytes,
    traitlets.List: param.List,
    traitlets.Dict: param.Dict,
    traitlets.Callable: param.Callable,
}


class Portable(Protocol):
    """A widget class that says what its front end is: the texts of the module and of the style sheet.

    It may have `REPLIES`, {trait: (other trait, function)}: when the trait changes, the other is set to what the
    function makes of the widget or component. Traits tagged `local` stay in Python.
    """

    ESM: ClassVar[str]
    CSS: ClassVar[str]

    @classmethod
    def class_traits(cls, **metadata: Any) -> dict[str, traitlets.TraitType]:
        """The traits by name."""
        ...


@functools.cache
def panelize(widget_class: type[Portable]) -> type[AnyWidgetComponent]:
    """The Panel component with the traits of `widget_class` as params and its `ESM` and `CSS` as front end.

    A component is used instead of a wrapped widget because ipywidgets keeps every widget of every session alive.
    The class is made once, as Panel sends its definition to the page once. It stretches over the available width.

    Raises:
        TypeError: A trait has a type without a counterpart.
        ValueError: A trait has the name of one of Panel's own params.
    """
    inherited = anywidget.AnyWidget.class_traits(sync=True)
    traits = {name: trait for name, trait in widget_class.class_traits(sync=True).items() if name not in inherited}
    local = widget_class.class_traits(local=True)
    if taken := sorted({*traits, *local} & set(AnyWidgetComponent.param)):
        raise ValueError(f"{widget_class.__name__} names traits like params that Panel has already: {taken}")
    members: dict[str, Any] = {name: _parameter(trait) for name, trait in traits.items()}
    # Panel sends no param to the page whose name there is None.
    members |= {name: _parameter(trait) for name, trait in local.items()} | {"_rename": dict.fromkeys(local)}
    # The style sheet goes in as text: Panel serves no file for a class that no importable module defines.
    members |= {"_esm": widget_class.ESM, "_stylesheets": [widget_class.CSS]}
    members |= {"sizing_mode": "stretch_width", "__doc__": widget_class.__doc__}
    if replies := getattr(widget_class, "REPLIES", None):
        members["__init__"] = _replying(replies)
    return type(widget_class.__name__, (AnyWidgetComponent,), members)


def _parameter(trait: traitlets.TraitType) -> param.Parameter:
    for trait_type, parameter in _PARAMETERS.items():
        if isinstance(trait, trait_type):
            return parameter(default=trait.default(), doc=trait.help, allow_None=trait.allow_none)
    known = ", ".join(trait_type.__name__ for trait_type in _PARAMETERS)
    raise TypeError(f"trait {trait.name!r} is a {type(trait).__name__}; known are {known}")


def _replying(replies: Mapping[str, tuple[str, Callable]]) -> Callable[..., None]:
    """A constructor after which each reply follows what it answers."""

    def reply(component: AnyWidgetComponent, event: param.parameterized.Event) -> None:
        target, make = replies[event.name]
        component.param.update(**{target: make(component)})

    def start(self: AnyWidgetComponent, **params: Any) -> None:
        AnyWidgetComponent.__init__(self, **params)
        self.param.watch(functools.partial(reply, self), list(replies))

    return start
