"""What is checked when a model is loaded, and what to do where a check is red."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from workbench.models.card import Card, Check

# Of the largest logit.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
SAME = "same numbers"
PROBE_TEXT = "Mary gave a book to John"


def inspect(
    bridge: Any,
    tokenizer: Any,
    *,
    probe: torch.Tensor,
    original: torch.Tensor,
    adapter_effect: float | None,
    was_training: bool,
    folded: bool,
    bos: bool,
    experts: int,
    router: str = "",
    more: Sequence[Check] = (),
) -> Card:
    """The card of a freshly bridged model.

    `original` are the logits the module gave on `probe` before it was bridged, [2, 12, vocab]; `adapter_effect` is the
    largest change its adapter makes to them, None without an adapter; `experts` is 0 for a dense model.
    `router` is the family of an adapter that routes every token by itself; `more` are checks of the caller's own.
    """
    with torch.inference_mode():
        bridged = bridge(probe.to(original.device)).float()
    checks = [
        _parity(bridged, original, bridge.cfg.dtype, folded, adapter_effect, router),
        *more,
        *_adapter(adapter_effect),
        _mode(bridge, was_training),
        _tokenizer(tokenizer, bridge.cfg.d_vocab, bos),
        _hooks(bridge, probe.to(original.device), bridged),
        *_routers(bridge, probe.to(original.device), experts),
    ]
    return Card(tuple(checks))


def _parity(
    bridged: torch.Tensor, original: torch.Tensor, dtype: torch.dtype, folded: bool, adapter, router: str
) -> Check:
    """Folding moves all logits of a position together, so it is compared after the softmax."""
    if folded:
        bridged, original = bridged.log_softmax(-1), original.log_softmax(-1)
    scale = max(1.0, original.abs().max().item())
    gap, allowed = (bridged - original).abs().max().item(), TOLERANCE[dtype] * scale
    what = "log-probabilities" if folded else "logits"
    found = f"bridge and original {what} differ by at most {gap:.1e} (allowed {allowed:.0e})"
    if gap <= allowed:
        return Check(SAME, "green", found)
    if router:
        fix = f"the bridge does not carry {router}'s routing, which is read of the live model instead"
        return Check(SAME, "amber", found, fix)
    fix = "load another family, or trace with override=True knowing that the numbers are not this model's"
    if adapter is not None:
        fix = "the bridge drops this adapter; load with merge=True to trace a merged copy"
    return Check(SAME, "red", found, fix)


def _adapter(effect: float | None) -> Iterator[Check]:
    if effect is None:
        return
    found = f"switching the adapter on moves the logits by up to {effect:.2e}"
    if effect > 0:
        yield Check("adapter", "green", found)
    else:
        yield Check("adapter", "amber", found, "it changes nothing: check that its weights were trained and loaded")


def _mode(bridge: Any, was_training: bool) -> Check:
    if bridge.training:
        return Check("evaluation mode", "red", "dropout is on", "call model.bridge.eval()")
    note = "the copy was put in evaluation mode; your module is still training" if was_training else "dropout is off"
    return Check("evaluation mode", "green", note)


def _tokenizer(tokenizer: Any, d_vocab: int, bos: bool) -> Check:
    front = f"prompts {'begin with ' + repr(tokenizer.bos_token) if bos else 'have no BOS'}"
    if len(tokenizer) > d_vocab:
        fix = "load the tokenizer that was saved with this model"
        return Check("tokenizer", "red", f"it has {len(tokenizer)} tokens but the model {d_vocab}", fix)
    ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids).strip()
    found = f"{type(tokenizer).__name__}, {len(tokenizer)} tokens; {front}"
    if back != PROBE_TEXT:
        fix = "fine for a vocabulary without these words; otherwise load the tokenizer that was saved with this model"
        return Check("tokenizer", "amber", f"{found}; {PROBE_TEXT!r} comes back as {back!r}", fix)
    return Check("tokenizer", "green", found)


def _hooks(bridge: Any, probe: torch.Tensor, plain: torch.Tensor) -> Check:
    """An edit of every head's z must move the logits."""

    def mirror(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return -value

    hooks = [(f"blocks.{layer}.attn.hook_z", mirror) for layer in range(bridge.cfg.n_layers)]
    with torch.inference_mode():
        edited = bridge.run_with_hooks(probe, fwd_hooks=hooks).float()
    moved = (edited - plain).abs().max().item()
    found = f"an edit of the head outputs moves the logits by {moved:.1e}"
    if moved > 0:
        return Check("edits take effect", "green", found)
    return Check("edits take effect", "red", found, "heads of this family cannot be patched; load another family")


def _routers(bridge: Any, probe: torch.Tensor, experts: int) -> Iterator[Check]:
    """For each block with a router: float logits, and the experts used are the top-k of these logits."""
    if not experts:
        return
    names = [name for name in bridge.hook_dict if name.endswith(".gate.hook_out")]
    if not names:
        fix = "circuits and sinks can be traced; routing cannot be read here"
        yield Check("routers", "amber", f"{experts} experts a layer, but no router hook is known in this family", fix)
        return
    kept: dict[str, torch.Tensor] = {}
    indices = [name.replace("hook_out", "hook_expert_indices") for name in names]

    def keeper(name: str):
        def keep(value: Any, hook: Any) -> None:
            kept[name] = value[0] if isinstance(value, tuple) else value

        return keep

    hooks = [(name, keeper(name)) for name in (*names, *indices) if name in bridge.hook_dict]
    with torch.inference_mode():
        bridge.run_with_hooks(probe, fwd_hooks=hooks)
    wrong = [name for name, used in zip(names, indices, strict=True) if not _routes(kept.get(name), kept.get(used))]
    if not wrong:
        yield Check("routers", "green", f"in {len(names)} layers the experts used are the top of the router's logits")
        return
    fix = "circuits and sinks can be traced; do not read routing from this family's hooks"
    yield Check("routers", "amber", f"{len(wrong)} of {len(names)} routers fail their self-check ({wrong[0]})", fix)


def _routes(logits: torch.Tensor | None, used: torch.Tensor | None) -> bool:
    if logits is None or used is None or not logits.is_floating_point() or used.is_floating_point():
        return False
    best = logits.topk(used.shape[-1], dim=-1).indices
    return bool((best.sort(-1).values == used.sort(-1).values).all())
