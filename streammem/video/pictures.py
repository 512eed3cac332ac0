"""Still pictures, and folders of pictures as a video. An animated GIF is read as a file."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video.container import check_file
from streammem.video.pixels import check_size, fitted_pixels
from streammem.video.registry import PICTURE_SUFFIXES
from streammem.video.source import Grid, Sampling, VideoSource

STILL_S = 1.0  # how long a single picture is shown
FOLDER_FPS = 1.0  # pictures a second of a folder where no fps is given


class PictureSource(VideoSource):
    """Pictures at a steady rate; none is left out but for ``start`` and ``end``.

    Args:
        paths: the pictures in order, at least one.
        name: what evidence calls the source.
        sampling: ``fps`` and ``sparse`` change nothing.
        frame_s: seconds that each picture is shown.
    """

    def __init__(self, paths: list[Path], name: str, sampling: Sampling, frame_s: float) -> None:
        super().__init__(name, sampling, duration=len(paths) * frame_s)
        self._paths, self._frame_s = paths, frame_s

    def _release(self) -> None:
        self._paths = []

    def _frames(self) -> Iterator[Frame]:
        grid = Grid(Sampling(start=self._sampling.start, end=self._sampling.end))
        unreadable: list[SourceError] = []
        num_given, shown_until = 0, 0.0
        for index, path in enumerate(self._paths):
            time = index * self._frame_s
            if grid.is_past(time):
                break
            shown_until = time + self._frame_s
            if not grid.takes(time):
                continue
            try:
                pixels = fitted_pixels(read_picture(path), self._sampling.max_side)
            except SourceError as error:
                unreadable.append(error)
                continue
            num_given += 1
            yield Frame(pixels, time, self._frame_s, index)
        if unreadable and not num_given:
            raise unreadable[0]
        missing = None
        if unreadable:
            missing = f"{len(unreadable)} of {len(self._paths)} pictures lost; {unreadable[0]}"
        self._finish(shown_until, num_given, missing)


def open_picture(path: str, sampling: Sampling) -> PictureSource:
    """Open one picture as a video of one frame, which is shown STILL_S.

    Raises:
        SourceError: it cannot be read.
    """
    check_file(path)
    read_picture(Path(path))
    return PictureSource([Path(path)], path, sampling, STILL_S)


def open_folder(path: str, sampling: Sampling) -> PictureSource:
    """Open a folder's pictures as a video, in natural order: 2.png before 10.png.

    ``sampling.fps`` is their rate, FOLDER_FPS if None.

    Raises:
        SourceError: no pictures in it, or it cannot be listed.
    """
    try:
        entries = [p for p in Path(path).iterdir() if not p.name.startswith(".") and p.is_file()]
    except OSError as error:
        raise SourceError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    pictures = sorted((p for p in entries if p.suffix.lower() in PICTURE_SUFFIXES), key=_natural)
    if not pictures:
        kinds = " ".join(sorted(PICTURE_SUFFIXES))
        raise SourceError(f"{path}: a folder without pictures; it should hold some of {kinds}")
    return PictureSource(pictures, path, sampling, 1 / (sampling.fps or FOLDER_FPS))


def read_picture(path: Path) -> np.ndarray:
    """Read a picture upright; what is transparent becomes white.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        SourceError: not a picture, broken, animated or too large.
    """
    try:
        with Image.open(path) as image:
            check_size(str(path), *image.size)
            if image.format in ("WEBP", "PNG") and getattr(image, "is_animated", False):
                raise SourceError(f"{path}: is an animation; convert it to GIF or MP4")
            return _rgb(ImageOps.exif_transpose(image))
    except SourceError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no picture format that is known"
        raise SourceError(
            f"{path}: cannot be read as a picture ({reason}); convert it to PNG or JPEG"
        ) from None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip instead of scaling
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":  # floats in [0, 1] as a rule; Pillow would take them for [0, 255]
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
        low, high = min(0.0, float(values.min())), float(values.max())
        most = next((limit for limit in (1.0, 255.0) if high <= limit), high)
        grey = ((values - low) / (most - low) * 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
