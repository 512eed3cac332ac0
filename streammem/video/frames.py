"""Frames that the caller pushes: an iterable of numpy pictures, or of `Frame`s with their times."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from streammem.errors import ConfigError
from streammem.types import Frame
from streammem.video.pixels import check_size, fitted_pixels
from streammem.video.source import FrameSampler, Sampling, VideoSource

NAME = "frames"


class PushedSource(VideoSource):
    """Frames from an iterable, taken one at a time as they are asked for.

    Args:
        frames: [H, W, 3] uint8 arrays, RGB, or `Frame`s; not a mixture. Arrays are copied, so
            that their buffer may be used again.
        sampling: for arrays, ``fps`` is their own rate, none is left out for it, and it must be
            given. `Frame`s have their own times, and ``fps`` samples them; a time before its
            predecessor's is raised to it. ``sparse`` changes nothing. Where none comes within
            HELD_S after ``start``, the one before is given, from there on.

    Raises:
        ConfigError: at the first item, arrays without ``fps``; at any, one of another kind.
    """

    def __init__(self, frames: Iterable[np.ndarray | Frame], sampling: Sampling) -> None:
        super().__init__(NAME, sampling, duration=None)
        self._items: Iterable[np.ndarray | Frame] = frames

    def _release(self) -> None:
        self._items = ()

    def _frames(self) -> Iterator[Frame]:
        sampler: FrameSampler | None = None
        num_given, shown_until, time = 0, 0.0, 0.0
        for number, item in enumerate(self._items):
            frame = item if isinstance(item, Frame) else self._timed(item, number)
            _check_pixels(frame.pixels, number)
            sampler = sampler or self._sampler(item)
            time = max(time, frame.time)
            pixels = frame.pixels.copy() if frame.pixels is item else frame.pixels
            for taken in sampler.push(replace(frame, pixels=pixels, time=time)):
                num_given += 1
                yield self._fitted(taken)
            if sampler.is_past(time):
                break
            shown_until = time + frame.duration
        for taken in sampler.flush() if sampler else ():
            num_given += 1
            yield self._fitted(taken)
        self._finish(shown_until, num_given)

    def _fitted(self, frame: Frame) -> Frame:
        return replace(frame, pixels=fitted_pixels(frame.pixels, self._sampling.max_side))

    def _timed(self, item: object, number: int) -> Frame:
        if not isinstance(item, np.ndarray):
            kind = type(item).__name__
            raise ConfigError(f"frame {number} is a {kind}; push numpy arrays or Frame objects")
        fps = self._sampling.fps
        if fps is None:
            raise ConfigError("numpy frames have no times; give their rate, for example fps=25")
        return Frame(item, number / fps, 1 / fps, number)

    def _sampler(self, first: object) -> FrameSampler:
        if isinstance(first, Frame):
            return FrameSampler(self._sampling)
        return FrameSampler(replace(self._sampling, fps=None))


def _check_pixels(pixels: np.ndarray, number: int) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ConfigError(
            f"frame {number} is {list(pixels.shape)} {pixels.dtype}; "
            "it must be [height, width, 3] uint8, RGB"
        )
    check_size(f"frame {number}", pixels.shape[1], pixels.shape[0])
