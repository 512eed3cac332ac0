from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.video.clock import WALL_APART_S, StreamClock, follow_wall

TICK = Fraction(1, 90_000)
FRAME = 3600  # ticks of 1/25 s


def times(clock, stamps, arrivals=None):
    arrivals = arrivals or [k * 0.04 for k in range(len(stamps))]
    return [clock.place(p, TICK, 0.04, a) for p, a in zip(stamps, arrivals, strict=True)]


@pytest.mark.parametrize("bits", [32, 33])
def test_a_wrap_of_the_stamps_does_not_show(bits):
    clock = StreamClock()
    clock.connect(bits)
    first = 2**bits - 10 * 90_000
    stamps = [(first + k * FRAME) % 2**bits for k in range(500)]
    assert times(clock, stamps) == pytest.approx([k * 0.04 for k in range(500)], abs=1e-12)


def test_a_stream_of_many_wraps_stays_exact():
    clock = StreamClock()
    clock.connect(32)
    hour = 3600 * 90_000
    stamps = [k * hour % 2**32 for k in range(100)]
    arrivals = [k * 3600.0 for k in range(100)]
    assert times(clock, stamps, arrivals) == arrivals  # 100 hours


@pytest.mark.parametrize("jump_s", [-30.0, -1.0, 3600.0, 86_400.0])
def test_a_jump_of_the_cameras_clock_does_not_move_stream_time(jump_s):
    clock = StreamClock()
    clock.connect(33)
    jump = round(jump_s * 90_000)
    stamps = [10**9 + k * FRAME + (jump if k >= 50 else 0) for k in range(100)]
    assert times(clock, stamps) == pytest.approx([k * 0.04 for k in range(100)], abs=1e-9)


def test_after_a_connection_time_goes_on_by_what_really_passed():
    clock = StreamClock()
    clock.connect(32)
    times(clock, [0, FRAME])
    clock.connect(32)
    assert times(clock, [77, 77 + FRAME], [60.0, 60.04]) == pytest.approx([60.0, 60.04])


def test_in_a_pipe_arrival_means_nothing():
    clock = StreamClock(real_time=False)
    clock.connect(33)
    stamps = [0, FRAME, FRAME + 60 * 90_000]
    assert times(clock, stamps, [0.0, 1e6, 1e6]) == pytest.approx([0.0, 0.04, 60.04])
    clock.connect(33)
    assert times(clock, [5], [2e6]) == pytest.approx([60.08])  # right after the last picture


def test_without_stamps_worth_keeping_pictures_are_shown_when_they_arrive():
    clock = StreamClock()
    clock.connect(0)
    assert times(clock, [0, 1, 2], [5.0, 5.5, 5.7]) == pytest.approx([0.0, 0.5, 0.7])


def test_a_picture_without_a_stamp_follows_its_predecessor():
    clock = StreamClock()
    clock.connect(32)
    assert times(clock, [None, FRAME, None]) == pytest.approx([0.0, 0.04, 0.08])


def test_between_keyframes_the_skipped_pictures_tell_that_no_clock_has_jumped():
    clock, shown = StreamClock(), []
    clock.connect(32)
    for k in range(1001):  # a keyframe in 20 s, all of it sent in a second; the first has no stamp
        stamp, arrived = (k * FRAME if k else None), k / 1000
        clock.track(stamp, TICK, 0.04, arrived, kept=k % 500 == 0)
        if k % 500 == 0:
            shown.append(clock.place(stamp, TICK, 0.04, arrived))
    assert shown == pytest.approx([0.0, 20.0, 40.0]) and clock.end == pytest.approx(40.04)


def test_a_keyframe_that_comes_late_out_of_the_decoder_has_the_time_it_came_with():
    clock = StreamClock(real_time=False)
    clock.connect(33)
    for k in range(100):
        clock.track(7 + k * FRAME, TICK, 0.04, 0.0, kept=k % 50 == 0)
    assert times(clock, [7, 7 + 50 * FRAME]) == pytest.approx([0.0, 2.0])
    assert clock.end == pytest.approx(4.0)


@given(
    st.lists(st.tuples(st.integers(0, 2**33 - 1), st.booleans(), st.floats(0, 1e5)), max_size=40),
    st.sampled_from([0, 32, 33, 64]),
    st.booleans(),
    st.booleans(),
)
def test_time_never_runs_backward_whatever_the_camera_says(pictures, bits, real_time, skips):
    clock, arrived, last = StreamClock(real_time=real_time), 0.0, 0.0
    clock.connect(bits)
    for pts, anew, passed in pictures:
        if anew:
            clock.connect(bits)
        arrived += passed
        if skips:
            clock.track(pts, TICK, 0.04, arrived, kept=pts % 2 == 0)
        time = clock.place(pts, TICK, 0.04, arrived)
        assert last <= time
        last = time


@pytest.mark.parametrize("parts_off", [-5e-5, 5e-5, -1e-3, 1e-3])
def test_wall_times_follow_a_clock_that_drifts_for_a_week_and_never_go_back(parts_off):
    zero, time, shown = 1e9, 0.0, 1e9
    for wall in range(10, 7 * 86_400, 10):  # seconds since the first picture
        before, time = time, wall * (1 + parts_off)
        zero = follow_wall(zero, time, time - before, 1e9 + wall)
        assert shown <= zero + time == pytest.approx(1e9 + wall, abs=WALL_APART_S + 1e-3)
        shown = zero + time


def test_pictures_that_are_late_for_a_minute_move_wall_times_by_less_than_they_are_late():
    zeros = [1e9]
    for k in range(1, 10_000):
        late = 5.0 if 1000 <= k < 2500 else 0.5 * (k % 2)
        zeros.append(follow_wall(zeros[-1], 0.04 * k, 0.04, 1e9 + 0.04 * k + late))
    assert zeros[999] == 1e9
    assert max(zeros) - 1e9 == pytest.approx(0.6, abs=0.01) == zeros[-1] - 1e9
