"""What figures over training share: the checkpoints in order, and the model without them."""

import json

import numpy as np
import xarray as xr

from workbench import theme


def in_order(ds: xr.Dataset) -> tuple[xr.Dataset, list, np.ndarray, bool]:
    """The dataset by training step, its steps as numbers where all of them are, the order, and whether they are."""
    labels = [str(label) for label in ds["checkpoint"].values]
    numeric = all(label.isdigit() for label in labels)
    steps = [int(label) for label in labels] if numeric else [theme.plain(label) for label in labels]
    order = np.argsort(steps, kind="stable") if numeric else np.arange(len(steps))
    return ds.isel(checkpoint=order), [steps[i] for i in order], order, numeric


def model_of(ds: xr.Dataset) -> str:
    """The model's reference without its checkpoints, which `concat` lists."""
    found = str(ds.attrs["model"])
    names = json.loads(found) if found.startswith("[") else [found]
    return ", ".join(dict.fromkeys(name.partition("@")[0] for name in names))
