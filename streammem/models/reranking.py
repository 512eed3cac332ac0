"""Which of several captions fits a picture best; no words are made here.

The likeliest caption is often not the best: what the language model finds likely and what the keys
find in the picture err differently.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from streammem.models.backbones.language import Replies, Reply
from streammem.models.confidence import directions

RERANKING_FEATURES = 2
RIDGE = 1e-2


class Reranker(NamedTuple):
    """A linear score of a caption's features; the caption of the highest score is chosen.

    Attributes:
        weights: [2], of ``reranking_features``.
        candidates: captions drawn for each picture, >= 1.
    """

    weights: tuple[float, ...]
    candidates: int

    def __call__(self, seen: np.ndarray) -> int:
        """Return which of N captions is best by their features [N, 2]; the first of equals."""
        return int((seen @ np.array(self.weights)).argmax())


def reranking_features(
    log_probs: Sequence[float], words: np.ndarray, pictures: np.ndarray
) -> np.ndarray:
    """Compute the features of each of several captions of one picture.

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
    reranker: Reranker | None,
    sentence_keys: Callable[[Sequence[str]], np.ndarray],
    replies: Replies,
    pictures: np.ndarray,
) -> tuple[Reply, np.ndarray | None]:
    """Choose the reply that fits a picture best; the first where there is no choice.

    Args:
        reranker: how; None takes the first.
        sentence_keys: maps texts to unit keys [N, K].
        replies: at least one; of several, each with the log-probabilities of its tokens.
        pictures: [V, K] unit keys of what they describe, V >= 1.

    Returns:
        The reply, and the unit key [K] of its text where it was needed for the choice.
    """
    if len(replies) == 1 or reranker is None:
        return replies[0], None
    texts = list(dict.fromkeys(reply.text for reply in replies))  # replies may be alike
    own = dict(zip(texts, sentence_keys(texts), strict=True))
    keys = np.stack([own[reply.text] for reply in replies])
    log_probs = [float(np.mean(reply.log_probs)) for reply in replies]
    best = reranker(reranking_features(log_probs, keys, pictures))
    return replies[best], keys[best]


def fit_reranker(
    seen: Sequence[np.ndarray], worth: Sequence[np.ndarray], candidates: int
) -> Reranker:
    """Fit a reranker to captions whose worth is known, by ridge regression.

    Only differences between captions of one picture count, as only they are chosen between.

    Args:
        seen: features [N, 2] of each picture's captions.
        worth: [N] of each picture's captions, such as their CIDEr-D.
        candidates: see ``Reranker``.

    Raises:
        ValueError: no picture has captions of different features.
    """
    x = np.concatenate([rows - rows.mean(0) for rows in seen])
    y = np.concatenate([values - values.mean() for values in worth])
    scale = x.std(0)
    if not scale.any():
        raise ValueError("choice: needs captions that differ in their features")
    scale[scale == 0] = 1.0
    x = x / scale
    weights = (
        np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(RERANKING_FEATURES), x.T @ y) / scale
    )
    return Reranker(tuple(float(weight) for weight in weights), candidates)
