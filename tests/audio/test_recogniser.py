"""Sound is decoded on the file's clock; what is recognised joins the scenes, however late."""

import importlib.util
import itertools
import os
import threading
import time
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest

from streammem.audio.recogniser import PIECE_S, RATE, pieces, word_starts
from streammem.audio.track import SpeechOptions
from streammem.engine import listener
from streammem.engine import speech as speaking
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import BackboneError, ConfigError, SourceError
from streammem.models.transcription import model_folder
from streammem.types import Note, Notice
from streammem.video import VideoSource
from streammem.video.sound import file_sound
from tests.command_line import record
from tests.sessions import session_of
from tests.tiny import moving_square, tiny_model

HEARD = [
    Note(0.5, 1.5, "Good morning."),
    Note(1.6, 2.0, "Come in."),
    Note(2.9, 4.0, "Over the cut."),
    Note(9.0, 9.5, "Bye."),
]


def with_sound(path, *, rate=16_000, layout="mono", late_s=0.0, seconds=6.0):
    """Write a video whose sound is quiet but for one click a second."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate)
        sound.layout = layout
        for number in range(int(seconds * 4)):
            pixels = moving_square("red", number, 64, 48)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        samples = np.zeros((int(seconds * rate), len(sound.layout.channels)), np.int16)
        for second in range(int(seconds)):
            samples[second * rate : second * rate + rate // 50] = 20_000
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(late_s * rate)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def clicks(path, piece_s):
    found = []
    for start, samples in pieces(file_sound(path, "clicks"), piece_s):
        loud = np.flatnonzero(np.abs(samples) > 0.2)
        found += [start + at / RATE for at in loud]
    return sorted({round(at) for at in found if abs(at - round(at)) < 0.05})


@pytest.mark.parametrize("piece_s", [2.5, 60.0])
@pytest.mark.parametrize(
    "sound", [{}, {"rate": 8_000}, {"rate": 48_000, "layout": "5.1"}, {"late_s": 3.0}]
)
def test_sound_keeps_the_clock_of_the_file(tmp_path, piece_s, sound):
    path = with_sound(tmp_path / "clicks.mkv", **sound)
    late = round(sound.get("late_s", 0))
    assert clicks(path, piece_s) == [late + second for second in range(6)]


def test_pieces_are_whole_and_end_before_their_bound(tmp_path):
    path = with_sound(tmp_path / "clicks.mkv")
    given = list(pieces(file_sound(path, "clicks"), 2.5))
    assert sum(len(samples) for _, samples in given) == pytest.approx(6 * RATE, abs=RATE / 50)
    assert max(len(samples) for _, samples in given) <= 2.5 * RATE
    for (start, samples), (after, _) in itertools.pairwise(given):
        assert start + len(samples) / RATE == pytest.approx(after, abs=1e-3)


def test_a_file_without_sound_is_told(tmp_path):
    path = record(tmp_path / "mute.mp4")
    with pytest.raises(SourceError, match="has no sound"):
        list(file_sound(path, path.name))


def test_words_have_times_as_a_note_divides_them_or_none():
    spoken = [(" Good", 1.0), (" mor", 1.5), ("ning", 1.75), ("Ann", 1.7)]
    assert word_starts("Good morning, Ann.", spoken) == (1.0, 1.5, 1.7)
    assert word_starts("Good evening, Ann.", spoken) == () == word_starts("Good", ())
    assert word_starts("你好 - 吗", [("你", 1.0), ("好", 1.2), ("吗", 1.5)]) == (1.0, 1.5, 1.5)


@pytest.fixture
def film(tmp_path):
    return record(tmp_path / "film.mp4")


class Heard:
    """A recogniser that gives HEARD, once ``allowed``."""

    allowed = threading.Event()
    piece_s = PIECE_S

    def __init__(self, folder, language=None):
        self.language = language

    def transcribe(self, samples, stopping):
        for note in (*HEARD, Note(99.0, 100.0, "After the end.")):
            while not self.allowed.wait(0.02):
                if stopping():
                    return
            yield note


@pytest.fixture
def hears(monkeypatch):
    def quiet(self):
        yield 0.0, np.zeros(10 * RATE, np.float32)

    monkeypatch.setattr(VideoSource, "sound_pass", quiet)
    monkeypatch.setattr("streammem.video.file.FileSource.sound_pass", quiet)
    monkeypatch.setattr(
        speaking, "recogniser", lambda name, lang, spend: partial(Heard, name, lang)
    )
    Heard.allowed.clear()
    return Heard


ready_at_once = listener.Listener.ready
ON = WatchOptions(captions=False, speech=SpeechOptions("on"))


@pytest.mark.parametrize("late", [False, True])
def test_what_is_recognised_is_kept_the_same_however_late_it_comes(film, hears, late):
    session, frames = session_of(tiny_model()), []
    if not late:
        hears.allowed.set()

    def count(frame):
        frames.append(frame)
        if len(frames) == 20:  # all of them: perception did not wait
            hears.allowed.set()

    told = list(watch(session, str(film), ON, callbacks=WatchCallbacks(on_frame=count)))
    assert len(frames) == 20
    assert [event for event in told if isinstance(event, Note)] == HEARD
    for entry in session.memory.entries():
        assert list(entry.notes) == [n for n in HEARD if entry.start <= n.start < entry.end]
        assert len(entry.note_keys) == bool(entry.notes)
    assert not [t for t in threading.enumerate() if t.name == "streammem-listener"]


def test_keys_do_not_depend_on_how_fast_words_come(film, hears, monkeypatch):
    hears.allowed.set()
    kept = []
    for pause_s in (0.0, 0.05):

        def ready(self, wait_s=0.0, pause_s=pause_s):
            if pause_s:  # one by one
                time.sleep(pause_s)
                return [self._results.get()] if not self._results.empty() else []
            return ready_at_once(self, wait_s)

        with monkeypatch.context() as patch:
            patch.setattr(listener.Listener, "ready", ready)
            session = session_of(tiny_model())
            list(watch(session, str(film), ON))
        kept.append([(e.notes, e.note_keys.tobytes()) for e in session.memory.entries()])
    assert kept[0] == kept[1] and [n for notes, _ in kept[0] for n in notes] == HEARD


def test_closing_does_not_wait_for_words(film, hears):
    events = watch(session_of(tiny_model()), str(film), ON)
    next(events)
    events.close()
    assert not [t for t in threading.enumerate() if t.name == "streammem-listener"]


def test_a_recogniser_that_fails_is_a_warning(film, hears, monkeypatch):
    def fails(self, samples, stopping):
        raise RuntimeError("broken")
        yield

    monkeypatch.setattr(Heard, "transcribe", fails)
    told = list(watch(session_of(tiny_model()), str(film), ON))
    assert any(isinstance(e, Notice) and "RuntimeError: broken" in e.message for e in told)


def test_subtitles_spare_the_recogniser(film, hears):
    from tests.audio.subtitled import CUES, srt

    film.with_suffix(".srt").write_text(srt())
    told = list(watch(session_of(tiny_model()), str(film), ON))
    assert [event for event in told if isinstance(event, Note)] == [Note(*cue) for cue in CUES]


def test_what_is_missing_is_told_before_anything_is_watched(film, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="faster-whisper is not installed"):
        watch(session_of(tiny_model()), str(film), ON)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(os.environ, "STREAMMEM_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match="models pull whisper-base"):
        watch(session_of(tiny_model()), str(film), ON)
    for name, short in (("small", "small"), ("faster-whisper:o/n", "o/n")):
        on = WatchOptions(speech=SpeechOptions(name))
        with pytest.raises(BackboneError, match=f"{short}: not on .* pull faster-whisper:{short},"):
            watch(session_of(tiny_model()), str(film), on)


def test_a_model_of_the_hub_is_opened_from_its_cache_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--Systran--faster-whisper-small"
    folder = kept / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="not on this computer"):
        model_folder("small")
    (folder / "model.bin").write_bytes(b"x")
    assert model_folder("small") == model_folder("faster-whisper:small") == folder
    assert model_folder(str(folder)) == folder
    with pytest.raises(ConfigError, match=r"holds no model\.bin"):
        SpeechOptions(str(kept))


class Clicks:
    """A recogniser that gives a note for each click."""

    piece_s = PIECE_S

    def transcribe(self, samples, stopping):
        for at in sorted({round(at / RATE) for at in np.flatnonzero(np.abs(samples) > 0.2)}):
            yield Note(float(at), at + 0.5, "click")


def test_of_a_list_only_the_films_without_subtitles_are_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr(speaking, "recogniser", lambda name, language, spend: Clicks)
    for name in ("one", "two", "three"):
        with_sound(tmp_path / f"{name}.mkv")
    for name in ("one", "three"):
        (tmp_path / f"{name}.srt").write_text(f"1\n00:00:01,500 --> 00:00:02,500\n{name}\n")
    (tmp_path / "list.txt").write_text("one.mkv\ntwo.mkv\nthree.mkv\n")
    session = session_of(tiny_model())
    told = list(watch(session, f"concat:{tmp_path / 'list.txt'}", ON))
    notes = sorted((e.start, e.text) for e in told if isinstance(e, Note))
    clicks = [(6.0 + at, "click") for at in range(6)]
    assert notes == [(1.5, "one"), *clicks, (13.5, "three")]
    kept = [note.text for entry in session.memory.entries() for note in entry.notes]
    assert kept == [text for _, text in notes]
