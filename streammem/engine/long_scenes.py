"""Captions of a live scene that is still open: a long one is described again where it changed.

What is said here covers only frames that no later boundary can cut off, so it stays true.
"""

import time
from collections.abc import Sequence

import numpy as np

from streammem.captioning.captioner import CaptionRequest, ScoredCaption
from streammem.captioning.scheduler import CaptionJob
from streammem.engine.session import Session
from streammem.memory.entry import coverage, visual_keys
from streammem.perception.frames import BufferedFrame, segment_frames, spread
from streammem.types import Caption, Segment

STILL_COSINE = 0.98  # as the cache's epsilon: what it takes for one still scene needs one caption


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
        self._unkept: list[tuple[Segment, ScoredCaption]] = []  # captions of the open scene
        self._goes_on = False  # whether the open scene follows one that merely became too long

    def due(self) -> CaptionJob | None:
        """Return the stretch of the open scene that needs a caption now, if one does."""
        held = self._session.open_frames
        if not held or held[-1].time < self._look_at:
            return None
        start = held[0].time if self._until is None else self._until
        frames = [f for f in self._session.settled_frames if f.time >= start]
        end = frames[-1].end if frames else start
        if end - start < self._refresh_s:
            return None
        self._look_at = end + self._refresh_s
        keys = visual_keys(np.stack([f.key for f in frames]))
        if self._is_still(np.stack([f.key for f in frames])):
            return None
        number = self._session.next_segment
        segment = Segment(number, start, end, None, None)
        return CaptionJob(self._request(segment, frames, keys), _shown_at(held[-1], end))

    def closed(self, segment: Segment) -> CaptionJob | None:
        """Return the rest of a scene that has just closed; None if there is nothing new in it."""
        request = self._session.request(segment)
        start, goes_on = self._until, self._goes_on or self._until is not None
        self._until, self._look_at = None, segment.end + self._refresh_s
        self._goes_on = segment.reason == "max"
        for part, scored in self._unkept:
            self._session.keep(part, scored)
        self._unkept = []
        if start is not None and start >= segment.end:
            return None
        if goes_on and self._is_still(request.keys):
            return None
        rest = segment
        if start is not None:
            rest = Segment(segment.id, start, segment.end, segment.depth, segment.reason)
        newest = self._session.newest
        shown_at = _shown_at(newest, segment.end) if newest else time.monotonic()
        return CaptionJob(request._replace(segment=rest), shown_at)

    def begun(self, job: CaptionJob) -> None:
        """Take note that a stretch will be described: the next one begins at its end."""
        self._said = job.request.keys
        if job.request.segment.id == self._session.next_segment:
            self._until = job.request.segment.end

    def keep(self, segment: Segment, scored: ScoredCaption) -> Caption:
        """Make the caption of a stretch, kept by the session once the scene has closed."""
        if segment.id != self._session.next_segment:
            return self._session.keep(segment, scored)
        self._unkept.append((segment, scored))
        return scored.of(segment)

    def _is_still(self, keys: np.ndarray) -> bool:
        return self._said is not None and coverage(self._said, keys) >= STILL_COSINE

    def _request(
        self, segment: Segment, frames: Sequence[BufferedFrame], keys: np.ndarray
    ) -> CaptionRequest:
        model, tokens = self._session.model, None
        full = [f for f in frames if f.picture is not None] or list(frames[-1:])
        if (encoder := model.segment_encoder) is not None:
            read = segment_frames(segment.id, full)
            tokens = encoder.encode_segment(read, self._session.recurrent, None).tokens
        pictures = [full[i] for i in spread(len(full), model.generator.reads.pictures)]
        keyframes = tuple(f.picture for f in pictures if f.picture is not None)
        return CaptionRequest(segment, keys, tokens, keyframes)


def _shown_at(newest: BufferedFrame, end: float) -> float:
    """Return when a stretch's last frame was there, if the newest frame is there now."""
    return time.monotonic() - max(0.0, newest.time - end)
