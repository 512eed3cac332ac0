"""Queries that the HTTP routes, the page and the agents' tools share."""

from streammem.engine.session import Session
from streammem.memory.upkeep import events_of
from streammem.server.refused import Refused
from streammem.types import Answer, Event, clock, with_wall_clock

MAX_SEGMENTS = 1000


def rows(
    session: Session, between: tuple[float, float] | None, most: int = MAX_SEGMENTS
) -> list[Event]:
    """Return the events in a session's memory, oldest first.

    Args:
        session: whose memory.
        between: [a, b) seconds; segments that overlap it. None for all.
        most: segments at most, the newest.
    """
    kept = session.memory.entries()
    if between:
        kept = tuple(e for e in kept if e.start < between[1] and e.end > between[0])
    return [event for entry in kept[-most:] for event in events_of(entry)]


def check_question(text: str, longest: int) -> None:
    """Check the length of a question.

    Raises:
        Refused: it has more than ``longest`` characters.
    """
    if len(text) > longest:
        raise Refused(422, f"{len(text)} characters; a question may have {longest}")


def evidence_text(answer: Answer) -> str:
    """Format an answer's evidence as text, one item a line; empty without evidence."""
    lines = [
        f"- {with_wall_clock(f'{clock(e.start)}-{clock(e.end)}', e.wall_start)}"
        f"{f': {e.caption}' if e.caption else ''}"
        for e in answer.evidence
    ]
    heading = "Evidence:" if answer.seen else "Not seen with confidence. Nearest:"
    return "\n".join(["", "", heading, *lines]) if lines else ""
