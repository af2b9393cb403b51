"""Small fine-tunes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.spec import Spec, read_spec

TASKS = ["ioi", "subject_verb"]


@pytest.fixture
def small(saved: Callable[[str], Path]) -> Callable[..., Spec]:
    """`small(family="llama", steps=...)`: a spec of a few steps on a tiny random model."""

    def make(family: str = "llama", **changes: Any) -> Spec:
        given: dict[str, Any] = {"model": str(saved(family)), "tasks": TASKS, "steps": 6, "batch": 6, "device": "cpu"}
        return read_spec({**given, "examples": 24, "held": 8, "checkpoint": 3, "learning_rate": 1e-2, **changes})

    return make
