"""Computing over a timeline: events, their number, order, length, and what lies around them.

Plain arithmetic on rows of the memory; what matches a question is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from streammem.memory.entry import Entry

Bounds = tuple[float, float]

_TOUCHING_S = 1e-3


class Stretch(NamedTuple):
    """A row of the memory, as far as it lies within the time that is asked about.

    Attributes:
        entry: the row.
        start: seconds, >= the row's.
        end: seconds, <= the row's; half-open.
    """

    entry: Entry
    start: float
    end: float


class Event(NamedTuple):
    """A run of neighbouring stretches that all match, without a gap."""

    stretches: tuple[Stretch, ...]

    @property
    def source(self) -> str:
        return self.stretches[0].entry.source

    @property
    def start(self) -> float:
        return self.stretches[0].start

    @property
    def end(self) -> float:
        return self.stretches[-1].end


def within(
    entries: Sequence[Entry], stream: Bounds | None = None, wall: Bounds | None = None
) -> tuple[Stretch, ...]:
    """Cut rows to a time.

    Args:
        entries: oldest first.
        stream: [a, b) seconds of each source's own clock; None for all.
        wall: [a, b) Unix seconds; rows that do not know their wall clock are outside.

    Returns:
        What overlaps, in the same order.
    """
    found = []
    for entry in entries:
        start, end = entry.start, entry.end
        for bounds in (stream, _on_stream(entry, wall) if wall else None):
            if bounds:
                start, end = max(start, bounds[0]), min(end, bounds[1])
        if start < end or (start == end and entry.start == entry.end):
            found.append(Stretch(entry, start, end))
    return tuple(found)


def events(stretches: Sequence[Stretch], matches: Callable[[Entry], bool]) -> tuple[Event, ...]:
    """Join neighbouring stretches that match into events, oldest first.

    Neighbours are next to each other here, of one source, and touch in time.
    """
    runs: list[list[Stretch]] = []
    before: Stretch | None = None
    for stretch in stretches:
        if not matches(stretch.entry):
            before = None
            continue
        if before is not None and _touches(before, stretch):
            runs[-1].append(stretch)
        else:
            runs.append([stretch])
        before = stretch
    return tuple(Event(tuple(run)) for run in runs)


def total_s(found: Sequence[Event]) -> float:
    """Return how long events last together, in seconds."""
    return sum(event.end - event.start for event in found)


def before(stretches: Sequence[Stretch], event: Event, count: int) -> tuple[Stretch, ...]:
    """Return the last ``count`` stretches of the event's source that precede it."""
    first = event.stretches[0].entry.segment
    rows = [s for s in stretches if s.entry.source == event.source and s.entry.segment < first]
    return tuple(rows[-count:])


def after(stretches: Sequence[Stretch], event: Event, count: int) -> tuple[Stretch, ...]:
    """Return the first ``count`` stretches of the event's source that follow it."""
    last = event.stretches[-1].entry.segment
    rows = [s for s in stretches if s.entry.source == event.source and s.entry.segment > last]
    return tuple(rows[:count])


def partner(event: Event, others: Sequence[Event]) -> Event | None:
    """Return the next of other events after an event, or else the last one before it.

    Of the same source, and sharing no stretch with it; None where there is none.
    """
    same = [other for other in others if other.source == event.source]
    first, last = event.stretches[0].entry.segment, event.stretches[-1].entry.segment
    later = [other for other in same if other.stretches[0].entry.segment > last]
    earlier = [other for other in same if other.stretches[-1].entry.segment < first]
    if later:
        return later[0]
    return earlier[-1] if earlier else None


def _touches(left: Stretch, right: Stretch) -> bool:
    return left.entry.source == right.entry.source and abs(right.start - left.end) <= _TOUCHING_S


def _on_stream(entry: Entry, wall: Bounds) -> Bounds:
    """Bring wall-clock bounds to the row's own clock."""
    if entry.wall_start is None:
        return entry.end, entry.start  # nothing lies between
    offset = entry.start - entry.wall_start
    return wall[0] + offset, wall[1] + offset
