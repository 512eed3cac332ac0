"""Recordings that were joined in one file, and single packets whose stamps are wrong.

    stamps = StampCheck(tick, joins_ahead=True)
    for packet in container.demux(video=0):
        for checked in stamps.push(packet):
            ...
    ... stamps.flush()

Nothing here decodes. `has_joins` answers for a whole MPEG-TS file before it is sought in.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
from av.packet import Packet

JUMP_BACK_S = 0.5  # decoding times never go back within a recording: another one follows
JUMP_AHEAD_S = 10.0  # more between two packets is a join in MPEG-TS, a gap in other containers
DOUBTFUL_S = 1.0  # a packet, or a picture, so far ahead waits for those that may contradict it
MAX_DOUBTFUL = 3  # packets that are held until the next ones show whether the clock has changed

_WRAP = 1 << 33  # a program clock reference counts 90 kHz in 33 bits
_BLOCK_BYTES, _SAMPLE_BYTES = 1 << 20, 1 << 16
_READ_WHOLE_BYTES = 64 << 20  # a smaller file is read whole: 30 ms


class StampCheck:
    """Lets the packets of one stream follow each other in time, in decode order.

        decoding times   0 1 2 3 900 5 6    one packet left the others: it loses its stamps
                         0 1 2 3 0 1 2      another recording begins: it goes on at 4
                         0 1 2 3 90 91 92   in MPEG-TS likewise; elsewhere nothing was recorded

    Args:
        tick: seconds a unit of the packets' stamps.
        joins_ahead: whether a jump ahead is a join, as in MPEG-TS, and not a gap.
    """

    def __init__(self, tick: Fraction, *, joins_ahead: bool) -> None:
        self._tick, self._joins_ahead = tick, joins_ahead
        self._shift = 0  # ticks added since the last join
        self._last: int | None = None  # dts of the last packet that was given, shifted
        self._step_s = 0.0  # seconds between the last two
        self._held: list[Packet] = []

    def push(self, packet: Packet) -> list[Packet]:
        """Return the packets that are sure by now; their stamps are changed in place."""
        if packet.dts is None:
            if not self._held:
                return [self._given(packet)]
        elif self._last is None or self._follows(packet.dts):
            return [*self._without_stamps(), self._given(packet)]
        self._held.append(packet)
        return self._accepted() if len(self._held) >= MAX_DOUBTFUL else []

    def flush(self) -> list[Packet]:
        """Return the packets that are still held."""
        packets = []
        while self._held:
            packets += self._accepted()
        return packets

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self._tick)

    def _follows(self, dts: int) -> bool:
        assert self._last is not None
        step = self._seconds(dts + self._shift - self._last)
        if not -JUMP_BACK_S <= step <= max(DOUBTFUL_S, 4 * self._step_s):
            return False
        before = self._held[-1].dts if self._held else None
        # A packet that also follows those that left the others belongs to them.
        near = max(JUMP_BACK_S, 2 * self._step_s)
        return before is None or not 0 <= self._seconds(dts - before) <= near

    def _without_stamps(self) -> list[Packet]:
        held, self._held = self._held, []
        for packet in held:
            packet.pts = packet.dts = None
        return held

    def _accepted(self) -> list[Packet]:
        """Follow the clock of the held packets."""
        held, self._held = self._held, []
        first = held[0]
        if first.dts is not None and self._last is not None:
            jump = first.dts + self._shift - self._last
            if jump < 0 or (self._joins_ahead and self._seconds(jump) > JUMP_AHEAD_S):
                self._shift += (first.duration or 1) - jump
            else:
                self._step_s = self._seconds(jump)  # slides, perhaps: more such steps may follow
            self._last = None
        return [self._given(first), *(p for later in held[1:] for p in self.push(later))]

    def _given(self, packet: Packet) -> Packet:
        if packet.dts is not None:
            packet.dts += self._shift
            if self._last is not None:
                self._step_s = max(0.0, self._seconds(packet.dts - self._last))
            self._last = packet.dts
        if packet.pts is not None:
            packet.pts += self._shift
        return packet


def has_joins(path: str) -> bool:
    """Return whether the clock of an MPEG-TS file jumps anywhere, so that seeking would mislead.

    A large file is looked at in 64 KiB of each MiB, and in all of a MiB that seems to hold a gap.

    Args:
        path: of a file with packets of 188 bytes, or of 192 (BDAV, ``.m2ts``).

    Returns:
        True also where its clock cannot be read: what cannot be known is not relied on.
    """
    size = Path(path).stat().st_size
    share = _BLOCK_BYTES if size <= _READ_WHOLE_BYTES else _SAMPLE_BYTES
    last: dict[int, int] = {}
    with open(path, "rb") as file:
        for start in range(0, size, _BLOCK_BYTES):
            file.seek(start)
            before = dict(last)
            if not _jumps(_clocks(file.read(share)), last):
                continue
            if share == _BLOCK_BYTES or not before:
                return True
            file.seek(start - _BLOCK_BYTES + share)
            if _jumps(_clocks(file.read(_BLOCK_BYTES)), before):
                return True
            last = before
    return not last


def _jumps(clocks: list[tuple[int, int]], last: dict[int, int]) -> bool:
    """Return whether clocks fail to follow the last ones of their programs; update those."""
    is_begin = not last
    for pid, clock in clocks:
        step_s = (clock - last.get(pid, clock)) % _WRAP / 90_000  # a step back is a very large one
        # A program that begins later in the file is another recording's.
        if step_s > JUMP_AHEAD_S or not (is_begin or pid in last):
            return True
        last[pid] = clock
    return False


def _clocks(content: bytes) -> list[tuple[int, int]]:
    """Return (PID, 90 kHz) of the program clock references in a part of a transport stream.

    Source: ISO/IEC 13818-1, 2.4.3.2 (packet header) and 2.4.3.4 (adaptation field).
    """
    data = np.frombuffer(content, np.uint8)
    for size in (188, 192):
        for offset in range(min(size, max(0, len(data) - 3 * size))):
            if np.all(data[offset : offset + 3 * size : size] == 0x47):
                break
        else:
            continue
        rows = data[offset:][: (len(data) - offset) // size * size].reshape(-1, size).astype(int)
        has_clock = (rows[:, 0] == 0x47) & (rows[:, 3] & 0x20 > 0) & (rows[:, 4] >= 7)
        rows = rows[has_clock & (rows[:, 5] & 0x10 > 0)]
        pids = (rows[:, 1] & 0x1F) << 8 | rows[:, 2]
        clocks = rows[:, 6] << 25 | rows[:, 7] << 17 | rows[:, 8] << 9 | rows[:, 9] << 1
        clocks |= rows[:, 10] >> 7
        return list(zip(pids.tolist(), clocks.tolist(), strict=True))
    return []
