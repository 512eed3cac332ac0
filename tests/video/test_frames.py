"""Laws of frames that the caller pushes."""

import numpy as np
import pytest

from streammem.errors import ConfigError, SourceError
from streammem.types import Frame
from streammem.video import open_source
from tests.video.clips import picture


def test_a_frame_is_taken_only_when_it_is_asked_for():
    asked = []

    def camera():
        for number in range(100):
            asked.append(number)
            yield picture(number)

    frames = iter(open_source(camera(), fps=25))
    assert asked == []
    assert next(frames).time == 0.0 and next(frames).time == 0.04
    assert asked == [0, 1]


def test_a_reused_buffer_does_not_change_frames_that_were_given():
    buffer = np.zeros((4, 6, 3), np.uint8)

    def camera():
        for number in range(3):
            buffer[:] = number
            yield buffer

    assert [f.pixels[0, 0, 0] for f in list(open_source(camera(), fps=1))] == [0, 1, 2]


def test_an_array_of_frames_is_an_iterable_of_frames():
    assert len(list(open_source(np.zeros((5, 4, 6, 3), np.uint8), fps=10))) == 5


def test_times_that_go_back_are_raised():
    frames = [Frame(picture(0), time, 0.1, k) for k, time in enumerate([3.0, 4.0, 2.0, 5.0])]
    assert [f.time for f in open_source(frames)] == [3.0, 4.0, 4.0, 5.0]


def test_an_error_of_the_caller_reaches_the_caller():
    def camera():
        yield picture(0)
        raise RuntimeError("unplugged")

    frames = iter(open_source(camera(), fps=1))
    next(frames)
    with pytest.raises(RuntimeError, match="unplugged"):
        next(frames)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([np.zeros((4, 6), np.uint8)], r"frame 0 is \[4, 6\] uint8"),
        ([np.zeros((4, 6, 4), np.uint8)], r"frame 0 is \[4, 6, 4\] uint8"),
        ([np.zeros((4, 6, 3), np.float32)], "float32"),
        ([Frame(np.zeros((4, 6, 1), np.uint8), 0.0, 1.0, 0)], r"\[4, 6, 1\]"),
        ([picture(0), "a.png"], "frame 1 is a str"),
    ],
)
def test_what_is_no_picture_is_a_config_error(items, reason):
    with pytest.raises(ConfigError, match=reason):
        list(open_source(items, fps=1))


def test_a_mirrored_view_is_given_in_the_order_of_its_pixels():
    (frame,) = open_source([picture(0)[:, ::-1]], fps=1)
    assert frame.pixels.flags.c_contiguous and np.array_equal(frame.pixels, picture(0)[:, ::-1])


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(SourceError, match="frame 0: 6x0 pixels"):
        list(open_source([np.zeros((0, 6, 3), np.uint8)], fps=1))


def test_arrays_need_a_rate():
    with pytest.raises(ConfigError, match="give their rate"):
        list(open_source([picture(0)]))
