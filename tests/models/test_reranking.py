"""Which of several captions is said: the one that fits the picture, whatever is likeliest."""

from dataclasses import replace

import numpy as np
import pytest

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.errors import ConfigError
from streammem.evaluation.pictures import PictureModel
from streammem.models.backbones.language import GrowingReply
from streammem.models.caption_scores import Reranker, best_reply, fit_reranker, reranking_features
from streammem.types import Caption
from streammem.video import open_source
from tests.tiny import film, tiny_model

TEXTS = ("A man is running.", "A dog is running.", "A dog in snow.")
AGREEMENT, LIKELIEST = Reranker((1.0, 0.0), 4), Reranker((0.0, 1.0), 4)
FILM = film(("red", 4), ("blue", 4), ("green", 4))


def replies(*log_probs):
    return tuple(GrowingReply(t, [1, 2], [p, p]) for t, p in zip(TEXTS, log_probs, strict=True))


def chosen(model, said, pictures):
    return best_reply(model.reranker, model.sentence_keys, said, pictures)[0].text


@pytest.fixture(scope="module")
def model():
    return replace(tiny_model(), reranker=AGREEMENT)


def test_suites_caption_a_picture_as_a_session_does(model):
    frames = film(("red", 2), ("green", 2), ("blue", 2))
    pictures = [frame.pixels for frame in frames]
    likeliest = PictureModel(replace(model, reranker=LIKELIEST)).caption_pictures(pictures)
    texts = PictureModel(model).caption_pictures(pictures)
    assert texts != likeliest, "else it would show nothing"
    for frame, text in zip(frames, texts, strict=True):
        events = watch(Session(model), [frame])
        assert [event.text for event in events if isinstance(event, Caption)] == [text]


def test_the_caption_that_is_nearest_to_the_picture_is_chosen(model):
    for number, text in enumerate(TEXTS):
        picture = model.sentence_keys([text])
        said = replies(*(-0.1 if i != number else -5.0 for i in range(3)))
        assert chosen(model, said, picture) == text
        assert chosen(replace(model, reranker=None), said, picture) == TEXTS[0]


def test_of_several_pictures_the_one_that_fits_best_counts(model):
    keys = model.sentence_keys(TEXTS)
    seen = reranking_features([0.0] * 3, keys, keys[1:2])
    both = reranking_features([0.0] * 3, keys, keys[1:])
    assert seen[1, 0] == pytest.approx(1)
    assert both[1:, 0] == pytest.approx([1, 1])
    assert (both[:, 0] >= seen[:, 0] - 1e-6).all()


def test_a_caption_that_names_what_is_there_is_chosen_as_far_as_naming_counts(model):
    key, said = model.sentence_keys(["A dog in snow."]), replies(-1.0, -1.0, -1.0)
    seen = reranking_features([-1.0] * 3, model.sentence_keys(TEXTS), key)[:, 0]
    gap = float(seen[2] - seen[0])

    def naming(texts):
        asked.append(list(texts))
        return np.array([1.0 if text == TEXTS[0] else -1.0 for text in texts])

    def best(weight, tell=naming):
        reranker = AGREEMENT._replace(naming=weight)
        return best_reply(reranker, model.sentence_keys, said, key, tell)[0].text

    asked: list[list[str]] = []
    assert best(0.6 * gap) == TEXTS[0]
    assert best(0.4 * gap) == TEXTS[2]
    assert best(0.6 * gap, None) == TEXTS[2], "where nothing names things, keys decide"
    assert asked == [list(TEXTS)] * 2, "each text is read once"
    best(0.0)
    assert len(asked) == 2, "nothing is read that does not count"


def test_the_likeliest_is_chosen_where_only_that_counts_and_the_first_of_equals(model):
    likeliest = replace(model, reranker=LIKELIEST)
    key = model.sentence_keys(TEXTS[:1])
    assert chosen(likeliest, replies(-3.0, -1.0, -2.0), key) == TEXTS[1]
    assert chosen(likeliest, replies(-1.0, -1.0, -1.0), key) == TEXTS[0]


def test_an_empty_caption_can_be_weighed(model):
    said = (GrowingReply("", [2], [-0.1]), GrowingReply("A man.", [1, 2], [-1.0, -1.0]))
    assert chosen(model, said, model.sentence_keys(["A man."])) == "A man."


def test_a_fit_finds_what_makes_captions_good():
    rng = np.random.default_rng(0)
    seen = [rng.normal(size=(6, 2)) * (0.1, 3.0) for _ in range(300)]
    # A picture's own level must not count: it is the same for all of its captions.
    worth = [rows @ (2.0, 0.1) + rng.normal(0, 0.1, 6) + 9 * rng.normal() for rows in seen]
    found = fit_reranker(seen, worth, 6)
    assert found.candidates == 6
    assert found.weights == pytest.approx((2.0, 0.1), abs=0.05)
    best = [rows[found(rows)] @ (2.0, 0.1) for rows in seen]
    most = [(rows @ (2.0, 0.1)).max() for rows in seen]
    assert np.mean(best) == pytest.approx(np.mean(most), abs=0.01)


def test_captions_that_do_not_differ_cannot_be_fitted():
    with pytest.raises(ValueError, match="differ"):
        fit_reranker([np.ones((3, 2))], [np.arange(3.0)], 3)


def test_a_merit_that_all_captions_have_alike_counts_nothing():
    seen = np.array([[0.1, -1.0], [0.3, -1.0]])
    first, other = fit_reranker([seen], [np.array([0.0, 1.0])], 2).weights
    assert first > 0 and other == 0


# -- in a session --


def described(session):
    scored = session.captioner.caption([session.request(s) for s in session.segments])
    return [each.of(s) for each, s in zip(scored, session.segments, strict=True)]


def test_watching_a_batch_and_one_by_one_choose_the_same_and_not_always_the_likeliest(model):
    watched = [e for e in watch(Session(model), FILM) if isinstance(e, Caption)]
    batched, single, greedy = (Session(model, SessionConfig(candidates=n)) for n in (None, 4, 1))
    for session in (batched, single, greedy):
        session.segments = [s for f in FILM for s in session.push(f)] + [*session.flush()]
    assert watched == described(batched)
    assert watched == [single.caption(segment) for segment in single.segments]
    assert watched != described(greedy)


def test_whoever_skims_hears_the_likeliest_unless_they_ask_for_more(model):
    def said(*, sparse=False, **config):
        source = open_source(FILM, fps=2.0, max_side=640, sparse=sparse)
        events = watch(Session(model, SessionConfig(**config)), source)
        return [event.text for event in events if isinstance(event, Caption)]

    likeliest, best = said(candidates=1), said()
    assert likeliest != best
    assert said(sparse=True) == likeliest
    assert said(sparse=True, candidates=4) == best


def test_words_are_heard_once_they_are_chosen(model):
    session, heard = Session(model), []
    assert session.captioner.withholds
    assert not Session(model, SessionConfig(candidates=1)).captioner.withholds
    segments = [s for frame in FILM for s in session.push(frame)] + [*session.flush()]
    told = session.caption(segments[0], heard.append)
    assert heard == [told.text]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 4),
        ({"candidates": 2}, 2),
        ({"instruction": "What is it?"}, 1),
        ({"instruction": "What is it?", "candidates": 3}, 3),
        ({"caption": {"num_beams": 2}}, 1),
        ({"caption": {"temperature": 0.3}}, 1),
    ],
)
def test_how_many_are_drawn(model, options, count):
    decoding = options.pop("caption", None)
    if decoding:
        options["caption"] = replace(model.decoding, **decoding)
    assert Session(model, SessionConfig(**options)).captioner.candidates == count
    options.pop("candidates", None)
    assert (
        Session(replace(model, reranker=None), SessionConfig(**options)).captioner.candidates == 1
    )


def test_a_model_that_cannot_choose_says_so_when_several_are_asked_for(model):
    cannot = replace(model, reranker=None)
    assert Session(cannot, SessionConfig(candidates=1)).captioner.candidates == 1
    with pytest.raises(ConfigError, match=r"candidates 2: .* has not learned to choose"):
        Session(cannot, SessionConfig(candidates=2))


@pytest.mark.parametrize("count", [0, 33])
def test_a_number_that_cannot_be_drawn_is_refused(count):
    with pytest.raises(ConfigError, match="candidates"):
        SessionConfig(candidates=count)


def test_candidates_beside_beams_are_refused(model):
    with pytest.raises(ConfigError, match="greedy"):
        SessionConfig(candidates=2, caption=replace(model.decoding, num_beams=2))
