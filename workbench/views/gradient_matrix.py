"""Task by task: how far the gradients of every two tasks point the same way, beside what noise allows."""

import numpy as np
import xarray as xr

from widgets.task_matrix import TaskMatrix, pack
from workbench.views._base import Drawing, caption, only, pick, view
from workbench.views._gradients import NEEDED, NOTE, limit, tables
from workbench.views._training import model_of


@view(
    requires={"module", "task", "receiver"},
    variables={*NEEDED, "norm"},
    about="Cosine of every two tasks' gradients on one module; what lies inside the noise is grey, diagonal: ceiling.",
)
def gradient_matrix(ds: xr.Dataset, module: str = "all") -> Drawing:
    """A matrix of one `module`; intervals, the floor and the share of conflicting batches on hover."""
    part = pick(ds, module=module)
    found = tables(part, "task", "receiver")
    silent = only(part, "norm", "task").values == 0
    own, quiet = np.eye(len(silent), dtype=bool), silent[:, None] | silent
    packed = pack(
        np.where(quiet, np.nan, found["cosine"]),
        part["task"].values.tolist(),
        low=found["cosine_low"],
        high=found["cosine_high"],
        clear=found["clear"],
        diagonal=np.where(silent, np.nan, found["ceiling"]),
        details=_details(found, quiet, own),
    )
    words = {"absent": "no gradient", "diagonal_name": "ceiling", "quantity": "cosine", "note": _note(part)}
    title = f"Gradient alignment of tasks, {module}: {model_of(ds)}"
    return Drawing(TaskMatrix, packed | words | {"title": title, "limit": limit(found["cosine"][~own])})


def _details(found: dict[str, np.ndarray], quiet: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """What is said of a pair beside its cosine; NaN where it does not apply."""
    corrected = found["disattenuated"]
    return {
        "unrelated gradients: ±{}": np.where(quiet | own, np.nan, 1.96 * found["floor"]),
        "{}% of pairs of batches in conflict": np.where(quiet, np.nan, 100 * found["conflict"]),
        "corrected for noise: {}": np.where(quiet | own | (corrected == 0), np.nan, corrected),
    }


def _note(part: xr.Dataset) -> str:
    """The lines under the title: prompts, the module and its batches, the sign, and what has a colour."""
    size = f"{_which(part)}, {int(part['parameters']):,} parameters · {part.attrs['batches']} batches a task"
    lines = (caption(part), size, str(part.attrs["sign"]), NOTE.partition(";")[0])
    return "\n".join(line for line in lines if line)


def _which(part: xr.Dataset) -> str:
    """What the module is, in words."""
    kind, matrix, layer = (part[name].item() for name in ("kind", "matrix", "at_layer"))
    words = {
        "whole": "the whole model",
        "kind": f"{matrix} of all layers",
        "layer": f"layer {layer}",
        "matrix": f"{matrix} of layer {layer}",
    }
    return words.get(kind, f"{kind} of layer {layer}")
