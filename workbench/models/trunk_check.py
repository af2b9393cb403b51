"""Whether a model's blocks, run piece by piece, give the bridge's own numbers."""

from typing import Any

import torch
from torch import Tensor

from workbench.models.checks import TOLERANCE
from workbench.models.trunk import Trunk, TrunkError

PROBE = 12  # tokens of the prompt a trunk is checked on


def checked_trunk(bridge: Any, module: Any) -> Trunk:
    """The trunk of a module, after it gave the bridge's own logits on a small prompt, plain and with a head mirrored.

    Raises:
        TrunkError: when it did not, with the reason.
    """
    trunk = Trunk(module, bridge.adapter.component_mapping, bridge.cfg.n_heads)
    size = min(PROBE, bridge.cfg.n_ctx)
    tokens = torch.randint(0, bridge.cfg.d_vocab, (2, size), generator=torch.Generator().manual_seed(0))
    tokens, layer, start = tokens.to(trunk.device), (trunk.n_layers - 1) // 2, size // 2
    try:
        recorded = trunk.record(tokens)
        z = recorded.z[layer][:, start:].clone()
        z[:, :, 0] *= -1
        changed = trunk.run_on(layer, recorded.inputs[layer][:, start:], recorded, start, attention=trunk.out(layer, z))
        found = trunk.logits(torch.cat([recorded.inputs[-1][:, -1], changed]))
        held = trunk.step(
            layer,
            recorded.inputs[layer],
            trunk.frame(size),
            attention=recorded.attention[layer],
            mlp=recorded.mlp[layer],
        )
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise TrunkError(f"its blocks cannot be run one by one ({type(error).__name__}: {error})") from error
    expected = torch.cat([_plain_logits(bridge, tokens, None), _plain_logits(bridge, tokens, (layer, start))])
    if not torch.allclose(held, recorded.inputs[layer + 1], atol=1e-5):
        raise TrunkError("its blocks are more than attention and an MLP that add to a stream")
    gap, allowed = (found - expected).abs().max().item(), TOLERANCE[bridge.cfg.dtype] * expected.abs().max().item()
    if not gap <= allowed:
        raise TrunkError(f"its blocks run one by one give other logits, by {gap:.1e} (allowed {allowed:.0e})")
    return trunk


def _plain_logits(bridge: Any, tokens: Tensor, mirrored: tuple[int, int] | None) -> Tensor:
    """The bridge's logits at the last position, with head 0 of (layer, start on) mirrored if asked for."""

    def mirror(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, mirrored[1] :, 0] *= -1  # type: ignore[index]
        return value

    hooks: list[Any] = [(f"blocks.{mirrored[0]}.attn.hook_z", mirror)] if mirrored else []
    with torch.inference_mode():
        return bridge.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].float()
