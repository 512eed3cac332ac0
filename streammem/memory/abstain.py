"""Abstention: is the best match better than chance would have it in a memory of this size?

Pure functions of scores; where the scores come from, and what is said then, is not known here.
"""

from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def normalise(scores: np.ndarray, background_scores: np.ndarray, n: int) -> np.ndarray:
    """Turn cosines into how far they exceed the best of `n` chance matches.

    z = (score - mean of the background) / its deviation, then (z - b_n) / a_n with
    b_n = quantile(1 - 1/n) of the normal distribution and a_n = 1 / (n density(b_n)): the extreme
    value of n chance keys, on a scale that does not depend on n. b_n grows as sqrt(2 log n). So a
    fixed threshold gives one rate of false sightings for any size of memory.

    Args:
        scores: [..., K] cosines of queries with keys of the memory, of one kind: visual and text
            scores have different backgrounds.
        background_scores: [..., B] of the same queries with a fixed bank of background keys,
            B >= 2; some hundreds are needed for a steady deviation.
        n: keys that were compared, >= 2. Keys of one stream resemble each other, so this is
            careful.

    Returns:
        [..., K] float64. Below `threshold(rate)`: not seen.

    Raises:
        ValueError: fewer than two background scores or keys.

    Source: Gumbel 1958; normalisation by background as z-norm in speaker verification
        (Auckenthaler, Carey and Lloyd-Thomas 2000).
    """
    background = np.asarray(background_scores, np.float64)
    if background.ndim < 1 or background.shape[-1] < 2 or n < 2:
        raise ValueError("normalise: needs at least two background scores and two keys")
    mean = background.mean(axis=-1, keepdims=True)
    # A query that the bank cannot tell apart at all must not divide by zero.
    deviation = np.maximum(background.std(axis=-1, keepdims=True), 1e-6)
    z = (np.asarray(scores, np.float64) - mean) / deviation
    expected = _NORMAL.inv_cdf(1 - 1 / n)
    return (z - expected) * (n * _NORMAL.pdf(expected))


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


def calibrate(absent: np.ndarray, rate: float) -> float:
    """Fit the threshold to questions whose answer is not in the memory.

    Args:
        absent: [Q] best normalised score of each such question.
        rate: false sightings allowed, in (0, 1).

    Returns:
        The threshold; at most `rate` of the questions exceed it.

    Raises:
        ValueError: no question.
    """
    if not len(absent):
        raise ValueError("calibrate: needs at least one question")
    return float(np.quantile(np.asarray(absent, np.float64), 1 - rate, method="higher"))
