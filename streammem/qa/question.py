"""Reading a question: what is asked for, of what, and of which time.

    words = find_time("Where was the dog yesterday?", now=now.wall, newest=wall_end(newest))
    window = window_of(words, memory.entries()[-1], now)         # yesterday, on the wall clock
    reading, back = resolved(model.read_question(words.text), turns)   # "after that": of what?
    asked = read_said("When did they mention the harbour?")      # kind "when", topic "the harbour"
    asked = read_last_seen("Did I turn off the stove?")          # action "turn off the stove"

Operator and anchor come from the model. Time words are spans of the stream's clock or of the wall
clock, always half-open, read by a small grammar of our own: date libraries give an instant where a
question means a span ("on Monday morning"), and know nothing of a stream's own clock ("in the first
ten minutes").
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Literal, NamedTuple

from torch import Tensor

from streammem.errors import ConfigError
from streammem.memory.entry import Entry, Now
from streammem.memory.retrieval import EVERYTHING, Window
from streammem.models.tiny.questions import PUNCTUATION, QuestionReading
from streammem.perception.frames import BufferedFrame
from streammem.types import TimeSpan, clock

MAX_PROMPTED = 600  # characters of a question in a prompt
MAX_OPTIONS = 2000  # likewise, of the options that are listed behind it
_BACK = frozenset("that it this then these those them him her he she they there".split())  # noqa: SIM905


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


class Present(NamedTuple):
    """Where a stream stands.

    Attributes:
        now: its last frames; none where it does not go on.
        segment: id of the open segment.
        memory: recurrent memory tokens.
        source: name of its source.
        heard: what was said that no row of the memory holds yet, with the keys of the open segment,
            as a row; None where there is nothing.
    """

    now: Sequence[BufferedFrame]
    segment: int
    memory: Tensor
    source: str = ""
    heard: Entry | None = None


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
        options: that its text lists behind it, see ``split_options``; often none.
    """

    text: str
    about: str
    reading: QuestionReading
    window: Window
    now: Now
    back: tuple[int, ...] = ()
    looked_at: str | None = None
    within: Window = EVERYTHING
    options: str = ""

    @property
    def prompted(self) -> str:
        """What a prompt asks: a long question is cut, so that it does not crowd out what was seen.

        The options that it lists are not: they are what is chosen from.
        """
        if not self.options:
            return self.text[:MAX_PROMPTED]
        return f"{split_options(self.text)[0][:MAX_PROMPTED]}\n{self.options[:MAX_OPTIONS]}"


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
        newest: the newest row, of the source that alone may be looked at where there is one; None
            in an empty memory.
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


# -- options in a question's text --

_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]+\S", re.MULTILINE)


def split_options(text: str) -> tuple[str, str]:
    """Split a question that lists options, each on a line of its own, as in ``A. red``.

    Returns:
        The question alone, and the rest from the first option on; the text and ``""`` where there
        are not at least two options, lettered from A on, behind a question.
    """
    found = list(_OPTION.finditer(text))
    letters = "".join(match[1] for match in found)
    if not letters.startswith("AB"):
        return text, ""
    stem = text[: found[0].start()].strip()
    return (stem, text[found[0].start() :].strip()) if stem else (text, "")


# -- questions of what was said --

Kind = Literal["what", "when", "who", "whether", "count"]

# "Can you tell me if ...": what follows is the question, in either order of its words.
_ASKED = re.compile(
    r"(?:(?:please|(?:can|could|would|will) you|do you (?:know|remember|recall|think)|tell me|"
    r"show me|remind me|let me know|find(?: out)?|count|check|i (?:want|would like|need) to know|"
    r"i'd like to know|i wonder)[, ]+)+"
    r"(?=(?:what|when|who|where|which|why|how|if|whether|at|in|quote|repeat)\b)",
    re.IGNORECASE,
)
_SUBJECT = (
    r"they|them|he|him|she|her|you|i|we|us|it|people|any ?one|any ?body|some ?one|some ?body|"
    r"every(?:one|body)|no ?one|no ?body|"
    r"(?:any|some|one|none|all) of [\w'-]+(?: [\w'-]+)?|the [\w'-]+(?: [\w'-]+){0,5}?|"
    r"(?!there )[\w'-]+(?: [\w'-]+)?"
)
_BE, _DO = r"(?:is|was|were|are)", r"(?:did|do|does|has|have|had)"
_BEEN = r"(?:is|was|were|are)(?: being)?"
_ORDER = r"(?:ever |first |last |also |once |again |actually |really )?"
_ABOUT = r"(?:on the (?:subject|topic) of|about|of|on|regarding|concerning)"
_VAGUE = (
    r"(?:(?:any|some|no)thing(?: else| more)?|a (?:single )?(?:word|thing)|very much|much|a lot|"
    r"more)(?: at all)?"
)
_SAY = r"(?:say|says|said|saying)"
_TALK = (
    r"(?:(?:start |starts |started |begin |began )?(?:talk|speak|tell|chat)(?:s|ing|ting)?|talked|"
    r"spoke|spoken|told|chatted)"
)
_NAME = r"(?:(?:mention|discuss)(?:s|es|ed|ing)?|refer(?:s|red|ring)? to)"
_SAID_OF = (
    rf"(?:said|mentioned|discussed|referred to|talked (?:about|of)|spoken (?:of|about)|"
    rf"told {_ABOUT}|brought up in (?:the )?(?:conversation|discussion|talk))"
)
_TALKS = r"(?:conversation|discussion|talk|speech|dialogue)"
# A verb and its topic: "say something about X", "talk to her about X", "mention X", "say X".
_SAYS = (
    rf"(?:{_SAY} (?:{_VAGUE} )?{_ABOUT} <topic>|{_NAME} (?:{_VAGUE} {_ABOUT} |that )?<topic>|"
    rf"{_TALK}(?: (?:to|with) \w+| \w+)? (?:about|of|that|regarding|concerning) <topic>|"
    rf"{_SAY} (?:that |whether |if )?(?:the (?:exact )?(?:words?|phrase|name) )?<topic>)"
)
_HEARS = rf"{_DO} (?:you|i|we) hear (?:<who> {_SAYS}|{_VAGUE} {_ABOUT} <topic>)"
_ASKS = rf"(?:{_DO} <who> {_ORDER}|{_BE} <who> (?=\w+ing )){_SAYS}"
_SPEAKS = rf"{_DO} <who> {_ORDER}(?:{_SAY} {_VAGUE}|speak)"
_TELLS = rf"<who> {_ORDER}{_SAYS}"
_PASSIVE = (
    rf"{_BEEN} {_VAGUE} {_ORDER}said(?: {_ABOUT} <topic>)?",
    rf"(?:has|have|had) {_VAGUE} been said(?: {_ABOUT} <topic>)?",
    rf"(?:has|have|had) <topic> {_ORDER}been {_SAID_OF}",
    rf"{_BEEN} <topic> {_ORDER}{_SAID_OF}",
    rf"{_BE} there (?:any |a |some )?(?:mention|talk|word|discussion) {_ABOUT} <topic>",
    rf"{_DO} the (?:topic|subject|matter|question) of <topic> come up",
    rf"{_DO} <topic> come up in (?:the |a |their )?{_TALKS}",
    rf"(?:{_DO} )?the {_TALKS} (?:turn|come|get)(?:s|ed)? to <topic>",
)
_TELLS_PASSIVE = rf"<topic> {_BEEN} {_ORDER}{_SAID_OF}"
_WHEN = (
    r"(?:when|where(?: in the \w+)?|(?:at|in|around) (?:what|which) "
    r"(?:time|point|moment|minute|hour|place|part|scene))"
)
_OFTEN = r"how (?:often|many times|frequently)"
_WHAT = r"(?:quote what|quote|repeat what|what(?: exactly| else)?)"
_AGENT = rf"(?:who(?: else)?|which (?:of )?\w+)(?: (?:{_DO}|{_BE} it (?:that|who)|{_BE}))?"
# By what is asked for: how such questions begin, and how they go on. The first that fits counts.
_PATTERNS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("what", "", (
        rf"{_DO} <who> {_ORDER}{_SAY} (?:why|how|where|when|who|what) <topic>",
        rf"(?:what|where) {_DO} <who> {_SAY} (?:that )?<topic> {_BE}",
        rf"why {_DO} <who> {_SAY} (?:that )?<topic>",
    )),
    ("count", f"{_OFTEN} ", (_HEARS, _ASKS, _SPEAKS, *_PASSIVE, _TELLS_PASSIVE, _TELLS)),
    ("when", f"{_WHEN} ", (_HEARS, _ASKS, _SPEAKS, *_PASSIVE, _TELLS_PASSIVE, _TELLS)),
    ("who", f"{_AGENT} {_ORDER}", (_SAYS,)),
    ("what", f"{_WHAT} ", (
        rf"(?:(?:{_DO}|{_BE}) )?(?:(?:you|i|we) hear )?<who> (?:ha(?:ve|s) to )?"
        rf"(?:{_SAY}|{_NAME}|{_TALK})(?: \w+)? {_ABOUT} <topic>",
        rf"{_DO} (?:you|i|we) hear {_ABOUT} <topic>",
        rf"(?:{_BEEN}|has been) (?:said|mentioned|discussed|told) {_ABOUT} <topic>",
        rf"{_BE} (?:[\w']+ )?(?:exact )?words (?:about|regarding|concerning) <topic>",
        rf"{_BE} the {_TALKS} about",
        rf"(?:{_BEEN}|has been) {_SAID_OF}",
        rf"(?:(?:{_DO}|{_BE}) )?(?:(?:you|i|we) hear )?<who> "
        rf"(?:{_SAY}|(?:{_TALK}) about|(?:mention|discuss)(?:s|es|ed|ing)?)",
    )),
    ("whether", "", (_HEARS, _ASKS, _SPEAKS, *_PASSIVE)),
    ("whether", r"(?:if|whether) ", (_TELLS_PASSIVE, _TELLS)),
)  # fmt: skip


def _reader(pattern: str) -> re.Pattern[str]:
    """Compile a pattern; each place of a subject or topic gets a name of its own."""
    for name, content in (("who", _SUBJECT), ("topic", ".+?")):
        first, *rest = pattern.split(f"<{name}>")
        named = (f"(?P<{name}{n}>{content}){part}" for n, part in enumerate(rest))
        pattern = "".join([first, *named])
    return re.compile(pattern, re.IGNORECASE)


_READERS = tuple(
    (kind, _reader(begin + rest)) for kind, begin, clauses in _PATTERNS for rest in clauses
)
_MARKS = " \"'“”‘’,"  # noqa: RUF001, as they are written
_IS = re.compile(r"\b(what|who|when|where)['’]s\b", re.IGNORECASE)  # noqa: RUF001
_TAIL = re.compile(
    r"(?: (?:at all|yet|so far|already|by (?:any|some) ?(?:one|body)))+$", re.IGNORECASE
)
_ENDING = re.compile(
    rf" (?:in|during) (?:the |their |this )?(?:{_TALKS}|film|video|movie|recording)$",
    re.IGNORECASE,
)
# What shows text and does not speak.
_SILENT = frozenset("sign label poster board screen text caption title note".split())  # noqa: SIM905
_BESIDE = re.compile(r" (?:with|in|on|by|from|of|at|who|behind|near|wearing) ")
_NOBODY = frozenset(
    "they them he him she her you i we us it people anyone anybody someone somebody everyone "  # noqa: SIM905
    "everybody noone nobody".split()
)


class SaidQuestion(NamedTuple):
    """A question of what was said.

    Attributes:
        kind: what is asked for.
        topic: of what; empty where anything that was said is meant.
        speaker: who is asked about, where it may be a name; empty otherwise.
    """

    kind: Kind
    topic: str = ""
    speaker: str = ""


def read_said(question: str) -> SaidQuestion | None:
    """Return what a question asks of what was said; None where it asks something else."""
    text = " ".join(question.split()).strip(" ?.!")
    text = _ASKED.sub("", _IS.sub(r"\1 is", _TAIL.sub("", text)), count=1)
    for kind, pattern in _READERS:
        if found := pattern.fullmatch(text):
            parts = {name: part or "" for name, part in found.groupdict().items()}
            who = "".join(part for name, part in parts.items() if name[0] == "w").lower()
            topic = "".join(part for name, part in parts.items() if name[0] == "t")
            if set(_BESIDE.split(who)[0].split()) & _SILENT:
                return None
            speaker = "" if who.replace(" ", "") in _NOBODY else who.removeprefix("the ")
            topic = _ENDING.sub("", topic).strip(_MARKS)
            return SaidQuestion(kind, "" if re.fullmatch(_VAGUE, topic) else topic, speaker)
    return None


def read_said_description(text: str) -> SaidQuestion | None:
    """Return what a description says was said, as in "they mention the harbour", "said hello".

    None where it describes what is seen.
    """
    forms = ("{}", "if {}", "if they {}")
    return next((said for form in forms if (said := read_said(form.format(text)))), None)


# -- questions of a last sighting --
#
# Where a thing was left, and whether something was done. A picture shows what is there, and rarely
# what was done to it: the thing and the action are looked for, each by itself.

MAX_WORDS = 6  # of a thing; a longer phrase asks for more than its place

_I = r"(?:i|we|you|he|she|they)"
_PLACED = (
    r"(?:put|leave|left|lay|laid|place|placed|set|drop|dropped|store|stored|hide|hid|hidden|park|"
    r"parked|forget|forgotten|lose|lost|(?:last )?(?:see|seen))"
)
_AFTER = r"(?: (?:last seen|last|again|gone|seen last))?"
_WHERE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"where (?:did|have|has|had) {_I} (?:last )?{_PLACED}(?: down)? (?P<thing>.+?)(?: down)?"
        rf"{_AFTER}",
        rf"what (?:did|have|has) {_I} (?:do|done) with (?P<thing>.+?)",
        rf"where(?: is| are| was| were|['’]s) (?P<thing>.+?){_AFTER}",  # noqa: RUF001, as typed
    )
)  # fmt: skip
_DONE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:did|have|has|had) {_I} (?:already |ever |also )?(?:(?:remember|forget)(?:ed)? to |"
        r"forgotten to )?(?P<action>.+?)(?: (?:already|yet))?",
        r"do (?:i|we) (?:still )?(?:have|need) to (?P<action>.+?)",
    )
)
# These ask what was seen or said, which other readings answer.
_PERCEIVED = frozenset(
    "see seen saw notice noticed watch watched look looked hear heard find found say said mention "  # noqa: SIM905
    "mentioned tell told talk talked discuss discussed meet met go gone be been have had".split()
)
_POINTING = frozenset("it this that these those them he she they i we you there here now".split())  # noqa: SIM905
_BASE = {
    "taken": "take", "left": "leave", "fed": "feed", "given": "give", "made": "make", "done": "do",
    "brought": "bring", "eaten": "eat", "drunk": "drink", "written": "write", "paid": "pay",
    "sent": "send", "bought": "buy", "swept": "sweep",
}  # fmt: skip
_PARTICLE = r"(?: (?:off|on|up|down|out|in|away|back|over))?"
_THING = r"(?P<thing>(?:the|my|our|a|an|some|his|her|their) [\w' -]+?|[\w'-]+)"
_OBJECT = re.compile(rf"\w+{_PARTICLE} {_THING}{_PARTICLE}", re.IGNORECASE)


class LastSeenQuestion(NamedTuple):
    """A question of a last sighting.

    Attributes:
        thing: what is looked for.
        action: what may have been done to it, in words; empty where its place is asked for.
    """

    thing: str
    action: str = ""


def read_last_seen(question: str) -> LastSeenQuestion | None:
    """Read a question, without its time words; None where it asks for something else."""
    text = " ".join(question.split()).strip(PUNCTUATION)
    for pattern in _WHERE:
        if found := pattern.fullmatch(text):
            thing = found["thing"]
            return LastSeenQuestion(thing) if _is_thing(thing) else None
    for pattern in _DONE:
        if (found := pattern.fullmatch(text)) is None:
            continue
        verb, _, rest = found["action"].partition(" ")
        action = f"{_BASE.get(verb.lower(), verb)} {rest}".strip()
        thing = _OBJECT.fullmatch(action)
        if verb.lower() in _PERCEIVED or thing is None or not _is_thing(thing["thing"]):
            return None
        return LastSeenQuestion(thing["thing"], action)
    return None


def _is_thing(phrase: str) -> bool:
    words = phrase.lower().split()
    return (
        0 < len(words) <= MAX_WORDS
        and words[0] not in _POINTING
        and words[-1] not in _POINTING
        # "where is the man standing": what it does there is asked for, too
        and not (len(words) > 1 and words[-1].endswith("ing"))
    )


# -- time words --

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
