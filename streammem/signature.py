"""Scene changes from every decoded frame: a tiny signature of each, and SceneTilling on those.

It places hard cuts to the frame and sees dissolves and fades; what a scene shows is left to the
encoder's embeddings, and ``join`` lets those decide.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from streammem import scenetilling
from streammem.errors import ConfigError
from streammem.scenetilling import Boundary, SceneState, SceneTillingConfig, Score

# The small picture that a signature is made of: rows and columns.
PLANE = (18, 32)
BINS, LEVELS = 4, 16  # bins a colour channel has, and levels that it is counted in first
LAYOUT = (6, 8)  # rows and columns of the coarse luma
# Of the layout against the histogram: 0 misses cuts between scenes of the same colours, 0.4 takes
# a fast camera for cuts.
LAYOUT_WEIGHT = 0.25
CONTRAST = 20.0  # of the layout, in grey levels over its 48 cells, below which it fades to nothing
LUMA = np.array([0.299, 0.587, 0.114])  # BT.601


def _hats() -> np.ndarray:
    """[BINS, LEVELS]: how a level divides among the two bins next to it.

    With hard bins, noise at an edge would move whole pixels from bin to bin.
    """
    centres = np.clip((np.arange(LEVELS) + 0.5) / LEVELS * BINS - 0.5, 0, BINS - 1)
    return np.maximum(0.0, 1.0 - np.abs(np.arange(BINS)[:, None] - centres))


HATS = _hats()
POOL_ROWS = np.kron(np.eye(LAYOUT[0]), np.full((1, PLANE[0] // LAYOUT[0]), LAYOUT[0] / PLANE[0]))
POOL_COLUMNS = np.kron(np.eye(LAYOUT[1]), np.full((1, PLANE[1] // LAYOUT[1]), LAYOUT[1] / PLANE[1]))
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
    levels = (plane >> 4).reshape(-1, 3).astype(np.intp)
    codes = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
    counts = np.bincount(codes, minlength=LEVELS**3).reshape(LEVELS, LEVELS * LEVELS)
    colours = HATS @ (HATS @ counts).reshape(BINS, LEVELS, LEVELS) @ HATS.T  # [4, 4, 4]
    layout = POOL_ROWS @ (plane @ LUMA) @ POOL_COLUMNS.T  # [6, 8]
    layout -= layout.mean()
    layout *= LAYOUT_WEIGHT / (math.sqrt(np.vdot(layout, layout)) + CONTRAST)
    return np.concatenate([np.sqrt(colours.ravel() / len(codes)), layout.ravel()])


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """Options of the change detector. The defaults were tuned on one half of composed videos.

    Attributes:
        fps: > 0, decoded frames a second.
        cut_floor: in [0, 4], least depth of a hard cut between neighbouring frames. Raising it
            cuts less.
        gradual_floor: in [0, 4], least depth of a gradual change between frames ``step_s`` apart.
            Raising it sees fewer dissolves and takes fewer pans for one.
        step_s: > 0, seconds between the frames that gradual changes are looked for in. Raising
            it sees slower dissolves, and more of what is none.
        flash_s: >= 0, longest disturbance in seconds that does not cut if the picture comes back.
            Raising it ignores longer flashes, and delays every cut by as much.
        min_scene_s: >= 0, shortest time between two cuts. Raising it merges short shots.
    """

    fps: float
    cut_floor: float = 0.06
    gradual_floor: float = 0.1
    step_s: float = 0.4
    flash_s: float = 0.16
    min_scene_s: float = 0.12

    def __post_init__(self) -> None:
        for name, low in (("fps", 0), ("step_s", 0), ("flash_s", -1), ("min_scene_s", -1)):
            value = getattr(self, name)
            if not (value > low and 0 <= value < math.inf):
                raise ConfigError(f"scene changes: {name}={value}: give a number {'>' if not low else '>='} 0")
        self.fine, self.coarse  # noqa: B018  the floors are checked there

    @property
    def step(self) -> int:
        """Frames from one coarse sample to the next."""
        return max(1, round(self.step_s * self.fps))

    @property
    def fine(self) -> SceneTillingConfig:
        return SceneTillingConfig(
            alpha=3.0,
            floor=self.cut_floor,
            half_life=2 * self.fps,
            min_frames=max(1, round(self.min_scene_s * self.fps)),
            max_frames=sys.maxsize,
            max_lag=max(1, round(self.fps)),
            flash_frames=round(self.flash_s * self.fps),
        )

    @property
    def coarse(self) -> SceneTillingConfig:
        return SceneTillingConfig(
            alpha=2.0,
            floor=self.gradual_floor,
            half_life=20.0,
            min_frames=2,
            max_frames=sys.maxsize,
            max_lag=5,
            flash_frames=1,
        )
