"""Events on a real broker: that is there, that is killed, that refuses, that was never there."""

import itertools
import json
import socket
import time

import pytest

paho = pytest.importorskip("paho.mqtt.client", reason="needs streammem[mqtt]")

from streammem.integrations.mqtt import link as link_module  # noqa: E402
from streammem.integrations.mqtt.broker import Broker, Camera  # noqa: E402
from streammem.integrations.mqtt.link import Link, Message, Outbox  # noqa: E402
from streammem.integrations.mqtt.publisher import Publisher  # noqa: E402
from streammem.types import (  # noqa: E402
    Alert,
    Answer,
    Caption,
    Note,
    Notice,
    Segment,
    Stats,
)
from tests.integrations.mqtt.brokers import (  # noqa: E402
    KINDS,
    MOSQUITTO,
    RunningBroker,
    default_kind,
    listener,
    until,
)

CAMERA = Camera("Hall", "hall", "home", ("a dog",))
DOG = Alert("a dog", 3.5, 4.0, 1, None)
WILL = Message("home/hall/status", "offline", retain=True)
ONLINE = Message("home/hall/status", "online", retain=True)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    running = RunningBroker(default_kind(), tmp_path_factory.mktemp("broker"))
    running.start()
    yield running
    running.kill()


def address(running, **options):
    return Broker("127.0.0.1", running.port, prefix="home", **options)


def nothing(line):
    pytest.fail(f"told without a reason: {line}")


def greeted(link):
    return link.step(0.01) and link.connected and not (link._greeting or link._in_flight)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_every_event_is_published_as_json_at_least_once_on_a_topic_of_its_kind(broker):
    events = [
        Segment(0, 0.0, 2.0, 1.0, "cut"),
        Caption(0, 0.0, 2.0, "a dog — runs"),
        Note(0.5, 1.0, "sit!"),
        Notice("lost"),
        Stats(4, 1, 1, 0.1, 0.2, captured=5),
    ]
    with listener(broker.port, "home/hall/+") as came:
        with Publisher(address(broker, discovery=None), CAMERA, nothing) as publisher:
            for event in events:
                publisher.send(event, {"wall_start": "2026-05-03T14:00:00+02:00"})
            publisher.send(Answer("What?", "A dog.", True, "model"))  # for its client only
            found = [came() for _ in range(6)]
        found.append(came())
    assert [topic.rpartition("/")[2] for topic, *_ in found] == [
        *("status", "segment", "caption", "note", "warning", "stats", "status")
    ]
    assert [payload for _, payload, *_ in (found[0], found[-1])] == ["online", "offline"]
    assert all(qos == 1 for _, _, qos, _ in found)
    said = [json.loads(payload) for _, payload, *_ in found[1:-1]]
    assert [event["type"] for event in said] == ["segment", "caption", "note", "warning", "stats"]
    assert said[1]["text"] == "a dog — runs" and said[1]["wall_start"].endswith("+02:00")
    assert said[4]["mqtt_lost"] == 0


def test_an_alert_has_a_topic_of_its_own_and_the_type_that_discovery_names(broker):
    with (
        listener(broker.port, "home/hall/alert/#") as came,
        Publisher(address(broker), CAMERA, nothing) as publisher,
    ):
        publisher.send(DOG)
        topic, payload, qos, retained = came()
    assert (topic, qos, retained) == ("home/hall/alert/a-dog", 1, False)
    assert json.loads(payload) == {
        **{"type": "alert", "query": "a dog", "time": 3.5, "score": 4.0, "segment": 1},
        **{"keyframe": None, "matched": "picture", "event_type": "seen"},
    }


def test_a_later_subscriber_gets_the_entities_the_last_caption_and_the_offline_status(broker):
    with Publisher(address(broker), CAMERA, nothing) as publisher:
        publisher.send(Caption(0, 0.0, 2.0, "first"))
        publisher.send(Caption(1, 2.0, 4.0, "second"))
        publisher.send(DOG)
    with listener(broker.port, "homeassistant/#") as came:
        entity = came()
        assert entity[3] and json.loads(entity[1])["device"]["name"] == "Hall"
    with listener(broker.port, "home/#") as came:
        found = {came()[:2] for _ in range(3)}
        kept = dict(found)
    assert json.loads(kept["home/hall/caption"])["text"] == "second"
    assert kept["home/hall/status"] == "offline"
    assert not any("alert" in topic for topic in kept)


def test_a_killed_camera_is_published_as_offline(broker):
    link = Link(address(broker), WILL, [ONLINE], Outbox(), nothing)
    with listener(broker.port, "home/hall/status") as came:
        until(lambda: greeted(link))
        while came()[1] != "online":
            pass
        link._client.socket().shutdown(socket.SHUT_RDWR)  # as a killed process leaves it
        assert came()[1] == "offline"


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind == KINDS[0] else pytest.mark.heavy) for kind in KINDS],
)
def test_alerts_of_an_outage_arrive_up_to_the_bound_and_the_rest_is_counted(kind, tmp_path):
    if kind == "mosquitto" and not MOSQUITTO:
        kind = default_kind()
    if kind == "iotcore":
        pytest.importorskip("iotcore", reason="needs streammem[dev]")
    running, told, outbox = RunningBroker(kind, tmp_path), [], Outbox(3)
    running.start()
    link = Link(address(running), WILL, [ONLINE], outbox, told.append, retry_s=0.01)
    try:
        until(lambda: greeted(link))
        running.kill()
        until(lambda: not link.step(0.01))
        for number in range(5):
            outbox.put(Message("home/hall/alert/a-dog", str(number)), alert=True)
            outbox.put(Message("home/hall/caption", str(number)))
        assert (outbox.lost, link.undelivered) == (4, 6)
        running.start()
        with listener(running.port, "home/#") as came:
            until(lambda: link.step(0.01) and not link.undelivered)
            found = [came()[:2] for _ in range(7)]
            link.finish(WILL, 5)
            assert came()[:2] == WILL[:2]
    finally:
        running.kill()
    alerts = [("home/hall/alert/a-dog", number) for number in "234"]
    assert found == [ONLINE[:2], *alerts, *(("home/hall/caption", n) for n in "234")]
    assert ["is lost" in told[0], "is back, 4 events were lost" in told[-1]] == [True, True]


def test_what_was_in_flight_when_the_broker_died_is_sent_again(tmp_path):
    running, outbox = RunningBroker(default_kind(), tmp_path), Outbox()
    running.start()
    link = Link(address(running), WILL, [], outbox, lambda line: None, retry_s=0.01)
    try:
        until(lambda: link.step(0.01) and link.connected)
        running.kill()
        outbox.put(Message("home/hall/alert/a-dog", "now"), alert=True)
        link._pump()  # handed over before the loss was noticed
        assert (len(outbox), link.undelivered) == (0, 1)
        until(lambda: not link.step(0.01))
        running.start()
        with listener(running.port, "home/#") as came:
            until(lambda: link.step(0.01) and not link.undelivered)
            assert came()[:2] == ("home/hall/alert/a-dog", "now")
    finally:
        running.kill()


def test_send_never_waits_and_the_outbox_is_bounded():
    told = []
    publisher = Publisher(Broker("127.0.0.1", free_port()), CAMERA, told.append, waiting=100)
    longest = 0.0
    for number in range(2000):
        began = time.thread_time()
        publisher.send(DOG)
        publisher.send(Caption(number, 0.0, 1.0, "a dog"))
        longest = max(longest, time.thread_time() - began)
    assert longest < 0.1
    assert len(publisher._outbox) == 200 and publisher.lost == 3800
    publisher._link.finish = lambda last, patience_s: None  # it would try for seconds
    publisher.close()
    assert "cannot be reached" in told[0]
    assert told[-1] == "4000 events did not reach the MQTT broker"


def test_attempts_become_rarer(monkeypatch):
    clock, tried = [0.0], []
    link = Link(Broker("nowhere", 1), WILL, [], Outbox(), lambda line: None)

    def connect(*where):
        tried.append(clock[0])
        raise OSError("no way")

    monkeypatch.setattr(link_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(link._client, "connect", connect)
    while clock[0] < 300:
        link.step(0)
        clock[0] += 0.5
    waits = [after - before for before, after in itertools.pairwise(tried)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.skipif(not MOSQUITTO, reason="needs mosquitto, which asks for passwords")
def test_a_login_opens_and_a_refused_one_is_reported_once_without_the_password(tmp_path):
    import subprocess

    passwords, told = tmp_path / "passwords", []
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "me", "topsecret"]
    subprocess.run(command, check=True)
    config = f"allow_anonymous false\npassword_file {passwords}\nuser root\n"
    running = RunningBroker("mosquitto", tmp_path, config)
    running.start()
    try:
        login = {"user": "me", "password": "wrongsecret"}
        link = Link(address(running, **login), WILL, [], Outbox(), told.append, retry_s=0.01)
        until(lambda: link.step(0.01) is False and told)
        for _ in range(5):
            link._retry_at = 0
            until(lambda: not link.step(0.01))
        assert len(told) == 1 and "refuses" in told[0] and "not authorized" in told[0]
        assert "secret" not in told[0]
        login["password"] = "topsecret"
        link = Link(address(running, **login), WILL, [], Outbox(), nothing)
        until(lambda: link.step(0.01) and link.connected)
    finally:
        running.kill()


def test_an_error_in_the_thread_is_reported_and_ends_only_the_thread(monkeypatch):
    told = []
    monkeypatch.setattr(Link, "step", lambda *_: 1 / 0)
    with Publisher(Broker("127.0.0.1", 1), CAMERA, told.append) as publisher:
        publisher._thread.join(120)
        publisher.send(DOG)
    assert "ZeroDivisionError" in told[0]
    assert told[-1] == "1 events did not reach the MQTT broker"


def test_an_alert_that_is_not_waited_for_any_more_is_gone_from_home_assistant(broker):
    alerts = "homeassistant/event/streammem-hall/+/config"
    dog, cat = (alerts.replace("+", f"alert-a-{it}") for it in ("dog", "cat"))
    other = Message("homeassistant/event/streammem-door/alert-a-dog/config", "{}", retain=True)
    for wanted in (("a dog", "a cat"), ("a cat",)):
        hall = Camera("Hall", "hall", "home", wanted)
        # The listener first: what takes back a retained message is not kept for later ones.
        with (
            listener(broker.port, alerts) as came,
            Publisher(address(broker), hall, nothing) as one,
        ):
            one._outbox.put(other)
            found = {}
            while found.keys() != {dog, cat} or ("a dog" not in wanted and found[dog]):
                topic, payload, *_ = came()
                found[topic] = payload
    assert found[dog] == "" and json.loads(found[cat])["name"] == "a cat"
    with listener(broker.port, "homeassistant/event/+/+/config") as came:
        assert {came()[0] for _ in range(2)} == {cat, other.topic}
