"""Live sources against real servers on loopback that fail as cameras do."""

import itertools
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

from benchmarks.rtsp_server import RtspCamera, encode
from streammem.errors import SourceError, TruncatedError
from streammem.video import live_source, open_source
from streammem.video.cameras import open_rtsp, open_screen, open_webcam
from streammem.video.live_source import LiveSource, Time
from streammem.video.source import Sampling
from tests.tiny import moving_square
from tests.video.servers import retried, serving, write_stream

PICTURES = [moving_square("red" if k < 30 else "blue", k, 64, 48) for k in range(60)]
LARGE = [moving_square("green", k, 96, 80) for k in range(20)]
UNITS = encode(PICTURES)


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    before = open_files()
    yield
    for thread in threading.enumerate():
        assert thread.name != "rtsp-camera"
    assert open_files() <= before


def open_files():
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


@pytest.fixture
def camera():
    with RtspCamera(UNITS, speed=None, loop=False) as camera:
        yield camera


@dataclass
class Passing:
    """Time that passes only while one sleeps."""

    seconds: float = 0.0

    def sleep(self, seconds):
        self.seconds += seconds

    def as_time(self):
        return Time(now=lambda: self.seconds, wall=lambda: 1e9 + self.seconds, sleep=self.sleep)


def watched(camera, passing=None, **sampling):
    source = open_rtsp(camera.url, Sampling(**sampling))
    source.reconnect = True
    if passing:
        source._passing = passing.as_time()
    return source


def taken(source, count):
    frames = list(itertools.islice(source, count))
    source.stop()
    source.close()
    return frames


def rising(frames):
    times = [frame.time for frame in frames]
    assert times == sorted(times)
    return times


# -- what a camera does --


@pytest.mark.parametrize("scheme", ["rtsp", "rtsp+udp"])
def test_the_picture_comes_over_either_transport(scheme):
    with (
        RtspCamera(UNITS[:15], speed=4.0, loop=False) as camera,
        open_source(camera.url.replace("rtsp", scheme, 1)) as source,
    ):
        frames = list(itertools.islice(source, 10))
    assert rising(frames) == pytest.approx([k * 0.04 for k in range(10)])
    assert frames[0].pixels.shape == (48, 64, 3)
    assert source.live and source.name.startswith(scheme + "://")


def test_much_damage_is_reported_once_and_half_decoded_pictures_are_left_out():
    def damaged(unit):  # the second half of every slice is noise
        units = [u if (u[0] & 31) > 5 else u[: len(u) // 2] + b"\x5a" * len(u) for u in unit.nals]
        return replace(unit, nals=units)

    units = encode([moving_square("red", k % 30, 64, 48) for k in range(150)])
    sent = [damaged(unit) if k >= 60 and k % 2 else unit for k, unit in enumerate(units)]
    with RtspCamera(sent, speed=None, loop=False) as camera, open_source(camera.url) as source:
        frames = list(source)
    told = [notice for notice in source.notices if "damaged" in notice]
    assert len(told) == 1 and "of the last" in told[0]
    assert source.num_damaged > 10 and len(frames) <= 150 - source.num_damaged
    whole = frames[0].pixels.astype(int)
    for frame in frames:  # never a grey half, nor a smear of the noise
        assert abs(frame.pixels.astype(int).mean((0, 1)) - whole.mean((0, 1))).max() < 25


def test_a_camera_that_breaks_off_comes_back_in_the_same_stream(camera):
    passing = Passing()
    source = watched(camera, passing)
    frames = []
    for frame in source:
        frames.append(frame)
        if len(frames) == 150:
            break
    source.close()
    times = rising(frames)
    assert camera.num_connections == source.num_connections == 3
    assert [f.index for f in frames] == list(range(150))
    # Each of the two outages took what the wait before the new attempt took.
    first, _ = live_source.BACK_OFF_S
    gaps = [b - a for a, b in itertools.pairwise(times) if b - a > 0.05]
    assert len(gaps) <= 2 and passing.seconds <= 2 * first + 1
    assert "connection lost" in source.notices[0] and "is back" in source.notices[1]


def test_a_dead_camera_is_asked_ever_less_often_and_found_when_it_is_back(camera, monkeypatch):
    passing, attempts = Passing(), []
    source = watched(camera, passing)
    frames = iter(source)
    next(frames)
    camera.die()
    opening = source._feed.open

    def attempt(stopping):
        attempts.append(passing.seconds)
        if len(attempts) == 9:
            camera.revive()
        return opening(stopping)

    source._feed = replace(source._feed, open=attempt)
    rest = list(itertools.islice(frames, 70))
    source.close()
    assert len(attempts) == 9 and source.num_connections == 2
    waits = [b - a for a, b in itertools.pairwise([0.0, *attempts])]
    for k, wait in enumerate(waits):
        longest = min(live_source.BACK_OFF_S[0] * 2**k, live_source.BACK_OFF_S[1])
        assert longest / 2 <= wait <= longest + live_source.WAIT_SLICE_S + 1e-6
    assert rest[-1].time >= attempts[-1]  # the outage is as long as it was


def test_a_silent_connection_is_given_up(camera, monkeypatch):
    monkeypatch.setattr("streammem.video.cameras.POLL_S", 0.05)
    monkeypatch.setattr(live_source, "STALL_S", 0.2)
    camera.loop = True
    camera.speed = 10.0
    source = watched(camera)
    source._passing = Time(sleep=lambda seconds: camera.stalled.clear())
    monkeypatch.setattr(live_source, "BACK_OFF_S", (0.01, 0.01))
    frames = []
    for frame in source:
        frames.append(frame)
        if len(frames) == 5:
            camera.stalled.set()
        if source.num_connections == 2:
            break
    assert "silent for" in source.notices[0]
    rising(frames)
    source.close()


@retried
def test_a_stall_shorter_than_that_is_waited_out(camera, monkeypatch):
    monkeypatch.setattr("streammem.video.cameras.POLL_S", 0.15)
    camera.loop, camera.speed = True, 10.0
    source = watched(camera)
    frames = iter(source)
    taken_first = [next(frames) for _ in range(5)]
    camera.stalled.set()
    timer = threading.Timer(0.5, camera.stalled.clear)
    timer.start()
    later = [next(frames) for _ in range(20)]
    source.close()
    timer.join()
    assert not source.notices and source.num_connections == 1
    rising(taken_first + later)


def test_corrupt_pictures_do_not_end_the_stream(camera):
    camera.loop = True
    source = watched(camera)
    frames = iter(source)
    next(frames)
    camera.corrupt = 0.5
    spoiled = [next(frames) for _ in range(30)]
    camera.corrupt = 0.0
    rest = [next(frames) for _ in range(60)]
    source.close()
    rising(spoiled + rest)
    assert source.num_connections == 1


def test_another_resolution_is_taken_as_it_comes(camera):
    camera.loop, camera.speed = True, 20.0  # so that little of the old picture is under way
    source = watched(camera, max_side=64)
    frames = iter(source)
    next(frames)
    camera.units = encode(LARGE)
    shapes = {next(frames).pixels.shape for _ in range(200)}
    source.close()
    assert (53, 64, 3) in shapes  # 96 x 80, shrunk


def test_stopping_ends_a_pass_that_waits(camera, monkeypatch):
    monkeypatch.setattr("streammem.video.cameras.POLL_S", 0.2)
    camera.loop, camera.speed = True, 10.0
    source = watched(camera)
    frames = iter(source)
    next(frames)
    camera.stalled.set()
    timer = threading.Timer(0.05, source.stop)
    timer.start()
    list(frames)  # it ends; how much was under way depends on the machine
    source.close()
    timer.join()


def test_without_reconnecting_a_lost_camera_ends_the_stream(camera):
    source = open_source(camera.url)
    assert len(list(source)) == 60 and source.end == pytest.approx(2.4)
    source.close()


# -- secrets --


def test_credentials_show_nowhere():
    with RtspCamera(UNITS, speed=None, loop=False, password="s3cret") as camera:
        with open_source(camera.url + "?token=t0ken") as source:
            next(iter(source))
            shown = [source.name, repr(source), *source.notices]
        with pytest.raises(SourceError) as refused:
            open_source(camera.url.replace("s3cret", "wr0ng"))
        shown.append(str(refused.value))
    assert not any(secret in text for text in shown for secret in ("s3cret", "t0ken", "wr0ng"))
    assert "401" in str(refused.value) or "unauthorized" in str(refused.value)


# -- other ways --


def test_motion_jpeg_is_timed_by_arrival(tmp_path):
    with serving(tmp_path, PICTURES) as address, open_source(f"{address}/cam?key=k") as source:
        assert isinstance(source, LiveSource) and source.name == f"{address}/cam"
        frames = []
        with pytest.raises(TruncatedError, match="connection lost"):
            for frame in source:
                frames.append(frame)
    assert len(rising(frames)) == 60
    assert frames[-1].time < 2.0  # not the 2.4 s that counting 25 pictures a second would give


def test_a_playlist_that_is_not_ended_is_live_and_one_that_is_ended_is_a_file(tmp_path):
    for name, flags in (("live", "omit_endlist"), ("whole", "append_list")):
        path = tmp_path / f"{name}.m3u8"
        write_stream(path, PICTURES * 2, "hls", hls_time="1", hls_list_size="0", hls_flags=flags)
    with serving(tmp_path) as address:
        with open_source(f"{address}/live.m3u8") as source:
            assert isinstance(source, LiveSource)
            rising(list(itertools.islice(source, 40)))
        with open_source(f"{address}/whole.m3u8") as whole:
            assert not isinstance(whole, LiveSource) and len(list(whole)) == 120


def test_what_states_its_size_is_a_file_however_it_is_served(tmp_path):
    write_stream(tmp_path / "clip.ts", PICTURES)
    with serving(tmp_path) as address, open_source(f"{address}/clip.ts") as source:
        assert not source.live and len(list(source)) == 60


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_transport_stream_without_length_gives_its_last_picture(tmp_path, b_frames):
    body = write_stream(tmp_path / "clip.ts", PICTURES, b_frames=b_frames).read_bytes()

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        source = open_source(f"http://127.0.0.1:{server.server_address[1]}/clip.ts")
        frames = []
        with suppress(TruncatedError):  # whether it ended or broke off cannot be known
            for frame in source:
                frames.append(frame)
        server.shutdown()
    assert len(rising(frames)) == 60


def test_an_address_is_opened_once_whatever_is_behind_it(tmp_path, monkeypatch):
    opened, original = [], av.open

    def counted(*args, **options):
        opened.append(args)
        return original(*args, **options)

    monkeypatch.setattr(av, "open", counted)
    write_stream(tmp_path / "clip.ts", PICTURES)
    opened.clear()
    with serving(tmp_path, PICTURES) as address:
        for name in ("cam", "clip.ts"):
            with open_source(f"{address}/{name}") as source:
                assert len(list(itertools.islice(source, 10))) == 10
    assert len(opened) == 2


def test_a_fifo_whose_writer_comes_back_goes_on(tmp_path):
    clip, fifo = write_stream(tmp_path / "clip.ts", PICTURES), tmp_path / "fifo"
    os.mkfifo(fifo)

    def write():
        for _ in range(2):
            with fifo.open("wb") as out:
                out.write(clip.read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    source = open_source(fifo, reconnect=True)
    source._passing = Passing().as_time()
    frames = taken(source, 120)
    writer.join()
    assert rising(frames) == pytest.approx([k * 0.04 for k in range(120)])  # nothing is lost


def test_a_pipe_of_something_else_says_what_to_send(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"no video " * 1000))
    writer.start()
    with pytest.raises(SourceError, match="send MPEG-TS or Matroska"):
        open_source(fifo)
    writer.join()


@pytest.mark.parametrize("url", ["rtsp://127.0.0.1:9/x", "http://127.0.0.1:9/x"])
def test_an_address_where_nothing_is_says_so_at_once(url):
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source(url)


def test_devices_that_are_not_there_say_so(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(SourceError, match="webcam:77"):
        open_webcam("webcam:77", Sampling(), "linux")
    with pytest.raises(SourceError, match="no X11 display"):
        open_screen("screen:", Sampling(), "linux")
    with pytest.raises(SourceError, match=r"cannot read avfoundation devices|cannot be opened"):
        open_webcam("webcam:0", Sampling(), "darwin")
