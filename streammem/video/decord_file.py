"""Video files through decord, for those who have it: the same frames and times as PyAV gives.

PyAV reads the times, since decord rounds them to float32; decord decodes, one frame at a time.
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from streammem.errors import BackboneError, SourceError, install_command
from streammem.types import Frame
from streammem.video.container import PacketReader
from streammem.video.pixels import RgbConverter, fitted_pixels
from streammem.video.source import HELD_S, Grid, Sampling, VideoSource

# Mean difference of the first picture, of 255: conversions round differently, faults are far off.
_SAME_PICTURE = 4.0


class DecordSource(VideoSource):
    """One pass over a video file.

    Every frame up to the last sample is decoded and converted. decord's shortcuts are not taken:
    its seeking gives other pictures than plain decoding where GOPs are open, and its skipping
    (decord2 3.4.0) gives up on a busy machine, short of the frame that was meant.

    Args:
        spec: path.
        name: what evidence calls it.
        sampling: what is wanted; ``sparse`` takes keyframes only.

    Raises:
        BackboneError: decord is not installed.
        SourceError: it cannot be opened, holds no picture, or decord reads it wrongly (decord2
            3.4.0 does so with rotated files and transport streams).
    """

    def __init__(self, spec: str, name: str, sampling: Sampling) -> None:
        self._decord = _decord()
        reader = PacketReader(spec, name)
        try:
            super().__init__(name, sampling, duration=reader.duration())
            self._tick = reader.length(1)
            self.start_time = reader.seconds(reader.origin)
            self._times, self._durations, self._is_key = _timeline(reader, name)
            self._missing = reader.shortfall()
            first = RgbConverter(reader.first_picture)(reader.first_picture)
        finally:
            reader.close()
        try:
            self._video: Any = self._decord.VideoReader(spec, num_threads=1)
        except (self._decord.DECORDError, RuntimeError, AssertionError):
            raise SourceError(f"{name}: decord cannot open it; use reader='pyav'") from None
        self._first = self._video.next().asnumpy()
        self._num_read = 1
        if len(self._video) != len(self._times) or not _same(self._first, first):
            raise SourceError(f"{name}: decord reads it wrongly; use reader='pyav'")

    def _release(self) -> None:
        self._video = None

    def _frames(self) -> Iterator[Frame]:
        grid = Grid(self._sampling, self._tick)
        num_given, shown_until = 0, 0.0
        missing = self._missing
        for index, (time, duration) in enumerate(zip(self._times, self._durations, strict=True)):
            if grid.is_past(time):
                missing, self.was_cut = None, True
                break
            shown_until = max(shown_until, time + duration)
            held_until = self._held_until(index)
            if held_until is not None:
                time, duration = self._sampling.start, held_until - self._sampling.start
            if (self._sampling.sparse and not self._is_key[index]) or not grid.takes(time):
                continue
            try:
                pixels = fitted_pixels(self._pixels(index), self._sampling.max_side)
            except (self._decord.DECORDError, StopIteration):
                shown_until = time
                missing = f"breaks off at {time:.1f} s for decord; try reader='pyav'"
                break
            num_given += 1
            yield Frame(pixels, float(time), float(duration), index)
        self._finish(float(shown_until), num_given, missing)

    def _held_until(self, index: int) -> float | None:
        """Return how long a picture is shown that is given at the start, as none follows there."""
        start, end = self._sampling.start, self._sampling.end or math.inf
        if self._times[index] >= start - self._tick / 2:
            return None
        if index + 1 == len(self._times):
            until = float(self._times[index] + self._durations[index])
            return until if until > start else None
        until = float(self._times[index + 1])
        return until if until > min(start + HELD_S, end - 1e-6) else None

    def _pixels(self, index: int) -> np.ndarray:
        """Return [H, W, 3] of a frame that was not read yet, or of the first."""
        if index == 0:
            return self._first
        while self._num_read < index:
            self._video.next()
            self._num_read += 1
        self._num_read += 1
        return self._video.next().asnumpy()


def _timeline(reader: PacketReader, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times [N] and durations [N] in seconds and keyframe flags [N], in order shown."""
    rows = []
    for packet in reader.packets():
        if packet.pts is None:
            raise SourceError(f"{name}: has no times that decord could use; use reader='pyav'")
        if not packet.is_discard:
            rows.append((packet.pts, packet.duration or 0, packet.is_keyframe))
    pts, ticks, is_key = np.array(sorted(rows), dtype=np.int64).T
    tick = reader.tick
    times = (pts - reader.zero) * tick.numerator / tick.denominator
    durations = ticks * tick.numerator / tick.denominator
    rate = reader.stream.average_rate
    durations[ticks == 0] = float(1 / rate) if rate else 0.04
    return times, durations, is_key.astype(bool)


def _same(pixels: np.ndarray, expected: np.ndarray) -> bool:
    if pixels.shape != expected.shape:
        return False
    return float(np.abs(pixels.astype(np.int16) - expected).mean()) <= _SAME_PICTURE


def _decord() -> ModuleType:
    try:
        import decord
    except ImportError:
        raise BackboneError(
            f"reader='decord' needs decord; run: {install_command('decord')}"
        ) from None
    return decord
