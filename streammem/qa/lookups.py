"""Six functions of a memory that a model, or an agent, may call while it looks for an answer.

    lookups = session.lookups()
    looked = lookups.call("search", {"text": "a red car"})
    looked.text                                   # "scene 12, 00:31.4-00:40.0, score 0.82: ..."
    lookups.call("look", {"segment": 12, "frames": 3}).pictures

``LOOKUPS`` describes each once: the tools of a generator (``TOOLS``) and those of
``integrations/mcp.py`` are made from it. Arguments come from outside and are not trusted: what
cannot be meant is answered by a text that says so. Nothing here decides what is asked next; see
``steps.py``.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streammem.errors import ConfigError, StreammemError
from streammem.memory.entry import Entry, Now, decode_keyframe
from streammem.memory.memory import Memory
from streammem.memory.retrieval import (
    EVERYTHING,
    Clip,
    Query,
    Window,
    clipped,
    content_words,
    counted,
)
from streammem.models.protocols import Tool
from streammem.qa.question import find_time, narrowed, wall_end, window_of
from streammem.qa.speech import excerpt
from streammem.qa.timeline import find_appearances, newest_of, oldest_first, total_s
from streammem.types import Note, TimeSpan, clock, wall_clock, with_wall_clock
from streammem.video.registry import open_source

FOUND = 5  # scenes that search gives
AROUND = 4  # scenes that at, before and after give
LISTED = 10  # appearances that count lists
MAX_FRAMES = 8  # pictures that look gives
MAX_TEXT = 300  # characters of a text that is looked for
MAX_CAPTION = 300  # characters of a caption or of speech in a result
LOOKED_SIDE = 640  # pixels of a picture that is read from the source
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):([0-5]\d(?:\.\d+)?)", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(?:\.\d+)?(?: ?s(?:econds?)?)?", re.ASCII)

_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_SEGMENT = {"type": "integer", "minimum": 0, "description": "number of a scene, as results name it"}


class Lookup(NamedTuple):
    """A function that may be called.

    Attributes:
        name: as it is called.
        help: what it does and returns.
        arguments: by name, JSON schema of each, with a description; of type ``string`` or
            ``integer``. One with a ``default`` may be left out.
    """

    name: str
    help: str
    arguments: Mapping[str, Mapping[str, Any]]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of all arguments."""
        return {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.arguments.items()},
            "required": [
                name for name, schema in self.arguments.items() if "default" not in schema
            ],
            "additionalProperties": False,
        }


LOOKUPS: tuple[Lookup, ...] = (
    Lookup(
        "search",
        f"Find the {FOUND} scenes that fit a description best, best first, each with its number, "
        "times, a score from 0 to 1 (seen from 0.5 on) and its caption.",
        {"text": {**_TEXT, "description": "what to look for, such as: a man in a red hat"}},
    ),
    Lookup(
        "at",
        "List the scenes at a time, or those nearest to it.",
        {
            "time": {
                "type": "string",
                "minLength": 1,
                "maxLength": 100,
                "description": "seconds, m:ss or h:mm:ss from the start of the video, or words of "
                "the clock on the wall, such as: yesterday at 3 pm",
            }
        },
    ),
    Lookup("before", f"List the {AROUND} scenes before a scene.", {"segment": _SEGMENT}),
    Lookup("after", f"List the {AROUND} scenes after a scene.", {"segment": _SEGMENT}),
    Lookup(
        "count",
        "Count how often something was seen, with the times of each appearance.",
        {"text": {**_TEXT, "description": "what to count, such as: a dog on the sofa"}},
    ),
    Lookup(
        "look",
        "Look at pictures of a scene, evenly spread over it.",
        {
            "segment": _SEGMENT,
            "frames": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_FRAMES,
                "default": 3,
                "description": "how many pictures",
            },
        },
    ),
)
TOOLS: tuple[Tool, ...] = tuple(Tool(each.name, each.help, each.schema) for each in LOOKUPS)


class Picture(NamedTuple):
    """A picture of a scene.

    Attributes:
        time: seconds of the row's clock; of a stored keyframe, whose time is not kept, the scene's
            start.
        pixels: [H, W, 3] uint8 RGB.
    """

    time: float
    pixels: np.ndarray


class Looked(NamedTuple):
    """What a call gave.

    Attributes:
        text: for the model; a few lines.
        segments: ids of the rows that the text or the pictures show.
        pictures: in time order.
        failed: whether the call could not be meant; the text then says why.
    """

    text: str
    segments: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()
    failed: bool = False


@dataclass(frozen=True, eq=False)
class Lookups:
    """The functions over one memory, as it is now.

    Args:
        memory: what was seen.
        query_of: makes a query of a description.
        describe: captions rows that have no caption and can have one.
        now: when it is asked, for "ten minutes ago".
        rankers: see ``memory.retrieval.RANKERS``.
        zone: of wall-clock times; None is this computer's.
        within: the part of the memory that may be looked at; nothing else is found, or shown.
        file_of: returns the video file that a row was seen in, where it is at hand.
    """

    memory: Memory
    query_of: Callable[[str], Query]
    describe: Callable[[Sequence[Entry]], object]
    now: Now
    rankers: Sequence[str]
    zone: tzinfo | None = None
    within: Window = EVERYTHING
    file_of: Callable[[Entry], Path | None] = field(default=lambda entry: None)

    def call(self, name: str, arguments: Mapping[str, Any] | str) -> Looked:
        """Call a function by its name, with arguments of a model.

        Never raises for what a model may write: a name, an argument or a value that there is not
        gives a ``Looked`` that failed.
        """
        try:
            known = next((each for each in LOOKUPS if each.name == name), None)
            if known is None:
                names = ", ".join(each.name for each in LOOKUPS)
                raise ConfigError(f"there is no function {str(name)[:40]!r}; there are {names}")
            looked: Looked = getattr(self, name)(**_checked(known, arguments))
        except ConfigError as error:
            return Looked(f"error: {error}", failed=True)
        return looked

    def search(self, text: str) -> Looked:
        """Find the scenes that fit a description best."""
        hits = self.memory.search(self.query_of(text), self.within, FOUND, self.rankers)
        self.describe([hit.entry for hit in hits])
        words = content_words(text)
        lines = [self._line(hit.entry, f", score {hit.score:.2f}", words) for hit in hits]
        return Looked("\n".join(lines) or "nothing was seen", _ids([hit.entry for hit in hits]))

    def at(self, time: str) -> Looked:
        """List the scenes at a time, or the ones before and after it."""
        window = narrowed(self._window(time), self.within)
        clips = clipped(self.memory.entries(), window)
        found = [clip.entry for clip in oldest_first(clips, lambda clip: clip.entry)]
        heading = ""
        if not found:
            heading = "nothing was seen then; the nearest scenes:\n"
            found = self._nearest(window)
        if (more := len(found) - AROUND) > 0:
            heading = f"{len(found)} scenes; the first {AROUND} of them, {more} more follow:\n"
        return self._listed(found[:AROUND], heading)

    def before(self, segment: int) -> Looked:
        """List the scenes before a scene, of the same source."""
        row = self._row(segment)
        rows = [e for e in self._rows() if e.source == row.source and e.segment < row.segment]
        return self._listed(rows[-AROUND:])

    def after(self, segment: int) -> Looked:
        """List the scenes after a scene, of the same source."""
        row = self._row(segment)
        rows = [e for e in self._rows() if e.source == row.source and e.segment > row.segment]
        return self._listed(rows[:AROUND])

    def count(self, text: str) -> Looked:
        """Count the appearances of something."""
        query = self.query_of(text)
        hits = self.memory.search(query, self.within, rankers=self.rankers)
        seen = {hit.entry.segment for hit in counted(hits, query)}
        found = find_appearances(self._clips(), lambda entry: entry.segment in seen)
        lines = [f"{len(found)} times, {total_s(found):.1f} s in all" if found else "0 times"]
        for each in found[:LISTED]:
            first = each.clips[0].entry
            lines.append(self._span(first, each.start, each.end))
        if (more := len(found) - LISTED) > 0:
            lines.append(f"and {more} more")
        return Looked("\n".join(lines), _ids([each.clips[0].entry for each in found[:LISTED]]))

    def look(self, segment: int, frames: int = 3) -> Looked:
        """Give pictures of a scene: of its file where that is at hand, else its keyframe."""
        row = self._row(segment)
        span = self._span(row, row.start, row.end)
        path = self.file_of(row)
        if path is not None:
            try:
                pictures = pictures_of(path, row.start, row.end, frames)
                return Looked(span, (row.segment,), pictures)
            except StreammemError as error:
                span = f"{span} (its file cannot be read any more: {error})"
        jpeg = self.memory.keyframe(row.segment)
        if jpeg is None:
            return Looked(f"{span}: no picture is kept of it", (row.segment,))
        kept = f"{span}: one picture is kept of it"
        return Looked(kept, (row.segment,), (Picture(row.start, decode_keyframe(jpeg)),))

    # -- private --

    def _clips(self) -> tuple[Clip, ...]:
        return clipped(self.memory.entries(), self.within)

    def _rows(self) -> list[Entry]:
        return [clip.entry for clip in self._clips()]

    def _row(self, segment: int) -> Entry:
        row = self.memory.get(segment)
        if row is None or row.segment not in {entry.segment for entry in self._rows()}:
            raise ConfigError(f"there is no scene {segment} here; results name their scenes")
        return row

    def _window(self, text: str) -> Window:
        """Return the part of the memory that a time means.

        Raises:
            ConfigError: no time.
        """
        text = text.strip()
        if _SECONDS.fullmatch(text):
            at = float(re.match(r"[\d.]+", text)[0])  # type: ignore[index]
            return Window(stream=TimeSpan(at, math.nextafter(at, math.inf)))
        if found := _CLOCK.fullmatch(text):  # results are on the stream's clock: so is this
            at = int(found[1] or 0) * 3600 + int(found[2]) * 60 + float(found[3])
            return Window(stream=TimeSpan(at, at + 1.0))
        newest = newest_of(self.memory.entries(), self.within.source)
        for words in (text, f"at {text}"):
            known = wall_end(newest)
            time = find_time(words, now=self.now.wall, zone=self.zone, newest=known)
            if time is not None:
                return window_of(time, newest, self.now)
        example = "give seconds, m:ss, h:mm:ss, or words such as yesterday at 3 pm"
        raise ConfigError(f"{text[:100]!r} is no time; {example}")

    def _nearest(self, window: Window) -> list[Entry]:
        """Return the rows next to a window without rows: the last before it, the first after it."""
        before, after = list[Entry](), list[Entry]()
        for entry in oldest_first(self._rows(), lambda entry: entry):
            span, start = window.stream, entry.start
            if window.wall is not None:
                span = window.wall
                if entry.wall_start is None:
                    continue
                start = entry.wall_start
            if span is None or window.source not in (None, entry.source):
                continue
            (before if start < span.start else after).append(entry)
        return [*before[-1:], *after[:1]]

    def _listed(self, entries: Sequence[Entry], heading: str = "") -> Looked:
        self.describe(entries)
        lines = [self._line(entry) for entry in entries]
        return Looked(heading + ("\n".join(lines) or "no scene"), _ids(entries))

    def _line(self, entry: Entry, more: str = "", words: frozenset[str] = frozenset()) -> str:
        entry = self.memory.get(entry.segment) or entry  # with the caption that it has now
        text = f"{self._span(entry, entry.start, entry.end)}{more}"
        if entry.caption:
            text += f": {' / '.join(entry.caption.splitlines())[:MAX_CAPTION]}"
        said = excerpt(entry.notes, words, MAX_CAPTION)
        spoken = " ".join(f"{clock(n.start)} {_quoted(n)}" for n in said)
        return f"{text}; said: {spoken}" if spoken else text

    def _span(self, entry: Entry, start: float, end: float) -> str:
        wall = None
        if entry.wall_start is not None:
            wall = wall_clock(entry.wall_start + start - entry.start, self.zone)
        shown = with_wall_clock(f"scene {entry.segment}, {clock(start)}-{clock(end)}", wall)
        several = len({row.source for row in self.memory.entries()}) > 1
        return f"{shown} of {entry.source}" if several and entry.source else shown


def pictures_of(path: Path, start: float, end: float, count: int) -> tuple[Picture, ...]:
    """Read pictures of a span of a video file, evenly spread over it.

    Args:
        path: of the file.
        start: seconds of the file's own clock.
        end: seconds, >= start.
        count: pictures, >= 1; fewer where the span has fewer frames.

    Raises:
        SourceError: it cannot be read, or has no frame there.
    """
    pictures: dict[float, Picture] = {}
    for i in range(count):
        at = start + (end - start) * (i + 0.5) / count
        stop = end if end > at else None
        with open_source(path, start=at, end=stop, max_side=LOOKED_SIDE) as source:
            for frame in source:
                pictures[frame.time] = Picture(frame.time, frame.pixels)
                break
    return tuple(pictures[time] for time in sorted(pictures))


def _ids(entries: Sequence[Entry]) -> tuple[int, ...]:
    return tuple(entry.segment for entry in entries)


def _quoted(note: Note) -> str:
    return f"“{' '.join(note.text.split())}”" if note.kind == "speech" else note.shown


def _checked(lookup: Lookup, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    """Check a model's arguments against the schema of a function.

    Numbers are read from text and text from numbers, as models mix them up.

    Raises:
        ConfigError: what is wrong.
    """
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{lookup.name}: the arguments are no JSON object")
    unknown = [str(name)[:40] for name in arguments if name not in lookup.arguments]
    if unknown:
        names = ", ".join(lookup.arguments)
        raise ConfigError(f"{lookup.name} takes {names}, and no {', '.join(unknown[:3])}")
    values: dict[str, Any] = {}
    for name, schema in lookup.arguments.items():
        if name not in arguments:
            if "default" not in schema:
                raise ConfigError(f"{lookup.name} needs {name}")
            continue
        value = arguments[name]
        if schema["type"] == "integer":
            values[name] = _whole(lookup.name, name, value, schema)
        else:
            values[name] = _text(lookup.name, name, value, schema)
    return values


def _whole(function: str, name: str, value: object, schema: Mapping[str, Any]) -> int:
    if isinstance(value, str) and re.fullmatch(r" *\d{1,15} *", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{function}: {name} must be a whole number")
    least, most = schema["minimum"], schema.get("maximum", 2**53)
    if not least <= value <= most:
        limits = f"{least} to {most}" if "maximum" in schema else f"{least} or more"
        raise ConfigError(f"{function}: {name} must be {limits}")
    return value


def _text(function: str, name: str, value: object, schema: Mapping[str, Any]) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{function}: {name} must be a text that is not empty")
    if len(value) > schema["maxLength"]:
        raise ConfigError(f"{function}: {name} has more than {schema['maxLength']} characters")
    # Halves of surrogate pairs, as JSON may spell them, are no text that a tokenizer takes.
    return value.encode("utf-8", "replace").decode()
