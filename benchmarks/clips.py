"""Real clips made into one video: H.264, 640x360, letterboxed, hard cuts, no sound."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS = 640, 360, 25


def write(video: Path, pictures: Iterable[np.ndarray]) -> None:
    """Encode [H, W, 3] uint8 pictures at ``FPS``; the file appears when it is complete."""
    unfinished = video.with_name(f"{video.stem}.part{video.suffix}")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.replace(video)


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


def letterboxed(path: Path, start: float, end: float) -> Iterator[np.ndarray]:
    """Yield [H, W, 3] uint8 pictures at ``FPS`` of the frames shown in [start, end) seconds."""
    num_given = 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        shown = None
        for frame in container.decode(video=0):
            while shown is not None and start + num_given / FPS < min(frame.time, end):
                yield shown
                num_given += 1
            if frame.time >= end:
                return
            shown = _fitted(frame)
        if shown is not None:
            yield shown


def _fitted(frame: av.VideoFrame) -> np.ndarray:
    scale = min(WIDTH / frame.width, HEIGHT / frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    left, top = (WIDTH - width) // 2, (HEIGHT - height) // 2
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    small = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="LANCZOS")
    picture[top : top + height, left : left + width] = small
    return picture
