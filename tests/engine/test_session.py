import dataclasses
import math
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streammem.engine import session as sessions
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.errors import BackboneError
from streammem.models.backbones.language import GenerationConfig
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import BRIDGE_FRAMES, Perceived
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import Caption, Frame, Note
from tests.sessions import FILM, as_kind, segments_of, session_of, told
from tests.tiny import film


class Recalling(VideoModel):
    """Perceives each different picture once, so that thousands of frames take a moment."""

    def perceive(self, picture):
        known = self.__dict__.setdefault("known", {})
        key = picture.tobytes()
        if key not in known:
            known[key] = super().perceive(picture)
        return known[key]


class Scripted(VideoModel):
    """Perceives a picture as the embedding whose number is written in its first pixel."""

    def perceive(self, picture):
        row = self.__dict__["embeddings"][int(picture[0, 0, 0]) * 256 + int(picture[0, 0, 1])]
        return Perceived(row, torch.zeros(9, 8).half(), np.eye(16, dtype=np.float32)[0])


class Failing(VideoModel):
    """Raises, or gives an embedding that is no number, when told to."""

    def perceive(self, picture):
        seen, failure = super().perceive(picture), self.__dict__.get("failure")
        if failure is RuntimeError:
            raise RuntimeError("the encoder failed")
        return seen if failure is None else seen._replace(embedding=seen.embedding * failure)


def num_bytes(value):
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, np.ndarray):
        # A view that keeps a larger array alive costs all of it.
        return max(value.nbytes, getattr(value.base, "nbytes", 0))
    if isinstance(value, tuple):
        return sum(map(num_bytes, value))
    if dataclasses.is_dataclass(value):
        return sum(num_bytes(getattr(value, f.name)) for f in dataclasses.fields(value))
    return 8


def assert_same_state(left, right):
    """Equal by value, to the last bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor | np.ndarray):
        assert left.dtype == right.dtype and np.array_equal(left, right)
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same_state(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_state(one, other)
    else:
        assert left == right


# -- law 1: however the frames come --


def test_frame_by_frame_equals_the_whole_film_through_watch(model):
    pushed, watched = session_of(model), session_of(model)
    events = told(pushed, film(*FILM))
    seen = list(watch(watched, film(*FILM)))
    assert sorted(seen, key=repr) == sorted(events, key=repr)
    assert len(segments_of(events)) == len(FILM)
    for segment in segments_of(events):
        assert torch.equal(pushed.tokens(segment.id), watched.tokens(segment.id))
    assert torch.equal(pushed.recurrent, watched.recurrent)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 9, 12, 30, 42])
def test_saved_killed_and_restored_it_continues_identically(model, tmp_path, cut, fixed):
    frames = film(*FILM)
    config = SessionConfig(fixed=fixed, now_frames=3)
    with Session(model, config, tmp_path / "a.mem") as whole:
        before = [segment for frame in frames[:cut] for segment in whole.push(frame)]
        saved = pickle.dumps(whole.snapshot())
        shutil.copytree(tmp_path / "a.mem", tmp_path / "b.mem")
        after = [segment for frame in frames[cut:] for segment in whole.push(frame)]
        after += whole.flush()
        with Session(model, config, tmp_path / "b.mem") as restored:
            restored.restore(pickle.loads(saved))
            again = [segment for frame in frames[cut:] for segment in restored.push(frame)]
            again += restored.flush()
            assert again == after and len(before + after) == len(FILM)
            assert_same_state(restored.snapshot(), whole.snapshot())
            for segment in before + after:
                assert torch.equal(restored.tokens(segment.id), whole.tokens(segment.id))
                assert np.array_equal(restored.keyframe(segment.id), whole.keyframe(segment.id))


@pytest.mark.parametrize("bad", [0, 5, 9, 20])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_frame_that_the_encoder_fails_on_leaves_no_trace(model, bad, fixed):
    frames = film(*FILM)
    failing, sound = as_kind(Failing, model), Session(model, SessionConfig(fixed=fixed))
    session = Session(failing, SessionConfig(fixed=fixed))
    for number, frame in enumerate(frames):
        if number == bad:
            for kind in (np.nan, RuntimeError):
                failing.__dict__["failure"] = kind
                before = session.snapshot()
                strange = dataclasses.replace(frame, pixels=255 - frame.pixels)
                with pytest.raises((BackboneError, RuntimeError)):
                    session.push(strange)
                assert_same_state(session.snapshot(), before)
            failing.__dict__["failure"] = None
        assert session.push(frame) == sound.push(frame)
    assert session.flush() == sound.flush()
    assert_same_state(session.snapshot(), sound.snapshot())


def test_every_scene_of_a_film_is_a_segment_with_its_own_words(model):
    events = told(session_of(model), film(*FILM))
    starts = [segment.start for segment in segments_of(events)]
    assert starts == [0.0, 4.5, 8.0, 14.0, 18.0]
    captions = [event.text for event in events if isinstance(event, Caption)]
    assert len(set(captions)) >= len(FILM) - 1  # red comes twice


# -- law 2: bounded --


@pytest.mark.parametrize("length", [24, 10_000], ids=["many scenes", "one endless scene"])
def test_state_is_as_large_after_3000_frames_as_after_300(model, length):
    assert_flat(model, length, early=300, late=3_000)


@pytest.mark.heavy
@pytest.mark.parametrize("length", [24, 1_000_000], ids=["many scenes", "one endless scene"])
def test_state_is_as_large_after_20000_frames_as_after_300(model, length):
    assert_flat(model, length, early=300, late=20_000)


def assert_flat(model, length, *, early, late):
    scenes = SceneTillingConfig(max_frames=48, max_lag=8)
    session = Session(as_kind(Recalling, model), SessionConfig(scenes=scenes, max_segments=16))
    names = ("red", "blue", "green", "yellow")
    pictures = {name: [frame.pixels for frame in film((name, 16))] for name in names}
    largest = dict.fromkeys((early, late), 0)
    for number in range(late):
        pixels = pictures[names[number // length % 4]][number % 16]
        session.push(Frame(pixels, number / 2, 0.5, number))
        for bound in largest:
            if bound - 100 <= number < bound:  # two longest scenes
                largest[bound] = max(largest[bound], num_bytes(session.snapshot()))
    assert largest[late] == largest[early]
    assert len(session.memory) <= 16
    assert session.memory.num_bytes() <= session.memory.config.bytes_bound()


def test_a_scene_that_never_ends_keeps_few_patches(model):
    scenes = SceneTillingConfig(max_frames=300, max_lag=10, flash_frames=2)
    session = Session(as_kind(Recalling, model), SessionConfig(scenes=scenes))
    for frame in film(("red", 400)):
        session.push(frame)
        held = session.open_frames
        assert len(held) <= 300 + 10 + 3
        assert sum(f.patches is not None for f in held) <= 2 * BRIDGE_FRAMES + 10 + 3
        assert all((f.patches is None) == (f.picture is None) for f in held)


@pytest.mark.parametrize("length", [40, 41, 42, 43])
@pytest.mark.parametrize("flash_frames", [0, 2])
def test_frames_of_the_next_scene_have_kept_their_patches(model, length, flash_frames):
    """Also where the boundary is told as late as can be: the climb after it outlasts max_lag."""
    max_lag = 5
    steps = np.concatenate([np.zeros(length), 1.2 - 0.08 * np.arange(12)])
    angles = steps.cumsum()
    scripted = as_kind(Scripted, model)
    scripted.__dict__["embeddings"] = np.stack([np.cos(angles), np.sin(angles)], 1)
    scenes = SceneTillingConfig(floor=0.1, max_lag=max_lag, flash_frames=flash_frames)
    session = Session(scripted, SessionConfig(scenes=scenes, still=0))
    for n in range(len(angles)):
        pixels = np.full((4, 4, 3), 1, np.uint8)
        pixels[0, 0] = (n // 256, n % 256, 0)
        if session.push(Frame(pixels, float(n), 1.0, n)):
            break
    held = session.open_frames
    assert (held[0].number, len(held)) == (length, max_lag + flash_frames + 1)
    assert all(f.patches is not None for f in held)


def test_a_still_scene_writes_few_rows(model):
    scenes = SceneTillingConfig(max_frames=8, max_lag=4)
    session = Session(as_kind(Recalling, model), SessionConfig(scenes=scenes))
    closed = [s for frame in film(("red", 1)) * 400 for s in session.push(still(frame, session))]
    assert len(closed) >= 45
    assert len(session.memory) == 1
    assert session.memory.entries()[0].end == closed[-1].end


def still(frame, session):
    return dataclasses.replace(frame, time=session.num_frames / 2)


# -- law 3: the future --


STILL = [dataclasses.replace(film(("red", 1))[0], time=k / 2, index=k) for k in range(30)]


@pytest.mark.parametrize("cut", [1, 9, 12, 20, 30])
@pytest.mark.parametrize("frames", [film(*FILM), STILL], ids=["scenes", "one still scene"])
def test_the_future_never_changes_an_emitted_event(model, cut, frames):
    common = frames[:cut]
    scenes = SceneTillingConfig(
        max_frames=8, max_lag=2
    )  # a still scene goes on over several segments
    after = dataclasses.replace(common[-1], time=common[-1].time + 0.5)
    futures = [
        [],
        film(("white", 5), start=after.time),
        film(("black", 2), ("yellow", 6), ("red", 9), start=after.time),
        [
            dataclasses.replace(after, time=after.time + k / 2, pixels=after.pixels // 16 * 16)
            for k in range(12)
        ],
    ]
    emitted = []
    for future in futures:
        session = session_of(model, scenes=scenes)
        so_far = [
            (s, session.caption(s), session.tokens(s.id)) for f in common for s in session.push(f)
        ]
        for frame in future:
            session.push(frame)
        session.flush()
        for segment, _, tokens in so_far:
            assert torch.equal(session.tokens(segment.id), tokens)
        emitted.append([event[:2] for event in so_far])
    assert all(events == emitted[0] for events in emitted)


# -- law 4: sessions never touch --


def test_two_interleaved_sessions_say_what_each_says_alone(model):
    sampled = GenerationConfig(max_new_tokens=6, temperature=1.0, seed=3)
    config = SessionConfig(caption=sampled, answer=sampled)
    films = film(*FILM), film(("yellow", 8), ("black", 11), ("white", 5), ("blue", 18))
    alone = []
    for frames in films:
        session = Session(model, config)
        events = told(session, frames)
        alone.append((events, session.ask("what was red?"), session.recurrent))

    sessions = [Session(model, config) for _ in films]
    mixed = [[], []]
    for pair in zip(*films, strict=True):
        for session, events, frame in zip(sessions, mixed, pair, strict=True):
            for segment in session.push(frame):
                events += [segment, session.caption(segment)]
    for session, events, expected in zip(sessions, mixed, alone, strict=True):
        for segment in session.flush():
            events += [segment, session.caption(segment)]
        assert events == expected[0]
        assert session.ask("what was red?") == expected[1]
        assert torch.equal(session.recurrent, expected[2])


# -- law 7: the end --


@pytest.mark.parametrize("scenes", [FILM, FILM[:1], (("red", 1),), (("red", 1), ("blue", 1))])
@pytest.mark.parametrize("duration", [0.5, 0.1])  # of frames that come every 0.5 s
def test_segments_are_half_open_and_tile_the_film(model, scenes, duration):
    frames = [dataclasses.replace(frame, duration=duration) for frame in film(*scenes, start=2.0)]
    session = session_of(model)
    segments = segments_of(told(session, frames))
    assert [s.id for s in segments] == list(range(len(segments)))
    assert segments[0].start == 2.0
    assert all(s.start < s.end for s in segments)
    assert [s.end for s in segments[:-1]] == [s.start for s in segments[1:]]
    assert segments[-1].end == frames[-1].time + frames[-1].duration
    assert segments[-1].reason == "end" and segments[-1].depth is None


def test_a_keyframe_is_chosen_by_the_first_of_a_scenes_keys(model, monkeypatch):
    chosen, keys_of, keyframe_of = [], sessions.visual_keys, sessions.keyframe
    monkeypatch.setattr(
        sessions, "visual_keys", lambda keys: np.concatenate([keys_of(keys)[:1], -keys_of(keys)])
    )
    monkeypatch.setattr(
        sessions, "keyframe", lambda frames, key: chosen.append(key) or keyframe_of(frames, key)
    )
    session = session_of(model)
    told(session, film(*FILM))
    first = [entry.visual_keys[0] for entry in session.memory.entries()]
    assert len(first) == len(FILM)
    assert np.allclose(np.stack(chosen), np.stack(first), atol=1e-3)  # rows have float16


def test_what_a_closed_scene_hands_on_is_held_until_the_next_frame(model):
    session, num_closed = session_of(model), 0
    for frame in film(*FILM):
        closed = [segment.id for segment in session.push(frame)]
        assert list(session._closed) == list(session._said) == closed
        num_closed += len(closed)
    assert num_closed > 2


def test_what_is_heard_is_asked_for_by_the_sources_clock_and_kept_by_the_memorys(model):
    session, heard, sounds = session_of(model), [], []

    def within(start, end):
        heard.append((start, end))
        return (Note(start, end, "hello"),)

    session.time_offset = 100.0  # the source was watched before
    session.speech = SimpleNamespace(within=within)
    session.sound = SimpleNamespace(scene=lambda start, end: sounds.append((start, end)))
    segments = segments_of(told(session, film(*FILM), end=21.0))
    assert segments[0].start == 100.0
    assert heard == sounds == [(s.start - 100.0, s.end - 100.0) for s in segments]
    kept = [note for entry in session.memory.entries() for note in entry.notes]
    assert [(n.start, n.end) for n in kept] == [(s.start, s.end) for s in segments]


def test_flush_is_idempotent(model):
    session = session_of(model)
    told(session, film(*FILM))
    before = session.snapshot()
    assert session.flush() == () and session.flush(99.0) == ()
    assert_same_state(session.snapshot(), before)
    assert len(session.memory) == len(FILM)


def test_flush_of_nothing_is_nothing(model):
    assert session_of(model).flush() == ()


@pytest.mark.parametrize(("end", "expected"), [(25.0, 25.0), (20.6, 20.6), (3.0, 20.5)])
def test_a_stated_end_is_the_end_but_not_before_the_last_frame(model, end, expected):
    session = session_of(model)
    frames = film(*FILM)
    assert frames[-1].time == 20.5
    assert segments_of(told(session, frames, end=end))[-1].end == expected


def test_after_a_flush_the_stream_goes_on_in_new_segments(model):
    session = session_of(model)
    first = segments_of(told(session, film(("red", 6))))
    second = segments_of(told(session, film(("blue", 6), start=3.0)))
    assert [(s.id, s.start, s.end) for s in (*first, *second)] == [(0, 0.0, 3.0), (1, 3.0, 6.0)]


# -- times --


@pytest.mark.parametrize("time", [1.9, -1.0, math.nan, math.inf])
def test_time_that_runs_backward_is_refused(model, time):
    session = session_of(model)
    frames = film(("red", 5))
    for frame in frames:
        session.push(frame)
    before = session.snapshot()
    with pytest.raises(ValueError, match=r"the stream is at 2\.000 s"):
        session.push(dataclasses.replace(frames[0], time=time))
    assert_same_state(session.snapshot(), before)


def test_time_that_runs_back_before_a_flush_is_refused(model):
    session = session_of(model)
    told(session, film(("red", 5)))
    with pytest.raises(ValueError, match=r"the stream is at 2\.500 s"):
        session.push(film(("red", 1), start=2.0)[0])


def test_scores_come_once_a_gap_with_the_time_of_its_later_frame(model):
    scores = []
    frames = film(*FILM)
    session = Session(model, on_score=lambda time, score: scores.append((time, score.frame)))
    for frame in frames:
        session.push(frame)
    session.flush()
    assert scores == [(frame.time, number) for number, frame in enumerate(frames)][1:]
