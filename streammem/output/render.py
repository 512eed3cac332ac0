"""Renders events as text, JSONL, SRT and WebVTT; opens no file.

    renderer = FORMATS["srt"]()
    file.write(renderer.write(Caption(0, 0.0, 4.0, "a red room")))
    file.write(renderer.close())

Each event becomes one piece of output, so that a file is valid after every piece.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

import numpy as np

from streammem.types import (
    Alert,
    Answer,
    Caption,
    Chapter,
    Event,
    Evidence,
    Moment,
    NextStep,
    Note,
    Notice,
    Plan,
    PlanStep,
    Segment,
    Stats,
    Step,
    Until,
    encodable,
    wall_clock,
)

# Other programs rely on these keys and their order. Keys may be added, not changed.
_FIRST_KEYS = ("source", "segment", "start", "end", "score", "keyframe", "caption", "speech")
_MATCH_KEYS = ("matched", "cosine")
EVIDENCE_KEYS = (*_FIRST_KEYS, *_MATCH_KEYS)
STEP_KEYS = ("call", "arguments", "text", "segments", "pictures", "failed")
EVENT_KEYS: dict[type, tuple[str, tuple[str, ...]]] = {
    Segment: ("segment", ("id", "start", "end", "depth", "reason")),
    Caption: ("caption", ("segment", "start", "end", "text")),
    Answer: ("answer", ("question", "text", "seen", "method", "evidence")),
    Moment: ("moment", (*_FIRST_KEYS, "rank", *_MATCH_KEYS)),
    Chapter: ("chapter", ("source", "start", "end", "segments", "captions")),
    Note: ("note", ("start", "end", "text")),
    Alert: ("alert", ("query", "time", "score", "segment", "keyframe", "matched")),
    Until: ("until", ("condition", "time", "segment")),
    Plan: (
        "plan",
        ("goal", "time", "progress", "steps", "next", "alerts", "certainty", "next_from"),
    ),
    Notice: ("warning", ("message",)),
    Stats: (
        "stats",
        (
            *("frames", "segments", "captions", "perceive_s", "speak_s", "captured", "waiting"),
            *("dropped_full", "dropped_at_stop", "captions_skipped", "connections", "damaged"),
            *("lag_s", "caption_lag_s", "candidates", "fewest_candidates", "alerts_refused"),
            *("sound_s", "sound_skipped_s", "note_lag_s"),
        ),
    ),
}
NOTHING: Mapping[str, object] = MappingProxyType({})
TIME_KEYS = frozenset(
    {
        *("start", "end", "time", "perceive_s", "speak_s", "lag_s", "caption_lag_s", "said_at"),
        *("sound_s", "sound_skipped_s", "note_lag_s"),
    }
)

# json.dumps leaves these as they are, but str.splitlines and some readers end a line at them.
_LINE_ENDS_IN_JSON = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
# Subtitles and answers are not trusted: a terminal must not execute them. Line breaks stay.
_CONTROLS = dict.fromkeys(set(range(0x20)) - {0x0A} | set(range(0x7F, 0xA0)), " ")
# SRT has no escapes: a zero-width space breaks up what a player would take for markup or an arrow.
_SRT_MARKUP = re.compile(r"(?<=<)(?=[A-Za-z/!])|(?<=\{)(?=\\)|(?<=--)(?=>)")
_ZERO_WIDTH_SPACE = "\u200b"


class Renderer(Protocol):
    """Renders the events of one output file, piece by piece, in order.

    The file is valid after every piece; events that the format cannot show are left out.
    """

    def write(self, event: Event) -> str:
        """Return the piece for ``event``; empty where the format does not show it."""
        ...

    def close(self) -> str:
        """Return the text that must follow the last event; often empty."""
        ...


class Text:
    """Lines for people, without warnings and counters, which go to stderr."""

    def write(self, event: Event) -> str:
        if isinstance(event, Notice | Stats):
            return ""
        # Only these have lines of their own: evidence, captions.
        multiline = isinstance(event, Answer | Chapter | Plan)
        lines = _lines(str(event)) if multiline else str(event).translate(_CONTROLS).split()
        return encodable(("\n" if multiline else " ").join(lines)) + "\n"

    def close(self) -> str:
        return ""


class Jsonl:
    """One JSON object a line, every kind of event."""

    def write(self, event: Event) -> str:
        return to_line(event) + "\n"

    def close(self) -> str:
        return ""


class Srt:
    """SubRip cues of captions and notes, numbered from 1."""

    def __init__(self) -> None:
        self._num_cues = 0

    def write(self, event: Event) -> str:
        cue = _cue(event, ",", _escape_srt)
        if not cue:
            return ""
        self._num_cues += 1
        return f"{self._num_cues}\n{cue}"

    def close(self) -> str:
        return ""


class WebVtt:
    """WebVTT cues of captions and notes. Source: W3C WebVTT, section 4 (syntax)."""

    def __init__(self) -> None:
        self._header = "WEBVTT\n\n"

    def write(self, event: Event) -> str:
        return self.close() + _cue(event, ".", _escape_vtt)

    def close(self) -> str:
        header, self._header = self._header, ""
        return header


FORMATS: dict[str, Callable[[], Renderer]] = {
    "text": Text,
    "jsonl": Jsonl,
    "srt": Srt,
    "vtt": WebVtt,
}


def to_json(event: Event, more: Mapping[str, object] = NOTHING) -> dict[str, object]:
    """Turn an event into the object that JSONL and HTTP carry.

    Args:
        event: times in seconds, finite.
        more: keys to add to the event's own, such as its source.

    Returns:
        ``{"type": ..., ...}`` with the keys of ``EVENT_KEYS`` in their order, a caption's
        ``confidence``, ``reason`` and ``likelihood``, an answer's ``remark``, ``looked_at``,
        ``left_out``, ``steps`` and ``decided_by``, a note's ``word_starts``, an alert's
        ``confirmed``, a moment's and an evidence's ``quote``, ``said_at``, ``reason`` and
        ``names``, a moment's, an evidence's and a chapter's ``wall_start`` where it has them, a
        chapter's ``quotes``, what model servers were asked in a run, then ``more``.
        Times are rounded to milliseconds; any other number that is not finite becomes None.

    Raises:
        ValueError, OverflowError: a time is NaN or infinite.
    """
    kind, keys = EVENT_KEYS[type(event)]
    if isinstance(event, Caption):
        keys = _caption_keys(event)
    if isinstance(event, Answer) and event.remark is not None:
        keys = (*keys, "remark")
    if isinstance(event, Moment | Chapter) and event.wall_start is not None:
        keys = (*keys, "wall_start")
    if isinstance(event, Moment):
        keys = (*keys, *_quote_keys(event))
    if isinstance(event, Chapter) and event.quotes:
        keys = (*keys, "quotes")
    if isinstance(event, Note) and event.word_starts:
        keys = (*keys, "word_starts")
    if isinstance(event, Note) and event.kind != "speech":
        keys = (*keys, "kind")
    if isinstance(event, Alert) and event.confirmed is not None:
        keys = (*keys, "confirmed")
    if isinstance(event, Answer):
        more_keys = ("looked_at", "left_out", "steps", "decided_by")
        keys = (*keys, *(key for key in more_keys if getattr(event, key)))
    if isinstance(event, Stats) and event.requests:
        keys = (*keys, "requests", "retries", "failures", "tokens")
    return {"type": kind, **_values(event, keys), **more}


def wall_start(event: Event, zero: float | None) -> dict[str, object]:
    """Return the key that a live source adds: ``wall_start``, ISO 8601 with the local offset.

    Args:
        event: any; the result is empty for one without a time.
        zero: Unix seconds at stream time 0; None where it is unknown.
    """
    if zero is None or isinstance(event, Answer | Notice | Stats):  # these have no time
        return {}
    time = event.time if isinstance(event, Alert | Until | Plan) else event.start
    return {"wall_start": wall_clock(zero + time)}


def stamped(event: Event, more: Mapping[str, object]) -> Event:
    """Put the wall clock, to the second, before the words of a caption or note; for subtitles.

    Args:
        event: any; others stay as they are.
        more: its further keys; ``wall_start`` is the wall clock.
    """
    at = more.get("wall_start")
    if not isinstance(event, Caption | Note) or not isinstance(at, str) or not event.text:
        return event
    shown = datetime.fromisoformat(at).isoformat(" ", "seconds")
    return replace(event, text=f"{shown}\n{event.text}")


def to_line(event: Event, more: Mapping[str, object] = NOTHING) -> str:
    """Return ``to_json`` as one line of JSON, without its line end, encodable as UTF-8."""
    line = json.dumps(to_json(event, more), ensure_ascii=False, allow_nan=False)
    return encodable(line.translate(_LINE_ENDS_IN_JSON))


def prometheus(stats_by_source: Mapping[str, Stats]) -> str:
    """Write counters in Prometheus' text form.

    Args:
        stats_by_source: by the source's name, which is the label ``source``.

    Source: Prometheus exposition formats, text format 0.0.4.
    """
    samples: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for source, stats in stats_by_source.items():
        for name, kind, values in _counters(stats):
            found = samples.setdefault((name, kind), [])
            found += [(f'source="{_label(source)}"{label}', v) for label, v in values.items()]
    lines = []
    for (name, kind), values_of_all in samples.items():
        lines.append(f"# TYPE streammem_{name} {kind}")
        lines += [f"streammem_{name}{{{label}}} {value:.10g}" for label, value in values_of_all]
    return encodable("\n".join(lines)) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _counters(stats: Stats) -> Sequence[tuple[str, str, Mapping[str, float]]]:
    return (
        ("frames_captured_total", "counter", {"": stats.captured}),
        ("frames_perceived_total", "counter", {"": stats.frames}),
        (
            "frames_dropped_total",
            "counter",
            {',reason="full"': stats.dropped_full, ',reason="stop"': stats.dropped_at_stop},
        ),
        ("frames_waiting", "gauge", {"": stats.waiting}),
        ("frames_damaged_total", "counter", {"": stats.damaged}),
        ("segments_total", "counter", {"": stats.segments}),
        ("captions_total", "counter", {"": stats.captions}),
        ("captions_skipped_total", "counter", {"": stats.captions_skipped}),
        ("alerts_refused_total", "counter", {"": stats.alerts_refused}),
        ("sound_seconds_total", "counter", {"": stats.sound_s}),
        ("sound_skipped_seconds_total", "counter", {"": stats.sound_skipped_s}),
        ("note_lag_seconds", "gauge", {"": stats.note_lag_s}),
        ("connections_total", "counter", {"": stats.connections}),
        ("perception_cpu_seconds_total", "counter", {"": stats.perceive_s}),
        ("speech_cpu_seconds_total", "counter", {"": stats.speak_s}),
        ("lag_seconds", "gauge", {"": stats.lag_s}),
        ("caption_lag_seconds", "gauge", {"": stats.caption_lag_s}),
        ("caption_candidates", "gauge", {"": stats.candidates}),
        ("caption_candidates_fewest", "gauge", {"": stats.fewest_candidates}),
        ("model_server_requests_total", "counter", {"": stats.requests}),
        ("model_server_retries_total", "counter", {"": stats.retries}),
        ("model_server_failures_total", "counter", {"": stats.failures}),
        ("model_server_tokens_total", "counter", {"": stats.tokens}),
    )


def plain(text: str, *, keep: str = "") -> str:
    """Replace characters that a terminal would execute, or that reorder text, by spaces.

    Args:
        text: untrusted, from a model, a file name or a subtitle.
        keep: characters that may stay, such as line ends.
    """
    letters = encodable(text)
    return "".join(x if x.isprintable() or x in keep else " " for x in letters)


def milliseconds(seconds: float) -> int:
    """Round to milliseconds: one rule for every format, so that equal times stay equal."""
    return round(seconds * 1000)


def _values(record: object, keys: tuple[str, ...]) -> dict[str, object]:
    return {key: _value(key, getattr(record, key)) for key in keys}


def _value(key: str, value: object) -> object:
    if key in ("segments", "names", "alerts") and isinstance(value, tuple):
        return list(value)
    if key == "spans" and isinstance(value, tuple):  # of a plan's step
        return [[milliseconds(at) / 1000 for at in span] for span in value]
    if key == "word_starts" and isinstance(value, tuple):
        return [milliseconds(at) / 1000 for at in value]
    if isinstance(value, tuple | list):  # evidence, steps, or a chapter's captions
        return [_values(item, _item_keys(item)) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if key in TIME_KEYS and isinstance(value, int | float):
        return milliseconds(value) / 1000
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _caption_keys(caption: Caption) -> tuple[str, ...]:
    more = ("confidence", "reason", "likelihood")
    known = [key for key in more if getattr(caption, key) is not None]
    return (*EVENT_KEYS[Caption][1], *known)


def _item_keys(item: object) -> tuple[str, ...]:
    if isinstance(item, Caption):
        return _caption_keys(item)
    if isinstance(item, Step):
        return STEP_KEYS
    if isinstance(item, PlanStep):
        return ("name", "state", "spans", "segments", "late")
    if isinstance(item, NextStep):
        return ("name", "probability")
    if isinstance(item, Note):
        return EVENT_KEYS[Note][1]
    if not isinstance(item, Evidence):
        return EVIDENCE_KEYS
    known = ("wall_start",) if item.wall_start is not None else ()
    return (*EVIDENCE_KEYS, *known, *_quote_keys(item))


def _quote_keys(item: Evidence) -> tuple[str, ...]:
    known = [key for key in ("quote", "said_at", "reason") if getattr(item, key) is not None]
    return (*known, "names") if item.names else tuple(known)


def _cue(event: Event, mark: str, escape: Callable[[str], str]) -> str:
    """Return timing line, text and blank line; empty for an event without a cue."""
    if not isinstance(event, Caption | Note):
        return ""
    # A blank line would end the cue.
    text = "\n".join(line for line in _lines(event.text) if line)
    if not text:
        return ""
    if isinstance(event, Note):
        # As in the text format: speech or a sound, not a caption.
        text = f"“{text}”" if event.kind == "speech" else f"({text})"
    start = max(milliseconds(event.start), 0)
    # Players drop a cue whose end is not after its start, so the shortest cue lasts 1 ms.
    end = max(milliseconds(event.end), start + 1)
    timing = f"{_timestamp(start, mark)} --> {_timestamp(end, mark)}"
    return f"{timing}\n{encodable(escape(text))}\n\n"


def _escape_srt(text: str) -> str:
    return _SRT_MARKUP.sub(_ZERO_WIDTH_SPACE, text)


def _escape_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timestamp(time_ms: int, mark: str) -> str:
    seconds, ms = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{ms:03d}"


def _lines(text: str) -> list[str]:
    return [line.translate(_CONTROLS).rstrip() for line in text.splitlines()]
