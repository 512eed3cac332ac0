"""The suite ``retrieval``: can a model find the photo that a sentence was written about?

    report = evaluate_retrieval(Path("flickr8k"), PictureModel(load("streammem-tiny")), options)
    report.recalls  # at 1, 5 and 10

Keys are compared by exact cosine; the approximate index of a memory is not tested here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from streammem.errors import BackboneError
from streammem.evaluation.datasets import (
    EvaluationOptions,
    Photo,
    batches,
    prediction_lines,
    progress_bar,
    read_photo,
    read_photos,
)

RECALLS_AT = (1, 5, 10)
# Equal keys differ by rounding in their cosines; within this they are a tie.
TIE = 1e-6
SENTENCES_AT_ONCE = 256


@runtime_checkable
class KeyEncoder(Protocol):
    """A model with keys of pictures and sentences in one space; keys need not be normalised."""

    def picture_keys(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """[H, W, 3] uint8 RGB each, N of them, of any size -> [N, D] float."""
        ...

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """M sentences -> [M, D] float."""
        ...


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """The rank of the right photo among all photos, over all sentences.

    Attributes:
        recalls: share of sentences whose photo is among the first 1, 5, 10, in [0, 1].
        median_rank: from 1.
        standard_errors: of ``recalls``, over photos: a photo's sentences are not independent.
        controls: whether ``to_json`` has the figures of random guessing.
    """

    split: str
    photos: int
    sentences: int
    recalls: tuple[float, ...]
    median_rank: float
    standard_errors: tuple[float, ...]
    controls: bool

    def to_json(self) -> dict[str, object]:
        """Return the object that ``streammem eval retrieval`` prints on its last line."""
        chance = [min(k / self.photos, 1.0) for k in RECALLS_AT]
        blind = {**_by_name(chance), "median_rank": (self.photos + 1) / 2}
        return {
            "suite": "retrieval",
            "split": self.split,
            "photos": self.photos,
            "sentences": self.sentences,
            **_by_name(self.recalls),
            "median_rank": self.median_rank,
            "standard_errors": _by_name(self.standard_errors),
            "controls": {"chance": blind} if self.controls else {},
        }


def evaluate_retrieval(
    folder: Path, encoder: KeyEncoder, options: EvaluationOptions
) -> RetrievalReport:
    """Search for each photo of a split by each of its captions.

    Args:
        folder: see ``read_photos``.
        encoder: to evaluate.
        options: ``limit`` also shrinks the number of photos to choose from; ``predictions`` gets
            ``{"sentence", "image", "rank"}`` a sentence.

    Raises:
        DatasetError: the folder is malformed.
        ConfigError: the file of predictions cannot be written.
        BackboneError: the encoder returns keys of the wrong shape.
    """
    photos = read_photos(folder, options.split)[: options.limit]
    texts = [text for photo in photos for text in photo.captions]
    owners = np.repeat(np.arange(len(photos)), [len(photo.captions) for photo in photos])  # [M]
    with prediction_lines(options.predictions) as write:
        ranks = ranks_of(
            _sentence_keys(texts, encoder), _picture_keys(photos, encoder, options), owners
        )
        write(
            [
                {"sentence": text, "image": photos[owner].name, "rank": rank}
                for text, owner, rank in zip(texts, owners, ranks.tolist(), strict=True)
            ]
        )
    return RetrievalReport(
        split=options.split,
        photos=len(photos),
        sentences=len(texts),
        recalls=tuple(recall_at_k(ranks, k) for k in RECALLS_AT),
        median_rank=float(np.median(ranks)),
        standard_errors=tuple(_standard_error(ranks <= k, owners) for k in RECALLS_AT),
        controls=options.controls,
    )


def ranks_of(sentences: np.ndarray, pictures: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Rank each sentence's own picture among all by cosine.

    Args:
        sentences: [M, D] float.
        pictures: [N, D] float.
        owners: [M] int in [0, N), the picture that each sentence belongs to.

    Returns:
        [M] int in [1, N]. Ties, and scores that are not numbers, count against the model.

    Raises:
        BackboneError: the two kinds of keys differ in width.
    """
    if sentences.shape[1] != pictures.shape[1]:
        raise BackboneError(
            f"sentence keys have {sentences.shape[1]} numbers, picture keys {pictures.shape[1]}"
        )
    pictures, ranks = _unit(pictures), []
    for start in range(0, len(sentences), SENTENCES_AT_ONCE):
        block = slice(start, start + SENTENCES_AT_ONCE)
        scores = _unit(sentences[block]) @ pictures.T  # [m, N]
        own = np.take_along_axis(scores, owners[block, None], axis=1)
        # Counts worse pictures, not better ones, so that NaN counts against the model too.
        ranks.append(len(pictures) - (scores < own - TIE).sum(axis=1))
    return np.concatenate(ranks)


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of ``ranks`` ([M] int, from 1) that are at most ``k``."""
    return float((ranks <= k).mean())


def _sentence_keys(texts: Sequence[str], encoder: KeyEncoder) -> np.ndarray:
    blocks = range(0, len(texts), SENTENCES_AT_ONCE)
    return _joined([encoder.sentence_keys(texts[n : n + SENTENCES_AT_ONCE]) for n in blocks], texts)


def _picture_keys(
    photos: Sequence[Photo], encoder: KeyEncoder, options: EvaluationOptions
) -> np.ndarray:
    keys = []
    with progress_bar(len(photos), options) as bar:
        for batch in batches(photos):
            keys.append(encoder.picture_keys([read_photo(photo.path) for photo in batch]))
            bar.update(len(batch))
    return _joined(keys, photos)


def _joined(keys: Sequence[np.ndarray], owners: Sequence[object]) -> np.ndarray:
    rows = np.concatenate(keys)
    if rows.ndim != 2 or len(rows) != len(owners):
        raise BackboneError(f"keys of {len(owners)} inputs have shape {rows.shape}")
    return rows


def _unit(keys: np.ndarray) -> np.ndarray:
    keys = keys.astype(np.float64)
    return keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)


def _standard_error(hits: np.ndarray, owners: np.ndarray) -> float:
    """Standard error of the mean of [M] hits, whose photos are the independent draws."""
    residuals = np.bincount(owners, weights=hits - hits.mean())  # [N]
    return float(np.sqrt((residuals**2).sum()) / len(hits))


def _by_name(recalls: Sequence[float]) -> dict[str, float]:
    return {f"recall@{k}": round(value, 6) for k, value in zip(RECALLS_AT, recalls, strict=True)}
