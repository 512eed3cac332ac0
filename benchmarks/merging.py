"""What joining scenes costs: the cache's epsilon and the clustering's least cosine.

Frames of real clips show how far one scene strays from itself, photos how near different ones
come. Epsilon joins a segment to the row before it; ``min_cosine`` gives a segment a further key.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from streammem.errors import DatasetError
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.evaluation.pictures import PictureModel
from streammem.memory.entry import coverage, visual_keys
from streammem.models.tiny.model import VideoModel
from streammem.video import open_source

EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.2)
MIN_COSINES = (0.7, 0.8, 0.85, 0.9, 0.95)
PHOTOS = 200
CLIP_FRAMES = 12
STATIC = ("intel_sample__bottle-detection", "intel_sample__one-by-one-person-detection")


def measure(model: VideoModel) -> dict[str, Any]:
    """Measure both on the clips and photos of STREAMMEM_DATA."""
    if "STREAMMEM_DATA" not in os.environ:
        raise DatasetError("benchmarks memory --merging: set STREAMMEM_DATA to a folder with clips")
    data = Path(os.environ["STREAMMEM_DATA"])
    clips = {path.stem: _keys(model, path) for path in sorted((data / "clips").glob("*.mp4"))}
    clips = {name: keys for name, keys in clips.items() if len(keys) >= 4}
    photos = read_photos(data / "flickr8k", "val")[:PHOTOS]
    pictures = PictureModel(model).picture_keys([read_photo(photo.path) for photo in photos])
    words = model.sentence_keys([photo.captions[0] for photo in photos])
    return {"epsilon": _epsilon(clips, pictures), "min_cosine": _keysets(clips, pictures, words)}


def _keys(model: VideoModel, path: Path) -> np.ndarray:
    with open_source(path, fps=2.0, end=CLIP_FRAMES / 2, max_side=320) as source:
        return np.stack([model.perceive(frame.pixels).key for frame in source])


def _epsilon(clips: dict[str, np.ndarray], pictures: np.ndarray) -> dict[str, Any]:
    """Share of half clips that continue their first half, of different photos that would."""
    halves = {
        name: coverage(visual_keys(keys[: len(keys) // 2]), visual_keys(keys[len(keys) // 2 :]))
        for name, keys in clips.items()
    }
    still = [halves[name] for name in STATIC if name in halves]
    cosines = pictures @ pictures.T
    others = cosines[~np.eye(len(pictures), dtype=bool)]
    return {
        str(epsilon): {
            "second halves joined": round(
                float(np.mean([c >= 1 - epsilon for c in halves.values()])), 3
            ),
            "of fixed cameras": round(float(np.mean([c >= 1 - epsilon for c in still])), 3),
            "pairs of photos joined": float((others >= 1 - epsilon).mean()),
        }
        for epsilon in EPSILONS
    }


def _keysets(
    clips: dict[str, np.ndarray], pictures: np.ndarray, words: np.ndarray
) -> dict[str, Any]:
    """Keys a clip, and whether one photo among a clip's frames is found by its caption."""
    names = list(clips)
    figures = {}
    for least in MIN_COSINES:
        num_keys = [len(visual_keys(keys, min_cosine=least)) for keys in clips.values()]
        rng, kept = np.random.default_rng(0), []
        for number, photo in enumerate(pictures):  # one frame of twelve shows something else
            frames = clips[names[rng.integers(len(names))]]
            keys = visual_keys(np.concatenate([frames, photo[None]]), min_cosine=least)
            kept.append(
                float((keys @ words[number]).max()) / max(1e-6, float(photo @ words[number]))
            )
        figures[str(least)] = {
            "keys a clip": round(float(np.mean(num_keys)), 2),
            "short event's score kept (median, lowest tenth)": [
                round(float(np.quantile(kept, q)), 3) for q in (0.5, 0.1)
            ],
        }
    return figures
