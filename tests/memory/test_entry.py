import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streammem.memory.entry import from_eight_bits, num_groups, to_eight_bits
from tests.memory.entries import make

HALF = hnp.arrays(
    np.float16,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-60_000, 60_000, width=16),
)


@settings(max_examples=60, deadline=None)
@given(HALF)
def test_tokens_are_rounded_by_a_254th_of_their_neighbours_greatest_and_only_once(tokens):
    largest, levels = to_eight_bits(tokens)
    assert largest.shape == (num_groups(tokens.shape),) and levels.dtype == np.int8
    rounded = from_eight_bits(largest, levels, tokens.shape)
    error = np.abs(rounded.astype(np.float32) - tokens).reshape(-1)
    # Half a level, and half a unit in the last place of a half.
    allowed = np.repeat(largest.astype(np.float32), 32)[: tokens.size] * (1 / 254 + 2**-11) + 6e-8
    assert (error <= allowed).all()
    again = from_eight_bits(*to_eight_bits(rounded), tokens.shape)
    np.testing.assert_array_equal(again, rounded)


def test_an_outlier_costs_its_32_neighbours_precision_and_nobody_else():
    tokens = np.random.default_rng(0).normal(size=(4, 384)).astype(np.float16)
    tokens[1, 0] = 500
    rounded = make(0, tokens=tokens).tokens
    error = np.abs(rounded.astype(np.float32) - tokens)
    assert error[1, 1:32].max() > 0.5
    error[1, :32] = 0
    assert error.max() < 0.02


def test_tokens_of_a_normal_spread_keep_their_direction():
    tokens = np.random.default_rng(0).normal(size=(16, 384)).astype(np.float16)
    rounded = make(0, tokens=tokens).tokens.astype(np.float64)
    cosines = (rounded * tokens).sum(1) / np.linalg.norm(rounded, axis=1)
    assert (cosines / np.linalg.norm(tokens.astype(np.float64), axis=1)).min() > 0.9999


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e6])
def test_tokens_that_half_precision_does_not_hold_are_refused(wrong):
    tokens = np.ones((2, 6))
    tokens[1, 1] = wrong
    with pytest.raises(ValueError, match="tokens must be finite"), np.errstate(over="ignore"):
        make(0, tokens=tokens)


def test_zeros_stay_zeros_and_divide_nothing():
    with np.errstate(all="raise"):
        assert not make(0, tokens=np.zeros((3, 40))).tokens.any()


def test_no_tokens_stay_none():
    assert make(0, tokens=np.empty((0, 0))).tokens.shape == (0, 0)
