"""Home Assistant's discovery messages for a camera, which make its entities appear.

Source: Home Assistant, MQTT discovery, and its MQTT sensor and event. One retained message an
entity, which releases since 2023.8 (the first with MQTT events) understand.
"""

import json

from streammem import __version__
from streammem.integrations.mqtt.broker import Camera, slug_of

STATE_CHARS = 255  # of a state of Home Assistant; the whole text is an attribute
SEEN = "seen"  # the type of event of every alert
_LENGTH = {"device_class": "duration", "unit_of_measurement": "s", "state_class": "measurement"}
_COUNT = {"state_class": "total_increasing"}
# key of `stats` -> name and kind of its entity
_DIAGNOSTICS: dict[str, tuple[str, dict[str, str]]] = {
    "lag_s": ("Lag", _LENGTH),
    "caption_lag_s": ("Caption lag", _LENGTH),
    "dropped_full": ("Frames dropped", _COUNT),
    "captions_skipped": ("Captions skipped", _COUNT),
    "connections": ("Connections", _COUNT),
    "mqtt_lost": ("Events lost", _COUNT),
}


def configs(camera: Camera, discovery: str) -> dict[str, str]:
    """Return the retained messages that declare a camera's entities: topic -> JSON.

    Args:
        camera: to declare.
        discovery: Home Assistant's prefix.
    """
    found: dict[tuple[str, str], dict[str, object]] = {
        ("sensor", "caption"): {
            "name": "Last caption",
            "icon": "mdi:message-text",
            **_text(camera, "caption", "text"),
        },
        ("sensor", "warning"): {
            "name": "Last warning",
            "entity_category": "diagnostic",
            **_text(camera, "warning", "message"),
        },
    }
    for key, (name, kind) in _DIAGNOSTICS.items():
        found["sensor", key] = {
            "name": name,
            "entity_category": "diagnostic",
            "state_topic": camera.topic("stats"),
            "value_template": f"{{{{ value_json.{key} }}}}",
            **kind,
        }
    for query in camera.alerts:
        found["event", f"alert-{slug_of(query)}"] = {
            "name": query,
            "icon": "mdi:eye",
            "state_topic": camera.alert_topic(query),
            "event_types": [SEEN],
        }
    node = _node(camera)
    return {
        f"{discovery}/{component}/{node}/{key}/config": json.dumps(
            {**_common(camera, node), "unique_id": f"{node}-{key}", **entity}
        )
        for (component, key), entity in found.items()
    }


def owned(camera: Camera, discovery: str) -> str:
    """Return the topic filter of all entities that a camera has or had."""
    return f"{discovery}/+/{_node(camera)}/+/config"


def _node(camera: Camera) -> str:
    return f"streammem-{camera.slug}"


def _text(camera: Camera, kind: str, key: str) -> dict[str, object]:
    """Declare a sensor whose state is a text of an event and whose attributes are the event."""
    topic = camera.topic(kind)
    template = f"{{{{ value_json.{key}[:{STATE_CHARS}] }}}}"
    return {"state_topic": topic, "value_template": template, "json_attributes_topic": topic}


def _common(camera: Camera, node: str) -> dict[str, object]:
    return {
        "device": {
            "identifiers": [node],
            "name": camera.name,
            "manufacturer": "streammem",
            "sw_version": __version__,
        },
        "origin": {"name": "streammem", "sw_version": __version__},
        "availability_topic": camera.topic("status"),
        "qos": 1,
    }
