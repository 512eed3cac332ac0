"""What programs and agents ask of a session alike, and how an answer's evidence reads as text."""

from streammem.engine.session import Session
from streammem.memory.upkeep import events_of
from streammem.server.refused import Refused
from streammem.types import Answer, Event, clock

MAX_ROWS = 1000


def rows(
    session: Session, between: tuple[float, float] | None, most: int = MAX_ROWS
) -> list[Event]:
    """Return what a session keeps of a span, oldest first, the newest ``most`` segments."""
    kept = session.memory.entries()
    if between:
        kept = tuple(e for e in kept if e.start < between[1] and e.end > between[0])
    return [event for entry in kept[-most:] for event in events_of(entry)]


def check_question(text: str, longest: int) -> None:
    """Refuse a question that is too long.

    Raises:
        Refused: it is.
    """
    if len(text) > longest:
        raise Refused(422, f"{len(text)} characters; a question may have {longest}")


def evidence_text(answer: Answer) -> str:
    """List what an answer rests on, a line each."""
    lines = [
        f"- {clock(e.start)}-{clock(e.end)}{f': {e.caption}' if e.caption else ''}"
        for e in answer.evidence
    ]
    heading = "Evidence:" if answer.seen else "Not seen with confidence. Nearest:"
    return "\n".join(["", "", heading, *lines]) if lines else ""
