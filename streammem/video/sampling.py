"""Which frames of a source are wanted: what every source here shares.

Nothing here opens or decodes.
"""

import math
from dataclasses import dataclass

from streammem.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """The part of a source that a caller asked for.

    Attributes:
        fps: samples a second; None takes every frame.
        start: seconds, >= 0; frames before it are left out.
        end: seconds, > start; frames at or after it are left out. None reads to the end.
        max_side: the longer side is shrunk to this many pixels, never enlarged.
        sparse: keyframes only.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    max_side: int | None = None
    sparse: bool = False

    def __post_init__(self) -> None:
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ConfigError(f"fps must be above 0, not {self.fps}; try fps=1")
        if not (self.start >= 0 and math.isfinite(self.start)):
            raise ConfigError(f"start must be 0 s or later, not {self.start}")
        if self.end is not None and not self.end > self.start:
            raise ConfigError(f"end must be after start ({self.start} s), not {self.end}")
        if self.max_side is not None and self.max_side < 1:
            raise ConfigError(f"max_side must be 1 pixel or more, not {self.max_side}")


class Grid:
    """Says of frames in presentation order which of them the sampling takes.

    Sample k is the first frame at or after ``start + k / fps``, so the samples are the first
    frames of each slot [start + k / fps, start + (k + 1) / fps) that holds any.

    Args:
        sampling: what was asked for.
        tick: seconds to which the source rounds its times. Half of it (at most 0.5 ms) is
            forgiven: without that a 30 fps Matroska file, whose tick is 1 ms, would lose every
            third frame at fps=30.
    """

    def __init__(self, sampling: Sampling, tick: float = 0.0) -> None:
        self._sampling = sampling
        self._forgiven = min(max(tick / 2, 1e-6), 5e-4)
        self._last_slot = -1

    @property
    def num_slots(self) -> int:
        """Number of the first slot after the last sample's."""
        return self._last_slot + 1

    def is_past(self, time: float) -> bool:
        """Tell whether a time lies at or after the sampling's end."""
        return self._sampling.end is not None and time >= self._sampling.end - 1e-6

    def slot(self, time: float) -> int | None:
        """Return the number of the slot that holds a time; None outside [start, end)."""
        offset = time - self._sampling.start + self._forgiven
        if offset < 0 or self.is_past(time):
            return None
        return math.floor(offset * (self._sampling.fps or 0.0))

    def takes(self, time: float) -> bool:
        """Tell whether the next frame in presentation order is a sample; remembers it if so."""
        slot = self.slot(time)
        if slot is None:
            return False
        if self._sampling.fps is None:
            return True
        if slot <= self._last_slot:
            return False
        self._last_slot = slot
        return True
