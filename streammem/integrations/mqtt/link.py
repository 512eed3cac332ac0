"""A connection to a broker that reconnects, and its bounded outbox; no thread of its own.

Every message is sent at least once (QoS 1). Messages wait in the outbox; at most ``MAX_IN_FLIGHT``
are sent but not yet confirmed. A message that is dropped because the outbox is full is counted.
"""

import logging
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from streammem.integrations.mqtt.broker import Broker

log = logging.getLogger(__name__)

WAITING = 1000  # alerts in the outbox at most, and as many other events
MAX_IN_FLIGHT = 16  # fewer than paho's own limit (20), so that paho never queues
KEEPALIVE_S = 30
CONNECT_S = 5.0
RETRY_S, MAX_RETRY_S = 1.0, 60.0


class Message(NamedTuple):
    """A message to publish; a broker gives a later subscriber the last one with ``retain``."""

    topic: str
    payload: str
    retain: bool = False


class Outbox:
    """A bounded queue of messages: alerts first, each kind oldest first. Thread-safe.

    Args:
        waiting: messages of each kind at most; one more drops the oldest of its kind.

    Attributes:
        lost: messages that were dropped.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self._alerts: deque[Message] = deque(maxlen=waiting)
        self._others: deque[Message] = deque(maxlen=waiting)
        self._lock = threading.Lock()
        self.lost = 0

    def __len__(self) -> int:
        return len(self._alerts) + len(self._others)

    def put(self, message: Message, *, alert: bool = False) -> None:
        """Append a message."""
        queue = self._alerts if alert else self._others
        with self._lock:
            self.lost += len(queue) == queue.maxlen
            queue.append(message)

    def take(self) -> Message | None:
        """Remove and return the next message; None if there is none."""
        with self._lock:
            queue = self._alerts or self._others
            return queue.popleft() if queue else None


class Link:
    """A connection that reconnects. For one thread, which the broker never blocks for long.

    Args:
        broker: to connect to.
        will: published by the broker if the connection breaks.
        hello: published first after every connection, because a restarted broker has lost it.
        outbox: messages to send.
        on_notice: called with a line of text when the connection is lost, back or refused.
        retry_s: seconds to the second attempt; doubled after each, up to a minute.

    Attributes:
        connected: whether there is a connection.
        owned: filter of retained topics that only this camera uses; None for none. Messages that an
            earlier run left there and ``hello`` does not replace are removed at each connection.
    """

    def __init__(
        self,
        broker: Broker,
        will: Message,
        hello: Sequence[Message],
        outbox: Outbox,
        on_notice: Callable[[str], object],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._broker, self._hello, self._outbox, self._on_notice = broker, hello, outbox, on_notice
        self.owned: str | None = None
        self._hello_topics = {message.topic for message in hello}
        self._first = self._delay_s = retry_s
        self._retry_at, self._lost_reported = 0.0, 0
        self._greeting: deque[Message] = deque()
        self._in_flight: dict[int, bool] = {}  # id of a message -> whether it came from the outbox
        self._failure = ""  # why it is not connected, as reported
        self.connected = False
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"streammem-{secrets.token_hex(6)}")
        client.connect_timeout = CONNECT_S
        client.will_set(will.topic, will.payload, 1, will.retain)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_message = self._on_publish, self._on_message
        self._client = client

    @property
    def undelivered(self) -> int:
        """Messages that wait in the outbox or that the broker has not confirmed."""
        return len(self._outbox) + sum(self._in_flight.values())

    def step(self, patience_s: float) -> bool:
        """Connect, send and receive as far as possible now.

        Args:
            patience_s: seconds to wait for the broker, once connected.

        Returns:
            Whether there is a connection; if not, the call did not wait.
        """
        if self._client.socket() is None and not self._connect():
            return False
        if self.connected:
            self._pump()
        self._client.loop(patience_s)
        return self._client.socket() is not None

    def finish(self, last: Message, patience_s: float) -> None:
        """Send the outbox and then ``last`` for at most ``patience_s`` seconds, and disconnect."""
        deadline = time.monotonic() + patience_s
        while self.undelivered and time.monotonic() < deadline:
            if not self.step(0.05):
                time.sleep(0.05)
        if self.connected:
            sent = self._client.publish(last.topic, last.payload, 1, last.retain).mid
            self._in_flight[sent] = False
            while self.connected and sent in self._in_flight and time.monotonic() < deadline:
                self._client.loop(0.05)
        self._client.on_disconnect = None
        self._client.disconnect()

    def _connect(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, MAX_RETRY_S)
        try:
            self._client.connect(self._broker.host, self._broker.port, KEEPALIVE_S)
        except (OSError, ValueError) as error:  # ValueError: a host that is no name
            self._fail(_why(error, self._broker.tls))
            return False
        return True

    def _pump(self) -> None:
        """Publish messages of ``hello``, then of the outbox, up to ``MAX_IN_FLIGHT``."""
        while len(self._in_flight) < MAX_IN_FLIGHT:
            queued = not self._greeting
            message = self._outbox.take() if queued else self._greeting.popleft()
            if message is None:
                return
            sent = self._client.publish(message.topic, message.payload, 1, message.retain)
            self._in_flight[sent.mid] = queued  # paho keeps it over reconnections until confirmed

    def _fail(self, why: str) -> None:
        if why != self._failure:
            self._failure = why
            self._on_notice(f"{self._broker} {why}; trying again, events wait")

    def _on_connect(
        self,
        client: Client,
        userdata: Any,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._fail(f"refuses the connection ({str(reason).lower()})")
            return
        self.connected, self._delay_s = True, self._first
        log.info("%s: connected", self._broker)
        self._greeting = deque(self._hello)
        if self.owned:  # where the broker forbids it, old messages stay
            client.subscribe(self.owned, 1)
        if self._failure:
            lost, self._lost_reported = self._outbox.lost - self._lost_reported, self._outbox.lost
            self._on_notice(f"{self._broker} is back{f', {lost} events were lost' if lost else ''}")
            self._failure = ""

    def _on_disconnect(
        self,
        client: Client,
        userdata: Any,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if self.connected:
            self.connected = False
            self._retry_at = time.monotonic() + self._delay_s
            self._fail("is lost")

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        self._in_flight.pop(mid, None)

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if message.retain and message.topic not in self._hello_topics:  # of an earlier run
            self._greeting.append(Message(message.topic, "", retain=True))


def _why(error: OSError | ValueError, tls: bool) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".").lower()
        return f"has a certificate that is not trusted ({why}); name its CA in SSL_CERT_FILE"
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if tls and isinstance(error, ssl.SSLError | ConnectionError | TimeoutError):
        return f"cannot be reached over TLS ({why}); check the port, or write mqtt://"
    return f"cannot be reached ({why})"
