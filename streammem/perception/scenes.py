"""Scenes of a file at two rates: cuts placed to the frame, and judged by what the encoder sees.

A signature of every decoded frame proposes; embeddings at a few frames a second veto flashes and
pans and add gradual changes. A live stream is segmented by ``Session`` alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from streammem.errors import SourceError, TruncatedError
from streammem.perception import scenetilling, signature
from streammem.perception.perceiver import Perceiver
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import Event, Frame, Notice, Segment
from streammem.video import VideoSource

SCENES_SIDE = 256  # pixels; enough for the encoder, and cheap to convert for every frame
EMBEDDED_FPS = 2.0
ASSUMED_FPS = 25.0  # where a source does not say how long its first frame lasts
REACH = 4  # samples before a gap that bear on what is decided in it
AHEAD = 2  # samples after a gap that do
# Cosine of frames of one scene that are up to 8 s apart: of real clips, one in twenty lies below,
# and one in a hundred of those between clips above.
KEYFRAMES_ALIKE = 0.4


def for_keyframes(config: SceneTillingConfig) -> SceneTillingConfig:
    """Fit options to keyframes seconds apart: a scene may be one of them, which no peak shows.

    What cuts is then that two neighbours are unlike, and nothing is known of flashes.
    """
    floor = min(config.floor, 2 - 2 * KEYFRAMES_ALIKE)  # no peak lies above 1
    peak = KEYFRAMES_ALIKE + floor / 2
    return replace(config, floor=floor, peak=peak, alpha=0.0, min_frames=1, flash_frames=0)


class SceneFinder:
    """Takes every decoded frame of one source; gives each scene once nothing can change it.

    What it holds is bounded: a scene settles when SceneTilling on the samples does, so at most
    ``max_lag`` + ``flash_frames`` + 7 samples, and time and score of the frames between them.

    Args:
        model: whose encoder judges.
    """

    def __init__(self, model: Perceiver) -> None:
        self._model = model
        self._num_frames, self._end = 0, 0.0
        self._times: list[float] = []  # of the newest frames
        # Samples are the frames that are embedded; a gap lies between sample number `gap` and the
        # next. Lists begin at sample `first`, and the gaps before `gap` are decided.
        self._first = self._gap = 0
        self._samples: list[int] = []  # their frames' numbers
        self._embeddings: list[np.ndarray] = []
        self._num_scored = 0  # gaps that SceneTilling has settled
        self._changes: list[signature.Change] = []
        self._frame_scores: list[scenetilling.Score] = []
        self._boundaries: list[scenetilling.Boundary] = []
        self._scene = scenetilling.initial(model.scenes)
        self._cut_at, self._start, self._number = -1, 0.0, 0

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Take in the next decoded frame and return the scenes that are settled now."""
        if not self._num_frames:
            rate = 1 / frame.duration if frame.duration > 0 else ASSUMED_FPS
            self._config = signature.ChangeConfig(fps=rate)
            self._signed = signature.initial(self._config)
            self._start = self._sampled_at = frame.time
        self._sign(frame)
        if not self._num_frames or frame.time >= self._sampled_at + 1 / EMBEDDED_FPS:
            self._sampled_at = frame.time
            self._samples.append(self._num_frames)
            embedding = self._model.perceive(frame.pixels).embedding
            self._embeddings.append(embedding)
            self._keep(scenetilling.push(self._scene, embedding, self._model.scenes))
        self._times.append(frame.time)
        self._num_frames += 1
        self._end = frame.time + frame.duration
        return self._settled(last=False)

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Return the scenes that are still open, as the end of the source closes them.

        Args:
            end: seconds, the source's end; the last frame's own end by default.
        """
        if not self._num_frames:
            return ()
        self._note(signature.flush(self._signed, self._config))
        self._keep(scenetilling.flush(self._scene, self._model.scenes))
        settled = self._settled(last=True)
        until = self._end if end is None else end
        return (*settled, Segment(self._number, self._start, until, None, "end"))

    def _sign(self, frame: Frame) -> None:
        rows, columns = signature.PLANE
        plane = Image.fromarray(frame.pixels).resize((columns, rows), Image.Resampling.BOX)
        described = signature.signature(np.asarray(plane))
        self._note(signature.push(self._signed, described, self._config))

    def _note(self, pushed: signature.Pushed) -> None:
        self._signed = pushed.state
        self._changes += pushed.changes
        self._frame_scores += pushed.scores

    def _keep(self, pushed: scenetilling.Pushed) -> None:
        self._scene = pushed.state
        self._boundaries += pushed.boundaries
        self._num_scored += len(pushed.scores)

    def _settled(self, *, last: bool) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        while self._is_decidable(last):
            segments += map(self._closed, self._decide())
            self._forget()
        return tuple(segments)

    def _is_decidable(self, last: bool) -> bool:
        """Whether both rates know all that bears on the next gap."""
        after = self._gap - self._first + 1
        if last:
            return after <= len(self._samples)  # the gap after the last sample too
        if len(self._samples) <= after + AHEAD or self._num_scored <= self._gap + 1:
            return False
        return self._signed.steps * self._config.step >= self._samples[after + 1]

    def _decide(self) -> list[signature.Change]:
        """Return the changes of the next gap, and the boundary of embeddings where it begins.

        ``join`` looks from one gap to its neighbours only, so what it says of the last few is
        what it would say of the whole.
        """
        after = self._gap - self._first + 1
        # Of earlier gaps, whose own neighbours may be gone, nothing is said again.
        since = max(self._cut_at, self._samples[max(0, after - 2)])
        until = self._samples[after] if after < len(self._samples) else math.inf
        at = [replace(b, index=after - 1) for b in self._boundaries if b.index == self._gap]
        joined = signature.join(
            self._changes, at, self._embeddings, self._samples, self._frame_scores
        )
        return [change for change in joined if since < change.frame <= until]

    def _closed(self, change: signature.Change) -> Segment:
        self._cut_at = change.frame
        time = self._times[change.frame - self._num_frames]
        segment = Segment(self._number, self._start, time, change.depth, "cut")
        self._start, self._number = time, self._number + 1
        return segment

    def _forget(self) -> None:
        """Go on to the next gap, and drop what bears on no gap any more."""
        self._gap += 1
        gone = max(0, self._gap - REACH - self._first)
        self._first += gone
        del self._samples[:gone], self._embeddings[:gone]
        self._boundaries = [b for b in self._boundaries if b.index >= self._gap]
        self._changes = [c for c in self._changes if c.frame > self._samples[0]]
        # A boundary where the next gap begins may be placed anywhere in the gap before.
        past = self._samples[self._gap - self._first - 1]
        self._frame_scores = [s for s in self._frame_scores if s.frame > past]
        del self._times[: past - self._num_frames + len(self._times)]


def find_scenes(
    model: Perceiver,
    source: VideoSource,
    stop: Callable[[], bool] | None = None,
    on_time: Callable[[float], None] | None = None,
) -> Iterator[Event]:
    """Yield the scenes of a source as they settle.

    Args:
        model: whose encoder judges.
        source: open, with every decoded frame; closed afterwards.
        stop: asked after each frame; once true, what was seen so far is all.
        on_time: called with each frame's time (s), for progress.

    Returns:
        Segments; then a ``Notice`` if the source was cut short.

    Raises:
        SourceError: the source failed; what it gave before has been yielded.
    """
    finder, broken, stopped = SceneFinder(model), None, False
    with source:
        try:
            for frame in source:
                yield from finder.push(frame)
                if on_time:
                    on_time(frame.time)
                if stopped := bool(stop and stop()):
                    break
        except SourceError as error:
            broken = error
    yield from finder.flush(None if stopped else source.end)
    if isinstance(broken, TruncatedError):
        yield Notice(str(broken))
    elif broken:
        raise broken
