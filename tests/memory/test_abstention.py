import numpy as np
import pytest

from streammem.memory import abstention
from streammem.memory.abstention import fit, normalise, threshold
from tests.memory.entries import unit

DIM, QUERIES = 64, 200
SIZES = (100, 1_000, 10_000, 100_000)


def best_scores(seed=0):
    """Best cosine of queries with n random keys, for each n; and the queries' background."""
    keys = unit(SIZES[-1], seed=3 * seed + 1, dim=DIM)
    queries, bank = unit(QUERIES, seed=3 * seed + 2, dim=DIM), unit(1_000, seed=9, dim=DIM)
    cosines = queries @ keys.T  # [Q, N]
    return {n: cosines[:, :n].max(axis=1) for n in SIZES}, queries @ bank.T


@pytest.fixture
def fitted():
    """The constants of random keys, which are not those of pictures."""
    best, background = best_scores(seed=1)
    return fit([(n, best[n], background) for n in SIZES])


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_after_a_fit_false_sightings_come_at_the_rate_in_a_memory_of_any_size(fitted, rate):
    best, background = best_scores()
    fixed = np.quantile(best[100], 1 - rate)
    scores = [normalise(best[n][:, None], background, n, fitted) for n in SIZES]
    ours = [(each > threshold(rate)).mean() for each in scores]
    control = [(best[n] > fixed).mean() for n in SIZES]
    # 200 questions at a rate of 0.1 or 0.3: deviation 0.02 or 0.03; growth is not quite linear.
    assert ours == pytest.approx([rate] * 4, abs=0.11)
    assert control[-1] >= 0.9


def test_what_is_there_is_seen_in_a_memory_of_any_size(fitted):
    _, background = best_scores()
    for n in SIZES:
        scores = normalise(np.full((QUERIES, 1), 0.9), background, n, fitted)
        assert (scores > threshold(0.01)).all()


def test_the_score_that_is_needed_grows_with_the_root_of_the_logarithm_of_the_size():
    background = np.random.default_rng(0).normal(size=1_000)
    at_0 = [normalise(np.zeros(1), background, n)[0] for n in SIZES]
    steps = np.diff(at_0) / np.diff(np.sqrt(np.log(SIZES)))
    assert (steps < 0).all() and np.ptp(steps) < 1e-9


def test_a_fit_finds_the_constants_that_its_questions_came_from():
    rng, background = np.random.default_rng(0), np.tile(np.linspace(-2, 2, 500), (4_000, 1))
    tail, deviation = background[0, -5:].mean(), background[0].std()
    told = []
    for n in SIZES:
        z = rng.gumbel(-2.0 + 0.4 * np.sqrt(2 * np.log(n)), 0.3, 4_000)
        told.append((n, tail + deviation * z, background))
    location, growth, scale = fit(told)
    # 4,000 draws a size: a quantile is good to 0.01; the location lies far outside the sizes.
    assert (growth, scale) == pytest.approx((0.4, 0.3), abs=0.03)
    assert location == pytest.approx(-2.0, abs=0.1)


def test_the_constants_shipped_ask_for_more_in_a_larger_memory():
    assert abstention.CHANCE.growth > 0 and abstention.CHANCE.scale > 0


def test_shifting_and_scaling_all_scores_of_a_query_changes_nothing():
    rng = np.random.default_rng(0)
    scores, background = rng.normal(size=5), rng.normal(size=300)
    np.testing.assert_allclose(
        normalise(3 * scores + 1, 3 * background + 1, 50), normalise(scores, background, 50)
    )


def test_a_background_without_spread_gives_finite_scores():
    assert np.isfinite(normalise(np.array([0.5]), np.ones(10), 10)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: normalise(np.ones(1), np.ones(1), 5),
        lambda: normalise(np.ones(1), np.ones(5), 1),
        lambda: threshold(0.0),
        lambda: fit([(10, np.ones(4), np.ones((4, 9)))]),
    ],
)
def test_too_little_to_judge_by_is_refused(call):
    with pytest.raises(ValueError):
        call()
