"""QuestionReading a question: what is asked for, of what, and of which time.

    words = find_time("Where was the dog yesterday?", now=now.wall, newest=wall_end(newest))
    window = window_of(words, memory.entries()[-1], now)         # yesterday, on the wall clock
    reading, back = resolved(model.read_question(words.text), turns)   # "after that": of what?

Time words are in `time_expressions.py`; operator and anchor come from the model.
"""

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from torch import Tensor

from streammem.memory.entry import Entry, Now
from streammem.memory.retrieval import EVERYTHING, Window
from streammem.models.tiny.questions import QuestionReading
from streammem.perception.frames import BufferedFrame
from streammem.qa.time_expressions import TimeWords
from streammem.types import TimeSpan, clock

_BACK = frozenset("that it this then these those them him her he she they there".split())  # noqa: SIM905


class Present(NamedTuple):
    """Where a stream stands.

    Attributes:
        now: its last frames; none where it does not go on.
        segment: id of the open segment.
        memory: recurrent memory tokens.
        source: name of its source.
    """

    now: Sequence[BufferedFrame]
    segment: int
    memory: Tensor
    source: str = ""


class AskedQuestion(NamedTuple):
    """A question as it is worked on.

    Attributes:
        text: as it was asked.
        about: without its time words.
        reading: operator and anchors, with "that" replaced.
        window: which part of the memory it is about.
        now: when it was asked.
        back: segments that "before that" or "after that" points to; often none.
        looked_at: which time the window is, in words; None where it is everything.
        within: the part of the memory that may be looked at at all.
    """

    text: str
    about: str
    reading: QuestionReading
    window: Window
    now: Now
    back: tuple[int, ...] = ()
    looked_at: str | None = None
    within: Window = EVERYTHING


class PastTurn(NamedTuple):
    """What a later question may point back to: what was asked about, and the answer's segments."""

    anchor: str
    segments: tuple[int, ...]


def resolved(
    reading: QuestionReading, turns: Sequence[PastTurn]
) -> tuple[QuestionReading, tuple[int, ...]]:
    """Put what the last turn was about in the place of "that".

    Returns:
        The reading, and the segments that "that" points to, if it is a time.
    """
    words = set(reading.anchor.lower().split())
    around = reading.operator in ("before", "after")
    if not turns or not (words <= _BACK if words else around):
        return reading, ()
    return reading._replace(anchor=turns[-1].anchor), turns[-1].segments if around else ()


def window_of(words: TimeWords | None, newest: Entry | None, now: Now) -> Window:
    """Return the part of a memory that time words mean.

    Args:
        words: None means everything.
        newest: the newest row; None in an empty memory.
        now: what "ten minutes ago" counts back from: the wall clock where the newest row knows it,
            otherwise the end of its source.
    """
    if words is None or newest is None:
        return EVERYTHING
    if not words.from_end:
        return Window(wall=words.span) if words.wall else Window(stream=words.span)
    on_wall = words.wall and newest.wall_start is not None
    end = now.wall if on_wall else now.ends[newest.source]
    span = TimeSpan(end + words.span.start, end + words.span.end)
    return Window(wall=span) if on_wall else Window(stream=span, source=newest.source)


def narrowed(window: Window, within: Window) -> Window:
    """Return what two windows have in common; on each clock their later begin, earlier end."""
    stream = _common(window.stream, within.stream)
    return Window(stream, _common(window.wall, within.wall), window.source or within.source)


def _common(left: TimeSpan | None, right: TimeSpan | None) -> TimeSpan | None:
    if left is None or right is None:
        return left or right
    return TimeSpan(max(left.start, right.start), min(left.end, right.end))


def wall_end(newest: Entry | None) -> float | None:
    """Return the Unix second at which a memory's newest row ends; None where it is not known."""
    if newest is None or newest.wall_start is None:
        return None
    return newest.wall_start + newest.end - newest.start


def looked_at(window: Window, zone: tzinfo | None) -> str | None:
    """Say which time a window is, and on which clock; None where it is not bounded by time.

    For example ``wall clock 2026-11-16 16:42:00+01:00 to 16:43:00``, ``stream 16:42.0 to the end``.
    """
    if window.wall is not None:
        start, end = (datetime.fromtimestamp(at, zone).astimezone(zone) for at in window.wall)
        same_day = start.date() == end.date()
        until = end.strftime("%H:%M:%S") if same_day else end.isoformat(" ", "seconds")
        return f"wall clock {start.isoformat(' ', 'seconds')} to {until}"
    if window.stream is None:
        return None
    start_s, end_s = window.stream
    until = "the end" if end_s == float("inf") else clock(max(0.0, end_s))
    return f"stream {clock(max(0.0, start_s))} to {until}"
