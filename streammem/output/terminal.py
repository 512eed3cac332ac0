"""What the commands share on a terminal: results to a stream, words as they come, Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streammem.errors import ConfigError
from streammem.output.render import FORMATS, plain
from streammem.types import Caption, Event, Segment, clock

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.perception.scenetilling import Score


DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Results:
    """What a command has to give, in one format, on stdout or in a file.

    The file is opened with the first result, so that a command that fails before it leaves what
    was there; it is valid after every result.
    """

    def __init__(self, form: str, path: Path | None) -> None:
        self._renderer, self._form, self._path = FORMATS[form](), form, path
        self._out: IO[str] | None = None
        if path is None:
            self._out = sys.stdout
            _make_encodable(sys.stdout, form)

    def write(self, event: Event) -> None:
        """Write an event at once: a reader, or a kill, finds whole events."""
        text = self._renderer.write(event)
        if self._form == "text" and isinstance(event, Caption):
            text = f"{text.rstrip()}{_sureness(event, self._opened())}\n"
        self.put(text)

    def say(self, piece: str) -> None:
        """Write a piece of text as it comes, and nothing that a terminal would obey."""
        self.put(plain(piece, keep="\n"))

    def put(self, text: str) -> None:
        """Write text that is rendered already."""
        if text:
            out = self._opened()
            out.write(text)
            out.flush()

    def finish(self) -> None:
        """Write what the format still lacks; a file without results is made now."""
        self._opened()
        self.put(self._renderer.close())

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._path and self._out:
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
    """Give the place for a command's results; what is written is always a valid file."""
    results = Results(form, path)
    try:
        yield results
        results.finish()
    finally:
        results.close()


def say(line: str) -> None:
    """Write a line to stdout that is no event."""
    _make_encodable(sys.stdout, "text")
    sys.stdout.write(f"{line}\n")


def _sureness(caption: Caption, out: IO[str]) -> str:
    """Return a caption's confidence for whoever watches a terminal; files have it in JSONL."""
    shown = caption.confidence is not None and out.isatty()
    return f" {DIM}{caption.confidence:.2f}{PLAIN}" if shown else ""


class LiveText:
    """Captions on a terminal, word by word, in the text renderer's form."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._segment: int | None = None

    def say(self, segment: Segment, piece: str) -> None:
        """Write the next piece of a segment's caption."""
        if segment.id != self._segment:
            self.close()
            self._segment = segment.id
            self._out.write(f"[{clock(segment.start)}-{clock(segment.end)}] ")
            piece = piece.lstrip()
        # One line a caption, and nothing that a terminal would obey.
        self._out.write(plain(piece))
        self._out.flush()

    def end(self, caption: Caption) -> None:
        """End a caption's line, with how sure it is; a line that has ended already stays so."""
        said = self._segment is not None
        if said and self._segment != caption.segment:
            return
        if not said and caption.reason:  # nothing was said of it
            self._out.write(f"[{clock(caption.start)}-{clock(caption.end)}]")
        if caption.reason:
            self._out.write(" … (unsure)" if said else " (unsure)")
        if said or caption.reason:
            self._out.write(f"{_sureness(caption, self._out)}\n")
            self._out.flush()
        self._segment = None

    def close(self) -> None:
        """End the line that is open, if one is."""
        if self._segment is not None:
            self._out.write("\n")
            self._segment = None


class Sheet:
    """Gathers what a contact sheet shows while a source is watched."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._segments: list[Segment] = []
        self._captions: dict[int, str] = {}
        self._scores: list[tuple[float, Score]] = []
        session.on_score = lambda time, score: self._scores.append((time, score))

    def take(self, event: Event) -> None:
        """Gather an event."""
        if isinstance(event, Segment):
            self._segments.append(event)
        elif isinstance(event, Caption):
            self._captions[event.segment] = event.text

    def draw(self, path: Path, title: str) -> None:
        """Draw what was gathered as a PNG."""
        import numpy as np

        from streammem.output.contact_sheet import Curve, contact_sheet

        keyframes = []
        for segment in self._segments:
            with suppress(KeyError):  # a memory within a budget drops keyframes
                picture = self._session.keyframe(segment.id)
                keyframes.append((segment, picture, self._captions.get(segment.id)))
        if not keyframes:
            note(f"{path}: not drawn, there is nothing to show")
            return
        curve = Curve(
            times=np.array([time for time, _ in self._scores]),
            similarity=np.array([score.similarity for _, score in self._scores]),
            depth=np.array([score.depth for _, score in self._scores]),
            boundaries=[segment.start for segment in self._segments[1:]],
            threshold=self._session.model.perceiver.scenes.floor,
        )
        contact_sheet(path, keyframes, curve, title=title)
        note(f"wrote {path}")


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        note("stopping: what is open is being closed; Ctrl-C again to leave at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def note(text: str) -> None:
    """Say something that is not a result, on one line."""
    sys.stderr.write(f"{plain(text)}\n")


def _make_encodable(out: IO[str], form: str) -> None:
    """Make stdout take every sign, whatever the locale: files of events are UTF-8 by contract."""
    if isinstance(out, TextIOWrapper):
        if form == "text":
            out.reconfigure(errors="backslashreplace")
        else:
            out.reconfigure(encoding="utf-8")
