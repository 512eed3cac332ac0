"""Sounds get names: which ones, when, and what a source's timeline has of them."""

import json
import time

import numpy as np
import pytest
import torch

from streammem.audio.recogniser import RATE
from streammem.audio.track import SpeechOptions
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.errors import BackboneError, CheckpointError, SourceError
from streammem.models import sound_events as events
from streammem.models.sound_events import (
    BACKGROUND,
    EVENTS,
    VOCABULARY,
    WEIGHTS,
    SoundEvents,
    Vocabulary,
    open_events,
    sound_events,
)
from streammem.types import Note, Notice
from tests.audio.subtitled import srt
from tests.audio.test_live_speech import Camera
from tests.models.heard import Planted, noise, write_film
from tests.models.tiny_imagebind import MERGES, WORDS, write
from tests.sessions import session_of
from tests.tiny import film, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("imagebind"))


def tone(hz, seconds):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype("f4")


@pytest.fixture(scope="module")
def planted(folder):
    """Names two tones, and a third as background, by what the ears make of each."""
    ears = open_events(folder)._ears
    clips = [torch.from_numpy(tone(hz, 2.0)) for hz in (300, 3000, 1000)]
    with torch.no_grad():
        keys = ears(torch.stack([events.spectrogram(clip) for clip in clips]), scaled=False)
    return SoundEvents(ears, keys, ("a horn", "a bird", BACKGROUND[0]), 5000.0)


def test_the_names_are_our_own_each_once():
    names = [*EVENTS, *BACKGROUND]
    assert len(set(names)) == len(names) and 55 <= len(EVENTS) <= 70
    assert all(name == name.lower() and name.isascii() for name in names)


def test_neighbouring_clips_of_one_name_are_one_note(planted):
    heard = np.concatenate(
        [tone(300, 4.0), tone(3000, 2.0), np.zeros(2 * RATE, "f4"), tone(300, 2.0), tone(1000, 2.0)]
    )
    assert list(planted.transcribe(heard)) == [
        Note(0.0, 4.0, "a horn", kind="sound"),
        Note(4.0, 6.0, "a bird", kind="sound"),
        Note(8.0, 10.0, "a horn", kind="sound"),
    ]
    assert list(planted.transcribe(heard, lambda: True)) == []


@pytest.mark.parametrize(("seconds", "ends"), [(0.0, []), (0.4, []), (0.6, [0.6]), (2.3, [2.0])])
def test_a_rest_is_read_from_half_a_second_on(planted, seconds, ends, monkeypatch):
    monkeypatch.setattr(planted, "likelihoods", lambda clips: torch.eye(3)[[0] * len(clips)])
    assert [note.end for note in planted.transcribe(tone(300, seconds))] == ends


def test_a_name_that_is_not_likely_enough_is_not_reported(planted, monkeypatch):
    for likely, count in ((0.49, 0), (0.51, 1)):
        row = torch.tensor([[likely, (1 - likely) / 2, (1 - likely) / 2]])
        monkeypatch.setattr(planted, "likelihoods", lambda clips, row=row: row)
        assert len(list(planted.transcribe(tone(300, 2.0)))) == count


def test_the_likelihoods_are_a_softmax_of_scaled_cosines(folder):
    opened, clip = open_events(folder), torch.from_numpy(noise(2.0))
    with torch.no_grad():
        vector = opened._ears(events.spectrogram(clip)[None], scaled=False)[0].double()
    scores = 90.0 * (opened._keys.double() @ vector)
    expected = torch.exp(scores) / torch.exp(scores).sum()
    read = opened.likelihoods([clip])[0]
    torch.testing.assert_close(read.double(), expected, atol=1e-4, rtol=1e-3)
    assert len(read) == len(EVENTS) + len(BACKGROUND)


def test_words_are_split_as_transformers_splits_them(tmp_path):
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    rest = [f"<{number}>" for number in range(256 - len(letters))]
    symbols = [*letters, *rest, *(f"{s}</w>" for s in (*letters, *rest))]
    symbols += [pair.replace(" ", "") for pair in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: place for place, symbol in enumerate(symbols)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    theirs = CLIPTokenizer.from_pretrained(str(tmp_path))
    ours = Vocabulary(["a heading", *MERGES, ""])
    assert ours.size == WORDS == len(vocabulary)
    for name in (*EVENTS, *BACKGROUND, "it's 12 Dogs!", "a-b, (applause)"):
        ids = theirs(name).input_ids
        assert ours.ids(name, 60) == ids + [0] * (60 - len(ids)), name
    cut = ours.ids("a violin", 5)
    assert len(cut) == 5 and cut[0] == WORDS - 2 and cut[-1] == WORDS - 1


def test_what_is_missing_is_named_at_once(tmp_path, folder):
    with pytest.raises(BackboneError, match=rf"has no {WEIGHTS}; --sounds takes"):
        sound_events(tmp_path)
    deaf = write(
        tmp_path / "deaf", without=("modality_heads.text", "modality_trunks.audio.blocks.0.m")
    )
    with pytest.raises(CheckpointError, match=r"not a whole ImageBind \(.*missing: "):
        open_events(deaf)
    other = write(tmp_path / "other")
    (other / VOCABULARY).write_bytes(b"no gzip")
    with pytest.raises(CheckpointError, match="corrupt"):
        open_events(other)
    events.gzip.open(other / VOCABULARY, "wt").close()
    with pytest.raises(CheckpointError, match="has 514 words"):
        open_events(other)


CLAPS = Note(1.0, 3.0, "applause", kind="sound")


@pytest.fixture
def applause(monkeypatch, folder):
    """Every folder of ImageBind hears applause."""
    heard = Planted(CLAPS)
    monkeypatch.setattr("streammem.engine.speech.sound_events", lambda folder: lambda: heard)
    return heard


def test_sounds_join_the_timeline_beside_what_is_said(tmp_path, applause):
    path = write_film(tmp_path / "film.mkv", sound=noise(4.0))
    path.with_suffix(".srt").write_text(srt(((0.2, 0.9, "Thank you."),)))
    session = Session(tiny_model(), SessionConfig(), memory=tmp_path / "m.mem")
    options = WatchOptions(captions=False, speech=SpeechOptions(sounds="x"))
    notes = [event for event in watch(session, str(path), options) if isinstance(event, Note)]
    assert sorted((note.text, note.kind) for note in notes) == [
        ("Thank you.", "speech"), ("applause", "sound")
    ]  # fmt: skip
    session.close()
    again = Session(tiny_model(), SessionConfig(), memory=tmp_path / "m.mem")  # from disk
    kept = [note for entry in again.memory.entries() for note in entry.notes]
    assert CLAPS in kept and len(kept) == 2 and str(CLAPS).endswith("] (applause)")
    (found, *_) = again.find("applause")
    assert found.speech and "(applause)" in found.speech
    said = again.ask("What was said?")  # words alone are quoted
    assert "Thank you." in said.text and "applause" not in said.text
    again.close()


SAID = Note(0.5, 0.9, "thank you")


@pytest.fixture
def passes(monkeypatch):
    """How often the sound of files was decoded."""
    from streammem.video import file

    opened, plain = [], file.file_sound
    monkeypatch.setattr(
        file,
        "file_sound",
        lambda *given, **named: (opened.append(given), plain(*given, **named))[1],
    )
    return opened


class Broken(Planted):
    def transcribe(self, samples, stopping=lambda: False):
        raise ValueError("it broke")


@pytest.mark.parametrize(
    "kind", ["list", *(pytest.param(kind, marks=pytest.mark.heavy) for kind in ("file", "camera"))]
)
def test_speech_and_sounds_are_heard_together_and_a_file_is_decoded_once(
    tmp_path, applause, passes, monkeypatch, kind
):
    speech = Planted(SAID)
    monkeypatch.setattr("streammem.engine.speech.recogniser", lambda *name: lambda: speech)
    write_film(tmp_path / "film.mkv", sound=noise(4.0))
    (tmp_path / "all.txt").write_text("film.mkv\nfilm.mkv\n")
    sources = {"file": str(tmp_path / "film.mkv"), "list": f"concat:{tmp_path / 'all.txt'}"}
    source = sources.get(kind) or Camera(film(("red", 8)), noise(4.0)[0])
    monkeypatch.setattr(
        "streammem.engine.listener.silero", lambda: lambda s: np.ones(len(s) // 512)
    )
    options = WatchOptions(captions=False, drop="never", speech=SpeechOptions("on", sounds="x"))
    session = session_of(tiny_model())
    events = list(watch(session, source, options))
    assert sorted(e.text for e in events if isinstance(e, Note)) == ["applause", "thank you"]
    assert not [e for e in events if isinstance(e, Notice)]
    kept = [note.text for entry in session.memory.entries() for note in entry.notes]
    assert sorted(kept) == ["applause", "thank you"]
    lasts = {"list": 8.0}.get(kind, 4.0)
    assert applause.read == lasts * RATE and abs(speech.read - lasts * RATE) <= 512
    assert len(passes) == {"file": 1, "list": 2, "camera": 0}[kind]


@pytest.mark.heavy
def test_one_recogniser_that_breaks_takes_nothing_from_the_other(
    tmp_path, applause, passes, monkeypatch
):
    monkeypatch.setattr("streammem.engine.speech.recogniser", lambda *name: Broken)
    path = write_film(tmp_path / "film.mkv", sound=noise(4.0))
    options = WatchOptions(captions=False, speech=SpeechOptions("on", sounds="x"))
    events = list(watch(session_of(tiny_model()), str(path), options))
    (notice,) = (e.message for e in events if isinstance(e, Notice))
    assert "speech is not recognised any more (ValueError: it broke)" in notice
    assert [e.text for e in events if isinstance(e, Note)] == ["applause"]
    assert applause.read == 4 * RATE and len(passes) == 1


def test_a_film_without_sound_is_told_once_to_speech_and_sounds(tmp_path, applause, monkeypatch):
    monkeypatch.setattr("streammem.engine.speech.recogniser", lambda *name: Planted)
    path = write_film(tmp_path / "film.mkv")
    options = WatchOptions(captions=False, speech=SpeechOptions("on", sounds="x"))
    events = list(watch(session_of(tiny_model()), str(path), options))
    assert sum("has no sound" in e.message for e in events if isinstance(e, Notice)) == 1


def test_a_source_without_sound_is_refused_where_sounds_are_asked_for(tmp_path, applause):
    options = WatchOptions(captions=False, speech=SpeechOptions(sounds="x"))
    with pytest.raises(SourceError, match="leave out --sounds"):
        watch(session_of(tiny_model()), [], options)


def test_the_command_names_sounds_and_exports_them(tmp_path, folder, capsys, monkeypatch):
    from streammem.cli import main
    from streammem.models import checkpoint

    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
    monkeypatch.setattr(events, "THRESHOLD", 0.05)  # of random weights
    path = write_film(tmp_path / "film.mkv", sound=noise(4.0))
    memory = str(tmp_path / "m.mem")
    flags = ["--sounds", str(folder), "--memory", memory, "--format", "jsonl"]
    assert main(["caption", str(path), *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = [line for line in lines if line["type"] == "note"]
    assert notes and all(note["kind"] == "sound" and note["text"] in EVENTS for note in notes)
    assert main(["memory", "export", memory, "--format", "srt"]) == 0
    assert f"({notes[0]['text']})" in capsys.readouterr().out
    assert main(["caption", str(path), "--sounds", str(tmp_path)]) == 1
    assert f"has no {WEIGHTS}" in capsys.readouterr().err


def test_sound_of_a_camera_is_read_evenly_while_it_comes():
    from streammem.engine.listener import Listener

    heard = Planted()
    listener = Listener("camera", lambda: heard, events=True)
    for second in range(25):
        listener.push(float(second), tone(300, 1.0))
    until, patience = 0.0, time.monotonic() + 20
    while until < 10.0 and time.monotonic() < patience:
        until = max([until, *(item for item in listener.ready(1.0) if isinstance(item, float))])
    assert until >= 10.0  # before the end
    listener.end()
    while not listener.finished and time.monotonic() < patience:
        listener.ready(1.0)
    assert heard.read == 25 * RATE
    listener.close()
