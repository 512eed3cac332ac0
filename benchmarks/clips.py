"""Real clips made into one video: H.264, 640x360, letterboxed, hard cuts, no sound."""

from collections.abc import Iterable
from pathlib import Path

import av

from streammem.evaluation.film_files import FPS, HEIGHT, WIDTH, letterboxed, write

__all__ = ["FPS", "HEIGHT", "WIDTH", "join", "letterboxed", "write"]


def join(parts: Iterable[Path], video: Path) -> None:
    """Put videos that ``write`` made one after another, without encoding them again."""
    unfinished = video.with_name(f"{video.stem}.part{video.suffix}")
    with av.open(str(unfinished), "w") as target:
        stream, start = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                pictures = source.streams.video[0]
                stream = stream or target.add_stream_from_template(pictures)
                for packet in source.demux(pictures):
                    if packet.dts is None:
                        continue
                    packet.pts += start
                    packet.dts += start
                    packet.stream = stream
                    target.mux(packet)
                start += pictures.duration
    unfinished.replace(video)
