"""Where a client may send the server: only to checked addresses, and never on from there."""

import http.server
import ipaddress
import socketserver
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from streammem.errors import ConfigError, SourceError
from streammem.server.addresses import Allowed, check_url, fetch, is_loopback, is_public, live_url
from streammem.server.refused import Refused
from streammem.video import open_with

PUBLIC = "93.184.216.34"
ANY = Allowed.of(["*"])


def to(*addresses):
    return lambda host, port: list(addresses)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1"),
        *("fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("2001:0:7f00:1::", "::ffff:169.254.169.254"),
    ],
)
def test_an_address_that_is_not_of_the_open_internet_is_refused(address):
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(Refused) as refused:
        check_url("http://example.com/a.mp4", ANY, to(address))
    assert refused.value.status == 403


def test_one_bad_address_among_good_ones_is_enough():
    with pytest.raises(Refused):
        check_url("http://example.com/a.mp4", ANY, to(PUBLIC, "127.0.0.1"))


@pytest.mark.parametrize(
    ("patterns", "url", "is_allowed"),
    [
        (["*"], "http://example.com/a", True),
        (["example.com"], "https://EXAMPLE.com./a", True),
        (["Example.COM"], "https://example.com/a", True),
        (["example.com"], "http://example.com.evil.org/a", False),
        (["example.com"], "http://example.com@evil.org/a", False),
        (["*.example.com"], "http://cam.example.com/a", True),
        (["*.example.com"], "http://evilexample.com/a", False),
        ([PUBLIC], f"http://{PUBLIC}/a", True),
        ([], f"http://{PUBLIC}/a", False),
        (["*"], "rtsp://example.com/a", False),
        (["example.com"], "rtsp://example.com/a", True),
    ],
)
def test_hosts_are_allowed_by_name_and_a_live_one_never_by_a_star(patterns, url, is_allowed):
    allowed = Allowed.of(patterns)
    if is_allowed:
        assert check_url(url, allowed, to(PUBLIC)).address == PUBLIC
    else:
        with pytest.raises(Refused):
            check_url(url, allowed, to(PUBLIC))


def test_a_private_network_is_reached_only_where_the_operator_lists_it():
    allowed = Allowed.of(["192.168.1.0/24", "camera"])
    assert check_url("rtsp://192.168.1.9/1", allowed).address == "192.168.1.9"
    assert check_url("rtsp://camera/1", allowed, to("192.168.1.9")).port == 554
    with pytest.raises(Refused):
        check_url("rtsp://192.168.2.9/1", allowed)
    with pytest.raises(Refused):
        check_url("rtsp://camera/1", allowed, to("192.168.2.9"))
    with pytest.raises(Refused):
        check_url("rtsp://other/1", allowed, to("192.168.1.9"))


@pytest.mark.parametrize("pattern", ["", "http://a", "a/b", "a b", "10.0.0.0/99"])
def test_an_invalid_pattern_is_an_error_at_the_start(pattern):
    with pytest.raises(ConfigError, match="allow-source"):
        Allowed.of([pattern])


def test_a_live_source_is_opened_by_its_checked_address():
    allowed = Allowed.of(["camera"])
    target = check_url("rtsp://user:secret@camera:8554/1?a=b", Allowed.of(["camera"]), to(PUBLIC))
    assert live_url(target) == f"rtsp://user:secret@{PUBLIC}:8554/1?a=b"
    target = check_url("rtsp://camera/1", allowed, to("2606:2800::1"))
    assert live_url(target) == "rtsp://[2606:2800::1]:554/1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("localhost.evil.org", False), ("", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_computer_reaches(host, expected):
    assert is_loopback(host) is expected


@contextmanager
def site(reply):
    """A web site on loopback that gives the same reply to every request."""
    asked = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["host"]))
            reply(self)

        def log_message(self, *_): ...

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


def answer(status, body=b"", **headers):
    def reply(site):
        site.send_response(status)
        for name, value in headers.items():
            site.send_header(name, value)
        site.end_headers()
        site.wfile.write(body)

    return reply


def target_on(port):
    # The name resolves elsewhere: what is connected to is the address that was checked.
    allowed = Allowed.of(["films.example", "127.0.0.1"])
    return check_url(f"http://films.example:{port}/a.mp4?b=c", allowed, to("127.0.0.1"))


def test_the_connection_goes_to_the_checked_address_under_the_hosts_name(tmp_path):
    with site(answer(200, b"film")) as (port, asked):
        fetch(target_on(port), tmp_path / "a", 100)
    assert (tmp_path / "a").read_bytes() == b"film"
    assert asked == [("/a.mp4?b=c", f"films.example:{port}")]


def test_a_certificate_must_be_of_the_name_that_the_url_has(tmp_path):
    asked = []

    class Context:
        def wrap_socket(self, sock, server_hostname):
            asked.append(server_hostname)
            raise OSError("no TLS here")

    with site(answer(200)) as (port, _), pytest.raises(SourceError, match="cannot be fetched"):
        target = target_on(port)
        secure = target._replace(parts=target.parts._replace(scheme="https"))
        fetch(secure, tmp_path / "a", 100, context=Context())
    assert asked == ["films.example"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_not_followed(tmp_path, status):
    with site(answer(200, b"secret")) as (inner, asked):
        away = answer(status, location=f"http://127.0.0.1:{inner}/secret")
        with site(away) as (port, _), pytest.raises(SourceError, match="redirects"):
            fetch(target_on(port), tmp_path / "a", 100)
    assert asked == []


@pytest.mark.parametrize("headers", [{}, {"content-length": "1000"}])
def test_a_download_that_is_too_large_is_given_up(tmp_path, headers):
    with (
        site(answer(200, bytes(1000), **headers)) as (port, _),
        pytest.raises(SourceError, match="larger than 100"),
    ):
        fetch(target_on(port), tmp_path / "a", 100)
    most = 0 if headers else 1000  # where the size is told nothing comes
    assert (tmp_path / "a").stat().st_size <= most


def test_a_download_that_breaks_off_is_no_whole_film(tmp_path):
    with site(answer(200, bytes(80), **{"content-length": "80"})) as (port, _):
        fetch(target_on(port), tmp_path / "whole", 100)
    assert (tmp_path / "whole").stat().st_size == 80
    with (
        site(answer(200, bytes(50), **{"content-length": "80"})) as (port, _),
        pytest.raises(SourceError, match="broke off 30 bytes before its end"),
    ):
        fetch(target_on(port), tmp_path / "a", 100)


@pytest.mark.parametrize("why", ["the session was closed", "it takes too long"])
def test_a_download_is_given_up_when_its_session_is_closed(tmp_path, monkeypatch, why):
    asked = []
    if why == "it takes too long":
        monkeypatch.setattr("streammem.server.addresses.DOWNLOAD_S", -1.0)

    def stop():
        asked.append(True)
        return why != "it takes too long"

    with (
        site(answer(200, bytes(10**6))) as (port, _),
        pytest.raises(SourceError, match="given up"),
    ):
        fetch(target_on(port), tmp_path / "a", 10**7, stop)
    assert len(asked) == 1


def test_an_unreachable_broker_is_reported_in_one_line(tmp_path):
    with pytest.raises(SourceError, match="cannot be fetched") as error:
        fetch(target_on(1), tmp_path / "a", 100)
    assert "127.0.0.1" not in str(error.value)


@pytest.mark.anyio
async def test_what_is_fetched_takes_no_more_of_the_quota_than_its_size(
    serving, video, monkeypatch
):
    used, content = [], Path(video).read_bytes()
    async with serving(allowed=Allowed.of(["127.0.0.1"])) as client:

        def opened(source, options):
            used.append(client.sessions.uploads.used_bytes)
            return open_with(source, options)

        monkeypatch.setattr("streammem.server.sessions.open_with", opened)
        with site(answer(200, content)) as (port, _):
            wanted = {"source": f"http://127.0.0.1:{port}/a.mp4"}
            assert (await client.post("/v1/sessions", json=wanted)).status_code == 201
    assert used == [len(content)]


@pytest.mark.anyio
async def test_what_is_fetched_must_be_a_video_and_a_playlist_is_none(serving, video):
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n"
    async with serving(allowed=Allowed.of(["127.0.0.1"])) as client:
        for body, status in ((playlist, 415), (Path(video).read_bytes(), 201)):
            with site(answer(200, body)) as (port, _):
                wanted = {"source": f"http://127.0.0.1:{port}/a.mp4"}
                opened = await client.post("/v1/sessions", json=wanted)
                assert opened.status_code == status, opened.text
        assert len(client.sessions.hosts()) == 1  # nothing of the refused one is left
        await client.get(f"{opened.json()['url']}/events")
        assert client.sessions.uploads.used_bytes == 0  # nor of the other, once it was watched
