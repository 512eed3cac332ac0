"""A live source that is watched again and again into one memory: one timeline."""

import itertools
import json
import os
import signal
from datetime import datetime

import pytest
import torch

from streammem.commands import opening
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.memory.store import Store
from streammem.memory.upkeep import verify
from streammem.types import Alert, Caption, Segment
from streammem.video import VideoSource
from tests.command_line import QUICK, SRT_CUE, events
from tests.sessions import session_of
from tests.tiny import film, tiny_model

NOON = 1_777_809_600.0
URL = "rtsp://camera/1"
SCENES = (("red", 6), ("blue", 6), ("green", 6))  # 9 s


class Camera(VideoSource):
    """A camera that is switched on at a Unix time; its own clock begins at 0."""

    def __init__(self, on_at, scenes=SCENES, live=True, name=URL):
        super().__init__(name)
        self.live, self._on_at, self._scenes = live, on_at, scenes

    def _frames(self):
        self.wall_zero = self._on_at
        for frame in film(*self._scenes):
            yield frame
            self.end = frame.time + frame.duration


def watched(model, path, camera, **options):
    with Session(model, session_of(model).config, path) as session:
        return list(watch(session, camera, WatchOptions(drop="never", **options)))


def test_times_go_on_over_restarts_and_gaps_are_as_long_as_they_were(model, tmp_path):
    starts, ends = [], []
    for on_at in (0.0, 600.0, 86_400.0):
        made = watched(model, tmp_path / "m", Camera(NOON + on_at))
        segments = [e for e in made if isinstance(e, Segment)]
        captions = [e for e in made if isinstance(e, Caption)]
        assert {(e.segment, e.start, e.end) for e in captions} <= {
            (e.id, e.start, e.end) for e in segments
        }
        assert segments[0].start == on_at and segments[-1].end == on_at + 9.0
        starts += [e.start for e in segments]
        ends += [e.end for e in segments]
    assert starts == sorted(set(starts))
    with Session(model, memory=tmp_path / "m", read_only=True) as session:
        rows = session.memory.entries()
        assert [(e.start, e.end) for e in rows] == list(zip(starts, ends, strict=True))
        assert all(e.wall_start - e.start == NOON for e in rows)
        chapters = session.chapters()
        assert [c.start for c in chapters] == sorted(c.start for c in chapters)
        assert all(c.start < c.end for c in chapters)


def test_a_source_that_knows_no_wall_clock_goes_on_where_it_ended(model, tmp_path):
    starts = []
    for _ in range(2):
        made = watched(model, tmp_path / "m", Camera(None))
        starts += [e.start for e in made if isinstance(e, Segment)]
    assert starts == sorted(set(starts)) and 9.0 in starts


def test_a_file_keeps_a_clock_of_its_own(model, tmp_path):
    for name in ("a.mp4", "b.mp4", "a.mp4"):
        made = watched(model, tmp_path / "m", Camera(None, live=False, name=name))
        assert made[0].start == 0.0


def test_alerts_are_timed_as_scenes_are(model, tmp_path):
    watched(model, tmp_path / "m", Camera(NOON))
    made = watched(model, tmp_path / "m", Camera(NOON + 600), alerts=("red",))
    found = [e.time for e in made if isinstance(e, Alert)]
    assert all(600.0 <= time <= 609.0 for time in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_after_kill_9_a_camera_goes_on_behind_what_was_kept(tmp_path):
    path, model = tmp_path / "m", tiny_model()
    with Session(model, session_of(model).config, path):
        pass
    reading, writing = os.pipe()
    engine = os.fork()
    if not engine:
        torch.set_num_threads(1)  # a forked process has no other thread
        scenes = itertools.islice(itertools.cycle(SCENES), 300)
        with Session(model, session_of(model).config, path) as session:
            options = WatchOptions(captions=False, drop="never")
            for _ in watch(session, Camera(NOON, scenes), options):
                os.write(writing, b"!")
        os._exit(1)
    os.close(writing)
    for _ in range(4):
        os.read(reading, 1)
    os.kill(engine, signal.SIGKILL)
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(engine, 0)[1]) == -signal.SIGKILL
    with Store.open(path, None, "r") as store:
        kept = store.load_entries()
    assert len(kept) >= 3
    watched(model, path, Camera(NOON + 1e6))
    with Store.open(path, None, "r") as store:
        assert verify(store) == ()
        entries = store.load_entries()
    new = entries[len(kept) :]
    assert [e.segment for e in entries[: len(kept)]] == [e.segment for e in kept]
    assert new[0].start == 1e6 and new[0].segment == kept[-1].last + 1
    assert all(e.wall_start - e.start == NOON for e in entries)
