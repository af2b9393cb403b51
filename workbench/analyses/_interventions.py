"""What can be done to sinks in a pass: their keys masked, or their MLP output of one layer removed or rescaled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses._base import AnalysisError
from workbench.analyses._sinks import FIRST, NONE, SECONDARY, Rule, Sinks, Trace, find_sinks, trace
from workbench.progress import Cancelled, track

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Layer

SEEN = 1e-6  # attention that a masked key may still get, from rounding
MEANING = {
    "mask": "no other token attends to the key: a secondary sink's from the layer after its creation on, else in all",
    "remove": "the MLP output at the creation layer becomes the mean over ordinary tokens of the other sequences",
    "rescale": "the MLP output at the creation layer is given another length",
}


@dataclass(frozen=True)
class Spots:
    """Tokens to intervene on, int [spot]: row, position, and the layer of the MLP, or the first masked."""

    row: np.ndarray
    pos: np.ndarray
    layer: np.ndarray

    def of(self, chosen: np.ndarray) -> "Spots":
        """The spots chosen by a mask."""
        return Spots(self.row[chosen], self.pos[chosen], self.layer[chosen])


@dataclass(frozen=True)
class Change:
    """What is done to a spot: how (`what`), and for rescaling by which `amount` of what `unit` (factor or norm)."""

    what: str
    amount: float
    unit: str

    @property
    def meaning(self) -> str:
        """The change in words."""
        by = f"times {self.amount:g}" if self.unit == "factor" else f"norm {self.amount:g}"
        return MEANING[self.what] + (f": {by}" if self.what == "rescale" else "")


@dataclass(frozen=True)
class Setting:
    """What is done to which model; means [row, layer, d] over ordinary tokens of the other sequences, for `remove`."""

    model: "Model"
    rule: Rule
    change: Change
    draws: int
    seed: int
    means: np.ndarray | None = None


@dataclass(frozen=True)
class Base:
    """The plain run of a batch: losses [row], its sinks, and the directions of its first tokens [layer][row, 2, d].

    tokens [row, key], of which `mine` are named by a person and `ordinary` are random controls; `start` is the number
    of the first row in the whole.
    """

    start: int
    tokens: np.ndarray
    mine: np.ndarray
    loss: np.ndarray
    sinks: Sinks
    ordinary: np.ndarray
    trace: Trace
    directions: list["torch.Tensor"]


def plain_run(setting: Setting, start: int, tokens: np.ndarray, mine: np.ndarray) -> Base:
    """The plain run of a batch whose first row has the number `start`; `mine` bool [row, key] are no controls."""
    kept: list[torch.Tensor] = []

    def directions(layer: "Layer") -> "torch.Tensor":
        kept.append(layer.hidden[:, :FIRST].clone())
        return kept[-1]

    found = trace(setting.model, tokens, directions)
    sinks = find_sinks(found.stacked("norms"), found.stacked("cosines"), setting.rule)
    after = np.arange(tokens.shape[1]) > sinks.primary[:, None]
    after[:, -1] = False
    ordinary = (sinks.label == NONE) & after & ~mine
    return Base(start, tokens, mine, loss_of(setting.model, found.last, tokens), sinks, ordinary, found, kept)


def loss_of(model: "Model", last: "torch.Tensor", tokens: np.ndarray) -> np.ndarray:
    """Mean next-token loss [row]."""
    return model.scanner.losses(last, model.tensor(tokens)).cpu().double().mean(1).numpy()


def spots_of(kind: str, base: Base, change: Change) -> Spots:
    """The tokens of one kind that the intervention can reach, in sequences with enough ordinary ones."""
    keys, sinks = np.arange(base.tokens.shape[1]), base.sinks
    masks = {"primary": keys == sinks.primary[:, None], "secondary": sinks.label == SECONDARY, "own": base.mine}
    mask = masks[kind] & (keys < keys[-1])
    row, pos = np.nonzero(mask & (base.ordinary.sum(1) >= mask.sum(1))[:, None])
    creation = sinks.creation[row, pos]
    layer = np.where((creation < 0) | (pos == sinks.primary[row]), sinks.start[row], creation)
    if change.what != "mask":
        return Spots(row, pos, layer)
    since = layer + 1 if kind == "secondary" else np.zeros_like(layer)
    return Spots(row, pos, since).of(since < sinks.inside.shape[1])


def other_means(setting: Setting, tokens: np.ndarray, mine: np.ndarray, batch: int, name: str) -> np.ndarray:
    """Each layer's mean MLP output [row, layer, d] over the ordinary tokens of the other sequences.

    A sequence's own tokens are left out, since the mean would tell of tokens that are still to come.
    """
    starts, sums, counts = range(0, len(tokens), batch), [], []
    for start in track(starts, f"sink_ablation {name}, means", len(starts)):
        base = plain_run(setting, start, tokens[start : start + batch], mine[start : start + batch])
        part = np.zeros((len(base.tokens), setting.model.n_layers, base.directions[0].shape[-1]))
        edits = summing(setting.model, base.ordinary, part)
        setting.model.scanner.run(setting.model.tensor(base.tokens), ignore, mlps=edits)
        sums.append(part)
        counts.append(base.ordinary.sum(1))
    if len(sums) < len(starts):
        raise Cancelled("Stopped before the mean over ordinary tokens was known, so there is no result to keep.")
    total, count = np.concatenate(sums), np.concatenate(counts)[:, None, None]
    others = count.sum() - count
    if not others.all():
        raise AnalysisError("what='remove' needs ordinary tokens in other sequences; ask for 2 sequences or more.")
    return ((total.sum(0) - total) / others).astype(np.float32)


def ignore(layer: "Layer") -> None:
    """For a run of which only the end is wanted."""


def own_tokens(model: "Model", tokens: np.ndarray, text: str) -> np.ndarray:
    """Where the tokens that a person named are, bool [row, key]."""
    found, texts = np.zeros(tokens.shape, bool), [[token.strip() for token in model.tokens(row)] for row in tokens]
    for name in text.split():
        mask = np.array([[token == name for token in row] for row in texts])
        if name.isdecimal():
            mask = np.broadcast_to(np.arange(tokens.shape[1]) == int(name), tokens.shape)
        if not mask[:, :-1].any():
            raise AnalysisError(
                f"own: there is no token {name!r} before the last position of any sequence; give a position from 0 to "
                f"{tokens.shape[1] - 2}, or the text of a token that occurs."
            )
        found |= mask
    return found


def random_spots(spots: Spots, ordinary: np.ndarray, generators: list[np.random.Generator]) -> Spots:
    """As many of the ordinary tokens, bool [row, key], in each row, in the same layers."""
    pos = spots.pos.copy()
    for row in np.unique(spots.row):
        mine = spots.row == row
        pos[mine] = generators[row].choice(np.flatnonzero(ordinary[row]), mine.sum(), replace=False)
    return Spots(spots.row, pos, spots.layer)


def options(
    model: "Model", shape: tuple[int, ...], spots: Spots, change: Change, means: np.ndarray | None
) -> dict[str, Any]:
    """What a scanner's run over tokens [row, key] of a shape is given; means [row, layer, d] are put where removed."""
    if change.what == "mask":
        hidden = np.zeros((model.n_layers, *shape), bool)
        for layer in range(model.n_layers):
            here = spots.of(spots.layer <= layer)
            hidden[layer, here.row, here.pos] = True
        return {"hide": {layer: model.tensor(mask) for layer, mask in enumerate(hidden) if mask.any()}}
    return {
        "mlps": {int(at): _edit(model, shape, spots.of(spots.layer == at), change, means) for at in set(spots.layer)}
    }


def _edit(model: "Model", shape: tuple[int, ...], spots: Spots, change: Change, means: np.ndarray | None) -> Callable:
    row, pos = model.tensor(spots.row), model.tensor(spots.pos)

    def edit(out: "torch.Tensor") -> "torch.Tensor":
        found = out.reshape(*shape, -1).clone()  # some families join the rows
        there = found[row, pos]
        if means is not None:
            found[row, pos] = model.tensor(means[spots.row, spots.layer]).to(found.dtype)
        elif change.unit == "factor":
            found[row, pos] = there * change.amount
        else:
            found[row, pos] = there * (change.amount / there.norm(dim=-1, keepdim=True).clamp_min(1e-30))
        return found.reshape(out.shape)

    return edit


def summing(model: "Model", ordinary: np.ndarray, sums: np.ndarray) -> dict[int, Callable]:
    """Edits that change nothing and put each layer's MLP output, summed over ordinary tokens, in [row, layer, d]."""
    mask = model.tensor(ordinary)[..., None]

    def listen(layer: int) -> Callable:
        def edit(out: "torch.Tensor") -> "torch.Tensor":
            sums[:, layer] = (out.reshape(*ordinary.shape, -1) * mask).float().sum(1).cpu().numpy()
            return out

        return edit

    return {layer: listen(layer) for layer in range(model.n_layers)}


def refuse_seen(layer: "Layer", spots: Spots, watched: list[int]) -> None:
    """Raise AnalysisError where a masked key still gets attention from another token.

    The layer's columns are those of the keys `watched`.
    """
    here = spots.of(spots.layer <= layer.index)
    for row, pos in zip(here.row, here.pos, strict=True):
        column = layer.columns[row, :, :, watched.index(pos)].clone()
        column[:, pos] = 0  # its own look at itself stays
        if (most := column.max().item()) > SEEN:
            raise AnalysisError(
                f"The mask did not take effect in this family: token {pos} still gets attention {most:.2g} in layer "
                f"{layer.index}, so nothing was measured; use what='remove', or trace another family."
            )
