"""Presets of models on the hub: what they say, fetching them once, and opening them offline."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streammem.config import override, read_toml
from streammem.errors import BackboneError
from streammem.models.checkpoint import CONFIGS
from streammem.models.registry import find_generator
from streammem.models.vlm.hub import pull_files
from streammem.models.vlm.transformers_model import TransformersOptions
from tests.models.vlm.tiny_checkpoints import save

PRESETS = sorted(
    path.stem
    for path in CONFIGS.glob("*.toml")
    if str(read_toml(path).get("generator", "")).startswith("hf:")
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_there_is_one_for_a_cpu_and_two_sizes_of_each_line():
    assert {"smolvlm2-256m", "smolvlm2-500m", "qwen3-vl-4b", "qwen3-vl-8b"} < set(PRESETS)
    assert {"internvl3.5-4b", "internvl3.5-8b", "llava-onevision-7b"} < set(PRESETS)
    assert {"qwen3.5-4b", "qwen3.5-9b"} < set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_its_source_terms_size_and_what_to_expect(preset):
    said = read_toml(CONFIGS / f"{preset}.toml")
    about = said["about"]
    assert set(about) == {"source", "licence", "size", "expect"} and all(about.values())
    kind, name, options = find_generator(preset)
    assert kind.scheme == "hf" and about["source"].endswith(f"/{name}")
    plain = {key: value for key, value in options.items() if key != "image"}
    override(TransformersOptions(), plain)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as fetching one model takes."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):
        path = self.path.partition("?")[0]
        files = sorted(each.name for each in self.folder.iterdir())
        if path.startswith("/api/models/tiny/smol/tree"):
            sizes = {name: (self.folder / name).stat().st_size for name in files}
            return self._json(
                [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]
            )
        if path.startswith("/api/models/tiny/smol"):
            return self._json(
                {
                    "id": "tiny/smol",
                    "sha": COMMIT,
                    "private": False,
                    "siblings": [{"rfilename": name} for name in files],
                }
            )
        name = path.rpartition("/")[2]
        if path.startswith("/tiny/smol/resolve/") and name in files:
            return self._file((self.folder / name).read_bytes())
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    do_HEAD = do_GET

    def _json(self, value):
        self._file(json.dumps(value).encode())

    def _file(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def hub(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


PULL = "from streammem.models.vlm.hub import pull_files; print(pull_files('tiny/smol'))"
OPEN = """
from streammem.models.protocols import EvidenceItem
from streammem.models.vlm.transformers_model import open_transformers
import numpy as np
import os, sys
generator = open_transformers("hf:tiny/smol")
prompt = generator.caption_prompt(EvidenceItem(0, 1, keyframes=(np.zeros((32, 32, 3), "uint8"),)))
print("".join(generator.stream(prompt, generator.decoding)), flush=True)
os.unlink(sys.argv[1])  # as if the fetch had broken off
open_transformers("hf:tiny/smol")
"""


@pytest.mark.heavy
def test_what_was_fetched_once_opens_without_the_network(tmp_path):
    folder, cache = save("smolvlm", tmp_path / "smol"), str(tmp_path / "cache")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with hub(folder) as url:
        fetched = python(PULL, HF_ENDPOINT=url, HF_HOME=cache)
    assert fetched.returncode == 0, fetched.stderr
    snapshot = fetched.stdout.strip()
    assert "model.safetensors" in os.listdir(snapshot)
    assert "pytorch_model.bin" not in os.listdir(snapshot)
    weights = os.path.join(snapshot, "model.safetensors")
    opened = python(OPEN, weights, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=cache)
    assert opened.stdout.strip(), opened.stderr
    last = opened.stderr.strip().splitlines()[-1]
    assert "model.safetensors is missing" in last and "models pull hf:tiny/smol" in last


def test_without_the_network_a_pull_says_so_in_one_line(tmp_path):
    code = PULL.replace("; ", "\n")
    failed = python(code, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    last = failed.stderr.strip().splitlines()[-1]
    assert "BackboneError: tiny/smol: cannot be fetched from http://127.0.0.1:9" in last
    assert "copy its files here" in last


def test_a_name_that_the_hub_cannot_have_is_refused_at_once(tmp_path):
    with pytest.raises(BackboneError, match="OWNER/NAME"):
        pull_files("a/b/c")
    assert pull_files(str(tmp_path)) == tmp_path
