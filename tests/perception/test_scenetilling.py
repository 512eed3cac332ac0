"""Laws of the streaming scene detector, and of the paper's offline rule beside it."""

import dataclasses
import pickle
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import BackboneError, ConfigError
from streammem.perception import scenetilling
from streammem.perception.scenetilling import (
    Boundary,
    Pushed,
    SceneTilling,
    SceneTillingConfig,
    adjacent_cosine,
    depth_scores,
    tile,
)

CONFIG = SceneTillingConfig()
SEEDS = range(10)


def joined(*parts):
    """What several calls have settled, as one."""
    scores = tuple(score for part in parts for score in part.scores)
    return Pushed(scores, tuple(boundary for part in parts for boundary in part.boundaries))


def run(embeddings, config=CONFIG, sizes=None, tilling=None):
    """Push in batches of the given sizes (cycled; all at once without), flush; join the results."""
    tilling = tilling or SceneTilling(config)
    sizes, parts, at = cycle(sizes or [max(1, len(embeddings))]), [], 0
    while at < len(embeddings):
        size = next(sizes)
        parts.append(tilling.push(embeddings[at : at + size]))
        at += size
    return joined(*parts, tilling.flush())


def scene(rng, length, noise=0.3, width=64):
    """[length, width]: one picture, with fresh noise on each frame."""
    return rng.normal(size=width) + noise * rng.normal(size=(length, width))


def along(similarities):
    """[N + 1, 2] rows whose neighbouring cosines are the given ones."""
    angles = np.concatenate([[0.0], np.cumsum(np.arccos(similarities))])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def cuts(pushed):
    return [boundary.index for boundary in pushed.boundaries]


def same_state(left, right):
    assert left._replace(rows=()) == right._replace(rows=())
    assert len(left.rows) == len(right.rows)
    assert all(np.array_equal(a, b) for a, b in zip(left.rows, right.rows, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 2, 3, 7, 9, 130, 1281]),
    sizes=st.lists(st.integers(1, 17), min_size=1, max_size=5),
    lag=st.sampled_from([1, 3, 64]),
    flash=st.integers(0, 3),
)
def test_one_by_one_equals_batches_equals_all_at_once_bit_for_bit(seed, width, sizes, lag, flash):
    rng = np.random.default_rng(seed)
    config = SceneTillingConfig(floor=0.1, max_lag=lag, flash_frames=flash, max_frames=20)
    embeddings = rng.normal(size=(50, width)).astype(np.float32).cumsum(axis=0)
    at_once = SceneTilling(config)
    whole = run(embeddings, tilling=at_once)
    for pieces in ([1], sizes):
        tilling = SceneTilling(config)
        assert run(embeddings, sizes=pieces, tilling=tilling) == whole
        same_state(tilling.snapshot(), at_once.snapshot())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cut=st.integers(0, 50),
    lag=st.sampled_from([1, 3, 64]),
    flash=st.integers(0, 3),
)
def test_restored_from_a_snapshot_it_goes_on_bit_for_bit(seed, cut, lag, flash):
    rng = np.random.default_rng(seed)
    config = SceneTillingConfig(floor=0.1, max_lag=lag, flash_frames=flash, max_frames=20)
    embeddings = rng.normal(size=(50, 7)).cumsum(axis=0)
    whole = run(embeddings, config)
    first, second = SceneTilling(config), SceneTilling(config)
    before = first.push(embeddings[:cut])
    saved = pickle.dumps(first.snapshot())
    second.push(rng.normal(size=(9, 3)))  # what it did before does not matter
    second.restore(pickle.loads(saved))
    for tilling in (first, second):
        assert joined(before, run(embeddings[cut:], sizes=[4], tilling=tilling)) == whole
    first.restore(pickle.loads(saved))
    same_state(first.snapshot(), pickle.loads(saved))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lag=st.sampled_from([1, 3, 64]), flash=st.integers(0, 3))
def test_no_boundary_falls_before_settled_before(seed, lag, flash):
    rng = np.random.default_rng(seed)
    config = SceneTillingConfig(floor=0.1, max_lag=lag, flash_frames=flash, max_frames=20)
    tilling, least, given = SceneTilling(config), 0, 0
    for row in rng.normal(size=(60, 5)).cumsum(axis=0):
        pushed = tilling.push(row)
        assert all(boundary.index >= least for boundary in pushed.boundaries)
        frames = tilling.snapshot().frames
        assert all(frames - boundary.index <= tilling.lag for boundary in pushed.boundaries)
        given += len(pushed.boundaries)
        assert least <= tilling.settled_before <= frames
        least = tilling.settled_before
    assert given


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    lag=st.integers(1, 8),
    flash=st.integers(0, 2),
)
def test_streamed_depth_equals_offline_depth_where_the_climb_is_shorter_than_max_lag(
    values, lag, flash
):
    embeddings = along(np.array(values) / 20)
    scores = run(embeddings, SceneTillingConfig(max_lag=lag, flash_frames=flash)).scores
    similarities = np.array([score.similarity for score in scores])
    depths = depth_scores(similarities)
    assert np.array_equal(similarities, adjacent_cosine(embeddings))
    assert [score.frame for score in scores] == list(range(1, len(embeddings)))
    for gap, score in enumerate(scores):
        top = gap
        while top + 1 < len(similarities) and similarities[top + 1] >= similarities[top]:
            top += 1
        if top - gap <= lag:
            assert score.depth == depths[gap]
        else:
            cut_off = depths[gap] - similarities[top] + similarities[gap + lag]
            assert score.depth == pytest.approx(cut_off, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=40))
def test_offline_depth_is_the_hill_climb_written_out(values):
    expected = []
    for middle, value in enumerate(values):
        peaks = []
        for side in (values[middle::-1], values[middle:]):
            peak = value
            for other in side[1:]:
                if other < peak:
                    break
                peak = other
            peaks.append(peak)
        expected.append(sum(peaks) - 2 * value)
    assert depth_scores(np.array(values)).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_future_never_changes_an_emitted_boundary_or_score(seed):
    rng = np.random.default_rng(seed)
    past = np.concatenate([scene(rng, n) for n in (20, 9, 14, 30)])
    tilling, emitted, scores = SceneTilling(CONFIG), [], []
    for row in past:
        settled, new = tilling.push(row)
        emitted += new
        scores += settled
    assert len(emitted) == 3
    for future in (scene(rng, 40), np.zeros((40, 64)), past[::-1]):
        whole = run(np.concatenate([past, future]))
        assert list(whole.boundaries[: len(emitted)]) == emitted
        assert list(whole.scores[: len(scores)]) == scores


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_static_noise_does_not_cut_and_a_hard_cut_does(seed, noise):
    rng = np.random.default_rng(seed)
    embeddings = np.concatenate([scene(rng, 300, noise), scene(rng, 100, noise)])
    pushed = run(embeddings)
    assert cuts(pushed) == [300]
    assert pushed.boundaries[0].reason == "cut"
    assert pushed.boundaries[0].depth == pushed.scores[299].depth > CONFIG.floor


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flash_no_longer_than_flash_frames_does_not_cut_and_a_longer_one_does(seed):
    rng = np.random.default_rng(seed)
    room, light = scene(rng, 60), scene(rng, 60)
    for length in range(1, 6):
        embeddings = np.concatenate([room[:30], light[:length], room[30:]])
        expected = [] if length <= CONFIG.flash_frames else [30, 30 + length]
        assert cuts(run(embeddings)) == expected


def test_a_flash_is_a_cut_without_flash_frames():
    rng = np.random.default_rng(0)
    room, light = scene(rng, 60), scene(rng, 60)
    embeddings = np.concatenate([room[:30], light[:2], room[30:]])
    assert cuts(run(embeddings, SceneTillingConfig(flash_frames=0))) == [30, 32]


@pytest.mark.parametrize(("cosine", "cuts_across"), [(0.94, False), (0.85, True)])
def test_what_moves_during_a_flash_cuts_only_if_a_tenth_of_the_flash_s_depth_is_left(
    cosine, cuts_across
):
    room, light = np.array([[1.0, 0, 0]]), np.array([[0, 0, 1.0]])
    moved = np.array([[cosine, np.sqrt(1 - cosine**2), 0]])
    config = SceneTillingConfig(floor=0.1, flash_frames=2)
    still = np.repeat([room[0], moved[0]], 30, axis=0)
    assert cuts(run(still, config)) == [30]
    flashed = np.concatenate([still[:30], light, still[30:]])
    assert bool(cuts(run(flashed, config))) == cuts_across


def test_a_change_within_the_last_flash_frames_does_not_cut():
    rng = np.random.default_rng(0)
    room, other = scene(rng, 30), scene(rng, 30)
    assert cuts(run(np.concatenate([room, other[: CONFIG.flash_frames]]))) == []
    assert cuts(run(np.concatenate([room, other[: CONFIG.flash_frames + 1]]))) == [30]


def test_within_min_frames_the_first_boundary_stands():
    rng = np.random.default_rng(1)
    embeddings = np.concatenate([scene(rng, n) for n in (20, 6, 20)])
    assert cuts(run(embeddings)) == [20, 26]
    assert cuts(run(embeddings, SceneTillingConfig(min_frames=6))) == [20, 26]
    assert cuts(run(embeddings, SceneTillingConfig(min_frames=7))) == [20]


def test_a_scene_of_max_frames_closes_with_reason_max():
    rng = np.random.default_rng(2)
    embeddings = np.concatenate([scene(rng, 25), scene(rng, 35)])
    boundaries = run(embeddings, SceneTillingConfig(max_frames=10)).boundaries
    assert [(b.index, b.reason) for b in boundaries] == [
        (10, "max"),
        (20, "max"),
        (25, "cut"),
        (35, "max"),
        (45, "max"),
        (55, "max"),
    ]
    assert boundaries[0] == Boundary(10, None, "max")


def test_a_climb_that_never_ends_settles_after_max_lag():
    similarities = np.concatenate([[0.9, 0.05], np.linspace(0.1, 0.9, 100)])
    config = SceneTillingConfig(max_lag=50, flash_frames=0)
    tilling, boundaries = SceneTilling(config), []
    for number, row in enumerate(along(similarities)):
        boundaries += [(b.index, number) for b in tilling.push(row).boundaries]
    assert boundaries == [(2, 52)]


def test_state_is_flat_over_20000_frames_and_a_push_leaves_a_snapshot_as_it_was():
    rng = np.random.default_rng(3)
    scenes = [scene(rng, 100, width=8) for _ in range(200)]
    tilling = SceneTilling(CONFIG)
    sizes = []
    for number, embeddings in enumerate(scenes):
        tilling.push(embeddings)
        after = tilling.snapshot()
        sizes.append(state_bytes(after))
        if number % 50 == 7:
            copy = pickle.loads(pickle.dumps(after))
            tilling.push(scenes[0])
            same_state(after, copy)
            assert not any(row.flags.writeable for row in after.rows)
            tilling.restore(after)
    assert tilling.snapshot().frames == 20_000
    assert np.mean(sizes[100:]) == pytest.approx(np.mean(sizes[:100]), rel=0.1)
    assert max(sizes) <= (2 * CONFIG.flash_frames + 2) * 8 * 8 + CONFIG.max_lag * 4 * 8


def state_bytes(state):
    rows = sum((row if row.base is None else row.base).nbytes for row in state.rows)
    return rows + 8 * sum(len(gap) for gap in state.climb)


def test_flush_is_idempotent_and_what_follows_it_starts_a_new_scene():
    rng = np.random.default_rng(4)
    first, second = scene(rng, 30), np.concatenate([scene(rng, 30), scene(rng, 20)])
    tilling = SceneTilling(CONFIG)
    run(first, tilling=tilling)
    once = tilling.snapshot()
    assert tilling.flush() == ((), ())
    same_state(once, tilling.snapshot())
    then = tilling.push(second)
    rest = tilling.flush()
    assert cuts(then) + cuts(rest) == [60]
    assert [score.frame for score in then.scores + rest.scores] == list(range(31, 80))


def test_after_a_flush_nothing_of_what_was_seen_before_is_compared():
    rng = np.random.default_rng(4)
    tilling = SceneTilling(CONFIG)
    run(scene(rng, 30), tilling=tilling)
    tilling.push(np.ones((9, 5)))  # of another width
    assert tilling.snapshot().frames == 39


@pytest.mark.parametrize("seed", range(5))
def test_a_boundary_is_a_dip_deeper_than_floor_and_recent_mean_plus_deviations(seed):
    config = SceneTillingConfig(
        alpha=1.5, floor=0.2, half_life=20, min_frames=1, flash_frames=0, max_frames=10**6
    )
    rng = np.random.default_rng(seed)
    calm, restless = 1 - 0.3 * rng.random(150) ** 4, 1 - 0.6 * rng.random(150)
    video = along(np.concatenate([calm, restless]))
    tilling = SceneTilling(config)
    pushed = run(video, tilling=tilling)
    values = [score.similarity for score in pushed.scores]
    learned, ages, expected = np.zeros(0), np.zeros(0), []
    for gap, score in enumerate(pushed.scores):
        weights = 0.5 ** (ages / 20)
        mean = np.average(learned, weights=weights) if len(learned) else 0.0
        spread = np.sqrt(np.average((learned - mean) ** 2, weights=weights)) if len(learned) else 0
        threshold = max(0.2, mean + 1.5 * spread)
        right = next((v for v in values[gap + 1 :] if v != values[gap]), 0)
        dip = gap > 0 and values[gap - 1] > values[gap] and right > values[gap]
        if dip and score.depth > threshold:
            expected.append(score.frame)
        else:
            learned, ages = np.append(learned, min(score.depth, threshold)), np.append(ages + 1, 0)
    assert cuts(pushed) == expected
    assert len(expected) > 5
    weights = 0.5 ** (ages / 20)
    mean = np.average(learned, weights=weights)
    square = np.sum(weights * (learned - mean) ** 2)
    state = tilling.snapshot()
    assert (state.weight, state.mean, state.square) == pytest.approx((sum(weights), mean, square))


def test_cost_per_frame_does_not_grow_with_the_stream_or_the_climb():
    config = SceneTillingConfig(max_lag=1000)
    rising = along(np.linspace(0.0, 0.999, 900))
    lines = [count_lines(rising[:length], config) for length in (300, 600, 900)]
    assert lines[2] - lines[1] == pytest.approx(lines[1] - lines[0], rel=0.001)


def count_lines(embeddings, config):
    """Lines of the detector that run: steps, not seconds, so that a busy machine cannot fail it."""
    count = 0

    def tracer(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != scenetilling.__file__:
            return None
        count += event == "line"
        return tracer

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        run(embeddings, config)
    finally:
        sys.settrace(previous)
    return count


def test_zero_rows_are_like_nothing_and_cut_once_on_the_way_in():
    rng = np.random.default_rng(5)
    embeddings = np.concatenate([scene(rng, 30), np.zeros((20, 64)), scene(rng, 30)])
    pushed = run(embeddings)
    assert cuts(pushed) == [30]
    assert pushed.scores[35].similarity == 0.0


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_row_that_is_not_finite_raises_with_its_frame_and_leaves_the_state_usable(bad):
    rows = np.ones((10, 4))
    tilling = SceneTilling(CONFIG)
    tilling.push(rows)
    before = tilling.snapshot()
    rows[3, 2] = bad
    with pytest.raises(BackboneError, match=r"frame 13: .* float32"):
        tilling.push(rows)
    same_state(before, tilling.snapshot())
    tilling.push(np.ones(4))
    assert tilling.snapshot().frames == 11


def test_wrong_shapes_raise_in_one_line():
    tilling = SceneTilling(CONFIG)
    tilling.push(np.ones(4))
    with pytest.raises(ValueError, match="follow embeddings of width 4"):
        tilling.push(np.ones(5))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\)"):
        tilling.push(np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="two frames"):
        adjacent_cosine(np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"\[N\]"):
        depth_scores(np.ones((2, 2)))


def test_no_frames_and_one_frame_have_no_boundary():
    assert run(np.ones((0, 4))).boundaries == ()
    assert run(np.ones((1, 4))).boundaries == ()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", -1),
        ("alpha", np.nan),
        ("floor", 4.5),
        ("half_life", 0),
        ("min_frames", 0),
        ("max_frames", 2),
        ("max_lag", 0),
        ("flash_frames", -1),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"SceneTilling: {option}="):
        SceneTillingConfig(**{option: value})


@pytest.mark.parametrize("seed", range(20))
def test_tile_is_mean_plus_alpha_unbiased_deviations(seed):
    video = np.random.default_rng(seed).normal(size=(seed + 3, 6))
    depths = depth_scores(adjacent_cosine(video))
    limit = np.mean(depths) + 0.5 * np.sqrt(np.sum((depths - np.mean(depths)) ** 2) / (seed + 1))
    assert tile(video) == [gap + 1 for gap, depth in enumerate(depths) if depth > limit]


def test_tile_takes_the_deepest_and_at_most_max_segments():
    rng = np.random.default_rng(6)
    video = np.concatenate([scene(rng, length, 0.02) for length in (30, 12, 25, 18)])
    assert tile(video, num_boundaries=3) == tile(video, alpha=3) == [30, 42, 67]
    assert len(tile(video, num_boundaries=99)) == 15
    assert len(tile(rng.normal(size=(300, 8)))) == 15
    assert len(tile(rng.normal(size=(300, 8)), max_segments=4)) == 3
    with pytest.raises(ValueError, match="max_segments=0"):
        tile(video, max_segments=0)


def test_tile_of_a_video_without_a_deviation_has_no_boundary():
    assert [tile(np.ones((length, 3))) for length in (1, 2, 3, 16)] == [[], [], [], []]


def test_the_module_needs_no_torch():
    source = Path(scenetilling.__file__).read_text(encoding="utf-8")
    assert "torch" not in source


# -- frames far apart --


def test_a_scene_of_one_frame_is_one_where_a_peak_is_known():
    rng = np.random.default_rng(0)
    video = np.concatenate([scene(rng, length, noise=0.1) for length in (1, 1, 3, 1, 2, 1)])
    config = SceneTillingConfig(peak=0.8, alpha=0.0, min_frames=1, flash_frames=0)
    assert cuts(run(video, config)) == [1, 2, 5, 6, 8]
    assert cuts(run(video, config, [1])) == [1, 2, 5, 6, 8]
    assert len(cuts(run(video, dataclasses.replace(config, peak=-1.0)))) < 5


def test_a_known_peak_moves_no_boundary_of_scenes_that_reach_it():
    rng = np.random.default_rng(1)
    video = np.concatenate([scene(rng, 12) for _ in range(8)])
    found = [cuts(run(video, SceneTillingConfig(peak=peak))) for peak in (-1.0, 0.5)]
    assert found[0] == found[1] and len(found[0]) == 7


def test_frames_above_the_cosine_that_peak_and_floor_leave_are_one_scene():
    config = SceneTillingConfig(peak=0.8, floor=0.6, alpha=0.0, min_frames=1, flash_frames=0)
    video = along([0.55, 0.52, 0.45, 0.55, 0.49])
    assert cuts(run(video, config)) == [3, 5]
