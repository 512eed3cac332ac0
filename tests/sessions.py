"""What the tests of sessions share: short replies, a film, and its events one by one."""

import dataclasses

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.models.backbones.language import GenerationConfig
from streammem.types import Segment

SHORT = GenerationConfig(max_new_tokens=6)
FILM = (("red", 9), ("blue", 7), ("green", 12), ("red", 8), ("white", 6))


def as_kind(kind, model):
    return kind(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})


def session_of(model, **options):
    return Session(model, SessionConfig(answer=SHORT, caption=SHORT, **options))


def told(session, frames, *, end=None):
    """Push, flush, and caption each segment as soon as it closes."""
    events = []
    for closed in [*map(session.push, frames), session.flush(end)]:
        for segment in closed:
            events += [segment, session.caption(segment)]
    return events


def segments_of(events):
    return [event for event in events if isinstance(event, Segment)]
