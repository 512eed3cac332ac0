import numpy as np
import pytest

from streammem.audio.scene_sound import RATE, SoundWindow
from streammem.errors import SourceError


def counted(seconds):
    """Samples that count up, so that each tells where it was."""
    return np.arange(round(seconds * RATE), dtype=np.float32)


def in_pieces(samples, sizes, start=0.0):
    at = 0
    for size in sizes:
        if at >= len(samples):
            return
        yield start + at / RATE, samples[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(20))
def test_scenes_hear_what_a_slice_of_the_whole_is(seed):
    draw = np.random.default_rng(seed)
    whole = counted(20.0)
    sizes = draw.integers(1, 3 * RATE, 40).tolist()
    window = SoundWindow(in_pieces(whole, sizes), pytest.fail)
    end = 0.0
    while end < 25.0:
        start, end = end + draw.choice([0.0, 0.5]), end + draw.uniform(1.0, 6.0)
        scene = window.scene(start, end)
        for after in np.sort(draw.uniform(0, max(0.0, scene.duration - 2), 4)):
            first, last = start + after, min(start + after + 2.0, end)
            expected = whole[round(first * RATE) : round(last * RATE)]
            np.testing.assert_array_equal(scene.read(after, 2.0), expected)


def test_a_gap_is_silence_and_behind_the_end_there_is_nothing():
    pieces = iter([(0.0, counted(1.0) + 1), (2.0, counted(1.0) + 1)])
    window = SoundWindow(pieces, pytest.fail)
    heard = window.scene(0.0, 10.0).read(0.5, 4.0)
    assert len(heard) == 2.5 * RATE
    assert heard[: RATE // 2].all() and not heard[RATE // 2 : 3 * RATE // 2].any()
    assert heard[3 * RATE // 2 :].all()
    assert len(window.scene(5.0, 9.0).read(0.0, 2.0)) == 0


def test_sound_that_fails_is_reported_once_and_what_came_before_is_heard():
    def broken():
        yield 0.0, counted(1.0)
        raise SourceError("x.mkv: broken; get it again")

    reasons = []
    window = SoundWindow(broken(), reasons.append)
    assert len(window.read(0.0, 3.0)) == RATE
    assert len(window.read(1.0, 3.0)) == 0
    assert reasons == ["x.mkv: broken"]


def test_what_was_heard_is_forgotten():
    hours = ((float(i), counted(1.0)) for i in range(4 * 3600))
    window = SoundWindow(hours, pytest.fail)
    for start in range(0, 14000, 1000):
        window.read(start, start + 2.0)
        assert sum(len(samples) for _, samples in window._pieces) <= 3 * RATE
