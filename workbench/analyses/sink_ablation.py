"""Whether sinks do anything: they are masked, removed or rescaled, and so are ordinary tokens, and the loss is seen."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, interval, resamples
from workbench.analyses._interventions import (
    Base,
    Change,
    Setting,
    Spots,
    ignore,
    loss_of,
    options,
    other_means,
    own_tokens,
    plain_run,
    random_spots,
    refuse_seen,
    spots_of,
)
from workbench.analyses._sinks import (
    Trace,
    documents,
    named_tokens,
    open_layers,
    rule_of,
    trace,
)
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model
    from workbench.models.scan import Layer

KINDS = ("primary", "secondary", "own")
ENOUGH = 20  # draws: with fewer no control band leaves 5 % outside
RESAMPLES = 1000


@dataclass
class _Kind:
    """What was measured of one kind of sink, an entry a sequence, in order."""

    spots: list[int] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    random: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)  # over spots [score or lifetime, before or after]
    moved: bool = False


@analysis(
    about="Sinks masked, removed or rescaled, beside the same done to ordinary tokens: what it costs in loss.",
    sign="next-token loss after less before, in nats a token; positive = the intervention hurts",
    primary="loss_change",
    paper="2512.22213 (Wong et al.): the norm of the MLP output at creation sets sink score and lifetime",
)
def sink_ablation(
    model: "Model",
    task: Task,
    *,
    what: Literal["mask", "remove", "rescale"] = "mask",
    own: str = "",
    amount: float = 0.5,
    unit: Literal["factor", "norm"] = "factor",
    length: int = 64,
    sequences: int = 32,
    cosine: float = 0.9,
    preset: Literal["relative", "paper"] = "relative",
    window: Literal["norm", "all"] = "norm",
    draws: int = 20,
    batch: int = 8,
) -> xr.Dataset:
    """Next-token loss before and after an intervention on the sinks, by kind, with random ordinary tokens as control.

    Sinks are found as `secondary_sinks` finds them. `mask`: no other query attends to the sink's key, a secondary
    sink's from the layer after its creation on, any other's in all layers. `remove`: the MLP output at the creation
    layer becomes the mean over ordinary tokens of the other sequences. `rescale`: that output is multiplied (`factor`)
    or given a norm. A control is the same on as many ordinary tokens (no sinks, after the primary) of the same
    sequence, in the same layers. The last token, whose key nobody else reads, is left alone, and so is a sequence that
    has fewer ordinary tokens than sinks.

    Args:
        model: a causal model of a family whose attention can be read.
        task: whose text is read.
        what: the intervention.
        own: further tokens, as positions or as their text, separated by spaces, like `5 the ,`; their creation layer is
            their own if they are sinks, else the primary's.
        amount: for `rescale`, the factor, or the norm.
        unit: what `amount` is.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        cosine: threshold of a sink.
        preset: lifetimes that tell the labels apart.
        window: the primary's layers, or all.
        draws: controls, 20 or more.
        batch: sequences in one forward pass.

    Returns:
        By kind of sink (of primary, secondary, own: those there are) [component]: `loss_change`, mean over sequences,
        with `_low` and `_high` (sequences resampled); `loss_change_null` with `_low`, `_high`, the controls' mean and
        central 95 %, `loss_change_random` [component, seed]; `p`, the share of controls that cost as much, counted with
        the sinks themselves; `load_bearing` (and the coordinate `verdict`): 1 where the change is above the controls'
        95 % and its own interval above 0. `loss`, `score` (attention from a query that sees it, over the layers the
        intervention can reach; 0: none) and `lifetime` (by the primary's direction in the plain run) [component,
        measured], before and after. `loss_change_prompt`, `spots` [component, prompt], `loss_prompt` [prompt] of the
        plain run, `label` [prompt, key_pos]. When stopped early: the sequences done.

    Raises:
        AnalysisError: for a model that is not causal, a token that is not there, or an intervention that did not take
            effect: a masked key still gets attention, or nothing changed in the last residuals.
        ModelError: when the family's attention cannot be read.
    """
    setting = Setting(
        model, rule_of(model, cosine, preset, window), _change(what, amount, unit, draws), draws, task.seed
    )
    tokens = documents(model, task, length, sequences, batch)
    if not model.scanner.causal():
        raise AnalysisError("This model is not causal, so it has no next-token loss; trace a causal language model.")
    mine, starts = own_tokens(model, tokens, own), range(0, sequences, batch)
    if what == "remove":
        setting = replace(setting, means=other_means(setting, tokens, mine, batch, task.name))
    kinds, loss, label = {name: _Kind() for name in KINDS}, [], []
    for start in track(starts, f"sink_ablation {task.name}, {what}", len(starts)):
        base = plain_run(setting, start, tokens[start : start + batch], mine[start : start + batch])
        loss.append(base.loss)
        label.append(base.sinks.label)
        for name in KINDS:
            _measure(setting, base, spots_of(name, base, setting.change), kinds[name])
    if not loss:
        raise Cancelled("Stopped before the first sequences were finished, so there is no result to keep.")
    ds = _dataset(kinds, np.concatenate(loss), np.concatenate(label), task.seed)
    ds = ds.assign_coords(token=named_tokens(model, tokens[: ds.sizes["prompt"]]))
    ds.attrs |= setting.rule.attrs | {
        "length": length,
        "n": ds.sizes["prompt"],
        "corruption": "none: clean text",
        "task": task.name,
        "what": what,
        "meaning": setting.change.meaning,
        "own": own,
        "draws": draws,
    }
    return ds


def _change(what: str, amount: float, unit: str, draws: int) -> Change:
    if draws < ENOUGH:
        raise AnalysisError(f"draws is {draws}; a 95 % band needs {ENOUGH} controls or more.")
    if not (np.isfinite(amount) and amount >= 0):
        raise AnalysisError(f"amount is {amount}; give a {unit} of 0 or more.")
    return Change(what, amount, unit)


def _measure(setting: Setting, base: Base, spots: Spots, kind: _Kind) -> None:
    """Intervene on the spots and on as many random ordinary tokens; keep what is measured."""
    rows = len(base.tokens)
    kind.spots += np.bincount(spots.row, minlength=rows).tolist()
    change, random, sums = np.zeros(rows), np.zeros((rows, setting.draws)), np.zeros((rows, 2, 2))
    if len(spots.row):
        after = _after(setting, base, spots)
        kind.moved |= _moved(base, after, spots, setting.change)
        change, sums = (
            loss_of(setting.model, after.last, base.tokens) - base.loss,
            _sums(setting, base, after, spots),
        )
        random = _controls(setting, base, spots)
    kind.change += change.tolist()
    kind.random += list(random)
    kind.sums += list(sums)


def _options(setting: Setting, base: Base, spots: Spots) -> dict[str, Any]:
    means = None if setting.means is None else setting.means[base.start : base.start + len(base.tokens)]
    return options(setting.model, base.tokens.shape, spots, setting.change, means)


def _controls(setting: Setting, base: Base, spots: Spots) -> np.ndarray:
    """Changes of loss [row, draw] with random ordinary tokens; each row draws by its own number in the whole."""
    model, found = setting.model, []
    generators = [np.random.default_rng([setting.seed, base.start + row]) for row in range(len(base.tokens))]
    for _ in range(setting.draws):
        other = _options(setting, base, random_spots(spots, base.ordinary, generators))
        last = model.scanner.run(model.tensor(base.tokens), ignore, **other)
        found.append(loss_of(model, last, base.tokens) - base.loss)
    return np.stack(found, 1)


def _after(setting: Setting, base: Base, spots: Spots) -> Trace:
    """The run with the intervention, cosines taken to the primary's directions in the plain run.

    Raises:
        AnalysisError: when a masked key still gets attention from others.
    """
    model, given = setting.model, _options(setting, base, spots)
    rows, primary = model.tensor(np.arange(len(base.tokens))), model.tensor(base.sinks.primary)
    watched = sorted(set(spots.pos.tolist())) if setting.change.what == "mask" else []

    def directions(layer: "Layer") -> "torch.Tensor":
        if watched:
            refuse_seen(layer, spots, watched)
        return base.directions[layer.index][rows, primary][:, None]

    return trace(model, base.tokens, directions, watched=watched, **given)


def _moved(base: Base, after: Trace, spots: Spots, change: Change) -> bool:
    """Whether the last residuals changed, or else, masked, the keys got no attention that could be taken away."""
    if bool((after.last != base.trace.last).any()):
        return True
    pairs = zip(base.trace.scores, after.scores, strict=True)
    return change.what == "mask" and all((a[spots.row, spots.pos] == b[spots.row, spots.pos]).all() for a, b in pairs)


def _sums(setting: Setting, base: Base, after: Trace, spots: Spots) -> np.ndarray:
    """Sums over each row's spots of sink score and lifetime, before and after, [row, 2, 2]."""
    sinks, rule = base.sinks, setting.rule
    since = spots.layer + (setting.change.what != "mask")  # an MLP's output is read from the next layer on
    layers = np.arange(rule.layers) >= since[:, None]
    scores = [found.stacked("scores")[spots.row, :, spots.pos] for found in (base.trace, after)]
    score = [(value * layers).sum(1) / np.maximum(layers.sum(1), 1) for value in scores]
    near = after.stacked("cosines")[spots.row, 0, :, spots.pos]
    still = (abs(near) > rule.cosine) & open_layers(sinks.start, sinks.stop, rule)[spots.row]
    lifetime = [sinks.inside[spots.row, :, spots.pos].sum(1), still.sum(1)]
    found = np.zeros((len(base.loss), 2, 2))
    np.add.at(found, spots.row, np.array([score, lifetime]).transpose(2, 0, 1))
    return found


def _dataset(kinds: dict[str, _Kind], loss: np.ndarray, label: np.ndarray, seed: int) -> xr.Dataset:
    kinds = {name: kind for name, kind in kinds.items() if sum(kind.spots)}
    if not kinds:
        raise AnalysisError("No sequence has an ordinary token to compare the sinks with; read longer sequences.")
    for name, kind in kinds.items():
        if not kind.moved:
            raise AnalysisError(
                f"The intervention on the {name} sink did not take effect: the last residuals are the same to the last "
                "bit, so nothing was measured; choose another intervention or amount, or trace another family."
            )
    columns = [_summary(kind, loss, seed) for kind in kinds.values()]
    found = {name: np.array([column[name] for column in columns]) for name in columns[0]}
    nats, p = {"units": "nats"}, {"long_name": "share of controls that cost as much", "units": "share"}
    told = {"long_name": "change of next-token loss", "signed": 1, **nats}
    random = {"long_name": "change of loss with random tokens", "signed": 1, **nats}
    part, pair = "component", ("component", "measured")
    variables: dict[str, tuple] = {
        name: (part, found[name], random if "null" in name else told) for name in found if name.startswith("loss_")
    }
    variables |= {
        "loss_change_random": ((part, "seed"), found["random"], random),
        "loss_change_prompt": ((part, "prompt"), np.array([kind.change for kind in kinds.values()]), told),
        "p": (part, found["p"], p),
        "load_bearing": (part, found["load_bearing"], {"long_name": "the change is above the controls' 95 %"}),
        "loss": (pair, found["loss"], {"long_name": "next-token loss", **nats}),
        "score": (pair, found["score"], {"long_name": "sink score", "units": "probability"}),
        "lifetime": (pair, found["lifetime"], {"long_name": "lifetime as a sink", "units": "layers"}),
        "spots": ((part, "prompt"), np.array([kind.spots for kind in kinds.values()]), {"long_name": "tokens changed"}),
        "loss_prompt": ("prompt", loss, {"long_name": "next-token loss of the plain run", **nats}),
        "label": (("prompt", "key_pos"), label, {"long_name": "kind of sink"}),
    }
    coords = {part: list(kinds), "measured": ["before", "after"], "seed": np.arange(found["random"].shape[1])}
    coords |= {"prompt": np.arange(len(loss)), "key_pos": np.arange(label.shape[1])}
    verdict = np.where(found["load_bearing"], "load-bearing", "idle")
    return xr.Dataset(variables, coords=coords | {"verdict": (part, verdict)})


def _summary(kind: _Kind, loss: np.ndarray, seed: int) -> dict[str, Any]:
    """One kind's numbers, over the sequences that have such tokens."""
    spots = np.array(kind.spots)
    there = spots > 0
    change, random = np.array(kind.change)[there], np.array(kind.random)[there].mean(0)
    low, high = interval(resamples(len(change), RESAMPLES, seed) @ change)
    null_low, null_high = interval(random)
    score, lifetime = np.sum(kind.sums, 0) / spots.sum()
    before = loss[there].mean()
    return {
        "loss_change": change.mean(),
        "loss_change_low": low,
        "loss_change_high": high,
        "loss_change_null": random.mean(),
        "loss_change_null_low": null_low,
        "loss_change_null_high": null_high,
        "random": random,
        "p": (1 + (random >= change.mean()).sum()) / (1 + len(random)),
        "load_bearing": np.int8(change.mean() > null_high and low > 0),
        "loss": (before, before + change.mean()),
        "score": score,
        "lifetime": lifetime,
    }
