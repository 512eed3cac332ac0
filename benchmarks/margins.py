"""What a text key should count: recall of questions to photos by pictures, by text, and by both.

Four human captions of each validation photo are its queries. The text key beside its picture is of
the model's own caption, or of the fifth human one, like speech. The model's own captions are
queries too, as of a user who has read one; only those that the model gave to one photo.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from streammem.errors import DatasetError
from streammem.evaluation.datasets import batches, read_photo, read_photos
from streammem.evaluation.pictures import PictureModel
from streammem.memory.retrieval import MARGINS
from streammem.models.tiny.model import VideoModel

TRIED = (0.4, 0.45, 0.5, 0.6, 0.65, 0.7)
SUM = 0.2  # of the text's cosine
FOUND_AT = (1, 5)


def measure(model: VideoModel) -> dict[str, Any]:
    """Return recall@1 and @5 by stored text and by what is compared."""
    if "STREAMMEM_DATA" not in os.environ:
        raise DatasetError("benchmarks memory --margins: set STREAMMEM_DATA to a folder of data")
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")
    keys, own_texts = [], []
    for batch in batches(photos):
        pictures = [read_photo(photo.path) for photo in batch]
        keys.append(PictureModel(model).picture_keys(pictures))
        own_texts += PictureModel(model).caption_pictures(pictures)
    asked = [(i, text) for i, photo in enumerate(photos) for text in photo.captions[1:]]
    gold = np.array([i for i, _ in asked])
    questions = model.sentence_keys([text for _, text in asked])
    pictures = np.concatenate(keys)
    own = model.sentence_keys(own_texts)
    heard = model.sentence_keys([photo.captions[0] for photo in photos])
    once = np.array([i for i, text in enumerate(own_texts) if own_texts.count(text) == 1])
    seen = questions @ pictures.T
    return {
        "the model's own captions": _recalls(seen, questions @ own.T, gold),
        "the same, asked for in their words": _recalls(
            own[once] @ pictures.T, own[once] @ own.T, once
        ),
        "a person's caption": _recalls(seen, questions @ heard.T, gold),
    }


def _recalls(seen: np.ndarray, by_text: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Compare scores of pictures and of texts, [Q, N] each."""
    ways = {"pictures alone": seen, "text alone": by_text}
    ways |= {f"nearest, text less {m}": np.maximum(seen, by_text - m) for m in TRIED}
    ways[f"sum with {SUM} of the text's"] = seen + SUM * by_text
    assert {MARGINS["caption_keys"], MARGINS["note_keys"]} <= {*TRIED}  # what is shipped
    return {name: _recall(scores, gold) for name, scores in ways.items()}


def _recall(scores: np.ndarray, gold: np.ndarray) -> tuple[float, ...]:
    right = scores[np.arange(len(gold)), gold]
    ranks = (scores >= right[:, None]).sum(1)
    return tuple(round(float((ranks <= k).mean()), 3) for k in FOUND_AT)
