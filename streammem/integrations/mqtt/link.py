"""A connection to a broker that is kept up, and what waits for it. It has no thread of its own.

Every message is sent at least once (QoS 1): it waits in a bounded outbox, then at most `WINDOW` are
under way until the broker has them. What finds no room is counted, nothing is lost unsaid.
"""

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

WAITING = 1000  # alerts that wait for the broker, and as many other events
WINDOW = 16  # fewer than paho has under way at once (20), so that it never queues by itself
KEEPALIVE_S = 30
CONNECT_S = 5.0
RETRY_S, MAX_RETRY_S = 1.0, 60.0


class Message(NamedTuple):
    """What is published; ``retain``: whoever subscribes later is given the last one."""

    topic: str
    payload: str
    retain: bool = False


class Outbox:
    """Messages that wait: alerts first, each kind oldest first. Any thread may use it.

    Args:
        waiting: messages of each kind at most; beyond it the oldest of the kind is lost.

    Attributes:
        lost: messages that were lost.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self._alerts: deque[Message] = deque(maxlen=waiting)
        self._others: deque[Message] = deque(maxlen=waiting)
        self._lock = threading.Lock()
        self.lost = 0

    def __len__(self) -> int:
        return len(self._alerts) + len(self._others)

    def put(self, message: Message, *, alert: bool = False) -> None:
        """Let a message wait for its turn."""
        queue = self._alerts if alert else self._others
        with self._lock:
            self.lost += len(queue) == queue.maxlen
            queue.append(message)

    def take(self) -> Message | None:
        """Take the next; None where nothing waits."""
        with self._lock:
            queue = self._alerts or self._others
            return queue.popleft() if queue else None


class Link:
    """A connection that comes back. One thread calls it, and is never held for long by the broker.

    Args:
        broker: to connect to.
        will: said for us when we are gone without a word.
        hello: said first after every connection, as the broker may have forgotten it.
        outbox: what is sent then.
        tell: called with a line for people: lost, back, refused.
        retry_s: seconds to the second attempt; doubled after each, up to a minute.

    Attributes:
        connected: whether the broker listens.
        owned: filter of the retained topics that are ours alone: what an earlier run left there,
            and ``hello`` does not say, is removed at each connection; None for none.
    """

    def __init__(
        self,
        broker: Broker,
        will: Message,
        hello: Sequence[Message],
        outbox: Outbox,
        tell: Callable[[str], object],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._broker, self._hello, self._outbox, self._tell = broker, hello, outbox, tell
        self.owned: str | None = None
        self._said = {message.topic for message in hello}
        self._first = self._delay_s = retry_s
        self._retry_at, self._lost_told = 0.0, 0
        self._greeting: deque[Message] = deque()
        self._under_way: dict[int, bool] = {}  # id of a message -> whether it is of the outbox
        self._failure = ""  # why it is not connected, as it was told
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
        """Messages of the outbox that wait, or that the broker has not confirmed."""
        return len(self._outbox) + sum(self._under_way.values())

    def step(self, patience_s: float) -> bool:
        """Do what can be done now.

        Args:
            patience_s: seconds to wait for the broker, once connected.

        Returns:
            Whether there is a connection, so that it was worth the wait.
        """
        if self._client.socket() is None and not self._connect():
            return False
        if self.connected:
            self._pump()
        self._client.loop(patience_s)
        return self._client.socket() is not None

    def finish(self, last: Message, patience_s: float) -> None:
        """Send what waits and a last word, as far as that succeeds in time, and disconnect."""
        deadline = time.monotonic() + patience_s
        while self.undelivered and time.monotonic() < deadline:
            if not self.step(0.05):
                time.sleep(0.05)
        if self.connected:
            said = self._client.publish(last.topic, last.payload, 1, last.retain).mid
            self._under_way[said] = False
            while self.connected and said in self._under_way and time.monotonic() < deadline:
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
        """Hand over what waits, as far as there is room."""
        while len(self._under_way) < WINDOW:
            own = not self._greeting
            message = self._outbox.take() if own else self._greeting.popleft()
            if message is None:
                return
            sent = self._client.publish(message.topic, message.payload, 1, message.retain)
            self._under_way[sent.mid] = own  # kept by paho, over connections, until confirmed

    def _fail(self, why: str) -> None:
        if why != self._failure:
            self._failure = why
            self._tell(f"{self._broker} {why}; trying again, events wait")

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
        self._greeting = deque(self._hello)
        if self.owned:  # a broker that does not allow it keeps what is there
            client.subscribe(self.owned, 1)
        if self._failure:
            lost, self._lost_told = self._outbox.lost - self._lost_told, self._outbox.lost
            self._tell(f"{self._broker} is back{f', {lost} events were lost' if lost else ''}")
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
        self._under_way.pop(mid, None)

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if message.retain and message.topic not in self._said:  # left there, not told just now
            self._greeting.append(Message(message.topic, "", retain=True))


def _why(error: OSError | ValueError, tls: bool) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".").lower()
        return f"has a certificate that is not trusted ({why}); name its CA in SSL_CERT_FILE"
    why = getattr(error, "strerror", None) or str(error)
    if tls and isinstance(error, ssl.SSLError | ConnectionError | TimeoutError):
        return f"cannot be reached over TLS ({why}); check the port, or write mqtt://"
    return f"cannot be reached ({why})"
