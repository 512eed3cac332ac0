"""Still pictures, and folders of pictures as a video. An animated GIF is read as a file."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video.container import check_file, is_still_picture
from streammem.video.heif import read_still
from streammem.video.pixels import check_size, fitted_pixels
from streammem.video.registry import PICTURE_SUFFIXES
from streammem.video.source import HELD_S, Grid, Sampling, VideoSource

STILL_S = 1.0  # how long a single picture is shown
MAX_NAMED = 5  # entries of a folder that a notice names
# Read as videos where they are given alone, for they may move.
_ALONE_VIDEOS = {".gif", ".avif"}
_ANIMATED = {"WEBP", "PNG", "GIF", "AVIF"}  # formats; a TIFF or an MPO has pages or views instead
FOLDER_FPS = 1.0  # pictures a second of a folder where no fps is given


class PictureSource(VideoSource):
    """Pictures at a steady rate; none is left out but for ``start`` and ``end``.

    Where none begins within HELD_S after ``start``, the one that is on screen then is given.

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
            shown_until, duration = time + self._frame_s, self._frame_s
            if self._is_held_at_start(time):
                time = self._sampling.start
                duration = shown_until - time
            if not grid.takes(time):
                continue
            try:
                pixels = fitted_pixels(read_picture(path), self._sampling.max_side)
            except SourceError as error:
                unreadable.append(error)
                continue
            num_given += 1
            yield Frame(pixels, time, duration, index)
        if unreadable and not num_given:
            raise unreadable[0]
        missing = None
        if unreadable:
            missing = f"{len(unreadable)} of {len(self._paths)} pictures lost; {unreadable[0]}"
        self._finish(shown_until, num_given, missing)

    def _is_held_at_start(self, time: float) -> bool:
        """Return whether the picture of a time is on screen at the start, and stays there."""
        start, following = self._sampling.start, time + self._frame_s
        end = min(len(self._paths) * self._frame_s, self._sampling.end or math.inf)
        stays = following > start + HELD_S or following > end - 1e-6
        return time < start - 1e-6 and start < following - 1e-6 and stays


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

    ``sampling.fps`` is their rate, FOLDER_FPS if None. What is no picture is named in a notice.

    Raises:
        SourceError: no pictures in it, or it cannot be listed.
    """
    try:
        entries = [p for p in Path(path).iterdir() if not p.name.startswith(".")]
    except OSError as error:
        raise SourceError(f"{path}: {(error.strerror or 'unreadable').lower()}") from None
    kinds = PICTURE_SUFFIXES | _ALONE_VIDEOS
    pictures = [p for p in entries if p.suffix.lower() in kinds and p.is_file()]
    if not pictures:
        text = f"a folder without pictures; it should hold some of {' '.join(sorted(kinds))}"
        raise SourceError(f"{path}: {text}; videos in a folder are for streammem index")
    source = PictureSource(
        sorted(pictures, key=_natural), path, sampling, 1 / (sampling.fps or FOLDER_FPS)
    )
    if others := sorted(set(entries) - set(pictures), key=_natural):
        names = ", ".join(p.name for p in others[:MAX_NAMED])
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        are = "is" if len(others) == 1 else "are"
        text = f"{len(others)} of {len(entries)} entries {are} left out, being no pictures"
        source.notices.append(f"{path}: {text}: {names}{more}")
    return source


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
            if getattr(image, "is_animated", False) and image.format in _ANIMATED:
                advice = "give it alone" if image.format in ("GIF", "AVIF") else "convert it to MP4"
                raise SourceError(f"{path}: is an animation; {advice}")
            return _rgb(ImageOps.exif_transpose(image))
    except SourceError:
        raise
    except PermissionError:
        raise SourceError(f"{path}: permission denied; check its rights") from None
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            if is_still_picture(path):
                return read_still(path)
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
