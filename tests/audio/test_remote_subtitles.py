"""Subtitles that lie behind a network: text tracks of a URL's file, read while it is watched."""

import argparse

import pytest

from streammem.audio.track import SpeechOptions
from streammem.commands.options import speech_options
from streammem.engine import listener as listening
from streammem.engine import speech as speaking
from streammem.engine.speech import open_speech
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.errors import ConfigError, SourceError
from streammem.types import Note, Notice
from tests.audio.subtitled import CUES, srt, with_tracks
from tests.audio.test_live_speech import Camera
from tests.sessions import session_of
from tests.tiny import tiny_model
from tests.video.servers import serving

NOTES = [Note(*cue) for cue in CUES]
GERMAN = ((1.0, 2.0, "Guten Morgen."),)


def watched(address, speech="auto", language=None):
    session = session_of(tiny_model())
    options = WatchOptions(captions=False, speech=SpeechOptions(speech, language))
    return session, list(watch(session, address, options))


def of_kind(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "subrip"), (".mp4", "mov_text")])
def test_text_tracks_of_a_url_are_read_and_join_their_scenes(tmp_path, suffix, codec):
    with_tracks(tmp_path / f"film{suffix}", [("eng", CUES), ("deu", GERMAN)], codec=codec)
    with serving(tmp_path) as address:
        session, told = watched(f"{address}/film{suffix}", "on")  # no recogniser is needed
        _, german = watched(f"{address}/film{suffix}", language="de")
        _, off = watched(f"{address}/film{suffix}", "off")
    assert of_kind(Note, told) == NOTES
    (notice,) = of_kind(Notice, told)
    assert "reads subtitle track 1" in str(notice) and not notice.is_failure
    for entry in session.memory.entries():
        assert list(entry.notes) == [n for n in NOTES if entry.start <= n.start < entry.end]
    assert of_kind(Note, german) == [Note(*GERMAN[0])] and not of_kind(Notice, german)
    assert not of_kind(Note | Notice, off)


def test_a_subtitle_file_or_its_url_is_read_where_it_is_named(tmp_path):
    """Of a video behind a URL, too, whatever tracks are in it; nothing beside it is looked for."""
    with_tracks(tmp_path / "film.mkv", [("eng", CUES)])
    (tmp_path / "talk.srt").write_text(srt(GERMAN), encoding="cp1252")
    (tmp_path / "film.srt").write_text(srt(((1.0, 2.0, "beside"),)))
    with serving(tmp_path) as address:
        film = f"{address}/film.mkv"
        for video in (film, str(tmp_path / "film.mkv")):
            for named in (f"{address}/talk.srt?key=secret", str(tmp_path / "talk.srt")):
                session, told = watched(video, named)
                assert of_kind(Note, told) == [Note(*GERMAN[0])] and not of_kind(Notice, told)
                assert [n for e in session.memory.entries() for n in e.notes] == [Note(*GERMAN[0])]
        assert of_kind(Note, watched(film)[1]) == NOTES
        with pytest.raises(SourceError, match=r"/no\.srt cannot be fetched \(answered 404\)"):
            watched(film, f"{address}/no.srt?key=secret")
    with pytest.raises(ConfigError, match="there is no such subtitle file"):
        SpeechOptions("missing.srt")


def test_a_subtitle_file_is_of_one_video_that_is_not_live(tmp_path):
    (tmp_path / "talk.srt").write_text(srt(GERMAN))
    options = SpeechOptions(str(tmp_path / "talk.srt"))
    assert options.recogniser is None and SpeechOptions("openai:http://h/v1#a.srt").recogniser
    with pytest.raises(SourceError, match="is live"):
        open_speech(Camera([], None), options)
    arguments = argparse.Namespace(speech=options.speech)
    assert speech_options(arguments).subtitles == options.speech
    with pytest.raises(ConfigError, match="of one video"):
        speech_options(arguments, several=True)


def test_a_language_that_a_url_lacks_is_told(tmp_path):
    with_tracks(tmp_path / "film.mkv", [("eng", CUES)])
    with serving(tmp_path) as address:
        _, told = watched(f"{address}/film.mkv", language="fr")
    (notice,) = of_kind(Notice, told)
    assert "no subtitles in fr; there are: subtitle track 1" in str(notice)
    assert "127.0.0.1" in str(notice) and not of_kind(Note, told)


def test_a_track_that_breaks_off_is_told_and_what_came_stays(tmp_path, monkeypatch):
    with_tracks(tmp_path / "film.mkv", [("eng", CUES)])
    first = NOTES[0]
    cues = iter([first, *["film.mkv: its subtitle track breaks off"] * 9])
    monkeypatch.setattr(speaking, "_remote_track", lambda source, options: (None, lambda *_: cues))
    with serving(tmp_path) as address:
        session, told = watched(f"{address}/film.mkv")
    assert of_kind(Note, told) == [first]
    assert len(of_kind(Notice, told)) == 3
    assert [n for entry in session.memory.entries() for n in entry.notes] == [first]


def test_cues_wait_for_the_pictures_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(listening.CueReader, "most_waiting", 4)
    monkeypatch.setattr(speaking, "MAX_HEARD", 8)
    cues = [(0.1 * number, 0.1 * number + 0.05, f"cue {number}") for number in range(95)]
    with_tracks(tmp_path / "film.mkv", [("eng", cues)])
    with serving(tmp_path) as address:
        _, told = watched(f"{address}/film.mkv")
    assert [note.text for note in of_kind(Note, told)] == [text for *_, text in cues]
