"""RTMP and MPEG-TS over UDP, from senders on loopback."""

import itertools
import socket
import sys
import threading
import time

import numpy as np
import pytest

from streammem.errors import ConfigError, SourceError
from streammem.server.addresses import Allowed, check_url
from streammem.server.refused import Refused
from streammem.video import cameras, live_source, open_source
from streammem.video.container import OPEN_TIMEOUT_S
from tests.audio.clapper import clapper
from tests.audio.clapper import clicks as clicks_in
from tests.tiny import moving_square
from tests.video.rtmp_server import RtmpCamera
from tests.video.servers import write_stream

NOTHING = b"\x47\x1f\xff\x10" + bytes(184)  # a null packet of MPEG-TS
PICTURES = [moving_square("red" if k < 30 else "blue", k, 64, 48) for k in range(60)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(live_source, "BACK_OFF_S", (0.01, 0.02))
    yield
    assert not [t for t in threading.enumerate() if t.name in ("rtmp-camera", "udp-sender")]


@pytest.fixture(scope="module")
def flv(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("rtmp") / "cam.flv", PICTURES, form="flv")


# -- RTMP --


@pytest.mark.parametrize("first_ms", [0, 2**24 - 1000, 2**32 - 1000])
def test_every_picture_of_an_rtmp_stream_comes_over_the_wraps_of_its_stamps(flv, first_ms):
    with RtmpCamera(flv, first_ms=first_ms) as camera, open_source(camera.url) as source:
        frames = list(itertools.islice(source, len(PICTURES)))
        source.stop()
    assert [frame.time for frame in frames] == pytest.approx([k / 25 for k in range(60)], abs=0.002)
    reds = [frame.pixels[..., 0].mean() > frame.pixels[..., 2].mean() for frame in frames]
    assert reds == [True] * 30 + [False] * 30


def test_an_rtmp_stream_that_breaks_off_comes_back_in_the_same_stream(flv):
    with RtmpCamera(flv) as camera, open_source(camera.url, reconnect=True) as source:
        frames = list(itertools.islice(source, 150))
        source.stop()
    times = [frame.time for frame in frames]
    assert times == sorted(times) and camera.num_clients == source.num_connections == 3
    assert "connection lost" in source.notices[0] and "is back" in source.notices[1]


def test_an_rtmp_stream_is_heard_on_the_clock_of_its_pictures(tmp_path):
    path = clapper(tmp_path / "clap.flv", rate=44_100, form="flv")
    heard, flashes = [], []
    with RtmpCamera(path) as camera, open_source(camera.url) as source:
        source.on_sound = lambda time, samples: heard.append((time, samples))
        with pytest.raises(SourceError, match="connection lost"):
            flashes.extend(f.time for f in source if f.pixels.mean() > 200)
    clicks = clicks_in(heard)
    assert len(flashes) == 6 and len(clicks) >= 5
    assert max(min(abs(click - at) for at in flashes) for click in clicks) < 0.05


@pytest.mark.parametrize("scheme", ["rtmp", "rtmps"])
def test_an_rtmp_server_that_is_not_there_is_told_without_the_password(scheme):
    with pytest.raises(SourceError, match="cannot be opened") as refused:
        open_source(f"{scheme}://anna:x1234@127.0.0.1:1/live/cam?key=5678")
    assert f"{scheme}://127.0.0.1:1/live/cam" in str(refused.value)
    assert not {"1234", "5678", "anna"} & set(str(refused.value).replace(":", " ").split())


# -- UDP --


class Sender:
    """Sends an MPEG-TS file to a port again and again, as ``ffmpeg -f mpegts udp://`` does.

    Each time it waits until its receiver is there, and pauses once it has sent all.
    """

    def __init__(self, path, address=("127.0.0.1", 0), *, pause_s=0.0):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(address)
            self.port = free.getsockname()[1]
        self.num_sent, self._pause_s, self._closed = 0, pause_s, threading.Event()
        content = path.read_bytes()
        self._datagrams = [content[at : at + 7 * 188] for at in range(0, len(content), 7 * 188)]
        self._thread = threading.Thread(target=self._send, name="udp-sender", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._closed.set()
        self._thread.join(30)

    def _send(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("127.0.0.1", self.port))
            while not self._closed.is_set():
                try:
                    if not is_heard("127.0.0.1", self.port):
                        raise ConnectionRefusedError
                    for datagram in self._datagrams:
                        out.send(datagram)
                        time.sleep(2e-4)
                    self.num_sent += 1
                    self._closed.wait(self._pause_s)
                except ConnectionRefusedError:
                    self._closed.wait(0.01)


@pytest.fixture(scope="module")
def transport(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("udp") / "cam.ts", PICTURES)


def test_mpegts_over_udp_is_received_and_goes_on_after_a_silence(transport, monkeypatch):
    monkeypatch.setattr(cameras, "STALL_S", 0.3)
    with (
        Sender(transport, pause_s=1.0) as sender,
        open_source(f"udp://127.0.0.1:{sender.port}", reconnect=True) as source,
    ):
        frames = list(itertools.islice(source, 110))
        source.stop()
    times = [frame.time for frame in frames]
    assert source.num_connections == 2 and times == sorted(times)
    first = [frame for frame in frames if frame.time < 2.4]
    assert len(first) >= 55
    steps = [b.time - a.time for a, b in itertools.pairwise(first)]
    assert steps == pytest.approx([0.04] * len(steps), abs=1e-3)
    assert any("silent" in notice for notice in source.notices)


def test_mpegts_over_udp_is_heard(tmp_path):
    path = clapper(tmp_path / "clap.ts")
    heard, flashes = [], []
    with Sender(path) as sender, open_source(f"udp://127.0.0.1:{sender.port}") as source:
        source.on_sound = lambda time, samples: heard.append((time, samples))
        for frame in itertools.islice(source, 44):
            flashes += [frame.time] * bool(frame.pixels.mean() > 200)
        source.stop()
    clicks = clicks_in(heard)
    assert len(flashes) >= 4 and len(clicks) >= 4
    near = [min(abs(click - at) for at in flashes) for click in clicks if click < flashes[-1]]
    assert np.max(near) < 0.05


def test_where_nothing_is_sent_and_what_is_no_address_here_is_told(monkeypatch):
    monkeypatch.setattr(cameras, "OPEN_TIMEOUT_S", 0.1)
    assert OPEN_TIMEOUT_S > 1
    with pytest.raises(SourceError, match="nothing comes there"):
        open_source("udp://127.0.0.1:59999")
    with pytest.raises(SourceError, match="give an address of this computer"):
        open_source("udp://192.0.2.7:59999")
    with pytest.raises(ConfigError, match="names no port; write udp"):
        open_source("udp://127.0.0.1")
    for spec in ("udp://:5000", "udp://@:5000"):
        with pytest.raises(ConfigError, match="names no address; write udp"):
            open_source(spec)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address on Linux alone")
def test_it_listens_at_the_address_that_is_named_and_at_no_other(monkeypatch):
    monkeypatch.setattr(cameras, "OPEN_TIMEOUT_S", 1.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def listen():
        with pytest.raises(SourceError):
            open_source(f"udp://127.0.0.1:{port}")

    thread = threading.Thread(target=listen)
    thread.start()
    while thread.is_alive() and not is_heard("127.0.0.1", port):
        time.sleep(0.01)
    assert thread.is_alive() and not is_heard("127.0.0.2", port)
    thread.join(30)


def is_heard(host, port):
    """Return whether something listens at a UDP port: one where nothing does answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((host, port))
        try:
            for _ in range(2):
                out.send(NOTHING)
                time.sleep(0.01)
        except ConnectionRefusedError:
            return False
    return True


@pytest.mark.parametrize("url", ["udp://0.0.0.0:5000", "rtmp://127.0.0.1/live/cam"])
def test_clients_of_a_server_cannot_name_them(url):
    with pytest.raises(Refused, match="a source must be an upload or a URL of http"):
        check_url(url, Allowed.of(["*", "127.0.0.1", "0.0.0.0/0"]))
