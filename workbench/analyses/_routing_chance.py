"""What chance gives where routing is measured: even routers, subsets with given loads, information without its bias."""

import numpy as np

HIGH = 0.95  # the point of a null that is given beside its mean
ROUNDS = 2000  # of fitting the subsets' weights
CLOSE = 1e-10


def even_counts(tokens: int, k: int, experts: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each expert, int [draw, expert], when every token goes to k of the experts, all subsets as likely.

    Exact: expert by expert, a token that has j choices left among m experts takes this one with probability j / m.
    """
    left = np.zeros((draws, k + 1), dtype=np.int64)  # tokens by how many choices they have left
    left[:, k] = tokens
    counts = np.empty((draws, experts), dtype=np.int64)
    for expert in range(experts):
        taken = rng.binomial(left, np.minimum(1, np.arange(k + 1) / (experts - expert)))
        counts[:, expert] = taken.sum(1)
        left -= taken
        left[:, :-1] += taken[:, 1:]
    return counts


def even_probabilities(
    counts: np.ndarray, moments: tuple[float, float, float], tokens: int, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Mean probabilities [draw, expert] that go with the counts of even routers as sure of themselves as a real one.

    The experts of every token are renamed at random, its choices along with its probabilities, so that an expert chosen
    more often also has more probability. Normal about the mean given the counts, with the variance that remains. Where
    every expert is chosen each has 1 / E of the tokens, and `even_weights` says how its weight varies.

    Args:
        counts: of `even_counts`, [draw, expert].
        moments: means over tokens of the probability of the chosen, and of the sum of its squares over all experts and
            over the chosen.
        tokens: how many the counts are of.
        k: experts chosen by a token.
        rng: of the draws.
    """
    mass, square, own = moments
    others, experts = counts.shape[-1] - k, counts.shape[-1]
    if not others:
        return np.full(counts.shape, 1 / experts)
    inside, outside = mass / k, (1 - mass) / others
    spread = (own / k - inside**2, (square - own) / others - outside**2)
    share = counts / tokens
    noise = rng.standard_normal(counts.shape) * np.sqrt((share * spread[0] + (1 - share) * spread[1]) / tokens)
    noise = (noise - noise.mean(-1, keepdims=True)) * np.sqrt(experts / (experts - 1))  # probabilities sum to 1
    return share * inside + (1 - share) * outside + noise


def even_weights(weight: np.ndarray, square: float, tokens: int, *, alone: bool) -> tuple[float, float]:
    """The central 95 % of an expert's share of all weight when all experts are chosen and renamed at random.

    Args:
        weight: the experts' shares, [expert].
        square: mean over tokens of the sum of squared weights.
        tokens: how many.
        alone: whether all tokens have one and the same weights, which are then renamed together, so that any of them
            is as likely; else every token's are renamed by themselves, and their mean is normal.
    """
    if alone:
        low, high = np.quantile(weight, [0.025, 0.975], method="inverted_cdf")
        return float(low), float(high)
    even = 1 / len(weight)
    spread = 1.96 * np.sqrt(max(square / len(weight) - even**2, 0) / tokens)
    return even - spread, even + spread


def _symmetric(weights: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    """Elementary symmetric polynomials 0 to k of the weights [expert] that `kept` [..., expert] names, [..., k + 1]."""
    found = np.zeros((*kept.shape[:-1], k + 1))
    found[..., 0] = 1
    for expert, weight in enumerate(weights):
        found[..., 1:] += weight * kept[..., expert, None] * found[..., :-1]
    return found


def independent_pairs(load: np.ndarray, k: int) -> np.ndarray:
    """Share of tokens with both experts, [expert, expert], if nothing but the loads and k decided; the loads on top.

    The distribution of k-subsets with these loads that is closest to even (greatest entropy): a subset's probability is
    the product of its members' weights, which are fitted to the loads. A load counts as the share of tokens; sum k.
    """
    pairs = np.outer(load, load)  # right for experts that are always, or never, chosen
    inner = np.flatnonzero((load > CLOSE) & (load < 1 - CLOSE))
    left = k - int((load >= 1 - CLOSE).sum())
    if len(inner) > left > 0:
        pairs[np.ix_(inner, inner)] = _pairs(load[inner], left)
    np.fill_diagonal(pairs, load)
    return pairs


def _pairs(load: np.ndarray, k: int) -> np.ndarray:
    """The same for loads strictly between 0 and 1."""
    count = len(load)
    if k == 1:
        return np.zeros((count, count))
    everyone, others = np.ones(count, bool), ~np.eye(count, dtype=bool)
    weights = load / (1 - load)
    for _ in range(ROUNDS):
        weights /= np.exp(np.log(weights).mean())
        found = weights * _symmetric(weights, others, k - 1)[:, k - 1] / _symmetric(weights, everyone, k)[k]
        if np.abs(found - load).max() < CLOSE:
            break
        weights *= load / found
    without = others[:, None] & others[None]  # [expert, expert, expert]: neither of the two
    pairs = np.outer(weights, weights) * _symmetric(weights, without, k - 2)[..., k - 2] * others
    return pairs / _symmetric(weights, everyone, k)[k]


def _plug_in(table: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Entropy in nats of counts over the last two axes, once summed over `axes`; and the cells that are not empty."""
    cells = table.sum(axes, keepdims=True) if axes else table
    total = np.maximum(cells.sum((-2, -1), keepdims=True), 1)
    share = cells / total
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum((-2, -1)), (cells > 0).sum((-2, -1))


def information(table: np.ndarray, *, corrected: bool = True) -> np.ndarray:
    """Mutual information in nats of counts [..., row, column], [...], with Miller and Madow's correction.

    To each plug-in entropy is added (cells that are not empty - 1) / (2 n), so that from the information is taken
    (rows - 1)(columns - 1) / (2 n) where no cell is empty. It may come out below 0. 0 for an empty table. The
    correction is for counts of draws; weights that are spread over all cells are not `corrected`.
    """
    table = np.asarray(table, dtype=np.float64)
    (rows, m_rows), (columns, m_columns), (both, m_both) = (_plug_in(table, axes) for axes in ((-1,), (-2,), ()))
    n = table.sum((-2, -1))
    cells = np.where(n > 0, m_both - m_rows - m_columns + 1, 0)
    return rows + columns - both - corrected * cells / (2 * np.maximum(n, 1))


def overlap(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Histogram overlap, the sum of the lesser share over the last axis: 1 = the same distribution, 0 = disjoint."""
    return np.minimum(p, q).sum(-1)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits over the last axis: 0 = the same distribution, 1 = disjoint."""
    middle = (p + q) / 2
    found = np.zeros(middle.shape[:-1])
    for part in (p, q):
        ratio = np.divide(part, middle, out=np.ones_like(middle), where=(part > 0) & (middle > 0))
        found += (part * np.log2(ratio)).sum(-1) / 2
    return np.maximum(found, 0)


def at_or_above(seen: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The p-value of what was seen [...] among draws [draw, ...]: (1 + draws at or above it) / (1 + draws)."""
    return (1 + (drawn >= seen - 1e-12).sum(0)) / (1 + len(drawn))
