"""Laws of the sampling grid."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.video.source import Grid, Sampling

# Quarter seconds and powers of two, so that sums are exact and the truth below is too.
quarters = st.integers(0, 400).map(lambda n: n / 4)
rates = st.sampled_from([0.125, 0.5, 1.0, 2.0, 4.0, 64.0])


@given(times=st.lists(quarters, min_size=1).map(sorted), fps=rates, start=quarters)
def test_samples_are_the_first_frames_at_or_after_the_grid(times, fps, start):
    grid = Grid(Sampling(fps=fps, start=start))
    taken = [number for number, time in enumerate(times) if grid.takes(time)]

    targets = [start + k / fps for k in range(int(times[-1] * fps) + 2)]
    firsts = [next((n for n, t in enumerate(times) if t >= target), None) for target in targets]
    assert taken == sorted({n for n in firsts if n is not None})


@given(times=st.lists(quarters, min_size=1).map(sorted), start=quarters, length=quarters)
def test_without_fps_every_frame_of_the_span_is_taken(times, start, length):
    end = start + length + 0.25
    grid = Grid(Sampling(start=start, end=end))
    assert [t for t in times if grid.takes(t)] == [t for t in times if start <= t < end]


def test_rounding_of_times_to_milliseconds_loses_no_frame():
    grid = Grid(Sampling(fps=30), tick=0.001)
    assert all(grid.takes(round(k / 30, 3)) for k in range(300))


def test_forgiveness_stays_below_a_millisecond_for_coarse_ticks():
    grid = Grid(Sampling(start=1.0), tick=0.04)
    assert not grid.takes(0.998)


@pytest.mark.parametrize(
    "options",
    [
        *({"fps": value} for value in (0, -1, math.nan, math.inf)),
        *({"start": value} for value in (-0.1, math.nan, math.inf)),
        *({"start": 5.0, "end": value} for value in (5.0, 1.0, math.nan)),
        {"max_side": 0},
    ],
)
def test_what_cannot_be_meant_is_a_config_error(options):
    with pytest.raises(ConfigError, match="must be"):
        Sampling(**options)
