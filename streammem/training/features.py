"""Cached features of pictures and captions, computed once by the frozen encoders.

    cached = cache_features(source, encoder, Path("features"))
    pictures = cached.split("train")

A cache stores a fingerprint of its encoder and its views, and is refused if these differ.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from streammem.errors import DatasetError, SourceError
from streammem.models.backbones.text import SentenceEncoder
from streammem.models.backbones.vision import VisionEncoder
from streammem.training.pictures import WHOLE, PictureSet
from streammem.training.records import TRAIN, CaptionedSource, Record
from streammem.video import open_source

FLUSH_EVERY = 32  # pictures; a kill loses at most so many
CROP_SIDES = (0.75, 0.97)  # of the picture's width and height
STATISTICS_PICTURES = 600
MIN_STD = 1e-3
VIDEO_SIDE = 640  # pixels; longer ones are shrunk
LEAST_FRAMES = 4  # of a video, so that one of them is near its middle
PROBE_VALUES = 16
PROBE_TOLERANCE = 0.02  # of the largest value: processors differ in rounding


class PatchStatistics(NamedTuple):
    """Mean and standard deviation [V] of patches, the scale that the bridge reads them at."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The content of a cache, and its encoder.

    Attributes:
        names: of the pictures, in row order.
        views: how many views each has; a validation picture only the whole.
        shape: (views, P, V) of one row.
        crop_sides: range of a crop's sides as shares of the picture's.
        probe: a few of the encoder's output values for a fixed picture.
    """

    names: tuple[str, ...]
    views: tuple[int, ...]
    shape: tuple[int, int, int]
    crop_sides: tuple[float, float]
    probe: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CachedFeatures:
    """Features of a source.

    Attributes:
        source: whose they are.
        patches: [N, views, P, V] float16, memory-mapped: whole, mirrored, crops.
        frames: [N, D] float32, the encoder's frame embedding of each whole picture.
    """

    source: CaptionedSource
    patches: np.ndarray
    frames: np.ndarray

    def split(self, split: str) -> PictureSet:
        """Return the pictures of one split."""
        records = self.source.records
        kept = [i for i, record in enumerate(records) if record.split == split]
        return PictureSet(
            [f"{self.source.name}/{records[i].name}" for i in kept],
            [records[i].captions for i in kept],
            [records[i].questions for i in kept],
            [self.patches],
            [(0, i) for i in kept],
            [records[i].made for i in kept],
            [records[i].things for i in kept],
        )

    def training_frames(self) -> np.ndarray:
        """Return the frame embeddings [n, D] of the training pictures."""
        return self.frames[[record.split == TRAIN for record in self.source.records]]


def cache_features(
    source: CaptionedSource, encoder: VisionEncoder, folder: Path, *, crops: int = 2
) -> CachedFeatures:
    """Compute a source's features, continue a killed run of it, or open those that exist.

    Args:
        source: pictures.
        encoder: frozen.
        folder: gets ``<source>.json``, ``.npy``, ``.frames.npy`` and ``.done``; made if need be.
        crops: random crops of each training picture, drawn by its name.

    Raises:
        DatasetError: a picture that cannot be read, or a cache of other pictures, other views or
            another encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / source.name
    layout = _layout(source, encoder, crops)
    paths = base.with_name(f"{source.name}.npy"), base.with_name(f"{source.name}.frames.npy")
    header, counter = base.with_name(f"{source.name}.json"), base.with_name(f"{source.name}.done")
    count = len(source.records)
    if header.exists():
        _check(header, layout)
    else:
        counter.unlink(missing_ok=True)
        for path, shape, dtype in zip(
            paths, ((count, *layout.shape), (count, encoder.frame_dim)), ("f2", "f4"), strict=True
        ):
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        replace_text(header, json.dumps(asdict(layout)))
    done = int(counter.read_text()) if counter.exists() else 0
    if done < count:
        patches, frames = (np.load(path, mmap_mode="r+") for path in paths)
        with tqdm(
            total=count, initial=done, desc=f"features of {source.name}", unit="picture"
        ) as bar:
            for row in range(done, count):
                encoded = encoder.encode(picture_views(source.records[row], layout.views[row]))
                patches[row, : layout.views[row]] = encoded.patches.numpy()
                frames[row] = encoded.frame[WHOLE].numpy()
                bar.update()
                if (row + 1) % FLUSH_EVERY == 0 or row + 1 == count:
                    patches.flush()
                    frames.flush()
                    replace_text(
                        counter, str(row + 1)
                    )  # last, when the rows that it counts are on disk
    return CachedFeatures(source, *(np.load(path, mmap_mode="r") for path in paths))


def picture_views(record: Record, count: int) -> list[np.ndarray]:
    """Return the first ``count`` views of a picture: whole, mirrored, crops; [H, W, 3] uint8.

    A video's are its middle frame, that mirrored, and other frames, evenly spread.

    Raises:
        DatasetError: not a picture, or not a video.
    """
    if record.video:
        return _video_views(record.path, count)
    try:
        with Image.open(record.path) as opened:
            whole = np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{record.path}: cannot be read as a picture ({error})") from error
    views = [whole, np.ascontiguousarray(whole[:, ::-1])]
    rng = np.random.default_rng(zlib.crc32(record.name.encode()))
    views += [_crop(whole, rng) for _ in range(len(views), count)]
    return views[:count]


def _video_views(path: Path, count: int) -> list[np.ndarray]:
    wanted = max(LEAST_FRAMES, count)
    try:
        with open_source(path) as source:
            length = source.duration or 1.0
        with open_source(path, fps=wanted / length, max_side=VIDEO_SIDE) as source:
            frames = [frame.pixels for frame, _ in zip(source, range(wanted), strict=False)]
    except SourceError as error:
        raise DatasetError(f"{path}: cannot be read as a video ({error})") from error
    middle = frames.pop(len(frames) // 2)
    others = [frames[i % len(frames)] if frames else middle for i in range(count - 2)]
    return [middle, np.ascontiguousarray(middle[:, ::-1]), *others][:count]


def patch_statistics(pictures: PictureSet, seed: int) -> PatchStatistics:
    """Measure the patches of a seeded sample of whole pictures."""
    rng = np.random.default_rng(seed)
    chosen = pictures.draw(rng, STATISTICS_PICTURES)
    return statistics_of(
        torch.from_numpy(np.stack([pictures.view(int(i), WHOLE) for i in chosen])).float()
    )


def statistics_of(patches: Tensor) -> PatchStatistics:
    """Measure patches [N, P, V]."""
    flat = patches.flatten(0, 1)
    return PatchStatistics(flat.mean(0), flat.std(0, correction=0).clamp(min=MIN_STD))


def embed_captions(
    captions: Sequence[Sequence[str]],
    encoder: Callable[[], SentenceEncoder],
    name: str,
    folder: Path,
) -> list[Tensor]:
    """Embed every caption of every picture, once: the result is kept in ``folder``.

    Args:
        captions: of each picture, at least one.
        encoder: opens the sentence encoder; called only if embeddings are missing.
        name: of the encoder; a part of the file's name, as is a checksum of the captions.
        folder: made if need be.

    Returns:
        For each picture [its captions, E] float32.
    """
    flat = [text for row in captions for text in row]
    digest = hashlib.sha256("\n".join([name, *flat]).encode()).hexdigest()[:16]
    path = folder / f"captions-{digest}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part.npy")
        np.save(scratch, encoder().encode(flat).numpy())
        os.replace(scratch, path)
    return list(torch.from_numpy(np.load(path)).split([len(row) for row in captions]))


def _layout(source: CaptionedSource, encoder: VisionEncoder, crops: int) -> CacheLayout:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    probe = encoder.encode([noise]).patches[0].mean(0)  # [V]
    spaced = probe[:: max(1, len(probe) // PROBE_VALUES)][:PROBE_VALUES]
    return CacheLayout(
        names=tuple(record.name for record in source.records),
        views=tuple(2 + crops if record.split == TRAIN else 1 for record in source.records),
        shape=(2 + crops, encoder.patches, encoder.patch_dim),
        crop_sides=CROP_SIDES,
        probe=tuple(round(value, 5) for value in spaced.tolist()),
    )


def _check(header: Path, layout: CacheLayout) -> None:
    """Compare a cache's header with the wanted layout."""
    try:
        stored = {key: tuple(value) for key, value in json.loads(header.read_text()).items()}
        found = CacheLayout(**stored)
        unlike = np.abs(np.subtract(found.probe, layout.probe)).max()
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{header}: not the header of a feature cache; remove it") from error
    crops = (found.shape, found.crop_sides), (layout.shape, layout.crop_sides)
    pictures = (found.names, found.views), (layout.names, layout.views)
    reasons = {
        "its views are others": crops[0] != crops[1],
        "its pictures or their splits are others": pictures[0] != pictures[1],
        "another encoder made it": unlike > PROBE_TOLERANCE * np.abs(layout.probe).max(),
    }
    if reason := next((why for why, holds in reasons.items() if holds), None):
        raise DatasetError(f"{header}: a stale cache: {reason}; remove it or name another folder")


def _crop(whole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = whole.shape[:2]
    tall, wide = (
        max(1, round(s * v))
        for s, v in zip(rng.uniform(*CROP_SIDES, 2), (height, width), strict=True)
    )
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return whole[top : top + tall, left : left + wide]


def replace_text(path: Path, text: str) -> None:
    """Write a text file; a kill leaves the old one or the new one."""
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_text(text)
    os.replace(scratch, path)
