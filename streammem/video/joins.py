"""Recordings that were joined in one file, and single packets whose stamps are wrong.

    stamps = StampCheck(tick, joins_ahead=True)
    for packet in container.demux(video=0):
        for checked in stamps.push(packet):
            ...
    ... stamps.flush()

Nothing here decodes. `recordings` finds where others begin that a demuxer would not read, or would
give to the wrong decoder; `has_joins` answers for MPEG-TS before it is sought in.
"""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from fractions import Fraction
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from typing import NamedTuple

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


class ByteSpan(NamedTuple):
    """A part of a file: the bytes [start, stop)."""

    start: int
    stop: int


def has_joins(path: str, span: ByteSpan | None = None) -> bool:
    """Return whether the clock of an MPEG-TS file jumps anywhere, so that seeking would mislead.

    A large file is looked at in 64 KiB of each MiB, and in all of a MiB that seems to hold a gap.

    Args:
        path: of a file with packets of 188 bytes, or of 192 (BDAV, ``.m2ts``).
        span: the part that is meant; None for the whole.

    Returns:
        True also where its clock cannot be read: what cannot be known is not relied on.
    """
    first, stop = span or (0, os.stat(path).st_size)
    share = _BLOCK_BYTES if stop - first <= _READ_WHOLE_BYTES else _SAMPLE_BYTES
    last: dict[int, int] = {}
    with open(path, "rb") as file:
        for start in range(first, stop, _BLOCK_BYTES):
            file.seek(start)
            before = dict(last)
            if not _jumps(_clocks(file.read(min(share, stop - start))), last):
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
    rows = _ts_packets(content)[1].astype(int)
    has_clock = (rows[:, 3] & 0x20 > 0) & (rows[:, 4] >= 7)
    rows = rows[has_clock & (rows[:, 5] & 0x10 > 0)]
    pids = (rows[:, 1] & 0x1F) << 8 | rows[:, 2]
    clocks = rows[:, 6] << 25 | rows[:, 7] << 17 | rows[:, 8] << 9 | rows[:, 9] << 1
    clocks |= rows[:, 10] >> 7
    return list(zip(pids.tolist(), clocks.tolist(), strict=True))


def _ts_packets(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return places [N] of the packets in a part of a transport stream, and packets [N, 188]."""
    data = np.frombuffer(content, np.uint8)
    for size in (188, 192):
        for offset in range(min(size, max(0, len(data) - 3 * size))):
            if np.all(data[offset : offset + 3 * size : size] == 0x47):
                rows = data[offset:][: (len(data) - offset) // size * size].reshape(-1, size)
                places = offset + size * np.arange(len(rows))
                return places[rows[:, 0] == 0x47], rows[rows[:, 0] == 0x47, :188]
    return np.empty(0, int), np.empty((0, 188), np.uint8)


# -- recordings that were joined byte by byte, as by `cat a.flv b.flv` --


def recordings(path: str) -> list[ByteSpan]:
    """Return the recordings of a file that have to be opened one by one; mostly the file itself.

    Of MP4, Matroska, FLV, AVI and ASF each that follows is one: a demuxer stops before it, or does
    not find it when it seeks. Of MPEG-TS, where another stream or codec of pictures takes over: a
    large file is looked at in 64 KiB of each MiB, as in ``has_joins``.

    Raises:
        OSError: it cannot be read.
    """
    size = os.stat(path).st_size
    if not size:
        return [ByteSpan(0, 0)]
    with open(path, "rb") as file:
        head = file.read(4 * 192)
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            if head[4:8] == b"ftyp":
                starts = _starts(data, _mp4_box, b"ftyp")
            elif head[:4] == _EBML:
                starts = _starts(data, _ebml_element, _EBML)
            elif head[:4] == b"FLV\x01":
                starts = _starts(data, _flv_tag, b"FLV")
            elif head[:4] == b"RIFF":
                starts = _starts(data, _riff_chunk, b"AVI ")
            elif head[:16] == _ASF:
                starts = _starts(data, _asf_object, _ASF)
            elif len(_ts_packets(head)[0]):
                starts = _changes(data)
            else:
                starts = [0]
    return [ByteSpan(*span) for span in pairwise([*starts, size])]


_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # the header's object
_Box = tuple[bytes, int] | None  # what an element is, and where the next begins; None: no element


def _starts(data: mmap, element: Callable[[mmap, int], _Box], first: bytes) -> list[int]:
    """Return where the elements lie with which a recording begins."""
    starts, at = [0], 0
    while at < len(data) and (found := element(data, at)) is not None:
        kind, following = found
        if kind == first and at:
            starts.append(at)
        if following <= at:
            break
        at = following
    return starts


def _mp4_box(data: mmap, at: int) -> _Box:
    size = int.from_bytes(data[at : at + 4])
    if size == 1:
        size = int.from_bytes(data[at + 8 : at + 16])
    return (data[at + 4 : at + 8], at + size) if size >= 8 else None  # 0: it lasts to the end


def _ebml_element(data: mmap, at: int) -> _Box:
    """Read an element; one of unknown size, as of a live recording, ends before its first child.

    Source: RFC 8794, sections 5 and 6.
    """
    id_length = 9 - data[at].bit_length()
    place = at + id_length
    if id_length > 4 or place >= len(data) or not data[place]:
        return None
    kind, length = data[at:place], 9 - data[place].bit_length()
    size = int.from_bytes(data[place : place + length]) - (1 << 7 * length)
    is_unknown = size == (1 << 7 * length) - 1
    if is_unknown and kind not in (_SEGMENT, _CLUSTER):
        return None
    return kind, place + length + (0 if is_unknown else size)


def _flv_tag(data: mmap, at: int) -> _Box:
    if data[at : at + 4] == b"FLV\x01":  # the size of no tag follows the header
        return b"FLV", at + int.from_bytes(data[at + 5 : at + 9]) + 4
    if data[at] & 0x1F not in (8, 9, 18):
        return None
    return b"", at + 11 + int.from_bytes(data[at + 1 : at + 4]) + 4


def _riff_chunk(data: mmap, at: int) -> _Box:
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    is_chunk = data[at : at + 4] == b"RIFF" and size
    return (data[at + 8 : at + 12], at + 8 + size + size % 2) if is_chunk else None


def _asf_object(data: mmap, at: int) -> _Box:
    size = int.from_bytes(data[at + 16 : at + 24], "little")
    return (data[at : at + 16], at + size) if size >= 24 else None


# ISO/IEC 13818-1, table 2-34: MPEG-1 and -2, MPEG-4, H.264, JPEG 2000, H.265, H.266, AVS, VC-1.
_PICTURE_TYPES = {0x01, 0x02, 0x10, 0x1B, 0x21, 0x24, 0x33, 0x42, 0xD2, 0xD4, 0xEA}


def _changes(data: mmap) -> list[int]:
    """Return where recordings begin in a transport stream: 0, and where its pictures change."""
    size = len(data)
    share = _BLOCK_BYTES if size <= _READ_WHOLE_BYTES else _SAMPLE_BYTES
    starts, tables = [0], _Tables()
    for start in range(0, size, _BLOCK_BYTES):
        before = deepcopy(tables)
        found = tables.changes(data[start : start + share])
        if found and start and share < _BLOCK_BYTES:  # the place is known to a MiB; look closer
            tables, start = before, start - _BLOCK_BYTES + share
            found = tables.changes(data[start : start + _BLOCK_BYTES])
        starts += [start + place for place in found]
    return starts


class _Tables:
    """What the tables of a transport stream state of its pictures, as far as it was read.

    Source: ISO/IEC 13818-1, 2.4.4.3 (program association) and 2.4.4.8 (program map).
    """

    def __init__(self) -> None:
        self._programs: dict[int, int] = {}  # by the PID of their map
        self._pictures: dict[int, set[tuple[int, int]]] = {}  # by program: PID and stream type

    def changes(self, content: bytes) -> list[int]:
        """Return where another stream or codec of pictures takes over in the next part."""
        found: list[int] = []
        stated_at: int | None = None  # where the programs were stated, if no map followed yet
        for place, pid, table in _tables(content):
            if pid == 0 and table[0] == 0:
                pairs = [table[k : k + 4] for k in range(8, len(table) - 3, 4)]
                maps = [(int.from_bytes(p[2:]) & 0x1FFF, int.from_bytes(p[:2])) for p in pairs]
                self._programs = {at: number for at, number in maps if number}
                stated_at = place
            elif pid in self._programs and table[0] == 2:
                program, pictures = self._programs[pid], _pictures_of(table)
                if not pictures:  # sound only, or nothing that is known
                    continue
                if before := self._pictures.get(program):
                    is_change = not before <= pictures
                else:  # a program that is added changes nothing, one that replaces the others may
                    is_other = not self._pictures.keys() & set(self._programs.values())
                    is_change = is_other and pictures not in self._pictures.values()
                if is_change:
                    if self._pictures:
                        found.append(place if stated_at is None else stated_at)
                    self._pictures = {}
                self._pictures[program], stated_at = pictures, None
        return found


def _tables(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give (place, PID, bytes without their checksum) of the sections that are whole and valid."""
    places, rows = _ts_packets(content)
    pids = (rows[:, 1].astype(int) & 0x1F) << 8 | rows[:, 2]
    begins = np.where(rows[:, 3] & 0x20, 5 + rows[:, 4].astype(int), 4)  # of the payload
    is_first = (rows[:, 1] & 0x40 > 0) & (rows[:, 3] & 0x10 > 0) & (begins < 180)
    checked: dict[bytes, bool] = {}  # the same few tables come again and again
    for k in np.flatnonzero(is_first):
        at = begins[k] + 1 + int(rows[k, begins[k]])
        section = rows[k, at:].tobytes()
        if section[:1] not in (b"\0", b"\2") or len(section) < 3 or not section[1] & 0x80:
            continue  # pictures and sound begin with 00 00 01
        length = 3 + (int.from_bytes(section[1:3]) & 0x3FF)
        for n in k + 1 + np.flatnonzero(pids[k + 1 : k + 200] == pids[k]):  # the rest of a long one
            if len(section) >= length or is_first[n]:
                break
            section += rows[n, begins[n] :].tobytes()
        section = section[:length]
        if section not in checked:
            checked[section] = len(section) == length and _crc(section) == 0
        if checked[section]:
            yield int(places[k]), int(pids[k]), section[:-4]


def _pictures_of(table: bytes) -> set[tuple[int, int]]:
    """Return (PID, stream type) of the streams of pictures that a program's map names."""
    at, found = 12 + (int.from_bytes(table[10:12]) & 0x3FF), set()
    while at + 5 <= len(table):
        if table[at] in _PICTURE_TYPES:
            found.add((int.from_bytes(table[at + 1 : at + 3]) & 0x1FFF, table[at]))
        at += 5 + (int.from_bytes(table[at + 3 : at + 5]) & 0x3FF)
    return found


def _crc(section: bytes) -> int:
    """Return the checksum of a section with its own, 0 if it is valid (the same, annex A)."""
    crc = 0xFFFFFFFF
    for byte in section:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return crc
