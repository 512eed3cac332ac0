from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streammem.memory.entry import (
    MAX_NOTES_BYTES,
    MAX_TEXT_BYTES,
    Sureness,
    continues,
    coverage,
    extended,
    fitting_notes,
    from_eight_bits,
    merged,
    note_bytes,
    num_groups,
    similarity,
    to_eight_bits,
    visual_keys,
    with_text,
    word_bytes,
)
from streammem.types import Note
from tests.memory.entries import DIM, make, unit

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


def test_an_outlier_costs_its_32_neighbours_precision_and_no_others():
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


# -- keys --


seeds = st.integers(0, 10_000)


def test_one_frame_of_another_scene_keeps_its_own_key():
    noise = 0.02 * np.random.default_rng(0).normal(size=(60, DIM))
    for seed in range(6):
        scene, event = unit(1, seed=seed), unit(1, seed=seed + 100)
        keys = visual_keys(np.concatenate([scene + noise, event]))
        assert (keys @ event[0]).max() > 0.999
        assert keys[0] @ scene[0] > 0.99, "the widest cluster comes first"


def test_a_quiet_segment_has_one_key():
    frames = unit(1) + 0.01 * np.random.default_rng(0).normal(size=(30, DIM))
    assert visual_keys(frames).shape == (1, DIM)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, num=st.integers(1, 40), most=st.integers(1, 4))
def test_keys_are_few_unit_rows_and_do_not_depend_on_the_order_of_frames(seed, num, most):
    frames = unit(num, seed=seed)
    keys = visual_keys(frames, most)
    assert 1 <= len(keys) <= most and keys.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)
    sizes = np.bincount((frames @ keys.T).argmax(axis=1), minlength=len(keys))
    assert (np.diff(sizes) <= 0).all(), "the widest cluster comes first"
    shuffled = np.random.default_rng(seed).permutation(frames)
    np.testing.assert_array_equal(visual_keys(shuffled, most), keys)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, num=st.integers(1, 4))
def test_as_many_keys_as_frames_loses_nothing(seed, num):
    frames = unit(num, seed=seed)
    assert coverage(visual_keys(frames, 4, min_cosine=0.9999), frames) > 0.9999


def test_zero_rows_do_not_count():
    frames = unit(3)
    np.testing.assert_array_equal(
        visual_keys(np.concatenate([np.zeros((5, DIM)), frames])), visual_keys(frames)
    )


def test_opposite_frames_are_kept_apart():
    frames = np.concatenate([unit(1), -unit(1)])
    assert coverage(visual_keys(frames), frames) > 0.999
    assert np.linalg.norm(visual_keys(frames, 1)) == pytest.approx(1)


@pytest.mark.parametrize("frames", [np.zeros((4, DIM)), np.empty((0, DIM)), np.ones(DIM)])
def test_no_usable_frame_is_refused(frames):
    with pytest.raises(ValueError, match="keys"):
        visual_keys(frames)


def test_similarity_is_symmetric_and_one_for_equal_sets():
    left, right = unit(3, seed=1), unit(2, seed=2)
    assert similarity(left, right) == pytest.approx(similarity(right, left))
    assert similarity(left, left[::-1]) == pytest.approx(1)
    assert similarity(left, right) < 1


def test_coverage_is_that_of_the_worst_covered():
    keys = unit(1)
    assert coverage(keys, np.concatenate([keys, -keys])) == pytest.approx(-1)


# -- how sure captions are --

SURE, UNSURE, WITHHELD = Sureness(0.9), Sureness(0.4, True), Sureness(0.1, True)


def captioned(segment, *lines):
    entry = make(segment)
    for text, sureness in lines:
        entry = with_text(entry, caption=text, sureness=sureness)
    return entry


@pytest.mark.parametrize(
    ("lines", "caption", "sureness"),
    [
        ([("a dog", SURE)], "a dog", (SURE,)),
        ([("a dog", SURE), ("a cat", UNSURE)], "a dog\na cat", (SURE, UNSURE)),
        ([("a dog", SURE), ("a dog", UNSURE)], "a dog", (SURE,)),
        ([("a dog", Sureness()), ("a cat", UNSURE)], "a dog\na cat", (Sureness(), UNSURE)),
        ([("a dog", Sureness())], "a dog", ()),
        ([("", WITHHELD)], None, (WITHHELD,)),
        ([("", WITHHELD), ("", WITHHELD)], None, (WITHHELD,)),
        ([("", WITHHELD), ("a dog", SURE)], "a dog", (SURE,)),
        ([("a dog", SURE), ("", WITHHELD)], "a dog", (SURE,)),
    ],
)
def test_every_line_of_a_caption_keeps_its_sureness(lines, caption, sureness):
    entry = captioned(0, *lines)
    assert (entry.caption, entry.sureness) == (caption, sureness)
    for join in (merged, extended):
        half = len(lines) // 2
        both = join(captioned(0, *lines[:half]), captioned(1, *lines[half:]))
        assert (both.caption, both.sureness) == (caption, sureness)


def test_lines_that_go_take_their_sureness_along():
    lines = [(f"{i} " + "x" * 100, Sureness(i / 100)) for i in range(60)]
    entry = captioned(0, *lines)
    kept = [
        (line, sure) for line, sure in zip(entry.caption.split("\n"), entry.sureness, strict=True)
    ]
    assert len(entry.caption) <= MAX_TEXT_BYTES and len(kept) < 60
    assert kept == [line for line in lines if line in kept]


def test_times_of_words_go_before_any_word_does_and_make_no_rows_apart():
    texts = [f"word {i} " * 20 for i in range(40)]
    timed = [Note(i, i + 1, text, tuple(i + n / 60 for n in range(40)))
             for i, text in enumerate(texts)]  # fmt: skip
    kept = fitting_notes(timed)
    assert [note.text for note in kept] == texts
    assert sum(note_bytes(note) + word_bytes(note) for note in kept) <= MAX_NOTES_BYTES
    assert kept[0].word_starts == () and kept[-1] == timed[-1]
    bare = tuple(replace(note, word_starts=()) for note in timed)
    for notes in (tuple(timed), bare):
        left = make(0, unit(1), notes=fitting_notes(notes[:30]))
        right = make(1, unit(1), notes=notes[30:])
        assert continues(left, right, epsilon=0.02)
        assert extended(left, right).notes == fitting_notes(notes)
