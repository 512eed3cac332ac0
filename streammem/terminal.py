"""What the commands share on a terminal: results to a stream, words as they come, Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streammem.errors import ConfigError
from streammem.render import FORMATS, Renderer
from streammem.types import Caption, Event, Segment, clock

if TYPE_CHECKING:
    from streammem.scenetilling import Score
    from streammem.session import Session


@contextmanager
def output(form: str, path: Path | None) -> Iterator[tuple[Renderer, IO[str]]]:
    """Give a renderer and the stream it writes to; what is written is always a valid file."""
    renderer = FORMATS[form]()
    with ExitStack() as files:
        out: IO[str] = sys.stdout
        if path:
            try:
                out = files.enter_context(open(path, "w", encoding="utf-8"))
            except OSError as error:
                reason = error.strerror
                raise ConfigError(f"{path}: cannot be written ({reason})") from error
        yield renderer, out
        out.write(renderer.close())
        out.flush()


def write(renderer: Renderer, out: IO[str], event: Event) -> None:
    """Write an event at once: a reader, or a kill, finds whole events."""
    out.write(renderer.write(event))
    out.flush()


def printer(out: IO[str]) -> Callable[[str], None]:
    """Return a function that writes pieces of text as they come."""

    def say(piece: str) -> None:
        out.write(piece)
        out.flush()

    return say


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
        self._out.write("".join(sign if sign.isprintable() else " " for sign in piece))
        self._out.flush()

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

        from streammem.contact_sheet import Curve, contact_sheet

        keyframes = [
            (segment, self._session.keyframe(segment.id), self._captions.get(segment.id))
            for segment in self._segments
        ]
        curve = Curve(
            times=np.array([time for time, _ in self._scores]),
            similarity=np.array([score.similarity for _, score in self._scores]),
            depth=np.array([score.depth for _, score in self._scores]),
            boundaries=[segment.start for segment in self._segments[1:]],
            threshold=self._session.model.scenes.floor,
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
    """Say something that is not a result."""
    sys.stderr.write(f"{text}\n")
