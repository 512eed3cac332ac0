"""What a text key should count: recall of questions to photos by pictures, by text, and by both.

Four captions of each validation photo ask for it; stored beside its picture is the model's own
caption, or the fifth person's, as speech would be.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from streammem.errors import DatasetError
from streammem.evaluation.datasets import batches, read_photos, read_picture
from streammem.memory.cache import TEXT_MARGIN
from streammem.model import VideoModel

MARGINS = (0.5, 0.6, 0.65, 0.7)
SUM = 0.2  # of the text's cosine
FOUND_AT = (1, 5)


def measure(model: VideoModel) -> dict[str, Any]:
    """Return recall@1 and @5 by stored text and by what is compared."""
    if "STREAMMEM_DATA" not in os.environ:
        raise DatasetError("benchmarks memory --margins: set STREAMMEM_DATA to a folder of data")
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")
    keys, said = [], []
    for batch in batches(photos):
        pictures = [read_picture(photo.path) for photo in batch]
        keys.append(model.picture_keys(pictures))
        said += model.caption_pictures(pictures)
    asked = [(i, text) for i, photo in enumerate(photos) for text in photo.captions[1:]]
    gold = np.array([i for i, _ in asked])
    questions = model.sentence_keys([text for _, text in asked])
    seen = questions @ np.concatenate(keys).T
    stored = {
        "the model's own captions": said,
        "a person's caption": [photo.captions[0] for photo in photos],
    }
    return {
        name: _recalls(seen, questions @ model.sentence_keys(texts).T, gold)
        for name, texts in stored.items()
    }


def _recalls(seen: np.ndarray, told: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Compare scores of pictures and of texts, [Q, N] each."""
    ways = {"pictures alone": seen, "text alone": told}
    ways |= {f"nearest, text less {m}": np.maximum(seen, told - m) for m in MARGINS}
    ways[f"sum with {SUM} of the text's"] = seen + SUM * told
    assert TEXT_MARGIN in MARGINS  # what is shipped is one of them
    return {name: _recall(scores, gold) for name, scores in ways.items()}


def _recall(scores: np.ndarray, gold: np.ndarray) -> tuple[float, ...]:
    right = scores[np.arange(len(gold)), gold]
    ranks = (scores >= right[:, None]).sum(1)
    return tuple(round(float((ranks <= k).mean()), 3) for k in FOUND_AT)
