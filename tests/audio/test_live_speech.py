"""Speech of live sources: cut into utterances, recognised beside perception, skips counted."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from streammem.audio.recogniser import PIECE_S, RATE
from streammem.audio.track import SpeechOptions
from streammem.audio.utterances import MAX_UTTERANCE_S, WINDOW, Utterances
from streammem.engine import listener as listening
from streammem.engine import speech as speaking
from streammem.engine.listener import BEHIND_S, KEPT_S, Listener
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import ServedModelError, SourceError
from streammem.types import Note, Notice, Segment, Stats
from streammem.video import VideoSource
from tests.sessions import SHORT
from tests.tiny import film, tiny_model

STEP = RATE // 10


def detector(samples):
    """Take what is loud for speech."""
    return np.abs(samples.reshape(-1, WINDOW)).max(axis=1).astype(np.float32)


def sound(*parts):
    """Make samples of (seconds, level) each."""
    return np.concatenate([np.full(round(s * RATE), level, np.float32) for s, level in parts])


def cut(samples, step=STEP, start=0.0):
    """Push samples step by step; return the utterances as (start, end, samples)."""
    utterances, found = Utterances(detector), []
    for at in range(0, len(samples), step):
        utterances.push(start + at / RATE, samples[at : at + step])
        given = list(utterances.ready())
        found += given
        assert all(begin + len(s) / RATE <= utterances.until + 1e-6 for begin, s in given)
    utterances.flush()
    found += utterances.ready()
    return [(begin, begin + len(s) / RATE, s) for begin, s in found]


# -- utterances --


@pytest.mark.parametrize("step", [STEP, RATE // 3, 20 * RATE])
def test_utterances_end_with_pauses_and_hold_all_that_is_said(step):
    samples = sound((2, 0), (1.5, 1), (1, 0), (0.8, 1), (0.2, 0), (0.6, 1), (3, 0), (0.5, 1))
    found = cut(samples, step, start=7.0)
    spoken = [(9.0, 10.5), (11.5, 13.1), (16.1, 16.6)]
    assert sum(np.sum(s > 0.5) for *_, s in found) == np.sum(samples > 0.5)
    assert all(any(a <= b0 and e0 <= b for a, b, _ in found) for b0, e0 in spoken)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans(found)))
    if step < RATE:  # what comes at once is recognised at once
        assert len(found) == 3
        for (a, b, _), (begin, end) in zip(found, spoken, strict=True):
            assert begin - 0.5 <= a <= begin and end <= b <= end + 0.3


def spans(found):
    from streammem.types import TimeSpan

    return [TimeSpan(a, b) for a, b, _ in found]


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    samples = sound((0.5, 0), *[(0.85, 1), (0.05, 0.6)] * 12, (1, 0))
    found = cut(samples)
    assert all(b - a <= MAX_UTTERANCE_S + 0.5 for a, b, _ in found) and len(found) > 2
    assert sum(np.sum(s > 0.5) for *_, s in found) == np.sum(samples > 0.5)
    dips = [0.5 + 0.9 * number + 0.875 for number in range(12)]
    assert all(min(abs(end - dip) for dip in dips) < 0.1 for _, end, _ in found[:-1])


def test_a_click_and_noise_are_no_utterances_and_nothing_of_them_is_kept():
    samples = sound((5, 0.2), (0.02, 1), (5, 0.2))
    utterances = Utterances(detector)
    for at in range(0, 60 * len(samples), STEP):
        piece = samples[at % len(samples) :][:STEP]
        utterances.push(at / RATE, piece)
        assert list(utterances.ready()) == []
        assert len(utterances._line) <= RATE
    assert utterances.until > 600


def test_sound_that_breaks_off_ends_its_utterance():
    utterances = Utterances(detector)
    utterances.push(0.0, sound((1, 1)))
    assert list(utterances.ready()) == []
    utterances.push(30.0, sound((1, 0)))
    ((start, samples),) = utterances.ready()
    assert (start, len(samples)) == (0.0, RATE) and utterances.until >= 30.0


# -- the listener --


class Words:
    """A recogniser that gives a note for each loud stretch, once it may."""

    piece_s = PIECE_S

    def __init__(self, language=None):
        self.free, self.heard = threading.Event(), []
        self.free.set()

    def transcribe(self, samples, stopping):
        while not self.free.wait(0.01):
            if stopping():
                return
        loud = np.flatnonzero(np.abs(samples) > 0.5) / RATE
        self.heard.append(len(loud) / RATE)
        for spoken in np.split(loud, np.flatnonzero(np.diff(loud) > 0.2) + 1):
            if len(spoken):
                yield Note(float(spoken[0]), float(spoken[-1]), "words")


@pytest.fixture
def words(monkeypatch):
    words = Words()
    monkeypatch.setattr(listening, "silero", lambda: detector)
    monkeypatch.setattr(speaking, "recogniser", lambda name, language, spend: lambda: words)
    return words


def drained(listener):
    listener.end()
    found, until = [], time.monotonic() + 60
    while not listener.finished:
        assert time.monotonic() < until
        found += listener.ready(0.1)
    listener.close()
    return found


def test_an_hour_of_sound_is_heard_within_a_third_of_a_second_of_its_place(words):
    listener = Listener("camera", lambda: words, None, behind_s=1e9, kept_s=None)
    minute, true = sound((0.5, 0), (1, 1), (0.5, 0)), []
    for second in range(0, 3600, 2):  # a sound card that is 200 ppm too fast, and stamps that shake
        samples = minute if second % 60 == 0 else np.zeros(2 * RATE, np.float32)
        samples = np.append(samples, np.zeros(round(2 * RATE * 2e-4), np.float32))
        listener.push(second + 0.02 * (second % 3), samples)
        true += [second + 0.5] * (second % 60 == 0)
    notes = [item for item in drained(listener) if isinstance(item, Note)]
    assert len(notes) == len(true) == 60
    assert max(abs(note.start - at) for note, at in zip(notes, true, strict=True)) < 0.3
    assert listener.sound_s == pytest.approx(3600, rel=1e-3) and listener.skipped_s == 0


def test_what_recognition_cannot_keep_up_with_is_skipped_and_counted(words):
    words.free.clear()
    listener = Listener("camera", lambda: words)
    second = sound((0.5, 1), (0.5, 0))
    began = time.monotonic()
    for number in range(300):  # five minutes, of which nothing is recognised
        listener.push(float(number), second)
    assert time.monotonic() - began < 5 and listener._waiting_s <= BEHIND_S
    assert listener.sound_s == 300 and listener.skipped_s > 300 - 2 * BEHIND_S - 5
    words.free.set()
    found = drained(listener)
    (notice,) = [item for item in found if isinstance(item, Notice)]
    assert "too slowly" in str(notice) and not notice.is_failure
    notes = [item for item in found if isinstance(item, Note)]
    assert notes[-1].end > 299 and sum(words.heard) <= 0.5 * (300 - listener.skipped_s) + 1e-6
    assert sum(words.heard) >= 0.5 * KEPT_S - 0.1


def test_what_waits_is_recognised_at_once_when_recognition_is_behind(words):
    words.free.clear()
    listener = Listener("camera", lambda: words)
    second = sound((0.5, 1), (0.5, 0))
    listener.push(0.0, second)
    wait_for(lambda: not listener._waiting)
    for number in range(1, 21):
        listener.push(float(number), second)
    words.free.set()
    drained(listener)
    assert len(words.heard) <= 4 and sum(words.heard) == pytest.approx(0.5 * 21, abs=0.1)


def test_a_server_that_fails_takes_an_utterance_and_is_told_of_once(words, monkeypatch):
    calls, heard = [], words.transcribe

    def failing(samples, stopping):
        calls.append(samples)
        if len(calls) in (2, 3):
            raise ServedModelError("the server is away")
        return heard(samples, stopping)

    monkeypatch.setattr(words, "transcribe", failing)
    listener = Listener("camera", lambda: words)
    found = []
    for number in range(5):
        listener.push(10.0 * number, sound((0.5, 1), (1.0, 0)))
        wait_for(lambda count=number + 1: len(calls) == count)
    found += drained(listener)
    assert [str(n) for n in found if isinstance(n, Notice)] == ["warning: the server is away"]
    assert len([n for n in found if isinstance(n, Note)]) == 3


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_listener_that_is_closed_takes_no_more(words):
    words.free.clear()
    listener = Listener("camera", lambda: words)
    listener.push(0.0, sound((1, 1), (1, 0)))
    listener.close()
    listener.push(1.0, sound((1, 1), (1, 0)))
    assert not listener._waiting and not listener._thread.is_alive()


# -- watching --


class Camera(VideoSource):
    """Gives frames, and with each the sound that came with it; waits for ``paces`` at each."""

    live = sound_beside = True

    def __init__(self, frames, speech, pace=lambda number: None, wall_zero=None):
        super().__init__("camera")
        self._given, self._speech, self._pace, self.wall_zero = frames, speech, pace, wall_zero

    def _frames(self):
        for number, frame in enumerate(self._given):
            if self.stopping:
                return
            if self.on_sound:
                a, b = (round(t * RATE) for t in (frame.time, frame.time + frame.duration))
                self.on_sound(frame.time, self._speech[a:b])
            yield frame
            self._pace(number)


FILM = film(("red", 12), ("blue", 12), ("green", 12))  # half a second each
SPOKEN = (1.0, 5.0, 7.0, 13.0)
SPEECH = np.zeros(18 * RATE, np.float32)
for _at in SPOKEN:
    SPEECH[round(_at * RATE) : round((_at + 0.8) * RATE)] = 1
ON = WatchOptions(captions=False, stats_s=1e9, drop="never", speech=SpeechOptions("on"))


def watched(camera, options=ON, memory=None, **callbacks):
    session = Session(tiny_model(), SessionConfig(caption=SHORT), memory=memory)
    events = watch(session, camera, options, callbacks=WatchCallbacks(**callbacks))
    return session, events


def test_words_of_a_live_source_come_at_once_and_join_their_scenes(words):
    came = threading.Event()

    def pace(number):  # the first words are there before the camera goes on: no scene has closed
        if number == 8:
            assert came.wait(60)

    session, events = watched(Camera(FILM, SPEECH, pace))
    told = []
    for event in events:
        told.append(event)
        if isinstance(event, Note):
            came.set()
    notes = [event for event in told if isinstance(event, Note)]
    assert [note.start for note in notes] == pytest.approx(SPOKEN, abs=0.05)
    first_scene = next(k for k, event in enumerate(told) if isinstance(event, Segment))
    assert told.index(notes[0]) < first_scene
    entries = session.memory.entries()
    assert [note for entry in entries for note in entry.notes] == notes
    for entry in entries:
        assert all(entry.start <= note.start < entry.end for note in entry.notes)
        assert len(entry.note_keys) == bool(entry.notes)
    stats = told[-1]
    assert isinstance(stats, Stats) and stats.sound_s == pytest.approx(18, abs=0.01)
    assert stats.sound_skipped_s == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("streammem-")]


def test_a_scene_gets_its_words_once_all_of_it_was_recognised(words, monkeypatch):
    session, kept = Session(tiny_model()), []
    monkeypatch.setattr(session, "add_notes", lambda scene, notes: kept.append((scene, notes)))
    monkeypatch.setattr(session.memory, "get", lambda scene: scene)
    notes = speaking.SceneNotes(session, Camera([], SPEECH), speaking.Speech(None, lambda: words))
    notes.close()
    first, second, third = Note(1, 2, "one"), Note(5, 7, "two"), Note(7, 8, "three")
    steps = [[first, 3.0], [second, third, 8.5], [12.0]]
    notes.listeners = [listener_of(steps)]
    notes.closed(Segment(0, 0.0, 6.0, None, None))
    notes.closed(Segment(1, 6.0, 12.0, None, None))
    assert list(notes.due()) == [first] and kept == []
    assert list(notes.due()) == [second, third] and kept == [(0, [first, second])]
    assert list(notes.due()) == [] and kept[1:] == [(1, [third])] and not notes.awaits


@pytest.mark.parametrize("durable", [False, True])
def test_answers_know_the_words_of_the_scene_that_is_still_open(words, tmp_path, durable):
    session = Session(
        tiny_model(), SessionConfig(caption=SHORT), memory=tmp_path / "m" if durable else None
    )
    notes = speaking.SceneNotes(session, Camera([], SPEECH), speaking.Speech(None, lambda: words))
    notes.close()
    session.unkept = lambda: tuple(notes._heard)  # as before it was closed
    for frame in film(("red", 6)):
        session.push(frame)
    said = Note(1.0, 2.0, "We sail to Bergen at dawn.", (1.0, 1.2, 1.4, 1.5, 1.6, 1.8))
    notes.listeners = [listener_of([[said], [3.5]])]
    assert list(notes.due()) == [said] and not session.memory.entries()
    answer = session.ask("When did someone say something about Bergen?")
    assert answer.seen and answer.text == "at 00:01.5: “We sail to Bergen at dawn.”"
    (evidence,) = answer.evidence
    assert (evidence.segment, evidence.keyframe) == (session.next_segment, None)
    (moment,) = session.find("Bergen")
    assert (moment.matched, moment.said_at) == ("speech", 1.5)
    assert session.find("Bergen", between=(90, 99)) == ()
    assert session.ask("Did they mention Oslo?").text.startswith("no")
    # Once its scene has closed the words are a row's, and found once.
    (segment,) = session.flush()
    notes.closed(segment)
    assert list(notes.due()) == [] and session.unkept() == ()
    assert len(session.ask("When did they mention Bergen?").evidence) == 1
    assert [m.segment for m in session.find("Bergen")] == [segment.id]
    session.close()


def listener_of(steps):
    """Return a listener that gives one of the steps each time."""
    return SimpleNamespace(finished=False, ready=lambda wait_s: steps.pop(0), most_waiting=0)


def test_words_that_come_late_join_the_scene_in_which_they_were_said(words, monkeypatch):
    session, kept = Session(tiny_model()), []
    monkeypatch.setattr(session, "add_notes", lambda scene, notes: kept.append((scene, notes)))
    monkeypatch.setattr(session.memory, "get", lambda scene: scene)
    notes = speaking.SceneNotes(session, Camera([], SPEECH), speaking.Speech(None, lambda: words))
    notes.close()
    for number in range(4):
        notes.closed(Segment(number, 6.0 * number, 6.0 * number + 6, None, None))
    late = [Note(7, 8, "one"), Note(1, 2, "two"), Note(13, 14, "three"), Note(19, 20, "four")]
    notes.listeners = [listener_of([[18.0], [*late, 19.5], [Note(14, 15, "five")]])]
    assert list(notes.due()) == [] and kept == []
    assert list(notes.due()) == late
    assert kept == [(0, [late[1]]), (1, [late[0]]), (2, [late[2]])]
    list(notes.due(last=True))
    assert kept[3:] == [(2, [Note(14, 15, "five")]), (3, [late[3]])]


def test_perception_is_the_same_with_speech_on_off_slow_and_broken(words, monkeypatch):
    def seen(options):
        frames = []
        session, events = watched(
            Camera(FILM, SPEECH), options, on_frame=lambda f: frames.append((f.time, f.index))
        )
        told = [event for event in events if isinstance(event, Segment | Stats)]
        keys = [entry.visual_keys.tobytes() for entry in session.memory.entries()]
        *segments, stats = told
        return frames, segments, keys, (stats.captured, stats.frames, stats.dropped_full)

    never = WatchOptions(captions=False, stats_s=1e9, drop="never")
    without = seen(never)
    assert seen(ON) == without
    words.transcribe = lambda samples, stopping: 1 / 0
    assert seen(ON) == without
    monkeypatch.setattr(speaking, "recogniser", lambda name, language, spend: lambda: 1 / 0)
    assert seen(ON) == without


@pytest.mark.parametrize("stopped", [False, True])
def test_a_recogniser_that_never_answers_holds_up_nothing(words, monkeypatch, stopped):
    bound = "HEARD_AT_STOP_S" if stopped else "HEARD_AT_END_S"
    monkeypatch.setattr(f"streammem.engine.watch.{bound}", 0.05)
    words.free.clear()
    frames = []
    callbacks = {"stop": lambda: len(frames) == 20} if stopped else {}
    _, events = watched(Camera(FILM, SPEECH), ON, on_frame=frames.append, **callbacks)
    told = list(events)
    assert len(frames) == (20 if stopped else len(FILM))
    assert not [event for event in told if isinstance(event, Note)]
    assert not [t for t in threading.enumerate() if t.name == "streammem-listener"]


def test_words_go_on_in_the_memorys_time_after_a_restart(words, tmp_path):
    for wall_zero in (1e9, 1e9 + 3600):
        session, events = watched(Camera(FILM, SPEECH, wall_zero=wall_zero), memory=tmp_path / "m")
        notes = [event for event in events if isinstance(event, Note)]
        session.close()
    assert [note.start for note in notes] == pytest.approx([3600 + at for at in SPOKEN], abs=0.05)
    with Session(tiny_model(), memory=tmp_path / "m", read_only=True) as session:
        kept = [note.start for entry in session.memory.entries() for note in entry.notes]
    assert kept == pytest.approx([*SPOKEN, *(3600 + at for at in SPOKEN)], abs=0.05)


KILLED = """
import os, signal, sys
import tests.audio.test_live_speech as here
words = here.Words()
here.listening.silero = lambda: here.detector
here.speaking.recogniser = lambda name, language, spend: lambda: words
heard = words.transcribe
def transcribe(samples, stopping):
    if len(words.heard) == 3:
        here.wait_for(lambda: any(entry.notes for entry in session.memory.entries()))
        os.kill(os.getpid(), signal.SIGKILL)
    yield from heard(samples, stopping)
words.transcribe = transcribe
pace = lambda number: here.wait_for(lambda: len(words.heard) >= sum(
    at + 1.3 < here.FILM[number].time for at in here.SPOKEN))
session, events = here.watched(here.Camera(here.FILM, here.SPEECH, pace), memory=sys.argv[1])
for event in events:
    print(event, flush=True)
"""


@pytest.mark.heavy
def test_a_kill_in_the_middle_of_a_sentence_leaves_whole_notes_and_the_memory_goes_on(
    words, tmp_path
):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "m")], timeout=120, capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Session(tiny_model(), memory=tmp_path / "m", read_only=True) as session:
        kept = [note for entry in session.memory.entries() for note in entry.notes]
    assert [note.start for note in kept] == pytest.approx(SPOKEN[: len(kept)], abs=0.05) and kept
    session, events = watched(Camera(FILM, SPEECH, wall_zero=2e9), memory=tmp_path / "m")
    notes = [event for event in events if isinstance(event, Note)]
    assert len(notes) == len(SPOKEN) and notes[0].start > kept[-1].end
    assert [n for e in session.memory.entries() for n in e.notes] == [*kept, *notes]
    session.close()


def test_words_of_rows_that_were_pruned_are_let_go(words):
    words.free.clear()
    session, events = watched(Camera(FILM, SPEECH))
    for event in events:
        if isinstance(event, Segment):
            session.memory._cache.drop([event.id])
            words.free.set()
    assert len(words.heard) >= 1


def test_speech_is_refused_where_there_can_be_no_sound():
    with pytest.raises(SourceError, match="has no sound"):
        watch(Session(tiny_model()), iter(FILM), ON)
