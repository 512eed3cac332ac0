import numpy as np
import pytest

from streammem.confidence import NEAREST, Certainty, fit, signs


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def keys():
    rng = np.random.default_rng(0)
    return (
        unit(rng.normal(size=(40, 16))),
        unit(rng.normal(size=(3, 16))),
        unit(rng.normal(size=16)),
    )


def test_signs_are_those_of_the_picture_that_fits_the_words_best(keys):
    background, pictures, words = keys
    best = pictures[(pictures @ words).argmax()]
    agreement, excess, near, mean = signs(pictures, words, background)
    chance = background @ words
    assert agreement == pytest.approx(best @ words)
    assert excess == pytest.approx((best @ words - chance.mean()) / chance.std())
    assert near == pytest.approx(np.mean(sorted(background @ best)[-NEAREST:]))
    assert mean == pytest.approx((background @ best).mean())


def test_a_fit_finds_the_odds_that_made_the_examples():
    rng = np.random.default_rng(1)
    seen = rng.normal([0.5, 3, 0.5, 0], [0.1, 0.5, 0.05, 0.02], (20_000, 4))
    true = Certainty((2.0, 0.5, 8.0, -10.0), -5.0)
    right = rng.random(len(seen)) < [true(row) for row in seen]
    found = fit(seen, right.astype(float))
    error = [abs(found(row) - true(row)) for row in seen[:500]]
    assert max(error) < 0.06
    assert np.mean([found(row) for row in seen]) == pytest.approx(right.mean(), abs=1e-3)


def test_a_fit_of_examples_that_are_all_alike_is_refused(keys):
    with pytest.raises(ValueError, match="right and that are wrong"):
        fit(np.zeros((5, 4)), np.ones(5))
