"""How much of a caption is said: the model's own first words, or none, where it is not sure."""

from dataclasses import replace

import numpy as np
import pytest

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.captioning.scheduler import CaptionJob
from streammem.engine.long_scenes import LongScene
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks
from streammem.errors import ConfigError
from streammem.models.backbones.language import GrowingReply
from streammem.models.caption_scores import (
    WHOLE,
    ConfidenceModel,
    NounModel,
    Reranker,
    confidence_features,
)
from streammem.models.protocols import Reads
from streammem.types import Caption, Segment
from tests.tiny import film, tiny_model

WORDS = "A man in a red shirt is standing."
DEFAULTS = SessionConfig()
FILM = film(("red", 4), ("blue", 4), ("green", 4))


def certain(odds):
    """A fit that gives every caption the same confidence."""
    return ConfidenceModel((0.0,) * 4, float(np.log(odds / (1 - odds))), 0.2)


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture
def model(plain, monkeypatch):
    """Says WORDS of everything, with 0.3 confidence."""
    speaking = replace(plain, confidence_model=certain(WHOLE - 0.02))
    monkeypatch.setattr(type(plain), "stream", lambda *_: iter(WORDS.partition(" in")))
    said = (GrowingReply(WORDS, [], []),)
    monkeypatch.setattr(
        type(plain), "replies", lambda self, prompts, *_: iter([said] * len(prompts))
    )
    return speaking


def test_words_are_as_likely_as_the_mean_of_their_tokens_where_nothing_is_withheld(
    plain, monkeypatch
):
    said = (GrowingReply(WORDS, [1, 2], [-0.2, -0.6]),)
    request = CaptionRequest(SPAN, plain.background.numpy()[:2])
    assert Captioner(plain).score(request, said).likelihood is None  # it reads no pictures
    monkeypatch.setattr(type(plain), "reads", Reads(pictures=1))
    alone = Captioner(plain).score(request, said)
    assert alone.likelihood == round(float(np.exp(-0.4)), 3)
    assert alone.of(SPAN).likelihood == alone.likelihood
    fitted = replace(plain, confidence_model=certain(WHOLE + 0.01))
    assert Captioner(fitted).score(request, said).likelihood is None
    broken = (GrowingReply(WORDS, [1, 2], [-0.2, -np.inf]),)
    assert Captioner(plain).score(request, broken).likelihood is None


REPLIES = (GrowingReply(WORDS, [], []),)
SPAN = Segment(4, 1.0, 2.0, None, "cut")


def scored(model, config=DEFAULTS):
    request = CaptionRequest(SPAN, model.background.numpy()[:2])
    return Captioner(model, config.captioning).score(request, REPLIES)


@pytest.mark.parametrize(
    ("odds", "text"), [(WHOLE + 0.01, WORDS), (WHOLE - 0.01, "A man"), (0.21, "A man"), (0.19, "")]
)
def test_the_less_sure_the_less_is_said_and_all_of_it_in_the_models_words(plain, odds, text):
    said = scored(replace(plain, confidence_model=certain(odds)))
    assert (said.text, said.unsure) == (text, text != WORDS)
    assert WORDS.startswith(said.text)
    assert said.confidence == pytest.approx(odds, abs=1e-3)
    caption = said.of(SPAN)
    reason = "unsure" if said.unsure else None
    assert caption == Caption(4, 1.0, 2.0, text, said.confidence, reason)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"min_confidence": 0.0}, WORDS),
        ({"min_confidence": 0.05}, WORDS),
        ({"min_confidence": 0.15}, ""),
        ({"instruction": "What is it?"}, WORDS),
        ({"instruction": "What is it?", "min_confidence": 0.5}, ""),
    ],
)
def test_the_level_is_the_users_and_none_for_an_instruction_of_their_own(plain, options, text):
    said = scored(replace(plain, confidence_model=certain(0.1)), SessionConfig(**options))
    assert said.text == text


def test_an_instruction_of_the_users_may_be_answered_in_any_words(plain):
    held = replace(plain, decoding=replace(plain.decoding, vocabulary="captions"))
    assert Captioner(held, SessionConfig().captioning).decoding.vocabulary == "captions"
    asked = SessionConfig(instruction="What is it?", caption=held.decoding)
    assert Captioner(held, asked.captioning).decoding.vocabulary == "all"


@pytest.mark.parametrize(("whole", "text"), [(0.6, "A man"), (0.4, WORDS)])
def test_the_level_of_a_model_is_that_of_its_fit(plain, whole, text):
    assert scored(replace(plain, confidence_model=certain(0.5)._replace(whole=whole))).text == text


def test_a_model_without_a_fit_says_everything(plain):
    for config in (SessionConfig(), SessionConfig(min_confidence=1.0)):
        assert scored(plain, config).text == WORDS
        assert not Captioner(plain, config.captioning).withholds


def test_confidence_and_key_are_those_of_the_words_that_are_said(plain):
    fitted = replace(plain, confidence_model=ConfidenceModel((3.0, 0.2, 0.0, 0.0), -2.0, 0.0))
    said = scored(fitted, SessionConfig(min_confidence=1.0))
    assert said.text == "A man"
    assert np.allclose(said.key, fitted.sentence_keys(["A man"])[0])
    seen = confidence_features(plain.background.numpy()[:2], said.key, plain.background.numpy())
    assert said.confidence == round(fitted.confidence_model(seen), 3)


# Of the other captions two of three name a man, and one a shirt: 0.731, 0.269, both 0.197.
DRAWN = (
    GrowingReply(WORDS, [1], [-0.1]),
    GrowingReply("A man is standing.", [1], [-1.0]),
    GrowingReply("A boy in a shirt.", [1], [-1.0]),
    GrowingReply("Two men.", [1], [-1.0]),
)
NOUNS = NounModel((6.0, 0.0, 0.0, 0.0, 0.0), -3.0, least=0.4, whole=0.3)


def scored_by_nouns(plain, nouns=NOUNS, drawn=DRAWN, **options):
    fit = certain(0.9)._replace(nouns=nouns)
    model = replace(plain, confidence_model=fit, reranker=Reranker((0.0, 1.0), 4))
    request = CaptionRequest(SPAN, plain.background.numpy()[:2])
    return Captioner(model, SessionConfig(**options).captioning).score(request, drawn)


@pytest.mark.parametrize(
    ("options", "text", "confidence"),
    [
        ({}, "A man", 0.731),
        ({"min_confidence": 0.19}, WORDS, 0.197),
        ({"min_confidence": 0.0}, WORDS, 0.197),
        ({"min_confidence": 0.74}, "A man", 0.731),  # the first noun in any case
    ],
)
def test_a_caption_ends_before_the_first_noun_that_makes_it_too_unsure(
    plain, options, text, confidence
):
    given = scored_by_nouns(plain, **options)
    assert (given.text, given.unsure) == (text, text != WORDS)
    assert given.confidence == pytest.approx(confidence, abs=1e-3)
    assert np.allclose(given.key, plain.sentence_keys([text])[0], atol=1e-6)


def test_a_caption_goes_on_as_far_as_its_nouns_are_sure(plain):
    longer = GrowingReply("A man in a red shirt is holding a ball.", [1], [-0.1])
    given = scored_by_nouns(plain, drawn=(longer, *DRAWN[1:]), min_confidence=0.15)
    assert (given.text, given.confidence) == (
        "A man in a red shirt",
        pytest.approx(0.197, abs=1e-3),
    )


def test_a_picture_of_nothing_that_there_are_words_for_gets_no_word(plain):
    nothing = scored_by_nouns(plain, NOUNS._replace(least=0.51, whole=0.6))
    assert (nothing.text, nothing.unsure) == ("", True)
    assert nothing.confidence == pytest.approx(0.197, abs=1e-3)
    assert scored_by_nouns(plain, NOUNS._replace(least=0.49, whole=0.6)).text == "A man"


def test_a_caption_by_itself_is_judged_as_a_whole(plain):
    alone = scored_by_nouns(plain, NOUNS._replace(whole=0.95), drawn=DRAWN[:1])
    assert (alone.text, alone.confidence) == (WORDS, pytest.approx(0.9, abs=1e-3))
    without = scored_by_nouns(plain, nouns=None)
    assert (without.text, without.confidence) == (WORDS, pytest.approx(0.9, abs=1e-3))


@pytest.mark.parametrize(
    ("text", "given", "printed"),
    [
        ("A train.", "A train", "A train … (unsure)"),
        ("It is red.", "It is red.", "It is red. … (unsure)"),
        ("", "", "(unsure)"),
    ],
)
def test_a_caption_below_the_level_is_unsure_even_where_no_word_of_it_is_left_out(
    plain, text, given, printed
):
    drawn = (GrowingReply(text, [1], [-0.1]), *DRAWN[1:])
    nouns = NOUNS._replace(least=0.0)
    scored = scored_by_nouns(plain, nouns, drawn, min_confidence=1.0)
    assert (scored.text, scored.unsure) == (given, True)
    assert str(scored.of(SPAN)) == f"[00:01.0-00:02.0] {printed}"
    sure = scored_by_nouns(plain, nouns, drawn, min_confidence=0.0)
    assert (sure.text, sure.unsure) == (text, not text), "an empty reply is unsure at any level"


def test_an_empty_reply_of_a_model_without_a_fit_is_unsure(plain):
    request = CaptionRequest(SPAN, plain.background.numpy()[:2])
    empty = Captioner(plain).score(request, (GrowingReply("", [], []),))
    assert (empty.text, empty.unsure) == ("", True)


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ConfigError, match="min-confidence"):
        SessionConfig(min_confidence=level)


def test_watching_a_batch_and_one_by_one_say_the_same(model):
    watched = [e for e in watch(Session(model), FILM) if isinstance(e, Caption)]
    batched, single = Session(model), Session(model)
    for session in (batched, single):
        segments = [s for frame in FILM for s in session.push(frame)] + [*session.flush()]
        session.segments = segments
    batch = batched.captioner.caption([batched.request(s) for s in batched.segments])
    assert watched == [c.of(s) for c, s in zip(batch, batched.segments, strict=True)]
    assert watched == [single.caption(segment) for segment in single.segments]
    assert {c.text for c in watched} == {"A man"}
    assert {c.reason for c in watched} == {"unsure"}


@pytest.mark.parametrize("level", [None, 0.0])
def test_no_word_is_heard_that_is_not_said(model, level):
    heard = {}
    hear = WatchCallbacks(on_text=lambda s, piece: heard.setdefault(s.id, []).append(piece))
    session = Session(model, SessionConfig(min_confidence=level))
    captions = [e for e in watch(session, FILM, callbacks=hear) if isinstance(e, Caption)]
    assert {c.segment: c.text for c in captions} == {k: "".join(v) for k, v in heard.items()}
    assert {len(pieces) for pieces in heard.values()} == {1 if level is None else 3}


def test_nothing_is_kept_of_what_is_not_said(model):
    session = Session(replace(model, confidence_model=certain(0.1)))
    (segment,) = [s for f in film(("red", 3)) for s in session.push(f)] + [*session.flush()]
    caption = session.caption(segment)
    assert (caption.text, caption.reason) == ("", "unsure")
    entry = session.memory.get(segment.id)
    assert entry.caption is None
    assert not len(entry.caption_keys)
    heard = []
    session.caption(segment, heard.append)
    assert heard == []


def test_what_was_said_of_an_open_scene_is_what_is_kept_when_it_closes(model):
    session = Session(model)
    for frame in film(("red", 8)):
        session.push(frame)
    keys = np.stack([held.key for held in session.open_frames])[:1]
    scenes = LongScene(session, 5.0)
    number = session.next_segment
    part = CaptionRequest(Segment(number, 0.0, 1.0, None, None), keys)
    scenes.begun(CaptionJob(part, 0.0))
    told = scenes.keep(part.segment, session.captioner.score(part, REPLIES))
    (segment,) = session.flush()
    scenes.closed(segment)
    assert session.memory.get(segment.id).caption == told.text == "A man"


def test_what_is_withheld_is_described_once_however_often_it_is_asked_about(model, monkeypatch):
    batches = []
    said = type(model).replies

    def counting(self, prompts, *rest):
        batches.append(len(prompts))
        return said(self, prompts, *rest)

    monkeypatch.setattr(type(model), "replies", counting)
    unsure = replace(model, confidence_model=certain(0.1))
    session = Session(unsure, SessionConfig(min_confidence=1.0, passages=2))
    for frame in FILM:
        session.push(frame)
    session.flush()
    for _ in range(3):
        answer = session.ask("What is there?")
        assert all(item.caption is None for item in answer.evidence)
    assert [count for count in batches if count] == [2]
    session.answerer.config = replace(session.answerer.config, passages=3)  # one more is shown
    session.ask("What is there?")
    assert [count for count in batches if count] == [2, 1]


def test_what_is_withheld_is_described_anew_when_it_has_grown(model):
    unsure = replace(model, confidence_model=certain(0.1))
    session = Session(unsure, SessionConfig(min_confidence=1.0))
    for frame in FILM:
        session.push(frame)
    session.flush()
    row = session.memory.entries()[0]
    described = []
    session.describe = lambda entries: described.extend(e.segment for e in entries)
    for entry in (row, row, replace(row, last=row.segment + 9)):
        session.answerer._row = lambda _, entry=entry: entry
        session.answerer._described([entry])
    assert described == [row.segment, row.segment]
