"""Still pictures in HEIF, as telephones write them: tiles are put together, and turned upright.

FFmpeg decodes the tiles, Pillow reads AVIF. A sequence of pictures is a video and not read here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from streammem.errors import SourceError
from streammem.video.pixels import check_size

_TURNS = {b"irot", b"imir"}  # quarters counterclockwise; 0: top and bottom change places, 1: sides
_FULL_BOX = 4  # bytes of version and flags


def read_still(path: str | Path) -> np.ndarray:
    """Read the main picture of a HEIF file, upright.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        SourceError: it is damaged, or put together in a way that is not known.
    """
    try:
        items = _Items(Path(path).read_bytes())
        main = items.main
        if items.kinds[main] != b"grid":
            pixels = _decoded(path, [main])[main]
        else:
            pixels = _joined(items, _decoded(path, items.tiles[main]), str(path))
    except (av.FFmpegError, KeyError, IndexError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{path}: cannot be read as a picture ({reason}); convert it to JPEG"
        ) from None
    for kind, value in items.turns:
        pixels = np.rot90(pixels, value & 3) if kind == b"irot" else np.flip(pixels, value & 1)
    return np.ascontiguousarray(pixels)


def _decoded(path: str | Path, wanted: list[int]) -> dict[int, np.ndarray]:
    """Return the pixels of some items; FFmpeg gives each coded item as a stream of one packet."""
    pixels = {}
    with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
        streams = {s.index: s for s in container.streams.video if s.id in wanted}
        for packet in container.demux(*streams.values()):
            if not packet.size:
                continue
            stream = streams[packet.stream_index]
            decoder = stream.codec_context
            for picture in [*decoder.decode(packet), *decoder.decode(None)]:
                pixels[stream.id] = picture.to_ndarray(format="rgb24")
    return pixels


def _joined(items: "_Items", pixels: dict[int, np.ndarray], name: str) -> np.ndarray:
    """Put the tiles of a grid together. Source: ISO/IEC 23008-12, 6.6.2.3.2."""
    data = items.data[items.main]
    sizes = struct.unpack(">II" if data[1] & 1 else ">HH", data[4 : 12 if data[1] & 1 else 8])
    rows, columns, (width, height) = data[2] + 1, data[3] + 1, sizes
    check_size(name, width, height)
    tiles = [pixels[number] for number in items.tiles[items.main]]
    if len(tiles) != rows * columns:
        raise ValueError(f"{len(tiles)} of {rows * columns} tiles")
    whole = [np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)]
    return np.vstack(whole)[:height, :width]


@dataclass
class _Items:
    """What a HEIF file's ``meta`` box tells of its main picture. Source: ISO/IEC 14496-12, 8.11.

    Attributes:
        content: the whole file.
        main: number of the main picture.
        kinds: number -> type of an item.
        tiles: number -> those that it is made of.
        data: of the main item, where it is not coded.
        turns: (irot or imir, its value) of the main picture, in order.
    """

    content: bytes
    main: int = -1
    kinds: dict[int, bytes] = field(default_factory=dict)
    tiles: dict[int, list[int]] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    turns: list[tuple[bytes, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        outer = {kind: (at, end) for kind, at, end in self._boxes(0, len(self.content))}
        start, end = outer[b"meta"]
        boxes = {kind: (at, end) for kind, at, end in self._boxes(start + _FULL_BOX, end)}
        at = boxes[b"pitm"][0]
        self.main = self._number(at + _FULL_BOX, 4 if self.content[at] else 2)
        self._read_kinds(*boxes[b"iinf"])
        if b"iref" in boxes:
            self._read_tiles(*boxes[b"iref"])
        self._read_data(*boxes[b"iloc"], boxes.get(b"idat", (0, 0))[0])
        self._read_turns(*boxes[b"iprp"])

    def _boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Give the type, start and end of the content of each box."""
        while at + 8 <= end:
            size, kind, head = self._number(at, 4), self.content[at + 4 : at + 8], 8
            if size == 1:
                size, head = self._number(at + 8, 8), 16
            size = size or end - at
            if size < head:
                raise ValueError("a box without length")
            yield kind, at + head, min(end, at + size)
            at += size

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self.content[at : at + size], "big")

    def _read_kinds(self, start: int, end: int) -> None:
        wide = 2 if self.content[start] == 0 else 4
        for _, at, _ in self._boxes(start + _FULL_BOX + wide, end):
            size = 4 if self.content[at] == 3 else 2
            number = self._number(at + _FULL_BOX, size)
            at += _FULL_BOX + size + 2
            self.kinds[number] = self.content[at : at + 4]

    def _read_tiles(self, start: int, end: int) -> None:
        size = 4 if self.content[start] else 2
        for kind, at, _ in self._boxes(start + _FULL_BOX, end):
            if kind == b"dimg":
                number, count = self._number(at, size), self._number(at + size, 2)
                first = at + size + 2
                self.tiles[number] = [self._number(first + k * size, size) for k in range(count)]

    def _read_data(self, start: int, end: int, idat: int) -> None:
        version, at = self.content[start], start + _FULL_BOX
        offset_size, length_size = divmod(self.content[at], 16)
        base_size, index_size = divmod(self.content[at + 1], 16)
        id_size = 4 if version == 2 else 2
        count, at = self._number(at + 2, id_size), at + 2 + id_size
        for _ in range(count):
            number, at = self._number(at, id_size), at + id_size
            method = 0
            if version:
                method, at = self._number(at, 2) & 15, at + 2
            at += 2  # number of the file that holds it
            base, at = self._number(at, base_size), at + base_size
            num_parts, at = self._number(at, 2), at + 2
            parts = b""
            for _ in range(num_parts):
                at += index_size if version else 0
                offset, at = self._number(at, offset_size), at + offset_size
                length, at = self._number(at, length_size), at + length_size
                place = base + offset + (idat if method == 1 else 0)
                parts += self.content[place : place + length] if number == self.main else b""
            if number == self.main:
                self.data[number] = parts

    def _read_turns(self, start: int, end: int) -> None:
        boxes = list(self._boxes(start, end))
        properties = [
            (kind, self.content[at])
            for name, first, last in boxes
            if name == b"ipco"
            for kind, at, _ in self._boxes(first, last)
        ]
        for name, at, _ in boxes:
            if name != b"ipma":
                continue
            id_size, wide = 4 if self.content[at] else 2, self.content[at + 3] & 1
            count, at = self._number(at + _FULL_BOX, 4), at + _FULL_BOX + 4
            for _ in range(count):
                number, at = self._number(at, id_size), at + id_size
                num_used, at = self.content[at], at + 1
                for _ in range(num_used):
                    used = self._number(at, 1 + wide) & (0x7FFF if wide else 0x7F)
                    at += 1 + wide
                    if number == self.main and used:
                        turns = [p for p in properties[used - 1 : used] if p[0] in _TURNS]
                        self.turns.extend(turns)
