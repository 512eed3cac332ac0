"""`--mqtt`: events are sent to a broker, under a camera's name."""

import argparse
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from streammem.commands.options import require
from streammem.errors import ConfigError
from streammem.output.terminal import note

if TYPE_CHECKING:
    from streammem.integrations.mqtt.broker import Broker
    from streammem.integrations.mqtt.publisher import Publisher


def broker_of(arguments: argparse.Namespace) -> "Broker | None":
    """Read the flags; nothing is opened.

    Raises:
        ConfigError: no broker's URL, or a name without a broker.
        BackboneError: the package is missing.
    """
    if arguments.camera is not None and not (arguments.mqtt and arguments.camera.strip()):
        raise ConfigError("--camera NAME: a name for --mqtt URL; give both")
    if arguments.mqtt is None:
        return None
    require("mqtt", "paho.mqtt.client")
    from streammem.integrations.mqtt.broker import Broker

    return Broker.of(arguments.mqtt)


def publisher_to(
    broker: "Broker | None", name: str, alerts: tuple[str, ...]
) -> "AbstractContextManager[Publisher | None]":
    """Open the publisher of a camera's events; None without a broker."""
    return nullcontext() if broker is None else _publisher(broker, name, alerts, set())


def outlets(
    broker: "Broker", name: str | None, alerts: tuple[str, ...]
) -> "Callable[[str], Publisher]":
    """Return a function that opens one for each of several sources, under names of their own."""
    taken: set[str] = set()
    return lambda source: _publisher(broker, name or camera_name(source), alerts, taken)


def camera_name(source: str, memory: Path | None = None) -> str:
    """Name a camera after its memory, else its source: without folders, users and passwords."""
    from streammem.video.address import public_url

    if memory is not None:
        return memory.resolve().name
    shown = public_url(source).partition("://")[2] if "://" in source else Path(source).stem
    return " ".join(re.findall(r"\w+", shown)) or "camera"


def _publisher(
    broker: "Broker", name: str, alerts: tuple[str, ...], taken: set[str]
) -> "Publisher":
    from streammem.integrations.mqtt.broker import Camera, slug_of
    from streammem.integrations.mqtt.publisher import Publisher

    numbers = iter(range(2, len(taken) + 3))
    numbered = name
    while slug_of(numbered) in taken:
        numbered = f"{name} {next(numbers)}"
    taken.add(slug_of(numbered))
    return Publisher(broker, Camera(numbered, slug_of(numbered), broker.prefix, alerts), note)
