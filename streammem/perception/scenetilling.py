"""SceneTilling: where one scene ends and the next begins, from a stream of frame embeddings.

    tilling = SceneTilling(SceneTillingConfig(floor=0.5))
    for embedding in embeddings:  # [D] each; a batch [T, D] gives the same
        for boundary in tilling.push(embedding).boundaries:
            print(boundary.index, boundary.depth)
    print(tilling.flush().boundaries)

It knows neither encoders nor clocks: frames are rows, and a boundary is the number of a row.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

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


class SceneTillingState(NamedTuple):
    """Everything a ``SceneTilling`` remembers: a value of bounded size.

    Attributes:
        frames: number of frames pushed so far.
        start: number of the first frame after the last flush.
        scene_start: number of the open scene's first frame.
        rows: the last 2 ``flash_frames`` + 2 embeddings at most, [D] float64 of length 1 or 0,
            read-only.
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
    """What a push or a flush has settled.

    Attributes:
        scores: in order and without gaps from call to call.
        boundaries: in order; none is ever taken back.
    """

    scores: tuple[Score, ...]
    boundaries: tuple[Boundary, ...]


class Tilling(Protocol):
    """Finds boundaries in one stream: a ``SceneTilling``, or one of many streams together."""

    @property
    def lag(self) -> int: ...
    @property
    def settled_before(self) -> int: ...
    def push(self, embeddings: np.ndarray) -> Pushed: ...
    def flush(self) -> Pushed: ...
    def snapshot(self) -> SceneTillingState: ...
    def restore(self, state: SceneTillingState) -> None: ...


class SceneTilling:
    """Finds boundaries between scenes, a bounded number of frames behind the stream.

    Each gap between two frames has a similarity. A boundary is a dip: depth is how far the gap
    lies below the peaks on both sides, added up. It is a cut where it exceeds both ``floor`` and
    the usual depth of late (``alpha`` deviations above the mean)::

        similarity
        1 |-----.  left peak                .------  right peak
          |      '.                       .'
          |        '.                   .'      depth = (left peak - similarity)
          |          '.               .'              + (right peak - similarity)
          |            '.           .'
          |              '.       .'
          |                '.   .'
          |                  '.'  <- the lowest gap: a new scene starts after it
        0 +-----------------------------------------> frames

    The left peak is known at once. The right peak is known when similarity falls again, or
    ``max_lag`` gaps later. Besides, ``flash_frames`` frames are waited for: a flash makes two
    dips, and the frames before and after it are alike, so it does not cut.

    One frame at a time, in batches, all at once or restored from a snapshot: the results are
    equal, bit for bit.

    Args:
        config: options.
    """

    def __init__(self, config: SceneTillingConfig) -> None:
        self.config = config
        self.restore(SceneTillingState())

    def restore(self, state: SceneTillingState) -> None:
        """Go on from a state of a ``SceneTilling`` with the same options."""
        self._frames, self._start, self._scene_start, rows, climb, *learned = state
        self._rows = deque(rows, 2 * self.config.flash_frames + 2)
        self._climb = deque(climb)
        self._weight, self._mean, self._square = learned

    def snapshot(self) -> SceneTillingState:
        """Return the state, which later calls do not change."""
        return SceneTillingState(
            self._frames,
            self._start,
            self._scene_start,
            tuple(self._rows),
            tuple(self._climb),
            self._weight,
            self._mean,
            self._square,
        )

    @property
    def lag(self) -> int:
        """Number of newest frames before which a boundary may still fall, at most."""
        return self.config.max_lag + self.config.flash_frames + 1

    @property
    def settled_before(self) -> int:
        """Least ``index`` of a boundary that a later call may give.

        Frames of the open scene with smaller numbers stay in it, whatever follows.
        """
        return self._climb[0].frame if self._climb else self._scene_start

    def push(self, embeddings: np.ndarray) -> Pushed:
        """Take in the next frames.

        Args:
            embeddings: [D] or [T, D] float, centred by the encoder's mean; need not be
                normalised. A zero row has cosine 0 with every row.

        Raises:
            ValueError: wrong number of dimensions, or another D than before.
            BackboneError: a value is NaN, infinite, or too large to square. A push that raises
                changes nothing.
        """
        rows = rows_of(embeddings)
        if self._rows and rows.shape[1] != len(self._rows[0]):
            width = len(self._rows[0])
            raise ValueError(f"embeddings {rows.shape} follow embeddings of width {width}")
        units = [_unit(row, number) for number, row in enumerate(rows, self._frames)]
        scores: list[Score] = []
        boundaries: list[Boundary] = []
        for row in units:
            row.setflags(write=False)  # snapshots share it
            self._rows.append(row)
            self._frames += 1
            gap = self._frames - 1 - self.config.flash_frames
            if gap > self._start:
                self._measure(gap, scores, boundaries)
        return Pushed(tuple(scores), tuple(boundaries))

    def flush(self) -> Pushed:
        """Settle what is still open, as the end of the stream does. Idempotent.

        A change within the last ``flash_frames`` frames does not cut: it has not outlasted a
        flash. Frames pushed later start a new scene; numbers and what was learned go on.
        """
        scores: list[Score] = []
        boundaries: list[Boundary] = []
        first = max(self._frames - self.config.flash_frames, self._start + 1)
        for gap in range(first, self._frames):
            self._measure(gap, scores, boundaries)
        if self._climb:
            self._settle(len(self._climb), self._climb[-1].similarity, scores, boundaries)
        self._rows.clear()
        self._start = self._scene_start = self._frames
        return Pushed(tuple(scores), tuple(boundaries))

    def _measure(self, gap: int, scores: list[Score], boundaries: list[Boundary]) -> None:
        """Add a gap to the climb; settle the gaps whose right peak it shows, onto the lists."""
        config, rows = self.config, self._rows
        # 1. Similarity, and the peak to its left; a fall ends the climb before.
        after = gap - (self._frames - len(rows))
        before = after - 1
        similarity = _cosine(rows[before], rows[after])
        left_peak, dips = similarity, similarity < config.peak
        if self._climb and similarity <= self._climb[-1].similarity:
            left_peak = self._climb[-1].left_peak
            if similarity < self._climb[-1].similarity:
                self._settle(len(self._climb), self._climb[-1].similarity, scores, boundaries)
                dips = True
        left_peak = max(left_peak, config.peak)
        # 2. Similarity across a flash. No right peak lies above 1: most dips need no look across.
        bridged = math.inf
        # At the end of the stream a flash cannot be told from a cut.
        has_rest = len(rows) - after > config.flash_frames
        if dips and has_rest and left_peak + 1 - 2 * similarity > config.floor:
            bridged = max(
                _cosine(rows[before - left], rows[after + right])
                for left in range(min(config.flash_frames, before) + 1)
                for right in range(config.flash_frames - left + 1)
            )
        # 3. A climb that is too long settles at its lower end.
        self._climb.append(Gap(gap, similarity, left_peak, bridged))
        if len(self._climb) > config.max_lag:
            self._settle(1, similarity, scores, boundaries)

    def _settle(
        self, count: int, right_peak: float, scores: list[Score], boundaries: list[Boundary]
    ) -> None:
        """Decide the first ``count`` gaps of the climb, onto the lists."""
        config = self.config
        right_peak = max(right_peak, config.peak)
        for _ in range(count):
            gap = self._climb.popleft()
            peaks = gap.left_peak + right_peak
            depth = peaks - 2 * gap.similarity
            deviation = math.sqrt(self._square / self._weight) if self._weight else 0.0
            threshold = max(config.floor, self._mean + config.alpha * deviation)
            least = max(threshold, OUTLASTING * depth)
            # 1. Only a dip can cut, not a slope.
            cuts = right_peak > gap.similarity and peaks - 2 * gap.bridged > least
            # 2. Boundaries teach nothing: where every fourth gap is one, they would bar all others.
            if not cuts:
                learned = min(depth, threshold)
                decay = 0.5 ** (1 / config.half_life)
                self._weight = self._weight * decay + 1
                change = learned - self._mean
                self._mean += change / self._weight
                self._square = self._square * decay + change * (learned - self._mean)
            # 3. Scenes are neither too short nor too long.
            scores.append(Score(gap.frame, gap.similarity, depth))
            length = gap.frame - self._scene_start
            if cuts and length >= config.min_frames:
                boundaries.append(Boundary(gap.frame, depth, "cut"))
            elif length >= config.max_frames:
                boundaries.append(Boundary(gap.frame, None, "max"))
            else:
                continue
            self._scene_start = gap.frame


def rows_of(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings [D] or [T, D] as [T, D].

    Raises:
        ValueError: another number of dimensions.
    """
    rows = np.asarray(embeddings)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2:
        raise ValueError(f"embeddings of shape {rows.shape}: give [T, D], or push [D]")
    return rows


def not_finite(frame: int) -> BackboneError:
    """Return the error of a frame whose embedding cannot be used."""
    return BackboneError(
        f"frame {frame}: the vision encoder gave NaN, infinite or huge values; "
        "try float32, and check its weights"
    )


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
    return np.asarray(np.clip(np.vecdot(rows[:-1], rows[1:]), -1.0, 1.0))


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
    return np.asarray(_left_peaks(values) + _left_peaks(values[::-1])[::-1] - 2 * values)


def tile(
    embeddings: np.ndarray,
    *,
    alpha: float = 0.5,
    num_boundaries: int | None = None,
    max_segments: int = 16,
) -> list[int]:
    """Cut a whole video by the paper's offline rule; not what ``SceneTilling`` does.

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


def _unit(embedding: np.ndarray, frame: int) -> np.ndarray:
    """Scale [D] to length 1 as float64, zero to zero; alone, so that no batch moves its bits."""
    row = embedding.astype(np.float64)
    square = float(row.dot(row))
    if not math.isfinite(square):
        raise not_finite(frame)
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
