"""Video files that a list names, one a line, played one after another as one film."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.types import Frame
from streammem.video.file import open_file
from streammem.video.registry import kind_of
from streammem.video.source import Grid, SourceOptions, VideoSource


class ConcatSource(VideoSource):
    """One pass over the videos of a list; each begins at the end of the one before.

    After a video that breaks off the next one follows its last good frame, and the pass ends with
    ``TruncatedError``. ``Frame.index`` is estimated where frames are left out.

    Args:
        spec: ``concat:LIST``, a UTF-8 text file with one path a line, relative to its own folder;
            empty lines and lines that start with # are left out.
        options: as for files.

    Raises:
        ConfigError: a line is no video file, but a camera or a folder, for example.
        SourceError: the list is unreadable or names nothing, or a video cannot be opened.
    """

    def __init__(self, spec: str, options: SourceOptions) -> None:
        super().__init__(spec.partition(":")[2], options)
        self._options = options
        self._paths: dict[int, str] = {}  # by line
        self._video: VideoSource | None = None  # that is played
        try:
            lines = Path(self.name).read_text("utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "is not text").lower()
            raise SourceError(f"{self.name}: {reason}; give a list of paths") from None
        durations = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            path = self._paths[number] = os.path.join(os.path.dirname(self.name), line)
            try:
                kind = kind_of(line)
                kind = kind if kind.schemes else kind_of(path)
                if kind.name != "file":
                    raise ConfigError(f"a list is for video files, not for a {kind.name} source")
                with open_file(path, options) as video:  # once now, so that faults show early
                    durations.append(video.duration)
            except (ConfigError, SourceError) as error:
                raise type(error)(f"{self.name}, line {number}: {error}") from None
        if not durations:
            raise SourceError(f"{self.name}: names no video; write one path a line")
        self.duration = None if None in durations else sum(d or 0.0 for d in durations)

    def _release(self) -> None:
        if self._video:
            self._video.close()

    def _frames(self) -> Iterator[Frame]:
        # The tick is the coarsest that a grid forgives: containers differ in theirs.
        grid, start, num_given = Grid(self._sampling, tick=1e-3), 0.0, 0
        next_time, next_index = 0.0, 0  # after the last given frame
        broken: list[str] = []
        for number, path in self._paths.items():
            sampling = self._options.after(start)
            with open_file(path, sampling) as self._video:
                shift: int | None = None  # frames of the videos before
                try:
                    for frame in self._video:
                        time, is_first = start + frame.time, shift is None
                        if shift is None:
                            shift = next_index + round((start - next_time) / frame.duration)
                        # A video does not know that the slot in which it begins may be taken.
                        if grid.takes(time) or not is_first:
                            num_given += 1
                            next_time, next_index = time + frame.duration, shift + frame.index + 1
                            yield replace(frame, time=time, index=next_index - 1)
                except TruncatedError as error:
                    broken.append(f"line {number}: {error}")
                except SourceError:
                    if self._video.end is None:  # else it lies before the wanted span
                        raise
                start += self._video.end or 0.0
            if sampling.end and (grid.is_past(start) or _goes_on(path, sampling.end)):
                break
        missing = None
        if broken:
            missing = f"{len(broken)} of {len(self._paths)} videos incomplete; {broken[0]}"
        self._finish(start, num_given, missing)


def _goes_on(path: str, time: float) -> bool:
    """Return whether a video has a frame at or after a time; its ``end`` does not tell."""
    try:
        with open_file(path, SourceOptions(fps=None, start=time)) as video:
            return next(iter(video), None) is not None
    except SourceError:
        return False
