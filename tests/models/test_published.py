"""What a name of a published model means, whatever its family."""

import json
import signal
import subprocess
import sys
import threading

import pytest

from streammem.errors import BackboneError, ConfigError
from streammem.models import checkpoint
from streammem.models.minigpt4_video.published import MiniGPT4File
from streammem.models.published import dtype_of, find, known_cuts, local_file
from streammem.models.video_llama.published import VideoLlamaFile
from streammem.models.videollamb.published import ParentFile
from tests.models.heard import noise, write_film
from tests.models.video_llama import published as video_llama_files

KINDS = {"videollamb": ParentFile, "video-llama": VideoLlamaFile, "minigpt4-video": MiniGPT4File}


@pytest.mark.parametrize("path", sorted(checkpoint.CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_a_preset_is_of_the_family_that_its_file_names(path):
    text = path.read_text()
    if "\ngenerator =" in text or text.startswith("generator ="):
        return
    family = next((name for name in KINDS if f'family = "{name}"' in text), "videollamb")
    said = find(path.stem, checkpoint.CONFIGS)
    assert type(said) is KINDS[family] and said.family == family
    assert said == find(path, checkpoint.CONFIGS)


def test_a_name_of_none_is_no_published_model(tmp_path):
    assert find("streammem-tiny", checkpoint.CONFIGS) is None
    assert find(tmp_path, checkpoint.CONFIGS) is None
    assert find(tmp_path / "gone.toml", checkpoint.CONFIGS) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('family = "video-lama"', "family 'video-lama': give one of videollamb, "),
        ('family = "video-llama"', "name pictures, the parent's checkpoint, and language"),
        ('family = "minigpt4-video"\ncheckpoint = "x"', "name checkpoint, .* and language"),
        ('keys = "x"', "name weights, a folder or hf:NAME"),
        ('weights = "x"\ncheckpoint = "y"', "checkpoint: no such option"),
        ('weights = "x"\n[options]\ncuts = "whole"', "cuts='whole': give one of streaming, "),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text, message):
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find(path, checkpoint.CONFIGS)


def test_a_file_is_a_path_or_lies_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "a.pth").write_bytes(b"")
    assert local_file(str(tmp_path / "a.pth")) == tmp_path / "a.pth"
    with pytest.raises(BackboneError, match="no such file; ask"):
        local_file(str(tmp_path / "b.pth"), "ask")
    with pytest.raises(BackboneError, match=r"run: hf download A/B c/d\.pth"):
        local_file("hf:A/B/c/d.pth")


def test_cuts_are_those_of_all_families_each_once():
    assert known_cuts() == ("streaming", "threshold", "top3", "whole", "clips")


def test_weights_are_float32_on_a_cpu_unless_stated():
    assert [str(dtype_of(*a)) for a in (("auto", "cpu"), ("auto", "cuda"), ("float16", "cpu"))] == [
        "torch.float32", "torch.bfloat16", "torch.float16"
    ]  # fmt: skip


# -- the command line, killed --

COMMAND = """
import sys
from streammem.cli import main
from streammem.models import checkpoint
from tests.tiny import tiny_model

checkpoint.load_own = lambda name="", *, device="cpu": tiny_model()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.heavy
def test_a_killed_command_leaves_what_it_saw_and_heard_to_the_next(run, capsys, tmp_path):
    toml = video_llama_files.toml(video_llama_files.write(tmp_path / "files"))
    film = write_film(
        tmp_path / "film.ts", seconds=8.0, sound=noise(8.0, 48_000), rate=48_000, codec="mp2"
    )
    flags = ["--model", str(toml), "--format", "jsonl", "--max-new-tokens", "4"]
    memory = tmp_path / "memory"
    # 1. A pipe that stays open; the kill comes after the first scene and its caption.
    command = [sys.executable, "-c", COMMAND, "watch", "-", *flags, "--memory", str(memory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watchdog = threading.Timer(600, process.kill)  # so that nothing waits for ever
    watchdog.start()
    try:
        process.stdin.write(film.read_bytes())
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait(60)
        watchdog.cancel()
        process.stdin.close()
        process.stdout.close()
    assert (first["type"], first["start"], first["end"]) == ("caption", 0.0, 4.0)
    assert process.returncode == -signal.SIGKILL
    # 2. What had closed is there, and is answered from.
    capsys.readouterr()  # transformers shows how it writes files
    code, out, _ = run("ask", memory, "What is red?", *flags)
    (answer,) = map(json.loads, out.splitlines())
    assert code == 0 and answer["text"]
    assert {item["segment"] for item in answer["evidence"]} == {0}
