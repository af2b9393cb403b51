"""Results built by hand, one of each shape that an analysis gives; made without a model."""

import numpy as np
import xarray as xr

from workbench.schema import ATTRS, check

LAYERS, HEADS, KEYS, PROMPTS = 2, 3, 4, 2
TASKS = ["one <b>task</b>", "another"]


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
    return finish(variables, coords, "iou", analysis="overlap", chosen=3)


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
    return finish({"pattern": (dims, pattern)}, {**coords, "token": token}, "pattern", prompt=0, analysis="attention")


def all_of_them() -> list[xr.Dataset]:
    """One result of each shape."""
    return [effects(), overlaps(), sinks(), patterns()]
