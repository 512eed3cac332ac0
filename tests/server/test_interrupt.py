"""Ctrl-C while a page is open: the server ends, and prints nothing but where it listened."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="needs streammem[serve]")

PATIENCE_S = 240
SERVER = """
import sys
from streammem.models import checkpoint
from tests.tiny import tiny_model
checkpoint.load_checkpoint = lambda name="", *, device="cpu": tiny_model()
from streammem.cli import main
sys.exit(main(["serve", "--port", "0"]))
"""


def test_an_interrupt_with_an_open_page_ends_its_stream_and_prints_no_more():
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        kill = threading.Timer(PATIENCE_S, server.kill)  # whatever happens, the test ends
        kill.start()
        try:
            first = server.stderr.readline()
            url = re.search(r"listening on (http://\S+)", first)[1]
            asked = urllib.request.Request(
                f"{url}/v1/sessions", b"{}", {"content-type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as reply:
                path = json.load(reply)["url"]
            with urllib.request.urlopen(f"{url}{path}/events", timeout=PATIENCE_S) as events:
                assert events.readline() == b": streammem\n"
                server.send_signal(signal.SIGINT)
                rest = events.read()
            assert b"event: stats" in rest  # the session was closed, and told so
            assert server.wait(PATIENCE_S) == 130
            assert server.stderr.read() == ""
        finally:
            kill.cancel()
            server.kill()
