"""An archive knows a file by its content, and holds whole memories only."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from streammem.cli import build_parser
from streammem.commands import archiving
from streammem.commands.options import DECODING_FLAGS
from streammem.errors import ConfigError, SourceError, StoreError
from streammem.fleet import index, pool
from streammem.fleet.index import LIST, UNFINISHED, Archive, File, content_of, find_files
from streammem.models import checkpoint
from tests.command_line import QUICK, events, record
from tests.commands.test_help import commands_of
from tests.disks import no_more_files, small_disk
from tests.fleet.workers import InThisProcess
from tests.qa.test_answerer import Reader
from tests.sessions import as_kind


def file_of(path, made_with="options"):
    return File(str(path), content_of(path), made_with)


def make(archive, file, state="whole"):
    """What a worker leaves."""
    folder = archive.unfinished(file)
    folder.mkdir()
    (folder / "memory.json").write_text("{}")
    archive.keep(File(file.path, file.content, file.made_with, state))


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.mp4", "b.MOV", "deep/a.mp4"]):
        (folder / name).write_bytes(bytes([number]) * 3_000_000)
    (folder / "notes.txt").write_text("no video")
    return folder


def memories(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_folders_are_searched_for_videos_and_files_are_taken_as_they_are(films):
    found = [films / name for name in ("a.mp4", "b.MOV", "deep/a.mp4")]
    assert find_files([films]) == find_files([films, films / "a.mp4"]) == found
    assert find_files([films / "notes.txt"]) == [films / "notes.txt"]
    with pytest.raises(SourceError, match=r"gone: no such file or folder"):
        find_files([films / "gone"])
    (films / "empty").mkdir()
    with pytest.raises(SourceError, match="no video files there"):
        find_files([films / "empty"])


def test_a_second_run_makes_only_what_is_new_or_changed_or_made_otherwise(films, tmp_path):
    with Archive.open(tmp_path / "archive") as archive:
        files = [file_of(path) for path in find_files([films])]
        assert list(archive.missing(files)) == files
        for file in files:
            make(archive, file)
    names = memories(tmp_path / "archive")
    assert len(names) == 3  # two files are called a.mp4
    os.utime(films / "a.mp4", (1, 1))  # touched
    (films / "b.MOV").rename(films / "c.mov")  # renamed
    with Archive.open(tmp_path / "archive") as archive:
        files = [file_of(path) for path in find_files([films])]
        assert list(archive.missing(files)) == []
        assert set(archive.files) == {file.path for file in files}
        otherwise = file_of(films / "a.mp4", "others")
        assert list(archive.missing([otherwise])) == [otherwise]
    (films / "deep" / "a.mp4").write_bytes(b"changed")
    changed = file_of(films / "deep" / "a.mp4")
    with Archive.open(tmp_path / "archive") as archive:
        assert list(archive.missing([changed])) == [changed]
        make(archive, changed)
    assert len(memories(tmp_path / "archive")) == 3  # the earlier one has gone
    shutil.rmtree(tmp_path / "archive" / changed_name(tmp_path, changed))
    with Archive.open(tmp_path / "archive") as archive:
        assert list(archive.missing([changed])) == [changed]


def test_the_bytes_of_a_file_are_read_again_only_where_something_shows_a_change(
    films, tmp_path, monkeypatch
):
    monkeypatch.setattr(index, "FRESH_S", 0.0)
    read, read_content = [], index.content_of

    def content_of(path):
        read.append(path.name)
        return read_content(path)

    monkeypatch.setattr(index, "content_of", content_of)

    def run():
        read.clear()
        with Archive.open(tmp_path / "archive") as archive:
            files = [archive.identify(path, "options") for path in find_files([films])]
            missing = list(archive.missing(files))
            for file in missing:
                folder = archive.unfinished(file)
                folder.mkdir()
                (folder / "memory.json").write_text("{}")
                archive.keep(replace(file, state="whole"))
        return sorted(read), sorted(os.path.basename(f.path) for f in missing)

    assert run() == (["a.mp4", "a.mp4", "b.MOV"],) * 2
    assert run() == ([], [])
    os.utime(films / "b.MOV", (1, 1))
    assert run() == (["b.MOV"], [])
    assert run() == ([], [])
    before = (films / "b.MOV").stat()
    (films / "b.MOV").write_bytes(b"x" * before.st_size)  # as large, and its time is set back
    os.utime(films / "b.MOV", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run() == (["b.MOV"], ["b.MOV"])
    monkeypatch.setattr(index, "FRESH_S", 1e9)  # too fresh to tell
    assert run() == (["a.mp4", "a.mp4", "b.MOV"], [])


def changed_name(tmp_path, file):
    with Archive.open(tmp_path / "archive") as archive:
        return archive.files[file.path].memory


def test_a_copy_shares_the_memory_of_its_original(films, tmp_path):
    shutil.copy(films / "a.mp4", films / "z.mp4")
    original, copy = file_of(films / "a.mp4"), file_of(films / "z.mp4")
    with Archive.open(tmp_path / "archive") as archive:
        make(archive, original)
        assert list(archive.missing([original, copy])) == []
        (films / "a.mp4").write_bytes(b"changed")
        make(archive, file_of(films / "a.mp4"))
        assert list(archive.missing([copy])) == []


@pytest.mark.parametrize("state", ["failed", "unreadable"])
def test_a_file_that_was_mended_takes_nothing_of_the_archive_along(films, tmp_path, state):
    first, second = (file_of(films / name) for name in ("a.mp4", "b.MOV"))
    with Archive.open(tmp_path / "archive") as archive:
        make(archive, first)
        archive.fail(second, "cut off", state)
        (films / "b.MOV").write_bytes(b"whole now")
        make(archive, file_of(films / "b.MOV"))
        assert len(memories(archive.folder)) == 2
    assert (tmp_path / "archive" / LIST).exists()


def test_what_failed_is_tried_again_and_what_is_no_video_is_not(films, tmp_path):
    whole, broken, unreadable, failed = (
        File(str(films / name), name, "options") for name in ("1", "2", "3", "4")
    )
    with Archive.open(tmp_path / "archive") as archive:
        make(archive, whole)
        make(archive, broken, "broken")
        archive.fail(unreadable, "no video", "unreadable")
        archive.unfinished(failed).mkdir()
        archive.fail(failed, "the disk is full")
        assert not archive.unfinished(failed).exists()
    with Archive.open(tmp_path / "archive") as archive:
        assert list(archive.missing([whole, broken, unreadable, failed])) == [failed]
        assert archive.files[failed.path].reason == "the disk is full"


def test_a_file_that_fails_when_it_has_changed_keeps_its_earlier_memory(films, tmp_path):
    before, after = (File(str(films / "a.mp4"), content, "options") for content in ("1", "2"))
    with Archive.open(tmp_path / "archive") as archive:
        make(archive, before)
        archive.fail(after, "the disk is full")
        assert list(archive.missing([after])) == [after]
        assert memories(tmp_path / "archive") == [archive.files[after.path].memory]


def test_what_a_kill_leaves_is_made_anew(films, tmp_path):
    file, other = file_of(films / "a.mp4"), file_of(films / "b.MOV")
    with Archive.open(tmp_path / "archive") as archive:
        make(archive, file)
        archive.unfinished(other).mkdir()
    with (tmp_path / "archive" / LIST).open("ab") as rows:
        rows.write(b'{"path": "/torn')
    with Archive.open(tmp_path / "archive") as archive:
        assert not archive.unfinished(other).exists()
        assert list(archive.missing([file, other])) == [other]
        make(archive, other)
    with Archive.open(tmp_path / "archive") as archive:
        assert list(archive.missing([file, other])) == []


@pytest.mark.parametrize(
    "line", ["no json", '{"path": 1}', json.dumps({"path": "a", "content": "", "memory": "../b"})]
)
def test_a_damaged_list_is_refused(tmp_path, line):
    (tmp_path / LIST).write_text(f"{line}\n")
    with pytest.raises(StoreError, match=r"archive\.jsonl"):
        Archive.open(tmp_path)


def test_one_process_at_a_time_writes_and_a_memory_is_no_archive(memories_of_one, tmp_path):
    with (
        Archive.open(tmp_path / "archive"),
        pytest.raises(StoreError, match="being written by process"),
    ):
        Archive.open(tmp_path / "archive")
    with pytest.raises(ConfigError, match="is a memory; give a folder for many"):
        Archive.open(memories_of_one)


@pytest.fixture
def memories_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "memory.json").write_text("{}")
    return tmp_path / "one"


# -- the command --


def clearly(scale, cosines):
    """Probabilities that tell colours apart."""
    return 1.0 * (np.asarray(cosines) > 0.99)


@pytest.fixture
def two_films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    record(folder / "one.mp4")
    record(folder / "two.mp4", (("white", 2), ("green", 2)))
    whole = (folder / "one.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:100])
    return folder


@contextmanager
def cluster(arguments, most):
    """Stands in for Ray, whose remarks on stdout are sent to stderr."""
    with redirect_stdout(sys.stderr):
        yield None, 1, 1.0


def test_a_line_counts_one_scene_as_one():
    file = SimpleNamespace(path="a.mp4", state="whole", memory="a", seconds=3.0, reason="")
    arguments = SimpleNamespace(format="text", memory=Path("m"))
    assert archiving._line(file, 1, arguments).startswith("a.mp4: 1 scene, ")
    assert archiving._line(file, 2, arguments).startswith("a.mp4: 2 scenes, ")


def test_index_makes_one_memory_a_file_and_names_what_failed(run, two_films, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "Pool", InThisProcess)
    monkeypatch.setattr(archiving, "workers_of", cluster)
    command = ("index", two_films, "--memory", tmp_path / "archive", *QUICK)
    code, out, err = run(*command, "--format", "jsonl")
    made = {os.path.basename(row["path"]): row for row in events(out)}
    assert code == 1
    assert (made["one.mp4"]["segments"], made["one.mp4"]["seconds"]) == (3, 10.0)
    assert (made["two.mp4"]["segments"], made["two.mp4"]["state"]) == (2, "whole")
    assert (made["cut.mp4"]["state"], made["cut.mp4"]["memory"]) == ("unreadable", None)
    assert "3 files: 0 known before, 2 made, 1 not whole" in err and "cut.mp4: unreadable" in err
    code, out, err = run(*command)
    assert (code, out) == (1, "") and "3 files: 3 known before, 0 made, 1 not whole" in err
    code, out, _ = run("caption", two_films / "one.mp4", *QUICK, "--format", "jsonl")
    alone = [(row["start"], row["end"], row["text"]) for row in events(out)]
    _, out, _ = run("memory", "export", made["one.mp4"]["memory"], "--format", "jsonl")
    kept = [(row["start"], row["end"], row["text"]) for row in events(out) if "text" in row]
    assert kept == alone
    code, _, err = run(*command[:2], "--memory", tmp_path / "archive", "--fps", "-1")
    assert code == 2 and "fps" in err
    before = memories(tmp_path / "archive")
    code, _, err = run(*command, "--no-captions")
    assert code == 2 and "2 of these files are there, made with other options" in err
    assert memories(tmp_path / "archive") == before
    code, _, err = run(*command, "--workers", "0")
    assert code == 2 and "--workers 0" in err


@pytest.mark.parametrize(
    ("too_small", "share"),
    [(no_more_files, 0.0), pytest.param(small_disk, 0.7, marks=pytest.mark.heavy)],
)
def test_a_full_disk_fails_its_own_file_and_a_run_with_room_finishes_it(
    run, two_films, tmp_path, monkeypatch, too_small, share
):
    monkeypatch.setattr(pool, "Pool", InThisProcess)
    command = ("index", two_films, *QUICK, "--format", "jsonl", "--memory")

    def index(archive):
        code, out, err = run(*command, archive)
        assert code == 1  # a third film is none
        return {os.path.basename(row["path"]): row for row in events(out)}, err

    def kept(memory):
        return run("memory", "export", memory, "--format", "jsonl")[1]

    expected = {name: row["memory"] for name, row in index(tmp_path / "whole")[0].items()}
    memory = Path(expected["two.mp4"])
    size = sum(path.stat().st_size for path in memory.rglob("*") if path.is_file())
    place = tmp_path / "archive" / f"{UNFINISHED}{memory.name}"
    with too_small(place, int(share * size)):
        made, err = index(tmp_path / "archive")
    assert made["one.mp4"]["state"] == "whole"
    full = made["two.mp4"]
    assert (full["state"], full["memory"]) == ("failed", None)
    assert f"two.mp4: failed: {place}" in err and "free space" in full["reason"]
    assert memories(tmp_path / "archive") == [Path(expected["one.mp4"]).name]
    made, err = index(tmp_path / "archive")
    assert "3 files: 2 known before, 1 made, 1 not whole" in err
    assert kept(made["two.mp4"]["memory"]) == kept(memory)


def test_find_and_ask_name_the_memory(run, model, two_films, tmp_path, monkeypatch):
    reader = as_kind(Reader, model)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda name="", *, device="cpu": reader)
    monkeypatch.setattr("streammem.memory.retrieval.Scale.probability", clearly)
    monkeypatch.setattr(pool, "Pool", InThisProcess)
    (two_films / "cut.mp4").unlink()
    assert run("index", two_films, "--memory", tmp_path / "archive", *QUICK)[0] == 0
    code, out, _ = run("find", tmp_path / "archive", "--all", "red", "--format", "jsonl")
    best = events(out)[0]
    assert code == 0 and best["memory"].startswith("one-") and best["rank"] == 1
    assert (best["start"], best["end"]) == (0.0, 3.0)
    code, out, _ = run("ask", tmp_path / "archive", "--all", "when: red", *QUICK)
    assert code == 0 and out.startswith("one-") and "[00:00.0-00:03.0]" in out
    (tmp_path / "archive" / best["memory"] / "memory.sqlite").write_bytes(b"damaged")
    code, out, err = run("find", tmp_path / "archive", "--all", "red")
    assert code == 1 and best["memory"] in err and out.splitlines()[0].startswith("two-")
    code, _, err = run("find", two_films, "--all", "red")
    assert code == 2 and "holds no memories" in err


# Options of ``index`` that decide nothing of a memory: where, by how many, for how much it is made,
# how results are shown, and how questions are answered.
NOT_DECIDING = {
    *("paths", "memory", "workers", "ray", "worker_memory", "device", "spend", "verbose", "help"),
    *("format", "answer_with", "context", "steps", "verify"),
}


def test_every_option_of_index_decides_a_memory_or_is_known_not_to():
    """A new option must be listed here or there: else another value would go unnoticed."""
    parser = dict(commands_of(build_parser()))["streammem index"]
    options = {action.dest for action in parser._actions}
    deciding = [*archiving.DECIDING, *archiving.DECIDING_IF_GIVEN]
    assert len(deciding) == len(set(deciding)) and not NOT_DECIDING & set(deciding)
    assert options == {*deciding, "config", *NOT_DECIDING}


@pytest.mark.parametrize("flag", DECODING_FLAGS, ids=lambda flag: flag.name)
def test_another_way_to_write_captions_makes_another_memory(flag):
    typed = build_parser().parse_args
    plain = archiving.made_with(typed(["index", "films", "--memory", "archive"]))
    other = typed(["index", "films", "--memory", "archive", flag.name, "2"])
    assert archiving.made_with(other) != plain
    assert plain == "c675c10015198e60"  # of archives that were made before


@pytest.mark.heavy
def test_processes_make_what_one_makes_and_one_that_is_killed_is_replaced(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for number, colours in enumerate(["red", "blue", "green", "white"]):
        record(films / f"{number}.mp4", ((colours, 3), ("red", 2 + number)))

    def index(folder, workers, *more):
        command = ["index", films, "--memory", folder, "--workers", workers, "--format", "jsonl"]
        return [sys.executable, "-m", "streammem", *map(str, [*command, *QUICK, *more])]

    serial = subprocess.run(index(tmp_path / "serial", 1), capture_output=True, timeout=300)
    assert serial.returncode == 0, serial.stderr
    with subprocess.Popen(
        index(tmp_path / "parallel", 2), stdout=subprocess.PIPE, text=True
    ) as running:
        first = running.stdout.readline()
        assert json.loads(first)["state"] == "whole"
        workers = subprocess.run(
            ["pgrep", "-P", str(running.pid), "-f", "spawn_main"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(workers[0]), 9)
        running.stdout.read()
        assert running.wait(300) == 0

    def captions(folder):
        with Archive.open(folder) as archive:
            made = {os.path.basename(f.path): f.memory for f in archive.files.values()}
        export = [sys.executable, "-m", "streammem", "memory", "export", "--format", "srt"]
        return {
            name: subprocess.run([*export, folder / memory], capture_output=True).stdout
            for name, memory in sorted(made.items())
        }

    assert captions(tmp_path / "parallel") == captions(tmp_path / "serial")
    if importlib.util.find_spec("ray"):
        command = index(tmp_path / "ray", 2, "--ray", "local")
        on_ray = subprocess.run(command, capture_output=True, timeout=300)
        assert on_ray.returncode == 0, on_ray.stderr
        assert len(events(on_ray.stdout)) == 4  # and no remark of Ray's
        assert captions(tmp_path / "ray") == captions(tmp_path / "serial")
