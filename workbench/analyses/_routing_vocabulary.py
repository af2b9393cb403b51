"""How far experts specialise in single token ids, beside shuffled ids and random routers."""

from typing import Any

import numpy as np

from workbench.analyses._routing import RANDOM, Parts
from workbench.analyses._routing_chance import HIGH, at_or_above

SHUFFLED = 100  # of the labels of tokens


def vocabulary(
    found: Parts, tokens: np.ndarray, predicted: np.ndarray, counted: np.ndarray, rng: np.random.Generator, least: int
) -> dict[str, Any]:
    """Specialisation by input token and by the token predicted, its shuffled null, and that of random routers."""
    experts, rows, counts = found["count"].shape[-1], [], []
    first, random = found["chosen"][..., 0][counted], found["first_random"][counted]
    for ids in (tokens[counted], predicted[counted]):
        kept, dense, sizes = frequent(ids, least)
        seen = specialised(dense, first[kept], sizes, experts)
        beside = np.array([specialised(dense, random[kept, seed], sizes, experts) for seed in range(RANDOM)])
        shuffled = [specialised(rng.permutation(dense), first[kept], sizes, experts) for _ in range(SHUFFLED)]
        drawn = np.array(shuffled)
        row = {"": seen, "_null": drawn.mean(0), "_null_high": np.quantile(drawn, HIGH, 0)}
        row |= {"_p": at_or_above(seen, drawn), "_random": beside.mean(0), "_random_high": beside.max(0)}
        rows.append(row)
        counts.append(len(sizes))
    say = {"long_name": "share of an id's occurrences on its most frequent expert, mean over ids", "units": "share"}
    variables: dict[str, Any] = {
        f"specialisation{end}": (("measured", "layer"), np.stack([row[end] for row in rows]), dict(say))
        for end in rows[0]
    }
    variables["specialisation_p"][2]["units"] = "p"
    ids = {"long_name": f"token ids that occur at least {least} times", "units": "ids"}
    return variables | {"specialisation_ids": ("measured", np.array(counts), ids)}


def frequent(ids: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tokens have a frequent id, those ids as 0, 1, ..., and how often each occurs."""
    _, inverse, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    kept = sizes[inverse] >= least
    _, dense = np.unique(inverse[kept], return_inverse=True)
    return kept, dense, sizes[sizes >= least]


def specialised(ids: np.ndarray, experts: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """Mean over ids of the share of their commonest expert, [layer]; `experts` [token, layer]."""
    if not len(sizes):
        return np.zeros(experts.shape[1])
    cells = len(sizes) * count
    tables = [np.bincount(ids * count + column, minlength=cells) for column in experts.T.astype(np.int64)]
    return (np.reshape(tables, (-1, len(sizes), count)).max(-1) / sizes).mean(-1)
