"""WebVTT of HLS: placed by its own header on the clock of the pictures, live and whole."""

import threading
import time

import pytest

from streammem.audio.subtitles import parse_segment
from streammem.audio.track import SpeechOptions
from streammem.engine import hls_cues as placing
from streammem.engine.hls_cues import AROUND_S, hls_cues
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.types import Note, Notice
from streammem.video import hls, open_source
from tests.audio.subtitled import stamp
from tests.sessions import session_of
from tests.tiny import moving_square, tiny_model
from tests.video.servers import serving, write_stream

FPS, SECONDS = 10, 12
PICTURES = [moving_square("red" if k < 60 else "blue", k, 64, 48) for k in range(FPS * SECONDS)]
WRAP = 2**33
MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="Deutsch",LANGUAGE="de",URI="german.m3u8"
#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="s",NAME="English",DEFAULT=YES,LANGUAGE="en",URI="subs.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=100000,SUBTITLES="s"
pictures.m3u8
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(hls, "LOOK_EVERY_S", (0.02, 0.05))
    monkeypatch.setattr(hls, "WAIT_SLICE_S", 0.01)
    yield
    assert not [t for t in threading.enumerate() if t.name == "streammem-listener"]


def playlist(number, first, urls, *, ended):
    lines = [f"#EXTM3U\n#EXT-X-TARGETDURATION:{number}\n#EXT-X-MEDIA-SEQUENCE:{first}"]
    lines += [f"#EXTINF:{number}.0,\n{url}" for url in urls] + ["#EXT-X-ENDLIST"] * ended
    return "\n".join(lines) + "\n"


def put(path, text):
    """Write a file that is read meanwhile."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def segment(cues, mpegts, local_s=0.0, header=True):
    head = f"X-TIMESTAMP-MAP=MPEGTS:{mpegts % WRAP},LOCAL:{stamp(local_s, '.')}\n" * header
    text = (f"{stamp(a, '.')} --> {stamp(b, '.')}\n{words}\n\n" for a, b, words in cues)
    return f"WEBVTT\n{head}\n" + "".join(text)


def stream(folder, *, ended, first_s=0.0):
    """Write twelve seconds of HLS; return the stamp of the first picture, in ticks."""
    first = round(first_s * FPS)
    write_stream(
        folder / "pictures.m3u8", PICTURES, "hls", fps=FPS, gop=FPS,
        stamps=range(first, first + len(PICTURES)),
        hls_time="1", hls_list_size="0", hls_flags="append_list" if ended else "omit_endlist",
    )  # fmt: skip
    (folder / "live.m3u8").write_text(MASTER)
    (folder / "german.m3u8").write_text(playlist(1, 0, [], ended=ended))
    with open_source(str(folder / "pictures0.ts"), fps=None) as source:
        return source._reader.origin


def watched(address, language=None, **callbacks):
    session = session_of(tiny_model())
    options = WatchOptions(captions=False, speech=SpeechOptions("auto", language), drop="never")
    told = watch(session, f"{address}/live.m3u8", options, callbacks=WatchCallbacks(**callbacks))
    return session, told


def of_kind(kind, events):
    return [event for event in events if isinstance(event, kind)]


CUES = [(float(at), at + 0.8, f"words {at}") for at in range(1, 11)]


def test_the_header_of_a_segment_places_its_cues(tmp_path):
    """Of a whole stream in two languages, whose cues count from an hour."""
    origin, hour = stream(tmp_path, ended=True), 3600.0
    for number in range(2):
        own = [(a + hour, b + hour, words) for a, b, words in CUES if a // 6 == number]
        (tmp_path / f"s{number}.vtt").write_text(segment(own, origin, hour))
    (tmp_path / "g.vtt").write_text(segment([(1, 2, "Guten Morgen.")], origin))
    (tmp_path / "subs.m3u8").write_text(playlist(6, 0, ["s0.vtt", "s1.vtt"], ended=True))
    (tmp_path / "german.m3u8").write_text(playlist(12, 0, ["g.vtt"], ended=True))
    with serving(tmp_path) as address:
        session, told = watched(address)
        notes = of_kind(Note, told := list(told))
        german = list(watched(address, "fr,de")[1])
        french = list(watched(address, "fr")[1])
    assert [(note.text, note.start, note.end) for note in notes] == [
        (words, pytest.approx(a, abs=0.001), pytest.approx(b, abs=0.001)) for a, b, words in CUES
    ]
    (notice,) = of_kind(Notice, told)
    assert "reads subtitles English of" in str(notice)
    for entry in session.memory.entries():
        assert all(entry.start <= note.start < entry.end for note in entry.notes)
    assert sum(len(entry.notes) for entry in session.memory.entries()) == len(CUES)
    assert [note.text for note in of_kind(Note, german)] == ["Guten Morgen."]
    assert not of_kind(Note, french)
    assert "no subtitles in fr; there are: subtitles English" in str(of_kind(Notice, french)[0])


@pytest.mark.heavy  # FFmpeg looks for new segments twice a second
@pytest.mark.parametrize(
    ("first_s", "ends"),
    [(0.0, False), (2**33 / 90_000 - 6, False), (0.0, True)],
    ids=["early", "stamps begin again", "ends"],
)
def test_a_live_playlist_that_slides_is_followed(tmp_path, first_s, ends):
    """To its last cue, whether it ends or is stopped; subtitles are there before the pictures."""
    origin = stream(tmp_path, ended=False, first_s=first_s)
    for at, cue in enumerate(CUES):  # each goes on over the next segment, and repeats there
        text = segment([cue, *CUES[max(0, at - 1) : at]], origin)
        (tmp_path / f"s{at}.vtt").write_text(text)
    pictures = (tmp_path / "pictures.m3u8").read_text()

    def slide(number):
        first = max(0, number - 3)
        urls = [f"s{at}.vtt" for at in range(first, number)]
        put(tmp_path / "subs.m3u8", playlist(1, first, urls, ended=ends and number == len(CUES)))
        if ends and number == len(CUES):
            put(tmp_path / "pictures.m3u8", pictures + "#EXT-X-ENDLIST\n")

    # FFmpeg begins three segments before the newest: time 0 is that picture's.
    begin = SECONDS - 3
    wanted = [cue for cue in CUES if cue[0] >= begin]
    slide(begin)
    notes, until = list[Note](), time.monotonic() + 60
    with serving(tmp_path) as address:
        session, told = watched(
            address,
            on_frame=lambda frame: slide(min(len(CUES), begin + 1 + int(frame.time))),
            stop=lambda: (not ends and len(notes) >= len(wanted)) or time.monotonic() > until,
        )
        for event in told:
            notes += of_kind(Note, [event])
    assert [note.text for note in notes] == [words for *_, words in wanted]
    starts = [a - begin for a, *_ in wanted]
    assert [note.start for note in notes] == pytest.approx(starts, abs=0.05)
    assert [n.text for e in session.memory.entries() for n in e.notes] == [n.text for n in notes]


class Pictures:
    """A live source as far as its cues need it: the newest picture's stamp, and its time."""

    name, live = "cam", True

    def __init__(self, stamp, time):
        self.text_clock = stamp, time


def followed(address, source, steps):
    """Read ``subs.m3u8`` while its pictures go on.

    Args:
        source: ``Pictures``.
        steps: called one after another, one before each look.
    """
    track = hls.TextPlaylist("a", "en", False, True, f"{address}/subs.m3u8", "127.0.0.1")
    left = list(steps)

    def has_ended():
        if left:
            left.pop(0)()
            return False
        return True

    return [
        i for i in hls_cues(source, track, lambda: False, has_ended) if not isinstance(i, float)
    ]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(hls, "LOOK_EVERY_S", (0.0, 0.0))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("first", [100.0, AROUND_S - 3])
def test_cues_of_a_live_stream_come_with_their_pictures_to_the_last_one(tmp_path, first):
    """Also where the subtitles end before the pictures do, and where the stamps begin again."""
    source = Pictures(first, 7.0)
    for at in range(8):
        cue = (first + at, first + at + 0.5, f"words {at}")
        (tmp_path / f"s{at}.vtt").write_text(segment([cue], 0))

    def step(number):
        urls = [f"s{at}.vtt" for at in range(max(0, number - 3), number)]
        ended = number == 8
        put(tmp_path / "subs.m3u8", playlist(1, max(0, number - 3), urls, ended=ended))

    def show(seconds):
        source.text_clock = (first + seconds) % AROUND_S, 7.0 + seconds

    steps = [lambda at=at: (step(at), show(at - 3.0)) for at in range(3, 9)]
    steps += [lambda at=at: show(at - 3.0) for at in range(9, 12)]
    with serving(tmp_path) as address:
        found = followed(address, source, steps)
    assert [note.text for note in found] == [f"words {at}" for at in range(8)]
    starts = [7.0 + at for at in range(8)]
    assert [note.start for note in found] == pytest.approx(starts, abs=0.001)
    assert [note.end - note.start for note in found] == pytest.approx([0.5] * 8, abs=0.001)


@pytest.mark.usefixtures("at_once")
def test_a_playlist_that_vanishes_is_told_and_goes_on_where_it_was(tmp_path):
    source, subs = Pictures(100.0, 50.0), tmp_path / "subs.m3u8"
    for at in range(6):
        (tmp_path / f"s{at}.vtt").write_text(segment([(80 + at, 81 + at, f"words {at}")], 0))

    def of(*numbers, first=None):
        urls = [f"s{at}.vtt" for at in numbers]
        return lambda: put(subs, playlist(1, first if first is not None else numbers[0], urls,
                                          ended=False))  # fmt: skip

    with serving(tmp_path) as address:
        found = followed(
            address, source, [of(first=7), of(0, 1), subs.unlink, of(1, 2), of(4), of(5, first=0)]
        )
    assert [item.text for item in of_kind(Note, found)] == [f"words {at}" for at in (0, 1, 2, 4, 5)]
    missing, lack = of_kind(str, found)
    assert "cam: its subtitles cannot be fetched (answered 404)" in missing
    assert "went on faster than they are read; 1 parts lack" in lack


def test_what_a_segment_may_hold():
    shift, cues = parse_segment(segment([(1, 2, "a")], 900_000, 3.0).encode(), "f")
    assert shift == pytest.approx(7.0) and cues.notes == (Note(1, 2, "a"),)
    assert parse_segment(segment([(1, 2, "a")], 0, header=False).encode(), "f")[0] == 0.0
    assert parse_segment(b"WEBVTT\n\n", "f")[1].faults == ()
    assert "no WebVTT" in parse_segment(b"<html>", "f")[1].faults[0]
    (fault,) = parse_segment(b"WEBVTT\n\nx --> y\nhello\n", "f")[1].faults
    assert "line 3" in fault


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("#EXTINF:1,\nfile:///etc/passwd", "cannot be read"),
        ("#EXTINF:1,\ndata:text/vtt,WEBVTT", "cannot be read"),
        ("#EXTINF:1,\nhttp://localhost:1/a.vtt", "on a private network that was not named"),
        ('#EXT-X-KEY:METHOD=AES-128,URI="k"\n#EXTINF:1,\na.vtt', "are encrypted"),
        ("#EXT-X-BYTERANGE:9@0\n#EXTINF:1,\na.vtt", "are parts of larger files"),
        ('#EXT-X-MAP:URI="i"\n#EXTINF:1,\na.vtt', "lie in MP4"),
        ("#EXTINF:1,\nmissing.vtt", "cannot be fetched (answered 404); some are missing"),
        ("#EXTINF:1,\nlarge.vtt", "is larger than 1000 bytes; some are missing"),
        ("#EXTINF:1,\nempty.vtt\n#EXT-X-DISCONTINUITY\n#EXTINF:1,\na.vtt", "another clock"),
    ],
)
def test_what_is_not_followed_is_told(tmp_path, monkeypatch, lines, told):
    monkeypatch.setattr(hls, "MAX_SEGMENT_BYTES", 1000)
    (tmp_path / "large.vtt").write_bytes(b"WEBVTT\n\n" + bytes(2000))
    (tmp_path / "empty.vtt").write_text("WEBVTT\n")
    (tmp_path / "live.m3u8").write_text(MASTER)
    (tmp_path / "subs.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n{lines}\n#EXT-X-ENDLIST\n"
    )
    with serving(tmp_path) as address:
        german, english = hls.text_playlists(f"{address}/live.m3u8", "live")
        items = list(hls.segments(english, "f", lambda: False, lambda: False, endless=False))
    assert (german.language, german.default) == ("de", False)
    assert (english.language, english.default) == ("en", True)
    (fault,) = of_kind(str, items)
    assert told in fault and fault.startswith("f: its subtitles ")
    assert of_kind(bytes, items) == [b"WEBVTT\n"] * ("empty" in lines)


@pytest.mark.usefixtures("at_once")
def test_a_cue_that_has_no_picture_is_counted(tmp_path, monkeypatch):
    """Without a header stamps count from 0, which a live stream's do not."""
    source = Pictures(5000.0, 5.0)
    near = segment([(4999, 5000, "near"), (9000, 9001, "far")], 0, header=False)
    (tmp_path / "s.vtt").write_text(near)
    (tmp_path / "t.vtt").write_text(segment([(1, 2, "no header")], 0, header=False))
    (tmp_path / "subs.m3u8").write_text(playlist(1, 0, ["s.vtt", "t.vtt"], ended=True))
    with serving(tmp_path) as address:
        note, told = followed(address, source, [])
        assert note == Note(pytest.approx(4.0), pytest.approx(5.0), "near")
        assert "2 subtitles have no place beside the pictures" in told
        monkeypatch.setattr(placing, "MAX_HELD", 1)
        assert "2 subtitles have no place" in followed(address, source, [])[1]


def test_addresses_that_cannot_be_read_are_told_and_stop_nothing(tmp_path):
    (tmp_path / "live.m3u8").write_text(MASTER.replace("german.m3u8", "http://[x/german.m3u8"))
    (tmp_path / "subs.m3u8").write_text(playlist(1, 0, ["http://[x/a.vtt", "b.vtt"], ended=True))
    (tmp_path / "b.vtt").write_text(segment([(0, 1, "words")], 0))
    with serving(tmp_path) as address:
        german, english = hls.text_playlists(f"{address}/live.m3u8", "live")
        (fault, _) = hls.segments(german, "live", lambda: False, lambda: True, endless=True)
        assert "cannot be read" in fault
        items = hls.segments(english, "live", lambda: False, lambda: False, endless=False)
        fault, content = items
        assert "cannot be read" in fault and b"words" in content
