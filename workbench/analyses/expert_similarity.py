"""How alike the experts of a layer are: their weights, what they make of the same tokens, and their rank."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._expert_weights import NAMES, stored
from workbench.analyses._routing import entropy
from workbench.analyses._tokens import kinds_of
from workbench.progress import Cancelled, track
from workbench.tasks import Task

if TYPE_CHECKING:
    import torch

    from workbench.models.model import Model

MODULES = ("gate and up", "down", "gate and up, less the mean expert", "down, less the mean expert")
SHUFFLES = 20  # of the tokens, in the null of CKA
HIGH = 0.95
NORMAL = 1.959964  # two-sided 95 % point of the standard normal distribution
Found = dict[str, np.ndarray]


@analysis(
    about="How alike a layer's experts are: cosine of weights, CKA of outputs, effective rank and retained energy.",
    sign="0 = nothing in common, 1 = the same; within the null's 95 % point = as unlike as random weights or tokens",
    primary="cka",
)
def expert_similarity(
    model: "Model", task: Task, *, length: int = 64, sequences: int = 16, tokens: int = 256, batch: int = 8
) -> xr.Dataset:
    """Cosine, linear CKA and spectra of every layer's experts, each beside random weights or shuffled tokens.

    `cosine` is that of two experts' weights (gate, up and down; biases left out), flattened; independent normal weights
    lie within `cosine_null_high` = 1.96 / sqrt(number of weights). `cka` is the linear centred kernel alignment of what
    two experts give for the same tokens (those the layer's experts get, drawn at random from the task's text; every
    expert gets all of them, with weight 1): ||Y'X||^2 / (||X'X|| ||Y'Y||) with columns centred. Its null shuffles the
    tokens of one of the two; `cka_random` is that of experts whose weights were shuffled within each matrix, which are
    alike too, since they get the same tokens.

    Of each weight matrix, and of its difference from the mean over the layer's experts, with singular values s and
    q = s^2 / sum s^2: `rank` is the effective rank exp(H(q)), `energy` the sum of the largest r of q. Their null is a
    normal matrix of the same shape.

    Args:
        model: a mixture of experts whose weights are 3-D parameters `gate_up_proj` and `down_proj`.
        task: whose text is read.
        length: tokens in a sequence, BOS included.
        sequences: how many sequences.
        tokens: of them all (special tokens left out), how many the experts are compared on; 3 or more.
        batch: sequences in one forward pass.

    Returns:
        `cosine`, `cka` [layer, expert, receiver]; `cosine_null_high`; `cka_null`, `cka_random` and their `_high`
        [layer] (mean and 95 % point over pairs, and shuffles); `rank` [layer, expert, module], `rank_null` [module];
        `energy` [layer, expert, module, size] at ranks of powers of two, `energy_null` [module, size]. When stopped
        early: the layers done.

    Raises:
        AnalysisError: when `length` does not fit the model, `tokens` is under 3 or more than the text has, or the
            experts' weights are stored in another form.
        ModelError: when the model has no routers, or they cannot be read or believed.
    """
    if not 2 <= length <= model.context:
        raise AnalysisError(f"length is {length}; this model takes 2 to {model.context} tokens.")
    at_least_one(sequences=sequences, batch=batch)
    weights = {layer: stored(experts, layer) for layer, (_, experts) in model.routers.parts.items()}
    text = task.documents(model.tokenizer, length=length, count=sequences, bos=model.bos)
    rng = np.random.default_rng(task.seed)
    places = np.flatnonzero(kinds_of(model, text).ravel() != 0)
    if not 3 <= tokens <= len(places):
        raise AnalysisError(f"tokens is {tokens}; with so many sequences of this length, use 3 to {len(places)}.")
    hidden = _hidden(model, text, np.sort(rng.choice(places, tokens, replace=False)), batch)
    shapes = [tuple(part.shape[1:]) for part in next(iter(weights.values()))] * 2
    sizes = _sizes(shapes)
    layers = [
        _layer(model, layer, weights[layer], hidden[layer], sizes, rng)
        for layer in track(list(weights), f"expert_similarity {task.name}", len(weights))
    ]
    if not layers:
        raise Cancelled("Stopped before the first layer was finished, so there is no result to keep.")
    ds = _dataset(layers, list(weights)[: len(layers)], _null_spectra(shapes, sizes, rng), sizes)
    bound = NORMAL / np.sqrt(sum(np.prod(shape) for shape in shapes[:2]))
    say = {"long_name": "95 % point of |cosine| of independent normal weights", "units": "1"}
    ds["cosine_null_high"] = ((), np.array(bound), say)
    ds.attrs = {"n": sequences, "tokens": tokens, "task": task.name, "length": length}
    return ds.assign_attrs(experts=ds.sizes["expert"], bos=int(model.bos))


def _hidden(model: "Model", text: np.ndarray, places: np.ndarray, size: int) -> dict[int, "torch.Tensor"]:
    """What each layer's experts get for the tokens at `places` of the flattened text, [token, d_model]."""
    import torch

    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.routers.layers}
    width = text.shape[1]
    for start in range(0, len(text), size):
        rows = text[start : start + size]
        here = places[(places >= start * width) & (places < (start + len(rows)) * width)] - start * width
        with ExitStack() as stack:
            for layer, (_, experts) in model.routers.parts.items():
                hook = _taken(found[layer], model.tensor(here))
                stack.callback(experts.register_forward_pre_hook(hook).remove)
            model.routers.run(model.tensor(rows))
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _taken(into: list["torch.Tensor"], places: "torch.Tensor"):
    def take(module: Any, args: tuple) -> None:
        into.append(args[0].detach().flatten(0, -2)[places])

    return take


def _layer(
    model: "Model", layer: int, weights: tuple, hidden: "torch.Tensor", sizes: np.ndarray, rng: np.random.Generator
) -> Found:
    """Every measure of one layer."""
    experts = model.routers.parts[layer][1]
    cka, null = _alignment(_kernels(_outputs(experts, hidden, weights)), rng)
    random = _alignment(_kernels(_outputs(experts, hidden, _shuffled(weights, rng))), rng)[0]
    pairs = random[~np.eye(len(random), dtype=bool)]
    spectra = list(_spectra(weights))
    ranks = np.stack([np.exp(entropy(shares)) for shares in spectra], -1)
    energies = np.stack([_energy(shares, sizes) for shares in spectra], 1)
    nulls = {"cka_null": null.mean(), "cka_null_high": np.quantile(null, HIGH)}
    nulls |= {"cka_random": pairs.mean(), "cka_random_high": np.quantile(pairs, HIGH)}
    return {"cosine": _cosines(weights), "cka": cka, **nulls, "rank": ranks, "energy": energies}


def _shuffled(weights: tuple, rng: np.random.Generator) -> tuple:
    """The same numbers in every matrix, in a random order."""
    import torch

    found = []
    for part in weights:
        orders = (torch.from_numpy(rng.permutation(one.numel())).to(part.device) for one in part)
        found.append(torch.stack([one.flatten()[o].view_as(one) for one, o in zip(part, orders, strict=True)]))
    return tuple(found)


def _outputs(experts: Any, hidden: "torch.Tensor", weights: tuple) -> Iterator["torch.Tensor"]:
    """What each expert gives with these weights for all tokens, itself weighed with 1, [token, d_model]."""
    import torch

    ones = torch.ones_like(hidden[:, :1])
    parts: dict[str, torch.Tensor] = dict(zip(NAMES, weights, strict=True))
    with torch.no_grad():
        for expert in range(len(weights[0])):
            chosen = torch.full((len(hidden), 1), expert, dtype=torch.int64, device=hidden.device)
            yield torch.func.functional_call(experts, parts, (hidden, chosen, ones)).float()


def _kernels(outputs: Iterator["torch.Tensor"]) -> np.ndarray:
    """Centred linear kernels of norm 1, float32 [expert, token, token]."""
    found = []
    for output in outputs:
        centred = output - output.mean(0)
        kernel = (centred @ centred.T).cpu().numpy()
        found.append(kernel / max(float(np.linalg.norm(kernel)), np.finfo(np.float32).tiny))
    return np.stack(found)


def _alignment(kernels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """CKA of every two experts, and that of different experts with the tokens of one of them shuffled."""
    flat = kernels.reshape(len(kernels), -1)
    others, drawn = ~np.eye(len(flat), dtype=bool), []
    for _ in range(SHUFFLES):
        order = rng.permutation(kernels.shape[1])
        drawn.append((flat @ kernels[:, order][:, :, order].reshape(len(kernels), -1).T)[others])
    return (flat @ flat.T).astype(float), np.concatenate(drawn).astype(float)


def _cosines(weights: tuple) -> np.ndarray:
    """Cosines of the experts' flattened weights, [expert, expert]; a matrix at a time, so that little is held."""
    count = len(weights[0])
    products = np.zeros((count, count))
    for part in weights:
        flat = part.flatten(1).float()
        products += (flat @ flat.T).double().cpu().numpy()
    norms = np.sqrt(np.diag(products))
    return products / np.outer(norms, norms)


def _spectra(weights: tuple) -> Iterator[np.ndarray]:
    """Shares of squared singular values of `MODULES`, largest first, [expert, value]."""
    for less in (False, True):
        for part in weights:
            mean = part.float().mean(0)
            yield np.stack([shares(one.float() - mean if less else one.float()) for one in part])


def shares(matrix: "torch.Tensor") -> np.ndarray:
    """Squared singular values over their sum, largest first; all on the first where the matrix is 0."""
    import torch

    small = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).double()
    values = torch.linalg.eigvalsh(small @ small.T).flip(0).clamp_min(0).cpu().numpy()
    total = values.sum()
    return values / total if total > 0 else np.eye(1, len(values))[0]


def _sizes(shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Powers of two up to the largest rank there is, and that."""
    most = max(min(shape) for shape in shapes)
    return np.unique(np.append(2 ** np.arange(int(np.log2(most)) + 1), most))


def _energy(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sum of the largest shares [..., value], at each of the sizes."""
    total = np.cumsum(values, axis=-1)
    return np.minimum(total[..., np.minimum(sizes, values.shape[-1]) - 1], 1)


def _null_spectra(shapes: list[tuple[int, ...]], sizes: np.ndarray, rng: np.random.Generator) -> Found:
    """Effective rank and energy of a normal matrix of each shape."""
    import torch

    drawn = [shares(torch.from_numpy(rng.standard_normal(shape))) for shape in shapes]
    ranks = np.array([np.exp(entropy(each)) for each in drawn])
    return {"rank_null": ranks, "energy_null": np.stack([_energy(each, sizes) for each in drawn])}


def _dataset(layers: list[Found], names: list[int], nulls: Found, sizes: np.ndarray) -> xr.Dataset:
    pair, each = ("layer", "expert", "receiver"), ("layer", "expert", "module")
    energy = {"long_name": "share of the squared singular values in the largest r", "units": "share"}
    rank, cka = {"long_name": "effective rank", "units": "1"}, {"long_name": "linear CKA of outputs", "units": "1"}
    say: dict[str, tuple] = {
        "cosine": (pair, {"long_name": "cosine of the experts' weights", "units": "1", "signed": 1}),
        "cka": (pair, cka),
        "cka_null": ("layer", cka | {"long_name": "linear CKA with shuffled tokens, mean"}),
        "cka_null_high": ("layer", cka | {"long_name": "linear CKA with shuffled tokens, 95 % point"}),
        "cka_random": ("layer", cka | {"long_name": "linear CKA of experts with shuffled weights, mean"}),
        "cka_random_high": ("layer", cka | {"long_name": "linear CKA of experts with shuffled weights, 95 % point"}),
        "rank": (each, rank),
        "energy": ((*each, "size"), energy),
        "rank_null": ("module", rank | {"long_name": "effective rank of a normal matrix"}),
        "energy_null": (("module", "size"), energy | {"long_name": "the same of a normal matrix"}),
    }
    found = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]} | nulls
    variables = {name: (say[name][0], values, say[name][1]) for name, values in found.items()}
    experts = np.arange(found["cosine"].shape[-1])
    coords = {"layer": names, "expert": experts, "receiver": experts, "module": list(MODULES), "size": sizes}
    return xr.Dataset(variables, coords=coords)
