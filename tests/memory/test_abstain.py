import numpy as np
import pytest

from streammem.memory.abstain import calibrate, normalise, threshold
from tests.memory.entries import unit

DIM, QUERIES = 64, 100
SIZES = (100, 1_000, 10_000, 100_000)


def best_scores():
    """Best cosine of queries with n random keys, for each n; and the queries' background."""
    keys = unit(SIZES[-1], seed=1, dim=DIM)
    queries, bank = unit(QUERIES, seed=2, dim=DIM), unit(2_000, seed=3, dim=DIM)
    cosines = queries @ keys.T  # [Q, N]
    return {n: cosines[:, :n].max(axis=1) for n in SIZES}, queries @ bank.T


def test_false_sightings_do_not_grow_with_the_memory_and_without_normalising_they_do():
    best, background = best_scores()
    fixed = np.quantile(best[100], 0.9)
    ours = [(normalise(best[n][:, None], background, n) > threshold(0.1)).mean() for n in SIZES]
    control = [(best[n] > fixed).mean() for n in SIZES]
    # 100 questions at a rate of 0.1: deviation 0.03.
    assert max(ours) <= 0.2
    assert control[0] == pytest.approx(0.1, abs=0.02) and control[-1] >= 0.9


def test_what_is_there_is_seen_in_a_memory_of_any_size():
    _, background = best_scores()
    for n in SIZES:
        assert (normalise(np.full((QUERIES, 1), 0.9), background, n) > threshold(0.01)).all()


def test_the_score_that_is_needed_grows_with_the_logarithm_of_the_size():
    background = np.random.default_rng(0).normal(size=1_000)
    needed = []
    for n in SIZES:
        scores = np.linspace(0, 8, 8_001)
        needed.append(scores[np.argmax(normalise(scores, background, n) > threshold(0.05))])
    steps = np.diff(np.square(needed)) / np.log(10)
    assert (steps > 0).all() and steps.max() < 1.5 * steps.min(), "z^2 rises by ~2 log 10 a decade"


def test_shifting_and_scaling_all_scores_of_a_query_changes_nothing():
    rng = np.random.default_rng(0)
    scores, background = rng.normal(size=5), rng.normal(size=300)
    np.testing.assert_allclose(
        normalise(3 * scores + 1, 3 * background + 1, 50), normalise(scores, background, 50)
    )


def test_a_background_without_spread_gives_finite_scores():
    assert np.isfinite(normalise(np.array([0.5]), np.ones(10), 10)).all()


def test_calibrating_keeps_the_rate_on_its_questions():
    absent = np.random.default_rng(0).normal(size=500)
    assert (absent > calibrate(absent, 0.1)).mean() <= 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda: normalise(np.ones(1), np.ones(1), 5),
        lambda: normalise(np.ones(1), np.ones(5), 1),
        lambda: threshold(0.0),
        lambda: calibrate(np.array([]), 0.1),
    ],
)
def test_too_little_to_judge_by_is_refused(call):
    with pytest.raises(ValueError):
        call()
