"""Laws of opening: no secrets in names, no way from a playlist to elsewhere, no endless wait."""

import contextlib
import socket
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.video import container, open_source
from streammem.video.address import public_url
from tests.video.clips import indexed_first, make, open_below
from tests.video.servers import serving, write_stream

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://me:pw@host.org/a/b.mp4?token=xyz#part", "https://host.org/a/b.mp4"),
        ("http://host:8080/b.mp4", "http://host:8080/b.mp4"),
        ("http://me@[::1]:81/b.mp4", "http://[::1]:81/b.mp4"),
    ],
)
def test_names_hold_no_credentials(url, name):
    assert public_url(url) == name


@pytest.mark.parametrize("url", ["http://", "https:me:pw@", "http://me:pw@/x", "http://h:me-pw/x"])
def test_a_url_without_host_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError) as caught:
        open_source(url)
    assert "pw" not in str(caught.value)


@pytest.fixture
def silent_port():
    """A port on this machine that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server.getsockname()[1], server


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which a server on this machine shows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

        def do_GET(self):
            with contextlib.suppress(ConnectionError):
                super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path, f"http://me:secret@127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_remote_file_gives_what_the_local_one_gives(served):
    folder, address = served
    path = indexed_first(make("h264.mp4", folder), folder / "fast.mp4")
    for options in ({}, {"fps": 3, "start": 1.2}):
        local = list(open_source(path, **options))
        source = open_source(f"{address}/fast.mp4?token=secret", **options)
        assert [f.time for f in source] == [f.time for f in local]
        assert source.end == pytest.approx(2.4) and "secret" not in source.name


def test_a_remote_failure_is_named_without_credentials(served):
    _, address = served
    with pytest.raises(SourceError, match="404 not found") as caught:
        open_source(f"{address}/none.mp4?token=secret")
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__


def test_a_remote_file_that_breaks_off_is_truncated(served):
    folder, address = served
    content = indexed_first(make("h264.mp4", folder), folder / "fast.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(TruncatedError, match=r"half\.mp4"):
        list(open_source(f"{address}/half.mp4"))


def test_a_remote_playlist_cannot_read_local_files(served):
    folder, address = served
    target = make("h264.ts", folder)
    (folder / "good.m3u8").write_text(PLAYLIST.format("h264.ts"))
    (folder / "evil.m3u8").write_text(PLAYLIST.format(f"file://{target}"))
    assert len(list(open_source(f"{address}/good.m3u8"))) == 60
    with pytest.raises(SourceError):
        open_source(f"{address}/evil.m3u8")


def test_a_local_playlist_cannot_open_the_network(tmp_path, silent_port):
    port, server = silent_port
    (tmp_path / "evil.m3u8").write_text(PLAYLIST.format(f"http://127.0.0.1:{port}/a.ts"))
    with pytest.raises(SourceError):
        open_source(tmp_path / "evil.m3u8")
    with pytest.raises(TimeoutError):
        server.accept()


def test_a_server_that_never_answers_times_out(silent_port, monkeypatch):
    port, asked = silent_port
    patience = container.OPEN_TIMEOUT_S
    monkeypatch.setattr(container, "OPEN_TIMEOUT_S", 0.2)
    started = time.monotonic()
    with pytest.raises(SourceError, match="timed out"):
        open_source(f"http://127.0.0.1:{port}/a.mp4")
    assert time.monotonic() - started < patience
    asked.accept()
    with pytest.raises(TimeoutError):  # and is not asked again
        asked.accept()


def test_a_name_that_looks_like_a_protocol_is_only_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("h264.ts", tmp_path).rename(tmp_path / "subfile:a|b.ts")
    assert len(list(open_source("subfile:a|b.ts"))) == 60


# -- servers that send files from their beginning only --


def test_an_index_at_the_end_is_reached_whatever_the_server_can(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (50, 240, 320, 3), np.uint8)
    path = write_stream(tmp_path / "clip.mp4", list(noise), "mp4")
    assert path.stat().st_size > 1 << 20  # more than FFmpeg buffers
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    with open_source(path) as file:
        true = [(frame.time, frame.pixels.sum()) for frame in file]
    with serving(tmp_path) as address:
        with open_source(f"{address}/clip.mp4") as source:
            assert source.name == f"{address}/clip.mp4" and list(copies.iterdir())
            assert [(frame.time, frame.pixels.sum()) for frame in source] == true
        with open_source(f"{address}/clip.mp4", start=1.0) as source:
            assert next(iter(source)).time >= 1.0
        assert not list(copies.iterdir())
        monkeypatch.setattr("streammem.video.cameras.FETCHED_BYTES", 1000)
        with pytest.raises(SourceError, match="sends no parts of files, and it is larger"):
            open_source(f"{address}/clip.mp4")
        path.write_bytes(path.read_bytes()[:-500])
        monkeypatch.setattr("streammem.video.cameras.FETCHED_BYTES", 1 << 30)
        with pytest.raises(SourceError, match="check that it is complete"):
            open_source(f"{address}/clip.mp4")
    assert not list(copies.iterdir()) and not open_below(copies)
