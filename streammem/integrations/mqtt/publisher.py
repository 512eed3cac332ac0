"""Tells a camera's events to a broker, from a thread of its own: whoever tells it never waits."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Self

from streammem.integrations.mqtt.broker import Broker, Camera
from streammem.integrations.mqtt.discovery import SEEN, configs, owned
from streammem.integrations.mqtt.link import RETRY_S, WAITING, Link, Message, Outbox
from streammem.output.render import NOTHING, to_json
from streammem.types import Alert, Caption, Event, Note, Notice, Segment, Stats

log = logging.getLogger(__name__)

KINDS = (Segment, Caption, Note, Alert, Notice, Stats)  # answers are for whoever asked
RETAINED = (Caption, Stats)
POLL_S = 0.1  # at most so long after an event it is sent
CLOSE_S = 5.0


class Publisher:
    """A camera on a broker: ``PREFIX/CAMERA/KIND`` has its events as JSON.

    ``PREFIX/CAMERA/status`` says whether it is watched. Close it at the end.

    Args:
        broker: to tell.
        camera: what is watched.
        tell: called, in the thread, with a line for people when the connection comes or goes.
        waiting: alerts that may wait for the broker, and as many other events; the oldest go.
        retry_s: see ``Link``.
    """

    def __init__(
        self,
        broker: Broker,
        camera: Camera,
        tell: Callable[[str], object],
        *,
        waiting: int = WAITING,
        retry_s: float = RETRY_S,
    ) -> None:
        self._camera, self._tell, self._outbox = camera, tell, Outbox(waiting)
        self._status = camera.topic("status")
        declared = configs(camera, broker.discovery) if broker.discovery else {}
        hello = [Message(topic, payload, retain=True) for topic, payload in declared.items()]
        self._link = Link(
            broker,
            Message(self._status, "offline", retain=True),
            [*hello, Message(self._status, "online", retain=True)],
            self._outbox,
            tell,
            retry_s=retry_s,
        )
        self._link.owned = owned(camera, broker.discovery) if broker.discovery else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streammem-mqtt", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that found no room."""
        return self._outbox.lost

    def send(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        """Tell an event as soon as the broker takes it; never waits.

        Args:
            event: other kinds than those of a camera are left out.
            more: what else is known of it, as ``wall_start``.
        """
        if not isinstance(event, KINDS):
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
        """Send what waits, for at most ``CLOSE_S``, and say that the camera is not watched."""
        self._stop.set()
        self._thread.join()
        if lost := self.lost + self._link.undelivered:
            self._tell(f"{lost} events did not reach the MQTT broker")

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
            self._tell(f"MQTT has ended: internal error {type(error).__name__}")
