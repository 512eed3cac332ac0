import dataclasses
from dataclasses import replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch

from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.memory.entry import MAX_KEYFRAME_BYTES
from streammem.memory.retrieval import GumbelNull
from streammem.models.tiny.model import VideoModel
from streammem.types import Frame, Segment
from tests.sessions import FILM, as_kind, segments_of, session_of, told
from tests.tiny import film


class Listening(VideoModel):
    """Keeps the passages that an answer was asked from."""

    def answer_prompt(self, passages, question):
        self.__dict__["heard"] = passages
        return super().answer_prompt(passages, question)


# -- speaking --


def test_pieces_joined_are_the_caption_and_it_is_kept(model):
    session = session_of(model)
    pieces = []
    for frame in film(("red", 4)):
        session.push(frame)
    (segment,) = session.flush()
    caption = session.caption(segment, pieces.append)
    assert "".join(pieces).strip() == caption.text != ""
    assert (caption.segment, caption.start, caption.end) == (0, 0.0, 2.0)
    assert 0 <= caption.confidence <= 1
    assert session.memory.get(0).caption == caption.text


@pytest.mark.parametrize("call", ["tokens", "keyframe"])
def test_an_unknown_segment_is_told(model, call):
    session = session_of(model)
    told(session, film(("red", 4)))
    with pytest.raises(KeyError, match="7"):
        getattr(session, call)(7)
    with pytest.raises(KeyError, match="7"):
        session.caption(Segment(7, 0.0, 1.0, None, "cut"))


def test_a_question_to_an_empty_session_has_no_evidence(model):
    answer = session_of(model).ask("Is there a dog?")
    assert not answer.seen and answer.evidence == ()
    with pytest.raises(ValueError, match="empty"):
        session_of(model).ask(" \n")


@pytest.mark.parametrize(("location", "seen"), [(-99.0, True), (99.0, False)])
def test_what_counts_as_seen_rests_on_the_chance_of_the_models_own_keys(model, location, seen):
    chance = GumbelNull(location, 0.0, 1.0)
    session = session_of(dataclasses.replace(model, null=chance))
    told(session, film(*FILM))
    assert session.ask("what was red?").seen is seen


def test_evidence_is_of_the_segments_that_it_names(model):
    session = session_of(model)
    segments = {s.id: s for s in segments_of(told(session, film(*FILM)))}
    answer = session.ask("what was red?")
    assert answer.method == "model" and len(answer.evidence) == 4
    for item in answer.evidence:
        segment = segments[item.segment]
        assert segment.start <= item.start < item.end <= segment.end
        assert item.caption == session.memory.get(item.segment).caption
        assert -1 <= item.score <= 1


def test_asking_captions_what_it_retrieves_and_nothing_else(model):
    session = session_of(model, passages=2)
    for frame in film(*FILM):
        session.push(frame)
    session.flush()
    answer = session.ask("what was red?")
    retrieved = {item.segment for item in answer.evidence}
    captioned = {e.segment for e in session.memory.entries() if e.caption is not None}
    assert len(retrieved) == 2 and captioned == retrieved
    assert all(item.caption for item in answer.evidence)


def test_moments_are_ranked_from_one(model):
    session = session_of(model)
    told(session, film(*FILM))
    moments = session.find("red", 3)
    assert [moment.rank for moment in moments] == [1, 2, 3]
    assert session.find("red", 1)[0] == moments[0]


@pytest.mark.parametrize(
    ("context", "segments", "with_tokens", "now"),
    [
        ("memory", 2, True, True),
        ("now", 0, True, True),
        ("uniform", 2, True, False),
        ("captions", 2, False, False),
    ],
)
def test_a_context_is_read_from_what_it_says(model, context, segments, with_tokens, now):
    listening = as_kind(Listening, model)
    session = session_of(listening, context=context, passages=2, now_frames=3)
    told(session, film(*FILM))
    answer = session.ask("what was red?")
    heard = listening.__dict__["heard"]
    past = heard[:-1] if now else heard
    assert len(past) == segments
    assert len(answer.evidence) == max(1, segments), "the present where nothing else is shown"
    assert [p.start for p in heard] == sorted(p.start for p in heard)
    assert all(p.tokens is None or len(p.tokens) == 4 for p in past)
    assert all((p.tokens is not None) == with_tokens for p in past)
    assert all(p.caption for p in past)
    if now:
        assert (heard[-1].start, heard[-1].end, heard[-1].caption) == (19.5, 21.0, None)
    if context == "uniform":
        assert [p.start for p in past] == [0.0, 18.0]


def test_each_control_takes_something_away_from_the_answer(model):
    def prompt(context):
        listening = as_kind(Listening, model)
        session = session_of(listening, context=context, passages=2)
        told(session, film(*FILM))
        session.ask("what was red?")
        heard = listening.__dict__["heard"]
        return model.language.embed(model.answer_prompt(heard, "what was red?"))

    lengths = {context: len(prompt(context)) for context in ("memory", "now", "captions")}
    assert lengths["memory"] > max(lengths["now"], lengths["captions"])


@pytest.mark.parametrize("reads", [True, False])
def test_related_segments_are_looked_up_only_for_a_model_that_reads_them(model, monkeypatch, reads):
    given, real = [], VideoModel.encode_segment

    def encode_segment(model, scene, memory, related):
        given.append(related)
        return real(model, scene, memory, related)

    monkeypatch.setattr(VideoModel, "encode_segment", encode_segment)
    monkeypatch.setattr(VideoModel, "reads_related", reads)
    session = session_of(model, retrieved=2)
    for frame in film(*FILM):
        session.push(frame)
    session.flush()
    sizes = [0 if related is None else len(related) for related in given]
    tokens = model.token_shape[0]
    assert sizes == ([tokens * min(i, 2) for i in range(len(sizes))] if reads else [0] * len(sizes))
    # What a caption is made from never depends on the past.
    again = session_of(model)
    for frame in film(*FILM):
        again.push(frame)
    again.flush()
    assert torch.equal(session.tokens(3), again.tokens(3))


# -- keyframes --


def test_a_keyframe_of_pure_noise_fits_its_row(model):
    session = session_of(model)
    rng = np.random.default_rng(0)
    for n in range(3):
        session.push(Frame(rng.integers(0, 256, (320, 320, 3), np.uint8), float(n), 1.0, n))
    session.flush()
    assert 0 < len(session.memory.get(0).keyframe) <= MAX_KEYFRAME_BYTES
    assert session.keyframe(0).ndim == 3


def test_a_keyframe_shows_its_own_scene_small(model):
    session = session_of(model)
    wide = [
        dataclasses.replace(f, pixels=f.pixels.repeat(20, 0).repeat(20, 1)) for f in film(*FILM)
    ]
    segments = segments_of(told(session, wide))
    assert [session.keyframe(s.id).shape for s in segments] == [(240, 320, 3)] * len(FILM)
    corner = session.keyframe(1)[-20:, -20:].reshape(-1, 3).mean(0)
    assert np.abs(corner - (30, 30, 220)).max() < 12  # JPEG


@pytest.mark.parametrize(
    "options",
    [
        {"context": "all"},
        {"retrieved": -1},
        {"passages": 0},
        {"now_frames": -1},
        {"rankers": ("newest",)},
        {"max_segments": 1},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options)).split("_")[0]):
        SessionConfig(**options)


# -- a day --


def test_a_day_lists_its_activities_by_the_wall_clock_and_pauses_part_them(model):
    session = session_of(model, timezone="Europe/Berlin")
    session.wall_zero = datetime(2026, 5, 3, 23, 50, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    # Before midnight two stretches with a pause between them, and one after it.
    for begin in (0.0, 300.0, 900.0, 7200.0):
        for frame in film(("red", 4), ("blue", 4)):
            session.push(replace(frame, time=frame.time + begin))
        session.flush()
    first, second = (session.day(date(2026, 5, each), 1) for each in (3, 4))
    assert [chapter.wall_start[11:16] for chapter in first] == ["23:50"]
    assert [chapter.wall_start[11:16] for chapter in second] == ["00:05", "01:50"]
    assert first[0].segments == 4 and first[0].captions
    assert session.day(date(2026, 5, 5)) == ()
    assert session.days() == (date(2026, 5, 3), date(2026, 5, 4))
    with pytest.raises(ConfigError, match="9999"):
        session.day(date.max)


def test_a_memory_without_a_wall_clock_has_no_days(model):
    session = session_of(model)
    told(session, film(("red", 4)))
    assert session.days() == () and session.day(date(2026, 5, 3)) == ()
