"""The background of a fixed camera: what it shows while nothing happens, and where something does.

    background = Background(still=6.0)
    for picture, time in pictures:
        box = background.push(thumbnail(picture), time)
        print(time, "changed in" if box else "as usual", box)

It reads thumbnails only (see ``frames.py``); what a changed part shows is the encoder's matter.
"""

from dataclasses import dataclass

import numpy as np

SETTLED_S = 30.0  # so long a camera must look at one place before a change in it is an event
ABSORBED_S = 180.0  # what has stood so long belongs to the place
LEAST, MOST = 0.03, 0.5  # of the cells; less is noise, more is another place
_DENSE = 5  # of the 9 cells of a neighbourhood
_ACROSS = 3  # cells that a thing is wide and high at least
_ACROSS_SHARE = 0.25  # of its widest row and its highest column, likewise
_INSET = 0.1  # of a thing's sides: what frames it whole shows much of the place around it
_RETURN = 1.5
_SAME_BOX = 0.5  # intersection over union
_WIDEST = 0.7  # of the picture; what happens in a larger box is seen as well in the whole

Box = tuple[float, float, float, float]
"""Top, bottom, left and right, in [0, 1] of the picture."""


@dataclass(frozen=True, slots=True, eq=False)
class BackgroundState:
    """What each cell of a camera's picture shows while nothing is in front of it.

    Attributes:
        cells: [G, G, 3] uint8.
        moved_s: [G, G] seconds since which a cell differs from it; 0 where it does not.
        since: seconds, when the camera began to look here.
        time: seconds, of the newest picture.
        changed: the inner part of where the newest picture differs from it; None where it does
            not, or altogether.
    """

    cells: np.ndarray
    moved_s: np.ndarray
    since: float
    time: float
    changed: Box | None = None


class Background:
    """Learns what a fixed camera shows; follows slow light, and forgets a place that is left.

    Args:
        still: levels by which a cell must differ in some channel to count as changed.
    """

    def __init__(self, still: float) -> None:
        self._still = still
        self._state: BackgroundState | None = None

    def push(self, thumbnail: np.ndarray, time: float) -> Box | None:
        """Take in the next picture; return the inner part of where it differs, if it does.

        Args:
            thumbnail: [G, G, 3] uint8.
            time: seconds, not before the picture before.
        """
        before = self._state
        # 1. Cells that differ. What was behind a thing has aged meanwhile; it need not come back
        # to the level.
        if before is not None:
            step = np.abs(before.cells.astype(np.int16) - thumbnail)
            least = self._still * np.where(before.moved_s > 0, _RETURN, 1.0)
            differs = step.max(axis=-1) >= least  # [G, G]
        # 2. A new place is learned anew.
        if before is None or differs.mean() > MOST:
            moved_s = np.zeros(thumbnail.shape[:2], np.float32)
            self._state = BackgroundState(thumbnail.copy(), moved_s, time, time)
            return None
        # 3. Edges that creep differ in lines of cells; a thing in front covers most of a
        # neighbourhood, the cell and the eight around it.
        height, width = differs.shape
        padded = np.pad(differs, 1).astype(np.int8)
        shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        differs &= np.sum(shifts, axis=0) >= _DENSE
        # 4. What stands long enough becomes part of the place.
        moved_s = np.where(differs, before.moved_s + max(time - before.time, 1e-3), 0)
        moved_s[moved_s > ABSORBED_S] = 0
        cells = np.where((moved_s > 0)[..., None], before.cells, thumbnail)
        # 5. Frame the rest. A box that trembles would make a scene of every tremble.
        box = _box(moved_s > 0) if time - before.since >= SETTLED_S else None
        if box and before.changed and _overlap(box, before.changed) >= _SAME_BOX:
            box = before.changed
        moved_s = moved_s.astype(np.float32)
        self._state = BackgroundState(cells, moved_s, before.since, time, box)
        return box

    def snapshot(self) -> BackgroundState | None:
        """Return the state, which later calls do not change; None before the first picture."""
        return self._state

    def restore(self, state: BackgroundState | None) -> None:
        """Go on from the snapshot of a background; None forgets."""
        self._state = state


def _box(moved: np.ndarray) -> Box | None:
    """Frame what has moved, [G, G] bool; None where it is noise, or too large for a part."""
    if not LEAST <= moved.mean() <= MOST:
        return None
    ends = []
    for axis in (1, 0):
        counts = moved.sum(axis)  # [G] of each row, then of each column
        # Strays must not stretch the box.
        lines = np.flatnonzero(counts >= max(_ACROSS, _ACROSS_SHARE * counts.max()))
        ends += [lines[0] / len(counts), (lines[-1] + 1) / len(counts)] if len(lines) else [0.0] * 2
    top, bottom, left, right = ends
    if not 0 < _area((top, bottom, left, right)) <= _WIDEST:
        return None
    high, wide = _INSET * (bottom - top), _INSET * (right - left)
    return top + high, bottom - high, left + wide, right - wide


def _area(box: Box) -> float:
    return max(0.0, box[1] - box[0]) * max(0.0, box[3] - box[2])


def _overlap(left: Box, right: Box) -> float:
    """Return the intersection of two boxes over their union."""
    shared = _area(
        (max(left[0], right[0]), min(left[1], right[1]),
         max(left[2], right[2]), min(left[3], right[3]))
    )  # fmt: skip
    return shared / (_area(left) + _area(right) - shared)
