"""Both ends of a causal language model as transformers made it: its base without the head, and what the head gives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def base_of(module: Any) -> Any:
    """The model without its head."""
    return module.base_model if module.base_model is not module else module.model


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def finished(found: Tensor, config: Any) -> Tensor:
    """Logits as the family scales and caps what its head gives."""
    found = at_least_single(found)
    found = found * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    cap = getattr(config, "final_logit_softcapping", None)
    return found if cap is None else cap * torch.tanh(found / cap)


def unembed(module: Any, normed: Tensor) -> Tensor:
    """Logits, float32 at least [..., vocab], of normed last residuals [..., d_model]."""
    return finished(module.get_output_embeddings()(normed), module.config.get_text_config())


def token_losses(module: Any, normed: Tensor, tokens: Tensor) -> Tensor:
    """Next-token cross-entropy in nats [row, pos - 1], float32; a row at a time, so that logits stay small."""
    with torch.no_grad():
        rows = [
            F.cross_entropy(unembed(module, one[:-1]), ids[1:], reduction="none")
            for one, ids in zip(normed, tokens, strict=True)
        ]
    return torch.stack(rows)


def run_base(module: Any, tokens: Tensor, real: Tensor | None = None) -> Any:
    """What the base gives for tokens int64 [row, pos], of which `real` bool [row, pos] are not padding; no cache."""
    options: dict[str, Any] = {} if real is None else {"attention_mask": real.long()}
    if hasattr(module.config.get_text_config(), "use_cache"):
        options["use_cache"] = False
    return base_of(module)(input_ids=tokens, **options)
