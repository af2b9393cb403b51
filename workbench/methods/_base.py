"""What a fine-tuning method is: which parameters it trains, where they are put, how a checkpoint is written."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.parameters import Parameter, complete, parameters_of
from workbench.registry import Registry, WorkbenchError

if TYPE_CHECKING:
    import torch


class MethodError(WorkbenchError):
    """A method that this model cannot be tuned with."""


@dataclass
class Attached:
    """A module with a method attached; its parameters that require gradients are those to train.

    module: what a forward pass is run through. inputs: further keywords of a forward pass, from the task numbers int64
    [row] of its rows. select: called before the rows of one task are run; None where rows of several tasks may share a
    pass. rates: factors of the learning rate, by a part of a parameter's name. save: writes a checkpoint that
    transformers or PEFT loads.
    """

    module: Any
    save: Callable[[Path], None]
    inputs: Callable[["torch.Tensor"], dict[str, Any]] = lambda tasks: {}
    select: Callable[[int], None] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


Attach = Callable[..., Attached]  # (module, tasks, **parameters)


@dataclass(frozen=True)
class Method:
    """A registered method."""

    name: str
    attach: Attach
    about: str
    paper: str
    parameters: Mapping[str, Parameter]
    per_task: bool  # whether a checkpoint holds parts that are used for one task only

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters: those given, checked, and the defaults of the others."""
        return complete(f"Method '{self.name}'", self.parameters, given)


METHODS: Registry[Method] = Registry("method")


def method(*, about: str, paper: str = "", per_task: bool = False) -> Callable[[Attach], Attach]:
    """Register `attach(module, tasks, *, typed keywords) -> Attached` as a method."""

    def register(function: Attach) -> Attach:
        name = function.__name__
        if any(
            p.default is p.empty for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        ):
            raise TypeError(f"Every parameter of the method {name} needs a default.")
        METHODS.add(name, Method(name, function, about, paper, parameters_of(function), per_task))
        return function

    return register


def linear_names(module: Any, *, plain_only: bool = False) -> list[str]:
    """Names of the linear maps within the blocks, by which PEFT finds them: `q_proj`, `c_attn`, and so on.

    Heads, embeddings and routers are not among them. With `plain_only`, only those that are `torch.nn.Linear`.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    kinds = Linear if plain_only else (Linear, Conv1D)
    head = module.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, part in module.named_modules()
        if isinstance(part, kinds) and part is not head and not name.endswith((".gate", ".router"))
    }
    if not found:
        what = "torch.nn.Linear maps" if plain_only else "linear maps"
        raise MethodError(f"{type(module).__name__} has no {what} in its blocks for this method to adapt.")
    return sorted(found)


def with_adapter(module: Any, config: Any, name: str = "default") -> Any:
    """The module with a PEFT adapter of the given name."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D layers are told of their own orientation, which PEFT sets by itself
        return get_peft_model(module, config, adapter_name=name)


def saves(tuned: Any, **options: Any) -> Callable[[Path], None]:
    """How a PEFT module is written; embeddings, which no method here changes, are not looked for on the hub."""
    return functools.partial(tuned.save_pretrained, save_embedding_layers=False, **options)
