"""Live sources whose stamps wrap, whose codec changes, and whose pictures come rarely."""

import itertools
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import av
import pytest

from benchmarks.rtsp_server import RtspCamera, encode
from streammem.video import cameras, open_source
from streammem.video.cameras import open_rtsp
from streammem.video.container import choose_stream
from streammem.video.live_source import STALL_S, Connection, Feed, LiveSource, Time
from streammem.video.source import Sampling
from tests.tiny import moving_square
from tests.video.servers import retried, write_stream

RED = [moving_square("red", k, 64, 48) for k in range(40)]
BLUE = [moving_square("blue", k, 64, 48) for k in range(60)]
TS_WRAP_S = 2**33 / 90_000


def connected(path, options, stopping):
    container = av.open(str(path), options=dict(options))
    return Connection(container, choose_stream(container, "a camera"))


# FFmpeg itself corrects the first wrap it meets; a stream's later ones come as they are.
@pytest.mark.parametrize("corrected", ["1", "0"])
def test_mpeg_ts_whose_33_bits_wrap_goes_on(tmp_path, corrected):
    starts_at = {"output_ts_offset": str(TS_WRAP_S - 10)}
    stamps = [*range(38), *range(44, 66)]  # the wrap, at 40, falls into a gap, which stays
    path = write_stream(tmp_path / "a.ts", BLUE, fps=4, gop=5, stamps=stamps, **starts_at)
    opening = partial(connected, path, {"correct_ts_overflow": corrected})
    times = [frame.time for frame in LiveSource(Feed("a camera", opening), Sampling())]
    assert times == pytest.approx([k / 4 for k in stamps], abs=1e-9)


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video"])
@pytest.mark.parametrize("writers", [1, 2])
def test_a_stream_that_changes_its_codec_is_got_back(tmp_path, codec, writers):
    clips = [
        write_stream(tmp_path / "a.ts", RED, gop=5).read_bytes(),
        write_stream(tmp_path / "b.ts", BLUE * 4, gop=5, codec=codec).read_bytes(),
    ]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    enough = threading.Event()

    def write():
        parts = itertools.chain([clips[0]], itertools.repeat(clips[1]))
        while not enough.is_set():
            with suppress(BrokenPipeError), fifo.open("wb") as out:  # it is opened again
                for part in itertools.islice(parts, 1 if writers == 2 else None):
                    out.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    source = open_source(fifo, reconnect=True)
    source._passing = Time(sleep=lambda seconds: None)
    colours, times = [], []
    for frame in source:
        colours.append("red" if frame.pixels[0, 0, 0] > 120 else "blue")
        times.append(frame.time)
        if colours.count("blue") == 100:
            break
    enough.set()
    source.close()
    while writer.is_alive():  # it may wait for a reader
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        writer.join(0.01)
    assert [colour for colour, _ in itertools.groupby(colours)] == ["red", "blue"]
    assert colours.count("red") >= len(RED) - 1 and times == sorted(times)
    assert source.num_connections >= 2


@retried
def test_a_camera_of_one_frame_in_ten_seconds_keeps_its_times(monkeypatch):
    monkeypatch.setattr("streammem.video.cameras.POLL_S", 0.15)
    monkeypatch.setitem(cameras._RTSP, "probesize", "500")  # these pictures are small
    units = [replace(unit, time=10.0 * k) for k, unit in enumerate(encode(RED[:10]))]
    assert STALL_S > 10.0
    passing = [0.0]
    with RtspCamera(units, loop=False) as camera:
        received = threading.Semaphore(0)

        def wait(began, shown):
            """Let ten seconds pass while the source times out, once it has the frame before."""
            if shown > 30.0:
                assert received.acquire(timeout=10)
            # By the clock, not by turns: turns grow with load, to just when a read gives up.
            begun, clock = passing[0], time.monotonic()
            while passing[0] < shown and not camera._closed.wait(0.005):
                passing[0] = min(shown, begun + 50.0 * (time.monotonic() - clock))

        camera._wait = wait
        source = open_rtsp(camera.url, Sampling())
        source._passing = Time(now=lambda: passing[0], wall=lambda: 1e9 + passing[0])
        frames = []
        for frame in source:
            frames.append(frame)
            received.release()
    times = [frame.time for frame in frames]
    assert len(times) == 10 and not source.notices and source.num_connections == 1
    assert times[0] == 0.0
    # The first are there when it opens; the last comes with the connection's end.
    late = [b - a for a, b in itertools.pairwise(times[4:-1])]
    assert late == pytest.approx([10.0] * len(late), abs=1.0)


def test_the_wall_clock_of_a_camera_whose_clock_drifts_is_corrected(tmp_path):
    path = write_stream(tmp_path / "a.ts", RED, fps=1, gop=5)
    arrived = itertools.count(step=2.0)
    feed = Feed("a camera", partial(connected, path, {}))
    source = LiveSource(feed, Sampling(), Time(wall=lambda: 1e9 + next(arrived)))
    zeros = [source.wall_zero for _ in source]
    assert len(zeros) == 40 and zeros[:2] == [1e9] * 2  # a second apart is near enough
    steps = [b - a for a, b in itertools.pairwise(zeros[1:])]
    assert steps == pytest.approx([0.01] * len(steps), abs=1e-6)
