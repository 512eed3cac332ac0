"""What is said joins the timeline: events, memory, export."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from streammem.audio.track import SpeechOptions, open_tracks
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.errors import SourceError
from streammem.types import Caption, Note, Notice, Segment
from streammem.video import SourceOptions, open_source
from streammem.video.sound import file_sound
from tests.audio.clapper import clicks
from tests.audio.subtitled import CUES, srt, with_tracks
from tests.command_line import events, record
from tests.sessions import session_of
from tests.tiny import moving_square, tiny_model

NOTES = [Note(*cue) for cue in CUES]


@pytest.fixture
def film(tmp_path):
    path = record(tmp_path / "film.mp4")
    path.with_suffix(".srt").write_text(srt())
    return path


def watched(session, path, **options):
    return list(watch(session, str(path), WatchOptions(**options)))


def test_notes_are_events_in_time_order_each_after_its_scene(film):
    told = watched(session_of(tiny_model()), film)
    assert [event for event in told if isinstance(event, Note)] == NOTES
    spans = [event.start for event in told if isinstance(event, Caption | Note)]
    assert spans == sorted(spans)
    for note in NOTES:
        before = [e for e in told[: told.index(note)] if isinstance(e, Segment)]
        assert any(segment.start <= note.start < segment.end for segment in before)


def test_one_frame_at_a_time_keeps_what_a_watched_file_keeps(film):
    from streammem.audio.track import open_track

    whole, single = session_of(tiny_model()), session_of(tiny_model())
    watched(whole, film, captions=False)
    single.speech = open_track(film, SpeechOptions())
    with open_source(str(film), fps=2.0, max_side=640) as source:
        for frame in source:
            single.push(frame)
        single.flush(source.end)
    rows = [(e.segment, e.notes, e.note_keys.tobytes()) for e in single.memory.entries()]
    assert rows == [(e.segment, e.notes, e.note_keys.tobytes()) for e in whole.memory.entries()]
    assert [note for _, notes, _ in rows for note in notes] == NOTES


def test_cues_after_the_end_are_told_and_not_kept(film):
    film.with_suffix(".srt").write_text(srt([*CUES, (99, 100, "Of another film.")]))
    session = session_of(tiny_model())
    told = watched(session, film)
    (notice,) = (event for event in told if isinstance(event, Notice))
    assert "1 of 3 cues begin after the end of the film" in notice.message
    assert [n for e in session.memory.entries() for n in e.notes] == NOTES


def uneven(path, cuts):
    """Write a film of 4, 20 and 8 pictures a second in turn; at cuts it clicks, and looks other."""
    rates, rate = (4, 20, 8), 16_000
    times = {s + k / rates[s % 3] for s in range(9) for k in range(rates[s % 3])} | {*cuts}
    samples = np.zeros((1, 9 * rate), np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number, at in enumerate(sorted(times)):
            colour = ("red", "blue", "green")[sum(at >= cut for cut in cuts)]
            pixels = moving_square(colour, number, 64, 64)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for cut in cuts:
            samples[0, round(cut * rate) : round(cut * rate) + rate // 50] = 20_000
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("suffix", [".mkv", pytest.param(".mov", marks=pytest.mark.heavy)])
def test_at_a_variable_rate_scenes_captions_words_and_sound_keep_one_clock(tmp_path, suffix):
    cuts = (3.13, 6.41)
    film = uneven(tmp_path / f"film{suffix}", cuts)
    film.with_suffix(".srt").write_text(srt([(cut, cut + 1, f"Cut at {cut}.") for cut in cuts]))
    session, every = session_of(tiny_model()), SourceOptions(fps=None)
    told = list(watch(session, str(film), WatchOptions(), source_options=every))
    for kind in (Segment, Caption):
        begun = [event.start for event in told if isinstance(event, kind)]
        assert begun == pytest.approx([0.0, *cuts], abs=0.1), kind
    assert [e.start for e in told if isinstance(e, Note)] == pytest.approx(cuts, abs=0.01)
    _, *entries = session.memory.entries()
    assert [n.text for e in entries for n in e.notes] == [f"Cut at {cut}." for cut in cuts]
    assert clicks(file_sound(film, film.name)) == pytest.approx(cuts, abs=0.1)


def test_off_reads_none_and_frames_have_none(film):
    told = watched(session_of(tiny_model()), film, speech=SpeechOptions("off"))
    assert not any(isinstance(event, Note | Notice) for event in told)
    with pytest.raises(SourceError, match="has no sound"):
        watch(session_of(tiny_model()), [], WatchOptions(speech=SpeechOptions("on")))


def test_a_still_picture_with_much_talk_loses_no_word(tmp_path):
    """Scenes that look alike merge in the memory; what is said in them does not go."""
    path = record(tmp_path / "slides.mp4", scenes=(("red", 60),))
    cues = [(i / 4, i / 4 + 0.2, f"This is sentence number {i}.") for i in range(230)]
    path.with_suffix(".srt").write_text(srt(cues))
    session = session_of(tiny_model(), epsilon=0.02)
    watched(session, path, captions=False)
    words = " ".join(n.text for entry in session.memory.entries() for n in entry.notes)
    assert words == " ".join(text for *_, text in cues)


def test_the_command_writes_notes_and_the_memory_exports_them(film, run, tmp_path):
    code, out, _ = run("caption", film, "--max-new-tokens", "4", "--memory", tmp_path / "m",
                       "--format", "jsonl")  # fmt: skip
    notes = [event for event in events(out) if event["type"] == "note"]
    wanted = [{"type": "note", "start": a, "end": b, "text": text} for a, b, text in CUES]
    assert code == 0 and notes == wanted
    _, out, _ = run("memory", "export", tmp_path / "m", "--format", "srt", "--with-speech", "only")
    assert "“We sail to Bergen at dawn.”" in out and out.count("-->") == 2
    _, out, _ = run("memory", "export", tmp_path / "m", "--format", "srt", "--with-speech", "no")
    assert "“" not in out and out.count("-->") == 3
    files = tmp_path / "out.srt"
    run("memory", "export", tmp_path / "m", "--format", "srt", "--with-speech", "tracks",
        "-o", files)  # fmt: skip
    assert files.read_text().count("-->") == 3
    assert files.with_name("out.speech.srt").read_text().count("-->") == 2


@pytest.mark.heavy
def test_a_kill_in_the_middle_leaves_whole_notes(film, tmp_path):
    code = (
        "import os, sys\n"
        "from streammem.engine.watch import watch\n"
        "from streammem.engine.session import Session\n"
        "from streammem.types import Segment\n"
        "from tests.tiny import moving_square, tiny_model\n"
        "session = Session(tiny_model(), memory=sys.argv[2])\n"
        "for event in watch(session, sys.argv[1]):\n"
        "    if isinstance(event, Segment) and event.id == 1: os._exit(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(film), str(tmp_path / "m")], check=False, timeout=240
    )
    assert done.returncode == 9
    from streammem.memory import upkeep
    from streammem.memory.store import Store

    with Store.open(tmp_path / "m", None, "r") as store:
        assert upkeep.verify(store) == ()
        kept = list(upkeep.entries(store))
    for entry in kept:
        assert list(entry.notes) == [n for n in NOTES if entry.start <= n.start < entry.end]
    assert sum(len(entry.notes) for entry in kept) == 2


@pytest.fixture
def parts(tmp_path):
    """A list of three films: with a file beside it, without subtitles, with a track inside."""
    first = record(tmp_path / "one.mp4", scenes=(("red", 24),))
    first.with_suffix(".srt").write_text(srt([(1, 2, "One."), (2.5, 4, "On."), (50, 51, "Not.")]))
    record(tmp_path / "two.mp4", scenes=(("blue", 16),))
    with_tracks(tmp_path / "three.mkv", [("eng", [(0.5, 1, "Three."), (2, 3, "Off.")])], seconds=4)
    (tmp_path / "list.txt").write_text("one.mp4\ntwo.mp4\nthree.mkv\n")
    return f"concat:{tmp_path / 'list.txt'}"


def test_films_of_a_list_have_their_own_subtitles_at_their_own_places(parts):
    with open_source(parts) as source:
        list(source)
        begins = source.starts
    session = session_of(tiny_model())
    told = list(watch(session, parts, WatchOptions(captions=False)))
    first, _, third = begins.values()
    wanted = [
        *(first + 1, first + 2.5),
        *(third + 0.5, third + 2),
    ]
    notes = [event for event in told if isinstance(event, Note)]
    assert [note.text for note in notes] == ["One.", "On.", "Three.", "Off."]
    assert [note.start for note in notes] == pytest.approx(wanted, abs=0.01)
    (notice,) = [event for event in told if isinstance(event, Notice)]
    assert "one.srt: 1 of 3 cues begin after the end of the film, the last at 00:50" in str(notice)
    for entry in session.memory.entries():
        assert all(entry.start <= note.start < entry.end for note in entry.notes)


def test_only_the_films_without_subtitles_are_recognised(parts):
    track = open_tracks(
        [str(Path(parts.partition(":")[2]).with_name(name)) for name in
         ("one.mp4", "two.mp4", "three.mkv")], SpeechOptions("on"), starts := {},
    )  # fmt: skip
    starts |= {0: 0.0, 1: 6.0, 2: 10.0}
    assert not track.is_complete
    assert [track.covers(at) for at in (0, 5.9, 6, 9.9, 10, 99)] == [
        *(True, True, False, False, True, True)
    ]
    assert open_tracks([], SpeechOptions(), {}) is None
