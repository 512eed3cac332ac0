"""Publishes a camera's events to a broker, from a thread of its own, so that ``send`` never waits.

with Publisher(Broker.of("mqtt://broker"), Camera("Door", "door"), print) as publisher:
    for event in watch(session, source):
        publisher.send(event)
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Self

from streammem.integrations.mqtt.broker import Broker, Camera
from streammem.integrations.mqtt.discovery import SEEN, configs, owned
from streammem.integrations.mqtt.link import RETRY_S, WAITING, Link, Message, Outbox
from streammem.output.render import NOTHING, to_json
from streammem.types import Alert, Caption, Event, Note, Notice, Segment, Stats, Until

log = logging.getLogger(__name__)

EVENT_KINDS = (
    Segment,
    Caption,
    Note,
    Alert,
    Until,
    Notice,
    Stats,
)  # an answer goes to its client only
RETAINED = (Caption, Stats)
POLL_S = 0.1  # longest delay from an event to its sending
CLOSE_S = 5.0


class Publisher:
    """Publishes a camera's events as JSON below ``PREFIX/CAMERA/KIND``.

    ``PREFIX/CAMERA/status`` is ``online`` while it is watched, else ``offline``. Close it at the
    end.

    Args:
        broker: to connect to.
        camera: whose events they are.
        on_notice: called, in the thread, with a line of text when the connection changes.
        waiting: alerts in the outbox at most, and as many other events; the oldest are dropped.
        retry_s: see ``Link``.
    """

    def __init__(
        self,
        broker: Broker,
        camera: Camera,
        on_notice: Callable[[str], object],
        *,
        waiting: int = WAITING,
        retry_s: float = RETRY_S,
    ) -> None:
        self._camera, self._on_notice, self._outbox = camera, on_notice, Outbox(waiting)
        self._status = camera.topic("status")
        declared = configs(camera, broker.discovery) if broker.discovery else {}
        hello = [Message(topic, payload, retain=True) for topic, payload in declared.items()]
        self._link = Link(
            broker,
            Message(self._status, "offline", retain=True),
            [*hello, Message(self._status, "online", retain=True)],
            self._outbox,
            on_notice,
            retry_s=retry_s,
        )
        self._link.owned = owned(camera, broker.discovery) if broker.discovery else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streammem-mqtt", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events dropped because the outbox was full."""
        return self._outbox.lost

    def send(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        """Queue an event for the broker; never waits.

        Args:
            event: ignored unless it is one of ``EVENT_KINDS``.
            more: further keys, such as ``wall_start``.
        """
        if not isinstance(event, EVENT_KINDS):
            return
        content = to_json(event, more)
        topic = self._camera.topic(str(content["type"]))
        if isinstance(event, Alert):
            topic = self._camera.alert_topic(event.query)
            content["event_type"] = SEEN
        if isinstance(event, Stats):
            content["mqtt_lost"] = self.lost
        payload = json.dumps(content, ensure_ascii=False)
        message = Message(topic, payload, retain=isinstance(event, RETAINED))
        self._outbox.put(message, alert=isinstance(event, Alert))

    def close(self) -> None:
        """Send the outbox and the status ``offline``, for at most ``CLOSE_S`` seconds."""
        self._stop.set()
        self._thread.join()
        if lost := self.lost + self._link.undelivered:
            self._on_notice(f"{lost} events did not reach the MQTT broker")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._link.step(POLL_S):
                    self._stop.wait(POLL_S)
            self._link.finish(Message(self._status, "offline", retain=True), CLOSE_S)
        except Exception as error:
            log.exception("MQTT has ended")
            self._on_notice(f"MQTT has ended: internal error {type(error).__name__}")
