"""Captioned-photo folders: ``images/`` and ``captions.jsonl``, one row a photo.

    for photo in read_photos(Path("flickr8k"), "val"):
        pixels, captions = read_picture(photo.path), photo.captions

The folder is not trusted: every row and picture is checked before it is used.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from streammem.errors import ConfigError, DatasetError

EVERY_SPLIT = "all"
BATCH_SIZE = 16
# Far above any real row or photo; they keep a malicious folder from filling the memory.
MAX_ROW_BYTES = 1 << 20
MAX_ROWS = 5_000_000
MAX_PICTURE_BYTES = 64 << 20
MAX_PICTURE_PIXELS = 64_000_000
# Of Pillow's decoders only these: some of the others start outside programs.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True, slots=True)
class Photo:
    """A row of ``captions.jsonl``.

    Attributes:
        name: as in the row, relative to ``images/``.
        path: the picture's file, which lies inside ``images/``.
        captions: at least one, none of them empty.
    """

    name: str
    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """The options of a suite.

    Attributes:
        split: rows of this split; ``all`` takes every row.
        limit: only the first so many photos.
        controls: also score controls, such as the model without sight of the photo.
        predictions: file that gets a JSON line for every prediction.
        progress: show a bar on stderr, where that is a terminal.
        nearest: control that captions pictures by their nearest training photo's caption.

    Raises:
        ConfigError: ``limit`` below 1.
    """

    split: str = "val"
    limit: int | None = None
    controls: bool = False
    predictions: Path | None = None
    progress: bool = True
    nearest: Callable[[Sequence[np.ndarray]], list[str]] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: must be at least 1, not {self.limit}")


def read_photos(folder: Path, split: str) -> list[Photo]:
    """Read the rows of one split, in the file's order.

    Rows without captions are skipped.

    Args:
        folder: holds ``images/`` and ``captions.jsonl`` with rows
            ``{"image": str, "split": str, "captions": [str, ...]}``; other keys are ignored.
        split: its name, or ``all``.

    Raises:
        DatasetError: a missing file or folder, a malformed row (with its line number), a picture
            outside ``images/``, listed twice or missing, or a split without photos.
    """
    table = folder / "captions.jsonl"
    images = (folder / "images").resolve()
    if not table.is_file() or not images.is_dir():
        raise DatasetError(f"{folder}: must hold captions.jsonl and images/")
    photos: dict[str, Photo] = {}
    splits: Counter[str] = Counter()
    for number, line in _lines(table):
        try:
            row_split, photo = _parse_row(line, images)
            if photo.name in photos:
                raise DatasetError(f"{photo.name} is listed twice")
            splits[row_split] += 1
            if photo.captions and split in (row_split, EVERY_SPLIT):
                if not photo.path.is_file():
                    raise DatasetError(f"images/{photo.name} is missing")
                photos[photo.name] = photo
        except DatasetError as error:
            raise DatasetError(f"{table}:{number}: {error}") from None
    if not photos:
        known = ", ".join(sorted(splits)) or "none, the file is empty"
        raise DatasetError(f"{table}: no captioned photo in split {split!r}; splits here: {known}")
    return list(photos.values())


def read_photo(path: Path) -> np.ndarray:
    """Decode a picture file.

    Returns:
        [H, W, 3] uint8 RGB, upright.

    Raises:
        DatasetError: not a picture of a known format, broken, or too large.
    """
    from PIL import Image, ImageOps

    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise DatasetError(f"{path}: larger than {MAX_PICTURE_BYTES >> 20} MiB")
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise DatasetError(f"{path}: more than {MAX_PICTURE_PIXELS:,} pixels")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except DatasetError:
        raise
    # Pillow reports broken files by all of these.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read as a picture ({error})") from error


def batches(photos: Sequence[Photo], size: int = BATCH_SIZE) -> Iterator[Sequence[Photo]]:
    """Cut into batches of ``size``; of two photos or more, none is ever alone in its batch."""
    start = 0
    while start < len(photos):
        stop = start + size
        if len(photos) - stop == 1:
            stop += 1
        yield photos[start:stop]
        start = stop


def progress_bar(num_photos: int, options: EvaluationOptions) -> tqdm:
    """Open a progress bar on stderr, shown on a terminal unless ``options`` disable it."""
    return tqdm(total=num_photos, unit="photo", disable=None if options.progress else True)


@contextlib.contextmanager
def prediction_lines(path: Path | None) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Open a file of predictions for writing.

    Yields:
        A function that writes rows, one JSON line each, and flushes; without a path it does
        nothing.

    Raises:
        ConfigError: the file cannot be opened.
    """
    if path is None:
        yield lambda rows: None
        return
    try:
        file: IO[str] = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write predictions ({error.strerror})") from error

    def write(rows: Sequence[dict[str, Any]]) -> None:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()

    with file:
        yield write


def _lines(table: Path) -> Iterator[tuple[int, bytes]]:
    with table.open("rb") as file:
        for number in range(1, MAX_ROWS + 1):
            line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_ROW_BYTES:
                raise DatasetError(f"{table}:{number}: row longer than {MAX_ROW_BYTES >> 20} MiB")
            if line.strip():
                yield number, line
    raise DatasetError(f"{table}: more than {MAX_ROWS:,} rows")


def _parse_row(line: bytes, images: Path) -> tuple[str, Photo]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DatasetError("a row must be an object with image, split and captions")
    name, split, captions = row.get("image"), row.get("split"), row.get("captions")
    if not isinstance(name, str) or not isinstance(split, str):
        raise DatasetError("image and split must be strings")
    if not isinstance(captions, list) or not all(
        isinstance(caption, str) and caption.strip() for caption in captions
    ):
        raise DatasetError("captions must be a list of sentences, none of them empty")
    return split, Photo(name, _inside(images, name), tuple(captions))


def _inside(images: Path, name: str) -> Path:
    try:
        path = (images / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # zero bytes, loops of links
        raise DatasetError(f"image {name!r}: {error}") from None
    if images not in path.parents:
        raise DatasetError(f"image {name!r} leads out of images/")
    return path
