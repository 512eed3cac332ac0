"""HEIC pictures in tiles, as telephones write them, made from what the HEVC encoder gives."""

import struct
from pathlib import Path

import av
import numpy as np


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def coded(pixels: np.ndarray, folder: Path) -> tuple[bytes, bytes]:
    """Return the hvcC record and the coded bytes of one picture."""
    path = folder / "tile.mp4"
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "x265-params": "log-level=0:crf=8:keyint=1"}
        stream = container.add_stream("libx265", rate=1, options=options)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt, stream.codec_context.codec_tag = "yuv420p", "hvc1"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        (packet,) = (p for p in container.demux(video=0) if p.size)
        path.unlink()
        return container.streams.video[0].codec_context.extradata, bytes(packet)


def write_grid(path: Path, pixels: np.ndarray, tile: int, turns: bytes = b"") -> Path:
    """Write a picture as tiles of ``tile`` pixels, the last of each row and column filled up.

    Args:
        path: to write.
        pixels: [H, W, 3] uint8.
        tile: pixels, a multiple of 64.
        turns: irot and imir boxes of the whole.
    """
    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    fill = ((0, rows * tile - height), (0, columns * tile - width), (0, 0))
    padded = np.pad(pixels, fill, mode="edge")
    parts = []
    for row in range(0, rows * tile, tile):
        for column in range(0, columns * tile, tile):
            record, data = coded(padded[row : row + tile, column : column + tile], path.parent)
            parts.append(data)
    number = len(parts)
    main = number + 1
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    num_turns = turns.count(b"irot") + turns.count(b"imir")
    properties = [
        box(b"hvcC", record),
        full_box(b"ispe", struct.pack(">II", tile, tile)),
        full_box(b"ispe", struct.pack(">II", width, height)),
        turns,
    ]
    uses = b"".join(struct.pack(">HBBB", k, 2, 0x81, 2) for k in range(1, main))
    uses += struct.pack(">HBB", main, 1 + num_turns, 3) + bytes(range(4, 4 + num_turns))
    kinds = [
        full_box(b"infe", struct.pack(">HH4sB", k, 0, kind, 0), version=2)
        for k, kind in [*((k, b"hvc1") for k in range(1, main)), (main, b"grid")]
    ]

    def meta(offset: int) -> bytes:
        places = b""
        for k, part in enumerate(parts, 1):
            places += struct.pack(">HHHHII", k, 0, 0, 1, offset, len(part))
            offset += len(part)
        places += struct.pack(">HHHHII", main, 1, 0, 1, 0, len(grid))
        tiles = struct.pack(f">HH{number}H", main, number, *range(1, main))
        return full_box(
            b"meta",
            full_box(b"hdlr", struct.pack(">I4s12sB", 0, b"pict", bytes(12), 0)),
            full_box(b"pitm", struct.pack(">H", main)),
            full_box(b"iloc", struct.pack(">BBH", 0x44, 0, main), places, version=1),
            full_box(b"iinf", struct.pack(">H", main), *kinds),
            full_box(b"iref", box(b"dimg", tiles)),
            box(
                b"iprp", box(b"ipco", *properties), full_box(b"ipma", struct.pack(">I", main), uses)
            ),
            box(b"idat", grid),
        )

    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    offset = len(head) + len(meta(0)) + 8
    path.write_bytes(head + meta(offset) + box(b"mdat", *parts))
    return path
