"""Films with sound, and a recogniser that hears what it is told to."""

import av
import numpy as np

from streammem.audio.recogniser import RATE
from tests.command_line import FPS
from tests.tiny import moving_square


def noise(seconds, rate=RATE, seed=0, channels=1):
    count = round(seconds * rate)
    draw = np.random.default_rng(seed).standard_normal((channels, count)) * 0.1
    tone = np.sin(np.arange(count) * 2 * np.pi * (200 + 300 * seed) / rate)
    return (draw + 0.3 * tone).astype(np.float32)


def write_film(path, *, seconds=4.0, sound=None, rate=RATE, layout="mono", codec="pcm_s16le"):
    """A film of a red and a blue scene, with sound or without."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        ears = container.add_stream(codec, rate=rate, layout=layout) if sound is not None else None
        for number in range(int(seconds * FPS)):
            colour = "red" if number < seconds * FPS / 2 else "blue"
            pixels = moving_square(colour, number, 64, 64)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
        if ears is not None:
            for at in range(0, sound.shape[1], 1024):
                part = np.ascontiguousarray(sound[:, at : at + 1024].T.reshape(1, -1))
                levels = (part.clip(-1, 1) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(levels, "s16", layout)
                frame.sample_rate, frame.pts = rate, at
                container.mux(ears.encode(frame))
            container.mux(ears.encode())
    return path


class Planted:
    """Hears what it is told to, once a piece."""

    piece_s = 10.0

    def __init__(self, *notes):
        self.notes, self.read = list(notes), 0

    def transcribe(self, samples, stopping=lambda: False):
        self.read += len(samples)
        notes, self.notes = self.notes, []
        yield from notes
