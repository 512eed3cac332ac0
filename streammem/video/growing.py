"""A folder to which a recorder adds: pictures, or videos one after the other.

Nothing is lost here: a file waits until it is read. It is read once, when it is complete, whatever
its date; what is written to it later is read from where it was left.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video.file import open_recordings
from streammem.video.live_source import REAL_TIME, WAIT_SLICE_S, Time
from streammem.video.pictures import STILL_S, read_picture
from streammem.video.pixels import fitted_pixels
from streammem.video.registry import PICTURE_SUFFIXES
from streammem.video.sound import SoundOfParts
from streammem.video.source import Grid, Sampling, VideoSource

VIDEO_SUFFIXES = {".mp4", ".mkv", ".ts", ".avi", ".mov", ".webm", ".flv"}
COMPLETE_S = 2.0  # a file that was not written to for so long is complete
LOOK_EVERY_S = 1.0
GAP_S = 2.0  # between two videos of a recording that goes on; more is a gap
MAX_KNOWN = 100_000  # files that are remembered; of more, those that are gone are forgotten
PROBED = 1 << 16  # bytes from which it is seen whether a file is still the same


class Stamp(NamedTuple):
    """What changes with a file; they sort in the order of arrival."""

    changed: float  # Unix seconds
    size: int
    node: tuple[int, int]  # device and inode


class Arrival(NamedTuple):
    """A file as it was listed."""

    stamp: Stamp
    path: Path


@dataclass(slots=True)
class ReadFile:
    """What is known of a file that was read.

    Attributes:
        stamp: when it was read.
        digest: of its content then, see ``_digest``.
        start: stream time at its beginning.
        until: seconds of its own time that were given; 0 where nothing of it could be read.
    """

    stamp: Stamp
    digest: bytes
    start: float = 0.0
    until: float = 0.0


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
        self._known: dict[Path, ReadFile] = {}
        self._seen: dict[Path, tuple[Stamp, float]] = {}  # what is not complete, and since when
        self._failure = ""  # of listing the folder, as it was reported
        self._sounds: list[SoundOfParts] = []

    def sound_pass(
        self, *, first_channel: bool = False
    ) -> Iterator[tuple[float, np.ndarray]] | None:
        self._sounds.append(SoundOfParts(self, first_channel=first_channel))
        return self._sounds[-1].sound()

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
        """Give complete files that are new or went on, oldest first."""
        while not self.stopping:
            some = False
            for arrival in sorted(a for a in self._listed() if not self._is_known(a)):
                # A recorder that writes the next file has completed those before it, but copies
                # may arrive out of order: the clock alone decides.
                if self.reconnect and not self._is_complete(arrival):
                    break
                self._seen.pop(arrival.path, None)
                if not self._takes(arrival):
                    continue
                some = True
                yield arrival
                if self.stopping:
                    return
            if not some:
                if not self.reconnect:
                    return
                self._wait()

    def _listed(self) -> list[Arrival]:
        found = []
        try:
            for path in self._folder.iterdir():
                if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES and path.name[0] != ".":
                    try:
                        state = path.stat()
                    except FileNotFoundError:  # it was moved away meanwhile
                        continue
                    if state.st_size:
                        node = (state.st_dev, state.st_ino)
                        found.append(Arrival(Stamp(state.st_mtime, state.st_size, node), path))
            self._failure = ""
        except OSError as error:  # a share that is gone
            failure = f"{self.name}: {(error.strerror or 'unreadable').lower()}"
            if failure != self._failure:
                self.notices.append(failure)
            self._failure = failure
        if len(self._known) > MAX_KNOWN and not self._failure:
            listed = {arrival.path for arrival in found}
            self._known = {path: file for path, file in self._known.items() if path in listed}
        return found

    def _is_known(self, arrival: Arrival) -> bool:
        file = self._known.get(arrival.path)
        return file is not None and file.stamp == arrival.stamp

    def _is_complete(self, arrival: Arrival) -> bool:
        """Return whether a file was not written to for COMPLETE_S, by its date or as it was seen.

        Its date alone does not tell: it may lie ahead.
        """
        now, silent_s = self._passing.now(), self._passing.wall() - arrival.stamp.changed
        if silent_s >= COMPLETE_S:
            return True
        stamp, since = self._seen.get(arrival.path, (None, now))
        if stamp != arrival.stamp:
            since = now
        self._seen[arrival.path] = (arrival.stamp, since)
        return silent_s < 0 and now - since >= COMPLETE_S

    def _takes(self, arrival: Arrival) -> bool:
        """Note a file that is to be read; return False where only its date or name is another."""
        stamp, path = arrival
        file = self._known.get(path)
        if file is None:
            renamed = (f for f in self._known.values() if f.stamp == stamp)
            if file := next(renamed, None):
                self._known[path] = file
                return False
        try:
            # What was there when it was read is compared, however much there is now.
            is_same = file is not None and _digest(path, file.stamp.size) == file.digest
            digest = _digest(path, stamp.size)
        except OSError as error:  # it was moved away meanwhile, or may not be read
            if not isinstance(error, FileNotFoundError):
                self.notices.append(f"{path}: {(error.strerror or 'unreadable').lower()}")
                self._known[path] = ReadFile(stamp, b"")
            return False
        if file is not None and is_same and stamp.size == file.stamp.size:
            file.stamp = stamp
            return False
        goes_on = file is not None and is_same and stamp.size > file.stamp.size
        if file is not None and goes_on and not _is_picture(path):
            file.stamp, file.digest = stamp, digest
        else:
            self._known[path] = ReadFile(stamp, digest)
        if stamp.changed > self._passing.wall() + GAP_S:
            self.notices.append(f"{path}: its date lies ahead; it is taken as having come now")
        return True

    def _within(self, arrival: Arrival) -> Iterator[Frame]:
        """Give the frames of a file at their stream times; of one that went on, the new ones."""
        changed = min(arrival.stamp.changed, self._passing.wall())
        if _is_picture(arrival.path):
            pixels = fitted_pixels(read_picture(arrival.path), self._sampling.max_side)
            time = max(self._time, self._since_first(changed))
            yield Frame(pixels, time, STILL_S, self._num_frames)
            return
        file = self._known[arrival.path]
        inner = replace(self._sampling, start=file.until, end=None, origin=0.0)
        with open_recordings(str(arrival.path), str(arrival.path), inner) as video:
            start = file.start
            if not file.until:
                start = self._since_first(changed - (video.duration or 0.0))
            if start + file.until < self._end + GAP_S:
                start = self._end - file.until
            file.start = start
            for sound in self._sounds:
                sound.add(start, video, after=file.until)
            for frame in video:
                file.until = frame.time + frame.duration
                for sound in self._sounds:
                    sound.shown = start + file.until
                yield replace(frame, time=start + frame.time, index=self._num_frames)
            if video.end is not None:  # of frames that are left out, the last are shown, too
                file.until = max(file.until, video.end)
                self._end = max(self._end, start + file.until)

    def _since_first(self, wall: float) -> float:
        if self.wall_zero is None:
            self.wall_zero = wall
        return wall - self.wall_zero

    def _wait(self) -> None:
        until = self._passing.now() + LOOK_EVERY_S
        while not self.stopping and self._passing.now() < until:
            self._passing.sleep(WAIT_SLICE_S)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def _digest(path: Path, size: int) -> bytes:
    """Return a checksum of a picture's first ``size`` bytes, of a video of the last of these.

    A recorder may write a video's beginning anew, as its length; so that is left out.
    """
    with path.open("rb") as file:
        begin = 0 if _is_picture(path) else max(0, size - PROBED)
        file.seek(begin)
        return hashlib.blake2b(file.read(size - begin), digest_size=16).digest()


def open_growing(spec: str, sampling: Sampling) -> GrowingFolder:
    """Open ``growing:FOLDER``."""
    return GrowingFolder(Path(spec.partition(":")[2]), sampling)
