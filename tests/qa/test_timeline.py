"""Operators equal brute force over the timeline, on any timeline."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.qa.operators import compute, value
from streammem.qa.timeline import after, before, events, partner, total_s, within
from tests.memory.entries import make

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def timelines(draw):
    """Rows that tile one or two sources, and which of them match."""
    rows, matching, segment = [], set(), 0
    for source in "ab"[: draw(st.integers(1, 2))]:
        time = 0.0
        for _ in range(draw(st.integers(1, 8))):
            gap = draw(st.sampled_from([0, 0, 0, 2]))
            length = draw(st.integers(1, 4))
            changes = {"start": time + gap, "end": time + gap + length, "source": source}
            rows.append(make(segment, **changes, wall_start=1000.0 * ord(source) + time + gap))
            if draw(st.booleans()):
                matching.add(segment)
            time, segment = time + gap + length, segment + 1
    return rows, matching


def seconds_seen(rows, matching, bounds):
    """Whole seconds that match, by source: brute force over every second."""
    return {
        (row.source, second)
        for row in rows
        if row.segment in matching
        for second in range(int(row.start), int(row.end))
        if bounds[0] <= second < bounds[1]
    }


def runs(seconds):
    """How many runs of neighbouring seconds there are."""
    return sum((source, second - 1) not in seconds for source, second in seconds)


@QUICK
@given(timelines(), st.tuples(st.integers(0, 10), st.integers(1, 20)))
def test_counts_durations_and_order_equal_brute_force(timeline, span):
    rows, matching = timeline
    bounds = (float(span[0]), float(span[0] + span[1]))
    found = events(within(rows, bounds), lambda row: row.segment in matching)
    seen = seconds_seen(rows, matching, bounds)
    assert len(found) == runs(seen)
    assert total_s(found) == len(seen)
    finding = compute("how often", (), found, (), {}, 4)
    assert value(finding, {}, named=False, zone=None).startswith(
        "0 times" if not seen else "once" if len(found) == 1 else f"{len(found)} times"
    )
    if seen:
        (first,) = compute("first", (), found, (), {}, 4).events
        (last,) = compute("last", (), found, (), {}, 4).events
        assert (first.source, first.start) == min(seen)
        assert (last.source, last.end - 1) == max(seen)


@QUICK
@given(timelines(), st.integers(1, 4))
def test_before_and_after_are_the_nearest_rows_of_the_same_source(timeline, count):
    rows, matching = timeline
    stretches = within(rows)
    for event in events(stretches, lambda row: row.segment in matching):
        ids = [s.entry.segment for s in event.stretches]
        same = [row.segment for row in rows if row.source == event.source]
        earlier = [s.entry.segment for s in before(stretches, event, count)]
        later = [s.entry.segment for s in after(stretches, event, count)]
        assert earlier == [i for i in same if i < ids[0]][-count:]
        assert later == [i for i in same if i > ids[-1]][:count]


@QUICK
@given(timelines(), st.sets(st.integers(0, 15)))
def test_between_is_every_row_between_two_events_and_nothing_else(timeline, second):
    rows, matching = timeline
    stretches = within(rows)
    found = events(stretches, lambda row: row.segment in matching)
    others = events(stretches, lambda row: row.segment in second - matching)
    finding = compute("between", stretches, found, others, {}, 4)
    if not finding.events:
        return
    left, right = finding.events
    assert left.source == right.source
    low, high = left.stretches[-1].entry.segment, right.stretches[0].entry.segment
    assert [s.entry.segment for s in finding.around] == list(range(low + 1, high))
    evidence = {entry.segment for entry in finding.used}
    assert evidence == {s.entry.segment for e in (left, right) for s in e.stretches} | set(
        range(low + 1, high)
    )


def test_events_join_neither_over_sources_nor_over_a_row_that_does_not_match():
    sources = [make(0, start=0.0, end=5.0, source="a"), make(1, start=5.0, end=6.0, source="b")]
    assert len(events(within(sources), lambda row: True)) == 2
    instant = [make(0, end=1.0), make(1, start=1.0, end=1.0), make(2, start=1.0, end=2.0)]
    assert len(events(within(instant), lambda row: row.segment != 1)) == 2


def test_a_row_of_one_instant_lies_where_it_is():
    row = make(0, start=1.0, end=1.0)
    assert [len(within([row], span)) for span in (None, (1.0, 2.0), (0.0, 0.5))] == [1, 1, 0]


def test_the_partner_of_an_event_is_the_next_one_or_else_the_last_before_it():
    rows = [make(i, source="ab"[i > 11]) for i in range(15)]

    def found(*segments):
        return events(within(rows), lambda row: row.segment in segments)

    (event,) = found(5, 6)

    def first_of_partner(*segments):
        other = partner(event, found(*segments))
        return other and other.stretches[0].entry.segment

    assert first_of_partner(1, 3, 8, 10) == 8
    assert first_of_partner(1, 3) == 3
    assert first_of_partner(6, 10) == 10 and first_of_partner(6) is None  # no part of itself
    assert first_of_partner(13) is None  # another source's


def test_what_points_somewhere_points_to_the_best_match():
    rows = [make(i) for i in range(8)]
    stretches = within(rows)
    found = events(stretches, lambda row: row.segment in (1, 5))
    finding = compute("after", stretches, found, (), {1: 0.2, 5: 0.9}, 2)
    assert [s.entry.segment for s in finding.around] == [6, 7]
    assert [entry.segment for entry in finding.used] == [5, 6, 7]


def test_windows_are_half_open_on_both_clocks():
    rows = [make(i, wall_start=5000.0 + i) for i in range(4)] + [make(9, start=9.0, end=10.0)]
    for stream, wall in (((1.0, 3.0), None), (None, (5001.0, 5003.0))):
        found = within(rows, stream, wall)
        assert [(s.entry.segment, s.start, s.end) for s in found] == [(1, 1.0, 2.0), (2, 2.0, 3.0)]
    assert [s.start for s in within(rows, None, (5001.5, 5001.75))] == [1.5]
    assert within(rows, (4.0, 9.0)) == ()


def test_a_row_without_wall_clock_is_never_in_a_wall_clock_span():
    assert within([make(0)], None, (-np.inf, np.inf)) == ()


def test_long_lists_and_lengths_read_plainly():
    rows = [make(i, start=2.0 * i, end=2.0 * i + 1) for i in range(13)]
    found = events(within(rows), lambda row: True)
    text = value(compute("how often", (), found, (), {}, 4), {}, named=False, zone=None)
    assert text.startswith("13 times: 00:00.0-00:01.0, ") and text.endswith("and 3 more")
    rows = [make(0, start=0.0, end=3723.5)]
    found = events(within(rows), lambda row: True)
    text = value(compute("how long", (), found, (), {}, 4), {}, named=False, zone=None)
    assert text == "1 h 2 min 3.5 s: 00:00.0-1:02:03.5"


def test_a_gap_is_told_from_end_to_start_and_the_only_one_is_not_the_first_of_one():
    stretches = within([make(n) for n in range(6)])
    found, others = (events(stretches, lambda e, n=n: e.segment == n) for n in (0, 4))
    between = compute("between", stretches, found, others, {}, 4)
    text = value(between, {}, named=False, zone=None)
    assert text.startswith("between 00:00.0-00:01.0 and 00:04.0-00:05.0, 3 s:")
    first = compute("first", stretches, found, (), {}, 4)
    assert value(first, {}, named=False, zone=None) == "00:00.0-00:01.0"
