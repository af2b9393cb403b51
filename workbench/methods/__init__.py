"""The fine-tuning methods: a module in, something to train out. One file a method, one line here."""

from workbench.methods._base import METHODS, Attached, Method, MethodError
from workbench.methods.bias_only import bias_only
from workbench.methods.full import full
from workbench.methods.lora import lora
from workbench.methods.poly import poly
from workbench.methods.prompt_tuning import prompt_tuning
from workbench.methods.separate_lora import separate_lora

__all__ = [
    "METHODS",
    "Attached",
    "Method",
    "MethodError",
    "bias_only",
    "full",
    "lora",
    "poly",
    "prompt_tuning",
    "separate_lora",
]
