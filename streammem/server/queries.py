"""Queries that the HTTP routes, the page and the agents' tools share."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from streammem.engine.session import Session
from streammem.memory.memory import Memory
from streammem.memory.upkeep import events_of
from streammem.output.render import wall_start
from streammem.server.refused import Refused
from streammem.types import Answer, Event, clock, with_wall_clock

MAX_SEGMENTS = 1000
_FOLDERS = re.compile(r"(^|[:,|])[^:,|]*[/\\]")


class EventRow(NamedTuple):
    """An event in a memory, and what else is known of it: ``source``, and ``wall_start``."""

    event: Event
    more: Mapping[str, object]


def rows(
    session: Session,
    between: tuple[float, float] | None,
    most: int = MAX_SEGMENTS,
    before: int | None = None,
) -> list[EventRow]:
    """Return the events in a session's memory, oldest first.

    Args:
        session: whose memory.
        between: [a, b) seconds; segments that overlap it. None for all.
        most: segments at most, the newest.
        before: only segments of lower ids.
    """
    kept = session.memory.entries()
    if between:
        kept = tuple(e for e in kept if e.start < between[1] and e.end > between[0])
    if before is not None:
        kept = tuple(e for e in kept if e.segment < before)
    found = []
    for entry in kept[-most:]:
        zero = None if entry.wall_start is None else entry.wall_start - entry.start
        source = public_source(entry.source)
        for event in events_of(entry):
            found.append(EventRow(event, {"source": source, **wall_start(event, zero)}))
    return found


def public_source(name: str) -> str:
    """Return what clients may read of a source's name: a URL, or a path without its folders."""
    return name if "://" in name else _FOLDERS.sub(r"\1", name)


def private_sources(memory: Memory) -> tuple[str, ...]:
    """Return the names of sources in a memory that clients may not read as they are."""
    names = {entry.source for entry in memory.entries()}
    # The longest first: one may begin as another does.
    return tuple(sorted((n for n in names if public_source(n) != n), key=len, reverse=True))


def without_folders(text: str, names: Sequence[str]) -> str:
    """Replace these names of sources in a text by what clients may read of them."""
    for name in names:
        text = text.replace(name, public_source(name))
    return text


def check_question(text: str, longest: int) -> None:
    """Check a question that a client gave.

    Raises:
        Refused: it has more than ``longest`` characters, or cannot be written as UTF-8.
    """
    if len(text) > longest:
        raise Refused(422, f"{len(text)} characters; a question may have {longest}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(422, "half of a character is in the question; send whole ones") from None


def evidence_text(answer: Answer) -> str:
    """Format an answer's evidence as text, one item a line; empty without evidence."""
    lines = [
        f"- {with_wall_clock(f'{clock(e.start)}-{clock(e.end)}', e.wall_start)}"
        f"{f': {e.caption}' if e.caption else ''}"
        for e in answer.evidence
    ]
    heading = "Evidence:" if answer.seen else "Not seen with confidence. Nearest:"
    return "\n".join(["", "", heading, *lines]) if lines else ""
