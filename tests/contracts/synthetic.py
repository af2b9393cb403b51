"""Results built by hand, one of each shape that an analysis gives; made without a model."""

import functools
import json

import numpy as np
import xarray as xr

from workbench.models.graph import Graph
from workbench.schema import ATTRS, check, concat

LAYERS, HEADS, KEYS, PROMPTS = 2, 3, 4, 2
TASKS = ["one <b>task</b>", "another"]
GRAPH = Graph(LAYERS, HEADS, HEADS)
ENDS = {"": 0, "_low": -1, "_high": 1}
EDGES = {"layers": LAYERS, "heads": HEADS, "kv_heads": HEADS, "parallel": 0}


def finish(variables: dict, coords: dict, primary: str, **attrs) -> xr.Dataset:
    """A dataset that keeps the schema, with made-up attributes."""
    ds = xr.Dataset(
        {
            name: (dims, values, {"long_name": name.replace("_", " "), "units": "1"})
            for name, (dims, values) in variables.items()
        },
        coords=coords,
    )
    ds.attrs = {name: "made up" for name in ATTRS} | {"primary": primary, "task": TASKS[0], "n": 5} | attrs
    return check(ds)


def numbers(*shape: int) -> np.ndarray:
    """Different values between -0.5 and 0.9."""
    return np.linspace(-0.5, 0.9, int(np.prod(shape))).reshape(shape)


def effects(task: bool = False) -> xr.Dataset:
    """As head_patching gives it, or with a task dimension."""
    dims, shape = ("layer", "head"), (LAYERS, HEADS)
    coords = {"layer": range(LAYERS), "head": range(HEADS)}
    if task:
        dims, shape, coords = ("task", *dims), (2, *shape), {"task": TASKS, **coords}
    values = numbers(*shape)
    ends = {"effect": (dims, values), "effect_low": (dims, values - 0.1), "effect_high": (dims, values + 0.1)}
    ds = finish(ends, coords, "effect", analysis="head_patching", metric_name="logit_diff")
    ds["effect"].attrs["signed"] = 1
    return ds


def overlaps() -> xr.Dataset:
    """As overlap gives it."""
    curve = np.array([0.0, 0.5, 1.0])
    names = [f"{m}{end}" for m in ("iou", "weighted") for end in ("", "_null", "_null_high", "_within", "_within_high")]
    variables = {name: ("size", curve * (1 - 0.05 * index)) for index, name in enumerate(names)}
    variables |= {f"{m}_{null}_p": ("size", curve) for m in ("iou", "weighted") for null in ("null", "within")}
    maps = effects(task=True)
    variables |= {name: (maps[name].dims, maps[name].values) for name in maps.data_vars}
    member = (maps["effect"].values > 0.1).astype(np.int8)
    variables |= {"member": (("task", "layer", "head"), member), "shared": (("layer", "head"), member.min(0))}
    coords = {**maps.coords, "size": [1, 3, 6], "fraction": ("size", [1 / 6, 0.5, 1.0])}
    return finish(variables | pairs(curve), coords | {"measured": TASKS}, "effect", analysis="overlap", chosen=3)


def pairs(curve: np.ndarray) -> dict:
    """What an overlap says of pairs of tasks, and the ceiling."""
    found = {f"{measure}_ceiling": ("size", 0.5 + curve / 2) for measure in ("iou", "weighted")}
    found |= {"pair": (("task", "measured"), np.array([[0.9, 0.5], [0.5, 0.8]]))}
    found |= {"pair_null": (("task", "measured"), np.array([[0.0, 0.2], [0.2, 0.0]]))}
    return found | {"accuracy": ("task", np.array([0.9, 0.7]))}


def emerging() -> xr.Dataset:
    """Overlaps of heads at three checkpoints, joined; the steps are names, as keys of a dictionary often are."""
    found = {}
    for number, step in enumerate(("0", "100", "900")):
        ds = overlaps()
        for name in ("iou", "effect", "accuracy"):
            ds[name] = ds[name] * (number + 1) / 3
        found[step] = ds
    return concat(found, "checkpoint")


def edge_scores(task: bool = False) -> dict:
    """Scores of all edges, one set a task."""
    dims, shape = ("receiver", "component"), GRAPH.valid.shape
    if task:
        dims, shape = ("task", *dims), (2, *shape)
    scores = np.random.default_rng(0).normal(size=shape) * GRAPH.valid
    return {f"score{end}": (dims, scores + 0.1 * shift * GRAPH.valid) for end, shift in ENDS.items()}


def edges() -> xr.Dataset:
    """As edge_attribution gives it."""
    scores = edge_scores()
    score = scores["score"][1]
    chosen = np.argsort(-abs(score), axis=None)[:12]
    names = [GRAPH.name(*np.unravel_index(edge, score.shape)) for edge in chosen]
    exact = score.flat[chosen] * np.linspace(1.2, 0.6, len(chosen))
    variables = scores | {"approximate": ("edge", score.flat[chosen]), "exact": ("edge", exact)}
    variables |= {"valid": (("receiver", "component"), GRAPH.valid.astype(np.int8))}
    variables |= {"effect": (("layer", "head"), numbers(LAYERS, HEADS))}
    coords = {"receiver": GRAPH.readers, "component": GRAPH.writers, "edge": names}
    coords |= {"layer": range(LAYERS), "head": range(HEADS)}
    extra = {"method": "gradient at the <i>corrupted</i> run", "spearman": 0.87, "metric_name": "logit_diff"}
    return finish(variables, coords, "score", analysis="edge_attribution", **EDGES, **extra)


def edge_overlaps() -> xr.Dataset:
    """As overlap of edges gives it, without its curves."""
    scores = edge_scores(task=True)
    member = (abs(scores["score"][1]) > 0.6).astype(np.int8)
    dims = ("receiver", "component")
    variables = scores | {"member": (("task", *dims), member), "shared": (dims, member.min(0))}
    coords = {"task": TASKS, "receiver": GRAPH.readers, "component": GRAPH.writers}
    coords |= {"measured": TASKS, "size": [1, 3, 6]}
    pair = pairs(np.array([0.0, 0.5, 1.0]))
    return finish(variables | pair, coords, "score", analysis="overlap", chosen=20, **EDGES)


def faithful() -> xr.Dataset:
    """As faithfulness gives it."""
    count = int(GRAPH.valid.sum())
    size, dims = np.array([1, 3, 10, 30, count]), ("receiver", "component")
    score = edge_scores()["score"][1]
    rank = np.full(score.size, -1)
    rank[np.argsort(-np.where(GRAPH.valid, abs(score), -1), axis=None)[:count]] = np.arange(count)
    middle = {"": np.array([-0.1, 0.3, 0.7, 1.1, 1.0]), "_null": np.array([0.0, 0.05, 0.1, 0.4, 1.0])}
    room = np.array([0.1, 0.1, 0.1, 0.1, 0.0])
    variables = {f"faithfulness{k}{end}": ("size", v + n * room) for k, v in middle.items() for end, n in ENDS.items()}
    variables |= {"score": (dims, score), "rank": (dims, rank.reshape(score.shape))}
    variables |= {"valid": (dims, GRAPH.valid.astype(np.int8))}
    coords = {"size": size, "fraction": ("size", size / count), "receiver": GRAPH.readers, "component": GRAPH.writers}
    areas = {"cpr": 0.81, "cmd": 0.25, "cpr_null": json.dumps([0.2, 0.3, 0.41]), "scores": "inputs"}
    named = {"ablation": "resample", "meaning": "each edge outside carries <i>another</i> value"}
    return finish(variables, coords, "faithfulness", analysis="faithfulness", **EDGES, **areas, **named)


def ablated(task: str = TASKS[0], shift: float = 0.0) -> xr.Dataset:
    """As ablation gives it, of three sets of heads."""
    part, lost = "component", np.array([0.82, 0.2, 0.0]) - shift
    values = {"lost": lost, "lost_low": lost - 0.1, "lost_high": lost + 0.1, "lost_null": [0.1, 0.15, 0.0]}
    values |= {"lost_null_high": [0.31, 0.4, 0.0], "accuracy": [0.3, 0.8, 0.95], "accuracy_null": [0.9, 0.85, 0.95]}
    variables = {name: (part, np.array(value)) for name, value in values.items()}
    variables |= {"lost_random": ((part, "seed"), np.array([[0.05, 0.15], [0.1, 0.2], [0.0, 0.0]]))}
    heads = ("component", ["L0H1,L1H2", "L1H0", ""])
    coords = {part: ["shared <b>heads</b>", "only one", "none"], "seed": [0, 1], "heads": heads}
    named = {"ablation": "mean", "meaning": "each head ablated gives its mean output", "accuracy_clean": 0.95 - shift}
    return finish(variables, coords, "lost", analysis="ablation", **named | {"task": task})


def ablated_both() -> xr.Dataset:
    """Ablations measured on two tasks, joined."""
    return concat({TASKS[0]: ablated(), TASKS[1]: ablated(TASKS[1], 0.3)}, "measured")


def roles() -> xr.Dataset:
    """As head_roles gives it; L0H1 and L1H2 have a role."""
    score = np.full((3, LAYERS, HEADS), 0.05)
    score[0, 0, 1], score[1, 0, 1], score[1, 1, 2], score[2, 1, 2], score[2, 0, 0] = 0.9, 0.4, 0.5, 0.2, -0.1
    role = np.where(score.max(0) >= 0.3, score.argmax(0), -1)
    dims = ("component", "layer", "head")
    variables = {"score": (dims, score), "role": (dims[1:], role.astype(np.int8))}
    variables |= {"score_null": ("component", np.array([0.04, 0.02, 0.0]))}
    names = ["previous token", "induction", "mover <b>"]
    coords = {"component": names, "meaning": ("component", names), "layer": range(LAYERS), "head": range(HEADS)}
    return finish(variables, coords, "score", analysis="head_roles", threshold=0.3)


def repaired() -> xr.Dataset:
    """As repair gives it."""
    drawn = np.array([0.4, 0.45, 0.5, 0.4])
    variables = {"accuracy": ("component", np.array([0.45, 0.85])), "accuracy_random": ("seed", drawn)}
    variables |= {"metric": ("component", np.array([0.2, 1.9])), "metric_random": ("seed", drawn)}
    named = {"edited": "L0H1,L1H2", "weights": "color_1=1, <i>2</i>=1", "position": "END"}
    coords = {"component": ["unchanged", "edited"], "seed": range(4)}
    return finish(variables, coords, "accuracy", analysis="repair", p=0.2, mended=21, broken=1, **named)


def path_effects() -> xr.Dataset:
    """As path_patching gives it."""
    ds = effects(task=True).rename(task="receiver").assign_coords(receiver=["logits@END", "L1H2.q@END"])
    return check(ds.assign_attrs(analysis="path_patching"))


def sinks() -> xr.Dataset:
    """As sink_scores gives it."""
    by_head, heads = ("layer", "head", "key_pos"), ("layer", "head")
    alpha = abs(numbers(LAYERS, HEADS, KEYS))
    single = np.stack([alpha, alpha[:, ::-1]])
    variables = {f"alpha{end}": (by_head, alpha + 0.02 * n) for end, n in ENDS.items()}
    measured = ("sink_rate", "value_norm", "key_norm", "query_key_cosine")
    variables |= {name: (by_head, alpha * (1 - 0.1 * index)) for index, name in enumerate(measured)}
    variables |= {"alpha_null": ("key_pos", np.full(KEYS, 0.25)), "alpha_prompt": (("prompt", *by_head), single)}
    rate = np.array([0.9, 0.4, 0.2, 0.1])
    for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.05)):
        variables[f"sink_rate_mean{end}"] = ("key_pos", rate + shift)
    variables |= {"residual_norm": (("layer", "key_pos"), alpha[:, 0]), "output_norm": (heads, 9 * alpha[..., 0])}
    kinds = np.stack([alpha[..., 0], alpha[..., 3] / 2], -1)
    variables |= {f"kind_alpha{end}": ((*heads, "component"), kinds + 0.03 * n) for end, n in ENDS.items()}
    variables |= {"kind_alpha_null": ("component", np.array([0.3, 0.2]))}
    variables |= {"kind_share": ("component", np.array([0.25, 0.75]))}
    variables |= {"control_alpha": (("measured", *heads), np.stack([alpha[..., 0], alpha[..., 1], alpha[..., 2]]))}
    variables |= {"control_rate": ("measured", np.array([0.91, 0.52, 0.13]))}
    coords = {"prompt": range(PROMPTS), "layer": range(LAYERS), "head": range(HEADS), "key_pos": range(KEYS)}
    coords |= {"component": ["BOS", "<i>content"], "measured": ["text", "random tokens", "one repeated token"]}
    token = (("prompt", "key_pos"), np.array([["<bos>", "a", "a", "<i>"]] * PROMPTS))
    extra = {"epsilon": 0.3, "length": KEYS, "bos": 1, "folding": "raw", "analysis": "sink_scores"}
    return finish(variables, {**coords, "token": token}, "alpha", **extra)


def growing_sinks() -> xr.Dataset:
    """Sink scores at three checkpoints, joined, not in their order; L1H2 comes to rest."""
    found = {}
    for step, share in (("0", 0.1), ("900", 1.0), ("100", 0.4)):
        ds = sinks()
        for name in [name for name in ds.data_vars if str(name).startswith(("alpha", "sink_rate_mean"))]:
            ds[name] = ds[name] * share
        found[step] = ds
    return concat(found, "checkpoint")


def averages() -> xr.Dataset:
    """As mean_attention gives it; L1H2 looks most at the first token."""
    dims = ("layer", "head", "query_pos", "key_pos")
    pattern = patterns()["pattern"].values.copy()
    pattern[1, 2] = np.eye(KEYS)[0]
    score = np.tril(numbers(*pattern.shape))
    variables = {"score": (dims, score), "score_sd": (dims, abs(score) / 2), "pattern": (dims, pattern)}
    variables |= {"pattern_sd": (dims, pattern / 4)}
    coords = {dim: np.arange(size) for dim, size in zip(dims, pattern.shape, strict=True)}
    ds = finish(variables, coords, "score", causal=1, analysis="mean_attention")
    ds["score"].attrs["signed"] = 1
    return ds


def massive(layer: int = 1) -> xr.Dataset:
    """As massive_activations gives it; overwritten in the output of `layer`, nowhere if that is negative."""
    ranks, method = ("layer", "measured"), ["zero", "mean", "zero, other dimensions", "zero, other tokens"]
    curve, change = np.array([[3.0, 2.0], [900.0, 4.0]]), np.array([0.5, 0.01, 0.02, -0.01]) * (layer >= 0)
    values = {"magnitude": (ranks, curve), "median": ("layer", curve[:, 0] / 500), "limit": ("layer", curve[:, 1] * 90)}
    values |= {"massive_share": ("layer", np.array([0.0, 0.8])), "loss_change": ("method", change)}
    variables = {
        f"{name}{end}": (dims, v * (1 + 0.1 * n)) for name, (dims, v) in values.items() for end, n in ENDS.items()
    }
    variables |= {name: (ranks, np.array([[1, 2], [7, 2]])) for name in ("dimension", "position")}
    variables |= {f"{name}_share": (ranks, np.full((2, 2), 0.75)) for name in ("dimension", "position")}
    variables |= {
        "magnitude_null": (ranks, curve / 100),
        "top_token": (ranks, np.array([["<i>", "a"], ["<bos>", "a"]])),
    }
    variables |= {name: ("method", np.array([1.0, 1.0, 1.0, 0.9])) for name in ("edited", "moved")}
    coords = {
        "layer": range(2),
        "measured": ["largest 1", "largest 2"],
        "method": method,
        "meaning": ("method", method),
    }
    named = {"rule": "<i>large", "layer_edited": layer, "loss": 2.5, "analysis": "massive_activations"}
    return finish(variables, coords, "magnitude", **named)


def resting(task: bool = False) -> xr.Dataset:
    """As dormant_heads gives it; with a task dimension L0H1 is dormant on the first and active on the second."""
    dims, shape, state = ("layer", "head"), (LAYERS, HEADS), np.array([[3, 1, 0], [2, 2, 1]])
    coords = {"layer": range(LAYERS), "head": range(HEADS)}
    if task:
        dims, shape, coords = ("task", *dims), (2, *shape), {"task": TASKS, **coords}
        state = np.stack([state, [[2, 2, 0], [2, 2, 1]]])
    measured = ("dormancy", "dormancy_at", "value_drain", "output_norm", "lost", "lost_null")
    variables = {
        f"{name}{end}": (dims, numbers(*shape) + 0.1 * index + 0.05 * n)
        for index, name in enumerate(measured)
        for end, n in ENDS.items()
    }
    variables |= {name: ((), np.array(0.07)) for name in ("dormancy_null", "dormancy_at_null")}
    variables |= {"limit": (dims, np.full(shape, 0.02)), "state": (dims, state.astype(np.int8))}
    named = {"epsilon": 0.3, "length": 12, "margin": 0.02, "position": "END", "analysis": "dormant_heads"}
    return finish(variables, coords, "dormancy", states=json.dumps({n: f"state <i>{n}" for n in range(4)}), **named)


def parked() -> xr.Dataset:
    """As sink_aware_patching gives it; L1H2 is parked."""
    dims, plain = ("layer", "head"), numbers(LAYERS, HEADS)
    left = plain * np.array([[1, 1, 0.5], [1, 1, 0]])
    found = {"effect": left, "effect_plain": plain, "effect_sink": plain - left}
    found |= {"sink_clean": abs(plain), "sink_corrupted": abs(left)}
    variables = {f"{name}{end}": (dims, v + 0.1 * n) for name, v in found.items() for end, n in ENDS.items()}
    variables |= {"sink_null": ((), np.array(0.1)), "parked": (dims, (left == 0).astype(np.int8))}
    coords = {"layer": range(LAYERS), "head": range(HEADS)}
    named = {"margin": 0.02, "within": 0.25, "metric_name": "logit_diff", "analysis": "sink_aware_patching"}
    return finish(variables, coords, "effect", **named | {"title": "a <b>title"})


def patterns() -> xr.Dataset:
    """As attention gives it: uniform over the visible keys, a little different in every head."""
    uniform = np.tril(np.ones((KEYS, KEYS))) / np.arange(1, KEYS + 1)[:, None]
    pattern = np.broadcast_to(uniform, (LAYERS, HEADS, KEYS, KEYS)).copy()
    pattern[1, 2] = np.eye(KEYS)
    dims = ("layer", "head", "query_pos", "key_pos")
    coords = {dim: np.arange(size) for dim, size in zip(dims, pattern.shape, strict=True)}
    token = ("key_pos", np.array(["<bos>", "a", "a", "<i>"]))
    coords |= {"token": token, "position": ("key_pos", np.array(["", "S1,IO", "", "END"]))}
    return finish({"pattern": (dims, pattern)}, coords, "pattern", prompt=0, analysis="attention")


def leveled() -> xr.Dataset:
    """As secondary_sinks gives it, of 3 layers; two tokens of sequence 0 are secondary sinks."""
    level, token = ("component", "layer", "size"), ("prompt", "key_pos")
    counts = np.zeros((3, 3, 3))
    counts[0, 0, 2], counts[1, 1, 1] = PROMPTS, 2
    alignment = np.array([[0.1, 0.99], [-0.05, 0.2]])
    variables = {"level_count": (level, counts.astype(int)), "level_null": (level, counts / 4)}
    variables |= {"count": ("component", np.array([0, 2, 0]))}
    variables |= {"count_null": (("component", "seed"), np.array([[0, 0], [1, 0], [0, 2]]))}
    variables |= {"label": (token, np.array([[1, 2, 2, 0], [1, 0, 0, 0]], dtype=np.int8))}
    variables |= {"creation": (token, np.array([[0, 1, 1, -1], [0, -1, -1, -1]]))}
    variables |= {"lifetime": (token, np.array([[3, 2, 2, 0], [3, 0, 0, 0]]))}
    variables |= {"mlp_norm": (token, np.array([[9.0, 4.0, 5.0, 0.0], [8.0, 0.0, 0.0, 0.0]]))}
    variables |= {"score": (token, np.array([[0.8, 0.3, 0.4, 0.0], [0.7, 0.0, 0.0, 0.0]]))}
    for end, value in (("", 0.5), ("_low", 0.1), ("_high", 0.8), ("_p", 0.03)):
        variables |= {f"spearman_{name}{end}": ((), np.array(value)) for name in ("lifetime", "score")}
    variables |= {f"alignment{end}": (("measured", "module"), alignment + 0.01 * n) for end, n in ENDS.items()}
    variables |= {"alignment_n": ("measured", np.array([2, 7]))}
    coords = {"component": ["primary", "secondary", "noise"], "layer": range(3), "size": [1, 2, 3], "seed": [0, 1]}
    coords |= {"prompt": range(PROMPTS), "key_pos": range(KEYS), "measured": ["sink", "control"]}
    coords |= {"module": ["input", "<b>output"], "token": (token, np.array([["<bos>", "a", "a", "<i>"]] * PROMPTS))}
    named = {"rule": "sink: <i>near</i>", "controls": "same <b>ids</b>", "sinks": 2, "analysis": "secondary_sinks"}
    return finish(variables, coords, "level_count", **named)


def unsunk() -> xr.Dataset:
    """As sink_ablation gives it; the primary is idle, the secondary sinks are load-bearing."""
    part, drawn, change = "component", np.array([[-0.1, 0.0, 0.2], [0.1, 0.0, 0.1]]), np.array([0.1, 0.9])
    variables = {f"loss_change{end}": (part, change + 0.05 * n) for end, n in ENDS.items()}
    variables |= {f"loss_change_null{end}": (part, drawn.mean(1) + 0.1 * n) for end, n in ENDS.items()}
    variables |= {"loss_change_random": ((part, "seed"), drawn), "p": (part, np.array([0.5, 0.25]))}
    variables |= {"load_bearing": (part, np.array([0, 1], dtype=np.int8))}
    pair = {"loss": np.array([[2.0, 2.1], [2.5, 3.4]]), "score": np.array([[0.8, 0.1], [0.3, 0.0]])}
    pair["lifetime"] = np.array([[3.0, 3.0], [2.0, 0.5]])
    variables |= {name: ((part, "measured"), values) for name, values in pair.items()}
    coords = {part: ["primary", "<i>secondary"], "seed": range(3), "measured": ["before", "after"]}
    named = {"what": "mask", "meaning": "no <b>other</b> token attends", "analysis": "sink_ablation"}
    return finish(variables, coords, "loss_change", **named)


def pushed() -> xr.Dataset:
    """As sink_directions gives it: the mean and one component; an output of the mean always has the same direction."""
    by, size = ("component", "measured", "size"), np.array([1.0, 4.0])
    cosine = np.array([[[1.0, 1.0], [1.0, 1.0]], [[0.2, 0.9], [-0.1, -0.3]]])
    norm = np.array([3.0, 1.0])[:, None, None] * np.array([1.0, 0.5])[:, None] * size
    variables = {"cosine": (("module", *by), np.stack([cosine, cosine / 2])), "norm": (by, norm)}
    variables |= {f"cosine_null{end}": (("module", "size"), np.full((2, 2), 0.4) * n) for end, n in ENDS.items()}
    variables |= {f"norm_null{end}": ("size", size * (1 + 0.1 * n)) for end, n in ENDS.items()}
    variables |= {"explained": ("component", np.array([0.0, 0.41])), "extent": ("component", np.array([0.9, 0.3]))}
    for end, n in ENDS.items():
        variables |= {f"sink_cosine{end}": ("module", np.array([0.9, 0.95]) + 0.01 * n)}
        variables |= {f"sink_norm{end}": ((), np.array(5.0 + n))}
    coords = {"module": ["block output", "MLP output"], "component": ["mean", "PC1<b>"], "measured": ["+", "-"]}
    coords |= {"size": [0, 1], "alpha": ("size", [0.5, 1.0])}
    named = {"rule": "sink: <i>near</i>", "layer": 1, "kind": "any", "among": "balanced", "sinks": 7, "sample": 12}
    return finish(variables, coords, "cosine", analysis="sink_directions", **named)


def unstaffed() -> xr.Dataset:
    """As expert_ablation gives it; L0E1 is lost more than random experts are, L1E2 is not used."""
    dims, values = ("layer", "expert"), np.array([[0.0, 0.6, 0.1], [0.2, -0.1, 0.0]])
    variables = {}
    for name, scale in (("lost", 1.0), ("loss_change", 0.5)):
        variables |= {f"{name}{end}": (dims, scale * values + 0.05 * n) for end, n in ENDS.items()}
        variables |= {f"{name}_null{end}": (dims, scale * np.full((2, 3), 0.1 + 0.15 * n)) for end, n in ENDS.items()}
        variables |= {f"{name}_random": ((*dims, "seed"), np.zeros((2, 3, 2))), f"{name}_p": (dims, abs(values))}
    variables |= {name: (dims, np.array([[0.5, 0.9, 0.6], [0.7, 0.3, 0.0]])) for name in ("load", "load_text")}
    variables |= {f"metric_change{end}": (dims, -values + 0.05 * n) for end, n in ENDS.items()}
    coords = {"layer": [0, 1], "expert": range(3), "seed": range(2)}
    ds = finish(variables, coords, "lost", mode="close", meaning="its <b>logit</b>", analysis="expert_ablation")
    for name in ("lost", "loss_change"):
        ds[name].attrs["signed"] = 1
    return ds


def operated() -> xr.Dataset:
    """As route_surgery gives it, of two edits."""
    pair, drawn = {"metric": [2.0, 0.5], "probability": [0.9, 0.4], "loss": [3.0, 3.25]}, np.array([-0.1, 0.0, 0.05])
    variables = {}
    for name, values in pair.items():
        change = values[1] - values[0]
        variables |= {name: ("measured", np.array(values)), f"{name}_change_random": ("seed", drawn)}
        variables |= {f"{name}_prompt": (("measured", "prompt"), np.outer(values, [0.5, 1.5]))}
        variables |= {f"{name}_change{end}": ((), np.array(change + 0.1 * n)) for end, n in ENDS.items()}
        variables |= {f"{name}_change_null{end}": ((), np.array(0.1 * n)) for end, n in ENDS.items()}
        variables |= {f"{name}_change_p": ((), np.array(0.25))}
    variables |= {"weight": (("component", "measured"), np.array([[0.4, 0.0], [0.1, 1.0]]))}
    variables |= {"top_token": (("measured", "size"), np.array([["<b>a", "\n"], [" ", "c"]]))}
    variables |= {"top_probability": (("measured", "size"), np.array([[0.75, 0.125], [0.5, 0.25]]))}
    coords = {"measured": ["before", "after"], "prompt": range(2), "size": [1, 2], "seed": range(3)}
    coords |= {"component": ["L0E1=mute", "L1E2=force@<i>S2"], "control": ("seed", ["L0E<b>", "x", "y"])}
    named = {"edits": "L0E1=mute; L1E2=force@<i>S2", "shown": "a <b>prompt", "code": "model.routers.run(tokens)"}
    named |= {"continuation_before": "<b>one", "continuation_after": "two", "analysis": "route_surgery"}
    return finish(variables, coords, "metric_change", **named)


def rerouted() -> xr.Dataset:
    """As routing_circuit gives it."""
    at, by, node = ("pos", "layer"), ("measured", "layer"), ("layer", "expert")
    variables: dict = {"margin": (at, numbers(3, 2) + 1), "weight_moved": (at, abs(numbers(3, 2)))}
    for end, n in ENDS.items():
        variables |= {f"changed{end}": (at, np.linspace(0.2, 0.8, 6).reshape(3, 2) + 0.1 * n)}
        variables |= {f"carried{end}": (by, numbers(2, 2) + 0.1 * n), f"carried_null{end}": (by, numbers(2, 2) / 9 + n)}
        variables |= {f"carried_all{end}": ("measured", np.array([0.7, 0.6]) + 0.1 * n)}
        variables |= {f"carried_all_null{end}": ("measured", np.array([0.1, 0.2]) + 0.1 * n)}
        variables |= {f"effect{end}": (node, numbers(2, 3) + 0.1 * n)}
        variables |= {f"effect_{name}{end}": ("layer", np.array([0.3, 0.8]) + 0.1 * n) for name in ("mlp", "sum")}
    variables |= {"carried_p": (by, np.full((2, 2), 0.5)), "carried_all_p": ("measured", np.array([0.25, 0.5]))}
    variables |= {
        "carried_random": ((*by, "seed"), np.zeros((2, 2, 3))),
        "changed_tokens": ("layer", np.array([0.1, 0.2])),
    }
    variables |= {"carried_all_random": (("measured", "seed"), np.zeros((2, 3)))}
    coords = {"pos": ["S1", "<i>S2", "other tokens"], "layer": [0, 1], "expert": range(3), "seed": range(3)}
    coords |= {"measured": ["restored", "removed"]}
    return finish(variables, coords, "carried", analysis="routing_circuit", ranked=1)


def routed() -> xr.Dataset:
    """As routing gives it, of 2 layers with 3 experts, of which each token goes to 2; two sequences are shown."""
    node, pair, kind, at = ("layer", "expert"), ("layer", "expert", "receiver"), ("measured", "layer"), 0.05
    load = np.array([[1.0, 0.75, 0.25], [0.5, 0.5, 1.0]])
    variables: dict = {f"load{end}": (node, load + at * n) for end, n in ENDS.items()}
    variables |= {f"load_null{end}": ((), np.array(2 / 3 + at * n)) for end, n in ENDS.items()}
    together = load[:, None] * np.array([1.0, 0.5, 0.25])[:, None]
    variables |= {f"coactivation{end}": (pair, together + at * n) for end, n in ENDS.items()}
    variables |= {"coactivation_null": (pair, together - np.array([0.0, 0.03, 0.2]))}
    for index, end in enumerate(("", "_random_high", "_random", "_null_high", "_null")):
        variables |= {f"specialisation{end}": (kind, np.array([[0.9, 0.8], [0.7, 0.6]]) - 0.1 * index)}
    few, rng = ("component", "pos", "layer"), np.random.default_rng(3)
    probability = rng.dirichlet(np.ones(3), (2, 4, 2))
    order = np.argsort(-probability, -1)[..., :2]
    weight = np.take_along_axis(probability, order, -1)
    variables |= {"shown_token": (few[:2], np.array([["<bos>", "a", " ", "<i>"], ["<bos>", "b", "c", "\n"]]))}
    variables |= {"shown_chosen": ((*few, "size"), order.astype(np.int16)), "shown_weight": ((*few, "size"), weight)}
    variables |= {"shown_probability": ((*few, "expert"), probability)}
    variables |= {name: (few, probability[..., 0]) for name in ("shown_margin", "shown_entropy")}
    coords = {"layer": [1, 3], "expert": range(3), "receiver": range(3), "component": [0, 1], "pos": range(4)}
    coords |= {"size": [1, 2], "measured": ["input token", "<b>next"]}
    named = {"k": 2, "experts": 3, "tokens": 6, "left_out": "<b>BOS", "analysis": "routing", "rule": "softmax x 1"}
    return finish(variables, coords, "load", **named)


def routed_tasks() -> xr.Dataset:
    """As task_routing gives it, of 2 tasks."""
    one, other = routed(), routed()
    keep = ["load", "load_low", "load_high", "load_null"]
    variables: dict = {
        name: (("task", "layer", "expert"), np.stack([one[name], other[name][::-1]])) for name in keep[:3]
    }
    variables |= {"load_null": ((), one["load_null"].values)}
    variables |= {n: (v.dims, v.values) for n, v in one.data_vars.items() if str(n).startswith("specialisation")}
    alike = np.array([[[0.9, 0.4], [0.4, 0.8]], [[0.95, 0.7], [0.7, 0.85]]])
    for index, end in enumerate(("", "_null", "_null_low")):
        variables |= {f"similarity{end}": (("layer", "task", "receiver"), alike - 0.01 * index)}
    coords = {"task": TASKS, "receiver": TASKS, "layer": [1, 3], "expert": range(3), "measured": one["measured"].values}
    named = {"k": 2, "tokens": 12, "left_out": "BOS", "analysis": "task_routing", "title": f"routing of {TASKS[0]}"}
    return finish(variables, coords, "specialisation", **named)


def drifting() -> xr.Dataset:
    """As routing_drift gives it, its checkpoints not in their order."""
    by, step = ("checkpoint", "layer"), np.array([[0.2, 0.3], [1.0, 1.0], [0.6, 0.7]])
    variables: dict = {}
    for name, values in {"saturation": step, "overlap": 0.5 + step / 2, "divergence": 1 - step}.items():
        variables |= {f"{name}{end}": (by, values + 0.02 * n) for end, n in ENDS.items()}
        variables |= {f"{name}_null": (by, values / 2)}
    coords = {"checkpoint": ["0", "900", "100"], "layer": [1, 3]}
    named = {"reference": "<b>900", "uniform": 0.25, "tokens": 12, "analysis": "routing_drift"}
    return finish(variables, coords, "saturation", **named)


def alike() -> xr.Dataset:
    """As expert_similarity gives it, of 2 layers with 3 experts."""
    pair, each = ("layer", "expert", "receiver"), ("layer", "expert", "module")
    same = np.stack([np.eye(3), np.eye(3) * 0.5 + 0.5])
    variables: dict = {"cka": (pair, same), "cosine": (pair, same / 2), "cosine_null_high": ((), np.array(0.0123))}
    ends = {"null": 0.1, "null_high": 0.2, "random": 0.3, "random_high": 0.4}
    variables |= {f"cka_{end}": ("layer", np.array([value, value + 0.05])) for end, value in ends.items()}
    energy = np.array([0.2, 0.6, 1.0]) * np.ones((2, 3, 4, 1))
    variables |= {"energy": ((*each, "size"), energy), "energy_null": (("module", "size"), energy[0, 0] / 2)}
    variables |= {"rank": (each, np.full((2, 3, 4), 2.5)), "rank_null": ("module", np.full(4, 3.5))}
    coords = {"layer": [1, 3], "expert": range(3), "receiver": range(3), "size": [1, 2, 3]}
    coords |= {"module": ["gate and up", "down", "a", "<b>b"]}
    return finish(variables, coords, "cka", tokens=9, analysis="expert_similarity")


def truncated(task: str = TASKS[0], shift: float = 0.0) -> xr.Dataset:
    """As expert_truncation gives it, of 2 layers with 3 experts and ranks up to 4."""
    each, loss = ("layer", "expert", "module"), np.array([2.0, 1.0, 0.5, 0.25]) + shift
    variables: dict = {}
    for name, values in {"loss": loss, "accuracy": 1 - loss / 4, "metric": 3 - loss}.items():
        null = (values + values[0]) / 2
        variables |= {f"{name}{end}": ("size", values + 0.1 * n) for end, n in ENDS.items()}
        variables |= {f"{name}_null{end}": ("size", null + 0.05 * n) for end, n in ENDS.items()}
        variables |= {f"{name}_random": (("size", "seed"), null[:, None] + np.array([-0.05, 0.05]))}
    variables |= {"retained": ("size", np.array([0.0, 0.6, 0.9, 1.0])), "retained_null": ("size", np.arange(4) / 3)}
    variables |= {"parameters": ("size", np.array([0.0, 0.5, 1.0, 1.0]))}
    variables |= {"energy": ((*each, "size"), np.ones((2, 3, 2, 1)) * np.array([0.0, 0.6, 0.9, 1.0]))}
    variables |= {"effective_rank": (each, 1 + numbers(2, 3, 2))}
    variables |= {"effective_rank_null": ("module", np.array([3.5, 2.5]))}
    coords = {"layer": [1, 3], "expert": range(3), "module": ["gate and up", "<b>down"], "size": [0, 1, 2, 4]}
    named = {"base": "a <i>base", "metric_name": "logit_diff", "analysis": "expert_truncation", "task": task}
    return finish(variables, coords | {"seed": range(2)}, "loss", **named)


def truncated_both() -> xr.Dataset:
    """Truncations measured on two tasks, joined."""
    return concat({TASKS[0]: truncated(), TASKS[1]: truncated(TASKS[1], 0.5)}, "task")


def drifted() -> xr.Dataset:
    """As expert_drift gives it; a fresh router was chosen at the later checkpoint."""
    pair, loss = ("measured", "method"), np.array([[0.5, 0.4], [2.0, 1.0]])
    changes = np.array([1.5, 1.0, 0.5, 0.6, -0.1])
    variables: dict = {}
    for name, scale in {"loss": 1.0, "accuracy": -0.2, "metric": -2.0}.items():
        variables |= {f"{name}{end}": (pair, scale * loss + 0.1 * n) for end, n in ENDS.items()}
        variables |= {f"{name}_change{end}": ("component", scale * changes + 0.2 * n) for end, n in ENDS.items()}
    shares = np.array([0.9, 0.8]) * np.array([[[1.0], [0.9]], [[0.7], [1.1]]])
    variables |= {f"entropy{end}": ((*pair, "layer"), shares + 0.01 * n) for end, n in ENDS.items()}
    variables |= {"loss_start": (("measured", "seed", "step"), 3 - numbers(2, 2, 3))}
    variables |= {"loss_fitted": (("measured", "seed"), np.array([[0.4, 0.5], [1.2, 1.0]]))}
    variables |= {"chosen": ("measured", np.array([0, 1], dtype=np.int8))}
    names = ["in all", "router", "experts", "experts, <b>both", "fitting alone"]
    coords = {"measured": ["earlier", "later"], "method": ["own router", "fitted router"], "component": names}
    coords |= {"seed": range(2), "step": [0, 10, 20], "layer": [1, 3]}
    moved = {"changed_router": 0.5, "changed_experts": 1.25, "changed_rest": 0.75, "fitted_on": 64}
    return finish(variables, coords, "loss_change", later="a <i>later", analysis="expert_drift", **moved)


def mapped() -> xr.Dataset:
    """As embedding gives it, of two sequences from two tasks; one token has no expert."""
    at, shape = ("prompt", "pos"), (PROMPTS, KEYS)
    variables = {"x": (at, numbers(*shape)), "y": (at, numbers(*shape)[::-1])}
    variables |= {"first_expert": (at, np.array([[0, 1, 1, 2], [0, 2, -1, 2]])), "task_index": ("prompt", np.arange(2))}
    variables |= {"kind": (at, np.array([[1, 0, 0, 1]] * PROMPTS)), "entropy": (at, abs(numbers(*shape)))}
    variables |= {"probability": (at, 1 - abs(numbers(*shape)))}
    variables |= {"trustworthiness": ((), np.array(0.9)), "trustworthiness_null": ((), np.array(0.51))}
    for end, value in (("", 0.8), ("_null", 0.4), ("_null_high", 0.45)):
        variables[f"same{end}"] = (("measured", "component"), np.full((2, 3), value))
    coords = {"prompt": range(PROMPTS), "pos": range(1, KEYS + 1), "component": ["expert", "task", "kind"]}
    coords |= {"measured": ["on the map", "in the full space"]}
    coords |= {"token": (at, np.array([["a", "a", "<i>", "."], ["b", "a", "\n", "."]]))}
    named = {"tasks": json.dumps(TASKS), "kinds": json.dumps(["delimiter", "content"]), "method": "pca", "layer": 1}
    named |= {"space": "residual", "variance_x": 0.5, "variance_y": 0.25, "title": "tokens of <b>two</b> tasks"}
    return finish(variables, coords, "x", analysis="embedding", tokens=8, bos=1, folding="raw", **named)


def aligned(shift: float = 0.0) -> xr.Dataset:
    """As gradient_alignment gives it, of two layers and three tasks; the third has no gradient on L1H2."""
    names = ["all", "W_Q", "W_V", *(f"L{i}{m}" for i in range(LAYERS) for m in ("", ".W_Q", ".W_V", "H0", "H1", "H2"))]
    kinds = ["whole", "kind", "kind", *["layer", "matrix", "matrix", "head", "head", "head"] * LAYERS]
    heads = [int(name[-1]) if kind == "head" else -1 for name, kind in zip(names, kinds, strict=True)]
    tasks, shape = [*TASKS, "a third"], (len(names), 3, 3)
    drawn = np.random.default_rng(0).uniform(-0.8, 0.8, shape) + shift
    cosine = np.clip((drawn + drawn.transpose(0, 2, 1)) / 2, -1, 1)
    cosine[:, range(3), range(3)] = 1
    cosine[-1, 2], cosine[-1, :, 2] = 0, 0
    pair, size = ("module", "task", "receiver"), np.full(shape, 0.05)
    size[-1, 2], size[-1, :, 2] = 0, 0
    variables = {f"cosine{end}": (pair, np.clip(cosine + 0.2 * n, -1, 1)) for end, n in ENDS.items()}
    clear = (abs(cosine) > 0.2).astype(np.int8)
    variables |= {"clear": (pair, clear), "floor": (pair, size), "conflict": (pair, (1 - cosine) / 2)}
    variables |= {"disattenuated": (pair, np.where(clear > 0, cosine, 0))}
    variables |= {"ceiling": (pair[:2], cosine[:, 0] / 2), "norm": (pair[:2], 0.1 + (size[:, 2] > 0))}
    variables["norm"][1][-1, 2] = 0
    variables |= {"loss": (("task", "seed"), np.ones((3, 2)))}
    coords = {"module": names, "task": tasks, "receiver": tasks, "seed": [0, 1], "kind": ("module", kinds)}
    coords |= {"matrix": ("module", [name.rpartition(".")[2] if "W_" in name else "" for name in names])}
    coords |= {"at_layer": ("module", [int(name[1]) if name[0] == "L" else -1 for name in names])}
    coords |= {"at_head": ("module", heads), "parameters": ("module", np.arange(len(names)) + 1000)}
    named = {"batches": 2, "model": "zoo/tasks@1", "task": json.dumps(tasks), "title": "gradients of <b>three</b>"}
    ds = finish(variables, coords, "cosine", analysis="gradient_alignment", **named)
    ds["cosine"].attrs["signed"] = 1
    return ds


def aligned_in_training() -> xr.Dataset:
    """Gradient alignment at three checkpoints, joined, not in their order."""
    return concat({"0": aligned(), "900": aligned(0.2), "100": aligned(-0.2)}, "checkpoint")


def salient() -> xr.Dataset:
    """As task_saliency gives it, of two tasks and three tokens."""
    at, share = ("task", "layer", "pos"), np.linspace(0.1, 0.9, 6).reshape(2, 3)
    both = np.stack([share, 1 - share])
    variables: dict = {f"share{end}": (at, both + 0.05 * n) for end, n in ENDS.items()}
    variables |= {f"share_null{end}": (at, np.full(both.shape, 0.5 + 0.1 * n)) for end, n in ENDS.items() if end}
    entropy = np.array([[0.5, 0.8, 0.99], [0.9, 0.7, 0.4]])
    variables |= {f"entropy{end}": (at[1:], entropy + 0.01 * n) for end, n in ENDS.items()}
    variables |= {"entropy_null": (at[1:], entropy * 0 + 0.98), "entropy_null_low": (at[1:], entropy * 0 + 0.95)}
    variables |= {"channel_entropy": ("layer", np.array([0.9, 0.8])), "channel_entropy_null": ("layer", np.ones(2))}
    coords = {"task": TASKS, "layer": [0, 1], "pos": [-2, -1, 0]}
    named = {"scale": "unit", "task": json.dumps(TASKS), "model": "zoo/<b>tasks"}
    return finish(variables, coords, "share", analysis="task_saliency", **named)


def compared(kind: str = "heads") -> xr.Dataset:
    """As compare gives it of two results built here, of heads or of edges."""
    return _compared(kind).copy(deep=True)


@functools.cache
def _compared(kind: str) -> xr.Dataset:
    from workbench.analyses import compare

    before, rng = (effects() if kind == "heads" else edges()), np.random.default_rng(1)
    name = str(before.attrs["primary"])
    moved = rng.normal(size=before[name].shape) * (rng.random(before[name].shape) < 0.4)
    if kind == "edges":
        moved *= before["valid"].values
    strongest = np.argsort(-abs(before[name].values), axis=None)[:2]
    moved.flat[strongest] = -2 * before[name].values.flat[strongest]
    after = before.assign({f"{name}{end}": before[f"{name}{end}"] + moved for end in ENDS})
    first, second = (ds.assign_attrs(model=which, n=50) for ds, which in ((before, "a <b>"), (after, "run/b@9")))
    return compare(first, second, top=0.3)


def flipped() -> xr.Dataset:
    """As flips gives it, of four prompts that each changed in another way."""
    kinds = ["right both times", "right to wrong", "wrong to right", "<b>wrong both times"]
    by, four = ("measured", "prompt"), np.arange(4)
    right = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])
    variables: dict = {"right": (by, right), "answer": (by, right + 5), "metric": (by, numbers(2, 4))}
    variables |= {"change": ("prompt", numbers(2, 4)[1] - numbers(2, 4)[0]), "kind": ("prompt", four.astype(np.int8))}
    variables |= {"count": ("component", np.ones(4, int)), "rate": ("method", np.array([0.25, 0.25, 0.5]))}
    variables |= {f"share{end}": ("component", np.full(4, 0.25 + 0.1 * n)) for end, n in ENDS.items()}
    words = {name: ("prompt", ["<i>a", "b", "c", "d"]) for name in ("text", "answer_text", "before_text", "after_text")}
    coords = {"measured": ["before", "after"], "prompt": four, "component": kinds, "method": ["<b>x", "y", "z"]}
    named = {"mcnemar": 1.0, "flipped": 2, "after": "run/<i>b", "analysis": "flips"}
    named |= {f"accuracy_change{end}": 0.1 * n for end, n in ENDS.items()}
    return finish(variables, coords | words, "share", **named)


def mixed() -> xr.Dataset:
    """As mixture_study gives it, of two tasks."""
    shape = {"gain": ("method",), "main": ("task",), "synergy": ("task", "receiver")}
    sizes = {"method": 4, "task": 2, "receiver": 2}
    variables: dict = {}
    for score in ("accuracy", "loss"):
        variables[score] = (("method", "measured"), 0.5 + numbers(4, 3) / 2)
        for kind, dims in shape.items():
            values = numbers(*(sizes[dim] for dim in dims), 3)
            variables |= {f"{score}_{kind}{end}": ((*dims, "measured"), values + 0.1 * n) for end, n in ENDS.items()}
    variables["member"] = (("method", "task"), np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.int8))
    names = ["not tuned", *TASKS, " + ".join(TASKS)]
    coords = {"method": names, "measured": [*TASKS, "mean of the tasks"], "task": TASKS, "receiver": TASKS}
    return finish(variables, coords, "accuracy", analysis="mixture_study", interval="t", rows="<i>same")


def paired_runs() -> xr.Dataset:
    """As paired gives it, of two seeds."""
    variables: dict = {f"difference{end}": (("seed", "task"), numbers(2, 2) + 0.1 * n) for end, n in ENDS.items()}
    variables |= {f"accuracy_change{end}": ("task", numbers(2) + 0.1 * n) for end, n in ENDS.items()}
    variables |= {name: (("method", "seed", "task"), numbers(2, 2, 2)) for name in ("accuracy", "loss")}
    coords = {"method": ["steps 1", "steps <b>2"], "seed": [0, 1], "task": TASKS}
    return finish(variables, coords, "accuracy_change", analysis="paired", interval="Student's t over 2 seeds")


def tuned() -> xr.Dataset:
    """As the curves of a run."""
    checks = ("checkpoint", "task")
    share = numbers(3, 2) * 0.4 + 0.4
    variables = {
        "loss": (("step", "task"), numbers(4, 2) + 1),
        "rate": ("step", numbers(4)),
        "norm": ("step", numbers(4)),
    }
    variables |= {"held_loss": (checks, share), "accuracy": (checks, share)}
    variables |= {"accuracy_low": (checks, share - 0.1), "accuracy_high": (checks, share + 0.1)}
    coords = {"step": [1, 2, 3, 4], "task": TASKS, "checkpoint": [0, 2, 4]}
    return finish(variables, coords, "loss", analysis="tune", run="lora-0")


def all_of_them() -> list[xr.Dataset]:
    """One result of each shape."""
    found = [effects(), overlaps(), sinks(), patterns(), path_effects(), edges(), edge_overlaps(), faithful()]
    found += [ablated(), ablated_both(), roles(), repaired(), emerging()]
    found += [massive(), resting(), resting(task=True), parked(), leveled(), unsunk(), pushed()]
    found += [growing_sinks(), averages()]
    found += [unstaffed(), operated(), rerouted()]
    found += [routed(), routed_tasks(), drifting(), alike()]
    found += [compared(), compared("edges"), flipped(), mixed(), paired_runs()]
    return [
        *found,
        truncated(),
        truncated_both(),
        drifted(),
        mapped(),
        aligned(),
        aligned_in_training(),
        salient(),
        tuned(),
    ]
