"""Small clips of every awkward kind, made with PyAV, and what plain decoding finds in them."""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder prints its settings otherwise

NUM_FRAMES = 60
MILLISECOND = Fraction(1, 1000)
X264 = {"preset": "ultrafast", "g": "12", "bf": "2", "x264-params": "scenecut=0"}


@dataclass(frozen=True)
class Shot:
    """One decoded frame: seconds on its file's clock, seconds shown, [H, W, 3] uint8."""

    time: float
    duration: float
    pixels: np.ndarray
    is_key: bool = True


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture that differs from its neighbours: a drifting gradient with a moving square."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 3 + number * 4, y * 4 + number, x + y + number * 2], axis=2) % 256
    left = (number * 3) % (width - 12)
    pixels[8:20, left : left + 12] = (255, 40, number * 4 % 256)
    return pixels.astype(np.uint8)


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    frames: int = NUM_FRAMES,
    first: int = 0,
) -> Path:
    """Write a clip at 25 fps, or with a frame at each of ``times_ms``; ``first`` is a picture."""
    form = "mpegts" if path.suffix == ".m2ts" else None  # FFmpeg chooses packets of 192 bytes
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if times_ms is not None:
            stream.codec_context.time_base = MILLISECOND
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first + number, *size), "rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_early_sound(source: Path, path: Path, lead_s: float = 0.5) -> Path:
    """Copy a clip's video so that its sound starts ``lead_s`` before and ends as much after it."""
    with av.open(str(source)) as inside, av.open(str(path), "w") as container:
        video = inside.streams.video[0]
        copy = container.add_stream_from_template(video)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for block in range(int((2 * lead_s + 2.4) * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, block * 1024
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        shift = int(lead_s / video.time_base)
        for packet in inside.demux(video):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                container.mux(packet)
    return path


def only_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def turned(source: Path, path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy an MP4 with another display matrix (a, b, c, d)."""
    content = bytearray(source.read_bytes())
    at = content.find(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def indexed_first(source: Path, path: Path) -> Path:
    """Copy an MP4 with its index before the pictures, so that a truncated one still opens."""
    options = {"movflags": "faststart"}
    with av.open(str(source)) as inside, av.open(str(path), "w", options=options) as container:
        copy = container.add_stream_from_template(inside.streams.video[0])
        for packet in inside.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    return path


def make(name: str, folder: Path) -> Path:
    """Make the clip of this name."""
    path = folder / name
    jumpy = np.cumsum([0, *([20, 40, 100, 15] * 20)])[:NUM_FRAMES].tolist()
    plain = {
        "h264.mp4": {"options": X264},
        "h264.mkv": {"options": X264},
        "h264.ts": {"options": X264},
        "opengop.mp4": {"options": {**X264, "x264-params": "open-gop=1:scenecut=0:b-pyramid=1"}},
        "refresh.mkv": {"options": {**X264, "x264-params": "intra-refresh=1", "bf": "0"}},
        "hevc.mp4": {
            "codec": "libx265",
            "options": {"preset": "ultrafast", "x265-params": "keyint=12:bframes=2:log-level=0"},
        },
        "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "deadline": "realtime"}},
        "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime"}},
        "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "13", "g": "12"}},
        "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
        "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12"}},
        "live.mkv": {"options": {**X264, "bf": "0"}},
        "mjpeg.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "ffv1.mkv": {"codec": "ffv1", "options": {"g": "12"}},
        "wmv2.asf": {"codec": "wmv2", "options": {"g": "12"}},
        "vfr.mp4": {"options": X264, "times_ms": jumpy},
        "vfr.mkv": {"options": X264, "times_ms": jumpy},
        "odd.mp4": {"options": X264, "size": (67, 51), "pix_fmt": "yuv444p"},
        "qtrle.mov": {"codec": "qtrle", "options": {"g": "12"}, "pix_fmt": "rgb24"},
        "moving.gif": {"codec": "gif", "pix_fmt": "rgb8"},
        "moving.apng": {"codec": "apng", "pix_fmt": "rgb24"},
    }
    if name in plain:
        return encode(path, **plain[name])
    base = make("h264.mp4", folder)
    if name == "turned.mp4":
        return turned(base, path, (0, 1, -1, 0))
    return with_early_sound(base, path)


CLIPS = (
    *("h264.mp4", "h264.mkv", "h264.ts", "opengop.mp4", "refresh.mkv", "hevc.mp4", "vp8.webm"),
    *("vp9.webm", "av1.mp4", "mpeg2.ts", "mpeg4.avi", "mjpeg.mov", "ffv1.mkv", "wmv2.asf"),
    *("vfr.mp4", "vfr.mkv", "odd.mp4", "qtrle.mov", "moving.gif", "moving.apng", "turned.mp4"),
    *("sound.mp4", "sound.mkv"),
)


def plainly_decoded(path: Path) -> list[Shot]:
    """Decode everything the simplest way: the truth that clever reading must reproduce."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        tick, start = stream.time_base, (container.start_time or 0) / av.time_base
        keys, frames = set(), []
        for packet in container.demux(stream):
            if packet.is_keyframe:
                keys.add(packet.pts)
            frames += packet.decode()
        return [
            Shot(
                float(frame.pts * tick) - start,
                float((frame.duration or 1 / stream.average_rate / tick) * tick),
                np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90),
                frame.key_frame or frame.pts in keys,
            )
            for frame in frames
        ]


def open_below(folder):
    """Return the files in a folder, removed ones too, that this process holds open."""
    links = Path("/proc/self/fd")
    held = []
    for link in links.iterdir() if links.is_dir() else ():
        with suppress(OSError):  # the listing's own
            held.append(os.readlink(link))
    return [path for path in held if path.startswith(f"{folder}{os.sep}")]
