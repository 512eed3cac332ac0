"""Video files that a list names, one a line, played one after another as one film."""

import os
from functools import partial
from pathlib import Path

from streammem.errors import ConfigError, SourceError
from streammem.video.file import PartsSource, open_file
from streammem.video.registry import kind_of
from streammem.video.source import SourceOptions


class ConcatSource(PartsSource):
    """One pass over the videos of a list.

    Args:
        spec: ``concat:LIST``, a UTF-8 text file with one path a line, relative to its own folder;
            empty lines and lines that start with # are left out.
        options: as for files.

    Raises:
        ConfigError: a line is no video file, but a camera or a folder, for example.
        SourceError: the list is unreadable or names nothing, or a video cannot be opened.
    """

    def __init__(self, spec: str, options: SourceOptions) -> None:
        name, videos, durations = spec.partition(":")[2], {}, []
        paths: list[str] = []
        try:
            lines = Path(name).read_text("utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "is not text").lower()
            raise SourceError(f"{name}: {reason}; give a list of paths") from None
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            path = os.path.join(os.path.dirname(name), line)
            try:
                kind = kind_of(line)
                kind = kind if kind.schemes else kind_of(path)
                if kind.name != "file":
                    raise ConfigError(f"a list is for video files, not for a {kind.name} source")
                with open_file(path, options) as video:  # once now, so that faults show early
                    durations.append(video.duration)
            except (ConfigError, SourceError) as error:
                raise type(error)(f"{name}, line {number}: {error}") from None
            videos[f"line {number}"] = partial(open_file, path)
            paths.append(path)
        if not videos:
            raise SourceError(f"{name}: names no video; write one path a line")
        total = None if None in durations else sum(d or 0.0 for d in durations)
        super().__init__(name, options, videos, total)
        self.paths = tuple(paths)
