"""Attention patterns: where every head of a model looks on one prompt."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model

PATTERN = "blocks.{}.attn.hook_pattern"


@analysis(
    about="Attention probabilities of every head on one of the task's clean prompts.",
    sign="probability that the query (row) attends to the key (column); rows sum to 1",
    primary="pattern",
)
def attention(model: "Model", task: Task, *, prompt: int = 0) -> xr.Dataset:
    """Attention of every head on one prompt.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its clean prompts.
        prompt: which of them, from 0.

    Returns:
        `pattern` [layer, head, query_pos, key_pos], with the text of the tokens as the coordinate `token`
        (key_pos), and the task's names for them as `position` (key_pos).

    Raises:
        AnalysisError: when there is no such prompt.
    """
    prompts = task.encode(model.tokenizer, bos=model.bos)
    if not 0 <= prompt < len(prompts):
        raise AnalysisError(f"prompt is {prompt}; '{task.title}' has the prompts 0 to {len(prompts) - 1}.")
    ids = prompts.clean[prompt]
    names = [PATTERN.format(layer) for layer in track(range(model.n_layers), "attention", model.n_layers)]
    if not names:
        raise Cancelled("Stopped before the first layer was read, so there is no result to keep.")
    _, kept = model.capture(ids[None], names)
    pattern = np.stack([kept[name][0].float().cpu().numpy() for name in names])
    dims = ("layer", "head", "query_pos", "key_pos")
    ds = xr.Dataset(
        {"pattern": (dims, pattern, {"long_name": "attention", "units": "probability"})},
        coords={dim: np.arange(size) for dim, size in zip(dims, pattern.shape, strict=True)},
    )
    marks = [",".join(name for name, at in prompts.positions[prompt].items() if at == key) for key in range(len(ids))]
    ds = ds.assign_coords(token=("key_pos", model.tokens(ids)), position=("key_pos", marks))
    ds.attrs = {
        "n": 1,
        "prompt": prompt,
        "text": prompts.texts[prompt],
        "corruption": "none: clean text",
        "task": task.name,
    }
    return ds
