"""Findings: what an operator computes over a timeline, and how its value reads.

No language model: a value is data, written plainly.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from streammem.memory.entry import Entry
from streammem.models.tiny.questions import Operator
from streammem.qa.timeline import Event, Stretch, after, before, partner, total_s
from streammem.types import clock

MAX_LISTED = 10  # spans in one line


class Finding(NamedTuple):
    """What was computed.

    Attributes:
        operator: by which it was.
        events: what it rests on: all that match; of ``first`` and ``last`` that one; of
            ``before``, ``after`` and ``between`` what they point to. None: not seen.
        around: what lies before, after or between, in time order.
        total: events that match, in all.
    """

    operator: Operator
    events: tuple[Event, ...]
    around: tuple[Stretch, ...] = ()
    total: int = 0

    @property
    def used(self) -> tuple[Entry, ...]:
        """Every row that it rests on, oldest first."""
        stretches = [s for event in self.events for s in event.stretches]
        rows = {s.entry.segment: s.entry for s in (*stretches, *self.around)}
        return tuple(rows[segment] for segment in sorted(rows))

    @property
    def answers(self) -> tuple[Entry, ...]:
        """The rows that the answer itself is about, oldest first."""
        if self.operator in ("before", "after", "between"):
            return tuple(stretch.entry for stretch in self.around)
        return tuple(event.stretches[0].entry for event in self.events)


def compute(
    operator: Operator,
    stretches: Sequence[Stretch],
    events: tuple[Event, ...],
    seconds: tuple[Event, ...],
    scores: Mapping[int, float],
    count: int,
) -> Finding:
    """Compute an operator.

    Args:
        operator: neither ``describe`` nor ``now``, which compute nothing.
        stretches: what the question is about, oldest first.
        events: of these, those that match the anchor, oldest first.
        seconds: those that match the second anchor, of ``between``.
        scores: of each segment, how well it matches; ``before``, ``after`` and ``between`` point
            to the event of the best one.
        count: scenes that ``before`` and ``after`` give at most.
    """
    if not events:
        return Finding(operator, ())
    if operator in ("first", "last"):
        return Finding(operator, (events[0 if operator == "first" else -1],), total=len(events))
    if operator not in ("before", "after", "between"):
        return Finding(operator, events, total=len(events))
    pointed = max(events, key=lambda e: max(scores.get(s.entry.segment, 0) for s in e.stretches))
    if operator == "between":
        return _between(stretches, pointed, seconds)
    side = before if operator == "before" else after
    return Finding(operator, (pointed,), side(stretches, pointed, count), len(events))


def value(
    finding: Finding, captions: Mapping[int, str], *, named: bool, zone: tzinfo | None
) -> str:
    """Write a finding as data.

    Args:
        finding: what was computed.
        captions: of segments in ``around``, and of what was found without an anchor.
        named: tell sources by name.
        zone: of wall-clock times, where they are known; None is this computer's.

    Returns:
        For example ``3 times: 00:12.0-00:20.0, 01:00.0-01:04.0, 02:10.0-02:11.5``.
    """
    operator, events = finding.operator, finding.events
    if not events:
        return {"how often": "0 times", "how long": "0 s"}.get(operator, "not seen")
    spans = [_span(e.stretches[0].entry, e.start, e.end, named, zone) for e in events]
    listed = ", ".join(spans[:MAX_LISTED])
    if len(spans) > MAX_LISTED:
        listed += f" and {len(spans) - MAX_LISTED} more"
    if operator in ("exists", "how often"):
        times = "once" if len(events) == 1 else f"{len(events)} times"
        return f"{'seen ' if operator == 'exists' else ''}{times}: {listed}"
    if operator == "how long":
        runs = "" if len(events) == 1 else f" in {len(events)} stretches"
        return f"{_length(total_s(events))}{runs}: {listed}"
    if operator in ("first", "last"):
        return f"{operator} of {finding.total}: {listed}" if finding.total > 1 else listed
    if operator == "when":
        return listed
    return "\n".join([_heading(finding, spans), *_lines(finding.around, captions)])


def _between(stretches: Sequence[Stretch], event: Event, others: tuple[Event, ...]) -> Finding:
    other = partner(event, others)
    if other is None:
        return Finding("between", ())
    left, right = sorted((event, other), key=lambda e: e.stretches[0].entry.segment)
    rows = after(stretches, left, len(stretches))
    end = right.stretches[0].entry.segment
    return Finding("between", (left, right), tuple(s for s in rows if s.entry.segment < end), 2)


def _heading(finding: Finding, spans: list[str]) -> str:
    if finding.operator == "between":
        left, right = finding.events
        gap = _length(max(0.0, right.start - left.end))
        return f"between {spans[0]} and {spans[1]}, {gap}:" + ("" if finding.around else " nothing")
    return f"{finding.operator} {spans[0]}:" + ("" if finding.around else " nothing")


def _lines(stretches: Sequence[Stretch], captions: Mapping[int, str]) -> list[str]:
    lines = []
    for stretch in stretches[:MAX_LISTED]:
        caption = captions.get(stretch.entry.segment, "").replace("\n", " / ")
        lines.append(f"[{clock(stretch.start)}-{clock(stretch.end)}] {caption}".rstrip())
    more = len(stretches) - MAX_LISTED
    return [*lines, f"and {more} more scenes"] if more > 0 else lines


def _span(entry: Entry, start: float, end: float, named: bool, zone: tzinfo | None) -> str:
    text = f"{clock(start)}-{clock(end)}"
    if named and entry.source:
        text = f"{entry.source} {text}"
    if entry.wall_start is None:
        return text
    at = datetime.fromtimestamp(entry.wall_start + start - entry.start, zone).astimezone(zone)
    return f"{text} ({at.isoformat(' ', 'seconds')})"


def _length(seconds: float) -> str:
    """Write a duration: ``1 h 2 min 3.5 s``."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return " ".join([*parts, *([f"{tenths / 10:g} s"] if tenths or not parts else [])])
