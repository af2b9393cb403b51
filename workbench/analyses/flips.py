"""Which answers a fine-tune turned: every prompt of a task before and after, counted and tested in pairs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import LEVEL, AnalysisError, analysis, batches, interval, resamples
from workbench.analyses._patching import Meter
from workbench.models.reference import find
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

KINDS = ("right both times", "right to wrong", "wrong to right", "wrong both times")
RATES = ("negative flips", "positive flips", "wrong and changed")
SIDES = ("before", "after")
DRAWS = 2000


@analysis(
    about="Answers that a fine-tune turned: right to wrong, wrong to right, neither; McNemar's test and every example.",
    sign="share of all prompts; negative flips were right before and are wrong now",
    primary="share",
    paper="2407.09435 (Echterhoff et al., MUSCLE): negative flip rate, and inconsistency of wrong answers NFR_mc",
    other="after",
)
def flips(
    model: "Model",
    task: Task,
    *,
    after: str = "",
    answers: Literal["vocabulary", "choices"] = "vocabulary",
    batch: int = 64,
) -> xr.Dataset:
    """The answers of two checkpoints to the same prompts, prompt by prompt.

    A model's answer is the token of greatest logit at END: of the whole vocabulary (as in the evaluation of a run), or
    of the `choices`, the prompt's right and wrong answers. With c1, c2 whether it is right before and after: `negative
    flips` (NFR) is the mean of c1 and not c2, `positive flips` of c2 and not c1, `wrong and changed` (NFR_mc) of not c2
    and another answer than before, so that it counts wrong answers that became other wrong ones too. McNemar's exact
    test asks whether one kind of flip is more frequent than the other: two-sided binomial test of the negative ones
    among all flips, at 1/2.

    Args:
        model: before.
        task: whose clean prompts are answered.
        after: reference of the other checkpoint; empty for the model's own without its `@...`. A LoRA adapter is merged
            into the weights.
        answers: see above.
        batch: prompts in one pass.

    Returns:
        `right`, `answer` (token id) and `metric` [measured, prompt], before and after; `change` of the metric and
        `kind` (place in `component`) [prompt]; `share` and `count` [component] of the four kinds; `rate` [method] of
        the three above; `accuracy` [measured]; shares with Wilson's 95 % interval. Coordinates `text`, `answer_text`
        (what the prompt's first right answer is), `before_text`, `after_text` (what was answered). Attributes:
        `mcnemar`, its p; `flipped`; `accuracy_change` and `metric_change`, with `_low`, `_high` (prompts resampled).
        When stopped early: the prompts done.

    Raises:
        AnalysisError: when the checkpoints have not the same vocabulary, or there is no other checkpoint.
    """
    second = _second(model, after)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    parts, done = list(batches(prompts, batch)), []
    found = np.zeros((len(SIDES), 3, len(prompts)))
    for rows in track(parts, f"flips {task.name}", len(parts)):
        for side, each in enumerate((model, second)):
            found[side][:, rows] = _answered(each, prompts, rows, task.metric, answers)
        done.append(rows)
    if not done:
        raise Cancelled("Stopped before the first prompts were answered, so there is no result to keep.")
    rows = np.sort(np.concatenate(done))
    ds = _dataset(found[:, :, rows], task)
    texts = _texts(model, prompts, rows, found[:, 1, rows].astype(int))
    ds = ds.assign_coords({"prompt": rows, **texts})
    ds.attrs = _summary(ds, task.seed) | {"metric_name": task.metric, "corruption": task.corruption, "n": len(rows)}
    return ds.assign_attrs(after=second.reference, after_hash=second.hash, answers=answers)


def mcnemar(negative: int, positive: int) -> float:
    """Two-sided p of McNemar's exact test: `negative` of all flips, at 1/2; 1 where nothing flipped."""
    flipped, less = negative + positive, min(negative, positive)
    return min(1.0, 2 * sum(math.comb(flipped, k) for k in range(less + 1)) / 2**flipped)


def _second(model: "Model", after: str) -> "Model":
    """The other checkpoint, loaded as this one was, an adapter of it merged."""
    from workbench.models.load import load

    own = str(model.spec["reference"])
    after = after or (own if Path(own).is_dir() else own.partition("@")[0])
    if not after:
        raise AnalysisError("A live model has no reference, so name the other checkpoint: after='run/...' or a path.")
    options = {"reference": after, "device": str(model.device), "merge": model.spec["merge"] or _is_lora(after)}
    other = load(**{**model.spec, **options})
    if other.tokenizer.get_vocab() != model.tokenizer.get_vocab() or other.bos != model.bos:
        raise AnalysisError(
            f"'{after}' has another vocabulary than '{model.reference}', so their answers are not the same tokens; "
            "give a checkpoint of the same model."
        )
    return other


def _is_lora(reference: str) -> bool:
    config = find(reference).folder / "adapter_config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("peft_type") == "LORA"


def _answered(model: "Model", prompts: Prompts, rows: np.ndarray, metric: str, answers: str) -> np.ndarray:
    """Whether each answer is right, its token, and the metric, float64 [3, row]."""
    logits = model.logits(np.stack([prompts.clean[i] for i in rows]))[:, -1]
    right, wrong = ([side[i] for i in rows] for side in (prompts.answers, prompts.wrongs))
    choices = [np.concatenate(pair) for pair in zip(right, wrong, strict=True)] if answers == "choices" else []
    said = _greatest(logits, choices)
    hit = [token in known for token, known in zip(said, right, strict=True)]
    return np.stack([hit, said, Meter(right, wrong, metric)(logits)[0]])


def _greatest(logits: "torch.Tensor", among: Sequence[np.ndarray]) -> np.ndarray:
    """The token of greatest logit [row], of logits [row, vocab]; of those listed for each row, where they are."""
    if not among:
        return logits.argmax(-1).cpu().numpy()
    return np.array([tokens[int(logits[row, tokens.tolist()].argmax())] for row, tokens in enumerate(among)])


def _dataset(found: np.ndarray, task: Task) -> xr.Dataset:
    """Variables, of [measured, (right, answer, metric), prompt]."""
    right, said, metric = found[:, 0] > 0, found[:, 1].astype(np.int64), found[:, 2]
    kind = np.where(right[0], ~right[1], 2 + ~right[1]).astype(np.int8)
    count = np.bincount(kind, minlength=len(KINDS))
    changed = ~right[1] & (said[0] != said[1])
    rates = np.array([count[1], count[2], changed.sum()])
    by, share = ("measured", "prompt"), {"long_name": "share of all prompts", "units": "share"}
    raw = {"long_name": task.metric.replace("_", " "), "units": "logits" if task.metric == "logit_diff" else "1"}
    variables: dict[str, Any] = {
        "right": (by, right.astype(np.int8), {"long_name": "the answer was right"}),
        "answer": (by, said, {"long_name": "token answered"}),
        "metric": (by, metric, raw),
        "change": ("prompt", metric[1] - metric[0], raw | {"long_name": f"change of {raw['long_name']}", "signed": 1}),
        "kind": ("prompt", kind, {"long_name": "place among the kinds of change"}),
        "count": ("component", count, {"long_name": "prompts", "units": "1"}),
        **_shares("share", "component", count, len(kind), share),
        **_shares("rate", "method", rates, len(kind), share),
        **_shares("accuracy", "measured", right.sum(1), len(kind), share | {"long_name": "answered rightly"}),
    }
    return xr.Dataset(variables, coords={"measured": list(SIDES), "component": list(KINDS), "method": list(RATES)})


def _shares(name: str, dim: str, count: np.ndarray, of: int, say: dict[str, str]) -> dict[str, tuple]:
    """Counts as shares, with Wilson's interval."""
    low, high = wilson(count, of)
    return {f"{name}{end}": (dim, v, say) for end, v in (("", count / of), ("_low", low), ("_high", high))}


def wilson(count: np.ndarray, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's 95 % interval of the share `count / of`."""
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    share, extra = count / of, z**2 / of
    centre, half = share + extra / 2, z * np.sqrt(share * (1 - share) / of + extra / (4 * of))
    return np.clip((centre - half) / (1 + extra), 0, 1), np.clip((centre + half) / (1 + extra), 0, 1)


def _texts(model: "Model", prompts: Prompts, rows: np.ndarray, said: np.ndarray) -> dict[str, tuple[str, list[str]]]:
    """What was asked, what is right, and what was answered, of answers [measured, prompt]."""
    found = {
        "text": [prompts.texts[row] for row in rows],
        "answer_text": model.tokens(np.array([prompts.answers[row][0] for row in rows])),
        "before_text": model.tokens(said[0]),
        "after_text": model.tokens(said[1]),
    }
    return {name: ("prompt", values) for name, values in found.items()}


def _summary(ds: xr.Dataset, seed: int) -> dict[str, Any]:
    negative, positive = int(ds["count"][1]), int(ds["count"][2])
    found: dict[str, Any] = {"mcnemar": mcnemar(negative, positive), "flipped": negative + positive}
    right = ds["right"].values.astype(float)
    for name, values in (("accuracy_change", right[1] - right[0]), ("metric_change", ds["change"].values)):
        low, high = interval(resamples(len(values), DRAWS, seed) @ values)
        found |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found
