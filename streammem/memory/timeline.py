"""The one timeline that a memory keeps of each source, over restarts of a live one.

    offset = offset_after(newest, time=0.0, wall_zero=1_777_809_600.0)   # seconds to add
    mending = Mending()
    [mending.shift(row.start, row.end, row.source, row.wall_start) for row in old_rows]

A live source begins at 0 whenever it is opened. In a memory that has seen it before it goes on:

    run 1 of a camera  |0 ... 60|                       wall clock 16:40:00 - 16:41:00
    run 2                        |0 ... 30|             wall clock 16:50:00 - 16:50:30
    the memory         |0 ... 60|   gap   |600 ... 630|

Files are no matter of this: each has a clock of its own, which begins at 0 in every pass.
"""

import re
from typing import NamedTuple

from streammem.memory.entry import Entry

_SAME_TIME_S = 1e-3
# Of rows that do not know their wall clock; other sources that are named so were files.
_LIVE_NAME = re.compile(r"-$|(?:rtsps?|rtsp\+udp|webcam|screen|growing):", re.IGNORECASE)


def offset_after(newest: Entry | None, time: float, wall_zero: float | None) -> float:
    """Return what to add to the times of a live source that begins anew.

    Args:
        newest: what the memory saw last of it; None if nothing.
        time: seconds of the source's clock, of its first frame.
        wall_zero: Unix seconds at 0 of the source's clock; None where it is unknown.

    Returns:
        Seconds. The gap is as long as it was where both know the wall clock; otherwise, and where
        the wall clock was set back meanwhile, the source goes on where ``newest`` ends.
    """
    if newest is None:
        return 0.0
    zero = None if newest.wall_start is None else newest.wall_start - newest.start
    return _offset(newest.end, zero, time, None if wall_zero is None else wall_zero + time)


class _End(NamedTuple):
    """Where a source stands.

    Attributes:
        end: seconds at which the last row ended, before it was shifted.
        shift: seconds that were added to it.
        zero: Unix seconds at 0 of the memory's timeline; None where it is unknown.
    """

    end: float
    shift: float
    zero: float | None


class Mending:
    """Finds, row by row, by how much rows of earlier formats must be shifted.

    Those formats let every run of a live source begin at 0. A run begins where times go back.
    """

    def __init__(self) -> None:
        self._ends: dict[str, _End] = {}

    def shift(self, start: float, end: float, source: str, wall_start: float | None) -> float:
        """Return the seconds to add to the times of the next row; rows come by rising ids."""
        last, shift = self._ends.get(source), 0.0
        if last is not None:
            shift = last.shift
            if start < last.end - _SAME_TIME_S:  # a new run, or a new pass over a file
                ended = last.end + last.shift
                goes_on = bool(_LIVE_NAME.match(source)) or (
                    # Of a file that is watched again the wall clock goes back, too.
                    wall_start is not None
                    and last.zero is not None
                    and wall_start >= last.zero + ended - 1.0
                )
                shift = _offset(ended, last.zero, start, wall_start) if goes_on else 0.0
        zero = None if wall_start is None else wall_start - (start + shift)
        self._ends[source] = _End(end, shift, zero)
        return shift


def _offset(end: float, zero: float | None, time: float, wall: float | None) -> float:
    directly = end - time
    if zero is None or wall is None:
        return directly
    return max(directly, wall - zero - time)
