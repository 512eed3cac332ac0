"""Captions of a live scene that is still open: a long one is described again where it changed.

What is said here covers only frames that no later boundary can cut off, so it stays true.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from streammem.captioning.captioner import Spoken, weigh
from streammem.engine.session import Session
from streammem.memory.entry import coverage, visual_keys
from streammem.models.backbones.language import Replies
from streammem.models.tiny.model import Scene, chosen, spread
from streammem.perception.scene_buffer import BRIDGE_FRAMES, Held, places
from streammem.types import Caption, Segment

STILL_COSINE = 0.98  # as the cache's epsilon: what it takes for one still scene needs one caption


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A stretch that is to be described.

    Attributes:
        segment: its start and end; its id is the scene's. Its reason is None while that is open.
        tokens: [M, D] what the model has seen of it.
        keys: [K, D_key] unit rows, what it looks like.
        shown_at: seconds of ``time.monotonic`` at which its last frame was there.
    """

    segment: Segment
    tokens: Tensor
    keys: np.ndarray
    shown_at: float


class LongScene:
    """Says which stretches of a live stream need a caption; the stretches of a scene tile it.

    Args:
        session: whose scenes they are.
        refresh_s: seconds of an open scene after which it gets a caption, > 0.
    """

    def __init__(self, session: Session, refresh_s: float) -> None:
        self._session, self._refresh_s = session, refresh_s
        self._said: np.ndarray | None = None  # keys of what was described last
        self._until: float | None = None  # the open scene is described up to here
        self._look_at = -np.inf  # seconds; nothing is due before
        self._unkept: list[tuple[Segment, Spoken]] = []  # captions of the open scene
        self._goes_on = False  # whether the open scene follows one that merely became too long

    def due(self) -> Span | None:
        """Return the stretch of the open scene that needs a caption now, if one does."""
        held = self._session.state.held
        if not held or held[-1].time < self._look_at:
            return None
        start = held[0].time if self._until is None else self._until
        climb = self._session.state.scene.climb
        settled_before = climb[0].frame if climb else held[0].number
        frames = [f for f in held if f.number < settled_before and f.time >= start]
        end = frames[-1].end if frames else start
        if end - start < self._refresh_s:
            return None
        self._look_at = end + self._refresh_s
        keys = visual_keys(np.stack([f.key for f in frames]))
        if self._is_still(np.stack([f.key for f in frames])):
            return None
        number = self._session.state.next_segment
        segment = Segment(number, start, end, None, None)
        return Span(segment, self._tokens(number, frames), keys, _shown_at(held[-1], end))

    def closed(self, segment: Segment) -> Span | None:
        """Return the rest of a scene that has just closed; None if there is nothing new in it."""
        entry = self._session.memory.get(segment.id)
        start, goes_on = self._until, self._goes_on or self._until is not None
        self._until, self._look_at = None, segment.end + self._refresh_s
        self._goes_on = segment.reason == "max"
        for part, spoken in self._unkept:
            self._session.keep(part, spoken)
        self._unkept = []
        if start is not None and start >= segment.end:
            return None
        if entry is None or (goes_on and self._is_still(entry.visual_keys)):
            return None
        rest = segment
        if start is not None:
            rest = Segment(segment.id, start, segment.end, segment.depth, segment.reason)
        newest = self._session.state.now[-1:] or self._session.state.held[-1:]
        shown_at = _shown_at(newest[0], segment.end) if newest else time.monotonic()
        return Span(rest, self._session.tokens(segment.id), entry.visual_keys, shown_at)

    def begun(self, span: Span) -> None:
        """Take note that a stretch will be described: the next one begins at its end."""
        self._said = span.keys
        if span.segment.id == self._session.state.next_segment:
            self._until = span.segment.end

    def told(self, span: Span, said: Replies) -> Caption:
        """Make the caption of a stretch, kept by the session once the scene has closed."""
        segment = span.segment
        if segment.id != self._session.state.next_segment:
            return self._session.add_caption(segment, said)
        text = chosen(self._session.model, said, span.keys)
        spoken = weigh(self._session.model, text, span.keys, self._session.config)
        self._unkept.append((segment, spoken))
        return spoken.of(segment)

    def _is_still(self, keys: np.ndarray) -> bool:
        return self._said is not None and coverage(self._said, keys) >= STILL_COSINE

    def _tokens(self, number: int, frames: Sequence[Held]) -> Tensor:
        full = [f for f in frames if f.patches is not None] or list(frames[-1:])
        shown = [full[i] for i in spread(len(full), BRIDGE_FRAMES)]
        patches = [f.patches for f in shown if f.patches is not None]
        scene = Scene(number, patches, places(shown))
        return self._session.model.take_in(scene, self._session.state.memory, None).tokens


def _shown_at(newest: Held, end: float) -> float:
    """Return when a stretch's last frame was there, if the newest frame is there now."""
    return time.monotonic() - max(0.0, newest.time - end)
