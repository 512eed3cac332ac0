import numpy as np
import pytest

from streammem.models.caption_scores import (
    NEAREST,
    ConfidenceModel,
    confidence_features,
    first_phrase,
    fit_confidence,
)


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
    background, pictures, words = (unit(rows[..., :-1]) for rows in keys)
    best = pictures[(pictures @ words).argmax()]
    given = [unit(rows) for rows in (keys[1], keys[2], keys[0])]
    agreement, excess, near, mean = confidence_features(*given)
    chance = background @ words
    assert agreement == pytest.approx(best @ words)
    assert excess == pytest.approx((best @ words - chance.mean()) / chance.std())
    assert near == pytest.approx(np.mean(sorted(background @ best)[-NEAREST:]))
    assert mean == pytest.approx((background @ best).mean())


def test_the_last_place_of_a_key_says_nothing(keys):
    background, pictures, words = keys
    moved = pictures.copy()
    moved[:, -1] += 3
    assert confidence_features(unit(moved), words, background) == pytest.approx(
        confidence_features(pictures, words, background)
    )


def test_a_fit_finds_the_odds_that_made_the_examples():
    rng = np.random.default_rng(1)
    seen = rng.normal([0.5, 3, 0.5, 0], [0.1, 0.5, 0.05, 0.02], (20_000, 4))
    true = ConfidenceModel((2.0, 0.5, 8.0, -10.0), -5.0)
    right = rng.random(len(seen)) < [true(row) for row in seen]
    found = fit_confidence(seen, right.astype(float))
    error = [abs(found(row) - true(row)) for row in seen[:500]]
    assert max(error) < 0.06
    assert np.mean([found(row) for row in seen]) == pytest.approx(right.mean(), abs=1e-3)


def test_a_fit_of_examples_that_are_all_alike_is_refused(keys):
    with pytest.raises(ValueError, match="right and that are wrong"):
        fit_confidence(np.zeros((5, 4)), np.ones(5))


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("A man in a red shirt is standing.", "A man"),
        ("Two dogs are running through the grass.", "Two dogs"),
        ("A group of people are standing in the water.", "A group of people"),
        ("A brown dog,  which runs, is wet.", "A brown dog"),
        ("A  dog  runs\nin the snow.", "A  dog  runs"),
        ("Dogs are playing.", "Dogs are playing."),
        ("There is a dog.", "There is a dog."),
        ("Dogs are in the snow.", "Dogs are in the snow."),
        ("", ""),
    ],
)
def test_a_first_phrase_ends_before_the_function_word_that_follows_it(caption, phrase):
    assert first_phrase(caption) == phrase
    assert caption.startswith(phrase)
