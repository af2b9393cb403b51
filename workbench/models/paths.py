"""What one head sends along the residual stream when all others are held: norms and MLPs only, at few positions."""

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.models.blocks import Recording
from workbench.models.trunk import Change, Trunk


def spread(
    trunk: Trunk,
    clean: Recording,
    corrupted: Recording,
    place: Tensor | None,
    layers: list[int],
    freeze_mlps: bool,
) -> dict[int, Tensor]:
    """What arrives at each of `layers` when one head at a time sends its corrupted output, all others held clean.

    Args:
        trunk: whose blocks are run.
        clean: with inputs, z, attention and mlp.
        corrupted: with z.
        place: token index in each prompt at which it is sent, [row]; None for all positions.
        layers: the blocks whose input is wanted; `n_layers` for the last one's output.
        freeze_mlps: hold what MLPs return as well.

    Returns:
        For each of them [sender x row, pos, d_model]: senders are the heads of the blocks before, in order; one
        position (the sender's), or all.
    """
    rows = torch.arange(len(clean.tokens), device=trunk.device)
    frame, arrived = trunk.frame(clean.tokens.shape[1]), {}
    hidden = clean.inputs[0][:0] if place is None else clean.inputs[0][:0, :1]

    def at(value: Tensor) -> Tensor:
        return value if place is None else value[rows, place][:, None]

    with torch.no_grad():
        for layer in range(max(layers)):
            if layer in layers:
                arrived[layer] = hidden
            z = at(clean.z[layer]).repeat(trunk.n_heads, 1, 1, 1)
            for head in range(trunk.n_heads):
                z[head * len(rows) : (head + 1) * len(rows), :, head] = at(corrupted.z[layer])[:, :, head]
            kept = at(clean.attention[layer]).repeat(layer * trunk.n_heads, 1, 1)
            attention = torch.cat([kept, trunk.out(layer, z)])
            hidden = torch.cat([hidden, at(clean.inputs[layer]).repeat(trunk.n_heads, 1, 1)])
            mlp = at(clean.mlp[layer]).repeat(len(hidden) // len(rows), 1, 1) if freeze_mlps else None
            hidden = trunk.step(layer, hidden, frame, attention=attention, mlp=mlp)
    return arrived | {max(layers): hidden}


def receiving(
    trunk: Trunk,
    layer: int,
    arrived: Tensor,
    heads: dict[str, list[int]],
    place: Tensor | None,
    length: int,
    start: int,
) -> Callable[[Tensor], Change]:
    """A change for `run_on`: listed heads' q, k or v in this layer become those of what arrived.

    `arrived` [sender x row, pos, d_model] are the first rows of the run; the others' receivers stay as they are.
    `place` is counted from `start`.
    """
    frame, count = trunk.frame(length, start), len(arrived)
    rows = torch.arange(count, device=trunk.device)
    where = None if place is None else place.repeat(count // len(place)) if count else place[:0]

    def given(hidden: Tensor) -> Change:
        probe = hidden[:count].clone()
        if where is None:
            probe[:] = arrived
        else:
            probe[rows, where] = arrived[:, 0]
        heard = dict(zip("qkv", trunk.seen(layer, probe, frame), strict=True)) if count else {}

        def change(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = {"q": query, "k": key, "v": value}
            for part, listed in heads.items() if count else ():
                taken = parts[part] = parts[part].clone()
                for head in {head * taken.shape[1] // trunk.n_heads for head in listed}:
                    if where is None:
                        taken[:count, head] = heard[part][:, head]
                    else:
                        taken[rows, head, where] = heard[part][rows, head, where]
            return parts["q"], parts["k"], parts["v"]

        return change

    return given
