from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.qa.question import find_time

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2026, 11, 18, 14, 30, tzinfo=BERLIN).timestamp()  # a Wednesday
HOUR, DAY = 3600, 86_400
INF = float("inf")


def found(question, now=NOW, zone=BERLIN):
    return find_time(question, now=now, zone=zone)


@pytest.mark.parametrize(
    ("question", "start", "end", "rest"),
    [
        ("What happened in the first ten minutes?", 0, 600, "What happened?"),
        ("Who came in the first half an hour of the video?", 0, 1800, "Who came?"),
        ("How often did a dog run between 0:30 and 1:10?", 30, 70, "How often did a dog run?"),
        ("From 5 minutes to 10 minutes, who sang?", 300, 600, "who sang?"),
        ("What was there at 1:02:03?", 3723, 3724, "What was there?"),
        ("Is there a dog at minute 5?", 300, 360, "Is there a dog?"),
        ("What happens in the second hour?", 3600, 7200, "What happens?"),
        ("What happened after 5:00?", 300, INF, "What happened?"),
        ("Was a man there before 1:30?", 0, 90, "Was a man there?"),
    ],
)
def test_words_of_the_streams_clock_are_spans_and_leave_the_question(question, start, end, rest):
    words = found(question)
    assert (words.span.start, words.span.end, words.text) == (start, end, rest)
    assert not words.wall and not words.from_end


@pytest.mark.parametrize(
    ("question", "start", "wall"),
    [
        ("Who came in the last 5 minutes?", -300, False),
        ("Who came in the last hour?", -3600, False),
        ("Who came two hours ago?", -9000, True),
        ("Who came 0.25 minutes ago?", -45, True),
    ],
)
def test_words_that_count_back_are_not_after_the_end(question, start, wall):
    words = found(question)
    assert words.from_end and words.wall == wall
    assert words.span.start == start < words.span.end <= 0


@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("Was there a dog yesterday?", "2026-11-17T00:00", "2026-11-18T00:00"),
        ("Was there a dog yesterday at 3 pm?", "2026-11-17T15:00", "2026-11-17T16:00"),
        ("Was there a dog at 3:15 p.m. yesterday?", "2026-11-17T15:15", "2026-11-17T15:16"),
        ("Yesterday at 15:30, was there a dog?", "2026-11-17T15:30", "2026-11-17T15:31"),
        ("Who rang on Monday morning?", "2026-11-16T05:00", "2026-11-16T12:00"),
        ("Who rang last Wednesday at noon?", "2026-11-11T12:00", "2026-11-11T13:00"),
        ("Who rang last night at 2 am?", "2026-11-18T02:00", "2026-11-18T03:00"),
        ("Who rang this morning before 9 am?", "2026-11-18T05:00", "2026-11-18T09:00"),
        ("Who rang between 3 and 4 pm yesterday?", "2026-11-17T15:00", "2026-11-17T16:00"),
        ("Who rang from 11 pm to 1 am?", "2026-11-17T23:00", "2026-11-18T01:00"),
        ("Who rang at 4 pm?", "2026-11-17T16:00", "2026-11-17T17:00"),
        ("Who rang on 2026-11-01?", "2026-11-01T00:00", "2026-11-02T00:00"),
        ("Who rang on the 5th of May?", "2026-05-05T00:00", "2026-05-06T00:00"),
        ("Who rang on December 3?", "2025-12-03T00:00", "2025-12-04T00:00"),
        ("Who rang yesterday afternoon at 3 o'clock?", "2026-11-17T15:00", "2026-11-17T16:00"),
        ("Who rang the day before yesterday?", "2026-11-16T00:00", "2026-11-17T00:00"),
        ("Who rang yesterday evening?", "2026-11-17T18:00", "2026-11-18T00:00"),
        ("Who rang last night after 10 pm?", "2026-11-17T22:00", "2026-11-18T06:00"),
        ("Who rang tonight?", "2026-11-18T18:00", "2026-11-19T06:00"),
        ("Who rang yesterday at 12 am?", "2026-11-17T00:00", "2026-11-17T01:00"),
        ("Who rang yesterday at 12 pm?", "2026-11-17T12:00", "2026-11-17T13:00"),
        ("Who rang yesterday at midnight?", "2026-11-17T00:00", "2026-11-17T01:00"),
        ("Who rang between 11 am and 1 pm yesterday?", "2026-11-17T11:00", "2026-11-17T13:00"),
    ],
)
def test_words_of_the_wall_clock_are_past_spans_of_the_zone(question, start, end):
    words = found(question)
    assert words.wall and not words.from_end
    assert datetime.fromtimestamp(words.span.start, BERLIN).isoformat()[:16] == start
    assert datetime.fromtimestamp(words.span.end, BERLIN).isoformat()[:16] == end
    assert "rang" in words.text or "there a dog?" in words.text


@pytest.mark.parametrize(
    "question",
    [
        "What happened after the dog ran?",
        "What color is the second car?",
        "How many people sit at 3 tables?",
        "When did I last see my keys?",
        "May I see the dog?",
        "",
    ],
)
def test_other_words_are_no_time(question):
    assert found(question) is None


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("Who came between 2:00 and 1:00?", "'between 2:00 and 1:00' ends before it begins"),
        ("Who came between 1:00 and 1:00?", "'between 1:00 and 1:00' ends before it begins"),
        ("Who came on 2026-02-30?", "the question names a time that there is not"),
        ("Who came today at 31 o'clock?", "the question names a time that there is not"),
    ],
)
def test_a_time_that_there_is_not_is_told_in_one_line(question, told):
    with pytest.raises(ConfigError) as error:
        found(question)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-08", 23), ("2026-11-01", 25), ("2026-06-01", 24)]
)
def test_a_day_is_as_long_as_the_clocks_make_it(day, hours):
    words = found(f"Who came on {day}?", zone=NEW_YORK)
    assert words.span.end - words.span.start == hours * HOUR


def test_a_day_begins_once_where_its_midnight_comes_twice():
    havana = ZoneInfo("America/Havana")
    before, day = (found(f"Who came on 2026-{day}?", zone=havana) for day in ("10-31", "11-01"))
    assert before.span.end == day.span.start and day.span.end - day.span.start == 25 * HOUR


def test_an_hour_that_comes_twice_is_both_and_one_that_is_skipped_is_the_next():
    twice = found("Who came on 2026-11-01 at 1 am?", zone=NEW_YORK)
    assert twice.span.end - twice.span.start == 2 * HOUR
    assert datetime.fromtimestamp(twice.span.start, UTC).hour == 5
    minute = found("Who came on 2026-11-01 at 1:30 am?", zone=NEW_YORK)
    # From the first 1:30 to the second 1:31.
    assert minute.span.end - minute.span.start == HOUR + 60
    skipped = found("Who came on 2026-03-08 at 2 am?", zone=NEW_YORK)
    assert datetime.fromtimestamp(skipped.span.start, UTC).hour == 7
    assert skipped.span.end - skipped.span.start == HOUR


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 23), st.integers(0, 400), st.sampled_from([BERLIN, NEW_YORK, UTC]))
def test_neighbouring_days_tile_the_wall_clock(hour, days, zone):
    now = datetime(2026, 1, 2, hour, 10, tzinfo=zone).timestamp() + days * DAY
    today, yesterday = (found(f"Who came {day}?", now, zone) for day in ("today", "yesterday"))
    assert yesterday.span.end == today.span.start <= now < today.span.end


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="0123456789: apm'-stfirlahoudy", max_size=60))
def test_any_text_is_read_or_refused_in_our_words(text):
    try:
        words = found(text)
    except ConfigError:
        return
    assert words is None or words.span.start < words.span.end


RECORDED = datetime(2026, 11, 16, 18, 20, tzinfo=BERLIN).timestamp()  # the memory's newest moment


@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("Who was there at 16:42?", "2026-11-16T16:42:00", "2026-11-16T16:43:00"),
        ("Who was there at 16:42:05?", "2026-11-16T16:42:05", "2026-11-16T16:42:06"),
        ("Who was there at 19:00?", "2026-11-15T19:00:00", "2026-11-15T19:01:00"),
        ("Who was there at 4 pm?", "2026-11-16T16:00:00", "2026-11-16T17:00:00"),
        ("Who was there after 17:30?", "2026-11-16T17:30:00", "2026-11-17T00:00:00"),
        ("Who was there between 9:15 and 17:30?", "2026-11-16T09:15:00", "2026-11-16T17:30:00"),
        ("Was there a dog at 16:42 yesterday?", "2026-11-17T16:42:00", "2026-11-17T16:43:00"),
    ],
)
def test_where_the_wall_clock_is_known_a_time_of_day_is_its_own(question, start, end):
    words = find_time(question, now=NOW, zone=BERLIN, newest=RECORDED)
    assert words.wall and not words.from_end
    for at, wanted in zip(words.span, (start, end), strict=True):
        assert datetime.fromtimestamp(at, BERLIN).isoformat()[:19] == wanted


@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("Who was there at minute 16?", 960, 1020),
        ("Who was there at 16:42 of the video?", 1002, 1003),
        ("Who was there at 75:20?", 4520, 4521),
        ("Who was there in the first ten minutes?", 0, 600),
    ],
)
def test_minutes_of_the_stream_stay_so_where_the_wall_clock_is_known(question, start, end):
    words = find_time(question, now=NOW, zone=BERLIN, newest=RECORDED)
    assert not words.wall and tuple(words.span) == (start, end)
