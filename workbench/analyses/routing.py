"""Routing: which experts a mixture of experts gives its tokens to, beside what even and random routers would do."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one, interval, resamples
from workbench.analyses._routing import RANDOM, Parts, Tally, entropy, random_routers
from workbench.analyses._routing_chance import (
    HIGH,
    even_counts,
    even_probabilities,
    even_weights,
    independent_pairs,
)
from workbench.analyses._routing_vocabulary import vocabulary
from workbench.analyses._tokens import kinds_of
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.adapter_routers import AdapterRouters
    from workbench.models.model import Model
    from workbench.models.routers import Routed, Routers

DRAWS = 1000  # of the bootstrap and the even router
LABELS = {
    "load": ("share of tokens that go to the expert", "share"),
    "gate": ("share of all gate weight that the expert gets", "share"),
    "top1": ("share of tokens whose first choice is the expert", "share"),
    "balance": ("balance loss, E times the sum of f_e P_e", "1"),
    "load_cv2": ("squared coefficient of variation of the experts' loads", "1"),
    "max_load": ("largest share of all choices that goes to one expert", "share"),
    "token_entropy": ("mean entropy of a token's router probabilities / ln E", "share"),
    "marginal_entropy": ("entropy of the mean router probabilities / ln E", "share"),
    "z_loss": ("mean squared logsumexp of the router logits", "nats^2"),
    "margin": ("least logit chosen less the greatest that is not, mean", "logits"),
}
MARGIN = ("least logit chosen less the greatest that is not", "greatest logit less the next")  # where all are chosen
WITH_INTERVAL = ("load", "gate", "top1", "token_entropy", "marginal_entropy", "z_loss", "margin")
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
KINDS = ("input token", "predicted next token")


@analysis(
    about="Which experts a task's tokens go to: loads, balance, entropies, co-activation, vocabulary specialisation.",
    sign="load 0 = no token goes to the expert, 1 = every token; an even router gives k / E",
    primary="load",
    paper="2409.02060 (Muennighoff et al., OLMoE), section 5: co-activation and vocabulary specialisation, all pairs",
)
def routing(
    model: "Model",
    task: Task,
    *,
    module: str = "",
    length: int = 64,
    sequences: int = 32,
    shown: int = 4,
    batch: int = 8,
    occurrences: int = 10,
) -> xr.Dataset:
    """How every routing layer spreads a task's tokens over its experts, each measure beside its chance.

    Text is the task's prompts with their answers, one after the other, cut at `length` tokens, BOS in front where the
    model is run with one. BOS and other special tokens are run but left out of every number. With N_e the tokens sent
    to expert e of E, k a token, B tokens in all, p a token's router probabilities (softmax of the logits; sigmoid over
    its sum in families that weigh so):

    `load` is N_e / B (even: k / E), `gate` the share of all weight the experts work with, `top1` the share of tokens
    whose largest logit among the chosen is e's. f_e = N_e / (k B), P_e = mean p_e: `balance` E sum f_e P_e (even: 1),
    `load_cv2` var / mean^2 of N_e, `max_load` max f_e. Their null is an even router: each token goes to any k experts
    with the same probability, and is as sure of them as it was. Co-activation is N_ij / N_i over all
    pairs; its null has the same loads and k, and is otherwise as random as can be (greatest entropy over k-subsets).

    `specialisation`: over token ids that occur often enough, the mean share of an id's occurrences that go to its most
    frequent first choice; by input token and by the token the model predicts. Its null shuffles the ids among tokens;
    `specialisation_random` is that of five routers with random weights on the same residual streams: as tokens differ
    in the stream, those too tell tokens apart, so that only what lies above them was learned by the router.

    Of a routed adapter (Poly and its multi-head form, X-LoRA, Arrow) skills are the experts, and `module` is what
    routes. Poly routes by task, so it must know this one by its name. Where every token goes to all (Poly, X-LoRA),
    loads and co-activation are 1 by definition and only weights tell experts apart: `gate` (even: 1 / E) is drawn
    first, beside the range it has when every token's weights are renamed at random (Poly's: all tokens' at once).

    Args:
        model: a mixture of experts or a routed adapter, with raw weights.
        task: whose text is read.
        module: of an adapter, the routed module of a layer, like `q_proj` (`q_proj/0` for a split of a multi-head
            one); the first, if left out.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        shown: of how many of them everything is kept for every token.
        batch: sequences in one forward pass.
        occurrences: a token id that occurs less often has no part in `specialisation`.

    Returns:
        `load`, `gate`, `top1` [layer, expert] and `token_entropy`, `marginal_entropy` (over ln E), `z_loss`, `margin`
        (least logit chosen less the greatest that is not) [layer], with 95 % intervals resampled over sequences;
        `margin_p05`, `_p50`, `_p95`; `balance`, `load_cv2`, `max_load` [layer] with mean and 95 % point under the even
        router; `load_null` k / E, with the range of an even router's loads; `coactivation` [layer, expert, receiver]
        (share of the expert's tokens that go to the receiver too; 1 on the diagonal, 0 for an expert without tokens),
        with intervals jackknifed over sequences, and `_null`; `specialisation` [measured, layer] with mean, 95 % point
        and p of the null, `_random` (mean) and `_random_high` (largest), and `specialisation_ids` [measured], token ids
        that took part (where 0, all is 0).

        Of each sequence `count` [prompt, layer, expert], `chosen` [prompt, pos, layer, size], best first, `token_id`,
        `counted` [prompt, pos], and of each random router `count_random` [prompt, seed, layer, expert], `first_random`
        [prompt, pos, seed, layer], from which `task_routing` and `routing_drift` compute. Of sequences shown (dimension
        `component`, their prompt's number): `shown_token`, `shown_chosen`, `shown_weight`, `shown_logits`,
        `shown_probability`, `shown_margin`, `shown_entropy` (over ln E). Where every token goes to all: `gate_null`,
        `gate_null_low`, `gate_null_high`, and of each sequence `mass` [prompt, layer, expert], the sum of the weights,
        and `mass_random` (random routers as sure of every token as the router). When stopped early: the sequences done.

    Raises:
        AnalysisError: when `length` is longer than the model's context or under 2, or all tokens of a mixture of
            experts go to all.
        ModelError: when the model has no routers, they cannot be read or believed, or do not know the task or module.
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    at_least_one(sequences=sequences, batch=batch, shown=shown, occurrences=occurrences)
    model = model.routed(task.name, module)
    tokens = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    tally, predicted = _read(model, tokens, batch, shown, f"routing {task.name}", task.seed)
    tokens, counted = tokens[: len(predicted)], tally.counted[: len(predicted)]
    found = tally.first(len(tokens))
    rng = np.random.default_rng(task.seed)
    variables = _summary(found, counted, task.seed) | _chances(found, counted, rng)
    if tally.dense:
        variables |= _dense(variables, found, int(counted.sum()), model.routers.by_task)
    variables |= _together(found["pairs"], counted.sum()) | vocabulary(
        found, tokens, predicted, counted, rng, occurrences
    )
    variables |= _kept(found, tokens, counted) | _shown(found, tokens[:shown], model)
    ds = _dataset(variables, found, list(tally.layers))
    ds.attrs = _attrs(model, found, counted) | {"task": task.name, "length": length, "occurrences": occurrences}
    return ds


def _read(model: "Model", tokens: np.ndarray, size: int, shown: int, what: str, seed: int) -> tuple[Tally, np.ndarray]:
    """What is kept of the sequences that were run, and the token predicted at each of their positions."""
    from workbench.models.ends import unembed

    routers, counted = model.routers, kinds_of(model, tokens) != 0
    rules = {layer: rule.weights for layer, rule in routers.rules.items()}
    tally = Tally(rules, counted, shown, dense=bool(routers.name) and routers.k == routers.experts)
    starts, predicted = range(0, len(tokens), size), []
    with random_routers(model, seed) as scores:
        for start in track(starts, what, len(starts)):
            rows = tokens[start : start + size]
            normed = routers.run(model.tensor(rows), _reader(tally, start, rows.shape, scores))
            predicted += [unembed(routers.module, row).argmax(-1).cpu().numpy() for row in normed]
    if not predicted:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    return tally, np.stack(predicted)


def _reader(tally: Tally, start: int, shape: tuple[int, ...], scores: "dict[int, torch.Tensor]"):
    def read(routed: "Routed") -> None:
        tally.add(start, routed, scores.pop(routed.layer).view(*shape, RANDOM, -1))

    return read


def summarise(sums: Parts, tokens: np.ndarray) -> Parts:
    """The measures of `routing`, [..., layer, expert] and [..., layer], from sums over `tokens` [...] tokens."""
    by_layer, count = np.asarray(tokens, dtype=float)[..., None], sums["count"]
    by_expert, experts = by_layer[..., None], count.shape[-1]
    shares, mean = count / count.sum(-1, keepdims=True), sums["probability"] / by_expert
    return {
        "load": count / by_expert,
        "gate": sums["gate"] / sums["gate"].sum(-1, keepdims=True),
        "top1": sums["top1"] / by_expert,
        "balance": experts * (shares * mean).sum(-1),
        "load_cv2": count.var(-1) / count.mean(-1) ** 2,
        "max_load": shares.max(-1),
        "token_entropy": sums["entropy"] / by_layer / np.log(experts),
        "marginal_entropy": entropy(mean) / np.log(experts),
        "z_loss": sums["z_loss"] / by_layer,
        "margin": sums["margin"] / by_layer,
    }


def _named(name: str, more: str = "") -> dict[str, str]:
    long_name, units = LABELS[name]
    return {"long_name": long_name + more, "units": units}


def _dims(values: np.ndarray) -> tuple[str, ...]:
    return ("layer", "expert")[: values.ndim]


def _summary(found: Parts, counted: np.ndarray, seed: int) -> dict[str, Any]:
    """Every measure, and for those that are means its interval over sequences."""
    names = ("count", "top1", "gate", "probability", "entropy", "z_loss", "margin")
    each, weights = counted.sum(1), resamples(len(counted), DRAWS, seed)
    seen = summarise({name: found[name].sum(0) for name in names}, each.sum())
    drawn = summarise({name: np.tensordot(weights, found[name], 1) for name in names}, weights @ each)
    variables: dict[str, Any] = {name: (_dims(value), value, _named(name)) for name, value in seen.items()}
    for name in WITH_INTERVAL:
        for end, bound in zip(("low", "high"), interval(drawn[name]), strict=True):
            variables[f"{name}_{end}"] = (_dims(bound), bound, _named(name, f", {end} end"))
    quantiles = np.quantile(found["margins"][counted], list(QUANTILES.values()), axis=0)
    for (name, level), values in zip(QUANTILES.items(), quantiles, strict=True):
        say = {"long_name": f"margin that {level:.0%} of tokens stay below", "units": "logits"}
        variables[f"margin_{name}"] = ("layer", values.astype(float), say)
    return variables


def _chances(found: Parts, counted: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """What an even router gives with as many tokens: loads, and the measures of balance."""
    (_, layers, experts), k, tokens = found["count"].shape, found["chosen"].shape[-1], int(counted.sum())
    counts = even_counts(tokens, k, experts, DRAWS, rng)
    moments = np.stack([found[name].sum(0) / tokens for name in ("mass", "square", "square_chosen")], -1)
    means = [even_probabilities(counts, tuple(row), tokens, k, rng) for row in moments]
    share = counts / (k * tokens)
    same = {"load_cv2": counts.var(-1) / counts.mean(-1) ** 2, "max_load": share.max(-1)}
    drawn = {name: np.repeat(values[:, None], layers, 1) for name, values in same.items()}
    drawn["balance"] = np.stack([experts * (share * mean).sum(-1) for mean in means], 1)
    low, high = interval((counts / tokens).ravel())
    ends = {"load_null": k / experts, "load_null_low": low, "load_null_high": high}
    variables: dict[str, Any] = {
        name: ((), np.array(value), _named("load", ", even router")) for name, value in ends.items()
    }
    for name, values in drawn.items():
        variables[f"{name}_null"] = ("layer", values.mean(0), _named(name, ", even router"))
        variables[f"{name}_null_high"] = ("layer", np.quantile(values, HIGH, 0), _named(name, ", even router, 95 %"))
    return variables


def _dense(variables: dict[str, Any], found: Parts, tokens: int, by_task: bool) -> dict[str, Any]:
    """What is told by weights alone: their even null, the sums of each sequence, and the margin by its right name."""
    total = found["gate"].sum(0)
    squares = found["square"].sum(0) / tokens
    shares = total / total.sum(-1, keepdims=True)
    ends = [even_weights(*pair, tokens, alone=by_task) for pair in zip(shares, squares, strict=True)]
    low, high = np.transpose(ends)
    say, dims = _named("gate", ", weights renamed at random"), ("prompt", "layer", "expert")
    mass = {"long_name": "sum of the expert's weights over the tokens of the sequence", "units": "tokens"}
    for name in (name for name in variables if name.startswith("margin")):
        variables[name][2]["long_name"] = variables[name][2]["long_name"].replace(*MARGIN)
    return {
        "gate_null": ((), np.array(1 / total.shape[-1]), say),
        "gate_null_low": ("layer", low, say),
        "gate_null_high": ("layer", high, say),
        "mass": (dims, found["gate"], mass),
        "mass_random": (("prompt", "seed", *dims[1:]), found["mass_random"], mass),
    }


def _together(groups: np.ndarray, tokens: int) -> dict[str, Any]:
    """Co-activation, its jackknife interval over groups of sequences, and what the loads alone would give."""
    total = groups.sum(0)
    own = np.diagonal(total, axis1=-2, axis2=-1)
    k = round(float(own[0].sum() / tokens))
    seen, spread = _given(total), np.full(total.shape, 1.0)
    if (count := len(groups)) > 1:
        without = np.stack([_given(total - group) for group in groups])
        spread = np.sqrt((count - 1) / count * ((without - without.mean(0)) ** 2).sum(0))
    null = np.stack([_given(independent_pairs(load, k)) for load in own / tokens])
    found = {"": seen, "_low": seen - 1.96 * spread, "_high": seen + 1.96 * spread, "_null": null}
    say = {"long_name": "share of the expert's tokens that go to the receiver too", "units": "share"}
    dims = ("layer", "expert", "receiver")
    return {f"coactivation{end}": (dims, np.clip(values, 0, 1), say) for end, values in found.items()}


def _given(pairs: np.ndarray) -> np.ndarray:
    """Pairs [..., expert, expert] over the first expert's own, which is on the diagonal; 0 where it has none."""
    own = np.diagonal(pairs, axis1=-2, axis2=-1)[..., None]
    return np.divide(pairs, own, out=np.zeros_like(pairs), where=own > 0)


def _kept(found: Parts, tokens: np.ndarray, counted: np.ndarray) -> dict[str, Any]:
    """What single sequences chose, for the measures that compare tasks and checkpoints."""
    choices, at = ("prompt", "pos", "layer", "size"), ("prompt", "pos")
    return {
        "count": (("prompt", "layer", "expert"), found["count"], {"long_name": "tokens of the sequence sent there"}),
        "chosen": (choices, found["chosen"], {"long_name": "experts chosen, largest logit first"}),
        "count_random": (
            ("prompt", "seed", "layer", "expert"),
            found["count_random"],
            {"long_name": "by random routers"},
        ),
        "first_random": (("prompt", "pos", "seed", "layer"), found["first_random"], {"long_name": "by random routers"}),
        "token_id": (at, tokens.astype(np.int32), {"long_name": "token id"}),
        "counted": (at, counted.astype(np.int8), {"long_name": "no special token, so part of every number"}),
    }


def _shown(found: Parts, tokens: np.ndarray, model: "Model") -> dict[str, Any]:
    """Everything of the first sequences, token by token."""
    at, rows = ("component", "pos", "layer"), len(tokens)
    scale = np.log(found["count"].shape[-1])
    say = {"units": "1"}
    return {
        "shown_token": (at[:2], np.array([model.tokens(row) for row in tokens]), {"long_name": "token"}),
        "shown_chosen": ((*at, "size"), found["chosen"][:rows], {"long_name": "experts chosen, largest logit first"}),
        "shown_weight": ((*at, "size"), found["shown_weight"], {"long_name": "weight of the expert chosen"} | say),
        "shown_logits": ((*at, "expert"), found["shown_logits"], {"long_name": "router logit", "units": "logits"}),
        "shown_probability": ((*at, "expert"), found["shown_probability"], {"long_name": "router probability"} | say),
        "shown_margin": (at, found["margins"][:rows], _named("margin")),
        "shown_entropy": (at, found["shown_entropy"] / scale, {"long_name": "entropy / ln E", "units": "share"}),
    }


def _dataset(variables: dict[str, Any], found: Parts, layers: list[int]) -> xr.Dataset:
    prompts, length, _, k = found["chosen"].shape
    experts = np.arange(found["count"].shape[-1])
    coords = {"prompt": np.arange(prompts), "pos": np.arange(length), "layer": layers, "size": np.arange(1, k + 1)}
    coords |= {"expert": experts, "receiver": experts, "measured": list(KINDS), "seed": np.arange(RANDOM)}
    return xr.Dataset(variables, coords=coords | {"component": np.arange(len(found["shown_weight"]))})


def _attrs(model: "Model", found: Parts, counted: np.ndarray) -> dict[str, Any]:
    rules = {layer: f"{rule.weights} x {rule.factor:.4g}" for layer, rule in model.routers.rules.items()}
    several = len(set(rules.values())) > 1
    return {
        "n": len(counted),
        "tokens": int(counted.sum()),
        "k": found["chosen"].shape[-1],
        "experts": found["count"].shape[-1],
        "rule": json.dumps(rules) if several else next(iter(rules.values())),
        "ranked": int(all(rule.ranked for rule in model.routers.rules.values())),
        "left_out": "BOS and other special tokens",
        "bos": int(model.bos),
        **_adapter_attrs(model.routers),
    }


def _adapter_attrs(routers: "Routers | AdapterRouters") -> dict[str, Any]:
    """What is said of an adapter besides: its kind, the module read, and, of a dense one, how to read its numbers."""
    if not routers.name:
        return {}
    found = {"router": routers.family, "module": routers.name, "dense": int(routers.k == routers.experts)}
    if not found["dense"]:
        return found
    return found | {"primary": "gate", "sign": "share of all weight; an even router gives 1 / E, and load is always 1"}
