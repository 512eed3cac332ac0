"""Laws of motion JPEG: read by content, whatever its parts state; what it is not is said once."""

import io
import itertools
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from streammem.errors import SourceError
from streammem.video import open_source
from streammem.video.live_source import LiveSource
from tests.video.test_live_source import Passing

LEVELS = [4 * k for k in range(60)]


def encoded(level, form="JPEG", **options):
    out = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), level, np.uint8)).save(out, form, **options)
    return out.getvalue()


def thumbnailed(level):
    """A JPEG whose header carries another one."""
    thumbnail = b"\xff\xe1" + (2 + len(encoded(255))).to_bytes(2) + encoded(255)
    picture = encoded(level)
    return picture[:2] + thumbnail + picture[2:]


def part(body, kind=b"image/jpeg", length=0, boundary=b"--frame"):
    headers = b"Content-Type: %b\r\n" % kind if kind else b""
    if length is not None:
        headers += b"Content-Length: %d\r\n" % (len(body) + length)
    return boundary + b"\r\n" + headers + b"\r\n" + body + b"\r\n"


@contextmanager
def camera(parts, kind="multipart/x-mixed-replace; boundary=frame"):
    """Serve parts over and over while a client reads; gives the address, and the connections."""
    asked, left = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            with suppress(OSError):
                for one in itertools.cycle(parts):
                    if left.is_set():
                        return
                    self.wfile.write(one)
                    left.wait(0.002)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/cam", asked
    finally:
        left.set()
        server.shutdown()
        server.server_close()
        thread.join()


CAMERAS = {
    "as it should be": [part(encoded(level)) for level in LEVELS],
    "image/jpg": [part(encoded(level), b"image/jpg") for level in LEVELS],
    "a size in the type": [part(encoded(level), b"image/jpeg;size=8000") for level in LEVELS],
    "no type": [part(encoded(level), None) for level in LEVELS],
    "neither type nor length": [part(encoded(level), None, None) for level in LEVELS],
    "a length too large": [part(encoded(level), length=7) for level in LEVELS],
    "a length too small": [part(encoded(level), length=-7) for level in LEVELS],
    "another boundary": [part(encoded(level), boundary=b"--other") for level in LEVELS],
    "no dashes": [part(encoded(level), boundary=b"frame") for level in LEVELS],
    "octets": [part(encoded(level), b"application/octet-stream") for level in LEVELS],
    "thumbnails": [part(thumbnailed(level), b"image/jpg") for level in LEVELS],
    "progressive": [part(encoded(level, progressive=True), b"image/jpg") for level in LEVELS],
    "no end markers": [part(encoded(level)[:-2], b"image/jpg") for level in LEVELS],
    "bare pictures": [encoded(level) for level in LEVELS],
}


@pytest.mark.parametrize("name", CAMERAS)
def test_pictures_are_read_whatever_their_parts_state(name):
    with camera(CAMERAS[name]) as (url, _), open_source(url) as source:
        assert isinstance(source, LiveSource)
        means = [frame.pixels.mean() for frame in itertools.islice(source, 40)]
    numbers = [min(range(len(LEVELS)), key=lambda k: abs(LEVELS[k] - mean)) for mean in means]
    assert max(abs(LEVELS[k] - mean) for k, mean in zip(numbers, means, strict=True)) < 2
    steps = {(b - a) % len(LEVELS) for a, b in itertools.pairwise(numbers)}
    # One connection's pictures may be lost, where FFmpeg's own way fails; then each comes, once.
    assert sum(step != 1 for step in steps) <= 1, numbers


def test_a_type_without_multipart_is_read_too():
    with camera(CAMERAS["image/jpg"], "application/octet-stream") as (url, _):
        assert len(list(itertools.islice(open_source(url), 10))) == 10


def test_a_picture_that_breaks_off_is_left_out():
    bodies = [encoded(level) for level in LEVELS]
    bodies[5] = bodies[5][:300]
    with camera([part(body, b"image/jpg") for body in bodies]) as (url, _):
        levels = [int(f.pixels.mean()) for f in itertools.islice(open_source(url), 20)]
    assert len(levels) == 20 and not any(abs(level - LEVELS[5]) < 2 for level in levels)


@pytest.mark.parametrize("kind", ["image/png", "text/html"])
def test_what_is_no_jpeg_is_told_once_as_what_it_is(kind):
    body = encoded(9, "PNG") if kind == "image/png" else b"<h1>no camera</h1>"
    parts = [part(body * 9, kind.encode()) for _ in range(200)]
    with camera(parts) as (url, asked):
        source = None
        with pytest.raises(SourceError, match=kind):
            source = open_source(url, reconnect=True)
            source._passing = Passing().as_time()
            next(iter(source))
    assert len(asked) <= 3
