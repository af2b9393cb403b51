"""Tokens on a map, to be taken with a lasso."""

import numpy as np
import xarray as xr

from widgets.token_map import TokenMap, pack
from workbench.views._base import Drawing, ViewError, caption, only, view
from workbench.views._experts import tokens_of
from workbench.views._token_labels import AT, labels, ranges

SPACES = {"residual": "residual stream before", "router": "router logits of"}


@view(
    requires=set(AT),
    variables={"x", "y"},
    about="Tokens on a map by PCA or UMAP, coloured by expert, task, kind or position, to be taken with a lasso.",
)
def token_map(ds: xr.Dataset, colour_by: str = "") -> Drawing:
    """A token map coloured by `colour_by`: expert, task, kind, position, probability or entropy; default: the first."""
    colourings = [*labels(ds), *ranges(ds)]
    known = [each.name for each in colourings]
    if colour_by and colour_by not in known:
        raise ViewError(f"There is no colouring '{colour_by}' for this result; it has {', '.join(known)}.")
    texts, codes = np.unique(ds["token"].transpose(*AT).values.ravel().astype(str), return_inverse=True)
    x, y = (only(ds, name, *AT).values.ravel() for name in ("x", "y"))
    made = pack(x, y, colourings, texts=texts.tolist(), text_codes=codes)
    made |= {"span": ds.sizes["pos"], "start": int(ds["pos"].values[0]), "axes": _axes(ds)}
    made |= {"heading": str(ds.attrs["title"]), "note": " · ".join(part for part in (_how(ds), _trust(ds)) if part)}
    return Drawing(TokenMap, made | {"colour_by": colour_by or known[0]})


def _axes(ds: xr.Dataset) -> list[str]:
    if ds.attrs.get("method") == "umap":
        return ["UMAP 1", "UMAP 2"]
    shares = [ds.attrs.get(f"variance_{name}") for name in ("x", "y")]
    said = ["" if share is None else f" ({share:.0%} of the variance)" for share in shares]
    return [f"{name} {number}{text}" for name, number, text in zip(("PC", "PC"), (1, 2), said, strict=True)]


def _how(ds: xr.Dataset) -> str:
    attrs = ds.attrs
    if "space" not in attrs:
        return caption(ds)
    method = {"pca": "PCA", "umap": "UMAP"}[attrs["method"]]
    warning = "; distances between its clusters mean little" if attrs["method"] == "umap" else ""
    return f"{method} of the {SPACES[attrs['space']]} block {attrs['layer']}{warning} · {tokens_of(ds)} · {caption(ds)}"


def _trust(ds: xr.Dataset) -> str:
    """How far the map can be trusted, and what lies together on it, each beside chance."""
    if "trustworthiness" not in ds:
        return ""
    said = [f"trustworthiness {float(ds['trustworthiness']):.2f} (shuffled {float(ds['trustworthiness_null']):.2f})"]
    same = ds[["same", "same_null"]].sel(measured="on the map")
    for each in labels(ds):
        seen, null = (float(same[name].sel(component=each.name)) for name in ("same", "same_null"))
        said.append(f"neighbours of the same {each.name} {seen:.0%} (shuffled {null:.0%})")
    return " · ".join(said)
