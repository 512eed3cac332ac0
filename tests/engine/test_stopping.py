"""Stopping does not wait for a source that is silent, while it opens or while it is read."""

import threading
import time

import pytest

from streammem.engine import reader as workers
from streammem.engine.reader import MOST_AHEAD, Reader, open_aside
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import SourceError
from streammem.types import Stats
from streammem.video import VideoSource, open_source
from tests.tiny import film, tiny_model
from tests.video.servers import serving


class Silent(VideoSource):
    """Gives some frames, and the rest once it is told to, however often it is asked to stop."""

    live = True

    def __init__(self, frames, before=3):
        super().__init__("silent")
        self._given, self._before = frames, before
        self.speaks, self.closed = threading.Event(), threading.Event()

    def _frames(self):
        yield from self._given[: self._before]
        assert self.speaks.wait(120)
        yield from self._given[self._before :]

    def close(self):
        self.closed.set()


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_S", 0.05)


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("streammem-")}


def gone(threads):
    for thread in threads:
        thread.join(120)
    return not own_threads()


def test_a_silent_source_is_left_to_end_and_close_itself(hurried):
    source, session = Silent(film(("red", 9))), Session(tiny_model())
    options = WatchOptions(stats_s=1e9, captions=False)
    callbacks = WatchCallbacks(stop=lambda: session.num_frames == 3)
    *_, stats = watch(session, source, options, callbacks=callbacks)
    threads = own_threads()
    assert isinstance(stats, Stats) and stats.captured == stats.frames == 3
    assert threads and not source.closed.is_set()
    source.speaks.set()
    assert gone(threads) and source.closed.is_set()


def test_what_a_source_gives_after_it_was_left_is_neither_captured_nor_dropped(hurried):
    source = Silent(film(("red", 9)))
    reader = Reader(source)
    for _ in zip(range(3), reader.frames(), strict=False):
        pass
    reader.stop()
    source.speaks.set()
    assert gone(own_threads())
    assert (reader.captured, reader.dropped_at_stop) == (3, 0)


def test_frames_that_wait_when_it_is_stopped_are_counted_the_one_without_a_place_too():
    frames = film(("red", MOST_AHEAD + 5))
    reader = Reader(Silent(frames, before=len(frames)))
    while reader.waiting < MOST_AHEAD:
        time.sleep(0.001)
    reader.stop()
    assert reader.captured == reader.dropped_at_stop == MOST_AHEAD + 1
    assert reader.captured_until == frames[MOST_AHEAD].time


def test_a_source_is_asked_to_stop_as_soon_as_nothing_more_is_taken():
    source, asked = Silent(film(("red", 9))), threading.Event()
    source.stop = asked.set
    reader = Reader(source)
    reader.halt()
    assert asked.is_set()
    source.speaks.set()
    reader.stop()


def test_an_opening_that_is_stopped_is_not_waited_for_and_what_it_opens_is_closed():
    source, opens, calls = Silent(()), threading.Event(), []

    def opening():
        assert opens.wait(120)
        return source

    assert open_aside(opening, lambda: bool(calls.append(1)) or len(calls) > 1) is None
    threads = own_threads()
    assert threads
    opens.set()
    assert gone(threads) and source.closed.is_set()


def test_an_opening_gives_its_source_or_its_error_in_the_callers_thread():
    source = Silent(())
    assert open_aside(lambda: source, lambda: False) is source and not source.closed.is_set()

    def fails():
        raise SourceError("camera: is off")

    with pytest.raises(SourceError, match="is off"):
        open_aside(fails, lambda: False)
    assert gone(())


def test_a_camera_over_http_that_falls_silent_does_not_delay_the_end(hurried, tmp_path):
    speaks, session = threading.Event(), Session(tiny_model())

    def pictures():
        yield from [frame.pixels for frame in film(("red", 9))]
        assert speaks.wait(120)

    until = []

    def stop():
        until.append(time.monotonic())
        return session.num_frames >= 5

    with serving(tmp_path, pictures()) as address:
        source = open_source(f"{address}/cam", max_side=640)
        options = WatchOptions(captions=False)
        list(watch(session, source, options, callbacks=WatchCallbacks(stop=stop)))
        assert time.monotonic() - until[-1] < 2
        threads = own_threads()
        speaks.set()
        assert gone(threads)
