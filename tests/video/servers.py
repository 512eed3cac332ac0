"""HTTP cameras on loopback: motion JPEG, and a folder whose HLS playlist goes on."""

import functools
import io
import threading
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
from PIL import Image

from streammem.errors import StreammemError

PART = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"


class Handler(SimpleHTTPRequestHandler):
    """Serves ``/cam`` as motion JPEG of its pictures, and files."""

    def __init__(self, *arguments, pictures, **options):
        self._pictures = pictures
        super().__init__(*arguments, **options)

    def do_GET(self):
        if not self.path.startswith("/cam"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with suppress(OSError):  # the client left
            for pixels in self._pictures:
                jpeg = io.BytesIO()
                Image.fromarray(pixels).save(jpeg, "JPEG")
                self.wfile.write(PART % (len(jpeg.getvalue()), jpeg.getvalue()))

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(folder, pictures=()):
    """Serve a folder and pictures; gives the address."""
    handler = partial(Handler, pictures=pictures, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_stream(
    path,
    pictures,
    form="mpegts",
    fps=25,
    codec="libx264",
    gop=25,
    stamps=None,
    b_frames=0,
    **options,
):
    """Write a stream that a camera could send; ``stamps`` are in frames."""
    with av.open(str(path), "w", format=form, options=options) as container:
        coding = {"g": str(gop), "bf": str(b_frames)}
        stream = container.add_stream(codec, rate=fps, options=coding)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = (stamps or range(len(pictures)))[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def retried(test):
    """Run a test whose reads give up after a fraction of a second up to three times.

    On a busy machine such a read may give up within a packet, which costs the connection: see
    ``cameras.POLL_S``, which is long for that reason. What a test states must hold once.
    """

    @functools.wraps(test)
    def attempts(*args, **kwargs):
        for _ in range(2):
            with suppress(AssertionError, StreammemError):
                return test(*args, **kwargs)
        return test(*args, **kwargs)

    return attempts
