"""Time words in a question: spans of the stream's clock or of the wall clock, always half-open.

A small grammar of our own: date libraries give an instant where a question means a span ("on
Monday morning"), and know nothing of a stream's own clock ("in the first ten minutes").
"""

import math
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, tzinfo
from typing import NamedTuple

from streammem.errors import ConfigError
from streammem.types import TimeSpan


class TimeWords(NamedTuple):
    """When a question is about.

    Attributes:
        span: seconds of the stream, or of the wall clock (Unix) if ``wall``; its end is inf where
            it is open.
        wall: which clock.
        from_end: start and end are <= 0 and count from the end of what was seen; with ``wall``,
            from the present moment where the wall clock of what was seen is known ("an hour ago").
        text: the question without these words.
    """

    span: TimeSpan
    wall: bool
    from_end: bool
    text: str


UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
NUMBERS = {
    word: value
    for value, words in enumerate(
        ("zero", "one a an", *"two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
    )
    for word in words.split()
} | {"fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "ninety": 90}
ORDINALS = {word: n for n, word in enumerate(("first", "second", "third", "fourth", "fifth"), 1)}
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()  # noqa: SIM905
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
# Hours; a night ends on the next day.
PARTS = {"morning": (5, 12), "afternoon": (12, 18), "evening": (18, 24), "night": (21, 30)}

_CLOCK = r"\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?"
_NUMBER = rf"(?:\d+(?:\.\d+)?|half an?|{'|'.join(NUMBERS)})"
_UNIT = r"(?:seconds?|secs?|minutes?|mins?|hours?|hrs?|s|m|h)"
_LENGTH = rf"(?:(?:{_NUMBER})[ -])?{_UNIT}"
_TIGHT = rf"(?:{_LENGTH}|\d+(?:\.\d+)?{_UNIT})\b"
_AT = rf"(?:{_CLOCK}(?! ?[ap]\.?m)|minute \d+|{_TIGHT})"
_SOURCE = r" of (?:the |this )?(?:video|film|recording|stream|clip|memory)"
_OF = rf"(?:{_SOURCE})?"
_HOUR = r"(?:\d{1,2}(?::[0-5]\d)? ?(?:[ap]\.?m\b\.?|o'clock)|noon|midnight)"
_LOOSE = r"\d{1,2}(?::[0-5]\d)?(?!:)"
_TIME_OF_DAY = r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?"
_MONTH = rf"(?:{'|'.join(MONTHS)})"
_NTH = r"\d{1,2}(?:st|nd|rd|th)?"
_PART = rf"(?P<part>{'|'.join(PARTS)})"


def find_time(
    question: str, *, now: float, zone: tzinfo | None = None, newest: float | None = None
) -> TimeWords | None:
    """Find the time words of a question.

    am, pm, o'clock, days and parts of a day are the wall clock's, always in the past. So is
    ``16:42`` where ``newest`` is given; otherwise, and in "at 16:42 of the video", ``m:ss`` and
    ``h:mm:ss`` are the stream's clock, as "minute 16" always is. What is said to the second, the
    minute, the hour or the day means a span of that length: "at 3 pm" is the hour from three to
    four.

    Args:
        question: free text.
        now: Unix seconds.
        zone: of the wall clock; None is this computer's.
        newest: Unix seconds at which the memory's newest row ends, if it knows its wall clock. An
            hour without a day is then the last such hour before it.

    Returns:
        The span and the question without these words; None where it has none.

    Raises:
        ConfigError: a date that no calendar has, or a span that ends before it begins.
    """
    try:
        today = datetime.fromtimestamp(now, zone)
        known = None if newest is None else datetime.fromtimestamp(newest, zone)
        return _wall_words(question, today, known) or _stream_words(question)
    except (ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the question names a time that there is not ({error})") from error


def _without(question: str, *found: re.Match[str]) -> str:
    for match in sorted(found, key=lambda match: -match.start()):
        question = f"{question[: match.start()]} {question[match.end() :]}"
    question = re.sub(r"\s+", " ", question).strip(" ,")
    return re.sub(r" ([?.!,])", r"\1", question)


def _span(start: float, end: float, words: str) -> TimeSpan:
    if not start < end:
        raise ConfigError(f"{words.strip()!r} ends before it begins; give the earlier time first")
    return TimeSpan(start, end)


# -- the stream's clock --


def _length(text: str) -> float:
    """Read "ten minutes", "half an hour", "90s", "minute"; in seconds."""
    number = re.match(r"\d+(?:\.\d+)?", text)
    rest = text[number.end() :] if number else text
    words = re.findall(r"[a-z]+", rest.lower())
    unit = UNITS[words[-1][0]]
    if number:
        return float(number[0]) * unit
    if words[0] == "half":
        return unit / 2
    return NUMBERS.get(words[0], 1) * unit


def _instant(text: str) -> tuple[float, float]:
    """Read a place on the stream's clock: seconds, and to how many it is said."""
    if ":" in text:
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
        return seconds, 1.0
    if text.lower().startswith("minute "):
        return 60 * float(text[7:]), 60.0
    unit = UNITS[re.findall(r"[a-z]+", text.lower())[-1][0]]
    return _length(text), unit


def _between(found: re.Match[str]) -> tuple[float, float, bool]:
    return _instant(found["a"])[0], _instant(found["b"])[0], False


def _clock(found: re.Match[str]) -> tuple[float, float, bool]:
    at, width = _instant(found["a"])
    return at, at + width, False


def _ordinal(found: re.Match[str]) -> tuple[float, float, bool]:
    unit = _length(found["unit"])
    number = ORDINALS[found["n"].lower()]
    return (number - 1) * unit, number * unit, False


def _ago(found: re.Match[str]) -> tuple[float, float, bool]:
    at, width = _instant(found["a"])
    return -at - width / 2, min(0.0, width / 2 - at), True


Meaning = Callable[[re.Match[str]], tuple[float, float, bool]]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w:]){text}(?![\w:])", re.IGNORECASE)


_MEANINGS: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (_pattern(rf"(?:between|from) (?P<a>{_AT}) (?:and|to|until|till) (?P<b>{_AT}){_OF}"), _between),
    (
        _pattern(rf"(?:(?:in|during|within|over) )?the first (?P<a>{_LENGTH}){_OF}"),
        lambda found: (0.0, _length(found["a"]), False),
    ),
    (
        _pattern(rf"(?:(?:in|during|within|over) )?the (?:last|past|final) (?P<a>{_LENGTH}){_OF}"),
        lambda found: (-_length(found["a"]), 0.0, True),
    ),
    (_pattern(rf"in the (?P<n>{'|'.join(ORDINALS)}) (?P<unit>minute|hour){_OF}"), _ordinal),
    (_pattern(rf"(?P<a>{_LENGTH}) ago"), _ago),
    (_pattern(rf"(?:at|around|in) (?P<a>{_CLOCK}(?! ?[ap]\.?m)|minute \d+){_OF}"), _clock),
    (
        _pattern(rf"(?:after|since) (?P<a>{_AT}){_OF}"),
        lambda found: (_instant(found["a"])[0], math.inf, False),
    ),
    (
        _pattern(rf"(?:before|until|till) (?P<a>{_AT}){_OF}"),
        lambda found: (0.0, _instant(found["a"])[0], False),
    ),
)


def _stream_words(question: str) -> TimeWords | None:
    for pattern, meaning in _MEANINGS:
        if found := pattern.search(question):
            start, end, from_end = meaning(found)
            return TimeWords(
                _span(start, end, found[0]), meaning is _ago, from_end, _without(question, found)
            )
    return None


# -- the wall clock --

_DAY = _pattern(
    r"(?:on )?(?:(?P<iso>\d{4}-\d\d-\d\d)|(?P<relative>the day before yesterday|yesterday|today)"
    rf"|(?:(?P<which>last|this) )?(?P<weekday>{'|'.join(WEEKDAYS)})"
    rf"|(?:the )?(?P<date>{_NTH} (?:of )?{_MONTH}(?: \d{{4}})?|{_MONTH} {_NTH}(?:,? \d{{4}})?))"
    rf"(?:,? (?:in the |at )?{_PART})?"
)
_TODAY = _pattern(r"(?P<said>this morning|this afternoon|this evening|tonight|last night)")
_BY = r"(?P<by>at|around|after|since|before|until|till)"


def _hours(hour: str) -> re.Pattern[str]:
    return _pattern(
        rf"(?:(?:between|from) (?P<a>{_HOUR}|{_LOOSE}) (?:and|to|until|till) (?P<b>{hour})"
        rf"|{_BY} (?P<at>{hour}))"
    )


_EXACT_HOURS, _LOOSE_HOURS = _hours(_HOUR), _hours(rf"(?:{_HOUR}|{_LOOSE})")
_KNOWN_HOURS = _hours(rf"(?:{_HOUR}|{_TIME_OF_DAY})(?!{_SOURCE})")


def _wall_words(question: str, now: datetime, newest: datetime | None) -> TimeWords | None:
    day = _DAY.search(question) or _TODAY.search(question)
    # Without a day, 3:30 is the stream's clock, unless the wall clock of what was seen is known.
    loose = _EXACT_HOURS if newest is None else _KNOWN_HOURS
    hours = (_LOOSE_HOURS if day else loose).search(question)
    if not day and not hours:
        return None
    begin, width = _day_span(day, now.date()) if day else (None, (0.0, 24.0))
    first, last = _hour_span(hours, width) if hours else width
    if begin is None:
        latest = newest or now
        begin = latest.date()
        if _at(begin, first, now.tzinfo) > latest.timestamp():
            begin -= timedelta(days=1)
    said = " ".join(match[0].strip() for match in (day, hours) if match)
    start = _at(begin, first, now.tzinfo)
    end = _at(begin, last, now.tzinfo, ends=True)
    if end <= start and first < last:  # the clocks skip it: as long an hour, where they go on
        end = start + (last - first) * 3600
    rest = _without(question, *filter(None, (day, hours)))
    return TimeWords(_span(start, end, said), True, False, rest)


def _at(day: date, hour: float, zone: tzinfo | None, *, ends: bool = False) -> float:
    """Return the Unix time of an hour on the wall clock.

    An hour that comes twice, as clocks go back, begins the first time and ends the second time; a
    day begins once.
    """
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    at = midnight + timedelta(hours=hour)  # on the wall clock, whatever it does meanwhile
    times = [at.replace(fold=fold).timestamp() for fold in (0, 1)]
    return max(times) if ends and hour % 24 else times[0]


def _day_span(found: re.Match[str], today: date) -> tuple[date, tuple[float, float]]:
    """Return a day, and which of its hours are meant."""
    said = found.groupdict().get("said")
    if said:
        day, _, part = said.lower().rpartition(" ")
        if part == "tonight":
            return today, (18.0, PARTS["night"][1])
        return (today - timedelta(days=1) if day == "last" else today), PARTS[part]
    part = (found["part"] or "").lower()
    return _day(found, today), PARTS.get(part, (0.0, 24.0))


def _day(found: re.Match[str], today: date) -> date:
    if found["iso"]:
        return date.fromisoformat(found["iso"])
    if found["relative"]:
        ago = {"today": 0, "yesterday": 1}.get(found["relative"].lower(), 2)
        return today - timedelta(days=ago)
    if found["weekday"]:
        ago = (today.weekday() - WEEKDAYS.index(found["weekday"].lower())) % 7
        last = (found["which"] or "").lower() == "last"
        return today - timedelta(days=7 if last and not ago else ago)
    text = found["date"].lower()
    month = next(n for n, name in enumerate(MONTHS, 1) if name in text)
    number, *year = map(int, re.findall(r"\d+", text))
    if year:
        return date(year[0], month, number)
    this_year = date(today.year, month, number)
    return this_year if this_year <= today else date(today.year - 1, month, number)


def _hour_span(found: re.Match[str], width: tuple[float, float]) -> tuple[float, float]:
    """Return the hours that are meant, counted from the day's midnight, of a part of the day."""
    if found["a"]:
        half = re.search(r"[ap]\.?m", found["b"].lower())
        bare = not re.search(r"[a-z]", found["a"].lower())
        first = _hour(found["a"] + (half[0] if half and bare else ""), width)[0]
        last = _hour(found["b"], width)[0]
        return first, last if last > first else last + 24
    hour, precision = _hour(found["at"], width)
    by = found["by"].lower()
    if by in ("after", "since"):
        return hour, width[1]
    return (hour, hour + precision) if by in ("at", "around") else (width[0], hour)


def _hour(text: str, width: tuple[float, float]) -> tuple[float, float]:
    """Read an hour of the day: hours after midnight, and to how many it is said."""
    text = text.lower()
    if text in ("noon", "midnight"):
        hour, precision = (12.0 if text == "noon" else 0.0), 1.0
    else:
        parts = [int(part) for part in re.findall(r"\d+", text)]
        if parts[0] > 24:
            raise ValueError(f"{text} is no hour")
        hour = sum(part / 60**place for place, part in enumerate(parts))
        precision = 1 / 60 ** (len(parts) - 1)
        if re.search(r"[ap]\.?m", text):
            hour = hour % 12 + (12 if "p" in text else 0)
        elif hour < 12 <= width[0]:  # three o'clock of an afternoon
            hour += 12
    # The small hours of a night are the next day's.
    return (hour + 24 if width[1] > 24 and hour < width[1] - 24 else hour), precision
