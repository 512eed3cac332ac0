"""SceneTilling: where one scene ends and the next begins, from a stream of frame embeddings.

It knows neither encoders nor clocks: frames are rows, and a boundary is the number of a row.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from streammem.errors import BackboneError, ConfigError

# The part of a change that must be left when a flash's length is looked across. What moves during
# a bright flash leaves 0.07 to 0.08 of it (signatures of composed videos); a fade through black
# between like scenes 0.12.
OUTLASTING = 0.1


@dataclass(frozen=True, slots=True)
class SceneTillingConfig:
    """Options of the streaming detector. Lengths are in frames of the pushed stream.

    The defaults were tuned on one half of a set of real clips, at 1, 2, 4 and 8 frames a second,
    for EfficientNet-Lite2 embeddings centred by their mean over photos, and checked on the other.

    Attributes:
        alpha: >= 0, standard deviations of recent depth above its mean that a boundary's depth
            must reach. Raising it cuts less in restless scenes.
        floor: in [0, 4], least depth of a boundary, whatever was seen lately. Raising it cuts
            less everywhere; it belongs to the encoder, and lies above what static noise reaches.
        half_life: > 0, frames after which a depth counts half in mean and deviation. Raising it
            forgets a restless scene more slowly.
        min_frames: >= 1, shortest scene. The first accepted boundary stands; one that follows
            it sooner is dropped. Raising it merges short shots.
        max_frames: > ``min_frames``, longest scene; one that grows so long is closed with reason
            ``max``. Raising it allows longer scenes.
        max_lag: >= 1, frames for which a depth may wait for its right peak. Raising it measures
            slow climbs in full, and can delay a boundary by as much.
        flash_frames: >= 0, longest disturbance that does not cut if the picture comes back after
            it. Raising it ignores longer flashes, and delays every boundary by as much.
        peak: in [-1, 1], least similarity that a peak is taken for. Raising it lets a gap cut
            whose neighbours are as deep, as where a scene may be one frame; -1 changes nothing.
    """

    alpha: float = 2.0
    floor: float = 0.65
    half_life: float = 60.0
    min_frames: int = 2
    max_frames: int = 480
    max_lag: int = 64
    flash_frames: int = 2
    peak: float = -1.0

    def __post_init__(self) -> None:
        rules = (
            ("alpha", 0 <= self.alpha < math.inf, "a number >= 0"),
            ("floor", 0 <= self.floor <= 4, "a depth in [0, 4]"),
            ("half_life", 0 < self.half_life < math.inf, "a number of frames > 0"),
            ("min_frames", self.min_frames >= 1, "a number of frames >= 1"),
            ("max_frames", self.max_frames > self.min_frames, "greater than min_frames"),
            ("max_lag", self.max_lag >= 1, "a number of frames >= 1"),
            ("flash_frames", self.flash_frames >= 0, "a number of frames >= 0"),
            ("peak", -1 <= self.peak <= 1, "a similarity in [-1, 1]"),
        )
        for name, holds, wanted in rules:
            if not holds:
                raise ConfigError(f"SceneTilling: {name}={getattr(self, name)}: give {wanted}")


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place where a new scene starts.

    Attributes:
        index: number of the new scene's first frame, counted from the first frame ever pushed.
        depth: depth score in [0, 4]; None for ``max``, a scene that reached ``max_frames``.
    """

    index: int
    depth: float | None
    reason: Literal["cut", "max"]


class Score(NamedTuple):
    """What was measured between frame ``frame`` - 1 and frame ``frame``; for plots.

    Attributes:
        frame: number of the later of the two frames.
        similarity: cosine in [-1, 1].
        depth: depth score in [0, 4].
    """

    frame: int
    similarity: float
    depth: float


class Gap(NamedTuple):
    """A similarity whose right peak is not known yet.

    Attributes:
        frame: number of the later of the two frames.
        similarity: cosine of the two.
        left_peak: similarity at the top of the climb to the left.
        bridged: greatest cosine of a frame before and a frame after, with at most
            ``flash_frames`` between them; infinite where no boundary may stand.
    """

    frame: int
    similarity: float
    left_peak: float
    bridged: float


class SceneState(NamedTuple):
    """Everything the detector remembers: a value, of bounded size, never changed in place.

    Attributes:
        frames: number of frames pushed so far.
        start: number of the first frame after the last flush.
        scene_start: number of the open scene's first frame.
        rows: the last 2 ``flash_frames`` + 2 embeddings at most, [D] float64 of length 1 or 0.
        climb: the gaps of the current run of similarities without a fall, ``max_lag`` at most.
        weight: decayed number of depths learned from, boundaries left out.
        mean: decayed mean of those depths.
        square: decayed sum of their squared deviations from the mean.
    """

    frames: int = 0
    start: int = 0
    scene_start: int = 0
    rows: tuple[np.ndarray, ...] = ()
    climb: tuple[Gap, ...] = ()
    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0


class Pushed(NamedTuple):
    """What a push or a flush gives back.

    Attributes:
        state: the state to push to next.
        boundaries: boundaries settled by this call, in order; none is ever taken back.
        scores: scores settled by this call, in order and without gaps from call to call.
    """

    state: SceneState
    boundaries: tuple[Boundary, ...]
    scores: tuple[Score, ...]


def initial(config: SceneTillingConfig) -> SceneState:
    """Give the state before the first frame; nothing in it depends on the options yet."""
    return SceneState()


def push(state: SceneState, embeddings: np.ndarray, config: SceneTillingConfig) -> Pushed:
    """Take in the next frames.

    One frame at a time = in batches = all at once, bit for bit. A gap between two frames settles
    once similarity falls after it, or ``max_lag`` gaps later; ``flash_frames`` are waited for.

    Args:
        state: from ``initial``, ``push`` or ``flush``; it stays as it is.
        embeddings: [D] or [T, D] float, centred by the encoder's mean; need not be normalised.
            A zero row has cosine 0 with every row.
        config: the same at every call.

    Raises:
        ValueError: wrong number of dimensions, or another D than before.
        BackboneError: a value is NaN, infinite, or too large to square.
    """
    rows = np.asarray(embeddings)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2:
        raise ValueError(f"embeddings of shape {rows.shape}: give [T, D], or push [D]")
    if state.rows and rows.shape[1] != len(state.rows[0]):
        raise ValueError(f"embeddings {rows.shape} follow embeddings of width {len(state.rows[0])}")
    run = _Run(state, config)
    for number, row in enumerate(rows, state.frames):
        run.take(_unit(row, number))
    return run.result()


def flush(state: SceneState, config: SceneTillingConfig) -> Pushed:
    """Settle what is still open, as the end of the stream does.

    A change within the last ``flash_frames`` frames does not cut: it has not outlasted a flash.
    Frames pushed later start a new scene; numbers and what was learned go on. Idempotent.

    Args:
        state: from ``initial``, ``push`` or ``flush``; it stays as it is.
        config: the same as in ``push``.
    """
    run = _Run(state, config)
    run.end()
    return run.result()


def adjacent_cosine(embeddings: np.ndarray) -> np.ndarray:
    """Cosine similarity of each frame with the next.

    Args:
        embeddings: [T, D] float, T >= 2, one row a frame; need not be normalised.

    Returns:
        [T - 1] float64 in [-1, 1]. A zero row gives 0.

    Raises:
        ValueError: fewer than two rows, or not two-dimensional.
        BackboneError: a value is NaN, infinite, or too large to square.

    Source: VideoLLaMB (arXiv 2409.01071), SceneTilling, step 1.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"adjacent_cosine: shape {rows.shape}: give at least two frames, [T, D]")
    rows = np.stack([_unit(row, number) for number, row in enumerate(rows)])
    return np.clip(np.vecdot(rows[:-1], rows[1:]), -1.0, 1.0)


def depth_scores(similarities: np.ndarray) -> np.ndarray:
    """Depth of each similarity below the peaks to its left and right.

    Depth = left peak + right peak - 2 x similarity; a climb ends where the next value is smaller.

    Args:
        similarities: [N] float.

    Returns:
        [N] float64, >= 0. O(N).

    Raises:
        ValueError: not one-dimensional.

    Source: VideoLLaMB (arXiv 2409.01071), SceneTilling, step 2; local peaks as in its code.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"depth_scores: shape {values.shape}: give one similarity a gap, [N]")
    return _left_peaks(values) + _left_peaks(values[::-1])[::-1] - 2 * values


def tile(
    embeddings: np.ndarray,
    *,
    alpha: float = 0.5,
    num_boundaries: int | None = None,
    max_segments: int = 16,
) -> list[int]:
    """Cut a whole video by the paper's offline rule; not what ``push`` does.

    Args:
        embeddings: [T, D] float, T >= 1, one row a frame.
        alpha: unbiased standard deviations above the mean of all depths that a boundary needs.
        num_boundaries: >= 0: instead of that, cut at so many of the deepest gaps.
        max_segments: >= 1; beyond it the shallowest boundaries are dropped.

    Returns:
        Numbers of the frames that start a new segment, ascending, frame 0 left out.

    Raises:
        ValueError, BackboneError: as ``adjacent_cosine``; or an option is out of range.

    Source: VideoLLaMB (arXiv 2409.01071), SceneTilling, step 3.
    """
    if max_segments < 1 or (num_boundaries is not None and num_boundaries < 0):
        raise ValueError(f"tile: {num_boundaries=}, {max_segments=}: give >= 0 and >= 1")
    if len(embeddings) == 1:
        return []
    depths = depth_scores(adjacent_cosine(embeddings))
    deepest = np.argsort(-depths, kind="stable")
    if num_boundaries is None:
        # One gap has no deviation, and no boundary.
        threshold = depths.mean() + alpha * depths.std(ddof=1) if len(depths) > 1 else math.inf
        deepest = deepest[depths[deepest] > threshold][: max_segments - 1]
    else:
        deepest = deepest[: min(num_boundaries, max_segments - 1)]
    return sorted(int(gap) + 1 for gap in deepest)


class _Run:
    """The mutable side of one call: a state opened, moved on, and closed again."""

    __slots__ = (*SceneState._fields, "boundaries", "config", "scores")

    def __init__(self, state: SceneState, config: SceneTillingConfig) -> None:
        self.config = config
        self.frames, self.start, self.scene_start, rows, climb, *learned = state
        self.rows = deque(rows, 2 * config.flash_frames + 2)
        self.climb = deque(climb)
        self.weight, self.mean, self.square = learned
        self.boundaries: list[Boundary] = []
        self.scores: list[Score] = []

    def result(self) -> Pushed:
        places = (self.frames, self.start, self.scene_start)
        learned = (self.weight, self.mean, self.square)
        state = SceneState(*places, tuple(self.rows), tuple(self.climb), *learned)
        return Pushed(state, tuple(self.boundaries), tuple(self.scores))

    def take(self, row: np.ndarray) -> None:
        row.setflags(write=False)
        self.rows.append(row)
        self.frames += 1
        gap = self.frames - 1 - self.config.flash_frames
        if gap > self.start:
            self.measure(gap)

    def end(self) -> None:
        for gap in range(max(self.frames - self.config.flash_frames, self.start + 1), self.frames):
            self.measure(gap)
        self.settle_climb()
        self.rows.clear()
        self.start = self.scene_start = self.frames

    def measure(self, gap: int) -> None:
        first = self.frames - len(self.rows)
        before, after = gap - 1 - first, gap - first
        similarity = _cosine(self.rows[before], self.rows[after])
        left_peak, bridged, dips = similarity, math.inf, similarity < self.config.peak
        if self.climb and similarity <= self.climb[-1].similarity:
            left_peak = self.climb[-1].left_peak
            if similarity < self.climb[-1].similarity:
                self.settle_climb()
                dips = True
        left_peak = max(left_peak, self.config.peak)
        # No right peak lies above 1: most dips need no look across.
        if dips and left_peak + 1 - 2 * similarity > self.config.floor:
            bridged = self.bridge(before, after)
        self.climb.append(Gap(gap, similarity, left_peak, bridged))
        if len(self.climb) > self.config.max_lag:
            self.settle(self.climb.popleft(), similarity)

    def bridge(self, before: int, after: int) -> float:
        if len(self.rows) - after <= self.config.flash_frames:
            return math.inf  # only at the end of the stream: a flash cannot be told from a cut
        return max(
            _cosine(self.rows[before - left], self.rows[after + right])
            for left in range(min(self.config.flash_frames, before) + 1)
            for right in range(self.config.flash_frames - left + 1)
        )

    def settle_climb(self) -> None:
        right_peak = self.climb[-1].similarity if self.climb else 0.0
        while self.climb:
            self.settle(self.climb.popleft(), right_peak)

    def settle(self, gap: Gap, right_peak: float) -> None:
        right_peak = max(right_peak, self.config.peak)
        peaks = gap.left_peak + right_peak
        depth = peaks - 2 * gap.similarity
        deviation = math.sqrt(self.square / self.weight) if self.weight else 0.0
        threshold = max(self.config.floor, self.mean + self.config.alpha * deviation)
        self.scores.append(Score(gap.frame, gap.similarity, depth))
        least = max(threshold, OUTLASTING * depth)
        # Only a dip can cut, not a slope.
        if right_peak > gap.similarity and peaks - 2 * gap.bridged > least:
            self.decide(gap.frame, depth)
        else:
            # Boundaries teach nothing: where every fourth gap is one, they would bar all others.
            self.learn(min(depth, threshold))
            self.decide(gap.frame, None)

    def decide(self, index: int, depth: float | None) -> None:
        length = index - self.scene_start
        if depth is not None and length >= self.config.min_frames:
            self.boundaries.append(Boundary(index, depth, "cut"))
        elif length >= self.config.max_frames:
            self.boundaries.append(Boundary(index, None, "max"))
        else:
            return
        self.scene_start = index

    def learn(self, depth: float) -> None:
        decay = 0.5 ** (1 / self.config.half_life)
        self.weight = self.weight * decay + 1
        change = depth - self.mean
        self.mean += change / self.weight
        self.square = self.square * decay + change * (depth - self.mean)


def _unit(embedding: np.ndarray, frame: int) -> np.ndarray:
    """Scale [D] to length 1 as float64, zero to zero; alone, so that no batch moves its bits."""
    row = embedding.astype(np.float64)
    square = float(row.dot(row))
    if not math.isfinite(square):
        raise BackboneError(
            f"frame {frame}: the vision encoder gave NaN, infinite or huge values; "
            "try float32, and check its weights"
        )
    if square:
        row /= math.sqrt(square)
    return row


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    cosine = float(left.dot(right))
    return cosine if -1.0 <= cosine <= 1.0 else math.copysign(1.0, cosine)


def _left_peaks(values: np.ndarray) -> np.ndarray:
    starts = np.arange(len(values))  # of the run without a rise that each value lies in
    starts[1:][values[:-1] >= values[1:]] = 0
    return values[np.maximum.accumulate(starts)]
