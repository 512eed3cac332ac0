"""The broker of an ``mqtt://`` URL, and the topics of a camera.

broker = Broker.of("mqtt://user:password@broker:1883/home")
Camera("Door", "door", broker.prefix).topic("caption")  # 'home/door/caption'
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from streammem.errors import ConfigError
from streammem.video.address import split_address

PORTS = {"mqtt": 1883, "mqtts": 8883}
PREFIX, DISCOVERY = "streammem", "homeassistant"
PASSWORD = "STREAMMEM_MQTT_PASSWORD"
EXAMPLE = "write it as mqtt://user:password@host:1883/prefix, or mqtts://..."
MAX_SLUG = 40


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker, and the prefixes of the topics to publish.

    Attributes:
        tls: whether to use TLS, with the system's certificates or those of ``SSL_CERT_FILE``.
        password: never printed, logged or stored.
        prefix: first levels of every topic.
        discovery: Home Assistant's prefix; None publishes no discovery messages.
    """

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    prefix: str = PREFIX
    discovery: str | None = DISCOVERY

    @classmethod
    def of(cls, url: str) -> "Broker":
        """Read ``mqtt(s)://[user[:password]@]host[:port][/prefix][?discovery=PREFIX|off]``.

        A URL without a password takes that of ``STREAMMEM_MQTT_PASSWORD``, if it is set.

        Raises:
            ConfigError: not such a URL; the message does not repeat it, because of the password.
        """
        try:
            parts = split_address(url)
            query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        except ConfigError as error:
            raise ConfigError(f"--mqtt: {error}") from None
        except ValueError:
            raise ConfigError(f"--mqtt: not a broker's URL; {EXAMPLE}") from None
        host, port = parts.hostname, parts.port
        if parts.scheme not in PORTS or not host or parts.fragment or set(query) - {"discovery"}:
            raise ConfigError(f"--mqtt: not a broker's URL; {EXAMPLE}")
        discovery = query.get("discovery", [DISCOVERY])[-1]
        return cls(
            host,
            port or PORTS[parts.scheme],
            parts.scheme == "mqtts",
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else _password(),
            _topic(unquote(parts.path).strip("/") or PREFIX),
            None if discovery == "off" else _topic(discovery),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Camera:
    """A watched source, as the broker's clients see it.

    Attributes:
        name: for people.
        slug: the same as part of a topic.
        prefix: of the broker.
        alerts: descriptions to look for.
    """

    name: str
    slug: str
    prefix: str = PREFIX
    alerts: tuple[str, ...] = ()

    def topic(self, kind: str) -> str:
        """Return the topic of a kind of event, or ``status``."""
        return f"{self.prefix}/{self.slug}/{kind}"

    def alert_topic(self, query: str) -> str:
        """Return the topic of an alert."""
        return self.topic(f"alert/{slug_of(query)}")


def slug_of(text: str) -> str:
    """Turn a text into a part of a topic, of letters, digits and hyphens; deterministic.

    Where this changes the text, six digits of a hash keep different texts apart.
    """
    plain = " ".join(text.lower().split())
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG]
    if slug and slug == plain.replace(" ", "-"):
        return slug
    return f"{slug}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}".lstrip("-")


def _topic(text: str) -> str:
    if not text or set(text) & set("+#\0") or text.startswith("$") or len(text.encode()) > 200:
        raise ConfigError("--mqtt: a topic has no +, # or $ and at most 200 bytes; change it")
    return text


def _password() -> str | None:
    return os.environ.get(PASSWORD) or None
