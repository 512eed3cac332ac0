"""Abstention: is the best match better than chance would have it in a memory of this size?

Pure functions of scores; where the scores come from, and what is said then, is not known here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Rate of false sightings aimed at: of questions about things that the memory lacks.
FALSE_SIGHTINGS = 0.15

TAIL = 0.01  # of the background; its mean score is where a query's chance matches begin
# Around the rate aimed at: further down the scores are not quite a Gumbel's.
_QUANTILES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class Chance(NamedTuple):
    """How far the best of n chance matches exceeds a query's tail, in deviations of its scores.

    A Gumbel distribution of location ``location + growth sqrt(2 ln n)``.
    """

    location: float
    growth: float
    scale: float


# Of streammem-tiny's keys, for models that bring none of their own; fitted by
# `python -m benchmarks memory --fit` to questions about training photos.
CHANCE = Chance(location=-3.441, growth=0.879, scale=0.336)


def normalise(
    scores: np.ndarray, background_scores: np.ndarray, n: int, chance: Chance = CHANCE
) -> np.ndarray:
    """Turn cosines into how far they exceed the best of `n` chance matches.

    z = (score - mean of the background's best ``TAIL``) / its deviation, then
    (z - location - growth sqrt(2 ln n)) / scale with the constants of ``chance``: the best of n
    chance keys, on a scale that does not depend on n. So a fixed threshold gives one rate of false
    sightings for any size of memory. The tail says more of a query than the mean does: some
    sentences have many near pictures, some none.

    Args:
        scores: [..., K] cosines of queries with visual keys of the memory.
        background_scores: [..., B] of the same queries with a fixed bank of background keys,
            B >= 2; some hundreds are needed for a steady tail.
        n: keys that were compared, >= 2.
        chance: of the model's keys.

    Returns:
        [..., K] float64. Below `threshold(rate)`: not seen.

    Raises:
        ValueError: fewer than two background scores or keys.

    Source: Gumbel 1958; normalisation by background as in speaker verification (Auckenthaler,
        Carey and Lloyd-Thomas 2000); sqrt(2 ln n) is the growth of a normal maximum.
    """
    if n < 2:
        raise ValueError("normalise: needs at least two background scores and two keys")
    z = _excess(scores, background_scores)
    return (z - chance.location - chance.growth * _growth(n)) / chance.scale


def threshold(rate: float) -> float:
    """Return the normalised score that the best of any number of chance keys exceeds at `rate`.

    Args:
        rate: false sightings a question, in (0, 1).

    Raises:
        ValueError: rate out of range.
    """
    if not 0 < rate < 1:
        raise ValueError(f"threshold: rate is {rate}; give a value between 0 and 1")
    return float(-np.log(-np.log1p(-rate)))


def fit(absent: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Chance:
    """Fit ``Chance`` to questions whose answer is not in the memory.

    Least squares over quantiles, which is linear in the three constants.

    Args:
        absent: of memories of different sizes: n, the best cosine [Q] of each such question, and
            its background scores [Q, B].

    Raises:
        ValueError: fewer than two sizes.
    """
    if len({n for n, *_ in absent}) < 2:
        raise ValueError("fit: needs questions to memories of at least two sizes")
    rows, quantiles = [], []
    for n, best, background in absent:
        z = _excess(best[:, None], background)[:, 0]
        rows += [(1.0, _growth(n), -np.log(-np.log(p))) for p in _QUANTILES]
        quantiles += np.quantile(z, _QUANTILES).tolist()
    found = np.linalg.lstsq(np.array(rows), np.array(quantiles), rcond=None)[0]
    return Chance(*(round(float(value), 3) for value in found))


def _growth(n: int) -> float:
    return math.sqrt(2 * math.log(n))


def _excess(scores: np.ndarray, background_scores: np.ndarray) -> np.ndarray:
    background = np.asarray(background_scores, np.float64)
    if background.ndim < 1 or background.shape[-1] < 2:
        raise ValueError("normalise: needs at least two background scores and two keys")
    num_best = max(1, round(TAIL * background.shape[-1]))
    best = np.partition(background, -num_best, axis=-1)[..., -num_best:]
    # A query that the bank cannot tell apart at all must not divide by zero.
    deviation = np.maximum(background.std(axis=-1, keepdims=True), 1e-6)
    return (np.asarray(scores, np.float64) - best.mean(axis=-1, keepdims=True)) / deviation
