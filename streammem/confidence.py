"""How likely a caption's words are right, from keys alone; no language model runs for it.

Two things count: whether words and picture meet in the key space, and whether the picture is of a
kind that the model knows at all. Noise, darkness and blur agree with some caption as well as a
photo does, but lie far from all pictures of the background.
"""

from typing import NamedTuple

import numpy as np

SIGNS = 4
NEAREST = 10  # background pictures that say whether a picture is of a known kind
RIDGE = 1e-2
NEWTON_STEPS = 30


class Certainty(NamedTuple):
    """A logistic fit over ``signs``.

    Attributes:
        weights: [4].
        bias: the log-odds where all signs are 0.
    """

    weights: tuple[float, ...]
    bias: float

    def __call__(self, seen: np.ndarray) -> float:
        """Return the probability in (0, 1) that a noun of the caption is right."""
        return float(1 / (1 + np.exp(-(seen @ np.array(self.weights) + self.bias))))


def signs(pictures: np.ndarray, words: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Measure what confidence rests on.

    Args:
        pictures: [V, K] unit keys of what is described.
        words: [K] unit key of the caption.
        background: [B, K] unit keys of unrelated pictures, B >= 2.

    Returns:
        [4]: cosine of words and the picture that fits them best; by how many standard deviations
        it exceeds the background's; mean cosine of that picture with the ``NEAREST`` of the
        background, and with all of it.
    """
    fits = pictures @ words
    key, agreement = pictures[fits.argmax()], fits.max()
    chance = background @ words
    like = np.sort(background @ key)
    excess = (agreement - chance.mean()) / max(chance.std(), 1e-6)
    return np.array([agreement, excess, like[-NEAREST:].mean(), like.mean()], np.float64)


def fit(seen: np.ndarray, right: np.ndarray) -> Certainty:
    """Fit the probability to examples, by ridge logistic regression.

    Args:
        seen: [N, 4] signs.
        right: [N] in [0, 1], the share of each caption's nouns that are right.

    Raises:
        ValueError: fewer than two examples, or all equally right.
    """
    if len(seen) < 2 or np.ptp(right) == 0:
        raise ValueError("confidence: needs examples of captions that are right and that are wrong")
    mean, scale = seen.mean(0), np.maximum(seen.std(0), 1e-9)
    x = np.c_[(seen - mean) / scale, np.ones(len(seen))]
    ridge = RIDGE * len(seen) * np.diag([1.0] * seen.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (p - right) + ridge @ w
        w -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, slope)
    weights = w[:-1] / scale
    return Certainty(tuple(map(float, weights)), float(w[-1] - weights @ mean))
