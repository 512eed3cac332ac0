"""Scene changes from every decoded frame: a tiny signature of each, and SceneTilling on those.

    detector = ChangeDetector(ChangeConfig(fps=25))
    for plane in planes:  # [18, 32, 3] uint8 each, every decoded frame
        for change in detector.push(signature(plane)).changes:
            print(change.frame, change.kind)
    print(detector.flush().changes)

It places hard cuts to the frame and sees dissolves and fades by colours and coarse luma alone;
what a scene shows only the encoder's embeddings know, and ``join`` weighs both.
"""

import bisect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from streammem.errors import ConfigError
from streammem.perception.scenetilling import (
    Boundary,
    Pushed,
    SceneTilling,
    SceneTillingConfig,
    SceneTillingState,
    Score,
)

# The small picture that a signature is made of: rows and columns.
PLANE = (18, 32)
BINS, LEVELS = 4, 16  # bins a colour channel has, and levels that it is counted in first
LAYOUT = (6, 8)  # rows and columns of the coarse luma
# Of the layout against the histogram: at 0, cuts between scenes of the same colours are missed;
# from 0.3 on, a jerk of the camera looks like a cut.
LAYOUT_WEIGHT = 0.2
CONTRAST = 20.0  # of the layout, in grey levels over its 48 cells, below which it fades to nothing
# A hard cut changes the picture at least twice as much as each of the two frames before and after
# do; the frames of a dissolve or a fade change it about equally.
REACH, SHARPNESS = 2, 0.5
# Cosines of embeddings: of the samples beside a cut, from which on it goes; and across a gradual
# change, likewise. Raising them vetoes less.
SAME_SCENE, NO_CHANGE = 0.7, 0.55
LUMA = np.array([0.299, 0.587, 0.114])  # BT.601


def _hats() -> np.ndarray:
    """[LEVELS, BINS]: how a level divides among the two bins next to it.

    With hard bins, noise at an edge would move whole pixels from bin to bin.
    """
    centres = np.clip((np.arange(LEVELS) + 0.5) / LEVELS * BINS - 0.5, 0, BINS - 1)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(BINS)))


# Eighths: float32 sums them, and products of three of them, without rounding.
HATS = _hats().astype(np.float32)
HAT_PAIRS = np.kron(HATS, HATS)  # [LEVELS * LEVELS, BINS * BINS], of green and blue
POOL_ROWS = np.kron(np.eye(LAYOUT[0]), np.full((1, PLANE[0] // LAYOUT[0]), LAYOUT[0] / PLANE[0]))
# [32 * 3, 8]: luma of the colours, and the mean of neighbouring columns
POOL_COLUMNS = np.kron(
    np.eye(LAYOUT[1]), np.tile(LUMA * LAYOUT[1] / PLANE[1], PLANE[1] // LAYOUT[1])[:, None]
)
WIDTH = BINS**3 + LAYOUT[0] * LAYOUT[1]


def signature(plane: np.ndarray) -> np.ndarray:
    """Describe a picture by its colours and its coarse luma.

    The cosine of two signatures is, up to ``LAYOUT_WEIGHT``, the Bhattacharyya coefficient of
    the pictures' colour histograms.

    Args:
        plane: [18, 32, 3] uint8 RGB, the whole frame averaged down without regard to its shape.

    Returns:
        [112] float64: square roots of a 4x4x4 histogram, then 6x8 luma without its mean.

    Raises:
        ValueError: another shape or type.
    """
    if plane.shape != (*PLANE, 3) or plane.dtype != np.uint8:
        raise ValueError(f"signature: {plane.shape} {plane.dtype}: give {(*PLANE, 3)} uint8")
    red, green, blue = (plane >> 4).reshape(-1, 3).T
    described = np.empty(WIDTH)
    colours = HATS.take(red, 0).T @ HAT_PAIRS.take(green << 4 | blue, 0)  # [4, 16], exact
    np.sqrt(colours.ravel() / np.float64(red.size), out=described[: BINS**3])
    layout = POOL_ROWS @ (plane.reshape(PLANE[0], -1) @ POOL_COLUMNS)  # [6, 8]
    layout -= np.add.reduce(layout, None) / layout.size
    layout *= LAYOUT_WEIGHT / (math.sqrt(np.vdot(layout, layout)) + CONTRAST)
    described[BINS**3 :] = layout.ravel()
    return described


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """Options of the change detector. The defaults were tuned on one half of composed videos.

    Attributes:
        fps: > 0, decoded frames a second.
        cut_floor: in [0, 4], least depth of a hard cut. Raising it cuts less; noise stays below
            0.02, cuts between places start at 0.18, between similar ones at 0.05.
        gradual_floor: in [0, 4], least depth of a dissolve or fade between frames ``step_s``
            apart. Raising it sees fewer of them, and takes fewer pans for one.
        step_s: > 0, seconds between the frames that gradual changes are looked for in. Raising
            it sees slower ones, and more that is none.
        flash_s: in [0, 4], longest disturbance that does not cut if the picture comes back.
            Raising it ignores longer flashes, and delays every cut by as much.
        min_scene_s: in [0, 4], shortest time between two cuts. Raising it merges short shots.
    """

    fps: float
    cut_floor: float = 0.1
    gradual_floor: float = 0.1
    step_s: float = 0.4
    flash_s: float = 0.16
    min_scene_s: float = 0.12

    def __post_init__(self) -> None:
        for name in ("fps", "step_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"scene changes: {name}={getattr(self, name)}: give a number > 0")
        for name in ("cut_floor", "gradual_floor", "flash_s", "min_scene_s"):
            if not 0 <= getattr(self, name) <= 4:
                value = getattr(self, name)
                raise ConfigError(f"scene changes: {name}={value}: give a number in [0, 4]")

    @property
    def step(self) -> int:
        """Frames from one sample for gradual changes to the next."""
        return max(1, round(self.step_s * self.fps))


@dataclass(frozen=True, slots=True)
class Change:
    """A place where the picture became another one.

    Attributes:
        frame: number of the first frame of the new scene; for a gradual change, the frame
            within it before which the picture changed most.
        depth: depth score in [0, 4], at the rate that it was seen at.
        kind: ``cut`` from one frame to the next, or ``gradual``.
    """

    frame: int
    depth: float
    kind: Literal["cut", "gradual"]


class ChangeDetectorState(NamedTuple):
    """What a ``ChangeDetector`` remembers: a value of bounded size.

    Attributes:
        fine: SceneTilling's state between neighbouring frames.
        coarse: SceneTilling's state between frames ``step`` apart.
        offset: frames of the sequences that were flushed before this one.
        frames: frames of this sequence.
        steps: number of steps of this sequence that are decided.
        scores: of neighbouring frames, from shortly before the first undecided step on.
        cuts: boundaries between neighbouring frames of the same range.
        gradual: depth of each settled step that is not decided, None without a boundary.
    """

    fine: SceneTillingState = SceneTillingState()
    coarse: SceneTillingState = SceneTillingState()
    offset: int = 0
    frames: int = 0
    steps: int = 0
    scores: tuple[Score, ...] = ()
    cuts: tuple[Boundary, ...] = ()
    gradual: tuple[float | None, ...] = ()


class Detected(NamedTuple):
    """What a push or a flush has settled, in order of frames.

    Attributes:
        scores: of neighbouring frames, without gaps from call to call.
        changes: none is ever taken back; a change is settled no sooner than the scores up to it.
    """

    scores: tuple[Score, ...]
    changes: tuple[Change, ...]


class ChangeDetector:
    """Finds cuts and gradual changes in the signatures of decoded frames, within eight steps.

    One frame at a time, in batches, all at once or restored from a snapshot: the results are
    equal.

    Args:
        config: options.
    """

    def __init__(self, config: ChangeConfig) -> None:
        self.config = config
        # Between neighbouring frames, and between frames a step apart.
        self._fine = SceneTilling(
            SceneTillingConfig(
                alpha=3.0,
                floor=config.cut_floor,
                half_life=2 * config.fps,
                min_frames=max(1, round(config.min_scene_s * config.fps)),
                max_frames=sys.maxsize,
                max_lag=max(1, round(config.fps)),
                flash_frames=round(config.flash_s * config.fps),
            )
        )
        self._coarse = SceneTilling(
            SceneTillingConfig(
                alpha=2.0,
                floor=config.gradual_floor,
                half_life=20.0,
                min_frames=3,  # a slow fade is one change, not one into black and one out of it
                max_frames=sys.maxsize,
                max_lag=5,
                flash_frames=1,
            )
        )
        self.restore(ChangeDetectorState())

    def restore(self, state: ChangeDetectorState) -> None:
        """Go on from a state of a ``ChangeDetector`` with the same options."""
        self._fine.restore(state.fine)
        self._coarse.restore(state.coarse)
        self._offset, self._frames, self._steps = state.offset, state.frames, state.steps
        self._scores, self._cuts, self._gradual = state.scores, state.cuts, state.gradual

    def snapshot(self) -> ChangeDetectorState:
        """Return the state, which later calls do not change."""
        return ChangeDetectorState(
            self._fine.snapshot(),
            self._coarse.snapshot(),
            self._offset,
            self._frames,
            self._steps,
            self._scores,
            self._cuts,
            self._gradual,
        )

    @property
    def decided_until(self) -> int:
        """Number of the last frame, up to which all changes have been given."""
        return self._offset + self._steps * self.config.step

    def push(self, signatures: np.ndarray) -> Detected:
        """Take in the signatures of the next decoded frames.

        Args:
            signatures: [112] or [T, 112] float from ``signature``.

        Raises:
            ValueError: another shape.
            BackboneError: a value is NaN or infinite. A push that raises changes nothing.
        """
        rows = signatures[None] if signatures.ndim == 1 else signatures
        if rows.ndim != 2 or rows.shape[1] != WIDTH:
            shape = signatures.shape
            raise ValueError(f"signatures of shape {shape}: give [T, {WIDTH}] or [{WIDTH}]")
        fine = self._fine.push(rows)
        sampled = rows[-self._frames % self.config.step :: self.config.step]
        coarse = self._coarse.push(sampled) if len(sampled) else Pushed((), ())
        self._frames += len(rows)
        return self._decide(fine, coarse, last=False)

    def flush(self) -> Detected:
        """Settle what is open, as the end of the stream does. Idempotent.

        Frames pushed later are a new sequence: numbers go on, what was learned does not.
        """
        detected = self._decide(self._fine.flush(), self._coarse.flush(), last=True)
        self.restore(ChangeDetectorState(offset=self._offset + self._frames))
        return detected

    def _decide(self, fine: Pushed, coarse: Pushed, *, last: bool) -> Detected:
        """Go through the steps that are settled at both rates; ``last``: through all."""
        # 1. What both rates have settled, from the first undecided step on.
        step, done = self.config.step, self._steps
        scores, cuts = self._scores + fine.scores, self._cuts + fine.boundaries
        depths = {boundary.index: boundary.depth for boundary in coarse.boundaries}
        gradual = self._gradual + tuple(depths.get(score.frame) for score in coarse.scores)
        settled = scores[-1].frame if scores else 0
        # 2. Nothing lasts for less than a step: a cut within one of a gradual change is that
        # change.
        changes: list[Change] = []
        while gradual and (last or settled >= (done + 2) * step + REACH):
            start, end = done * step, (done + 1) * step
            near = [cut for cut in cuts if start - step < cut.index <= end + step]
            sharp = [cut for cut in near if _is_sharp(cut, scores)]
            if gradual[0] is not None and not sharp:
                changes.append(Change(_place(scores, start, end), gradual[0], "gradual"))
            changes += [
                Change(cut.index, cut.depth or 0.0, "cut")
                for cut in sharp
                if start < cut.index <= end
            ]
            gradual, done = gradual[1:], done + 1
        if last:  # the frames after the last sample
            changes += [
                Change(cut.index, cut.depth or 0.0, "cut")
                for cut in cuts
                if cut.index > done * step and _is_sharp(cut, scores)
            ]
        # 3. Drop what bears on no later step.
        if done > self._steps:
            first = (done - 1) * step
            scores = tuple(score for score in scores if score.frame > first - REACH)
            cuts = tuple(cut for cut in cuts if cut.index > first)
        self._steps, self._scores, self._cuts, self._gradual = done, scores, cuts, gradual
        # 4. Number frames through all sequences.
        new_scores, offset = fine.scores, self._offset
        if offset:
            changes = [replace(change, frame=change.frame + offset) for change in changes]
            new_scores = tuple(s._replace(frame=s.frame + offset) for s in new_scores)
        return Detected(new_scores, tuple(changes))


def join(
    changes: Sequence[Change],
    boundaries: Sequence[Boundary],
    embeddings: Sequence[np.ndarray] | np.ndarray,
    sample_frames: Sequence[int],
    frame_scores: Sequence[Score] = (),
) -> tuple[Change, ...]:
    """Let embeddings judge what signatures saw, and add what only embeddings see.

    A cut between two samples that look alike to the encoder is a light, a jerk or a flash, and it
    goes; so does a gradual change that the encoder does not see, see ``_is_seen``. A boundary of
    the embeddings is a change of its own only where signatures saw none within one sample; it is
    placed where the signature changed most between the two samples, however little that was.

    Args:
        changes: of a ``ChangeDetector``, in order.
        boundaries: SceneTilling's on embeddings, in order; of those, only cuts count.
        embeddings: [S, D] float of the samples, centred; need not be normalised.
        sample_frames: number of the decoded frame of each embedding, ascending.
        frame_scores: of a ``ChangeDetector``, in order, of all frames between the samples of
            each boundary; without them a boundary is placed at its second sample.

    Returns:
        Changes in order of frames.
    """
    gaps = [bisect.bisect_left(sample_frames, change.frame) - 1 for change in changes]
    kept = [
        change
        for change, gap in zip(changes, gaps, strict=True)
        if _is_seen(change, gap, gaps, embeddings)
    ]
    frames = [change.frame for change in kept]
    for boundary in boundaries:
        if boundary.depth is None:
            continue
        first = sample_frames[max(0, boundary.index - 2)]
        last = sample_frames[min(len(sample_frames) - 1, boundary.index + 1)]
        if bisect.bisect_right(frames, first) == bisect.bisect_right(frames, last):
            ends = sample_frames[boundary.index - 1], sample_frames[boundary.index]
            kept.append(Change(_place(frame_scores, *ends), boundary.depth, "gradual"))
    return tuple(sorted(kept, key=lambda change: change.frame))


def _is_seen(
    change: Change, gap: int, changed: Sequence[int], embeddings: Sequence[np.ndarray] | np.ndarray
) -> bool:
    """Whether the encoder sees a change between samples, too; a gap has its first one's number.

    A gradual change may show in the gap before or after its own, unless that has a change of its
    own. What came back a sample later has only moved away meanwhile: pans and movement.

    Args:
        change: what signatures saw.
        gap: where it lies.
        changed: gaps of all changes that signatures saw.
        embeddings: [S, D] float, as in ``join``.
    """
    if change.kind == "cut":
        return _across(embeddings, gap, 0) < SAME_SCENE
    gaps = [gap, *({gap - 1, gap + 1} - {*changed})]
    return min((_across(embeddings, g, 1) for g in gaps if g >= 0), default=-1.0) < NO_CHANGE


def _across(embeddings: Sequence[np.ndarray] | np.ndarray, gap: int, between: int) -> float:
    """Greatest cosine of samples on both sides of a gap, at most so many more ``between`` them.

    It is -1 for a gap that ends in no sample, as at the end of a stream.
    """
    cosines = [-1.0]
    for left in range(min(between, gap) + 1):
        for right in range(between - left + 1):
            if gap + 1 + right < len(embeddings):
                a, b = embeddings[gap - left], embeddings[gap + 1 + right]
                lengths = math.sqrt(float(a.dot(a)) * float(b.dot(b)))
                cosines.append(float(a.dot(b)) / lengths if lengths else 0.0)
    return max(cosines)


def _place(scores: Sequence[Score], start: int, end: int) -> int:
    """The frame in (start, end] before which the picture changed most; ``end`` if none is known."""
    first, last = (bisect.bisect_right(scores, at, key=lambda s: s.frame) for at in (start, end))
    changed = scores[first:last]
    return min(changed, key=lambda score: score.similarity).frame if changed else end


def _is_sharp(cut: Boundary, scores: tuple[Score, ...]) -> bool:
    """Whether the picture changed within one frame, and not in the frames around it as well."""
    at = cut.index - scores[0].frame
    around = scores[max(0, at - REACH) : at] + scores[at + 1 : at + 1 + REACH]
    most = max((1 - score.similarity for score in around), default=0.0)
    return most <= SHARPNESS * (1 - scores[at].similarity)
