"""Small files over HTTP: bounded, and never from a private network that the user did not name."""

import http.server
import threading
from contextlib import contextmanager
from functools import partial

import pytest

from streammem.errors import SourceError
from streammem.video import fetching
from streammem.video.fetching import fetch_small, host_of

HOME = "127.0.0.1"


@contextmanager
def site(**replies):
    """Serve replies (status, headers, body) by path on loopback; gives the address and requests."""
    asked = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            status, headers, body = replies[self.path.strip("/").partition("?")[0]]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer((HOME, 0), Site)
    serve = partial(server.serve_forever, poll_interval=0.01)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://{HOME}:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def moved(place, status=302):
    return status, {"Location": place}, b""


def test_a_file_comes_with_the_place_where_it_lay():
    with site(a=moved("/b/c?d=1"), **{"b/c": (200, {}, b"content")}) as (address, asked):
        found = fetch_small(f"{address.replace('//', '//ann:p%40ss@')}/a", "f", 7, HOME)
    assert found == (f"{address}/b/c?d=1".replace("//", "//ann:p%40ss@", 1), b"content")
    assert asked == [("/a", "Basic YW5uOnBAc3M="), ("/b/c?d=1", "Basic YW5uOnBAc3M=")]


def test_a_private_network_is_left_to_the_host_that_the_user_named():
    """An address, a name of one, and a redirect to either; a password never goes along."""
    with site(a=(200, {}, b"secret"), b=moved("http://evil.example/a")) as (address, asked):
        port = address.rpartition(":")[2]
        assert fetch_small(f"{address}/a", "f", 9, HOME).content == b"secret"
        asked.clear()
        evil = f"http://evil.example:{port}/a"
        for url, found in (
            (f"{address}/a", []),
            (evil, ["127.0.0.1"]),
            (evil, ["93.184.216.34", "::ffff:10.0.0.1"]),
            (evil, ["169.254.169.254"]),
        ):
            with pytest.raises(SourceError, match="private network"):
                fetch_small(url, "f", 9, "stream.example", resolve=lambda *_, found=found: found)
        assert not asked
        with pytest.raises(SourceError, match="private network"):
            fetch_small(f"{address}/b", "f", 9, HOME, resolve=lambda *_: ["10.0.0.1"])
        assert asked == [("/b", None)]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("{}/missing", "answered 404"),
        ("{}/large", "is larger than 9 bytes"),
        ("{}/short", "cannot be fetched"),
        ("{}/circle", "more than 5 redirects"),
        ("{}/file", "not http or https"),
        ("file:///etc/passwd", "address that cannot be read"),
        ("ftp://127.0.0.1/a", "not http or https"),
        ("data:text/vtt,WEBVTT", "address that cannot be read"),
        ("http://127.0.0.1:1/a", "ConnectionRefusedError"),
    ],
)
def test_what_cannot_be_had_is_one_line_without_its_address(url, told):
    replies = {
        "missing": (404, {}, b""),
        "large": (200, {}, bytes(10)),
        "short": (200, {"Content-Length": "9"}, b"WEB"),
        "circle": moved("/circle"),
        "file": moved("file://127.0.0.1/etc/passwd"),
    }
    with site(**replies) as (address, _), pytest.raises(SourceError, match=told) as refused:
        fetch_small(url.format(address) + "?key=secret", "cam: its subtitles", 9, HOME)
    text = str(refused.value)
    assert text.startswith("cam: its subtitles ")
    assert not any(part in text for part in ("secret", "127.0.0.1", "\n"))


def test_a_slow_server_is_given_up(monkeypatch):
    monkeypatch.setattr(fetching, "WHOLE_S", -1.0)
    with site(a=(200, {}, b"WEBVTT")) as (address, _):
        with pytest.raises(SourceError, match="too long"):
            fetch_small(f"{address}/a", "f", 9, HOME)
        monkeypatch.setattr(fetching, "WHOLE_S", 9.0)
        with pytest.raises(SourceError, match="too long"):
            fetch_small(f"{address}/a", "f", 9, HOME, stopping=lambda: True)


def test_the_host_is_what_the_url_names():
    assert host_of("HTTPS://ann:secret@Host.Example.:8443/a?b#c") == "host.example"
