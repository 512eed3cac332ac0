"""Operators equal brute force over any timeline, and are written as data, always the same way."""

import re
from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.memory.retrieval import Window, clipped
from streammem.qa.timeline import (
    MAX_LISTED,
    Finding,
    after,
    before,
    compute,
    find_appearances,
    newest_of,
    oldest_first,
    partner,
    total_s,
    value,
)
from streammem.types import TimeSpan
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
    bounds = TimeSpan(float(span[0]), float(span[0] + span[1]))
    found = find_appearances(clipped(rows, Window(bounds)), lambda row: row.segment in matching)
    seen = seconds_seen(rows, matching, bounds)
    assert len(found) == runs(seen)
    assert total_s(found) == len(seen)
    finding = compute("how often", (), found, (), {}, 4)
    assert value(finding, {}, named=False, zone=None).startswith(
        "0 times" if not seen else "once" if len(found) == 1 else f"{len(found)} times"
    )
    if seen:
        (first,) = compute("first", (), found, (), {}, 4).appearances
        (last,) = compute("last", (), found, (), {}, 4).appearances
        assert (first.source, first.start) == min(seen)
        assert (last.source, last.end - 1) == max(seen)


@QUICK
@given(timelines(), st.integers(1, 4))
def test_before_and_after_are_the_nearest_rows_of_the_same_source(timeline, count):
    rows, matching = timeline
    clips = clipped(rows)
    for appearance in find_appearances(clips, lambda row: row.segment in matching):
        ids = [s.entry.segment for s in appearance.clips]
        same = [row.segment for row in rows if row.source == appearance.source]
        earlier = [s.entry.segment for s in before(clips, appearance, count)]
        later = [s.entry.segment for s in after(clips, appearance, count)]
        assert earlier == [i for i in same if i < ids[0]][-count:]
        assert later == [i for i in same if i > ids[-1]][:count]


@QUICK
@given(timelines(), st.sets(st.integers(0, 15)))
def test_between_is_every_row_between_two_events_and_nothing_else(timeline, second):
    rows, matching = timeline
    clips = clipped(rows)
    found = find_appearances(clips, lambda row: row.segment in matching)
    others = find_appearances(clips, lambda row: row.segment in second - matching)
    finding = compute("between", clips, found, others, {}, 4)
    if not finding.appearances:
        return
    left, right = finding.appearances
    if left.source != right.source:  # only where no source has both
        assert not {e.source for e in found} & {e.source for e in others} and not finding.around
        return
    low, high = left.clips[-1].entry.segment, right.clips[0].entry.segment
    assert [s.entry.segment for s in finding.around] == list(range(low + 1, high))
    evidence = {entry.segment for entry in finding.used}
    assert evidence == {s.entry.segment for each in (left, right) for s in each.clips} | set(
        range(low + 1, high)
    )


def test_events_join_neither_over_sources_nor_over_a_row_that_does_not_match():
    sources = [make(0, start=0.0, end=5.0, source="a"), make(1, start=5.0, end=6.0, source="b")]
    assert len(find_appearances(clipped(sources), lambda row: True)) == 2
    instant = [make(0, end=1.0), make(1, start=1.0, end=1.0), make(2, start=1.0, end=2.0)]
    assert len(find_appearances(clipped(instant), lambda row: row.segment != 1)) == 2


def test_what_knows_its_wall_clock_is_in_its_order_and_what_does_not_keeps_its_place():
    walls = [90.0, 91.0, None, 10.0, 11.0, None, 50.0]
    rows = [make(i, wall_start=wall, source="?" if wall is None else "") for i, wall in
            enumerate(walls)]  # fmt: skip
    assert [row.segment for row in oldest_first(rows, lambda row: row)] == [3, 4, 2, 6, 0, 5, 1]
    assert newest_of(rows).segment == 1 and newest_of([]) is None
    same = [make(i, wall_start=5.0 if i % 2 else None) for i in range(4)]
    assert oldest_first(same, lambda row: row) == tuple(same)


def test_visits_come_in_the_order_of_the_wall_clock_and_none_is_torn():
    """A film of Tuesday that was added after one of Wednesday, and then once more."""
    films = [("wed", 200.0), ("tue", 100.0), ("tue", 100.0)]
    rows = [
        make(4 * number + i, start=float(i), end=i + 1.0, source=name, wall_start=wall + i)
        for number, (name, wall) in enumerate(films)
        for i in range(4)
    ]
    found = find_appearances(clipped(rows), lambda row: row.segment % 4 in (1, 2))
    assert [[clip.entry.segment for clip in e.clips] for e in found] == [[5, 6], [9, 10], [1, 2]]
    for operator, segment in (("first", 5), ("last", 1)):
        (appearance,) = compute(operator, clipped(rows), found, (), {}, 4).appearances
        assert appearance.clips[0].entry.segment == segment
    used = compute("when", clipped(rows), found, (), {}, 4).used
    assert [row.segment for row in used] == [5, 9, 6, 10, 1, 2]


def test_the_partner_of_an_event_is_the_next_one_or_else_the_last_before_it():
    rows = [make(i, source="ab"[i > 11]) for i in range(15)]

    def found(*segments):
        return find_appearances(clipped(rows), lambda row: row.segment in segments)

    (appearance,) = found(5, 6)

    def first_of_partner(*segments):
        other = partner(appearance, found(*segments))
        return other and other.clips[0].entry.segment

    assert first_of_partner(1, 3, 8, 10) == 8
    assert first_of_partner(1, 3) == 3
    assert first_of_partner(6, 10) == 10 and first_of_partner(6) is None  # no part of itself
    assert first_of_partner(13) is None  # another source's


def test_what_points_somewhere_points_to_the_best_match():
    rows = [make(i) for i in range(8)]
    clips = clipped(rows)
    found = find_appearances(clips, lambda row: row.segment in (1, 5))
    finding = compute("after", clips, found, (), {1: 0.2, 5: 0.9}, 2)
    assert [s.entry.segment for s in finding.around] == [6, 7]
    assert [entry.segment for entry in finding.used] == [5, 6, 7]
    # Of an appearance of several scenes its best one counts.
    found = find_appearances(clips, lambda row: row.segment in (1, 2, 5))
    finding = compute("after", clips, found, (), {1: 0.1, 2: 0.95, 5: 0.9}, 2)
    assert [s.entry.segment for s in finding.around] == [3, 4]


def test_long_lists_and_lengths_read_plainly():
    rows = [make(i, start=2.0 * i, end=2.0 * i + 1) for i in range(13)]
    found = find_appearances(clipped(rows), lambda row: True)
    text = value(compute("how often", (), found, (), {}, 4), {}, named=False, zone=None)
    assert text.startswith("13 times: 00:00.0-00:01.0, ") and text.endswith("and 3 more")
    rows = [make(0, start=0.0, end=3723.5)]
    found = find_appearances(clipped(rows), lambda row: True)
    text = value(compute("how long", (), found, (), {}, 4), {}, named=False, zone=None)
    assert text == "1 h 2 min 3.5 s: 00:00.0-1:02:03.5"


def test_a_gap_is_told_from_end_to_start_and_the_only_one_is_not_the_first_of_one():
    clips = clipped([make(n) for n in range(6)])
    found, others = (find_appearances(clips, lambda e, n=n: e.segment == n) for n in (0, 4))
    between = compute("between", clips, found, others, {}, 4)
    text = value(between, {}, named=False, zone=None)
    assert text.startswith("between 00:00.0-00:01.0 and 00:04.0-00:05.0, 3 s:")
    first = compute("first", clips, found, (), {}, 4)
    assert value(first, {}, named=False, zone=None) == "00:00.0-00:01.0"


# -- how it is written --

ROWS = [make(i) for i in range(8)]
CAPTIONS = {2: "A dog.\nIt runs.", 3: "A cat."}


def appearances_of(*segments, rows=ROWS):
    return find_appearances(clipped(rows), lambda row: row.segment in segments)


def computed(operator, first, second=(), count=2):
    scores = dict.fromkeys(first, 1.0)
    return compute(
        operator, clipped(ROWS), appearances_of(*first), appearances_of(*second), scores, count
    )


def told(finding, **options):
    return value(finding, CAPTIONS, **{"named": False, "zone": None, **options})


@pytest.mark.parametrize(
    ("operator", "segments", "expected"),
    [
        ("exists", (1,), "seen once: 00:01.0-00:02.0"),
        ("exists", (1, 3), "seen 2 times: 00:01.0-00:02.0, 00:03.0-00:04.0"),
        ("how often", (1,), "once: 00:01.0-00:02.0"),
        ("how long", (1, 2), "2 s: 00:01.0-00:03.0"),
        ("how long", (1, 3), "2 s in 2 stretches: 00:01.0-00:02.0, 00:03.0-00:04.0"),
        ("when", (1, 3), "00:01.0-00:02.0, 00:03.0-00:04.0"),
        ("first", (1,), "00:01.0-00:02.0"),
        ("first", (1, 3), "first of 2: 00:01.0-00:02.0"),
        ("last", (1, 3), "last of 2: 00:03.0-00:04.0"),
        ("after", (7,), "after 00:07.0-00:08.0: nothing"),
        ("before", (0,), "before 00:00.0-00:01.0: nothing"),
        ("before", (1,), "before 00:01.0-00:02.0:\n[00:00.0-00:01.0]"),
    ],
)
def test_a_value_reads_as_data(operator, segments, expected):
    assert told(computed(operator, segments)) == expected


@pytest.mark.parametrize(
    ("operator", "expected"),
    [("how often", "0 times"), ("how long", "0 s"), ("exists", "not seen"), ("after", "not seen")],
)
def test_what_was_not_seen_is_none_of_it(operator, expected):
    assert told(computed(operator, ())) == expected


def test_what_lies_between_has_the_gap_and_a_line_a_scene():
    finding = computed("between", (1,), (4,))
    assert told(finding) == (
        "between 00:01.0-00:02.0 and 00:04.0-00:05.0, 2 s:\n"
        "[00:02.0-00:03.0] A dog. / It runs.\n[00:03.0-00:04.0] A cat."
    )
    assert [entry.segment for entry in finding.answers] == [2, 3]
    assert told(computed("between", (1,), (2,))).endswith(", 0 s: nothing")
    assert told(computed("between", (1,))) == "not seen"


def test_rows_that_were_used_come_oldest_first():
    assert [entry.segment for entry in computed("before", (3,)).used] == [1, 2, 3]


def test_there_is_no_gap_between_events_that_overlap():
    rows = [make(1, start=1.0, end=4.0), make(2, start=3.0, end=5.0)]
    left, right = appearances_of(1, rows=rows), appearances_of(2, rows=rows)
    assert told(Finding("between", (*left, *right), total=2)).endswith(", 0 s: nothing")


def test_of_more_scenes_than_are_listed_the_rest_is_counted():
    rows = clipped([make(i) for i in range(MAX_LISTED + 2)])
    for more, last in ((0, "[00:09.0-00:10.0]"), (2, "and 2 more scenes")):
        finding = Finding("after", appearances_of(0), rows[: MAX_LISTED + more])
        lines = told(finding).splitlines()
        assert lines[-1] == last and len(lines) == 1 + MAX_LISTED + (more > 0)


def test_spans_have_the_sources_name_and_the_time_of_day_where_they_are_known():
    rows = [make(3, start=3.0, end=6.0, source="door", wall_start=86_400.0 + 3)]
    (appearance,) = find_appearances(clipped(rows, Window(TimeSpan(5.0, 6.0))), lambda row: True)
    finding = Finding("when", (appearance,), total=1)
    day = "(1970-01-02 00:00:05+00:00)"
    assert told(finding, zone=UTC) == f"00:05.0-00:06.0 {day}"
    assert told(finding, zone=UTC, named=True) == f"door 00:05.0-00:06.0 {day}"
    assert re.search(r":05[+-]\d\d:\d\d\)$", told(finding))  # this computer's zone, told too


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0 s"), (59.96, "1 min"), (3600.0, "1 h"), (3660.5, "1 h 1 min 0.5 s")],
)
def test_a_length_leaves_out_what_is_nothing(seconds, expected):
    rows = [make(0, start=0.0, end=seconds)]
    finding = compute("how long", (), appearances_of(0, rows=rows), (), {}, 1)
    assert told(finding).partition(":")[0] == expected
