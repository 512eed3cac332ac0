"""Caption metrics: corpus BLEU-1 to 4, ROUGE-L and CIDEr-D, with standard errors over photos.

    cider = CiderD([[tokenise(text) for text in photo.captions] for photo in photos])
    scores, errors = score_captions(captions, [photo.captions for photo in photos], cider)

With the same tokens they agree with coco-caption; ``tokenise`` is simpler than its tokeniser.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_ORDER = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0
NUM_RESAMPLES = 1000

_PUNCTUATION = re.compile(r"[^\w\s]|_")

Tokens = list[str]
NgramCounts = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of a set of captions, or their standard errors.

    Attributes:
        bleu1, bleu2, bleu3, bleu4: corpus BLEU in [0, 1].
        rouge_l: mean over photos, in [0, 1].
        cider: CIDEr-D, mean over photos, in [0, 10].
    """

    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    rouge_l: float
    cider: float


class CiderD:
    """CIDEr-D against the n-gram statistics of one set of photos.

    Source: CIDEr (arXiv 1411.5726), sections 3 and 5: n-grams of order 1 to 4, clipped counts,
    Gaussian length penalty of sigma 6, scale 10.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        """Count the photos whose references have each n-gram.

        Args:
            references: of each photo of the split, its references' tokens.
        """
        self._log_num_photos = math.log(len(references))
        self._photos_with: NgramCounts = Counter()
        for photo in references:
            self._photos_with.update({gram for tokens in photo for gram in ngrams(tokens)})

    def score(self, candidate: Tokens, references: Sequence[Tokens]) -> float:
        """Return the score in [0, 10] of one photo's caption against its references."""
        total = sum(self._similarity(candidate, reference) for reference in references)
        return CIDER_SCALE * total / len(references)

    def _similarity(self, candidate: Tokens, reference: Tokens) -> float:
        ours, theirs = self._weights(candidate), self._weights(reference)
        cosines = 0.0
        for order in range(1, MAX_ORDER + 1):
            a = {gram: weight for gram, weight in ours.items() if len(gram) == order}
            b = {gram: weight for gram, weight in theirs.items() if len(gram) == order}
            # Clipped: repeating a word of the reference does not raise the score.
            dot = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
            norm = math.hypot(*a.values()) * math.hypot(*b.values())
            cosines += dot / norm if norm else 0.0
        gap = len(candidate) - len(reference)
        return cosines / MAX_ORDER * math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))

    def _weights(self, tokens: Tokens) -> dict[tuple[str, ...], float]:
        """Count times inverse document frequency of each n-gram; unseen ones count as seen once."""
        return {
            gram: count * (self._log_num_photos - math.log(max(self._photos_with[gram], 1)))
            for gram, count in ngrams(tokens).items()
        }


def tokenise(text: str) -> Tokens:
    """Split into lower-cased words; punctuation is deleted, so ``tri-colored`` is one word.

    Source: the rule behind the usual Flickr8k and COCO splits (Karpathy), for any script.
    """
    return _PUNCTUATION.sub("", text.lower()).split()


def ngrams(tokens: Tokens) -> NgramCounts:
    """Count the n-grams of order 1 to 4."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> np.ndarray:
    """Return the counts of one photo that corpus BLEU sums over photos.

    Returns:
        [10]: clipped matches of order 1 to 4, n-grams of order 1 to 4, the candidate's length,
        the length of the reference that is closest in length (of two, the shorter).
    """
    most: NgramCounts = Counter()
    for reference in references:
        most |= ngrams(reference)
    matches, totals = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    for gram, count in ngrams(candidate).items():
        matches[len(gram) - 1] += min(count, most[gram])
        totals[len(gram) - 1] += count
    closest = min((abs(len(words) - len(candidate)), len(words)) for words in references)[1]
    return np.concatenate([matches, totals, [len(candidate), closest]])


def bleu(counts: np.ndarray) -> np.ndarray:
    """Corpus BLEU-1 to 4 from summed counts.

    Args:
        counts: [..., 10], sums of ``bleu_counts``.

    Returns:
        [..., 4] in [0, 1]. No smoothing: an order without a match gives 0.

    Source: BLEU (Papineni et al. 2002), section 2.3.
    """
    matches, totals = counts[..., :MAX_ORDER], counts[..., MAX_ORDER : 2 * MAX_ORDER]
    length, closest = counts[..., -2:-1], counts[..., -1:]
    with np.errstate(divide="ignore"):
        log_precision = np.log(matches / np.maximum(totals, 1))
    log_mean = np.cumsum(log_precision, axis=-1) / np.arange(1, MAX_ORDER + 1)
    return np.exp(log_mean + np.minimum(1 - closest / np.maximum(length, 1), 0))


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L as coco-caption defines it: best precision and best recall over the references.

    Returns:
        F measure in [0, 1] with beta 1.2.
    """
    common = [_longest_common_subsequence(candidate, reference) for reference in references]
    precision = max(common) / max(len(candidate), 1)
    recall = max(
        length / max(len(reference), 1)
        for length, reference in zip(common, references, strict=True)
    )
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def score_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], cider: CiderD, seed: int = 0
) -> tuple[Scores, Scores]:
    """Score captions against their photos' references.

    Args:
        captions: one a photo, at least one.
        references: of each photo, at least one sentence.
        cider: statistics of the split that these photos belong to.
        seed: of the bootstrap.

    Returns:
        The figures, and their standard errors by bootstrap over photos.
    """
    rows = []
    for caption, sentences in zip(captions, references, strict=True):
        candidate, words = tokenise(caption), [tokenise(sentence) for sentence in sentences]
        row = [rouge_l(candidate, words), cider.score(candidate, words)]
        rows.append(np.concatenate([bleu_counts(candidate, words), row]))
    photos = np.stack(rows)  # [N, 12]
    num_photos = len(photos)
    uniform = np.full(num_photos, 1 / num_photos)
    drawn = np.random.default_rng(seed).multinomial(num_photos, uniform, size=NUM_RESAMPLES)
    resampled = _figures(drawn @ photos, num_photos)  # [1000, 6]
    figures = _figures(photos.sum(axis=0), num_photos)
    return Scores(*figures.tolist()), Scores(*resampled.std(axis=0, ddof=1).tolist())


def _figures(sums: np.ndarray, num_photos: int) -> np.ndarray:
    """[..., 12] sums over photos to [..., 6] figures in the order of ``Scores``."""
    return np.concatenate([bleu(sums[..., :-2]), sums[..., -2:] / num_photos], axis=-1)


def _longest_common_subsequence(a: Tokens, b: Tokens) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            best = diagonal + 1 if word == other else max(row[column], row[column - 1])
            diagonal, row[column] = row[column], best
    return row[-1]
