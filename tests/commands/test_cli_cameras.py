"""`watch --sources`: many cameras, a memory each; what fails is named."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from itertools import pairwise

import pytest

from benchmarks.cheap import command
from benchmarks.rtsp_server import RtspCamera, encode
from streammem.cli import build_parser
from streammem.commands.cameras import _address, _cameras
from streammem.errors import ConfigError
from streammem.fleet import cameras, pool
from streammem.fleet.metrics import serve_metrics, written
from tests.command_line import QUICK, events, record
from tests.disks import small_disk
from tests.fleet.workers import InThisProcess
from tests.tiny import film

PATIENCE_S = 400


@pytest.fixture
def house(tmp_path):
    """A list of two films and what is none, which are watched as cameras are."""
    record(tmp_path / "one.mp4")
    record(tmp_path / "two.mp4", (("white", 2), ("green", 2)))
    (tmp_path / "none.mp4").write_bytes(b"no video")
    path = tmp_path / "cameras.toml"
    path.write_text(
        f'alert = ["a dog"]\n[cameras.hall]\nsource = "{tmp_path}/one.mp4"\n'
        f'[cameras.door]\nsource = "{tmp_path}/two.mp4"\nfps = 1\nalert = ["a cat", "a parcel"]\n'
        f'[cameras.down]\nsource = "{tmp_path}/none.mp4"\n'
    )
    return path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pool, "Pool", InThisProcess)
    monkeypatch.setattr(pool, "BACK_OFF_S", (0.01, 0.02))


def captions(run, source, *options):
    _, out, _ = run("caption", source, *QUICK, *options, "--format", "jsonl")
    return [(row["start"], row["end"], row["text"]) for row in events(out)]


def kept(run, memory):
    _, out, _ = run("memory", "export", memory, "--format", "jsonl")
    return [(row["start"], row["end"], row["text"]) for row in events(out) if "text" in row]


def test_each_camera_has_its_memory_and_what_failed_is_named(
    run, house, tmp_path, quick, monkeypatch
):
    written = []
    monkeypatch.setattr(cameras, "status_text", lambda states: str(written.append(states)))
    metrics = tmp_path / "metrics.prom"
    words = ("watch", "--sources", house, "--memory", tmp_path / "house", *QUICK)
    # Nothing is opened for ever: each failure of this source is one that waiting does not mend.
    code, out, err = run(*words, "--format", "jsonl", "--metrics", metrics)
    shown = events(out)
    assert code == 1
    assert {row["camera"] for row in shown} == {"hall", "door"}
    alone = captions(run, tmp_path / "one.mp4")
    told = [row for row in shown if row["type"] == "caption" and row["camera"] == "hall"]
    assert [(row["start"], row["end"], row["text"]) for row in told] == alone
    assert kept(run, tmp_path / "house" / "hall") == alone
    own = captions(run, tmp_path / "two.mp4", "--fps", "1")
    assert kept(run, tmp_path / "house" / "door") == own
    assert own != captions(run, tmp_path / "two.mp4")
    assert "3 cameras: 2 ended, 1 failed" in err
    # Servers are told the states, until nothing is watched any more.
    assert {name: state for name, (state, _) in written[-1].items()} == {
        "hall": "ended", "door": "ended", "down": "failed",
    }  # fmt: skip
    assert "none.mp4" in written[-1]["down"][1]
    assert not (tmp_path / "house" / cameras.STATUS).exists()
    assert "down: failed: " in err and "none.mp4" in err
    for line in ('up{source="down"} 0', 'restarts_total{source="hall"} 1'):
        assert f"streammem_camera_{line}" in metrics.read_text().splitlines()
    code, out, _ = run(*words)
    assert code == 1 and any(line.startswith("hall [00:") for line in out.splitlines())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("fps = -1", "[cameras.a]: "),
        ('fps = "many"', "[cameras.a]: argument --fps"),
        ('model = "tiny"', "model is no option of one camera"),
        ('colour = "red"', "colour is no option of one camera"),
        ('source = "-"', "[cameras.a]"),
        ('memory = "house/b"', "two cameras have one memory"),
    ],
)
def test_a_wrong_table_is_named_before_anything_is_opened(
    run, tmp_path, monkeypatch, table, message
):
    monkeypatch.chdir(tmp_path)
    own = table if table.startswith("source") else f'source = "rtsp://127.0.0.1:9/x"\n{table}'
    path = tmp_path / "cameras.toml"
    path.write_text(f'[cameras.a]\n{own}\n[cameras.b]\nsource = "rtsp://127.0.0.1:9/y"\n')
    code, _, err = run("watch", "--sources", path, "--memory", "house")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "house").exists()


def test_what_a_camera_states_takes_the_place_of_what_was_typed(house, tmp_path):
    words = ["watch", "--sources", str(house), "--memory", str(tmp_path / "m"), "--alert", "a bear"]
    found = _cameras(build_parser().parse_args([*words, "--fps", "3"]))
    assert {name: (each["alert"], each["fps"]) for name, each in found.items()} == {
        "hall": (["a dog"], 3.0),
        "door": (["a cat", "a parcel"], 1.0),
        "down": (["a dog"], 3.0),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("rtsp://a", "--workers", "2"),
        ("rtsp://a", "--sources", "x.toml"),
        ("--sources", "nowhere.toml", "--memory", "m"),
        ("--sources", "HOUSE"),
        ("--sources", "HOUSE", "--memory", "m", "--format", "srt"),
        ("--sources", "HOUSE", "--memory", "m", "-o", "x.txt"),
        ("--sources", "HOUSE", "--memory", "m", "--workers", "0"),
        ("--sources", "HOUSE", "--memory", "m", "--metrics-port", "here"),
        ("--sources", "HOUSE", "--memory", "m", "--worker-memory", "2GB"),
        ("--sources", "HOUSE", "--memory", "m", "--device", "cuda:77"),
        ("--sources", "HOUSE", "--memory", "m", "--ray", "local", "--device", "cuda:1"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(run, house, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("watch", *(house if each == "HOUSE" else each for each in wrong))
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_metrics_are_served_and_nothing_else(host):
    if ":" in host:
        skip_without_ipv6()
    with serve_metrics(host, 0, lambda: "up 1\n") as port:
        url = f"http://{written(host)}:{port}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            assert reply.read() == b"up 1\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=10)


def skip_without_ipv6():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")


def test_an_address_of_counters_may_be_one_of_ipv6():
    assert _address("[::1]:9400") == ("::1", 9400)
    assert _address("9400") == ("127.0.0.1", 9400)
    with (
        pytest.raises(ConfigError, match=r"--metrics-port \[::2\]:1: cannot be listened on"),
        serve_metrics("::2", 1, str),
    ):
        pass


# -- processes --


def start(*arguments, stderr):
    words = command(*arguments, cheap=True)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.mark.heavy
@pytest.mark.parametrize("ray", [(), ("--ray", "local")], ids=["processes", "ray"])
def test_a_process_that_is_killed_is_started_again_and_its_cameras_go_on_from_their_memories(
    tmp_path, ray
):
    if ray:
        pytest.importorskip("ray", reason="ray is not installed: pip install streammem[ray]")
    pictures = [frame.pixels for frame in film(("red", 50), ("blue", 50), ("green", 50))]
    units = encode(pictures)
    with RtspCamera(units, speed=4.0) as first, RtspCamera(units, speed=4.0) as second:
        path, house = tmp_path / "cameras.toml", tmp_path / "house"
        path.write_text(
            f'[cameras.hall]\nsource = "{first.url}"\n[cameras.door]\nsource = "{second.url}"\n'
            '[cameras.down]\nsource = "rtsp://127.0.0.1:9/x"\n'
        )
        # Scenes end, and have rows of their own, whatever they show.
        short = ("--set", "scenes.max_frames=24", "--set", "epsilon=0")
        more = ("--format", "jsonl", "--metrics", tmp_path / "m.prom", *short, *QUICK, *ray)
        words = ("watch", "--sources", path, "--memory", house, "--workers", "2", *more)
        with (tmp_path / "err").open("w") as err, start(*words, stderr=err) as running:
            timer = threading.Timer(PATIENCE_S, running.kill)
            timer.start()
            captions = map(caption_of, running.stdout)
            wait_for(captions, {"hall", "door"})
            lock = house / "hall" / "writer.lock"
            killed = lock.read_text().split()[1]
            os.kill(int(killed), signal.SIGKILL)
            while lock.read_text().split()[1] == killed:  # until it is written again
                next(captions)
            wait_for(captions, {"hall"})
            running.send_signal(signal.SIGTERM)
            running.communicate()
            timer.cancel()
    told = (tmp_path / "err").read_text()
    assert running.returncode == 1, told  # one is down
    assert "the process of hall, down died" in told
    assert "3 cameras: 1 down, 2 ended" in told and "down: down" in told
    assert 'streammem_camera_restarts_total{source="hall"} 1' in (tmp_path / "m.prom").read_text()
    for name in ("hall", "door"):
        spans = kept_by(house / name)
        assert len(spans) >= 2
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.heavy
def test_a_camera_whose_disk_was_full_goes_on_from_its_memory_when_there_is_room(tmp_path):
    pictures = [frame.pixels for frame in film(("red", 50), ("blue", 50), ("green", 50))]
    house, filler = tmp_path / "house", tmp_path / "house" / "hall" / "filler"
    with (
        RtspCamera(encode(pictures), speed=4.0) as camera,
        small_disk(house / "hall", 2 << 20),
        (tmp_path / "err").open("w+") as err,
    ):
        path = tmp_path / "cameras.toml"
        path.write_text(
            f'[cameras.hall]\nsource = "{camera.url}"\n[cameras.door]\nsource = "{camera.url}"\n'
        )
        short = ("--set", "scenes.max_frames=24", "--set", "epsilon=0")
        more = ("--format", "jsonl", "--workers", "1", *short, *QUICK)
        with start("watch", "--sources", path, "--memory", house, *more, stderr=err) as running:
            timer = threading.Timer(PATIENCE_S, running.kill)
            timer.start()
            captions = map(caption_of, running.stdout)
            wait_for(captions, {"hall", "door"})
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            while "hall: down" not in (tmp_path / "err").read_text():
                wait_for(captions, {"door"})  # which goes on
            filler.unlink()
            wait_for(captions, {"hall"})
            wait_for(captions, {"hall"})
            running.send_signal(signal.SIGTERM)
            running.communicate()
            timer.cancel()
        told = (tmp_path / "err").read_text()
        rows = kept_by(house / "hall")
    assert running.returncode == 0, told
    assert "2 cameras: 2 ended" in told
    why = told.splitlines()[-1]
    assert why.startswith("hall: ended") and str(house / "hall") in why and "free space" in why
    assert len(rows) >= 3 and all(first[1] <= second[0] for first, second in pairwise(rows))


def kept_by(memory):
    export = [sys.executable, "-m", "streammem", "memory", "export", "--format", "jsonl", memory]
    rows = events(subprocess.run(export, capture_output=True, text=True).stdout)
    return [(row["start"], row["end"]) for row in rows if row["type"] == "segment"]


def caption_of(line):
    row = json.loads(line)
    return row["camera"] if row["type"] == "caption" else None


def wait_for(captions, names):
    seen = set()
    while not names <= seen:
        seen.add(next(captions))
