"""Captioned pictures as cached vision features, and the views of them that training draws."""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streammem.errors import DatasetError

WHOLE, FLIPPED = 0, 1  # views 2 and on are random crops
MAX_FRAMES = 3  # views that play the frames of one segment


@dataclass(frozen=True, slots=True, eq=False)
class PictureSet:
    """Pictures with their captions.

    Attributes:
        names: file names.
        captions: at least one caption a picture.
        features: [N, views, P, V] float16, memory-mapped; row ``rows[i]`` belongs to picture i.
        rows: index into ``features``.
    """

    names: Sequence[str]
    captions: Sequence[Sequence[str]]
    features: Sequence[np.ndarray]
    rows: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.names)

    def view(self, index: int, view: int) -> np.ndarray:
        """Return one view's patches [P, V] float16."""
        source, row = self.rows[index]
        return self.features[source][row, view]

    def whole(self, chosen: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return whole pictures as one-frame segments: patches [B, 1, P, V] and times [B, 1]."""
        patches = np.stack([self.view(int(i), WHOLE) for i in chosen])[:, None]
        return torch.from_numpy(patches).float(), torch.full((len(patches), 1), 0.5)

    def __add__(self, other: "PictureSet") -> "PictureSet":
        moved = [(source + len(self.features), row) for source, row in other.rows]
        return PictureSet(
            [*self.names, *other.names],
            [*self.captions, *other.captions],
            [*self.features, *other.features],
            [*self.rows, *moved],
        )


def load_pictures(folder: Path, cache: Path, split: str) -> PictureSet:
    """Load a captioned-picture folder whose features are cached.

    Args:
        folder: holds ``images/`` and ``captions.jsonl``.
        cache: holds ``<folder's name>.npy`` and ``.json`` (see ``features.py``).
        split: ``train`` or ``val``. A folder whose rows are all ``train`` is split by a checksum
            of the file name, one picture in five for validation.
    """
    try:
        lines = (folder / "captions.jsonl").read_text().splitlines()
        names = json.loads((cache / f"{folder.name}.json").read_text())
        features = np.load(cache / f"{folder.name}.npy", mmap_mode="r")
    except FileNotFoundError as error:
        raise DatasetError(f"{error.filename}: missing; is this a captioned-picture folder, and are its features cached?") from error
    rows = {name: i for i, name in enumerate(names)}
    records = [json.loads(line) for line in lines]
    own_split = any(record["split"] == "val" for record in records)
    kept = []
    for record in records:
        record_split = record["split"] if own_split else checksum_split(record["image"])
        captions = record_captions(record)
        if record_split == split and captions and record["image"] in rows:
            kept.append((record["image"], captions))
    return PictureSet(
        [name for name, _ in kept],
        [captions for _, captions in kept],
        [features],
        [(0, rows[name]) for name, _ in kept],
    )


def checksum_split(name: str) -> str:
    """Split by name: ``val`` for one name in five, the same on every machine."""
    return "val" if zlib.crc32(name.encode()) % 5 == 0 else "train"


def record_captions(record: dict) -> list[str]:
    """Return a row's captions as sentences; rows with objects or a label only get plain ones."""
    if record.get("label"):
        label = record["label"].replace("_", " ")
        return [f"A {label}.", f"This is a {label}.", f"A {label} in a house.", f"The inside of a {label}."]
    if record.get("objects"):
        return _object_captions(record["image"], record["objects"])
    return [sentence(text) for text in record["captions"]]


def sentence(text: str) -> str:
    """Normalise a caption: one space, a capital, a full stop."""
    text = re.sub(r"\s+([.,!?;:'])", r"\1", " ".join(text.split())).rstrip(" .,;!?")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _object_captions(name: str, objects: Sequence[str]) -> list[str]:
    """Make five sentences that name objects which people said are there."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    plain = [o.replace("_", " ") for o in objects if len(o.split()) <= 2 and o.isascii()]
    if not plain:
        return []
    forms = ("A room with {}.", "There is {} in the room.", "An indoor scene with {}.", "{} in a room.", "A view of {} indoors.")
    captions = []
    for form in forms:
        count = min(len(plain), int(rng.integers(1, 4)))
        named = [_with_article(o) for o in rng.choice(plain, count, replace=False)]
        listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
        captions.append(sentence(form.format(listed)))
    return captions


def _with_article(noun: str) -> str:
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def sample_views(
    pictures: PictureSet, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each picture's segment: half of the time one frame, else two or three views of it.

    Views of one picture stand for the frames of a scene with a moving camera; flips are kept
    apart, since a scene does not mirror itself halfway.

    Returns:
        patches [B, MAX_FRAMES, P, V], times [B, MAX_FRAMES], mask [B, MAX_FRAMES] bool.
    """
    first = pictures.view(int(chosen[0]), WHOLE)
    patches = np.zeros((len(chosen), MAX_FRAMES, *first.shape), np.float32)
    times = np.full((len(chosen), MAX_FRAMES), 0.5, np.float32)
    mask = np.zeros((len(chosen), MAX_FRAMES), bool)
    for row, picture in enumerate(chosen):
        views = pictures.features[pictures.rows[int(picture)][0]].shape[1]
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, MAX_FRAMES + 1))
        base = WHOLE if rng.random() < 0.5 else FLIPPED
        options = rng.permutation([base, *range(2, views)])[:count]
        for frame, view in enumerate(options):
            patches[row, frame] = pictures.view(int(picture), int(view))
        if count > 1:
            times[row, :count] = np.linspace(0, 1, count)
        mask[row, :count] = True
    # Pictures with fewer frames than the longest need no more padding than that.
    longest = int(mask.sum(1).max())
    return (
        torch.from_numpy(patches[:, :longest]),
        torch.from_numpy(times[:, :longest]),
        torch.from_numpy(mask[:, :longest]),
    )
