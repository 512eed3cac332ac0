"""A camera that is not ours: GStreamer's RTSP server, where it is installed."""

import socket
import subprocess
from pathlib import Path

import pytest

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.types import Caption, Stats
from streammem.video import SourceOptions, live_source, open_with
from tests.sessions import SHORT
from tests.tiny import tiny_model

pytestmark = pytest.mark.heavy
PYTHON = Path("/usr/bin/python3")  # Debian's, which sees Debian's GStreamer
SERVER = Path(__file__).parents[2] / "benchmarks" / "gstreamer_server.py"


class Server:
    """GStreamer's server at a port of its own, which can be killed and started again."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self.start()

    def start(self):
        command = [str(PYTHON), str(SERVER), self.port]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        if self._process.stdout.readline() != "ready\n":
            pytest.skip(f"GStreamer's server does not run: {self.kill().strip()[-200:]}")

    def kill(self):
        self._process.kill()
        return self._process.communicate()[1]


@pytest.fixture
def server():
    if not PYTHON.exists():
        pytest.skip(f"there is no {PYTHON} that GStreamer's bindings could be installed for")
    server = Server()
    yield server
    server.kill()


@pytest.mark.parametrize("scheme", ["rtsp", "rtsp+udp"])
def test_captions_go_on_after_the_server_was_killed_and_started_again(server, scheme, monkeypatch):
    monkeypatch.setattr(live_source, "BACK_OFF_S", (0.1, 0.5))
    session, events = Session(tiny_model(), SessionConfig(caption=SHORT)), []

    def num_captions():
        return sum(isinstance(event, Caption) for event in events)

    enough = []
    opening = SourceOptions(fps=4.0, reconnect=True)
    source = open_with(f"{scheme}://127.0.0.1:{server.port}/live", opening)
    assert isinstance(source, live_source.LiveSource)
    callbacks = WatchCallbacks(stop=lambda: bool(enough))
    for event in watch(session, source, WatchOptions(stats_s=1e9), callbacks=callbacks):
        events.append(event)
        if num_captions() == 3 and source.num_connections == 1:
            server.kill()
            server.start()
            before = num_captions()
        elif source.num_connections == 2 and num_captions() >= before + 3:
            enough.append(True)
    last = events[-1]
    assert isinstance(last, Stats) and last.connections == 2
    assert last.captured == last.frames + last.waiting + last.dropped_full + last.dropped_at_stop
    assert last.dropped_full == 0 and last.frames == session.num_frames
    assert last.captions + last.captions_skipped == last.segments
    starts = [event.start for event in events if isinstance(event, Caption)]
    assert starts == sorted(starts) and len(starts) == last.captions
