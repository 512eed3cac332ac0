"""What the commands show on a terminal: captions word by word, contact sheets, notes, Ctrl-C.

with output("text", None) as results, interrupts() as is_stopping:
    for event in watch(session, source):
        results.write(event)

Results themselves are written by `results.py`.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streammem.output.render import plain
from streammem.output.results import confidence_mark, make_encodable
from streammem.types import Caption, Event, Segment, clock

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.perception.scenetilling import Score


def write_line(line: str, out: IO[str] | None = None) -> None:
    """Write a line that is not an event, to stdout unless another place is given.

    It is there for a reader at once: the next one may take minutes.
    """
    out = out or sys.stdout
    make_encodable(out, "text")
    out.write(f"{line}\n")
    out.flush()


class LiveText:
    """Writes captions to a terminal word by word, in the text renderer's form."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._segment: int | None = None

    def write_piece(self, segment: Segment, piece: str) -> None:
        """Write the next piece of a segment's caption."""
        if segment.id != self._segment:
            self.close()
            self._segment = segment.id
            self._out.write(f"[{clock(segment.start)}-{clock(segment.end)}] ")
            piece = piece.lstrip()
        # One line a caption, without characters that a terminal would execute.
        self._out.write(plain(piece))
        self._out.flush()

    def end(self, caption: Caption) -> None:
        """End a caption's line with its confidence; nothing if the line has ended already."""
        begun = self._segment is not None
        if begun and self._segment != caption.segment:
            return
        if not begun and caption.reason:  # withheld before its first word
            self._out.write(f"[{clock(caption.start)}-{clock(caption.end)}]")
        if caption.reason:
            self._out.write(" … (unsure)" if begun else " (unsure)")
        if begun or caption.reason:
            self._out.write(f"{confidence_mark(caption, self._out)}\n")
            self._out.flush()
        self._segment = None

    def line(self, event: Event) -> None:
        """Write an event as a line of its own, after the line that is open."""
        self.close()
        self._out.write(f"{plain(str(event))}\n")
        self._out.flush()

    def close(self) -> None:
        """End the line that is open, if one is."""
        if self._segment is not None:
            self._out.write("\n")
            self._segment = None


class Sheet:
    """Collects segments, captions and scores for a contact sheet while a source is watched."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._segments: list[Segment] = []
        self._captions: dict[int, str] = {}
        self._scores: list[tuple[float, Score]] = []
        session.on_score = lambda time, score: self._scores.append((time, score))

    def take(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, Segment):
            self._segments.append(event)
        elif isinstance(event, Caption):
            self._captions[event.segment] = event.text

    def draw(self, path: Path, title: str) -> None:
        """Draw the contact sheet as a PNG."""
        import numpy as np

        from streammem.output.contact_sheet import Curve, contact_sheet

        keyframes = []
        for segment in self._segments:
            with suppress(KeyError):  # a memory with a budget may have dropped it
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
    requested = False

    def request(number: int, frame: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        note("stopping: what is open is being closed; Ctrl-C again to leave at once")

    before = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Signalled:
    """What signals have asked for."""

    terminated: bool = False
    reopen: bool = False


@contextmanager
def signals() -> Iterator[Signalled]:
    """Turn SIGTERM into a request to stop, SIGHUP into one to open the output anew."""
    signalled = Signalled()

    def terminate(number: int, frame: object) -> None:
        signalled.terminated = True

    def reopen(number: int, frame: object) -> None:
        signalled.reopen = True

    handlers: dict[int, Callable[[int, object], None]] = {signal.SIGTERM: terminate}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = reopen
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note(text: str) -> None:
    """Write a line to stderr that is not a result."""
    sys.stderr.write(f"{plain(text)}\n")
