"""Who speaks when: what waits is said together, words that are heard are said one by one."""

import itertools
import threading

import numpy as np
import pytest
import torch

from streammem.engine import workers
from streammem.engine.long_scenes import Span
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import SEGMENTS_AHEAD, watch
from streammem.engine.watch_options import WatchCallbacks
from streammem.engine.workers import TOGETHER, Speaker
from streammem.models.backbones.products import has_half
from streammem.models.confidence import Certainty
from streammem.types import Caption, Segment
from streammem.video import VideoSource
from tests.sessions import SHORT
from tests.tiny import film, talkative_language, tiny_model

pytestmark = pytest.mark.skipif(not has_half(), reason="needs FBGEMM and AVX2")
FILM = film(*((c, 5) for c in ("red", "blue", "green", "white", "red", "black") * 2))
CONFIG = SessionConfig(caption=SHORT)


class Gated:
    """A language model whose first caption waits for an event; it notes how many it says at once.

    Args:
        fails_at: step of captions said together at which it fails.
        on_step: called in the speaker's thread before each such step.
    """

    def __init__(self, event, fails_at=None, on_step=None):
        self._language, self._event = talkative_language(), event
        self._fails_at, self._on_step = fails_at, on_step
        self.counts = []

    def __getattr__(self, name):
        return getattr(self._language, name)

    def stream(self, prompt, config):
        self.counts.append(1)
        assert self._event.wait(120)
        yield from self._language.stream(prompt, config)

    def replies(self, prompts, config, count=1):
        self.counts.append(len(prompts))
        for number, text in enumerate(self._language.replies(prompts, config, count)):
            if number == self._fails_at:
                raise RuntimeError("out of memory")
            if self._on_step:
                self._on_step()
            yield text


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("streammem-")] == []


def spans(model, count):
    """Stretches that look different."""
    tokens = torch.randn(count, *model.token_shape, generator=torch.Generator().manual_seed(0))
    keys = np.eye(1, 16, dtype=np.float32)
    return [Span(Segment(k, k, k + 1.0, None, "cut"), tokens[k], keys, 0.0) for k in range(count)]


def speaking(language, count, *, silence=None, on_text=None, **options):
    """Give a speaker and its stretches, all submitted before the first caption is said."""
    model = tiny_model(open_language=lambda: language)
    speaker = Speaker(model, CONFIG, on_text, **options)
    speaker.silence = silence or speaker.silence
    waiting = spans(model, count)
    for span in waiting:
        speaker.submit(span)
    language._event.set()
    return speaker, waiting, model


def said_alone(model, waiting):
    prompts = [model.caption_prompt(span.tokens) for span in waiting]
    return ["".join(talkative_language().stream(p, SHORT)).strip() for p in prompts]


def test_what_waits_is_said_together_in_order_and_as_if_each_were_alone():
    language = Gated(threading.Event())
    speaker, waiting, model = speaking(language, 6, together=3)
    said = [told for told in speaker.said(0) if told]
    speaker.stop()
    assert language.counts == [1, 3, 2]
    assert [told.span for told in said] == waiting
    assert [told.replies[0].text for told in said] == said_alone(model, waiting)
    assert len({told.replies[0].text for told in said}) > 4
    assert all(a.began <= b.began for a, b in itertools.pairwise(said))


@pytest.mark.parametrize("options", [{"together": 1}, {"on_text": lambda *_: None}])
def test_words_that_are_heard_are_said_one_by_one(options):
    language = Gated(threading.Event())
    speaker, waiting, _ = speaking(language, 4, **options)
    assert len([told for told in speaker.said(0) if told]) == len(waiting)
    speaker.stop()
    assert language.counts == [1] * 4


def test_a_model_that_gains_nothing_is_not_asked_for_captions_together():
    language = Gated(threading.Event())
    language.speaks_together = False
    speaker, _, _ = speaking(language, 4, together=3)
    assert len([told for told in speaker.said(0) if told]) == 4
    speaker.stop()
    assert language.counts == [1] * 4 and speaker.together == 1


class Counted:
    """A lock that counts how often it was taken."""

    def __init__(self):
        self._lock, self.count = threading.Lock(), 0

    def __enter__(self):
        self._lock.acquire()
        self.count += 1

    def __exit__(self, *error):
        self._lock.release()

    def locked(self):
        return self._lock.locked()


def test_a_question_is_let_in_between_any_two_words_of_captions_that_are_said_together():
    silence, steps = Counted(), []
    language = Gated(
        threading.Event(), on_step=lambda: steps.append((silence.count, silence.locked()))
    )
    speaker, _, _ = speaking(language, 4, together=3, silence=silence)
    assert len([told for told in speaker.said(0) if told]) == 4
    speaker.stop()
    taken, locked = zip(*steps, strict=True)
    assert len(steps) > 3 and all(locked)
    assert len(set(taken)) == len(steps)  # it was given up and taken again before each


def test_stopping_ends_captions_that_are_said_together_between_two_words():
    second, stopping, steps = threading.Event(), threading.Event(), []

    def on_step():
        steps.append(0)
        if len(steps) == 2:
            second.set()
            assert stopping.wait(120)

    speaker, _, _ = speaking(Gated(threading.Event(), on_step=on_step), 4, together=3)
    assert second.wait(120)
    stopper = threading.Thread(target=speaker.stop)
    stopper.start()
    assert speaker._stop.wait(120)
    stopping.set()
    stopper.join(120)
    assert len(steps) == 2


def test_an_error_in_captions_that_are_said_together_comes_after_what_was_whole():
    language = Gated(threading.Event(), fails_at=2)
    speaker, waiting, _ = speaking(language, 4, together=3)
    given = []
    with pytest.raises(RuntimeError, match="out of memory"):
        given.extend(told.span for told in speaker.said(0) if told)
    speaker.stop()
    assert given == waiting[: len(given)]


# -- watching --


class Live(VideoSource):
    """Frames of a source that does not wait."""

    live = True

    def _frames(self):
        return iter(FILM)


def watched(source, *, certain=False, **callbacks):
    """Watch a source whose first caption comes when four scenes have closed."""
    language = Gated(threading.Event())
    sure = {"certainty": Certainty((1.0, 0.0, 0.0, 0.0), 3.0)} if certain else {}
    session = Session(tiny_model(open_language=lambda: language, **sure), CONFIG)

    def stop():
        if session.state.next_segment >= 4:
            language._event.set()

    if not isinstance(source, Live):
        callbacks["stop"] = stop
    else:
        language._event.set()
    events = list(watch(session, source, callbacks=WatchCallbacks(**callbacks)))
    return session, events, language.counts


def test_scenes_of_a_file_that_wait_are_said_together_and_the_events_are_as_if_they_were_not():
    session, events, counts = watched(FILM)
    segments = [e for e in events if isinstance(e, Segment)]
    captions = [e for e in events if isinstance(e, Caption)]
    assert counts[0] == 1 and 1 < max(counts) <= TOGETHER
    assert sum(counts) == len(segments) == len(captions)
    assert [c.segment for c in captions] == [s.id for s in segments]
    alone = Session(session.model, CONFIG)
    closed = [segment for frame in FILM for segment in alone.push(frame)]
    assert captions == [alone.caption(segment) for segment in [*closed, *alone.flush()]]
    for segment, caption in zip(segments, captions, strict=True):
        assert events.index(segment) < events.index(caption)


def test_a_live_caption_never_waits_for_company(monkeypatch):
    asked = []

    def noted(*given, **options):
        asked.append(options["together"])
        return Speaker(*given, **options)

    monkeypatch.setattr("streammem.engine.watch.Speaker", noted)
    assert set(watched(Live("camera"))[2]) == {1}
    watched(FILM)
    assert asked == [1, TOGETHER]


def test_a_file_whose_words_are_heard_is_said_scene_by_scene():
    heard = []
    _, _, counts = watched(FILM, on_text=lambda segment, piece: heard.append(segment.id))
    assert set(counts) == {1} and heard == sorted(heard)


def test_a_file_whose_words_may_be_withheld_is_said_together_for_all_that_listen():
    heard = []
    _, events, counts = watched(FILM, certain=True, on_text=lambda *said: heard.append(said))
    captions = [e for e in events if isinstance(e, Caption)]
    assert max(counts) > 1
    assert [(segment.id, text) for segment, text in heard] == [
        (c.segment, c.text) for c in captions if c.text
    ]


@pytest.mark.parametrize(("gains", "most"), [(True, 2 * 3), (False, 4)])
def test_perception_of_a_file_runs_ahead_of_speech_so_far_and_no_farther(monkeypatch, gains, most):
    monkeypatch.setattr("streammem.engine.watch.TOGETHER", 3)
    far, wait = threading.Event(), workers._next
    language = Gated(threading.Event(), on_step=lambda: far.wait(120))
    language.speaks_together = gains
    session, lead, leads = Session(tiny_model(open_language=lambda: language), CONFIG), 0, []

    def awaited(items, thread):
        if thread.name == "streammem-speaker":  # perception waits
            language._event.set()
            if lead > 5:  # at 5 the speaker has not proved yet that it gains
                far.set()
        return wait(items, thread)

    monkeypatch.setattr(workers, "_next", awaited)
    for event in watch(session, FILM):
        lead += 1 if isinstance(event, Segment) else -1
        leads.append(lead)
    assert max(leads) == most + 1  # one more closes before no frame is taken


def test_what_waits_is_done_while_perception_waits_for_captions():
    gate = threading.Event()
    model = tiny_model(open_language=lambda: Gated(gate))
    session = Session(model, SessionConfig(caption=SHORT))

    def on_idle():
        if session.state.next_segment > SEGMENTS_AHEAD:  # so many may wait, and then it does
            gate.set()

    callbacks = WatchCallbacks(on_idle=on_idle)
    watching = threading.Thread(target=lambda: list(watch(session, FILM, callbacks=callbacks)))
    watching.start()
    taken = gate.wait(60)
    gate.set()
    watching.join(120)
    assert taken and session.state.next_segment > SEGMENTS_AHEAD + 1
