"""A connection's bookkeeping, without a broker: what is sent when, and how much is in flight."""

import pytest

pytest.importorskip("paho.mqtt.client", reason="needs streammem[mqtt]")

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from streammem.integrations.mqtt import link as link_module
from streammem.integrations.mqtt.broker import Broker, Camera
from streammem.integrations.mqtt.link import MAX_IN_FLIGHT, Link, Message, Outbox
from streammem.integrations.mqtt.publisher import Publisher
from streammem.types import Alert, Caption, Note, Notice, Segment, Stats

HELLO = [Message("home/hall/status", "online", retain=True)]
ACCEPTED = ReasonCode(PacketTypes.CONNACK, "Success")
LOST = ReasonCode(PacketTypes.DISCONNECT, "Server shutting down")


class Confirmed:
    """What paho gives for a message that is published."""

    def __init__(self, mid):
        self.mid = mid


@pytest.fixture
def link(monkeypatch):
    """A link whose connections fail, until the test opens one."""
    link = Link(Broker("nowhere", 1), HELLO[0], HELLO, Outbox(), lambda line: None)

    def connect(*where):
        raise OSError("no way")

    monkeypatch.setattr(link._client, "connect", connect)
    return link


def test_the_hello_is_sent_at_every_connection_and_also_after_losses(link):
    for _ in range(3):
        link._on_connect(link._client, None, None, ACCEPTED, None)
        assert list(link._greeting) == HELLO
        link._greeting.clear()
        link._outbox.lost += 1
        link._on_disconnect(link._client, None, None, LOST, None)
        assert not link.connected


def test_a_connection_makes_the_next_wait_short_again(link, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(link_module.time, "monotonic", lambda: clock[0])
    for _ in range(5):
        link.step(0)
        clock[0] = link._retry_at
    link._on_connect(link._client, None, None, ACCEPTED, None)
    link._on_disconnect(link._client, None, None, LOST, None)
    assert link._retry_at == clock[0] + link_module.RETRY_S


def test_no_more_is_in_flight_than_the_window_until_the_broker_confirms(link, monkeypatch):
    sent = []
    monkeypatch.setattr(link._client, "publish", lambda *_: sent.append(1) or Confirmed(len(sent)))
    for number in range(2 * MAX_IN_FLIGHT):
        link._outbox.put(Message("home/hall/caption", str(number)))
    link._pump()
    assert (len(sent), len(link._outbox), link.undelivered) == (
        MAX_IN_FLIGHT,
        MAX_IN_FLIGHT,
        2 * MAX_IN_FLIGHT,
    )
    link._on_publish(link._client, None, 1, ACCEPTED, None)
    link._pump()
    assert (len(sent), link.undelivered) == (MAX_IN_FLIGHT + 1, 2 * MAX_IN_FLIGHT - 1)


@pytest.mark.parametrize(
    ("topic", "retained", "removed"),
    [("left", True, True), ("told just now", False, False), (HELLO[0].topic, True, False)],
)
def test_only_what_an_earlier_run_left_is_removed(link, topic, retained, removed):
    message = MQTTMessage(topic=topic.encode())
    message.retain, message.payload = retained, b"{}"
    link._on_message(link._client, None, message)
    assert list(link._greeting) == ([Message(topic, "", retain=True)] if removed else [])


def test_only_the_last_caption_and_the_counters_are_retained_for_later_subscribers(monkeypatch):
    monkeypatch.setattr(Publisher, "_run", lambda self: None)
    with Publisher(Broker("nowhere", 1), Camera("Hall", "hall"), lambda line: None) as publisher:
        for event in (
            Alert("a dog", 3.5, 4.0, 1, None),
            Segment(0, 0.0, 2.0, 1.0, "cut"),
            Caption(0, 0.0, 2.0, "a dog"),
            Note(0.5, 1.0, "sit!"),
            Notice("lost"),
            Stats(4, 1, 1, 0.1, 0.2),
        ):
            publisher.send(event)
        waiting = [publisher._outbox.take() for _ in range(6)]
    kept = [message.topic.rpartition("/")[2] for message in waiting if message.retain]
    assert kept == ["caption", "stats"]


def test_each_outage_is_reported_with_its_own_losses():
    told, outbox = [], Outbox()
    link = Link(Broker("nowhere", 1), HELLO[0], HELLO, outbox, told.append)
    link._on_connect(link._client, None, None, ACCEPTED, None)
    for lost in (3, 2):
        link._on_disconnect(link._client, None, None, LOST, None)
        outbox.lost += lost
        link._on_connect(link._client, None, None, ACCEPTED, None)
    assert [line.partition(" is back")[2] for line in told[1::2]] == [
        ", 3 events were lost",
        ", 2 events were lost",
    ]


def test_later_subscribers_also_get_offline_from_the_last_will(monkeypatch):
    wills = []
    monkeypatch.setattr(link_module.Client, "will_set", lambda self, *will: wills.append(will))
    monkeypatch.setattr(Publisher, "_run", lambda self: None)
    with Publisher(Broker("nowhere", 1), Camera("Hall", "hall"), lambda line: None):
        assert wills == [("streammem/hall/status", "offline", 1, True)]
