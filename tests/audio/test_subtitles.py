import itertools
import random
from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.audio import subtitles
from streammem.audio.subtitles import MAX_NOTE_CHARS, Cues, language_of, parse, tracks_of
from streammem.audio.track import SpeechOptions, SpeechTrack, open_track
from streammem.engine.speech import open_speech
from streammem.errors import ConfigError
from streammem.output.render import FORMATS
from streammem.types import Note
from streammem.video import open_source
from tests.audio.subtitled import CUES, ass, srt, vtt, with_captions, with_tracks
from tests.tiny import moving_square

NOTES = tuple(Note(*cue) for cue in CUES)
FORMS = {"srt": srt, "vtt": vtt, "ass": ass}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_formats_and_encodings_give_the_same_notes(form, encoding, ends):
    data = FORMS[form]().replace("\n", ends).encode(encoding)
    read = parse(data, "film")
    assert read.notes == NOTES and read.faults == ()


@pytest.mark.parametrize("form", FORMS)
def test_the_content_tells_the_format_and_not_the_name(form):
    assert parse(FORMS[form]().encode(), "film.wrong").notes == NOTES


@pytest.mark.parametrize(
    ("text", "encoding", "language"),
    [
        ("Привет, как дела", "cp1251", ""),
        ("Où est l'été ?", "cp1252", ""),
        ("Łódź i żółw", "cp1250", "pl"),
        ("こんにちは", "cp932", "ja"),
    ],
)
def test_text_that_is_no_unicode_is_read_and_told(text, encoding, language):
    read = parse(srt([(1, 2, text)]).encode(encoding), "film.srt", language)
    assert [note.text for note in read.notes] == [text]
    (fault,) = read.faults
    assert f"film.srt: is not UTF-8 and was read as {encoding}" in fault


def test_markup_goes_and_words_stay():
    said = {
        "<i>Good</i> <b>morning</b>": "Good morning",
        "{\\an8}Up <font color='red'>there</font>": "Up there",
        "a < b and c > d": "a < b and c > d",
        "two\nlines": "two lines",
        "Tom &amp; Jerry": "Tom & Jerry",
    }
    for text, plain in said.items():
        assert [n.text for n in parse(srt([(1, 2, text)]).encode(), "f").notes] == [plain]
    voices = vtt([(1, 2, "<v.loud Ann Lee>Come <c.blue>in</c> <00:00:01.500>now")])
    assert parse(voices.encode(), "f").notes[0].text == "Ann Lee: Come in now"
    drawn = ass([(1, 2, "{\\p1}m 0 0 l 9 9{\\p0}Hi,\\Nyou\\hthere")])
    assert parse(drawn.encode(), "f").notes[0].text == "Hi, you there"
    named = ass([(1, 2, "Hi")]).replace("Default,,", "Default,Bob,")
    assert parse(named.encode(), "f").notes[0].text == "Bob: Hi"


@pytest.mark.parametrize("form", ["srt", "vtt"])
@pytest.mark.parametrize(
    "text",
    [
        "Good morning.",
        "He said “no” to me.",
        "“Yes,” he said, “now.”",
        "“This goes on",
        "here.”",
        "(applause)",
    ],
)
def test_speech_that_was_exported_is_read_as_it_was(text, form):
    renderer = FORMATS[form]()
    written = renderer.write(Note(1.0, 2.0, text)) + renderer.close()
    assert parse(written.encode(), f"film.{form}").notes == (Note(1.0, 2.0, text),)


def test_quotation_marks_within_a_cue_stay():
    said = "“Yes,” he said, “now.”"
    assert parse(f"1\n00:00:01,000 --> 00:00:02,000\n{said}\n".encode(), "f.srt").notes == (
        Note(1.0, 2.0, said),
    )


def test_overrides_without_an_end_are_read_in_one_pass():
    # Patterns that look back would take hours.
    for text in ("{\\p1" * 20_000, "{\\" * 20_000, "<v " * 20_000, "{\\p1}" * 20_000):
        for written in (ass, srt, vtt):
            parse(written([(1, 2, text), (3, 4, "and on")]).encode(), "f")
    nested = ass([(1, 2, "A{\\b1}B{\\p2}m 0 0{\\p0}C}")])
    assert parse(nested.encode(), "f").notes[0].text == "ABC}"


def test_a_blank_line_in_a_subrip_cue_loses_nothing():
    read = parse(b"1\n0:0:1,0 --> 0:0:2,0\nfirst\n\nsecond\n\n2\n0:0:3 --> 0:0:4\n7\n", "f")
    assert [note.text for note in read.notes] == ["first second", "7"] and not read.faults
    dense = b"1\n0:0:1,0 --> 0:0:2,0\nfirst\n2\n0:0:3,0 --> 0:0:4,0\nsecond\n"
    assert [note.text for note in parse(dense, "f").notes] == ["first", "second"]


@given(st.permutations(range(8)), st.integers(0, 5))
def test_the_order_in_the_file_does_not_matter(order, overlap):
    cues = [(start, start + 1 + overlap, f"cue {start}") for start in range(8)]
    read = parse(srt([cues[i] for i in order]).encode(), "f")
    assert read.notes == tuple(Note(*cue) for cue in cues)


def test_equal_cues_that_touch_are_one():
    read = parse(srt([(1, 2, "So"), (2, 3, "So"), (9, 10, "So")]).encode(), "f")
    assert read.notes == (Note(1, 3, "So"), Note(9, 10, "So"))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"1\n00:00:0x,0 --> 00:00:02,0\nlost\n", 2),
        (b"1\n00:00:05,0 --> 00:00:02,0\nback\n", 2),
        (b"no times here\n", 1),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nhi\n\nlost text\n", 6),
        (b"[Events]\nDialogue: 0,what\n", 2),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(data, line):
    faults = parse(data, "film.srt").faults
    assert [f"film.srt, line {line}:" in fault for fault in faults] == [True]


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_and_nothing_is_silent(data):
    for head in (b"", b"WEBVTT\n\n", b"[Events]\nDialogue: ", b"1\n00:00:01,0 --> 00:00:02,0\n"):
        read = parse(head + data, "f")
        assert read.notes or read.faults
        assert all(0 <= note.start <= note.end and note.text for note in read.notes)
        assert list(read.notes) == sorted(read.notes, key=lambda note: (note.start, note.end))


def test_a_cue_as_long_as_a_book_becomes_notes_that_a_memory_can_hold():
    words = " ".join(f"word{i}" for i in range(2000))
    notes = parse(srt([(0, 100, words)]).encode(), "f").notes
    assert " ".join(note.text for note in notes) == words
    assert max(len(note.text) for note in notes) <= MAX_NOTE_CHARS
    assert notes[0].start == 0 and notes[-1].end == pytest.approx(100)


def write(folder, name, cues=CUES):
    (folder / name).write_text(srt(cues), encoding="utf-8")


def test_files_beside_a_video_are_found_by_their_names(tmp_path):
    (tmp_path / "film.mp4").touch()
    (tmp_path / "film.two.mp4").touch()
    for name in ("film.srt", "film.en.srt", "film.pt-BR.vtt", "film.eng.forced.ass", "film.en.txt",
                 "film.two.srt", "film.part2.srt", "films.srt", "other.srt"):  # fmt: skip
        write(tmp_path, name)
    tracks = tracks_of(tmp_path / "film.mp4")
    assert [track.name for track in tracks] == [
        "film.srt", "film.en.srt", "film.pt-BR.vtt", "film.eng.forced.ass",
    ]  # fmt: skip
    assert [track.language for track in tracks] == ["", "en", "pt", "en"]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", "mov_text"),
        (".mkv", "subrip"),
        (".mkv", "ass"),
        (".mkv", "webvtt"),
        (".mkv", "text"),
    ],
)
def test_tracks_inside_a_video_are_read(tmp_path, suffix, codec):
    german = ((1.0, 2.0, "Guten Morgen."),)
    path = with_tracks(tmp_path / f"film{suffix}", [("eng", CUES), ("deu", german)], codec=codec)
    assert [track.language for track in tracks_of(path)] == ["en", "de"]
    assert open_track(path, SpeechOptions()).notes == NOTES
    assert open_track(path, SpeechOptions(language="ger")).notes == (Note(*german[0]),)


def test_of_several_tracks_the_first_is_read_and_of_those_in_a_language_too(tmp_path):
    texts = ((1.0, 2.0, "One."),), ((1.0, 2.0, "Two."),), ((1.0, 2.0, "Three."),)
    path = with_tracks(tmp_path / "film.mkv", [*zip(("deu", "eng", "eng"), texts, strict=True)])
    track = open_track(path, SpeechOptions())
    assert track.notes == (Note(*texts[0][0]),)
    assert "reads subtitle track 1 of film.mkv" in track.notices[0].message
    assert open_track(path, SpeechOptions(language="en")).notes == (Note(*texts[1][0]),)


def test_closed_captions_have_the_time_at_which_they_are_shown(tmp_path):
    path = with_captions(tmp_path / "film.mov", CUES)
    (track,) = tracks_of(path)
    assert track.read() == Cues(tuple(Note(*cue) for cue in CUES))


def test_captions_that_roll_up_give_each_line_once(tmp_path):
    cues = [(0.5, 2.0, "We sail"), (2.0, 4.0, "to Bergen"), (4.0, 6.0, "at dawn.")]
    (track,) = tracks_of(with_captions(tmp_path / "film.mov", cues, rolls=True))
    notes = track.read().notes
    assert [note.text for note in notes] == [text for *_, text in cues]
    assert [note.start for note in notes] == [start for start, *_ in cues]


@pytest.mark.parametrize("codec", ["dvb_teletext", "dvb_subtitle"])
def test_teletext_and_pictures_are_told_and_stand_behind_every_text(tmp_path, codec):
    path = tmp_path / "film.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        text = container.add_mux_stream(codec)
        text.time_base = Fraction(1, 1000)
        for number in range(4):
            pixels = moving_square("red", number, 64, 64)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        packet = av.Packet(b"\x10\x02\x2c" + bytes(44))
        packet.stream, packet.time_base = text, Fraction(1, 1000)
        packet.pts = packet.dts = 500
        container.mux(packet)
    track = open_track(path, SpeechOptions())
    assert track.notes == () and "is no text that can be read" in track.notices[0].message
    path.with_suffix(".forced.srt").write_text(srt())
    assert [track.is_text for track in tracks_of(path)] == [True, False]
    assert open_track(path, SpeechOptions()).notes == NOTES


def test_a_film_without_tracks_of_text_is_not_opened_for_them(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(subtitles, "tracks_in", lambda *given: opened.append(given) or [])
    for tracks in ([], [("eng", CUES)]):
        path = with_tracks(tmp_path / f"{len(tracks)}.mkv", tracks, seconds=1)
        with open_source(path) as source:
            assert open_speech(source, SpeechOptions()).subtitles is None
        assert len(opened) == len(tracks)


def test_a_file_beside_goes_before_a_track_inside(tmp_path):
    path = with_tracks(tmp_path / "film.mkv", [("eng", CUES)])
    write(tmp_path, "film.srt", [(1, 2, "Beside.")])
    track = open_track(path, SpeechOptions())
    assert track.notes == (Note(1, 2, "Beside."),)
    (notice,) = track.notices
    assert "subtitle track 1 of film.mkv" in notice.message and not notice.is_failure


def test_languages_are_known_by_codes_and_names():
    assert {language_of(name) for name in ("en", "eng", "EN-us", "English", "en_GB")} == {"en"}
    assert language_of("tlh") == "tlh"


def test_a_language_that_is_not_there_is_told_or_refused(tmp_path):
    path = tmp_path / "film.mp4"
    write(tmp_path, "film.en.srt")
    track = open_track(path, SpeechOptions(language="fr"))
    assert track.notes == () and "there are: film.en.srt [en]" in track.notices[0].message
    assert open_track(path, SpeechOptions(language="fr,eng")).notes == NOTES


def test_off_and_a_recogniser_read_no_subtitles(tmp_path):
    path = tmp_path / "film.mp4"
    assert open_track(path, SpeechOptions()) is None
    write(tmp_path, "film.srt")
    assert open_track(path, SpeechOptions("on")).notes == NOTES
    assert open_track(path, SpeechOptions("off")) is None
    assert open_track(path, SpeechOptions("whisper-base")) is None
    with pytest.raises(ConfigError, match="no such recogniser"):
        SpeechOptions("whisper")


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_each_note_is_given_once_by_contiguous_scenes(seed, num_scenes):
    rng = random.Random(seed)
    notes = tuple(
        Note(start, start + rng.uniform(0, 9), "x")
        for start in sorted(rng.uniform(0, 60) for _ in range(12))
    )
    bounds = sorted(rng.uniform(0, 60) for _ in range(num_scenes + 1))
    track = SpeechTrack("f", notes)
    given_notes = [n for a, b in itertools.pairwise(bounds) for n in track.within(a, b)]
    first, last = bounds[0], bounds[-1]
    shown = [n for n in notes if n.start < last and (n.end > first or n.start >= first)]
    assert given_notes == shown
