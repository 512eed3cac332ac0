"""A folder to which a recorder adds: pictures, or videos one after the other.

Nothing is lost here: a file waits until it is read. It is read once, when it is complete.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video.file import FileSource
from streammem.video.live_source import REAL_TIME, WAIT_SLICE_S, Time
from streammem.video.pictures import STILL_S, read_picture
from streammem.video.pixels import fitted_pixels
from streammem.video.registry import PICTURE_SUFFIXES
from streammem.video.source import Grid, Sampling, VideoSource

VIDEO_SUFFIXES = {".mp4", ".mkv", ".ts", ".avi", ".mov", ".webm", ".flv"}
COMPLETE_S = 2.0  # a file that was not written to for so long is complete
LOOK_EVERY_S = 1.0
GAP_S = 2.0  # between two videos of a recording that goes on; more is a gap


class Arrival(NamedTuple):
    """A file and the Unix seconds of its last change; they sort in the order of arrival."""

    changed: float
    path: Path


class GrowingFolder(VideoSource):
    """Pictures and videos of a folder in the order in which they were completed.

    Stream time follows the files' times of change: a picture stands at its own, a video ends
    there. With ``reconnect`` it waits for more, for ever; otherwise it ends with what is there.

    Args:
        folder: must be there, and may be empty with ``reconnect``.
        sampling: as for files.
        passing: clocks.

    Raises:
        SourceError: no such folder.
    """

    def __init__(self, folder: Path, sampling: Sampling, passing: Time = REAL_TIME) -> None:
        super().__init__(str(folder), sampling, duration=None)
        if not folder.is_dir():
            raise SourceError(f"{folder}: is not a folder; write growing:FOLDER")
        self._folder, self._passing = folder, passing
        self._grid = Grid(sampling)
        self._time = self._end = 0.0  # of the last frame
        self._num_frames = 0

    def _frames(self) -> Iterator[Frame]:
        num_given = 0
        for arrival in self._arrivals():
            try:
                for frame in self._within(arrival):
                    if self._grid.is_past(frame.time):
                        break
                    self._time, self._end = frame.time, frame.time + frame.duration
                    self._num_frames += 1
                    if self._grid.takes(frame.time):
                        num_given += 1
                        yield frame
            except SourceError as error:
                self.notices.append(str(error))
            if self._grid.is_past(self._end):
                break
        self._finish(self._end, num_given or self.stopping)

    def _arrivals(self) -> Iterator[Arrival]:
        """Give complete files, oldest first, each once."""
        last = Arrival(0.0, Path())
        while not self.stopping:
            before = last
            for arrival in sorted(a for a in self._listed() if a > last):
                # A recorder that writes the next file has completed those before it, but copies
                # may arrive out of order: the clock alone decides.
                if self._passing.wall() - arrival.changed < COMPLETE_S and self.reconnect:
                    break
                last = arrival
                yield arrival
                if self.stopping:
                    return
            if last == before:
                if not self.reconnect:
                    return
                self._wait()

    def _listed(self) -> Iterator[Arrival]:
        try:
            for path in self._folder.iterdir():
                if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES and path.name[0] != ".":
                    state = path.stat()
                    if state.st_size:
                        yield Arrival(state.st_mtime, path)
        except OSError as error:  # a file that was moved away meanwhile, or a share that is gone
            self.notices.append(f"{self.name}: {(error.strerror or 'unreadable').lower()}")

    def _within(self, arrival: Arrival) -> Iterator[Frame]:
        """Give the frames of a file at their stream times."""
        if arrival.path.suffix.lower() in PICTURE_SUFFIXES:
            pixels = fitted_pixels(read_picture(arrival.path), self._sampling.max_side)
            time = max(self._time, self._since_first(arrival.changed))
            yield Frame(pixels, time, STILL_S, self._num_frames)
            return
        inner = replace(self._sampling, start=0.0, end=None)
        with FileSource(str(arrival.path), str(arrival.path), inner) as video:
            start = self._since_first(arrival.changed - (video.duration or 0.0))
            if start < self._end + GAP_S:
                start = self._end
            for frame in video:
                yield replace(frame, time=start + frame.time, index=self._num_frames)

    def _since_first(self, wall: float) -> float:
        if self.wall_zero is None:
            self.wall_zero = wall
        return wall - self.wall_zero

    def _wait(self) -> None:
        until = self._passing.now() + LOOK_EVERY_S
        while not self.stopping and self._passing.now() < until:
            self._passing.sleep(WAIT_SLICE_S)


def open_growing(spec: str, sampling: Sampling) -> GrowingFolder:
    """Open ``growing:FOLDER``."""
    return GrowingFolder(Path(spec.partition(":")[2]), sampling)
