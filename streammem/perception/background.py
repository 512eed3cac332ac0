"""The backdrop of a fixed camera: what it shows while nothing happens, and where something does.

Glances only (see ``gate.py``); what is to be seen where a picture changed is the encoder's matter.
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
class Backdrop:
    """What each cell of a camera's picture shows while nothing is in front of it.

    Attributes:
        glance: [G, G, 3] uint8.
        moved_s: [G, G] seconds since which a cell differs from it; 0 where it does not.
        since: seconds, when the camera began to look here.
        time: seconds, of the newest picture.
        changed: the inner part of where the newest picture differs from it; None where it does
            not, or altogether.
    """

    glance: np.ndarray
    moved_s: np.ndarray
    since: float
    time: float
    changed: Box | None = None


def settled(before: Backdrop | None, glance: np.ndarray, time: float, still: float) -> Backdrop:
    """Take in the next picture: a backdrop follows slow light, and forgets a place that is left.

    Args:
        before: None at the start.
        glance: [G, G, 3] uint8.
        time: seconds, not before the picture before.
        still: levels by which a cell must differ in some channel.
    """
    if before is None:
        return Backdrop(glance.copy(), np.zeros(glance.shape[:2], np.float32), time, time)
    step = np.abs(before.glance.astype(np.int16) - glance)
    # What was behind a thing has aged meanwhile; it need not come back to the level.
    least = still * np.where(before.moved_s > 0, _RETURN, 1.0)
    differs = step.max(axis=-1) >= least  # [G, G]
    if differs.mean() > MOST:
        return settled(None, glance, time, still)
    # Edges that creep differ in lines of cells; a thing in front covers most of a neighbourhood.
    differs &= _neighbours(differs) >= _DENSE
    moved_s = np.where(differs, before.moved_s + max(time - before.time, 1e-3), 0)
    moved_s[moved_s > ABSORBED_S] = 0
    shown = np.where((moved_s > 0)[..., None], before.glance, glance)
    box = _box(moved_s > 0) if time - before.since >= SETTLED_S else None
    if box and before.changed and _overlap(box, before.changed) >= _SAME_BOX:
        box = before.changed  # one that trembles would make a scene of every tremble
    return Backdrop(shown, moved_s.astype(np.float32), before.since, time, box)


def _box(moved: np.ndarray) -> Box | None:
    """Frame what has moved, [G, G] bool."""
    if not LEAST <= moved.mean() <= MOST:
        return None
    rows, columns = (_extent(moved.sum(axis)) for axis in (1, 0))
    box = *rows, *columns
    if not 0 < _area(box) <= _WIDEST:
        return None
    high, wide = _INSET * (box[1] - box[0]), _INSET * (box[3] - box[2])
    return box[0] + high, box[1] - high, box[2] + wide, box[3] - wide


def _extent(moved: np.ndarray) -> tuple[float, float]:
    """Return where lines of cells begin and end, in [0, 1], by how many of each moved [G]."""
    # Strays must not stretch the box.
    lines = np.flatnonzero(moved >= max(_ACROSS, _ACROSS_SHARE * moved.max()))
    return (lines[0] / len(moved), (lines[-1] + 1) / len(moved)) if len(lines) else (0.0, 0.0)


def _area(box: Box) -> float:
    return max(0.0, box[1] - box[0]) * max(0.0, box[3] - box[2])


def _overlap(left: Box, right: Box) -> float:
    """Return the intersection of two boxes over their union."""
    shared = _area(
        (max(left[0], right[0]), min(left[1], right[1]),
         max(left[2], right[2]), min(left[3], right[3]))
    )  # fmt: skip
    return shared / (_area(left) + _area(right) - shared)


def _neighbours(cells: np.ndarray) -> np.ndarray:
    """Count the true ones among each of [G, G] cells and its eight neighbours."""
    height, width = cells.shape
    padded = np.pad(cells, 1).astype(np.int8)
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.sum(shifts, axis=0)


def cropped(picture: np.ndarray, box: Box | None) -> np.ndarray:
    """Cut a picture [H, W, 3] to a box; None is all of it."""
    if box is None:
        return picture
    height, width = picture.shape[:2]
    top, bottom = int(box[0] * height), max(1, round(box[1] * height))
    left, right = int(box[2] * width), max(1, round(box[3] * width))
    return np.ascontiguousarray(picture[top:bottom, left:right])
