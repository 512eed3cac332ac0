import gc
import itertools
import threading
import time

import numpy as np
import pytest

from streammem.captioning.scheduler import LanguageScheduler
from streammem.engine.reader import MOST_AHEAD, Reader, frames_ahead
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.types import Caption, Frame, Notice, Segment
from streammem.video import SourceOptions, VideoSource
from tests.tiny import film, moving_square, talkative_language, tiny_model

FILM = (("red", 5), ("blue", 6), ("green", 7), ("white", 5))


class Source(VideoSource):
    """A source of given frames that breaks off with an error, if there is one."""

    def __init__(self, frames, error=None, end=None):
        super().__init__("camera")
        self._given, self._error, self.end = frames, error, end
        self.num_given, self.closed_in = 0, None

    def _frames(self):
        for frame in self._given:
            self.num_given += 1
            yield frame
        if self._error:
            raise self._error

    def close(self):
        self.closed_in = threading.current_thread().name


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert own_threads() == []


def own_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("streammem-")]


def endless():
    colours = itertools.cycle(["red"] * 5 + ["blue"] * 5)
    for number, colour in enumerate(colours):
        yield Frame(moving_square(colour, number), number / 2, 0.5, number)


class Broken:
    """A language model that fails after some words."""

    def __init__(self, words):
        self._language, self._words = talkative_language(), words

    def __getattr__(self, name):
        return getattr(self._language, name)

    def replies(self, prompts, config, count=1):
        for step in self._language.replies(prompts, config, count):
            if self._words == 0:
                raise RuntimeError("out of memory")
            self._words -= 1
            yield step


# -- events --


def test_each_segment_is_followed_by_its_caption_in_order(model):
    events = list(watch(Session(model), film(*FILM)))
    segments = [e for e in events if isinstance(e, Segment)]
    captions = [e for e in events if isinstance(e, Caption)]
    assert len(events) == len(segments) + len(captions) and len(segments) == len(FILM)
    assert [s.id for s in segments] == [c.segment for c in captions] == list(range(len(FILM)))
    for segment, caption in zip(segments, captions, strict=True):
        assert events.index(segment) < events.index(caption)
        assert (caption.start, caption.end) == (segment.start, segment.end)
        assert caption.text


def test_pieces_joined_are_the_caption(model):
    pieces = {}

    def on_text(segment, piece):
        assert threading.current_thread().name == "streammem-language"
        pieces[segment.id] = pieces.get(segment.id, "") + piece

    events = watch(Session(model), film(*FILM), callbacks=WatchCallbacks(on_text=on_text))
    captions = [e for e in events if isinstance(e, Caption)]
    assert {c.segment: c.text for c in captions} == {k: v.strip() for k, v in pieces.items()}


def test_without_speech_there_are_segments_only(model):
    events = list(watch(Session(model), film(*FILM), WatchOptions(captions=False)))
    assert len(events) == len(FILM) and all(isinstance(e, Segment) for e in events)


def test_on_return_the_session_holds_the_whole_stream(model):
    session = Session(model)
    events = list(watch(session, Source(film(*FILM), end=12.0)))
    assert session.source == "camera"
    assert session.num_frames == 23 and session.open_frames == ()
    assert events[-2].end == 12.0 or events[-1].end == 12.0  # the source knows its end
    kept = {e.segment: e.caption for e in session.memory.entries()}
    assert kept == {e.segment: e.text for e in events if isinstance(e, Caption)}


def test_an_empty_source_has_no_events(model):
    assert list(watch(Session(model), Source([]))) == []


def test_frames_are_read_only_a_little_ahead(model):
    session, source = Session(model), Source(endless())
    events = watch(session, source)
    for _ in range(4):
        next(events)
        # The queue, the frame that waits for room in it, and the one at hand.
        assert source.num_given - session.num_frames <= MOST_AHEAD + 2
    events.close()


def test_decoding_runs_ahead_of_perception_as_far_as_that(model):
    reader = Reader(Source(endless()))
    until = time.monotonic() + 60
    while reader.waiting < MOST_AHEAD and time.monotonic() < until:
        time.sleep(0.001)
    assert reader.waiting == MOST_AHEAD
    reader.stop()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(2160, 3840, 8), (1080, 1920, 8), (360, 640, 48), (720, 1280, 12)],
)
def test_frames_that_wait_are_few_or_small(height, width, expected):
    pixels = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
    assert frames_ahead(Frame(pixels, 0.0, 1.0, 0)) == expected


def test_waiting_frames_are_taken_and_the_end_is_left():
    reader = Reader(Source(film(("red", 3))))
    reader._thread.join(60)
    assert [reader.waiting_frame().index for _ in range(3)] == [0, 1, 2]
    assert reader.waiting_frame() is reader.waiting_frame() is None
    assert list(reader.frames()) == []


# -- law 8: errors reach the caller, and threads end --


def test_an_error_in_the_reader_reaches_the_caller(model):
    source = Source(film(*FILM), RuntimeError("the decoder crashed"))
    with pytest.raises(RuntimeError, match="the decoder crashed") as error:
        list(watch(Session(model), source))
    assert any(entry.name == "_frames" for entry in error.traceback)  # with its own traceback
    assert own_threads() == []
    assert source.closed_in == "streammem-reader"


@pytest.mark.parametrize("words", [0, 3, 10])
def test_an_error_in_the_language_model_reaches_the_caller(words):
    model = tiny_model(open_language=lambda: Broken(words))
    source = Source(endless())
    with pytest.raises(RuntimeError, match="out of memory"):
        list(watch(Session(model), source))
    assert own_threads() == []
    assert source.closed_in == "streammem-reader"


def test_an_error_of_the_listener_reaches_the_caller(model):
    def on_text(segment, piece):
        raise BrokenPipeError("the reader has left")

    with pytest.raises(BrokenPipeError, match="has left"):
        list(watch(Session(model), Source(endless()), callbacks=WatchCallbacks(on_text=on_text)))
    assert own_threads() == []


def test_an_error_in_perception_ends_the_threads(model):
    source = Source([*film(("red", 3)), *film(("red", 1))])  # time runs backward
    with pytest.raises(ValueError, match="the stream is at"):
        list(watch(Session(model), source))
    assert own_threads() == []
    assert source.closed_in == "streammem-reader"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_consumer_that_breaks_off_leaves_no_thread(model, count):
    source = Source(endless())
    events = watch(Session(model), source)
    for _ in itertools.islice(events, count):
        pass
    events.close()
    assert own_threads() == []
    assert source.closed_in == "streammem-reader"


def test_a_consumer_that_forgets_its_iterator_leaves_no_thread(model):
    events = watch(Session(model), Source(endless()))
    next(events)
    assert "streammem-reader" in own_threads()
    del events
    gc.collect()
    assert own_threads() == []


def test_a_consumer_that_never_iterates_starts_no_thread(model):
    events = watch(Session(model), Source(endless()))
    assert own_threads() == []
    events.close()


@pytest.mark.parametrize("thread", [Reader, LanguageScheduler])
def test_a_thread_that_dies_without_a_word_is_not_waited_for(model, monkeypatch, thread):
    monkeypatch.setattr(thread, "_run", lambda self: None)
    with pytest.raises(RuntimeError, match="died without an error"):
        list(watch(Session(model), Source(film(*FILM))))


def test_what_a_thread_gave_before_it_died_is_taken(model, monkeypatch):
    def run(self):
        for frame in film(*FILM):
            self._queue.put(frame)
        self._queue.put(None)

    monkeypatch.setattr(Reader, "_run", run)
    monkeypatch.setattr("streammem.engine.reader.FRAMES_AHEAD", 99)
    options = WatchOptions(captions=False)
    assert len(list(watch(Session(model), Source([]), options))) == len(FILM)


# -- sources that fail --


def test_a_truncated_source_gives_what_it_had_and_then_a_warning(model):
    whole = list(watch(Session(model), film(*FILM)))
    broken = Source(film(*FILM), TruncatedError("a.mp4: ends early"))
    *events, last = watch(Session(model), broken)
    assert last == Notice("a.mp4: ends early")
    # Which caption is ready before which segment depends on the threads.
    assert sorted(events, key=repr) == sorted(whole, key=repr)


def test_another_failure_of_a_source_is_raised_after_what_it_had(model):
    source = Source(film(*FILM), SourceError("camera: connection lost"))
    seen = []
    with pytest.raises(SourceError, match="connection lost"):
        for event in watch(Session(model), source):
            seen.append(event)
    assert len(seen) == 2 * len(FILM)


@pytest.mark.parametrize(
    ("source", "error"),
    [("nowhere.mp4", SourceError), (5, ConfigError), ("gopher://x/y", ConfigError)],
)
def test_a_source_that_cannot_be_opened_is_told_at_the_call(model, tmp_path, source, error):
    with pytest.raises(error):
        watch(Session(model), source)


@pytest.mark.parametrize("options", [{"fps": 0.0}, {"fps": -1.0}, {"start": -1.0}, {"end": 0.0}])
def test_options_that_cannot_be_meant_are_told_at_the_call(model, options):
    with pytest.raises(ConfigError):
        watch(Session(model), film(*FILM), source_options=SourceOptions(**options))


# -- stopping --


def test_stopping_closes_the_open_segment_and_says_it(model):
    session = Session(model)
    source = Source(endless(), end=10_000.0)
    callbacks = WatchCallbacks(stop=lambda: session.num_frames >= 23)
    events = list(watch(session, source, callbacks=callbacks))
    segments = [e for e in events if isinstance(e, Segment)]
    captions = [e for e in events if isinstance(e, Caption)]
    assert session.num_frames == 23
    assert [s.reason for s in segments] == ["cut"] * 4 + ["end"]
    assert segments[-1].end == 11.5  # not the source's end, which was not reached
    assert [c.segment for c in captions] == [s.id for s in segments]
    assert source.closed_in == "streammem-reader"


def test_stopping_at_once_gives_nothing(model):
    callbacks = WatchCallbacks(stop=lambda: True)
    assert list(watch(Session(model), Source(endless()), callbacks=callbacks)) == []
