"""Which of several captions fits a picture best; no words are made here.

The likeliest caption is often not the best: what the language model finds likely and what the keys
find in the picture err differently.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from streammem.models.backbones.language import Replies, Reply
from streammem.models.confidence import directions

MERITS = 2
RIDGE = 1e-2


class Choice(NamedTuple):
    """What a caption's merits count, and among how many captions it is chosen by default.

    Attributes:
        weights: [2], of ``merits``.
        candidates: captions drawn for each picture, >= 1.
    """

    weights: tuple[float, ...]
    candidates: int

    def __call__(self, seen: np.ndarray) -> int:
        """Return which of the captions is best by its merits [N, 2]; the first of equals."""
        return int((seen @ np.array(self.weights)).argmax())


def merits(log_probs: Sequence[float], words: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Measure what speaks for each of several captions of one picture.

    Args:
        log_probs: mean log-probability of a token of each of N captions.
        words: [N, K] unit keys of the captions.
        pictures: [V, K] unit keys of what they describe; the one that fits best counts.

    Returns:
        [N, 2]: cosine of words and picture; log-probability.
    """
    agreement = (directions(words) @ directions(pictures).T).max(1)
    return np.column_stack([agreement, log_probs]).astype(np.float64)


def best_reply(
    choice: Choice | None,
    sentence_keys: Callable[[Sequence[str]], np.ndarray],
    replies: Replies,
    pictures: np.ndarray,
) -> tuple[Reply, np.ndarray | None]:
    """Choose the reply that fits a picture best; the first where there is no choice.

    Args:
        choice: how; None takes the first.
        sentence_keys: maps texts to unit keys [N, K].
        replies: at least one; of several, each with the log-probabilities of its tokens.
        pictures: [V, K] unit keys of what they describe, V >= 1.

    Returns:
        The reply, and the unit key [K] of its text where it was needed for the choice.
    """
    if len(replies) == 1 or choice is None:
        return replies[0], None
    keys = sentence_keys([reply.text for reply in replies])
    log_probs = [float(np.mean(reply.log_probs)) for reply in replies]
    best = choice(merits(log_probs, keys, pictures))
    return replies[best], keys[best]


def fit(seen: Sequence[np.ndarray], worth: Sequence[np.ndarray], candidates: int) -> Choice:
    """Fit what merits count to captions whose worth is known, by ridge regression.

    Only differences between captions of one picture count, as only they are chosen between.

    Args:
        seen: merits [N, 2] of each picture's captions.
        worth: [N] of each picture's captions, such as their CIDEr-D.
        candidates: see ``Choice``.

    Raises:
        ValueError: no picture has captions of different merits.
    """
    x = np.concatenate([rows - rows.mean(0) for rows in seen])
    y = np.concatenate([values - values.mean() for values in worth])
    scale = x.std(0)
    if not scale.any():
        raise ValueError("choice: needs captions that differ in their merits")
    scale[scale == 0] = 1.0
    x = x / scale
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(MERITS), x.T @ y) / scale
    return Choice(tuple(float(weight) for weight in weights), candidates)
