"""What the tests of the command line share: videos of coloured scenes, and output read back."""

import json
import re

import av

from tests.tiny import moving_square

SCENES = (("red", 3), ("blue", 4), ("green", 3))  # seconds
FPS = 8
SRT_CUE = re.compile(r"(\d+)\n(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})\n(.+)\n")
VTT_CUE = re.compile(r"(\d\d:\d\d:\d\d\.\d{3}) --> (\d\d:\d\d:\d\d\.\d{3})\n(.+)\n")
QUICK = ("--max-new-tokens", "4")


def record(path, scenes=SCENES, size=(64, 48)):
    """Write a video in which each scene has its colour."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "g": str(FPS)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        number = 0
        for colour, seconds in scenes:
            for _ in range(seconds * FPS):
                pixels = moving_square(colour, number, *size)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
                number += 1
        container.mux(stream.encode())
    return path


def events(text):
    return [json.loads(line) for line in text.splitlines()]
