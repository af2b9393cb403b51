"""What one cell of a result is called: `L9H9`, `L2E5`, `L0H1->L1H2.q`, `L0.W_Q, ioi x induction`."""

from collections.abc import Mapping
from typing import Any

from workbench.models.expert_names import expert_name
from workbench.models.heads import head_name

PAIRS = {("component", "receiver"): "{}->{}", ("task", "receiver"): "{} x {}"}
SPOKEN = ("module", "task", "receiver", "component", "measured", "method", "edge")  # whose labels say enough


def cell_name(labels: Mapping[str, Any]) -> str:
    """The name of the cell at the labels given, by dimension."""
    left, parts = dict(labels), []
    if "layer" in left and "head" in left:
        parts.append(head_name(int(left.pop("layer")), int(left.pop("head"))))
    elif "layer" in left and "expert" in left:
        parts.append(expert_name(int(left.pop("layer")), int(left.pop("expert"))))
    if "module" in left:
        parts.append(str(left.pop("module")))
    for (first, second), form in PAIRS.items():
        if first in left and second in left:
            parts.append(form.format(left.pop(first), left.pop(second)))
    parts += [str(label) if dim in SPOKEN else f"{dim.replace('_', ' ')} {label}" for dim, label in left.items()]
    return ", ".join(parts) or "all"
