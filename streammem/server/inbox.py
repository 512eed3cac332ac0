"""Frames that clients push, as a source that a session can watch."""

import io
import math
import queue
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from streammem.errors import SourceError
from streammem.server.refused import Refused
from streammem.types import Frame
from streammem.video.pixels import check_size, fitted_pixels
from streammem.video.source import DEFAULT_FPS, FrameSampler, Sampling, VideoSource

MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}
RAW = "application/octet-stream"


class Inbox(VideoSource):
    """Pushed pictures. Pictures come from the event loop, in one thread.

    Args:
        sampling: which pictures are kept, of what size; the others are dropped.
        waiting: pictures at most that wait for perception.
    """

    def __init__(self, sampling: Sampling, waiting: int) -> None:
        super().__init__("frames", sampling)
        self._sampler, self._shown_s = FrameSampler(sampling), 1 / (sampling.fps or DEFAULT_FPS)
        self._most = waiting
        self._queue: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._began: float | None = None
        self._newest, self._number, self._open = 0.0, 0, True

    @property
    def goes_on(self) -> bool:
        return True  # times of clients begin anew, too

    @property
    def waiting(self) -> int:
        """Pictures that wait for perception."""
        return self._queue.qsize()

    def push(self, pixels: np.ndarray, at: float | None) -> bool:
        """Add a picture.

        Args:
            pixels: [H, W, 3] uint8 RGB.
            at: seconds in the stream, not before the last one's; None is now.

        Returns:
            Whether it will be perceived; False if the sampling drops it, or may do so: before
            ``start``, the last one is perceived where none follows soon.

        Raises:
            Refused: too many wait, the stream has ended, or time runs backward.
        """
        if not self._open:
            raise Refused(409, "the stream has ended; open another session")
        if self.waiting >= self._most:
            raise Refused(429, f"{self.waiting} pictures wait; push more slowly", retry_s=1)
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        moment = now - self._began if at is None else at
        if at is None and not self._number:  # others have times of their own
            self.wall_zero = time.time() - moment
        if moment < self._newest:
            text = f"time {moment:.3f} s: the stream is at {self._newest:.3f} s already"
            raise Refused(409, text)
        self._newest = moment
        self._number += 1
        shown = Frame(pixels, moment, self._shown_s, self._number - 1)
        return self._put(self._sampler.push(shown), shown)

    def stop(self) -> None:
        """End the stream after the pictures that wait; thread-safe."""
        super().stop()
        self._open = False
        self._queue.put(None)

    def _put(self, frames: list[Frame], last: Frame) -> bool:
        """Let frames wait for perception; return whether the last one that came is among them."""
        for frame in frames:
            fitted = fitted_pixels(frame.pixels, self._sampling.max_side)
            self.end = min(frame.time + frame.duration, self._sampling.end or math.inf)
            self._queue.put(replace(frame, pixels=fitted))
        return any(frame is last for frame in frames)

    def _frames(self) -> Iterator[Frame]:
        while (frame := self._queue.get()) is not None:
            yield frame
        for frame in self._sampler.flush():
            self.end = frame.time + frame.duration
            yield replace(frame, pixels=fitted_pixels(frame.pixels, self._sampling.max_side))

    def _release(self) -> None:
        self._open = False


def decode(
    body: bytes, kind: str, width: int | None = None, height: int | None = None
) -> np.ndarray:
    """Decode a pushed picture into [H, W, 3] uint8 RGB.

    Args:
        body: of the request.
        kind: media type: JPEG, PNG, or raw RGB rows of octets.
        width: pixels, of raw rows.
        height: pixels, of raw rows.

    Raises:
        Refused: it is no picture of that type.
        SourceError: it has too many pixels.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind == RAW:
        return _raw(body, width, height)
    if kind not in MEDIA_TYPES:
        known = ", ".join((*MEDIA_TYPES, RAW))
        raise Refused(415, f"content-type {kind or 'missing'}: push one of {known}")
    form = MEDIA_TYPES[kind]
    return decode_picture(body, (form,), f"the body is not a readable {form}")


def decode_picture(body: bytes, forms: tuple[str, ...], otherwise: str) -> np.ndarray:
    """Decode a picture into [H, W, 3] uint8 RGB, upright.

    Args:
        body: the file.
        forms: Pillow's names of the formats that are taken.
        otherwise: the reason if it is none of them.

    Raises:
        Refused: it is none of them, or damaged.
        SourceError: it has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(body), formats=forms) as picture:
            check_size("the picture", *picture.size)
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except SourceError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(422, otherwise) from error


def _raw(body: bytes, width: int | None, height: int | None) -> np.ndarray:
    if not width or not height or width < 1 or height < 1:
        raise Refused(422, "raw pictures need ?width=W&height=H")
    check_size("the picture", width, height)
    if len(body) != width * height * 3:
        raise Refused(422, f"{len(body)} bytes are not {width}x{height}x3 of RGB")
    return np.frombuffer(body, np.uint8).reshape(height, width, 3)
