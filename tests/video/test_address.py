"""Laws of addresses: no part of a password is shown, whether the address can be read or not."""

import pytest

from streammem.cli import main
from streammem.commands.publishing import camera_name
from streammem.errors import ConfigError
from streammem.integrations.mqtt.broker import Broker
from streammem.server.addresses import Allowed, check_url
from streammem.server.refused import Refused
from streammem.video import open_source
from streammem.video.address import public_name, public_url, without_addresses

UNCLEAR = [
    f"{scheme}://admin:12{sign}34@127.0.0.1:1/s"
    for scheme in ("rtsp", "rtsps", "rtsp+udp", "http", "https")
    for sign in "/#?"
]
UNCLEAR += [
    "rtsp://admin:pa/ss1234@127.0.0.1:1/s",
    "rtsp://admin:p@ss/1234@127.0.0.1:1/s",
    "rtsp://to/ken1234@127.0.0.1/s",
    "rtsp:/admin:x1234@127.0.0.1/s",
    "rtsp:admin:x1234@127.0.0.1/s",
    "rtsp//admin:x1234@127.0.0.1/s",
    " rtsp://admin:x1234@127.0.0.1/s",
    "rtsp://admin:x 1234@127.0.0.1/s",
    "admin:x1234@127.0.0.1/s",
    "growing:rtsp://admin:x1234@127.0.0.1/s",
    "rtps://admin:x1234@127.0.0.1/s",
]


@pytest.mark.parametrize("url", UNCLEAR)
@pytest.mark.parametrize("command", ["watch", "scenes"])
def test_an_address_that_cannot_be_read_is_not_repeated(command, url, capfd):
    assert main([command, "-v", url]) == 2
    said = "".join(capfd.readouterr())
    assert not any(part in said for part in ("12", "34", "127.0.0.1"))
    if not url.startswith(("rtps", " ")):
        assert "%2F %23 %3F" in said


@pytest.mark.parametrize("sign", "/#?")
def test_nor_is_that_of_a_broker_or_of_a_client_of_the_server(sign):
    with pytest.raises(ConfigError, match="%2F %23 %3F") as refused:
        Broker.of(f"mqtt://u:12{sign}34@host")
    assert "34" not in str(refused.value)
    with pytest.raises(Refused, match="%2F %23 %3F") as denied:
        check_url(f"rtsp://u12:12{sign}34@host", Allowed(("*",)))
    assert "34" not in denied.value.message and "u12" not in denied.value.message


@pytest.mark.parametrize(
    "path",
    [
        "user=admin_password=x1234_channel=1_stream=0.sdp?real_stream",
        "USER=admin&PASSWORD=x1234&channel=1",
        "user%3Dadmin_password%3Dx1234",
        "live;pwd=x1234",
        "0/admin:x1234/main",
    ],
)
def test_a_password_within_the_path_is_not_shown(path, capfd):
    url = f"rtsp://127.0.0.1:1/{path}"
    assert "1234" not in public_url(url) + camera_name(url)
    assert main(["scenes", "-v", url]) == 1
    assert "1234" not in "".join(capfd.readouterr())


def test_flags_that_are_not_understood_repeat_no_address(capfd):
    with pytest.raises(SystemExit):
        main(["scenes", "rtsp://a:x1234@h/s", "rtsp://a:y1234@h/s", "--memry=http://u:z1234@h"])
    assert "1234" not in "".join(capfd.readouterr())
    assert without_addresses("see http://a:b@h/s now") == "see http://h/s now"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://admin:1%2F2@camera/live", "rtsp://camera/live"),
        ("https://host.org/@maker/film.mp4", "https://host.org/@maker/film.mp4"),
        ("https://host.org/film.mp4?mail=a@b", "https://host.org/film.mp4"),
        ("http://host/2026-05-03T14:00.mp4", "http://host/2026-05-03T14:00.mp4"),
        ("http://host/pictures=1/monkey.mp4", "http://host/pictures=1/monkey.mp4"),
    ],
)
def test_what_is_clear_is_shown_as_it_is(url, name):
    assert public_url(url) == public_name(url) == name


def test_a_file_whose_name_looks_like_an_address_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note:me@home.mp4").write_bytes(b"text")
    with pytest.raises(OSError, match=r"note:me@home\.mp4"):
        open_source("note:me@home.mp4")
