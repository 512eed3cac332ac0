"""A needle in a haystack, in VideoLLaMB's manner: by length of the stream and depth of the needle.

Judged without a language model: is the needle among the five scenes that a question finds? An
image needle is a photo, asked for by a person's caption of it; a text needle is a sentence heard
in some scene, asked for by another person's sentence about the same thing. The memory is the one a
session uses, with its default bound, beyond which scenes merge.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streammem.engine.session_config import SessionConfig
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.evaluation.pictures import PictureModel
from streammem.memory.entry import Entry
from streammem.memory.memory import CacheConfig, Memory
from streammem.memory.retrieval import Query
from streammem.models.tiny.model import VideoModel

LENGTHS = {10: (20, 1), 100: (20, 1), 1_000: (4, 5), 10_000: (2, 10)}  # haystacks, needles a depth
DEPTHS = 11
HAY = 400  # photos
NEEDLES = 150
TURNED = 0.4  # how far a scene of the haystack is from its photo: no two show the same


def haystack(model: VideoModel, plots: Path | None) -> dict[str, Any]:
    """Return by needle the share found, [lengths][depths]; nothing without STREAMMEM_DATA."""
    if "STREAMMEM_DATA" not in os.environ:
        return {"skipped": "set STREAMMEM_DATA to a folder with flickr8k"}
    data = Path(os.environ["STREAMMEM_DATA"])
    photos = read_photos(data / "flickr8k", "val")  # which training has not seen
    hay, needles = photos[:HAY], photos[HAY : HAY + NEEDLES]
    keys = PictureModel(model).picture_keys([read_photo(photo.path) for photo in hay])
    shown = PictureModel(model).picture_keys([read_photo(photo.path) for photo in needles])
    asked = model.sentence_keys([photo.captions[0] for photo in needles])
    heard = model.sentence_keys([photo.captions[1] for photo in needles])
    found: dict[str, Any] = {}
    for kind, pictures, words in (("image", shown, None), ("text", None, heard)):
        found[kind] = {
            str(length): depths(length, keys, pictures, words, asked) for length in LENGTHS
        }
    if plots:
        _plot(found, plots / "needles.png")
    return found


def depths(
    length: int,
    hay: np.ndarray,
    pictures: np.ndarray | None,
    words: np.ndarray | None,
    asked: np.ndarray,
) -> list[float]:
    """Return the share of needles found, by depth from the oldest place to the newest."""
    haystacks, each = LENGTHS[length]
    hits = np.zeros(DEPTHS)
    for turn in range(haystacks):
        rng = np.random.default_rng([length, turn])
        chosen = rng.permutation(len(asked))[: DEPTHS * each].reshape(DEPTHS, each)
        scenes = _mixed(hay, length + chosen.size, rng)
        places = (np.linspace(0, length, DEPTHS)[:, None] + np.arange(each)).astype(int)
        places += each * np.arange(DEPTHS)[:, None]
        at = dict(zip(places.ravel().tolist(), chosen.ravel().tolist(), strict=True))
        memory = _filled(scenes, at, pictures, words)
        for depth in range(DEPTHS):
            for place, needle in zip(places[depth].tolist(), chosen[depth].tolist(), strict=True):
                rows = [hit.entry for hit in memory.search(Query(asked[needle]), k=5)]
                hits[depth] += any(row.segment <= place <= row.last for row in rows)
    return [round(share, 3) for share in (hits / haystacks / each).tolist()]


def _filled(
    scenes: np.ndarray,
    needles: dict[int, int],
    pictures: np.ndarray | None,
    words: np.ndarray | None,
) -> Memory:
    config = CacheConfig(scenes.shape[1], (0, 0), SessionConfig().max_segments, keys_only=True)
    memory, none = Memory(config), np.zeros((0, scenes.shape[1]), np.float32)
    for place, key in enumerate(scenes):
        needle = needles.get(place)
        seen = key if needle is None or pictures is None else pictures[needle]
        note_keys = none if needle is None or words is None else words[needle][None]
        no_tokens = np.zeros((0, 0))
        entry = Entry(place, float(place), place + 1.0, 1, seen[None], none, note_keys, no_tokens)
        memory.append(entry, torch.zeros(0))
    return memory


def _mixed(hay: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal((count, hay.shape[1]), np.float32)
    rows = hay[rng.integers(0, len(hay), count)]
    rows = rows + TURNED * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _plot(found: dict[str, dict[str, Sequence[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axis, (kind, rows) in zip(axes, found.items(), strict=True):
        cells = np.array(list(rows.values())).T  # [depths, lengths]
        picture = axis.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(rows)), [f"{int(length):,}" for length in rows])
        axis.set_yticks(range(0, DEPTHS, 5), ["oldest", "middle", "newest"])
        axis.set(title=f"{kind} needle found among five", xlabel="scenes")
        for (y, x), value in np.ndenumerate(cells):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(picture, ax=axes)
    figure.savefig(path, dpi=110)
    plt.close(figure)
