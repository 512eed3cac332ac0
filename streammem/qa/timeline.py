"""Computing over a timeline: appearances, their number, order, length, and what lies around them.

    found = find_appearances(clips, lambda entry: entry.segment in matching)
    finding = compute("how often", clips, found, (), {}, count=4)
    value(finding, {}, named=False, zone=None)   # "2 times: 00:00.0-00:04.5, 00:14.0-00:18.0"
    last_sighting_text(...)     # "last seen 00:14.0-00:18.0, 2 min before the end, not seen since"

Plain arithmetic on rows of the memory, and how its result is written as data; no language model.
What matches a question is decided in `memory/retrieval.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple, TypeVar

from streammem.memory.entry import Entry
from streammem.memory.retrieval import Clip
from streammem.models.tiny.questions import Operator
from streammem.qa.question import LastSeenQuestion
from streammem.types import clock

MAX_LISTED = 10  # spans in one line
_TOUCHING_S = 1e-3

T = TypeVar("T")


def oldest_first(items: Iterable[T], entry_of: Callable[[T], Entry]) -> tuple[T, ...]:
    """Put what is in the order of the memory into the order of time: what first and last mean.

    Films of one memory may have been added in another order than they were made. Items whose rows
    know their wall clock are put in its order, on the places that such items have; the others keep
    theirs, since no clock tells what lies before or after them.

        wall clock   Wed  Wed   -   Tue  Tue
        becomes      Tue  Tue   -   Wed  Wed
    """
    given = tuple(items)
    known = [item for item in given if entry_of(item).wall_start is not None]
    by_clock = iter(sorted(known, key=lambda item: entry_of(item).wall_start or 0.0))  # stable
    return tuple(item if entry_of(item).wall_start is None else next(by_clock) for item in given)


def newest_of(entries: Sequence[Entry], source: str | None = None) -> Entry | None:
    """Return the last of rows in the order of time, of one source if given; None where none is."""
    rows = [entry for entry in entries if source in (None, entry.source)]
    return oldest_first(rows, lambda entry: entry)[-1] if rows else None


class Appearance(NamedTuple):
    """A run of neighbouring clips that all match, without a gap."""

    clips: tuple[Clip, ...]

    @property
    def source(self) -> str:
        return self.clips[0].entry.source

    @property
    def start(self) -> float:
        return self.clips[0].start

    @property
    def end(self) -> float:
        return self.clips[-1].end


def find_appearances(
    clips: Sequence[Clip], matches: Callable[[Entry], bool]
) -> tuple[Appearance, ...]:
    """Join neighbouring clips that match into appearances, see ``oldest_first``.

    Neighbours are next to each other here, of one source, and touch in time.

    Args:
        clips: in the order of the memory.
        matches: tells whether a row does.
    """
    runs: list[list[Clip]] = []
    before: Clip | None = None
    for clip in clips:
        if not matches(clip.entry):
            before = None
            continue
        if before is not None and _touches(before, clip):
            runs[-1].append(clip)
        else:
            runs.append([clip])
        before = clip
    return oldest_first((Appearance(tuple(run)) for run in runs), lambda e: e.clips[0].entry)


def total_s(found: Sequence[Appearance]) -> float:
    """Return how long appearances last together, in seconds."""
    return sum(appearance.end - appearance.start for appearance in found)


def before(clips: Sequence[Clip], appearance: Appearance, count: int) -> tuple[Clip, ...]:
    """Return the last ``count`` clips of the appearance's source that precede it."""
    first = appearance.clips[0].entry.segment
    rows = [
        clip
        for clip in clips
        if clip.entry.source == appearance.source and clip.entry.segment < first
    ]
    return tuple(rows[-count:])


def after(clips: Sequence[Clip], appearance: Appearance, count: int) -> tuple[Clip, ...]:
    """Return the first ``count`` clips of the appearance's source that follow it."""
    last = appearance.clips[-1].entry.segment
    rows = [
        clip
        for clip in clips
        if clip.entry.source == appearance.source and clip.entry.segment > last
    ]
    return tuple(rows[:count])


def partner(appearance: Appearance, others: Sequence[Appearance]) -> Appearance | None:
    """Return the next of other appearances after an appearance, or else the last one before it.

    Of the same source, and sharing no clip with it; None where there is none.
    """
    same = [other for other in others if other.source == appearance.source]
    first, last = appearance.clips[0].entry.segment, appearance.clips[-1].entry.segment
    later = [other for other in same if other.clips[0].entry.segment > last]
    earlier = [other for other in same if other.clips[-1].entry.segment < first]
    if later:
        return later[0]
    return earlier[-1] if earlier else None


# -- operators --


class Finding(NamedTuple):
    """What was computed.

    Attributes:
        operator: by which it was.
        appearances: what it rests on: all that match; of ``first`` and ``last`` that one; of
            ``before``, ``after`` and ``between`` what they point to. None: not seen.
        around: what lies before, after or between, in time order.
        total: appearances that match, in all.
        unseen: of ``between``, which of its two anchors was not seen, 0 or 1.
    """

    operator: Operator
    appearances: tuple[Appearance, ...]
    around: tuple[Clip, ...] = ()
    total: int = 0
    unseen: tuple[int, ...] = ()

    @property
    def used(self) -> tuple[Entry, ...]:
        """Every row that it rests on, oldest first."""
        clips = [clip for each in self.appearances for clip in each.clips]
        rows = {clip.entry.segment: clip.entry for clip in (*clips, *self.around)}
        return oldest_first((rows[segment] for segment in sorted(rows)), lambda entry: entry)

    @property
    def answers(self) -> tuple[Entry, ...]:
        """The rows that the answer itself is about, oldest first."""
        if self.operator in ("before", "after", "between"):
            return tuple(clip.entry for clip in self.around)
        return tuple(appearance.clips[0].entry for appearance in self.appearances)


def compute(
    operator: Operator,
    clips: Sequence[Clip],
    appearances: tuple[Appearance, ...],
    seconds: tuple[Appearance, ...],
    scores: Mapping[int, float],
    count: int,
) -> Finding:
    """Compute an operator.

    Args:
        operator: neither ``describe`` nor ``now``, which compute nothing.
        clips: what the question is about, in the order of the memory.
        appearances: of these, those that match the anchor, oldest first.
        seconds: those that match the second anchor, of ``between``.
        scores: of each segment, how well it matches; ``before``, ``after`` and ``between`` point
            to the appearance of the best one.
        count: scenes that ``before`` and ``after`` give at most.
    """
    if operator == "between" and not (appearances and seconds):
        found = (appearances, seconds)
        return Finding(operator, (), unseen=tuple(i for i in (0, 1) if not found[i]))
    if not appearances:
        return Finding(operator, ())
    if operator in ("first", "last"):
        return Finding(
            operator, (appearances[0 if operator == "first" else -1],), total=len(appearances)
        )
    if operator not in ("before", "after", "between"):
        return Finding(operator, appearances, total=len(appearances))
    best_first = sorted(
        appearances, key=lambda e: -max(scores.get(clip.entry.segment, 0) for clip in e.clips)
    )
    pointed = best_first[0]
    if operator == "between":
        return _between(clips, best_first, seconds)
    side = before if operator == "before" else after
    return Finding(operator, (pointed,), side(clips, pointed, count), len(appearances))


def value(
    finding: Finding, captions: Mapping[int, str], *, named: bool, zone: tzinfo | None
) -> str:
    """Write a finding as data.

    Args:
        finding: what was computed.
        captions: of segments in ``around``, and of what was found without an anchor.
        named: name the sources.
        zone: of wall-clock times, where they are known; None is this computer's.

    Returns:
        For example ``3 times: 00:12.0-00:20.0, 01:00.0-01:04.0, 02:10.0-02:11.5``.
    """
    operator, appearances = finding.operator, finding.appearances
    if not appearances:
        return {"how often": "0 times", "how long": "0 s"}.get(operator, "not seen")
    spans = [span_text(e.clips[0].entry, e.start, e.end, named, zone) for e in appearances]
    listed = ", ".join(spans[:MAX_LISTED])
    if len(spans) > MAX_LISTED:
        listed += f" and {len(spans) - MAX_LISTED} more"
    if operator in ("exists", "how often"):
        times = "once" if len(appearances) == 1 else f"{len(appearances)} times"
        return f"{'seen ' if operator == 'exists' else ''}{times}: {listed}"
    if operator == "how long":
        runs = "" if len(appearances) == 1 else f" in {len(appearances)} stretches"
        return f"{length(total_s(appearances))}{runs}: {listed}"
    if operator in ("first", "last"):
        return f"{operator} of {finding.total}: {listed}" if finding.total > 1 else listed
    if operator == "when":
        return listed
    return "\n".join([_heading(finding, spans), *clip_lines(finding.around, captions)])


def _touches(left: Clip, right: Clip) -> bool:
    return left.entry.source == right.entry.source and abs(right.start - left.end) <= _TOUCHING_S


def _between(
    clips: Sequence[Clip], best_first: Sequence[Appearance], others: tuple[Appearance, ...]
) -> Finding:
    """Find what lies between the best appearance that has a partner, and that."""
    pairs = ((each, partner(each, others)) for each in best_first)
    appearance, other = next((pair for pair in pairs if pair[1]), (best_first[0], None))
    if other is None:  # both in the same scenes, or each in a source of its own
        apart = [each for each in others if each.source != appearance.source]
        same = [e for e in best_first for o in others if e.source == o.source]
        return Finding("between", (same[0],) if same else (appearance, apart[0]), total=1)
    left, right = sorted((appearance, other), key=lambda e: e.clips[0].entry.segment)
    rows = after(clips, left, len(clips))
    end = right.clips[0].entry.segment
    return Finding(
        "between", (left, right), tuple(clip for clip in rows if clip.entry.segment < end), 2
    )


def _heading(finding: Finding, spans: list[str]) -> str:
    if finding.operator == "between":
        if len(finding.appearances) == 1:
            return f"both at {spans[0]}, nothing between"
        left, right = finding.appearances
        if left.source != right.source:
            return f"{spans[0]} and {spans[1]}: in different sources, nothing between"
        gap = length(max(0.0, right.start - left.end))
        return f"between {spans[0]} and {spans[1]}, {gap}:" + ("" if finding.around else " nothing")
    return f"{finding.operator} {spans[0]}:" + ("" if finding.around else " nothing")


def clip_lines(clips: Sequence[Clip], captions: Mapping[int, str]) -> list[str]:
    """Write a line of each scene: its times and its caption."""
    lines = []
    for clip in clips[:MAX_LISTED]:
        caption = captions.get(clip.entry.segment, "").replace("\n", " / ")
        lines.append(f"[{clock(clip.start)}-{clock(clip.end)}] {caption}".rstrip())
    more = len(clips) - MAX_LISTED
    return [*lines, f"and {more} more scenes"] if more > 0 else lines


def span_text(entry: Entry, start: float, end: float, named: bool, zone: tzinfo | None) -> str:
    """Write times in a row, and on the wall clock where that is known; ``named`` its source."""
    text = f"{clock(start)}-{clock(end)}"
    if named and entry.source:
        text = f"{entry.source} {text}"
    if entry.wall_start is None:
        return text
    at = datetime.fromtimestamp(entry.wall_start + start - entry.start, zone).astimezone(zone)
    return f"{text} ({at.isoformat(' ', 'seconds')})"


def length(seconds: float) -> str:
    """Write a duration: ``1 h 2 min 3.5 s``."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return " ".join([*parts, *([f"{tenths / 10:g} s"] if tenths or not parts else [])])


# -- the last sighting --


def last_sighting_text(
    asked: LastSeenQuestion,
    found: Sequence[Appearance],
    following: Sequence[Clip],
    captions: Mapping[int, str],
    *,
    seen_thing_only: bool,
    in_time: bool,
    is_newest: bool,
    age_s: float,
    named: bool,
    zone: tzinfo | None,
) -> str:
    """Write the last sighting as data.

    Args:
        asked: the question.
        found: appearances of the action or the thing, oldest first; none: not seen.
        following: scenes after the last of them.
        captions: of the last scene of the last one and of ``following``, by segment.
        seen_thing_only: they are of the thing, where an action is asked about.
        in_time: they lie in the time that is asked about, and not before it.
        is_newest: nothing was seen after the last one.
        age_s: seconds since it ended.
        named: name the source.
        zone: of wall-clock times; None is this computer's.

    Returns:
        For example ``last seen 00:14.0-00:18.0, 2 min before the end, not seen since: A cup.``
    """
    if not found:
        return f"not seen: {asked.action or asked.thing}"
    last = found[-1]
    entry = last.clips[-1].entry
    since = "in the newest scene"
    if not is_newest:
        ago = "ago" if entry.wall_start is not None else "before the end"
        since = f"{length(age_s)} {ago}, not seen since"
    text = f"last seen {span_text(entry, last.start, last.end, named, zone)}, {since}"
    if len(found) > 1 and in_time:
        text = f"{text} ({len(found)} times in all)"
    if seen_thing_only:
        text = f"not seen: {asked.action}; {asked.thing}: {text}"
    elif not in_time:
        text = f"not seen then; before that {text}"
    if caption := captions.get(entry.segment, "").replace("\n", " / "):
        text += f": {caption}"
    lines = clip_lines(following, captions)
    return "\n".join([text, *(["then:", *lines] if lines else [])])
