"""Fixtures of the parent's tests: the tiny files, and the model on top of them."""

from fractions import Fraction

import av
import numpy as np
import pytest

from streammem.models import checkpoint
from streammem.models.minigpt4_video.published import open_model
from streammem.models.published import find
from tests.audio.subtitled import srt
from tests.models.minigpt4_video import published
from tests.tiny import moving_square

CUES = ((0.6, 1.5, "The car is red."), (2.5, 3.5, "We sail at dawn."), (4.5, 5.5, "We sail."))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The TOML file of the tiny model."""
    return published.write(tmp_path_factory.mktemp("minigpt4"))


@pytest.fixture(scope="session")
def opened(files, keys):
    """Open the tiny model with options."""

    def opened(**options):
        said = find(files, checkpoint.CONFIGS)
        for name, value in options.items():
            object.__setattr__(said.options, name, value)
        return open_model("tiny", said, keys)

    return opened


@pytest.fixture(scope="session")
def model(opened):
    return opened()


@pytest.fixture(scope="session")
def film_with_words(tmp_path_factory):
    """A file of three scenes in 6 s, with sound, and subtitles beside it."""
    path = tmp_path_factory.mktemp("films") / "film.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for number, colour in enumerate(c for c in ("red", "blue", "green") for _ in range(8)):
            pixels = moving_square(colour, number, 64, 48)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        tone = (8000 * np.sin(np.arange(6 * 8000) / 5)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
        container.mux([*sound.encode(frame), *sound.encode()])
    path.with_suffix(".srt").write_text(srt(CUES))
    return path
