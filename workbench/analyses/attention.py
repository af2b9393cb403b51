"""Attention patterns: where every head of a model looks on one prompt."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model
    from workbench.models.scan import Heads

PATTERN = "blocks.{}.attn.hook_pattern"
DIMS = ("layer", "head", "query_pos", "key_pos")
LARGEST = 2**27  # values of one result, half a gigabyte


@analysis(
    about="Attention probabilities of every head on one of the task's clean prompts.",
    sign="probability that the query (row) attends to the key (column); rows sum to 1",
    primary="pattern",
)
def attention(
    model: "Model", task: Task, *, prompt: int = 0, length: int = 0, layer: int = -1, scores: bool = False
) -> xr.Dataset:
    """Attention of every head on one prompt, or on running text of the task.

    Args:
        model: from `workbench.load` or `workbench.wrap`.
        task: its clean prompts.
        prompt: which of them (or of the running texts), from 0.
        length: 0 for the prompt itself; else so many tokens of the task's prompts with their answers, one after the
            other.
        layer: only this layer; -1 for all. Long texts want one layer at a time.
        scores: also give the scores before the softmax.

    Returns:
        `pattern` (and `score`, 0 for keys that a query cannot see) [layer, head, query_pos, key_pos], with the text of
        the tokens as the coordinate `token` (key_pos), and the task's names for them as `position` (key_pos); the
        attribute `causal` says whether later keys are out of sight.

    Raises:
        AnalysisError: when there is no such prompt, layer or length, or the result would be larger than half a
            gigabyte.
        ModelError: when scores are asked for of a family whose attention cannot be read.
    """
    ids, marks, text = _text(model, task, prompt, length)
    if not -1 <= layer < model.n_layers:
        raise AnalysisError(f"layer is {layer}; this model has the layers 0 to {model.n_layers - 1}, or -1 for all.")
    layers = list(range(model.n_layers)) if layer < 0 else [layer]
    size = len(layers) * model.n_heads * len(ids) ** 2
    if size > LARGEST:
        raise AnalysisError(f"{len(layers)} layers on {len(ids)} tokens are {size:,} values; name one layer.")
    names = [PATTERN.format(index) for index in track(layers, "attention", len(layers))]
    if not names:
        raise Cancelled("Stopped before the first layer was read, so there is no result to keep.")
    _, kept = model.capture(ids[None], names)
    pattern = np.stack([kept[name][0].float().cpu().numpy() for name in names])
    variables: dict[str, tuple] = {"pattern": (DIMS, pattern, {"long_name": "attention", "units": "probability"})}
    if scores:
        seen = np.where(pattern > 0, _scores(model, ids, layers[: len(names)]), 0)
        variables["score"] = (DIMS, seen, {"long_name": "attention score before the softmax", "signed": 1})
    sizes = {dim: np.arange(n) for dim, n in zip(DIMS, pattern.shape, strict=True)}
    texts = {"token": ("key_pos", model.tokens(ids)), "position": ("key_pos", marks)}
    coords = {**sizes, "layer": layers[: len(names)], **texts}
    attrs = {"n": 1, "prompt": prompt, "text": text, "corruption": "none: clean text", "task": task.name}
    return xr.Dataset(variables, coords, {**attrs, "causal": int(not np.triu(pattern[0, 0], 1).any())})


def _text(model: "Model", task: Task, prompt: int, length: int) -> tuple[np.ndarray, list[str], str]:
    """Token ids int64 [pos], the task's name for each position, and the text."""
    if not length:
        prompts = task.encode(model.tokenizer, bos=model.bos)
        if not 0 <= prompt < len(prompts):
            raise AnalysisError(f"prompt is {prompt}; '{task.title}' has the prompts 0 to {len(prompts) - 1}.")
        ids, places = prompts.clean[prompt], prompts.positions[prompt].items()
        return ids, [",".join(n for n, at in places if at == key) for key in range(len(ids))], prompts.texts[prompt]
    if not 2 <= length <= model.context or prompt < 0:
        raise AnalysisError(f"length is {length} and prompt {prompt}; this model takes 2 to {model.context} tokens.")
    ids = task.documents(model.tokenizer, length=length, count=prompt + 1, bos=model.bos)[prompt]
    return ids, [""] * length, model.tokenizer.decode(ids[int(model.bos) :])


def _scores(model: "Model", ids: np.ndarray, layers: list[int]) -> np.ndarray:
    """Scores before the softmax of the layers named, float32 [layer, head, query, key]."""
    found: list[np.ndarray] = []

    def read(heads: "Heads") -> None:
        if heads.index in layers:
            found.append(heads.scores()[0].float().cpu().numpy())

    model.scanner.run(model.tensor(ids[None]), heads=read)
    return np.stack(found)
