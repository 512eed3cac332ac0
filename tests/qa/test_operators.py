"""What is computed is written as data, the same way every time."""

import re
from datetime import UTC

import pytest

from streammem.qa.operators import MAX_LISTED, Finding, compute, value
from streammem.qa.timeline import events, within
from tests.memory.entries import make

ROWS = [make(i) for i in range(8)]
CAPTIONS = {2: "A dog.\nIt runs.", 3: "A cat."}


def found(*segments, rows=ROWS):
    return events(within(rows), lambda row: row.segment in segments)


def computed(operator, first, second=(), count=2):
    scores = dict.fromkeys(first, 1.0)
    return compute(operator, within(ROWS), found(*first), found(*second), scores, count)


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
    left, right = found(1, rows=rows), found(2, rows=rows)
    assert told(Finding("between", (*left, *right), total=2)).endswith(", 0 s: nothing")


def test_of_more_scenes_than_are_listed_the_rest_is_counted():
    rows = within([make(i) for i in range(MAX_LISTED + 2)])
    for more, last in ((0, "[00:09.0-00:10.0]"), (2, "and 2 more scenes")):
        finding = Finding("after", found(0), rows[: MAX_LISTED + more])
        lines = told(finding).splitlines()
        assert lines[-1] == last and len(lines) == 1 + MAX_LISTED + (more > 0)


def test_spans_have_the_sources_name_and_the_time_of_day_where_they_are_known():
    rows = [make(3, start=3.0, end=6.0, source="door", wall_start=86_400.0 + 3)]
    (event,) = events(within(rows, (5.0, 6.0)), lambda row: True)
    finding = Finding("when", (event,), total=1)
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
    finding = compute("how long", (), found(0, rows=rows), (), {}, 1)
    assert told(finding).partition(":")[0] == expected
