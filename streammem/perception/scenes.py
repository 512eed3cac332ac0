"""Scenes of a file at two rates: cuts placed to the frame, and judged by what the encoder sees.

    from streammem import load, open_source

    for scene in find_scenes(load(), open_source("film.mp4", max_side=MAX_SIDE)):
        print(scene.start, scene.end)

A signature of every decoded frame proposes; embeddings at a few frames a second veto flashes and
pans and add gradual changes. A live stream is segmented by ``Session`` alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from streammem.errors import SourceError, TruncatedError
from streammem.perception.frames import Perceiver
from streammem.perception.scenetilling import (
    Boundary,
    SceneTilling,
    SceneTillingConfig,
    SceneTillingState,
    Score,
)
from streammem.perception.signature import (
    PLANE,
    Change,
    ChangeConfig,
    ChangeDetector,
    ChangeDetectorState,
    join,
    signature,
)
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


class SceneFinderState(NamedTuple):
    """Everything a ``SceneFinder`` remembers: a value of bounded size.

    Samples are the frames that are embedded; a gap lies between sample number ``gap`` and the
    next. Tuples of samples begin at sample ``first``, and the gaps before ``gap`` are decided.

    Attributes:
        tilling: SceneTilling's state on the samples.
        detector: of all frames; None before the first frame.
        fps: frames a second, as the first frame's duration says.
        num_frames: frames pushed so far.
        end: seconds, end of the newest frame.
        times: seconds, of the newest frames.
        sampled_at: seconds, time of the newest sample.
        first: number of the first sample in ``samples`` and ``embeddings``.
        gap: number of the next gap to decide.
        samples: numbers of the samples' frames.
        embeddings: [D] of each sample.
        num_scored: gaps that SceneTilling has settled.
        changes: what signatures saw.
        scores: of neighbouring frames.
        boundaries: what SceneTilling saw on the samples.
        cut_at: number of the open scene's first frame; -1 before the first cut.
        start: seconds, start of the open scene.
        number: of the open scene.
    """

    tilling: SceneTillingState = SceneTillingState()
    detector: ChangeDetectorState | None = None
    fps: float = ASSUMED_FPS
    num_frames: int = 0
    end: float = 0.0
    times: tuple[float, ...] = ()
    sampled_at: float = 0.0
    first: int = 0
    gap: int = 0
    samples: tuple[int, ...] = ()
    embeddings: tuple[np.ndarray, ...] = ()
    num_scored: int = 0
    changes: tuple[Change, ...] = ()
    scores: tuple[Score, ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    cut_at: int = -1
    start: float = 0.0
    number: int = 0


class SceneFinder:
    """Takes every decoded frame of one source; gives each scene once nothing can change it.

    What it holds is bounded: a scene settles when SceneTilling on the samples does, so at most
    ``max_lag`` + ``flash_frames`` + 7 samples, and time and score of the frames between them.

    Args:
        model: its encoder judges.
        config: options; None takes those fitted to the encoder.
    """

    def __init__(self, model: Perceiver, config: SceneTillingConfig | None = None) -> None:
        self._model = model
        self._tilling = SceneTilling(config or model.scenes)
        self.restore(SceneFinderState())

    def restore(self, state: SceneFinderState) -> None:
        """Go on from a state of a ``SceneFinder`` with the same model."""
        self._tilling.restore(state.tilling)
        self._detector: ChangeDetector | None = None
        if state.detector is not None:
            self._detector = ChangeDetector(ChangeConfig(fps=state.fps))
            self._detector.restore(state.detector)
        self._fps, self._num_frames, self._end = state.fps, state.num_frames, state.end
        self._times, self._sampled_at = list(state.times), state.sampled_at
        self._first, self._gap = state.first, state.gap
        self._samples, self._embeddings = list(state.samples), list(state.embeddings)
        self._num_scored, self._changes = state.num_scored, list(state.changes)
        self._scores, self._boundaries = list(state.scores), list(state.boundaries)
        self._cut_at, self._start, self._number = state.cut_at, state.start, state.number

    def snapshot(self) -> SceneFinderState:
        """Return the state, which later calls do not change."""
        return SceneFinderState(
            tilling=self._tilling.snapshot(),
            detector=self._detector.snapshot() if self._detector else None,
            fps=self._fps,
            num_frames=self._num_frames,
            end=self._end,
            times=tuple(self._times),
            sampled_at=self._sampled_at,
            first=self._first,
            gap=self._gap,
            samples=tuple(self._samples),
            embeddings=tuple(self._embeddings),
            num_scored=self._num_scored,
            changes=tuple(self._changes),
            scores=tuple(self._scores),
            boundaries=tuple(self._boundaries),
            cut_at=self._cut_at,
            start=self._start,
            number=self._number,
        )

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Take in the next decoded frame and return the scenes that are settled now."""
        # 1. Every frame has a signature.
        if self._detector is None:
            self._fps = 1 / frame.duration if frame.duration > 0 else ASSUMED_FPS
            self._detector = ChangeDetector(ChangeConfig(fps=self._fps))
            self._start = frame.time
        rows, columns = PLANE
        plane = Image.fromarray(frame.pixels).resize((columns, rows), Image.Resampling.BOX)
        detected = self._detector.push(signature(np.asarray(plane)))
        self._changes += detected.changes
        self._scores += detected.scores
        # 2. A few a second have an embedding.
        if not self._num_frames or frame.time >= self._sampled_at + 1 / EMBEDDED_FPS:
            self._sampled_at = frame.time
            self._samples.append(self._num_frames)
            embedding = self._model.perceive(frame.pixels).embedding
            self._embeddings.append(embedding)
            pushed = self._tilling.push(embedding)
            self._boundaries += pushed.boundaries
            self._num_scored += len(pushed.scores)
        # 3. Both together settle scenes.
        self._times.append(frame.time)
        self._num_frames += 1
        self._end = frame.time + frame.duration
        return self._settled(last=False)

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Return the scenes that are still open, as the end of the source closes them.

        Args:
            end: seconds, the source's end; the last frame's own end by default.
        """
        if self._detector is None:
            return ()
        detected, pushed = self._detector.flush(), self._tilling.flush()
        self._changes += detected.changes
        self._scores += detected.scores
        self._boundaries += pushed.boundaries
        self._num_scored += len(pushed.scores)
        settled = self._settled(last=True)
        until = self._end if end is None else end
        return (*settled, Segment(self._number, self._start, until, None, "end"))

    def _settled(self, *, last: bool) -> tuple[Segment, ...]:
        """Decide one gap after another, as far as both rates know all that bears on it."""
        segments: list[Segment] = []
        while self._is_decidable(last):
            after = self._gap - self._first + 1
            # 1. The changes of this gap, and the boundary of embeddings where it begins. ``join``
            # looks from one gap to its neighbours only, so what it finds in the last few gaps is
            # what it would find in the whole. Earlier gaps, whose own neighbours may be gone, are
            # not decided again.
            since = max(self._cut_at, self._samples[max(0, after - 2)])
            until = self._samples[after] if after < len(self._samples) else math.inf
            at = [replace(b, index=after - 1) for b in self._boundaries if b.index == self._gap]
            joined = join(self._changes, at, self._embeddings, self._samples, self._scores)
            # 2. Each closes a scene.
            for change in joined:
                if since < change.frame <= until:
                    self._cut_at = change.frame
                    time = self._times[change.frame - self._num_frames]
                    segments.append(Segment(self._number, self._start, time, change.depth, "cut"))
                    self._start, self._number = time, self._number + 1
            # 3. Go on to the next gap, and drop what bears on no gap any more.
            self._gap += 1
            gone = max(0, self._gap - REACH - self._first)
            self._first += gone
            del self._samples[:gone], self._embeddings[:gone]
            self._boundaries = [b for b in self._boundaries if b.index >= self._gap]
            self._changes = [c for c in self._changes if c.frame > self._samples[0]]
            # A boundary where the next gap begins may be placed anywhere in the gap before.
            past = self._samples[self._gap - self._first - 1]
            self._scores = [s for s in self._scores if s.frame > past]
            del self._times[: past - self._num_frames + len(self._times)]
        return tuple(segments)

    def _is_decidable(self, last: bool) -> bool:
        """Return whether both rates know all that bears on the next gap."""
        after = self._gap - self._first + 1
        if last:
            return after <= len(self._samples)  # the gap after the last sample too
        if len(self._samples) <= after + AHEAD or self._num_scored <= self._gap + 1:
            return False
        assert self._detector is not None  # there are samples
        return self._detector.decided_until >= self._samples[after + 1]


def find_scenes(
    model: Perceiver,
    source: VideoSource,
    stop: Callable[[], bool] | None = None,
    on_time: Callable[[float], None] | None = None,
    config: SceneTillingConfig | None = None,
) -> Iterator[Event]:
    """Yield the scenes of a source as they settle.

    Args:
        model: its encoder judges.
        source: open, with every decoded frame; closed afterwards.
        stop: called after each frame; once it returns true, no later frame is read.
        on_time: called with each frame's time (s), for progress.
        config: options; None takes those fitted to the encoder.

    Returns:
        Segments; then a ``Notice`` if the source was cut short.

    Raises:
        SourceError: the source failed; what it gave before has been yielded.
    """
    finder, broken, stopped = SceneFinder(model, config), None, False
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
