"""A real server of the same form: transformers' own ``serve`` over a tiny model, random weights."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import httpx
import pytest

from streammem.models.backbones.language import GenerationConfig
from streammem.models.registry import open_generator
from tests.models.vlm.test_served import answer, flat, items

checkpoints = pytest.importorskip("tests.models.vlm.tiny_checkpoints")
pytestmark = pytest.mark.heavy
WORDS = GenerationConfig(max_new_tokens=8)
START_S = 240
# The server opens processors by itself, and most want torchvision.
without_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="no torchvision")
FAMILIES = ["llava", pytest.param("smolvlm", marks=without_torchvision)]


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, tmp_path_factory):
    """Serve a tiny model; give its name."""
    pytest.importorskip("transformers.cli.serve", reason="needs transformers[serving]")
    folder = checkpoints.save(request.param, tmp_path_factory.mktemp(request.param))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [sys.executable, "-c", serve, "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--host", "127.0.0.1"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + START_S
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < until:
                assert process.poll() is None, "the server has ended"
                try:
                    client.get(f"{url}/models").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)  # nothing tells when another process listens
        yield f"openai:{url}#{folder}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def test_a_real_servers_counts_are_what_was_measured(served):
    generator = open_generator(served)
    assert generator.context is None, "it does not say"
    prompt = generator.answer_prompt(items("red", "blue", "blue", "green"), "Which colours?")
    expected, least = generator.count(prompt)
    reply = generator.send(prompt, WORDS)
    assert reply.prompt_tokens == expected, "to the token"
    assert least > 1 and reply.reply_tokens >= 1


def test_a_real_server_captions_and_answers(served):
    generator = open_generator(served)
    assert answer(generator, "red", "blue", decoding=WORDS)
    item = items("red")[0]._replace(keyframes=(flat("red", 320, 180), flat("blue", 320, 180)))
    prompts = [generator.caption_prompt(item)] * 3
    replies = [reply for reply in generator.replies(prompts, WORDS) if reply]
    assert len(replies) == 3 and all(reply[0].text for reply in replies)
