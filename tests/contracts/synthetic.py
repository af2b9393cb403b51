"""Results built by hand, one of each shape that an analysis gives; made without a model."""

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
    by_head = ("layer", "head", "key_pos")
    alpha = abs(numbers(LAYERS, HEADS, KEYS))
    single = np.stack([alpha, alpha[:, ::-1]])
    variables = {name: (by_head, alpha) for name in ("alpha", "alpha_low", "alpha_high", "sink_rate", "value_norm")}
    variables |= {"alpha_null": ("key_pos", np.full(KEYS, 0.25)), "alpha_prompt": (("prompt", *by_head), single)}
    rate = np.array([0.9, 0.4, 0.2, 0.1])
    for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.05)):
        variables[f"sink_rate_mean{end}"] = ("key_pos", rate + shift)
    variables["residual_norm"] = (("layer", "key_pos"), alpha[:, 0])
    coords = {"prompt": range(PROMPTS), "layer": range(LAYERS), "head": range(HEADS), "key_pos": range(KEYS)}
    token = (("prompt", "key_pos"), np.array([["<bos>", "a", "a", "<i>"]] * PROMPTS))
    extra = {"epsilon": 0.3, "length": KEYS, "bos": 1, "folding": "raw", "analysis": "sink_scores"}
    return finish(variables, {**coords, "token": token}, "alpha", **extra)


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


def all_of_them() -> list[xr.Dataset]:
    """One result of each shape."""
    found = [effects(), overlaps(), sinks(), patterns(), path_effects(), edges(), edge_overlaps(), faithful()]
    return [*found, ablated(), ablated_both(), roles(), repaired(), emerging()]
