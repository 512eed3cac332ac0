"""Laws of the per-frame signature, of changes seen in it, and of the join with embeddings."""

import pickle
from itertools import cycle, pairwise

import numpy as np
import pytest

from streammem.errors import BackboneError, ConfigError
from streammem.perception import scenetilling
from streammem.perception.scenetilling import Boundary, Score
from streammem.perception.signature import (
    PLANE,
    SAME_SCENE,
    WIDTH,
    Change,
    ChangeConfig,
    ChangeDetector,
    join,
    signature,
)

CONFIG = ChangeConfig(fps=25)
SEEDS = range(10)


def place(rng):
    """[18, 32, 3] float: a picture of a few coloured patches."""
    coarse = rng.uniform(0, 255, (3, 4, 3))
    return np.kron(coarse, np.ones((6, 8, 1)))


def shot(rng, picture, length, noise=6.0):
    """[length, 18, 32, 3] uint8: the picture under fresh noise."""
    frames = picture + rng.normal(0, noise, (length, *PLANE, 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def mixed(rng, old, new, length, through=None):
    """[length, ...] uint8: a dissolve, or a fade ``through`` a colour."""
    frames = []
    for step in (np.arange(length) + 1) / (length + 1):
        if through is None:
            frames.append(old * (1 - step) + new * step)
        else:
            near = old if step < 0.5 else new
            weight = abs(2 * step - 1)
            frames.append(near * weight + through * (1 - weight))
    frames = np.array(frames).reshape(-1, *PLANE, 3) + rng.normal(0, 6.0, (length, *PLANE, 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def sign(*shots):
    return np.stack([signature(plane) for plane in np.concatenate(shots)])


def run(signatures, config=CONFIG, sizes=(10**6,), detector=None):
    """All changes; pushed in batches of the given sizes, cycled."""
    detector = detector or ChangeDetector(config)
    sizes, changes, at = cycle(sizes), [], 0
    while at < len(signatures):
        size = next(sizes)
        changes += detector.push(signatures[at : at + size]).changes
        at += size
    return [*changes, *detector.flush().changes]


def same_state(left, right):
    assert pickle.dumps(left) == pickle.dumps(right)


def frames_of(changes):
    return [(change.frame, change.kind) for change in changes]


def test_a_signature_is_112_numbers_and_compares_as_its_picture():
    rng = np.random.default_rng(0)
    first, other = place(rng), place(rng)
    a, again, b = (signature(shot(rng, p, 1)[0]) for p in (first, first, other))
    assert a.shape == (WIDTH,) == (112,)
    assert np.sum(a[:64] ** 2) == pytest.approx(1)
    assert a @ again > 0.99 > 0.9 > a @ b
    assert 0.1 < np.linalg.norm(a[64:]) < 0.2  # the layout weighs little


def test_a_signature_of_one_colour_is_its_histogram_alone():
    grey = signature(np.full((*PLANE, 3), 90, np.uint8))
    assert np.all(grey[64:] == 0)
    levels = (np.arange(4)[:, None] - (np.array([90 // 16]) + 0.5) / 4 + 0.5)[:, 0]
    hat = np.maximum(0, 1 - np.abs(levels))  # 90 lies between the second and the first bin
    assert np.allclose(grey[:64], np.sqrt(np.einsum("i,j,k->ijk", hat, hat, hat).ravel()))


@pytest.mark.parametrize("sizes", [(1,), (7, 1, 23)])
def test_one_by_one_equals_batches_equals_all_at_once(sizes):
    rng = np.random.default_rng(1)
    a, b, c = place(rng), place(rng), place(rng)
    signatures = sign(
        shot(rng, a, 61), shot(rng, b, 47), mixed(rng, b, c, 20), shot(rng, c, 70), shot(rng, a, 33)
    )
    at_once, detector = ChangeDetector(CONFIG), ChangeDetector(CONFIG)
    whole = run(signatures, detector=at_once)
    assert len(whole) == 3
    assert run(signatures, sizes=sizes, detector=detector) == whole
    assert detector.snapshot().offset == at_once.snapshot().offset == len(signatures)


@pytest.mark.parametrize("cut", [0, 1, 62, 118, 140, 231])
def test_restored_from_a_snapshot_it_goes_on_as_it_would_have(cut):
    rng = np.random.default_rng(1)
    a, b, c = place(rng), place(rng), place(rng)
    signatures = sign(
        shot(rng, a, 61), shot(rng, b, 47), mixed(rng, b, c, 20), shot(rng, c, 70), shot(rng, a, 33)
    )
    whole = run(signatures)
    first, second = ChangeDetector(CONFIG), ChangeDetector(CONFIG)
    before = first.push(signatures[:cut]).changes
    saved = pickle.dumps(first.snapshot())
    second.push(signatures[50:90])  # what it did before does not matter
    second.restore(pickle.loads(saved))
    for detector in (first, second):
        assert [*before, *run(signatures[cut:], sizes=(3,), detector=detector)] == whole


def test_the_future_never_changes_a_settled_change():
    rng = np.random.default_rng(2)
    a, b, c = place(rng), place(rng), place(rng)
    past = sign(shot(rng, a, 60), mixed(rng, a, b, 20), shot(rng, b, 60), shot(rng, c, 60))
    detector, settled = ChangeDetector(CONFIG), []
    for row in past:
        settled += detector.push(row).changes
    assert len(settled) == 2
    for future in (shot(rng, c, 80), shot(rng, a, 80), mixed(rng, c, b, 80)):
        whole = run(np.concatenate([past, sign(future)]))
        assert whole[:2] == settled


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hard_cut_is_placed_to_the_frame_and_noise_does_not_cut(seed):
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 20)
    signatures = sign(shot(rng, place(rng), 203, noise), shot(rng, place(rng), 150, noise))
    assert frames_of(run(signatures)) == [(203, "cut")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_flash_does_not_cut(seed, length):
    rng = np.random.default_rng(seed)
    room = place(rng)
    bright = np.clip(room * 0.3 + 180, 0, 255)
    signatures = sign(shot(rng, room, 70 + seed), shot(rng, bright, length), shot(rng, room, 80))
    assert run(signatures) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("through", [None, 0.0])
def test_a_dissolve_and_a_fade_are_one_gradual_change_within_themselves(seed, through):
    rng = np.random.default_rng(seed)
    a, b, length = place(rng), place(rng), int(rng.integers(10, 30))
    signatures = sign(shot(rng, a, 88), mixed(rng, a, b, length, through), shot(rng, b, 90))
    changes = run(signatures)
    assert len(changes) == 1
    assert changes[0].kind == "gradual" or through is not None
    assert 88 <= changes[0].frame <= 88 + length


def turned(angles):
    """[N, 112] unit signatures in one plane, at the given angles."""
    signatures = np.zeros((len(angles), WIDTH))
    signatures[:, 0], signatures[:, 1] = np.cos(angles), np.sin(angles)
    return signatures


@pytest.mark.parametrize("seed", range(40))
def test_one_by_one_equals_all_at_once_where_the_fine_rate_settles_last(seed):
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(8):  # a jump, then ever smaller steps: a climb of one second between frames
        sizes = np.linspace(0.3, 0.01, 24 + int(rng.integers(-6, 2)))
        signs = np.where(np.arange(len(sizes)) % 2, 1, -1)
        signs[int(rng.integers(4, 12)) :] = 1  # that lead nowhere first, and then somewhere
        steps += [1.0, *(sizes * signs)]
    signatures = turned(np.cumsum(steps) % np.pi)
    config = ChangeConfig(fps=25, gradual_floor=0.02, cut_floor=0.02)
    assert run(signatures, config, sizes=(1,)) == run(signatures, config)


@pytest.mark.parametrize("gap", range(1, 6))
def test_a_gradual_change_beside_a_cut_is_told_as_the_cut(gap):
    rng = np.random.default_rng(10)
    angles = np.concatenate(
        [np.zeros(101), np.linspace(0.2, 1.0, 9), np.ones(gap), np.full(60, 1.7), np.full(60, 1.7)]
    )
    signatures = turned(angles + rng.normal(0, 0.003, len(angles)))
    assert frames_of(run(signatures)) == [(110 + gap, "cut")]


def test_a_cut_at_any_place_between_samples_is_told_once():
    rng = np.random.default_rng(9)
    a, b = place(rng), place(rng)
    for length in range(60, 72):
        signatures = sign(shot(rng, a, length), shot(rng, b, 70))
        assert frames_of(run(signatures)) == [(length, "cut")]


def test_changes_come_in_order_and_a_cut_is_told_once_though_both_rates_see_it():
    rng = np.random.default_rng(3)
    places = [place(rng) for _ in range(12)]
    parts, cuts = [], []
    for number, (old, new) in enumerate(pairwise(places)):
        parts += [shot(rng, old, 50 + number)] + [mixed(rng, old, new, 16)] * (number % 2)
        cuts += [] if number % 2 else [sum(map(len, parts))]
    changes = run(sign(*parts, shot(rng, places[-1], 60)))
    assert [change.frame for change in changes if change.kind == "cut"] == cuts
    assert len(changes) == 11
    assert [c.frame for c in changes] == sorted(c.frame for c in changes)


def test_a_cut_after_the_last_sample_is_told_by_flush():
    rng = np.random.default_rng(4)
    signatures = sign(shot(rng, place(rng), 101), shot(rng, place(rng), 8))
    assert frames_of(run(signatures)) == [(101, "cut")]


@pytest.mark.parametrize("seed", [0, 3])
def test_a_jump_in_the_dark_of_a_fade_is_no_second_change(seed):
    rng = np.random.default_rng(seed)
    old, new = place(rng), place(rng)
    fade = mixed(rng, old, new, 40, through=0)
    for jump in range(14, 24):
        jumped = np.concatenate([fade[:jump], fade[jump + 3 :]])
        signatures = sign(shot(rng, old, 137), jumped, shot(rng, new, 140))
        assert len(run(signatures)) == 1


def test_flush_is_idempotent_and_numbers_go_on_after_it():
    rng = np.random.default_rng(5)
    detector = ChangeDetector(CONFIG)
    run(sign(shot(rng, place(rng), 33)), detector=detector)
    once = detector.snapshot()
    assert detector.flush() == ((), ())
    same_state(once, detector.snapshot())
    assert once.offset == detector.decided_until == 33
    more = sign(shot(rng, place(rng), 60), shot(rng, place(rng), 60))
    assert frames_of(run(more, detector=detector)) == [(93, "cut")]


def test_state_is_flat_over_20000_frames_and_a_push_leaves_a_snapshot_as_it_was():
    rng = np.random.default_rng(6)
    signatures = sign(*(shot(rng, place(rng), 50) for _ in range(20)))
    detector, sizes = ChangeDetector(CONFIG), []
    for _ in range(20):
        before = detector.snapshot()
        copy = pickle.loads(pickle.dumps(before))
        found = detector.push(signatures)
        state = detector.snapshot()
        sizes.append(len(state.scores) + len(state.cuts) + len(state.gradual))
    assert state.frames == 20_000
    for each in (before, copy):
        detector.restore(each)
        assert detector.push(signatures) == found
    assert max(sizes) <= 12 * CONFIG.step
    assert len(state.fine.rows) + len(state.coarse.rows) <= 14


@pytest.mark.parametrize("fps", [2, 8, 24, 60])
def test_it_works_at_any_frame_rate(fps):
    rng = np.random.default_rng(7)
    config = ChangeConfig(fps=fps)
    signatures = sign(shot(rng, place(rng), 6 * fps), shot(rng, place(rng), 6 * fps))
    assert frames_of(run(signatures, config)) == [(6 * fps, "cut")]


def test_bad_input_raises_in_one_line():
    with pytest.raises(ValueError, match=r"\(18, 32\) uint8: give \(18, 32, 3\)"):
        signature(np.zeros(PLANE, np.uint8))
    with pytest.raises(ValueError, match="float64"):
        signature(np.zeros((*PLANE, 3)))
    with pytest.raises(ValueError, match=r"give \[T, 112\]"):
        ChangeDetector(CONFIG).push(np.zeros((3, 4)))
    with pytest.raises(BackboneError, match="frame 1"):
        ChangeDetector(CONFIG).push(np.stack([np.ones(WIDTH), np.full(WIDTH, np.nan)]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("fps", 0), ("fps", np.inf), ("step_s", 0), ("cut_floor", 5), ("flash_s", -1)],
)
def test_an_option_out_of_range_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"{option}="):
        ChangeConfig(**{"fps": 25, option: value})


def seen(*cosines):
    """[S, D] rows whose neighbours have these cosines; rows further apart have their products."""
    rows = [np.eye(len(cosines) + 1)[0]]
    for number, cosine in enumerate(cosines, 1):
        rows.append(rows[-1] * cosine)
        rows[-1][number] = np.sqrt(1 - cosine**2)
    return np.stack(rows)


SAMPLES = [0, 10, 20, 30, 40, 50]


def test_join_drops_a_cut_between_samples_that_look_alike():
    changes = [Change(10, 0.3, "cut"), Change(25, 0.3, "cut")]
    boundaries = [Boundary(3, 1.5, "cut")]
    assert join(changes, boundaries, seen(0.9, 0.95, 0.1, 0.9), SAMPLES) == (changes[1],)
    less_alike = seen(SAME_SCENE - 0.01, 0.95, 0.1, 0.9)
    assert join(changes, boundaries, less_alike, SAMPLES) == tuple(changes)


def test_join_looks_at_the_gap_of_a_cut_alone():
    change = Change(25, 0.3, "cut")
    assert join([change], [], seen(0.1, 0.1, 0.9, 0.1, 0.1), SAMPLES) == ()


@pytest.mark.parametrize("shown_at", [1, 2, 3, 4, 5, None])
def test_join_drops_a_gradual_change_that_no_gap_around_it_shows(shown_at):
    change = Change(25, 0.3, "gradual")  # between the samples 2 and 3
    cosines = [0.2 if number == shown_at else 0.8 for number in range(1, 6)]
    expected = (change,) if shown_at in (2, 3, 4) else ()
    assert join([change], [], seen(*cosines), SAMPLES) == expected


@pytest.mark.parametrize("back_after", [1, 2])
def test_join_drops_a_gradual_change_of_which_nothing_is_left_a_sample_later(back_after):
    """Something moves into the picture before sample 3 and out of it again."""
    change = Change(25, 0.3, "gradual")
    rows = np.repeat([[1.0, 0.0]], 6, axis=0)
    rows[3 : 3 + back_after] = 0.3, 1.0
    expected = (change,) if back_after == 2 else ()
    assert join([change], [], rows, SAMPLES) == expected


def test_a_gap_with_a_change_of_its_own_does_not_speak_for_the_gradual_change_beside_it():
    rows = seen(0.9, 0.9, 0.9, 0.1, 0.9)
    gradual = Change(25, 0.3, "gradual")
    cut = Change(35, 0.3, "cut")
    assert join([gradual], [], rows, SAMPLES) == (gradual,)
    assert join([gradual, cut], [], rows, SAMPLES) == (cut,)


@pytest.mark.parametrize("frame", range(1, 80))
def test_join_adds_a_boundary_that_only_embeddings_see_within_one_sample(frame):
    samples = [0, 10, 20, 30, 40, 50, 60, 70]
    rows = seen(*[0.5] * 7)
    change = Change(frame, 0.3, "cut")
    joined = join([change], [Boundary(4, 1.2, "cut"), Boundary(6, None, "max")], rows, samples)
    added = () if 20 < frame <= 50 else (Change(40, 1.2, "gradual"),)
    assert joined == tuple(sorted((change, *added), key=lambda change: change.frame))
    assert join([], [], rows, samples) == ()


@pytest.mark.parametrize("cut", range(31, 41))
def test_a_boundary_that_only_embeddings_see_is_placed_where_the_signature_changed_most(cut):
    likeness = dict.fromkeys(range(1, 51), 0.999) | {30: 0.5, cut: 0.998, 41: 0.5}
    frame_scores = [Score(frame, value, 0.0) for frame, value in likeness.items()]
    (placed,) = join([], [Boundary(4, 1.2, "cut")], seen(*[0.5] * 5), SAMPLES, frame_scores)
    assert placed == Change(cut, 1.2, "gradual")


def test_scores_of_frames_come_one_by_one_as_all_at_once_and_numbered_after_a_flush():
    rng = np.random.default_rng(11)
    signatures = sign(shot(rng, place(rng), 40), shot(rng, place(rng), 40))
    detector, given = ChangeDetector(CONFIG), []
    for part in np.split(signatures, range(1, 50)):
        scores, changes = detector.push(part)
        given += scores
        assert all(change.frame <= given[-1].frame for change in changes)
    given += detector.flush().scores
    assert [score.frame for score in given] == list(range(1, 80))
    assert min(given, key=lambda score: score.similarity).frame == 40
    detector.push(signatures[:30])
    assert [score.frame for score in detector.flush().scores][-1] == 109


def test_join_keeps_what_lies_outside_the_samples():
    changes = [Change(1, 0.3, kind) for kind in ("cut", "gradual")]
    changes += [Change(99, 0.3, "cut")]
    assert join(changes, [], seen(0.1), [5, 10]) == tuple(changes)


def test_scenetilling_reads_signatures_as_it_reads_embeddings():
    rng = np.random.default_rng(8)
    signatures = sign(shot(rng, place(rng), 30), shot(rng, place(rng), 30))
    config = scenetilling.SceneTillingConfig(floor=CONFIG.cut_floor)
    pushed = scenetilling.SceneTilling(config).push(signatures)
    assert [b.index for b in pushed.boundaries] == [30]
