"""What a name of a published model means, whatever its family."""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from streammem.errors import BackboneError, ConfigError
from streammem.memory.store import Store
from streammem.models import checkpoint
from streammem.models.minigpt4_video.published import MiniGPT4File
from streammem.models.published import dtype_of, find, known_cuts, local_file
from streammem.models.video_llama.published import VideoLlamaFile
from streammem.models.videollamb.published import ParentFile
from tests.models.heard import noise, write_film
from tests.models.minigpt4_video import published as minigpt4_files
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


@pytest.fixture
def watched(tmp_path):
    """Pipe a film into `watch`, in a process of its own; give the captions that it emits."""
    film = write_film(
        tmp_path / "film.ts", seconds=8.0, sound=noise(8.0, 48_000), rate=48_000, codec="mp2"
    )

    def watched(toml, memory, *, kill=False):
        flags = ["--model", str(toml), "--format", "jsonl", "--max-new-tokens", "4"]
        command = [sys.executable, "-c", COMMAND, "watch", "-", *flags, "--memory", str(memory)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        watchdog = threading.Timer(600, process.kill)  # so that nothing waits for ever
        watchdog.start()
        try:
            process.stdin.write(film.read_bytes())
            process.stdin.flush()
            if kill:  # after the first scene and its caption, while the pipe stays open
                lines = [process.stdout.readline()]
                process.kill()
            else:
                lines = process.communicate()[0].splitlines()
            process.wait(60)
        finally:
            watchdog.cancel()
            process.kill()
            process.stdin.close()
            process.stdout.close()
        assert process.returncode == (-signal.SIGKILL if kill else 0)
        return [row for row in map(json.loads, lines) if row["type"] == "caption"]

    return watched


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["video-llama", "minigpt4-video"])
def test_a_killed_watch_leaves_its_scenes_and_the_next_one_goes_on(
    family, run, watched, capsys, tmp_path
):
    """Memory and captions are those of runs that were not interrupted, but for their times."""
    files = {"video-llama": video_llama_files, "minigpt4-video": minigpt4_files}[family]
    written = files.write(tmp_path / "files")
    toml = video_llama_files.toml(written) if family == "video-llama" else written
    whole = watched(toml, tmp_path / "whole")
    assert [(row["start"], row["end"]) for row in whole] == [(0.0, 4.0), (4.0, 8.0)]
    memory = tmp_path / "memory"
    (first,) = watched(toml, memory, kill=True)
    assert (first["start"], first["end"]) == (0.0, 4.0)
    # 1. What had closed is there, and is answered from.
    capsys.readouterr()  # transformers shows how it writes files
    flags = ["--model", str(toml), "--format", "jsonl", "--max-new-tokens", "4"]
    code, out, _ = run("ask", memory, "What is red?", *flags)
    (answer,) = map(json.loads, out.splitlines())
    assert code == 0 and answer["text"]
    assert {item["segment"] for item in answer["evidence"]} == {0}
    # 2. The same film again: its scenes come behind, as they were without a kill.
    later = watched(toml, memory)
    assert [row["text"] for row in (first, *later)] == [whole[i]["text"] for i in (0, 0, 1)]
    assert later[0]["start"] >= 4.0
    assert later[1]["start"] - later[0]["start"] == pytest.approx(4.0)
    with Store.open(memory, mode="r") as store, Store.open(tmp_path / "whole", mode="r") as plain:
        entries, expected = store.load_entries(), plain.load_entries()
        assert [entry.segment for entry in entries] == [0, 1, 2]
        for entry, wanted in zip(entries, [expected[i] for i in (0, 0, 1)], strict=True):
            assert entry.caption == wanted.caption and entry.frames == wanted.frames
            assert entry.end - entry.start == pytest.approx(wanted.end - wanted.start)
            np.testing.assert_array_equal(store.tokens(entry.segment), plain.tokens(wanted.segment))
