"""Surgery on routing: experts muted, forced or re-weighed for chosen tokens, beside the same done to other experts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._experts import controls, ends, last_logits, mean_of, refuse_few, routes, unit_of
from workbench.analyses._patching import Group, groups
from workbench.analyses._route_edits import Edits, Surgery, code_of, parse_edits
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.routers import Routed

MEASURED = ("metric", "probability", "loss")
SIDES = ["before", "after"]
TOP = 5  # next tokens shown


@dataclass(frozen=True)
class _Seen:
    """Values [measure, prompt] of a pass; weight [edit, expert], mean over the tokens each edit is aimed at."""

    values: np.ndarray
    weight: np.ndarray


Run = Callable[[Edits, Edits], _Seen]


@analysis(
    about="Experts muted, forced or re-weighed for chosen tokens: the answer, the loss and the text before and after.",
    sign="after less before; positive = the edit raises it (for the loss: it hurts)",
    primary="metric_change",
)
def route_surgery(
    model: "Model",
    task: Task,
    *,
    edits: str = "",
    module: str = "",
    prompt: int = 0,
    steps: int = 8,
    draws: int = 20,
    batch: int = 64,
) -> xr.Dataset:
    """What the clean prompts and their continuation become when chosen tokens are given other experts.

    `mute` closes an expert, and the family's own rule chooses and weighs among the others; `force` gives it the whole
    weight of the token's experts; a number multiplies its weight, and the others keep theirs. An edit is believed only
    after the experts were heard to be called with what it asks for. A control does the same to other experts of the
    same layers, none of those edited where there are enough: for `force` any, for the rest drawn by the weight they
    have at those tokens, since an expert that is not used has nothing to lose.

    Of a routed adapter skills are the experts, named alike, and edits are of one routed module. Poly routes whole
    prompts: an edit of some of their tokens is one that it could not make itself.

    Args:
        model: a mixture of experts or a routed adapter whose routing can be read.
        task: its clean prompts.
        edits: like `L2E5=mute; L1E3=force@S2; L0E1=0.5@3,END`: expert, what is done, and at which named positions or
            token indices (all tokens, if left out).
        module: of an adapter, the routed module of a layer, like `q_proj`; the first, if left out.
        prompt: number of the prompt whose next tokens are shown.
        steps: tokens of its greedy continuation; an edit of all tokens reaches them too.
        draws: controls, 20 or more.
        batch: prompts in one forward pass.

    Returns:
        `metric` (the task's), `probability` (of the answers) and `loss` (next-token, nats, over the prompt's own
        tokens) [measured], before and after, means over prompts (`_prompt` [measured, prompt] of each); of each the
        `_change` with `_low` and `_high` (prompts resampled), the controls `_change_random` [seed], `_null`,
        `_null_low`, `_null_high`, and `_p`, the share of controls that change it as much either way. `weight`
        [component, measured]: mean weight of each edit's expert at its tokens. `top_token`, `top_probability`
        [measured, size] of the prompt shown. Attributes: `continuation_before`, `continuation_after`, and `code`,
        Python that does the edits on that prompt. When stopped early: with the controls that were finished.

    Raises:
        AnalysisError: for edits that cannot be read or done (see `parse_edits`), or that did not take effect.
        ModelError: when the model has no routers, or they cannot be believed.
    """
    at_least_one(batch=batch, steps=steps)
    refuse_few(draws)
    model = model.routed(task.name, module)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    if not 0 <= prompt < len(prompts):
        raise AnalysisError(f"There is no prompt {prompt}; the task has 0 to {len(prompts) - 1}.")
    asked = parse_edits(edits, model, prompts)
    run = _runner(model, prompts, groups(prompts, task.metric, batch))
    before, after, rng = run((), asked), run(asked, asked), np.random.default_rng(task.seed)
    drawn: list[tuple[Edits, np.ndarray]] = []
    for _ in track(range(draws), f"route_surgery {task.name}, random experts", draws):
        others = _others(asked, before.weight, rng)
        drawn.append((others, run(others, others).values))
    if not drawn:
        raise Cancelled("Stopped before the first control was finished, so there is no result to keep.")
    ds = _dataset(before, after, np.stack([values for _, values in drawn]), task)
    sides = [_continued(model, prompts, prompt, some, steps) for some in ((), asked)]
    ds = ds.assign(_top(model, [probabilities for probabilities, _ in sides]) | _read_back(asked, before, after))
    ds = ds.assign_coords(
        component=[str(edit) for edit in asked],
        size=np.arange(1, 1 + ds.sizes["size"]),
        seed=np.arange(len(drawn)),
        control=("seed", ["; ".join(map(str, others)) for others, _ in drawn]),
        text=("prompt", prompts.texts),
    )
    ds.attrs = {
        "corruption": "none: clean text",
        "metric_name": task.metric,
        "n": len(prompts),
        "edits": "; ".join(map(str, asked)),
        "shown": prompts.texts[prompt],
        "continuation_before": sides[0][1],
        "continuation_after": sides[1][1],
        "code": code_of(model, asked, prompts.clean[prompt], prompts.positions[prompt]),
    }
    ds.attrs |= {"module": model.routers.name} if model.routers.name else {}
    return ds


def _runner(model: "Model", prompts: Prompts, parts: list[Group]) -> Run:
    """A function from edits, and edits at whose tokens weights are read, to what is seen; equal edits are run once."""

    @functools.cache
    def run(edits: Edits, aimed: Edits) -> _Seen:
        values, weight = np.empty((len(MEASURED), len(prompts))), np.zeros((len(aimed), model.routers.experts))
        count = np.zeros(len(aimed))
        for group in parts:
            tokens, marks = model.tensor(group.clean), [prompts.positions[row] for row in group.rows]
            normed, heard = _operated(model, tokens, marks, edits)
            values[:, group.rows] = _measured(model, group, tokens, normed)
            for index, (edit, mask) in enumerate(zip(aimed, _masks(model, aimed, marks, tokens), strict=True)):
                weight[index] += _weights(heard[edit.layer], mask, weight.shape[1])
                count[index] += int(mask.sum())
        return _Seen(values, weight / count[:, None])

    return run


def _masks(model: "Model", edits: Edits, marks: Sequence[dict], tokens: "torch.Tensor") -> "list[torch.Tensor]":
    length = tokens.shape[1]
    return [model.tensor(np.stack([edit.places(one, length) for one in marks])) for edit in edits]


def _operated(
    model: "Model", tokens: "torch.Tensor", marks: Sequence[dict], edits: Edits
) -> "tuple[torch.Tensor, dict[int, Routed]]":
    """A pass with the edits, proved: normed last residuals, and how each layer routed."""
    surgery = Surgery(edits, _masks(model, edits, marks, tokens))
    normed, heard = routes(model, tokens, **surgery.options)
    surgery.prove(heard)
    return normed, heard


def _measured(model: "Model", group: Group, tokens: "torch.Tensor", normed: "torch.Tensor") -> np.ndarray:
    """Metric, probability of the answers, and loss, [measure, row]."""
    logits = last_logits(model, normed)
    likely = logits.softmax(-1).cpu().double().numpy()
    right = [row[answers].sum() for row, answers in zip(likely, group.meter.answers, strict=True)]
    loss = model.routers.losses(normed, tokens).cpu().double().mean(1).numpy()
    return np.stack([group.meter(logits)[0], right, loss])


def _weights(routed: "Routed", mask: "torch.Tensor", experts: int) -> np.ndarray:
    """Sum over the tokens of a mask of the weight of every expert, [expert]."""
    chosen, weights = routed.chosen[mask].flatten(), routed.weights[mask].flatten().double()
    return weights.new_zeros(experts).index_add(0, chosen, weights).cpu().numpy()


def _others(edits: Edits, weight: np.ndarray, rng: np.random.Generator) -> Edits:
    """The same edits of other experts, none twice in a layer; weight [edit, expert] is that of the plain run."""
    while True:
        found: Edits = ()
        for edit, own in zip(edits, weight, strict=True):
            mine = {other.expert for other in edits if other.layer == edit.layer}
            free = np.ones(len(own), bool)
            free[list(mine) if 2 * len(mine) <= len(own) else edit.expert] = False
            free[[other.expert for other in found if other.layer == edit.layer]] = False
            chance = np.where(free, own, 0) if edit.what != "force" else free
            chance = chance if chance.any() else free
            if not free.any():
                break  # the draws before left this edit nothing but its own expert
            found += (edit.of(int(rng.choice(len(own), p=chance / chance.sum()))),)
        if len(found) == len(edits):
            return found


def _continued(model: "Model", prompts: Prompts, index: int, edits: Edits, steps: int) -> tuple[np.ndarray, str]:
    """Probabilities [vocab] of the token after a prompt, and the text of its greedy continuation."""
    ids, first, kept = prompts.clean[index], len(prompts.clean[index]), []
    for _ in range(min(steps, model.context - first)):
        normed, _ = _operated(model, model.tensor(ids[None]), [prompts.positions[index]], edits)
        kept.append(last_logits(model, normed)[0].softmax(-1).cpu().numpy())
        ids = np.append(ids, kept[-1].argmax())
    return kept[0], model.tokenizer.decode(ids[first:])


def _top(model: "Model", sides: list[np.ndarray]) -> dict[str, tuple]:
    order = [np.argsort(-side, kind="stable")[:TOP] for side in sides]
    dims, tokens = ("measured", "size"), np.array([model.tokens(ids) for ids in order])
    likely = np.stack([side[ids] for side, ids in zip(sides, order, strict=True)]).astype(float)
    return {
        "top_token": (dims, tokens, {"long_name": "likeliest next tokens of the prompt shown"}),
        "top_probability": (dims, likely, {"long_name": "their probability", "units": "probability"}),
    }


def _read_back(edits: Edits, before: _Seen, after: _Seen) -> dict[str, tuple]:
    weight = [[seen.weight[index, edit.expert] for seen in (before, after)] for index, edit in enumerate(edits)]
    say = {"long_name": "mean weight of the edit's expert at its tokens", "units": "1"}
    return {"weight": (("component", "measured"), np.array(weight), say)}


def _dataset(before: _Seen, after: _Seen, drawn: np.ndarray, task: Task) -> xr.Dataset:
    units = dict(zip(MEASURED, (unit_of(task), "probability", "nats"), strict=True))
    names = dict(
        zip(MEASURED, (task.metric.replace("_", " "), "probability of the answers", "next-token loss"), strict=True)
    )
    variables: dict[str, tuple] = {}
    for index, name in enumerate(MEASURED):
        pair = np.stack([before.values[index], after.values[index]])
        plain = {"long_name": names[name], "units": units[name]}
        variables |= {name: ("measured", pair.mean(1), plain), f"{name}_prompt": (("measured", "prompt"), pair, plain)}
        say = {"long_name": f"change of the {names[name]}", "units": units[name], "signed": 1}
        change = mean_of(pair[1] - pair[0], task.seed)
        random = (drawn[:, index] - pair[0]).mean(1)
        variables |= ends(f"{name}_change", (), change, say)
        variables |= controls(f"{name}_change", (), random, np.asarray(change[0]), say, both=True)
    return xr.Dataset(variables, coords={"measured": SIDES, "prompt": np.arange(before.values.shape[1])})
