import numpy as np
import pytest

from streammem.audio.scene_sound import HELD_S, LONGEST_S, RATE, LiveSound, SoundWindow
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
        assert sum(map(len, window._lines)) <= 4 * RATE


@pytest.mark.parametrize("seed", range(3))
def test_scenes_hear_what_has_come_of_a_live_source_and_wait_for_nothing(seed):
    draw, whole = np.random.default_rng(seed), counted(20.0) + 1
    came = LiveSound()
    window, at, end = SoundWindow(came, pytest.fail, LONGEST_S), 0, 0.0
    while end < 16.0:
        start, end = end, end + draw.uniform(1.0, 4.0)
        behind_s = draw.choice([-1.0, 1.5])  # what of the scene has not come, or came early
        while at < (end - behind_s) * RATE:
            size = int(draw.integers(100, 2000))
            came.push(at / RATE, whole[at : at + size])
            at += size
        scene = window.scene(start, end)
        for after in (0.0, max(0.0, scene.duration - 2.0)):
            first, last = round((start + after) * RATE), round(min(start + after + 2.0, end) * RATE)
            np.testing.assert_array_equal(scene.read(after, 2.0), whole[first : min(last, at)])


def test_live_sound_that_no_scene_reads_is_bounded_and_the_end_of_a_long_scene_is_heard():
    came = LiveSound()
    for second in range(2000):
        came.push(float(second), np.full(RATE // 100, second, np.float32))
    assert len(came._waiting) <= HELD_S + 1
    scene = SoundWindow(came, pytest.fail, LONGEST_S).scene(100.0, 2000.0)
    assert (scene.start, scene.end) == (2000.0 - LONGEST_S, 2000.0) and LONGEST_S < HELD_S
    assert scene.read(0.0, 2.0)[0] == 2000 - LONGEST_S


def test_a_pass_that_waits_for_its_pictures_is_not_waited_for():
    known = [(0.0, counted(1.5) + 1)]

    def parts():
        while True:
            yield known.pop(0) if known else (0.0, counted(0))

    window = SoundWindow(parts(), pytest.fail)
    assert len(window.scene(0.0, 4.0).read(0.0, 4.0)) == 1.5 * RATE
    known.append((4.0, counted(1.0) + 1))
    np.testing.assert_array_equal(window.scene(4.0, 6.0).read(0.0, 2.0), counted(1.0) + 1)
