"""The first questions come while the model opens: each is answered, and the server lives on."""

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from streammem.models.backbones.weights import is_pulled
from streammem.models.checkpoint import DEFAULT, PRESETS, backbones_of
from tests.command_line import record
from tests.models.opened_by_many import fresh_processes

MISSING = [name for name in backbones_of(PRESETS[DEFAULT]) if not is_pulled(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not pulled: {' '.join(MISSING)}")
QUESTIONS = ("What is red?", "When does it turn blue?", "How often is it green?", "What is shown?")


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A film, and a memory of it without captions."""
    from streammem import Session, load, watch
    from streammem.engine.watch_options import WatchOptions

    folder = tmp_path_factory.mktemp("served")
    record(folder / "film.mp4")
    (folder / "memories").mkdir()
    with Session(load(), memory=folder / "memories" / "film.mem") as session:
        list(watch(session, folder / "film.mp4", WatchOptions(captions=False)))
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("number", fresh_processes(1))
def test_questions_of_many_the_moment_a_server_is_healthy_are_all_answered(folder, number):
    arguments = ["serve", "--port", "0", "--memories", folder / "memories", folder / "film.mp4"]
    command = [sys.executable, "-X", "faulthandler", "-m", "streammem", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"listening on (http://\S+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            rest = threading.Thread(target=lambda: lines.extend(server.stderr))
            rest.start()
            url = found[1]
            assert fetch(f"{url}/healthz")
            session = next(iter(fetch(f"{url}/v1/models")["data"]))["id"]
            asked = [(name, q) for q in QUESTIONS for name in (session, "memory:film.mem")]
            answers = [None] * len(asked)

            def ask(place):
                name, question = asked[place]
                said = [{"role": "user", "content": question}]
                try:
                    answers[place] = fetch(
                        f"{url}/v1/chat/completions", {"model": name, "messages": said}
                    )["choices"][0]["message"]["content"]
                except (OSError, urllib.error.HTTPError) as error:
                    answers[place] = error

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(isinstance(answer, str) and answer for answer in answers), (answers, lines)
            assert server.poll() is None and fetch(f"{url}/healthz")
        finally:
            server.terminate()
        rest.join(60)
    assert "Traceback" not in "".join(lines)
