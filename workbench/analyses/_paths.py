"""Paths from one head to chosen receivers, all other heads frozen: the fast way, and whole passes with hooks."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.analyses._patching import Group, Runs, Z, chunks, plain_metric
from workbench.models.heads import head_name
from workbench.progress import track
from workbench.tasks import Prompts

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

LOGITS = "logits"
PARTS = ("q", "k", "v")
Path = Callable[[int, "Stage", np.ndarray | None], Iterator[tuple[slice, np.ndarray]]]


@dataclass(frozen=True)
class Stage:
    """The receivers of one stage: `heads` of each part q, k or v; none for the logits."""

    position: str
    heads: dict[str, tuple[tuple[int, int], ...]]

    @property
    def label(self) -> str:
        """As a person would write it."""
        names = [f"{head_name(*head)}.{part}" for part, heads in self.heads.items() for head in heads]
        return f"{'+'.join(names) or LOGITS}@{self.position}"

    def at(self, layer: int) -> dict[str, list[int]]:
        """Receiving heads of one layer, by part."""
        found = {part: [head for lay, head in heads if lay == layer] for part, heads in self.heads.items()}
        return {part: heads for part, heads in found.items() if heads}

    @property
    def layers(self) -> list[int]:
        """Layers with a receiver, ascending; empty for the logits."""
        return sorted({layer for heads in self.heads.values() for layer, _ in heads})


def fitting(model: "Model", prompts: Prompts, places: list, batch: int) -> int:
    """Prompts whose senders are all run side by side, within the memory at hand."""
    if model.trunk is None:
        return batch
    longest = int(prompts.lengths.max())
    positions = longest if any(place is None for place in places) else 1
    return min(batch, max(1, model.trunk.rows(positions, longest) // (model.n_layers * model.n_heads)))


def patched_by(
    stage: Stage, parts: list[Group], place: np.ndarray | None, path: Path, clean: np.ndarray, shape: tuple, name: str
) -> np.ndarray | None:
    """Patched metric [prompt, layer, head] of one stage; None when it was stopped."""
    patched = np.repeat(clean[:, None], shape[0] * shape[1], axis=1)
    done = 0
    for index, group in enumerate(track(parts, f"path_patching {name} to {stage.label}", len(parts))):
        for senders, values in path(index, stage, None if place is None else place[group.rows]):
            patched[group.rows, senders] = values.T
        done += 1
    return patched.reshape(-1, *shape) if done == len(parts) else None


def paths(model: "Model", parts: list[Group], runs: list[Runs], freeze_mlps: bool) -> Path:
    """A function (group, stage, place) -> (senders, their metric [sender, row]), by the fastest way there is."""
    return _fast(model, parts, runs, freeze_mlps) if model.trunk else _plain(model, parts, freeze_mlps)


def _fast(model: "Model", parts: list[Group], runs: list[Runs], freeze_mlps: bool) -> Path:
    """Only norms and MLPs between sender and receiver, only where it is sent; then only what the receivers change."""
    from workbench.models.paths import receiving, spread

    trunk = model.trunk
    assert trunk is not None

    def path(index: int, stage: Stage, place: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
        group, run = parts[index], runs[index]
        rows, columns = len(group.rows), group.columns(trunk.device)
        where = None if place is None else model.tensor(place)
        layers = stage.layers or [trunk.n_layers]
        arrived = spread(trunk, run.clean, run.corrupted, where, layers, freeze_mlps)
        if not stage.heads:
            last = arrived[trunk.n_layers][:, -1]
            yield slice(None), group.meter(trunk.logits(last, columns))
            return
        length = group.clean.shape[1]
        start = 0 if place is None else int(place.min())
        senders = layers[-1] * trunk.n_heads
        for some in chunks(senders, trunk.rows(length - start, length) // rows):
            first = layers[0]
            hidden = run.clean.inputs[first][:, start:].repeat(len(some), 1, 1)
            acts = {
                layer: receiving(
                    trunk,
                    layer,
                    arrived[layer][some.start * rows : some.stop * rows],
                    stage.at(layer),
                    None if where is None else where - start,
                    length,
                    start,
                )
                for layer in layers
            }
            last = trunk.run_on(first, hidden, run.clean, start, acts=acts)
            yield slice(some.start, some.stop), group.meter(trunk.logits(last, columns))

    return path


def _plain(model: "Model", parts: list[Group], freeze_mlps: bool) -> Path:
    """The same by two whole forward passes with hooks for each sender."""
    layers, kinds = range(model.n_layers), [Z] + ["blocks.{}.hook_mlp_out"] * freeze_mlps
    held = [kind.format(layer) for layer in layers for kind in kinds]

    def path(index: int, stage: Stage, place: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
        group = parts[index]
        kept = model.capture(group.clean, held)[1]
        other = model.capture(group.corrupted, [Z.format(layer) for layer in layers])[1]
        last = stage.layers[-1] if stage.heads else model.n_layers
        listen = {f"blocks.{layer}.attn.hook_{part}" for layer in stage.layers for part in stage.at(layer)}
        for sender in itertools.product(range(last), range(model.n_heads)):
            edits = {name: _hold(value) for name, value in kept.items()}
            edits[Z.format(sender[0])] = _send(kept[Z.format(sender[0])], other[Z.format(sender[0])], sender[1], place)
            heard: dict[str, torch.Tensor] = {}
            for name in listen:
                edits[name] = lambda value, name=name, heard=heard: heard.setdefault(name, value)
            values = plain_metric(model, group, group.clean, edits)
            if stage.heads:
                values = plain_metric(model, group, group.clean, _receive(stage, heard, place, model.n_heads))
            number = sender[0] * model.n_heads + sender[1]
            yield slice(number, number + 1), values

    return path


def _hold(kept: "torch.Tensor"):
    return lambda value: kept


def _send(kept: "torch.Tensor", other: "torch.Tensor", head: int, place: np.ndarray | None):
    """Clean z [row, pos, head, d_head] with one head's corrupted value at its place."""
    sent = kept.clone()
    rows, where = _index(len(sent), place)
    sent[rows, where, head] = other[rows, where, head]
    return lambda value: sent


def _receive(stage: Stage, heard: dict[str, "torch.Tensor"], place: np.ndarray | None, n_heads: int) -> dict:
    """Edits that put what the receivers heard into a clean run; keys and values by group of heads."""

    def put(name: str, heads: list[int]):
        def edit(value: "torch.Tensor") -> "torch.Tensor":
            value = value.clone()
            rows, where = _index(len(value), place)
            for head in {head * value.shape[2] // n_heads for head in heads}:
                value[rows, where, head] = heard[name][rows, where, head]
            return value

        return edit

    found = {}
    for layer in stage.layers:
        for part, heads in stage.at(layer).items():
            name = f"blocks.{layer}.attn.hook_{part}"
            found[name] = put(name, heads)
    return found


def _index(count: int, place: np.ndarray | None) -> tuple:
    return (slice(None), slice(None)) if place is None else (list(range(count)), place.tolist())
