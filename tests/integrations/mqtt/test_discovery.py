"""The discovery messages of Home Assistant, compared with its documentation."""

import json
import re

import pytest

from streammem.integrations.mqtt.broker import Camera
from streammem.integrations.mqtt.discovery import SEEN, STATE_CHARS, configs
from streammem.output.render import to_json
from streammem.types import Caption, Notice, Stats

CAMERA = Camera("Hall", "hall", "home", ("a dog", "кошка"))
EVENTS = {
    "caption": Caption(0, 0.0, 1.0, "a dog"),
    "warning": Notice("lost"),
    "stats": Stats(1, 1, 1, 0.1, 0.1),
}
# Source: Home Assistant's documentation of MQTT discovery, MQTT sensor and MQTT event.
OPTIONS = {
    "device": dict,
    "origin": dict,
    "availability_topic": str,
    "qos": int,
    "unique_id": str,
    "name": str,
    "icon": str,
    "entity_category": str,
    "state_topic": str,
    "value_template": str,
    "json_attributes_topic": str,
    "device_class": str,
    "unit_of_measurement": str,
    "state_class": str,
    "event_types": list,
}


@pytest.fixture
def entities():
    return {topic: json.loads(text) for topic, text in configs(CAMERA, "homeassistant").items()}


def test_an_entity_has_only_documented_options_and_those_that_must_be(entities):
    for topic, entity in entities.items():
        part = "[a-zA-Z0-9_-]+"
        assert re.fullmatch(f"homeassistant/(sensor|event)/{part}/{part}/config", topic)
        assert all(isinstance(value, OPTIONS[key]) for key, value in entity.items()), topic
        assert {"state_topic", "unique_id", "name", "device", "origin"} <= set(entity)
        assert entity["device"]["identifiers"] == ["streammem-hall"]
        assert entity["device"]["name"] == "Hall" and entity["origin"]["name"] == "streammem"
        assert entity["availability_topic"] == "home/hall/status" and entity["qos"] == 1
        assert "/sensor/" in topic or entity["event_types"] == [SEEN]
    assert len({entity["unique_id"] for entity in entities.values()}) == len(entities)


def test_each_alert_is_an_event_of_its_own(entities):
    found = [e for topic, e in entities.items() if "/event/" in topic]
    assert [e["name"] for e in found] == list(CAMERA.alerts)
    assert [e["state_topic"] for e in found] == [CAMERA.alert_topic(q) for q in CAMERA.alerts]


def test_every_template_names_a_key_that_is_published(entities):
    for entity in entities.values():
        if template := entity.get("value_template"):
            key = re.fullmatch(r"\{\{ value_json\.(\w+)(?:\[:(\d+)\])? \}\}", template)
            kind = entity["state_topic"].rpartition("/")[2]
            assert key[1] in {**to_json(EVENTS[kind]), "mqtt_lost": 0}
            assert key[2] == (None if kind == "stats" else str(STATE_CHARS))


def test_the_last_caption_has_its_whole_text_as_an_attribute(entities):
    caption = entities["homeassistant/sensor/streammem-hall/caption/config"]
    assert caption["json_attributes_topic"] == caption["state_topic"] == "home/hall/caption"
    assert STATE_CHARS == 255  # more is refused as a state


def test_what_only_an_operator_wants_is_diagnostic(entities):
    shown = {e["name"] for e in entities.values() if e.get("entity_category") != "diagnostic"}
    assert shown == {"Last caption", *CAMERA.alerts}
