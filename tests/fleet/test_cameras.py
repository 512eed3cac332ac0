"""Many cameras in one process: what becomes of one is nothing to the others."""

import threading
import time
from dataclasses import replace
from itertools import count

import pytest

from streammem.errors import ConfigError, SourceError, StoreError
from streammem.fleet import cameras, pool
from streammem.fleet.cameras import (
    STATUS,
    STATUS_LASTS_S,
    Board,
    EndedEarlyError,
    News,
    read_cameras,
    read_status,
    status_text,
    watch_together,
)
from streammem.types import Caption, Notice, Stats

CAPTIONS = [Caption(number, number, number + 1.0, f"scene {number}") for number in range(3)]
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool, "BACK_OFF_S", (0.01, 0.02))


def plays(*events, error=None):
    """A camera that gives events, then fails or ends."""

    def watch(is_stopping):
        for event in events:
            yield event, None
        if error:
            raise error

    return watch


def told(news, name):
    return [each.event or each.state for each in news if each.camera == name]


def test_each_camera_gives_all_its_events_in_order_and_a_failure_is_its_own():
    news = list(
        watch_together(
            {
                "a": plays(*CAPTIONS),
                "wrong": plays(error=ConfigError("no such preset")),
                "cut": plays(CAPTIONS[0], error=EndedEarlyError("broke off")),
                "b": plays(*CAPTIONS),
            },
            lambda: False,
        )
    )
    for name in "ab":
        assert told(news, name) == ["watched", *CAPTIONS, "ended"]
    assert told(news, "cut") == ["watched", CAPTIONS[0], "failed"]
    (wrong,) = [each for each in news if each.camera == "wrong"]
    assert (wrong.state, wrong.reason) == ("failed", "no such preset")


def test_one_that_fails_is_opened_again_until_it_is_told_to_stop():
    tries, num_tried, opened_again = count(), count(), threading.Event()
    errors = SourceError("not there"), StoreError("disk\nfull"), KeyError("ours")

    def door(is_stopping):
        if next(tries) < 4:
            raise errors[next(num_tried) % 3]
        opened_again.set()
        yield CAPTIONS[0], 5.0
        while not is_stopping():
            opened_again.wait(0.01)
        yield CAPTIONS[1], 5.0  # what was open is closed

    news = list(watch_together({"door": door}, opened_again.is_set))
    downs = [(each.reason, each.wait_s) for each in news if each.state == "down"]
    assert downs == [
        ("not there", 0.01), ("disk full", 0.02), ("KeyError: 'ours'", 0.02), ("not there", 0.02)
    ]  # fmt: skip
    assert told(news, "door")[4:] == ["watched", CAPTIONS[0], CAPTIONS[1], "ended"]
    assert [each.wall_zero for each in news if each.event] == [5.0, 5.0]


def test_one_that_was_watched_for_long_is_waited_for_anew(monkeypatch):
    monkeypatch.setattr(cameras, "LIVED_S", 0.0)
    tries = count()

    def door(is_stopping):
        yield CAPTIONS[0], None
        if next(tries) < 3:
            raise OSError("gone")

    news = list(watch_together({"door": door}, lambda: False))
    assert [each.wait_s for each in news if each.state == "down"] == [0.01] * 3


def test_waits_have_a_bound_however_long_a_camera_is_away():
    assert pool.wait_after(1) == 0.01
    assert {pool.wait_after(number) for number in (2, 3, 1025, 10**6)} == {0.02}


def test_a_camera_waits_while_its_events_are_not_taken_and_is_left_with_the_caller():
    given, closed = [], threading.Event()

    def flood(is_stopping):
        try:
            for number in count():
                given.append(number)
                yield CAPTIONS[0], None
        finally:
            closed.set()

    news = watch_together({"flood": flood}, lambda: False)
    next(news)
    while True:
        before = len(given)
        if not closed.wait(0.3) and len(given) == before:
            break
    assert len(given) <= cameras.AHEAD + 2
    news.close()
    assert closed.wait(PATIENCE_S)
    assert not [t for t in threading.enumerate() if t.name == "camera-flood"]


def test_the_board_names_what_failed_and_why():
    board = Board(["a", "b", "c", "d"])
    frames = Stats(9, 2, 3, 0.5, 0.25, captured=10)
    for name in "ab":
        board.take(News(name))
        board.take(News(name, frames))
    assert board.all_well
    board.take(News("a", Stats(19, 2, 3, 0.5, 0.25, captured=20)))
    board.take(News("b", Notice("b: connection lost")))
    assert board.take(News("b", frames))  # no more frames than before: it is down
    board.take(News("c", state="failed", reason="no such preset"))
    board.died(["c", "d"], "SIGKILL")
    assert not board.all_well
    assert board.summary() == [
        "4 cameras: 2 down, 1 failed, 1 watched",
        "b: down: b: connection lost",
        "c: failed: no such preset",
        "d: down: its process died (SIGKILL)",
    ]
    text = board.prometheus()
    for line in (
        'streammem_camera_up{source="a"} 1',
        'streammem_camera_up{source="b"} 0',
        'streammem_camera_failures_total{source="b"} 1',
        'streammem_camera_restarts_total{source="d"} 1',
        'streammem_frames_perceived_total{source="a"} 19',
    ):
        assert line in text.splitlines()
    assert not board.take(News("b", frames))  # it stays down while nothing comes
    assert board.take(News("b", replace(frames, captured=11)))
    assert board.cameras["b"].state == "watched"
    board.take(News("b", state="down", reason="no route"))
    board.take(News("b", replace(frames, captured=11)))  # counters of what is opened begin anew
    assert board.cameras["b"].state == "watched"
    assert board.cameras["b"].num_failures == 2
    board.take(News("d"))
    assert "d: watched: its process died (SIGKILL)" in board.summary()


def test_the_states_of_cameras_are_read_while_they_are_fresh(tmp_path, monkeypatch):
    board = Board(["door", "hall"])
    board.take(News("door", state="down", reason="no route"))
    path = tmp_path / STATUS
    path.write_text(status_text(board.states()))
    assert read_status(path) == {"door": ("down", "no route"), "hall": ("opening", "")}
    written = time.time()
    monkeypatch.setattr("time.time", lambda: written + STATUS_LASTS_S + 1)
    assert read_status(path) == {}
    assert read_status(tmp_path / "none") == {}


def test_options_of_all_cameras_are_filled_in_and_what_is_no_camera_is_refused(tmp_path):
    path = tmp_path / "cameras.toml"
    path.write_text(
        'fps = 1\n[cameras.door]\nsource = "rtsp://a"\n[cameras.hall]\nsource = "b"\nfps = 2\n'
    )
    assert read_cameras(path) == {
        "door": {"source": "rtsp://a", "fps": 1},
        "hall": {"source": "b", "fps": 2},
    }
    for text, message in (
        ("fps = 1", "names no cameras"),
        ("cameras = 3", "names no cameras"),
        ("[cameras.door]\nfps = 1", "has no source"),
        ('[cameras."../door"]\nsource = "a"', "name of its memory's folder"),
        ("[cameras", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_cameras(path)
