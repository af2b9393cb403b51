"""One head at a time: the metric of a task's prompts when the output z of one head, and nothing else, is another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from workbench.analyses._patching import Group, Runs, Z, chunks, plain_metric

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

Side = Literal["clean", "corrupted"]


@dataclass(frozen=True)
class OneHead:
    """The clean or corrupted runs of a task's prompts, to be repeated with one head's z replaced.

    On the fast way `runs` are the recorded ones of `two_runs`, with z, keys and values; on the plain way there are
    none, and the z of both sides are those of whole passes.
    """

    model: "Model"
    parts: list[Group]
    runs: list[Runs]
    batch: int

    def z(self, side: Side, layer: int, index: int) -> "torch.Tensor":
        """Head outputs of a group, [row, pos, head, d_head]."""
        if self.runs:
            return getattr(self.runs[index], side).z[layer]
        name = Z.format(layer)
        return self.model.capture(getattr(self.parts[index], side), [name])[1][name]

    def metric(self, side: Side, layer: int, index: int, z: "torch.Tensor", start: int = 0) -> np.ndarray:
        """Metric [head, row] of a group's runs of one side where that head's z is that of `z` from `start` on."""
        if self.runs:
            return self._fast(side, layer, index, z, start)
        group, found = self.parts[index], []
        for heads in chunks(self.model.n_heads, self.batch // len(group.rows)):
            tokens = np.tile(getattr(group, side), (len(heads), 1))
            edits = {Z.format(layer): lambda value, heads=heads: _put(value.clone(), z, heads, start)}
            found.append(plain_metric(self.model, group, tokens, edits))
        return np.concatenate(found)

    def _fast(self, side: Side, layer: int, index: int, z: "torch.Tensor", start: int) -> np.ndarray:
        """Many heads in one folded run of what comes after the layer, from `start` on."""
        trunk, group, recorded = self.model.trunk, self.parts[index], getattr(self.runs[index], side)
        assert trunk is not None
        length, count = group.clean.shape[1], len(group.rows)
        columns, found = group.columns(trunk.device), []
        for heads in chunks(self.model.n_heads, trunk.rows(length - start, length) // count):
            outputs = recorded.z[layer][:, start:].repeat(len(heads), 1, 1, 1)
            outputs = _put(outputs, z[:, start:], heads, 0)
            hidden = recorded.inputs[layer][:, start:].repeat(len(heads), 1, 1)
            last = trunk.run_on(layer, hidden, recorded, start, attention=trunk.out(layer, outputs))
            found.append(group.meter(trunk.logits(last, columns)))
        return np.concatenate(found)


def _put(value: "torch.Tensor", z: "torch.Tensor", heads: range, start: int) -> "torch.Tensor":
    """Put z [row, pos, head, d_head] into `value`, head `heads[i]` in its i-th repeat of the rows."""
    count = len(z)
    for repeat, head in enumerate(heads):
        value[repeat * count : (repeat + 1) * count, start:, head] = z[:, start:, head]
    return value
