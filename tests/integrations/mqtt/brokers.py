"""A real broker on this computer, which a test may kill, and a stock client that listens."""

import queue
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
KINDS = ("mosquitto", "iotcore")
PATIENCE_S = 120


class RunningBroker:
    """Debian's mosquitto, or one that PyPI has."""

    def __init__(self, kind, folder, config=""):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._kind, self._running = kind, None
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{config or ANYONE}")

    def start(self):
        if self._kind == "iotcore":
            from iotcore import Broker

            self._running = Broker(port=self.port, listen="127.0.0.1").start()
            return
        command = [MOSQUITTO, "-c", str(self._config)]
        self._running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(lambda: listens(self.port))

    def kill(self):
        if isinstance(self._running, subprocess.Popen):
            self._running.kill()
            self._running.wait()
        elif self._running:
            self._running.stop()
        self._running = None


ANYONE = "allow_anonymous true\n"


def default_kind():
    """The broker of tests that need only one, or a reason to skip them."""
    if MOSQUITTO:
        return "mosquitto"
    pytest.importorskip("iotcore", reason="needs streammem[dev], or mosquitto")
    return "iotcore"


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(true):
    """Wait for what another process or thread does."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.01)


@contextmanager
def listener(port, topics="#", *, tls=False, **login):
    """Give a function that waits for the next message: (topic, payload, qos, retained)."""
    came, subscribed = queue.Queue(), queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2)
    if login:
        client.username_pw_set(**login)
    if tls:
        client.tls_set_context(ssl.create_default_context())
    client.on_connect = lambda c, *_: c.subscribe(topics, 1)
    client.on_subscribe = lambda *_: subscribed.put(True)
    client.on_message = lambda _, __, m: came.put(
        (m.topic, m.payload.decode(), m.qos, bool(m.retain))
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        subscribed.get(timeout=PATIENCE_S)
        yield lambda: came.get(timeout=PATIENCE_S)
    finally:
        client.disconnect()
        client.loop_stop()
