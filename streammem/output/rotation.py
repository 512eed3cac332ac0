"""Rotated output files, for sources that run for days; every file is valid after every event.

file = RotatedFile("jsonl", Path("events.jsonl"), Rotation(size_bytes=100 << 20, keep=7))
file.write(event)
file.close()
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from streammem.errors import ConfigError
from streammem.output.render import FORMATS, NOTHING, Renderer, to_line
from streammem.types import Event

APPENDABLE = {"text", "jsonl"}  # formats without header or numbers: a file can be continued


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Let a failed write name its file, which a full disk's error does not; None: stdout."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path or "standard output")
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a file that a reader finds whole."""
    unfinished = path.with_name(path.name + ".part")
    with naming(unfinished):
        unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is rotated, and how many rotated files are kept.

    Attributes:
        size_bytes: rotate a file of at least this size; None for never.
        every_s: rotate a file that was begun so many seconds ago; None for never.
        keep: rotated files to keep, >= 1, the newest; None for all.
    """

    size_bytes: int | None = None
    every_s: float | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        least = (("size", self.size_bytes), ("time", self.every_s), ("keep", self.keep))
        for name, value in least:
            if value is not None and value < 1:
                raise ConfigError(f"rotation by {name} {value}: give at least 1")


class RotatedFile:
    """A file of events that is rotated to ``name-20260503T140000Z.suffix``.

    Args:
        form: a key of ``render.FORMATS``.
        path: of the current file.
        rotation: when to rotate.
        wall: returns Unix seconds.

    Raises:
        ConfigError: from ``write`` or ``close``, if a file cannot be opened.
    """

    def __init__(
        self, form: str, path: Path, rotation: Rotation, wall: Callable[[], float] = time.time
    ) -> None:
        self._form, self._path, self._rotation, self._wall = form, path, rotation, wall
        self._out: IO[str] | None = None
        self._renderer: Renderer = FORMATS[form]()
        self._begun = 0.0

    def write(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        """Write an event and flush; ``more`` are further keys, which only JSONL has."""
        if self._out and self._is_due(self._out):
            self._set_aside()
        out = self._out or self._open()
        is_lines = self._form == "jsonl"
        with naming(self._path):
            out.write(to_line(event, more) + "\n" if is_lines else self._renderer.write(event))
            out.flush()

    def reopen(self) -> None:
        """Close the file, which may have been moved; the next event opens it again."""
        if self._out:
            out, self._out = self._out, None
            with naming(self._path), out:
                out.write(self._renderer.close())

    def close(self) -> None:
        """Close the file; one without events is created now. Idempotent."""
        if not self._out and not self._path.exists():
            self._open()
        self.reopen()

    def _is_due(self, out: IO[str]) -> bool:
        size, age = self._rotation.size_bytes, self._rotation.every_s
        is_large = size is not None and out.tell() >= size
        return is_large or (age is not None and self._wall() - self._begun >= age)

    def _open(self) -> IO[str]:
        try:
            if self._form not in APPENDABLE and self._path.exists() and self._path.stat().st_size:
                self._set_aside()
            self._out = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, see reopen
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._renderer, self._begun = FORMATS[self._form](), self._wall()
        return self._out

    def _set_aside(self) -> None:
        self.reopen()
        stamp = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        number = 0
        while True:
            more = f"-{number:03d}" if number else ""
            aside = self._path.with_name(f"{self._path.stem}-{stamp}{more}{self._path.suffix}")
            if not aside.exists():
                break
            number += 1
        self._path.rename(aside)
        if self._rotation.keep is not None:
            pattern = f"{self._path.stem}-[0-9]*T[0-9]*Z*{self._path.suffix}"
            old = sorted(self._path.parent.glob(pattern), key=lambda p: (p.stat().st_mtime, p.name))
            for path in old[: -self._rotation.keep]:
                path.unlink(missing_ok=True)
