"""The URL of a broker, and the names of cameras and alerts in topics."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.commands.publishing import camera_name
from streammem.errors import ConfigError
from streammem.integrations.mqtt.broker import PASSWORD, Broker, Camera, slug_of

SECRET = "p@ss/word:1"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", Broker("broker", 1883)),
        ("mqtts://broker", Broker("broker", 8883, tls=True)),
        ("mqtt://broker:99/home/cams/", Broker("broker", 99, prefix="home/cams")),
        ("mqtt://[::1]:99", Broker("::1", 99)),
        (
            "mqtt://me%40home:p%40ss%2Fword%3A1@broker",
            Broker("broker", 1883, user="me@home", password=SECRET),
        ),
        ("mqtt://broker?discovery=ha", Broker("broker", 1883, discovery="ha")),
        ("mqtt://broker?discovery=off", Broker("broker", 1883, discovery=None)),
    ],
)
def test_a_url_names_host_and_login(url, expected):
    assert Broker.of(url) == expected


def test_a_password_may_stand_in_the_environment_instead(monkeypatch):
    monkeypatch.setenv(PASSWORD, SECRET)
    assert Broker.of("mqtt://me@broker").password == SECRET
    assert Broker.of("mqtt://me:other@broker").password == "other"


@pytest.mark.parametrize(
    "url",
    [
        "http://broker",
        "broker",
        "mqtt://",
        "mqtt://user:secret@broker:99999",
        "mqtt://user:secret@broker/a/+/b",
        "mqtt://user:secret@broker/%23",
        "mqtt://user:secret@broker/$SYS",
        "mqtt://user:secret@broker?qos=1",
        "mqtt://user:secret@broker#x",
        "mqtt://user:secret@[broker",
        "mqtt://user:secret@broker/" + 201 * "x",
    ],
)
def test_what_is_no_brokers_url_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError, match="--mqtt") as refused:
        Broker.of(url)
    assert "secret" not in str(refused.value) and refused.value.__cause__ is None


def test_a_broker_is_shown_without_who_asks_it():
    broker = Broker.of("mqtts://me:topsecret@broker:99/home")
    assert str(broker) == "mqtts://broker:99"
    assert "topsecret" not in repr(broker)


@given(st.text(max_size=300))
def test_a_slug_is_a_part_of_a_topic_and_of_discovery(text):
    slug = slug_of(text)
    assert slug and len(slug) < 50
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug == slug_of(text)


def test_texts_that_differ_have_slugs_that_differ():
    texts = ["a dog", "a dog!", "a-dog", "собака", "кошка", "", "!", 100 * "x", 101 * "x"]
    assert slug_of("a dog") == "a-dog"
    assert len({slug_of(text) for text in texts}) == len(texts) - 1  # "a-dog" reads as "a dog"
    camera = Camera("Hall", "hall", "home", ("a dog",))
    assert camera.alert_topic("a dog") == "home/hall/alert/a-dog"


@pytest.mark.parametrize(
    ("source", "memory", "name"),
    [
        ("rtsp://me:secret@10.0.0.5:554/stream?token=x", None, "10 0 0 5 554 stream"),
        ("/home/me/videos/hall door.mp4", None, "hall door"),
        ("webcam:0", None, "webcam 0"),
        ("-", None, "camera"),
        ("webcam:0", Path("memories/hall"), "hall"),
    ],
)
def test_a_camera_is_named_without_folders_and_passwords(source, memory, name):
    assert camera_name(source, memory) == name
