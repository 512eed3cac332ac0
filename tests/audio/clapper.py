"""Videos in which a white picture and a click come together, for tests of the clock of sound."""

from contextlib import ExitStack
from fractions import Fraction

import av
import numpy as np

from streammem.audio.recogniser import RATE
from streammem.errors import SourceError
from streammem.video.container import choose_stream
from streammem.video.live_source import Connection, Feed, LiveSource, Time

FPS = 8


def clapper(
    path, *, seconds=6, codec="aac", rate=16_000, layout="mono", first_s=0.0, late_s=0.0,
    apart_s=0.0, sound=True, form=None, bias=0,
):  # fmt: skip
    """Write a video whose first picture of each second is white, with a click at that moment.

    Args:
        first_s: stamp of the first picture.
        late_s: seconds without sound at the beginning.
        apart_s: seconds that the stamps of sound are ahead of those of its pictures.
        bias: the grey level of the pictures between.
    """
    with av.open(str(path), "w", format=form) as container:
        video = container.add_stream("libx264", rate=FPS, options={"g": str(FPS), "bf": "2"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        if sound:
            heard = container.add_stream(codec, rate=rate)
            heard.layout = layout
        for second in range(seconds):
            for number in range(FPS):
                level = 255 if number == 0 else 20 + bias + second
                pixels = np.full((48, 64, 3), level, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                at = first_s + second + number / FPS
                frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
                container.mux(video.encode(frame))
            if sound and second >= late_s:
                channels = len(heard.layout.channels)
                samples = np.zeros((channels, rate), np.float32)
                samples[:, : rate // 50] = 0.6
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round((first_s + second + apart_s) * rate)
                container.mux(heard.encode(frame))
        container.mux(video.encode())
        if sound:
            container.mux(heard.encode())
    return path


def with_sounds(path, *sources, default=None):
    """Copy the pictures of the first of some videos, and the sound of each as a track of its own.

    Args:
        sources: MP4 files, whose packets all have a decoding time.
        default: place of the track that is marked as the default one.
    """
    packets = []
    with ExitStack() as opened, av.open(str(path), "w") as container:
        for number, source in enumerate([sources[0], *sources]):
            inside = opened.enter_context(av.open(str(source)))
            stream = inside.streams.audio[0] if number else inside.streams.video[0]
            copy = container.add_stream_from_template(stream)
            if default is not None and number == default + 1:
                copy.disposition = av.stream.Disposition.default
            packets += [(p, copy) for p in inside.demux(stream) if p.dts is not None]
        for packet, copy in sorted(packets, key=lambda one: one[0].dts * one[0].time_base):
            packet.stream = copy
            container.mux(packet)
    return path


class Passing:
    """Time that passes only while one sleeps."""

    def __init__(self):
        self.seconds = 0.0

    def as_time(self):
        return Time(lambda: self.seconds, lambda: 1e9 + self.seconds, self._sleep)

    def _sleep(self, seconds):
        self.seconds += seconds


def live(paths, sampling, *, real_time=True):
    """Open a live source of which each connection gives a file."""
    waiting = [str(path) for path in paths]

    def connect(stopping):
        if not waiting:
            source.stop()
            raise SourceError("camera: gone")
        container = av.open(waiting.pop(0))
        return Connection(container, choose_stream(container, "camera"))

    source = None
    source = LiveSource(Feed("camera", connect, live=real_time), sampling, Passing().as_time())
    source.reconnect = True
    return source


def clicks(sound):
    """Return the seconds at which clicks begin; ``sound`` is (time, samples) each."""
    loud = [
        time + at / RATE for time, samples in sound for at in np.flatnonzero(np.abs(samples) > 0.2)
    ]
    found = []
    for at in sorted(loud):
        if not found or at - found[-1][-1] > 0.5:
            found.append([])
        found[-1].append(at)
    return [moments[0] for moments in found]
