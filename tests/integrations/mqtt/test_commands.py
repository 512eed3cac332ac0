"""`--mqtt` of `watch` and `serve`: events are published, and wrong flags are refused first."""

import json

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs streammem[mqtt]")

from streammem.commands.publishing import outlets
from streammem.integrations.mqtt.broker import Broker
from tests.command_line import QUICK
from tests.integrations.mqtt.brokers import RunningBroker, default_kind, listener


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    running = RunningBroker(default_kind(), tmp_path_factory.mktemp("broker"))
    running.start()
    yield running
    running.kill()


def test_watch_publishes_what_it_shows_and_goes_offline(run, broker, video, tmp_path):
    url = f"mqtt://me:topsecret@127.0.0.1:{broker.port}/home?discovery=off"
    shown = tmp_path / "shown.jsonl"
    with listener(broker.port, "home/#") as came:
        more = ("--format", "jsonl", "-o", shown, "--camera", "Front door")
        code, out, err = run("watch", video, "--mqtt", url, *more, *QUICK)
        found = [came()]
        while found[-1][1] != "offline":
            found.append(came())
    captions = [json.loads(text) for topic, text, *_ in found if topic.endswith("/caption")]
    assert code == 0 and "topsecret" not in out + err + shown.read_text()
    assert {topic.rpartition("/")[0] for topic, *_ in found} == {"home/front-door"}
    assert [found[0][1], found[-1][1]] == ["online", "offline"]
    kept = [json.loads(line) for line in shown.read_text().splitlines()]
    assert captions == [event for event in kept if event["type"] == "caption"]
    assert len(captions) == 3
    kinds = [topic.rpartition("/")[2] for topic, *_ in found]
    assert (kinds.count("segment"), kinds.count("stats")) == (3, 1)


def test_a_broker_that_is_not_there_does_not_end_the_watching(run, video, monkeypatch):
    monkeypatch.setattr("streammem.integrations.mqtt.publisher.CLOSE_S", 0.1)
    code, out, err = run("watch", video, "--mqtt", "mqtt://me:topsecret@127.0.0.1:1", *QUICK)
    assert code == 0 and out.count("\n") == 3
    assert "cannot be reached" in err and "did not reach the MQTT broker" in err
    assert "topsecret" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "nowhere.mp4", "--mqtt", "http://me:topsecret@broker"),
        ("watch", "nowhere.mp4", "--camera", "hall"),
        ("watch", "nowhere.mp4", "--camera", " ", "--mqtt", "mqtt://broker"),
        ("serve", "--mqtt", "mqtt://broker"),
        ("serve", "x.mp4", "--mqtt", "broker"),
        ("serve", "x.mp4", "--alert", " "),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_opened(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "topsecret" not in err


def test_sources_of_one_name_get_different_topics():
    opened = []
    opener = outlets(Broker("127.0.0.1", 1, prefix="home"), None, ("a dog",))
    try:
        for source in ("rtsp://a/1", "rtsp://me:secret@a/1", "rtsp://a/2", "rtsp://a/1"):
            opened.append(opener(source))
        cameras = [publisher._camera for publisher in opened]
    finally:
        for publisher in opened:
            publisher.close()
    assert [camera.topic("caption") for camera in cameras] == [
        f"home/{slug}/caption" for slug in ("a-1", "a-1-2", "a-2", "a-1-3")
    ]
    assert cameras[0].alerts == ("a dog",)
