"""Results as they are written: to stdout, to a file, to files that are rotated.

with output("text", None) as results:
    for event in watch(session, source):
        results.write(event)

file = RotatedFile("jsonl", Path("events.jsonl"), Rotation(size_bytes=100 << 20, keep=7))
file.write(event)
file.close()

Every file is valid after every event; a source that runs for days has rotated ones.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from streammem.errors import ConfigError
from streammem.output.render import FORMATS, NOTHING, Renderer, plain, to_line
from streammem.types import Caption, Event, Notice, Stats

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
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


class Results:
    """Writes a command's results in one format to stdout or a file.

    The file is opened with the first result, so that a command that fails earlier does not replace
    an existing file. It is valid after every result.
    """

    def __init__(self, form: str, path: Path | None) -> None:
        self._renderer, self._form, self._path = FORMATS[form](), form, path
        self._out: IO[str] | None = None
        if path is None:
            self._out = sys.stdout
            make_encodable(sys.stdout, form)

    def write(self, event: Event) -> None:
        """Write an event and flush, so that a reader, or a kill, finds whole events."""
        text = self._renderer.write(event)
        if self._form == "text" and isinstance(event, Caption):
            text = f"{text.rstrip()}{confidence_mark(event, self._opened())}\n"
        self.put(text)

    def write_piece(self, piece: str) -> None:
        """Write a piece of an answer, without characters that a terminal would execute."""
        self.put(plain(piece, keep="\n"))

    def put(self, text: str) -> None:
        """Write rendered text and flush."""
        if text:
            out = self._opened()
            with naming(self._path):
                out.write(text)
                out.flush()

    def finish(self) -> None:
        """Write the end of the format; a file without results is created now."""
        self._opened()
        self.put(self._renderer.close())

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._path and self._out:
            with naming(self._path):
                self._out.close()

    def _opened(self) -> IO[str]:
        if self._out is None:
            try:
                self._out = open(str(self._path), "w", encoding="utf-8")  # noqa: SIM115, see close
            except OSError as error:
                reason = error.strerror
                raise ConfigError(f"{self._path}: cannot be written ({reason})") from error
        return self._out


@contextmanager
def output(form: str, path: Path | None) -> Iterator[Results]:
    """Open ``Results`` for a command and close them at the end."""
    results = Results(form, path)
    try:
        yield results
        results.finish()
    finally:
        results.close()


def confidence_mark(caption: Caption, out: IO[str]) -> str:
    """Return a caption's confidence, dimmed, if ``out`` is a terminal; of files, JSONL has it."""
    shown = caption.confidence is not None and out.isatty()
    return f" {DIM}{caption.confidence:.2f}{PLAIN}" if shown else ""


def make_encodable(out: IO[str], form: str) -> None:
    """Make stdout accept every character in any locale; formats other than text are UTF-8."""
    if isinstance(out, TextIOWrapper):
        if form == "text":
            out.reconfigure(errors="backslashreplace")
        else:
            out.reconfigure(encoding="utf-8")


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


class EventOutput:
    """Where the events of watched sources go: results to a rotated file, or to stdout.

    Args:
        form: a key of ``render.FORMATS``.
        path: of the file; None for stdout.
        rotation: when the file is rotated.
    """

    def __init__(self, form: str, path: Path | None, rotation: Rotation) -> None:
        self._form = form
        self._file = RotatedFile(form, path, rotation) if path else None
        self._stdout = None if path else Results(form, None)

    def write(self, event: Event, more: Mapping[str, object] = NOTHING, prefix: str = "") -> None:
        """Write an event; ``more`` is for JSONL, and text on stdout begins with ``prefix``."""
        if self._file:
            self._file.write(event, more)
        elif self._stdout and self._form == "jsonl":
            self._stdout.put(to_line(event, more) + "\n")
        elif self._stdout:
            if not isinstance(event, Notice | Stats):  # which text leaves out
                self._stdout.put(prefix)
            self._stdout.write(event)

    def reopen(self) -> None:
        """Open the file anew, which may have been moved."""
        if self._file:
            self._file.reopen()

    def close(self) -> None:
        """Write the end of the format and close the file."""
        if self._file:
            self._file.close()
        elif self._stdout:
            self._stdout.finish()
