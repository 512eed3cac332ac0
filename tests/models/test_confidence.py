import numpy as np
import pytest

from streammem.models.caption_scores import (
    NEAREST,
    ConfidenceModel,
    confidence_features,
    first_phrase,
    fit_confidence,
    fit_nouns,
    noun_features,
    nouns_of,
    sure_beginnings,
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
        ("A man. A dog.", "A man"),
        ("A man! A dog is in the snow.", "A man"),
        ("Dogs. A cat.", "Dogs"),
        ("Dogs are playing; a cat sleeps.", "Dogs are playing"),
        ("A St. Bernard dog is in the snow.", "A St. Bernard dog"),
        ("A U.S. flag is in the snow.", "A U.S. flag"),
        ("Two dogs ; one leaps .", "Two dogs"),
        ("Dogs, cats and a man.", "Dogs, cats"),
        ("", ""),
    ],
)
def test_a_first_phrase_ends_before_the_function_word_that_follows_it(caption, phrase):
    assert first_phrase(caption) == phrase
    assert caption.startswith(phrase)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man in a red shirt is standing.", "man shirt"),
        ("A group of people are sitting in front of a building.", "people building"),
        ("A black and white dog is holding a red and white toy.", "dog toy"),
        ("Two dogs play in the grass.", "dogs grass"),
        ("A boy rides a bike through a park.", "boy bike park"),
        ("A bench sits next to a man and a woman.", "bench man woman"),
        ("A pizza is being cooked in a kitchen.", "pizza kitchen"),
        ("A little girl is swinging on a swing.", "girl swing"),
        ("A room with a sink, a cabinet and a bottle.", "room sink cabinet bottle"),
        ("Glasses and a bus.", "glasses bus"),
        ("A tennis racket, a ball.", "racket ball"),
        ("A teddy bear, a dog.", "bear dog"),
        ("A man in a red shirt. A dog.", "man shirt dog"),
        ("A black dog, a brown dog.", "dog dog"),
        ("Wine glasses, plates; a tea kettle!", "glasses plates kettle"),
        ("A large, red and white plane.", "plane"),
        ("Running.", "Running."),  # the whole of it
        ("", ""),
    ],
)
def test_nouns_are_the_last_words_of_noun_phrases_and_a_caption_may_end_behind_each(caption, words):
    nouns = nouns_of(caption)
    assert " ".join(noun.word for noun in nouns) == words
    for noun in nouns:
        assert caption[: noun.end].lower().endswith(noun.word.lower())
    assert [noun.end for noun in nouns] == sorted({noun.end for noun in nouns})


def test_a_noun_is_as_likely_as_others_name_it_or_a_kind_of_it():
    others = ["A dog runs.", "Dogs on a lawn.", "A cat.", "A puppy in the grass."]
    seen = noun_features(nouns_of("A dog is on the grass."), np.arange(4.0), others)
    assert seen[:, 0].tolist() == [0.75, 0.25]
    assert (seen[:, 1:] == np.arange(4.0)).all()


@pytest.mark.parametrize(
    ("caption", "others", "shares"),
    [
        ("Someone is riding a bike.", ["Someone on a bike.", "A person."], [0.5, 0.5]),
        ("A saw on a table.", ["A saw.", "A seesaw on a table."], [0.5, 0.5]),
        ("A dog show.", ["A dog at a show.", "The show"], [1.0]),
        ("It is there.", ["It is there.", "A dog."], [0.0]),  # no noun
        ("", ["", "A dog."], [0.0]),
    ],
)
def test_a_noun_that_is_a_function_word_elsewhere_is_named_by_the_same_word(
    caption, others, shares
):
    assert noun_features(nouns_of(caption), np.zeros(4), others)[:, 0].tolist() == shares


def test_no_beginning_is_surer_than_a_shorter_one():
    chances = np.random.default_rng(0).random(6)
    sure = sure_beginnings(chances)
    assert sure[0] == chances[0] and sure[-1] == pytest.approx(chances.prod())
    assert (np.diff(sure) <= 0).all()


def test_what_people_leave_out_does_not_count_against_a_noun():
    """The rare mention of a street is no evidence against what streets have in common."""
    rng = np.random.default_rng(2)
    words = np.array(["dog", "street"])[rng.integers(0, 2, 20_000)]
    street = words == "street"
    seen = rng.normal(size=(len(words), 5))
    seen[:, 0] += 2 * street  # which others name more often
    odds = 1.5 * seen[:, 0] - 6 * street
    right = (rng.random(len(words)) < 1 / (1 + np.exp(-odds))).astype(float)
    found = fit_nouns(seen, right, list(words), np.zeros(len(words), bool))
    assert 1 < found.weights[0] < 1.6  # held small
    assert found(seen).mean() == pytest.approx(right.mean(), abs=1e-3)
    rare = [f"{word} {i // 3}" for i, word in enumerate(words)]  # none often enough
    assert fit_nouns(seen, right, rare, np.zeros(len(words), bool)).weights[0] < 0.5


def test_nouns_of_spoiled_pictures_are_less_likely_and_do_not_lower_those_of_photos():
    rng = np.random.default_rng(3)
    seen = rng.normal(size=(3000, 5))
    spoiled = np.arange(3000) % 2 == 0
    seen[spoiled, 3] -= 2
    right = np.where(spoiled, 0.0, rng.random(3000) < 0.7)
    words = [f"noun {i // 4}" for i in range(3000)]  # none often enough for an offset
    found = fit_nouns(seen, right, words, spoiled)
    assert found.weights[3] > 1
    assert found(seen[~spoiled]).mean() == pytest.approx(0.7, abs=0.05)
    assert found(seen[spoiled]).mean() < 0.3


def test_a_fit_of_nouns_that_are_all_right_is_refused():
    with pytest.raises(ValueError, match="right and that are wrong"):
        fit_nouns(np.zeros((6, 5)), np.ones(6), ["man"] * 6, np.zeros(6, bool))
