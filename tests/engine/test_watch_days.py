"""What only shows in days: a day in minutes, a hundred interrupts, eight cameras at once."""

import itertools
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from benchmarks.rtsp_server import RtspCamera, encode
from streammem.cli import main
from streammem.commands import opening, watching
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.memory.store import Store
from streammem.memory.upkeep import verify
from streammem.types import Caption, Segment, Stats
from streammem.video.live_source import Connection, Feed, LiveSource, Time
from streammem.video.source import Sampling, SourceOptions
from tests.command_line import QUICK, SRT_CUE
from tests.sessions import SHORT
from tests.tiny import film

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc"),
]
DAY_S, HOUR_S, EVERY_S = 86_400, 3600, 8
BUDGET_BYTES, ROTATED_BYTES, ROTATED_FILES = 1 << 20, 1 << 16, 3
GROWN_BYTES = BUDGET_BYTES // 16 + (256 << 10)  # between two prunings; and the database's log


def pictures(length):
    colours = ("red", "blue", "green", "white", "yellow", "black")
    return [frame.pixels for frame in film(*((colour, length) for colour in colours))]


# -- a day --


@dataclass
class Day:
    """A camera of a picture in eight seconds; its stamps wrap and it breaks off every hour."""

    seconds: float = 0.0
    shown: itertools.cycle = field(default_factory=lambda: itertools.cycle(pictures(15)))

    def open(self, stopping):
        decoder = SimpleNamespace(decode=lambda packet: [packet.picture] if packet else [])
        stream = SimpleNamespace(
            index=0,
            time_base=Fraction(1, 90_000), average_rate=None, guessed_rate=None,
            codec_context=decoder, sample_aspect_ratio=None,
        )  # fmt: skip
        container = SimpleNamespace(
            format=SimpleNamespace(name="rtsp"), demux=self.demux, close=lambda: None
        )
        return Connection(container, stream)

    def demux(self, stream):
        for k in range(HOUR_S // EVERY_S):
            picture = av.VideoFrame.from_ndarray(next(self.shown), "rgb24")
            picture.pts = (2**32 - HOUR_S // 2 * 90_000 + k * EVERY_S * 90_000) % 2**32
            yield SimpleNamespace(size=1, is_keyframe=True, stream_index=0, picture=picture)
            self.seconds += EVERY_S
        raise ConnectionResetError(104, "reset")

    def sleep(self, seconds):
        self.seconds += seconds

    def source(self):
        passing = Time(lambda: self.seconds, lambda: 1e9 + self.seconds, self.sleep)
        source = LiveSource(Feed("day", self.open), Sampling(fps=2.0, end=DAY_S), passing)
        source.reconnect = True
        return source


def usage(folder):
    """Return resident bytes, threads, handles, bytes on disk."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return resident, threading.active_count(), len(os.listdir("/proc/self/fd")), disk


def test_a_day_takes_no_more_memory_threads_handles_or_disk_than_an_hour(
    run, monkeypatch, tmp_path
):
    monkeypatch.setattr(opening, "open_with", lambda source, options: Day().source())
    used, stats, number = [], [], itertools.count(1)
    show = watching._Output.show

    def shown(out, event, wall_zero, source):
        show(out, event, wall_zero, source)
        if isinstance(event, Segment) and next(number) % 30 == 0:  # an hour's
            used.append(usage(tmp_path))
        if isinstance(event, Stats):
            stats.append(event)

    monkeypatch.setattr(watching._Output, "show", shown)
    code, _, err = run(
        "watch", "rtsp://day/1", "--memory", tmp_path / "day", "--budget", "1MB", "--drop", "never",
        "-o", tmp_path / "day.jsonl", "--format", "jsonl", "--stats", "1h",
        "--rotate-size", ROTATED_BYTES, "--rotate-keep", ROTATED_FILES, *QUICK,
    )  # fmt: skip
    assert code == 0, err
    last = stats[-1]
    assert last.connections in (24, 25) and last.dropped_full == 0
    assert last.captured == last.frames == pytest.approx(DAY_S / EVERY_S, rel=0.01)
    assert len(used) >= 18  # some scenes follow others that look like them
    half = len(used) // 2
    resident, threads, handles, disk = zip(*used, strict=True)
    assert max(resident[half:]) - min(resident[:half]) < 16 << 20
    assert max(threads) == threads[0] and max(handles[half:]) <= max(handles[:half])
    assert len(list(tmp_path.glob("day-*.jsonl"))) <= ROTATED_FILES
    assert max(disk) < BUDGET_BYTES + GROWN_BYTES + (ROTATED_FILES + 1) * ROTATED_BYTES
    lines = [json.loads(line) for line in (tmp_path / "day.jsonl").open()]
    starts = [line["start"] for line in lines if line["type"] == "caption"]
    assert starts == sorted(starts) and starts[-1] > DAY_S - HOUR_S


# -- interrupts --


def interrupted(arguments, wait):
    """Run a command in a process of its own, `wait`, press Ctrl-C; return its exit code."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            os.write(tell, b"!")
            code = main([str(argument) for argument in arguments])
        except KeyboardInterrupt:  # before the command had begun
            code = 130
        finally:
            os._exit(code)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    wait()
    os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_whole(path):
    text = path.read_text() if path.exists() else ""
    if path.suffix == ".jsonl":
        return all(json.loads(line) for line in text.splitlines()) and text[-1:] in ("", "\n")
    return not SRT_CUE.sub("", text).strip()


def is_said(path):
    return path.exists() and path.stat().st_size > 0


def until_said(path):
    until = time.monotonic() + 240
    while not is_said(path) and time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="interrupts a forked process")
def test_ctrl_c_at_any_of_a_hundred_moments_leaves_what_is_valid(tiny, model, tmp_path):
    rng = random.Random(0)
    said = 0
    usual_s = 0.0  # a first caption takes so long, on this machine
    with RtspCamera(encode(pictures(25)), speed=20.0) as camera:
        for number in range(100):
            form = rng.choice(("srt", "jsonl"))
            path, memory = tmp_path / f"{number}.{form}", tmp_path / f"{number}.mem"
            arguments = ("watch", camera.url, "--format", form, "-o", path, "--memory", memory)
            began = time.monotonic()
            wait = partial(time.sleep, rng.uniform(0.0, 2 * usual_s))
            wait = wait if usual_s else partial(until_said, path)
            assert interrupted((*arguments, *QUICK), wait) == 130, number
            usual_s = usual_s or time.monotonic() - began
            assert is_whole(path), path.read_text()
            said += is_said(path)
            if (memory / "memory.json").exists():
                with Store.open(memory, model.fingerprint, "r") as store:
                    assert verify(store) == ()
    assert said > 20  # of the moments, many fell into captions


# -- eight cameras --


def test_eight_cameras_at_once_lose_no_frame_and_count_each(model):
    units = encode(pictures(10), fps=1.0)

    def watched(camera):
        session = Session(model, SessionConfig(caption=SHORT))
        options = {
            "source_options": SourceOptions(fps=1.0),
            "callbacks": WatchCallbacks(stop=lambda: session.num_frames > 20),
        }
        return session, list(watch(session, camera.url, WatchOptions(stats_s=1e9), **options))

    cameras = [RtspCamera(units, speed=4.0) for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(watched, cameras))
    finally:
        for camera in cameras:
            camera.close()
    for session, events in results:
        last = events[-1]
        segments = sum(isinstance(e, Segment) for e in events)
        captions = sum(isinstance(e, Caption) for e in events)
        assert last.dropped_full == 0 and last.frames == session.num_frames > 20
        assert last.captured == last.frames + last.waiting + last.dropped_at_stop
        assert (last.segments, last.captions) == (segments, captions)
        assert captions + last.captions_skipped == segments
