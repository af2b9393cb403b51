"""Attention averaged over many short texts: the sink on the first token at a glance."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    from workbench.models.model import Model
    from workbench.models.scan import Heads

DIMS = ("layer", "head", "query_pos", "key_pos")
LONGEST = 128


@analysis(
    about="Attention scores and probabilities of every head, averaged over many short texts.",
    sign="score before the softmax: larger = more attention than the query's other keys get",
    primary="score",
    paper="2309.17453 (Xiao et al.): figure 2, average attention logits over 256 sentences of 16 tokens",
)
def mean_attention(
    model: "Model", task: Task, *, length: int = 16, sequences: int = 256, batch: int = 64
) -> xr.Dataset:
    """Mean attention of every head over the first tokens of many texts, before and after the softmax.

    Args:
        model: raw weights.
        task: whose text is read: its prompts with their answers, cut at `length` tokens.
        length: tokens in a text, BOS included.
        sequences: how many texts.
        batch: texts in one forward pass.

    Returns:
        `score` (before the softmax; 0 for keys that a query cannot see) and `pattern` (after it), each with its
        standard deviation over texts, `score_sd` and `pattern_sd` [layer, head, query_pos, key_pos]; and
        `first_prompt` [prompt, layer, head], the mean attention on the first token in each text. When stopped early:
        the texts done.

    Raises:
        AnalysisError: when `length` is over 128 or longer than the model's context.
        ModelError: when the family's attention cannot be read.
    """
    if not 2 <= length <= min(LONGEST, model.context):
        most = min(LONGEST, model.context)
        raise AnalysisError(f"length is {length}; averages are taken over 2 to {most} tokens of this model.")
    at_least_one(sequences=sequences, batch=batch)
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    shape, done = (2, model.n_layers, model.n_heads, length, length), 0
    total, squares = np.zeros(shape), np.zeros(shape)
    first = np.empty((sequences, model.n_layers, model.n_heads), np.float32)
    starts = range(0, sequences, batch)
    for start in track(starts, f"mean_attention {task.name}", len(starts)):
        some = tokens[start : start + batch]

        def read(heads: "Heads", start: int = done) -> None:
            first[start : start + len(heads.z), heads.index] = heads.columns[..., 0].mean(-1).cpu().numpy()
            for index, values in enumerate((heads.scores().double(), heads.columns.double())):
                total[index, heads.index] += values.sum(0).cpu().numpy()
                squares[index, heads.index] += values.square().sum(0).cpu().numpy()

        model.scanner.run(model.tensor(some), heads=read, watched=list(range(length)))
        done += len(some)
    if not done:
        raise Cancelled("Stopped before the first texts were finished, so there is no result to keep.")
    return _dataset(total / done, squares / done, first[:done], model.scanner.causal(), task)


def _dataset(mean: np.ndarray, squares: np.ndarray, first: np.ndarray, causal: bool, task: Task) -> xr.Dataset:
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    if causal:
        mean[0], spread[0] = np.tril(mean[0]), np.tril(spread[0])
    says = (
        {"long_name": "mean attention score before the softmax", "units": "1", "signed": 1},
        {"long_name": "mean attention", "units": "probability"},
    )
    variables: dict[str, tuple] = {}
    for name, value, sd, say in zip(("score", "pattern"), mean, spread, says, strict=True):
        variables[name] = (DIMS, value, say)
        variables[f"{name}_sd"] = (DIMS, sd, {"long_name": "standard deviation over texts", "units": "1"})
    say = {"long_name": "mean attention on the first token", "units": "probability"}
    variables["first_prompt"] = (("prompt", "layer", "head"), first, say)
    sizes = dict(zip((*DIMS, "prompt"), (*mean.shape[1:], len(first)), strict=True))
    coords: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    coords["token"] = ("key_pos", [f"{place}" for place in range(mean.shape[-1])])  # tokens differ from text to text
    attrs = {"n": len(first), "causal": int(causal), "corruption": "none: clean text", "task": task.name}
    return xr.Dataset(variables, coords, attrs)
