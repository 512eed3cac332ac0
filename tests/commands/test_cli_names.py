"""Laws of names that are not UTF-8, and of memories that a failure leaves behind."""

import json
import os
import shutil
import sys

import pytest

from tests.command_line import QUICK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
NAME = b"bad\xffname.mp4"
ESCAPED = "bad\\udcffname.mp4"


@pytest.fixture
def odd(video, tmp_path):
    """The three scenes under a name that is not UTF-8."""
    path = os.path.join(os.fsencode(tmp_path), NAME)
    shutil.copyfile(video, path)
    return os.fsdecode(path)


def test_a_film_of_any_name_is_kept_and_asked_by_it(run, odd, tmp_path):
    memory = tmp_path / "m"
    code, out, err = run("scenes", odd, "--fps", 2, "--memory", memory, "--format", "jsonl")
    assert code == 0 and out and not err
    code, out, err = run("find", memory, "red", "--format", "jsonl")
    assert code == 0 and json.loads(out.splitlines()[0])["source"].endswith(ESCAPED)
    code, out, _ = run("memory", "export", memory, "--format", "jsonl")
    assert code == 0 and ESCAPED in json.loads(out.splitlines()[0])["source"]
    sheet = tmp_path / "sheet.png"
    code, _, err = run("caption", odd, *QUICK, "--sheet", sheet)
    assert code == 0 and sheet.is_file(), err


def test_so_is_a_memory_in_a_folder_of_any_name(run, video, tmp_path):
    memory = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"m\xff"))
    assert run("scenes", video, "--fps", 2, "--memory", memory)[0] == 0
    assert run("find", memory, "red")[0] == 0
    code, _, err = run("scenes", memory + "/nothing.mp4")
    assert code == 1 and err.count("\n") == 1


@pytest.mark.parametrize("existing", [False, True])
def test_a_source_that_fails_leaves_no_empty_memory(run, tmp_path, existing):
    memory = tmp_path / "m"
    if existing:
        memory.mkdir()
        (memory / "note.txt").write_text("mine")
    for source in (tmp_path / "nowhere.mp4", __file__):
        assert run("scenes", source, "--memory", memory)[0] == 1
        assert [p.name for p in memory.glob("*")] == (["note.txt"] if existing else [])
        assert memory.exists() == existing


def test_but_a_memory_that_holds_something_stays(run, video, tmp_path):
    memory = tmp_path / "m"
    assert run("scenes", video, "--fps", 2, "--memory", memory)[0] == 0
    before = run("memory", "export", memory, "--format", "jsonl")[1]
    assert run("scenes", tmp_path / "nowhere.mp4", "--memory", memory)[0] == 1
    assert before and run("memory", "export", memory, "--format", "jsonl")[1] == before
