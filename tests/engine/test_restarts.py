"""A live source that is watched again and again into one memory: one timeline."""

import itertools
import os
import signal
from datetime import datetime
from functools import partial

import pytest
import torch

from benchmarks.rtsp_server import RtspCamera, encode
from streammem.commands import opening
from streammem.engine.alerts import Alerts
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.memory.store import Store
from streammem.memory.upkeep import verify
from streammem.types import Caption, Segment
from streammem.video import SourceOptions, VideoSource
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


@pytest.mark.heavy
def test_a_camera_over_rtsp_goes_on_by_the_wall_clock(model, tmp_path):
    pictures = [frame.pixels for frame in film(("red", 20), ("blue", 20), ("green", 20))]
    with RtspCamera(encode(pictures)) as camera:
        for _ in range(3):
            with Session(model, session_of(model).config, tmp_path / "m") as session:
                before = session.memory.entries()
                options = {
                    "source_options": SourceOptions(fps=8.0),
                    "callbacks": WatchCallbacks(stop=lambda s=session: s.num_frames > 20),
                }
                made = list(watch(session, camera.url, WatchOptions(captions=False), **options))
                assert min(e.start for e in made) >= max((e.end for e in before), default=0.0)
    with Store.open(tmp_path / "m", None, "r") as store:
        rows = store.load_entries()
    zeros = [row.wall_start - row.start for row in rows]
    assert len(rows) >= 3 and max(zeros) - min(zeros) < 0.5  # seconds; one wall clock for all
    assert all(left.end <= right.start for left, right in itertools.pairwise(rows))


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


def test_alerts_are_timed_as_scenes_are(model, tmp_path, monkeypatch):
    seen = []
    take = Alerts.take
    monkeypatch.setattr(Alerts, "take", lambda *a: seen.append(a[1].time) or take(*a))
    for on_at in (0.0, 600.0):
        watched(model, tmp_path / "m", Camera(NOON + on_at), alerts=("red",))
    assert seen == [on_at + number / 2 for on_at in (0.0, 600.0) for number in range(18)]


def at(unix_s):
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(timespec="milliseconds")


@pytest.fixture
def camera(run, monkeypatch, tmp_path):
    """Three runs of a camera into one memory by the command line; gives it and their output."""
    texts = []
    for on_at in (0.0, 600.0, 900.0):
        source = partial(Camera, NOON + on_at)
        monkeypatch.setattr(opening, "open_with", lambda spec, options, source=source: source())
        made = run(
            "watch", URL, "--memory", tmp_path / "door", "--drop", "never",
            "--min-confidence", "0", "--format", "jsonl", *QUICK,
        )  # fmt: skip
        assert made[0] == 0, made[2]
        texts += events(made[1])
    return tmp_path / "door", texts


def test_what_is_exported_is_what_was_emitted_in_one_time(run, camera):
    memory, emitted = camera
    out = run("memory", "export", memory, "--format", "jsonl")[1]
    captions = [event for event in events(out) if event["type"] == "caption"]
    times = [(c["segment"], c["start"], c["end"], c["wall_start"]) for c in captions]
    assert times == [(c["segment"], c["start"], c["end"], c["wall_start"]) for c in emitted]
    assert len({segment for segment, *_ in times}) == len(times) >= 6
    assert all(start == at(NOON + begin) for _, begin, _, start in times)
    assert [begin for _, begin, *_ in times] == sorted({begin for _, begin, *_ in times})
    cues = SRT_CUE.findall(run("memory", "export", memory, "--format", "srt")[1])
    spans = [span for _, start, end, _ in cues for span in (start, end)]
    assert len(cues) == len(times) and spans == sorted(spans) and spans[-1] == "00:15:09,000"
    text = run("memory", "export", memory, "--format", "text")[1]
    shown = datetime.fromtimestamp(NOON + 600).astimezone().isoformat(" ", "seconds")
    assert f"[10:00.0-10:03.0] ({shown}) scene " in text


def test_a_span_of_the_wall_clock_is_asked_about_alone(run, camera):
    memory, _ = camera
    between = ("--between", at(NOON + 590), at(NOON + 620))
    shown = datetime.fromtimestamp(NOON + 600).astimezone().isoformat(" ", "seconds")
    found = events(run("find", memory, "red", *between, "--count", "50", "--format", "jsonl")[1])
    assert found and all(600 <= moment["start"] < 609 for moment in found)
    assert all(moment["wall_start"] == at(NOON + moment["start"]) for moment in found)
    chapters = events(run("summary", memory, *between, "--format", "jsonl")[1])
    assert chapters[0]["start"] == 600.0 and chapters[-1]["end"] == 609.0
    assert chapters[0]["wall_start"] == at(NOON + 600)
    (answer,) = events(run("ask", memory, "What is red?", *between, "--format", "jsonl", *QUICK)[1])
    assert answer["evidence"]
    assert all(item["wall_start"] == at(NOON + item["start"]) for item in answer["evidence"])
    assert all(600 <= item["start"] < 609 for item in answer["evidence"])
    for command in (("find", memory, "red"), ("summary", memory)):
        assert f"({shown})" in run(*command, *between)[1]


@pytest.mark.parametrize("short", [True, False])
def test_forgetting_by_the_wall_clock_takes_that_span_alone(run, camera, short):
    memory, _ = camera
    begin = datetime.fromtimestamp(NOON + 540)
    end = datetime.fromtimestamp(NOON + 660)
    until = end.strftime("%H:%M") if short else end.isoformat()
    asked = ("memory", "forget", memory, "--between", begin.strftime("%Y-%m-%dT%H:%M"), until)
    with Store.open(memory, None, "r") as store:
        before = {e.segment: e.start for e in store.load_entries()}
    gone = {segment for segment, start in before.items() if 600 <= start < 609}
    code, out, err = run(*asked)
    shown = datetime.fromtimestamp(NOON + 600).astimezone().isoformat(" ", "seconds")
    assert code == 0 and "--yes" in err
    assert out == f"10:00.0-10:09.0 ({shown}) {len(gone)} segments {URL}\n"
    for more in ((), ("--yes",)):
        with Store.open(memory, None, "r") as store:
            assert {e.segment: e.start for e in store.load_entries()} == before
        assert run(*asked, *more)[1] == out
    with Store.open(memory, None, "r") as store:
        left = {e.segment: e.start for e in store.load_entries()}
        assert left == {segment: before[segment] for segment in set(before) - gone}
        assert verify(store) == ()


@pytest.mark.parametrize("action", ["forget --between 0 99 --yes", "prune --keep 0s"])
def test_no_scene_takes_the_name_of_one_that_is_gone(run, model, tmp_path, action):
    path = tmp_path / "m"
    first = watched(model, path, Camera(NOON))
    name, *options = action.split()
    assert run("memory", name, path, *options)[0] == 0
    second = watched(model, path, Camera(NOON + 600))
    ids = [e.id for e in (*first, *second) if isinstance(e, Segment)]
    assert len(ids) == len(set(ids)) >= 4 and ids == sorted(ids)


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
