"""Scenes of a file at two rates: cuts placed to the frame, and judged by what the encoder sees.

A signature of every decoded frame proposes; embeddings at a few frames a second veto flashes and
pans and add gradual changes. Results come at the end, so this is for files; a live stream is
segmented by ``Session`` alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from streammem import scenetilling, signature
from streammem.errors import TruncatedError
from streammem.model import VideoModel
from streammem.types import Event, Frame, Reason, Segment, Warning
from streammem.video import VideoSource

MAX_SIDE = 256  # pixels; enough for the encoder, and cheap to convert for every frame
EMBEDDED_FPS = 2.0
ASSUMED_FPS = 25.0  # where a source does not say how long its first frame lasts


class SceneFinder:
    """Takes every decoded frame of one source; gives its scenes at the end.

    Holds 8 bytes a frame, and a score for each of ``EMBEDDED_FPS`` samples a second.

    Args:
        model: whose encoder judges.
    """

    def __init__(self, model: VideoModel) -> None:
        self._model = model
        self._times: list[float] = []
        self._end = 0.0
        self._changes: list[signature.Change] = []
        self._boundaries: list[scenetilling.Boundary] = []
        self._scores: list[scenetilling.Score] = []
        self._sampled: list[int] = []
        self._scene = scenetilling.initial(model.scenes)

    def push(self, frame: Frame) -> None:
        """Take in the next decoded frame."""
        if not self._times:
            rate = 1 / frame.duration if frame.duration > 0 else ASSUMED_FPS
            self._config = signature.ChangeConfig(fps=rate)
            self._state = signature.initial(self._config)
        rows, columns = signature.PLANE
        plane = Image.fromarray(frame.pixels).resize((columns, rows), Image.Resampling.BOX)
        described = signature.signature(np.asarray(plane))
        self._state, changes = signature.push(self._state, described, self._config)
        self._changes += changes
        if not self._sampled or frame.time >= self._times[self._sampled[-1]] + 1 / EMBEDDED_FPS:
            self._sampled.append(len(self._times))
            seen = self._model.perceive(frame.pixels)
            self._keep(scenetilling.push(self._scene, seen.embedding, self._model.scenes))
        self._times.append(frame.time)
        self._end = frame.time + frame.duration

    def scenes(self, end: float | None = None) -> Iterator[Segment]:
        """Yield the scenes of what was pushed, which tile [first frame, ``end``).

        Args:
            end: seconds, the source's end; the last frame's own end by default.
        """
        if not self._times:
            return
        self._changes += signature.flush(self._state, self._config).changes
        self._keep(scenetilling.flush(self._scene, self._model.scenes))
        joined = signature.join(self._changes, self._boundaries, self._scores, self._sampled)
        start = self._times[0]
        for number, change in enumerate(joined):
            cut: Reason = "cut"
            yield Segment(number, start, self._times[change.frame], change.depth, cut)
            start = self._times[change.frame]
        yield Segment(len(joined), start, self._end if end is None else end, None, "end")

    def _keep(self, pushed: scenetilling.Pushed) -> None:
        self._scene = pushed.state
        self._boundaries += pushed.boundaries
        self._scores += pushed.scores


def find_scenes(
    model: VideoModel,
    source: VideoSource,
    stop: Callable[[], bool] | None = None,
    on_time: Callable[[float], None] | None = None,
) -> Iterator[Event]:
    """Yield the scenes of a source once it has ended.

    Args:
        model: whose encoder judges.
        source: open, with every decoded frame; closed afterwards.
        stop: asked before each frame; once true, what was seen so far is all.
        on_time: called with each frame's time (s), for progress.

    Returns:
        Segments; then a ``Warning`` if the source broke off.
    """
    finder, broken, stopped = SceneFinder(model), None, False
    with source:
        try:
            for frame in source:
                finder.push(frame)
                if on_time:
                    on_time(frame.time)
                if stopped := bool(stop and stop()):
                    break
        except TruncatedError as error:
            broken = error
    yield from finder.scenes(None if stopped else source.end)
    if broken:
        yield Warning(str(broken))
