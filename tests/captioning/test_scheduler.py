"""The language model's scheduler: batches, turns, priorities, errors; and watching with it."""

import itertools
import queue
import threading
import time

import numpy as np
import pytest
import torch

from streammem.captioning.captioner import CaptionConfig, Captioner, CaptionRequest
from streammem.captioning.scheduler import (
    MAX_BATCH,
    MAX_REPLIES,
    CaptionJob,
    CaptionQueue,
    FairLock,
    LanguageScheduler,
    ScheduledGenerator,
)
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import SEGMENTS_AHEAD, watch
from streammem.engine.watch_options import WatchCallbacks
from streammem.errors import StreammemError
from streammem.models.backbones.language import GenerationConfig
from streammem.models.backbones.products import has_half
from streammem.models.caption_scores import ConfidenceModel
from streammem.models.protocols import EvidenceItem
from streammem.types import Caption, Segment
from streammem.video import VideoSource
from tests.sessions import SHORT
from tests.tiny import film, talkative_language, tiny_model

pytestmark = pytest.mark.skipif(not has_half(), reason="needs FBGEMM and AVX2")
FILM = film(*((c, 5) for c in ("red", "blue", "green", "white", "red", "black") * 2))
CONFIG = SessionConfig(caption=SHORT)


class Gated:
    """A language model whose first generation waits for an event; it notes its batches' sizes.

    Args:
        event: see above.
        fails_at: step of a batch at which it fails.
        on_step: called in the scheduler's thread before each such step.
    """

    def __init__(self, event, fails_at=None, on_step=None):
        self._language, self._event = talkative_language(), event
        self._fails_at, self._on_step = fails_at, on_step
        self.counts = []

    def __getattr__(self, name):
        return getattr(self._language, name)

    def pieces(self, prompt, config):
        self.counts.append(1)
        assert self._event.wait(120)
        yield from self._language.stream(prompt, config)

    def replies(self, prompts, config, count=1):
        self.counts.append(len(prompts))
        assert self._event.wait(120)
        for number, replies in enumerate(self._language.replies(prompts, config, count)):
            if number == self._fails_at:
                raise RuntimeError("out of memory")
            if self._on_step:
                self._on_step()
            yield replies


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("streammem-")] == []


def requests(model, count):
    """Segments that look different."""
    tokens = torch.randn(count, *model.token_shape, generator=torch.Generator().manual_seed(0))
    keys = np.eye(1, 16, dtype=np.float32)
    spans = [Segment(k, k, k + 1.0, None, "cut") for k in range(count)]
    return [CaptionRequest(s, keys, tokens[k]) for k, s in enumerate(spans)]


def queued(language, count, *, on_text=None, **options):
    """Give a queue and its requests, all submitted before the first caption is generated."""
    model = tiny_model(open_language=lambda: language)
    scheduler = LanguageScheduler(model)
    captioner = Captioner(model, CaptionConfig(decoding=SHORT))
    captions = CaptionQueue(scheduler, captioner, on_text, **options)
    wanted = requests(model, count)
    for request in wanted:
        captions.submit(CaptionJob(request, 0.0))
    language._event.set()
    return captions, wanted, model


def results_of(captions):
    found, until = [], time.monotonic() + 60
    for result in captions.results(0):
        assert time.monotonic() < until, "captions are pending that nothing generates"
        found += [result] if result else []
    return found


def alone(model, wanted):
    prompts = [model.caption_prompt(EvidenceItem(0, 0, r.tokens)) for r in wanted]
    return ["".join(talkative_language().stream(p, SHORT)).strip() for p in prompts]


def test_what_waits_is_one_batch_in_order_and_each_is_as_if_it_were_alone():
    language = Gated(threading.Event())
    captions, wanted, model = queued(language, 6, max_batch=3)
    results = results_of(captions)
    captions.scheduler.close()
    assert language.counts == [1, 3, 2]
    assert [result.job.request for result in results] == wanted
    assert [result.replies[0].text for result in results] == alone(model, wanted)
    assert len({result.replies[0].text for result in results}) > 4
    assert all(a.began <= b.began for a, b in itertools.pairwise(results))


def test_captions_of_a_file_wait_for_a_full_batch_and_the_last_ones_for_the_end():
    """Though the language model has nothing to do meanwhile."""
    language = Gated(threading.Event())
    language._event.set()
    captions, _, model = queued(language, 0, max_batch=3, wait_s=120.0)
    captions.scheduler.batches = True  # as after the first caption
    wanted = requests(model, 5)
    results = []
    for request, held in zip(wanted, (1, 2, 0, 1, 2), strict=True):
        captions.submit(CaptionJob(request, 0.0))
        results += captions.results(None)
        assert len(captions._held) == held
    try:
        results += results_of(captions)
    finally:
        captions.scheduler.close()
    assert language.counts == [3, 2]
    assert [result.job.request for result in results] == wanted
    assert [result.replies[0].text for result in results] == alone(model, wanted)


def test_a_caption_waits_for_others_only_so_long():
    captions, _, model = queued(Gated(threading.Event()), 0, max_batch=3, wait_s=120.0)
    captions.scheduler.batches = True
    captions.submit(CaptionJob(requests(model, 1)[0], 0.0))
    assert list(captions.results(None)) == [] and captions._held
    captions._held_since -= 121
    list(captions.results(None))
    assert not captions._held and len(results_of(captions)) <= 1
    captions.scheduler.close()


@pytest.mark.parametrize("options", [{"max_batch": 1}, {"on_text": lambda *_: None}])
def test_words_that_are_passed_on_as_they_come_are_generated_one_by_one(options):
    language = Gated(threading.Event())
    captions, wanted, model = queued(language, 4, **options)
    assert [r.replies[0].text for r in results_of(captions)] == alone(model, wanted)
    captions.scheduler.close()
    assert language.counts == [1] * 4 and captions.batch_size == 1


def test_pieces_that_are_passed_on_join_to_the_caption():
    pieces = {}

    def on_text(request, piece):
        pieces.setdefault(request.segment.id, []).append(piece)

    captions, wanted, model = queued(Gated(threading.Event()), 3, on_text=on_text)
    results_of(captions)
    captions.scheduler.close()
    assert ["".join(pieces[k]).strip() for k in range(3)] == alone(model, wanted)


def test_a_model_that_gains_nothing_is_not_asked_for_batches():
    language = Gated(threading.Event())
    language.speaks_together = False
    captions, _, _ = queued(language, 4, max_batch=3)
    assert len(results_of(captions)) == 4
    captions.scheduler.close()
    assert language.counts == [1] * 4 and captions.batch_size == 1


def test_an_answer_is_let_in_between_any_two_steps_of_a_batch():
    language, words = Gated(threading.Event()), []
    captions, _, model = queued(language, 4, max_batch=3)
    results_of(captions)  # the first alone: from then on there are batches
    turns, taken = captions.scheduler.lm_lock, []
    language._on_step = lambda: taken.append(bool(turns._waiting) or turns._taken)
    for request in requests(model, 3):
        captions.submit(CaptionJob(request, 0.0))
    prompt = model.answer_prompt([], "What is red?")
    words = list(captions.scheduler.stream(prompt, SHORT))
    results_of(captions)
    captions.scheduler.close()
    assert words == list(model.stream(prompt, SHORT))
    assert len(taken) > 3 and all(taken)  # each step held the lock


def test_whoever_holds_the_lock_keeps_captions_from_their_next_step():
    language, steps = Gated(threading.Event()), queue.Queue()
    language._on_step = lambda: steps.put(None)
    model = tiny_model(open_language=lambda: language)
    scheduler = LanguageScheduler(model)
    captions = CaptionQueue(scheduler, Captioner(model, CaptionConfig(decoding=SHORT)))
    language._event.set()
    with scheduler.lm_lock:
        captions.submit(CaptionJob(requests(model, 1)[0], 0.0))
        with pytest.raises(queue.Empty):
            steps.get(timeout=0.2)
    assert len(results_of(captions)) == 1
    scheduler.close()


def test_closing_ends_a_batch_between_two_steps():
    second, stopping, steps = threading.Event(), threading.Event(), []

    def on_step():
        steps.append(0)
        if len(steps) == 2:
            second.set()
            assert stopping.wait(120)

    captions, _, _ = queued(Gated(threading.Event(), on_step=on_step), 4, max_batch=3)
    assert second.wait(120)
    closer = threading.Thread(target=captions.scheduler.close)
    closer.start()
    assert captions.scheduler._stopped.wait(120)
    stopping.set()
    closer.join(120)
    assert len(steps) == 2
    with pytest.raises(StreammemError, match="stopped before"):  # those that were in it know
        results_of(captions)


def test_an_error_comes_after_what_was_whole_and_reaches_the_caller():
    language = Gated(threading.Event())
    captions, wanted, _ = queued(language, 4, max_batch=3)
    first = next(result for result in captions.results(0) if result)
    language._fails_at = 2
    given = [first.job.request]
    with pytest.raises(RuntimeError, match="out of memory"):
        given.extend(result.job.request for result in captions.results(0) if result)
    captions.scheduler.close()
    assert given == wanted[: len(given)]


def test_what_is_submitted_after_the_end_fails_at_once():
    captions, wanted, _ = queued(Gated(threading.Event()), 1)
    results_of(captions)
    captions.scheduler.close()
    captions.submit(CaptionJob(wanted[0], 0.0))
    with pytest.raises(RuntimeError, match="stopped before"):
        results_of(captions)


def test_the_oldest_jobs_are_skipped_and_counted():
    language = Gated(threading.Event())
    model = tiny_model(open_language=lambda: language)
    scheduler = LanguageScheduler(model)
    captions = CaptionQueue(scheduler, Captioner(model, CaptionConfig(decoding=SHORT)))
    for request in requests(model, 5):
        captions.submit(CaptionJob(request, 0.0))
    while not language.counts:
        pass
    captions.skip(2)  # the one that is being generated is one of them
    assert captions.num_skipped == 3 and captions.num_pending == 2
    language._event.set()
    assert [r.job.request.segment.id for r in results_of(captions)] == [0, 4]
    scheduler.close()


# -- many threads --


class Slow:
    """A generator whose batches wait until they are let go; two at a time are an error."""

    batches = True

    def __init__(self, model, error=None):
        self._model, self.error = model, error
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.busy = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def replies(self, prompts, decoding, candidates=1):
        assert self.busy.acquire(blocking=False), "two batches at a time"
        self.begun.release()
        assert self.go.acquire(timeout=120)
        self.busy.release()
        if self.error:
            raise self.error
        yield from self._model.replies(prompts, decoding, candidates)


@pytest.fixture
def shared():
    """A slow generator and its scheduler, which has generated its first caption."""
    slow, sizes = Slow(tiny_model()), []
    scheduler = LanguageScheduler(slow, sizes.append)
    slow.go.release()
    scheduler.replies([prompt_of(slow, 9)], SHORT)
    assert slow.begun.acquire(timeout=120)
    while not sizes:
        pass
    sizes.clear()
    yield slow, scheduler, sizes
    slow.go.release(99)
    scheduler.close()


def prompt_of(model, number):
    return model.caption_prompt(EvidenceItem(0, 0, model.bridge.queries.detach() * (number + 1)))


def whole(model, prompts, decoding=SHORT):
    return [replies for replies in model.replies(prompts, decoding) if replies]


def start(calls):
    """Run calls in threads; give their results in order."""
    found = [None] * len(calls)

    def run(place):
        try:
            found[place] = calls[place]()
        except Exception as error:  # noqa: BLE001, looked at below
            found[place] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    return threads, found


def arrived(scheduler, count):
    while len(scheduler._pending) < count:
        pass


def test_captions_that_wait_in_many_threads_are_one_batch_and_each_gets_its_own(shared):
    slow, scheduler, sizes = shared
    wanted = [prompt_of(slow, i) for i in range(5)]
    first, one = start([lambda: scheduler.replies([wanted[0]], SHORT)])
    assert slow.begun.acquire(timeout=120)
    others, found = start([lambda p=p: scheduler.replies([p], SHORT) for p in wanted[1:]])
    arrived(scheduler, 4)
    slow.go.release(2)
    for thread in (*first, *others):
        thread.join(120)
    scheduler.close()
    assert sizes == [1, 4]
    assert [*one, *found] == [whole(slow._model, [p]) for p in wanted]


def test_a_batch_is_bounded_and_decoded_alike(shared):
    slow, scheduler, sizes = shared
    slow.go.release(2)
    scheduler.replies([prompt_of(slow, 0)] * (MAX_BATCH + 2), SHORT)
    while len(sizes) < 2:
        pass
    assert sizes == [MAX_BATCH, 2]
    slow.begun = threading.Semaphore(0)
    first, _ = start([lambda: scheduler.replies([prompt_of(slow, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    longer = GenerationConfig(max_new_tokens=7)
    others, _ = start(
        [lambda d=d: scheduler.replies([prompt_of(slow, 1)], d) for d in (SHORT, longer, SHORT)]
    )
    arrived(scheduler, 3)
    slow.go.release(3)
    for thread in (*first, *others):
        thread.join(120)
    scheduler.close()
    assert sorted(sizes[2:]) == [1, 1, 2]


def test_the_replies_of_a_batch_are_bounded(shared):
    slow, scheduler, sizes = shared
    slow.go.release(2)
    scheduler.replies([prompt_of(slow, 0)] * 6, SHORT, MAX_REPLIES // 4)
    scheduler.close()
    assert sizes == [4, 2]


def test_what_an_answer_waits_for_is_generated_before_what_streams_wait_for(shared):
    slow, scheduler, _ = shared
    order, model = [], slow._model
    captioner = Captioner(model, CaptionConfig(decoding=SHORT))
    stream = CaptionQueue(scheduler, captioner)

    def answer(name, number):
        scheduler.replies([prompt_of(slow, number)] * MAX_BATCH, SHORT)
        order.append(name)

    def watch_stream():
        results_of(stream)
        order.append("stream")

    first, _ = start([lambda: answer("first", 0)])
    assert slow.begun.acquire(timeout=120)
    for request in requests(model, MAX_BATCH):
        stream.submit(CaptionJob(request, 0.0))
    told, _ = start([watch_stream])
    asked, _ = start([lambda: answer("answer", 2)])
    arrived(scheduler, 2 * MAX_BATCH)
    for thread in (*first, *asked, *told):
        slow.go.release(1)
        thread.join(120)
    assert order == ["first", "answer", "stream"]


def candidates_of(slow, monkeypatch):
    """Return a list that the number of candidates of each batch is added to."""
    counts, replies = [], slow.replies

    def counted(prompts, decoding, candidates=1):
        counts.append(candidates)
        yield from replies(prompts, decoding, candidates)

    monkeypatch.setattr(slow, "replies", counted)
    return counts


@pytest.mark.parametrize(
    ("streams", "each", "most", "expected"),
    [(1, 2, 8, 8), (2, 1, 8, 4), (3, 2, 8, 2), (3, 1, 12, 3), (4, 1, 8, 2), (9, 1, 8, 1)],
)
def test_live_streams_that_wait_at_the_same_time_share_their_candidates(
    shared, monkeypatch, streams, each, most, expected
):
    slow, scheduler, _ = shared
    counts = candidates_of(slow, monkeypatch)
    captioner = Captioner(slow._model, CaptionConfig(decoding=SHORT))
    captioner.candidates = most
    queues = [CaptionQueue(scheduler, captioner, adapts=True) for _ in range(streams)]
    first, _ = start([lambda: scheduler.replies([prompt_of(slow, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    for stream in queues:
        stream.num_candidates = most
        for request in requests(slow._model, each):
            stream.submit(CaptionJob(request, 0.0))
    slow.go.release(streams * each + 1)
    found = [len(result.replies) for stream in queues for result in results_of(stream)]
    first[0].join(120)
    assert counts[:2] == [1, expected] and len(found) == streams * each
    queues[0].submit(CaptionJob(requests(slow._model, 1)[0], 0.0))  # nothing waits beside it now
    slow.go.release(1)
    (result,) = results_of(queues[0])
    assert len(result.replies) == most and queues[0].fewest_candidates == expected


@pytest.mark.parametrize("file_first", [False, True])
def test_a_file_beside_a_live_stream_neither_shares_nor_joins(shared, monkeypatch, file_first):
    slow, scheduler, _ = shared
    counts = candidates_of(slow, monkeypatch)
    captioner = Captioner(slow._model, CaptionConfig(decoding=SHORT))
    captioner.candidates = 8
    live = CaptionQueue(scheduler, captioner, adapts=True)
    live.num_candidates = 4  # as measured
    file = CaptionQueue(scheduler, captioner)
    first, _ = start([lambda: scheduler.replies([prompt_of(slow, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    for stream in (file, live) if file_first else (live, file):
        stream.submit(CaptionJob(requests(slow._model, 1)[0], 0.0))
    slow.go.release(3)
    found = [len(result.replies) for stream in (file, live) for result in results_of(stream)]
    first[0].join(120)
    assert found == [8, 4]
    assert counts == ([1, 8, 4] if file_first else [1, 4, 8])


def test_words_that_are_passed_on_as_they_come_join_no_batch_of_others(shared):
    slow, scheduler, sizes = shared
    captioner, pieces = Captioner(slow._model, CaptionConfig(decoding=SHORT)), []
    captioner.candidates = 1
    plain = CaptionQueue(scheduler, captioner)
    heard = CaptionQueue(scheduler, captioner, on_text=lambda _, piece: pieces.append(piece))
    first, _ = start([lambda: scheduler.replies([prompt_of(slow, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    for stream, request in zip((plain, heard), requests(slow._model, 2), strict=True):
        stream.submit(CaptionJob(request, 0.0))
    slow.go.release(2)
    results_of(plain)
    (result,) = results_of(heard)
    first[0].join(120)
    scheduler.close()
    assert "".join(pieces).strip() == result.replies[0].text != ""
    assert sizes == [1, 1, 1]


def test_an_error_reaches_all_that_waited_for_the_batch_and_no_other(shared):
    slow, scheduler, _ = shared
    slow.error = ValueError("broken")
    first, one = start([lambda: scheduler.replies([prompt_of(slow, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    others, found = start([lambda: scheduler.replies([prompt_of(slow, 1)], SHORT)] * 2)
    arrived(scheduler, 2)
    slow.go.release()
    first[0].join(120)
    slow.error = None
    slow.go.release()
    for thread in others:
        thread.join(120)
    assert isinstance(one[0], ValueError)
    assert found == [whole(slow._model, [prompt_of(slow, 1)])] * 2


def test_answers_of_many_threads_are_what_each_would_be_alone():
    model = tiny_model()
    scheduler = LanguageScheduler(model)
    generator = ScheduledGenerator(model, scheduler)
    prompts = [model.answer_prompt([], f"What is {word}?") for word in ("red", "blue", "green")]
    threads, found = start([lambda p=p: list(generator.stream(p, SHORT)) for p in prompts])
    for thread in threads:
        thread.join(120)
    scheduler.close()
    assert found == [list(model.stream(p, SHORT)) for p in prompts]


class Endless:
    """A generator that goes on until it is told to end."""

    batches = True

    def __init__(self):
        self.begun, self.answered = threading.Event(), threading.Event()

    def replies(self, prompts, *_):
        for _ in range(6_000):  # a minute; not for ever, so that a failure is one
            yield None
            self.begun.set()
            if self.answered.wait(0.01):
                break
        yield from [()] * len(prompts)

    def stream(self, prompt, decoding):
        yield from ("a", "b", "c")


def test_an_answer_goes_on_between_the_steps_of_a_batch():
    endless = Endless()
    scheduler = LanguageScheduler(endless)
    waiting, _ = start([lambda: scheduler.replies([["?"]], SHORT)])
    assert endless.begun.wait(120)
    assert list(scheduler.stream(["?"], SHORT)) == ["a", "b", "c"]
    assert waiting[0].is_alive(), "the batch was whole before the answer"
    endless.answered.set()
    waiting[0].join(120)
    scheduler.close()


def test_the_lock_goes_to_the_thread_that_has_waited_longest():
    lock, order = FairLock(), []

    def take(number):
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= number:
                pass
    for thread in threads:
        thread.join(120)
    assert order == [0, 1, 2, 3, 4]
    with lock:
        assert not lock._waiting


# -- watching --


class Live(VideoSource):
    """Frames of a source that does not wait."""

    live = True

    def _frames(self):
        return iter(FILM)


def watched(source, *, certain=False, **callbacks):
    """Watch a source whose first caption comes when four scenes have closed."""
    language = Gated(threading.Event())
    sure = {"confidence_model": ConfidenceModel((1.0, 0.0, 0.0, 0.0), 3.0)} if certain else {}
    session = Session(tiny_model(open_language=lambda: language, **sure), CONFIG)

    def stop():
        if session.next_segment >= 4:
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
    assert counts[0] == 1 and 1 < max(counts) <= MAX_BATCH
    assert sum(counts) == len(segments) == len(captions)
    assert [c.segment for c in captions] == [s.id for s in segments]
    alone = Session(session.model, CONFIG)
    closed = [segment for frame in FILM for segment in alone.push(frame)]
    assert captions == [alone.caption(segment) for segment in [*closed, *alone.flush()]]
    for segment, caption in zip(segments, captions, strict=True):
        assert events.index(segment) < events.index(caption)


def test_a_live_caption_never_waits_for_others(monkeypatch):
    asked = []

    class Noted(CaptionQueue):
        def __init__(self, *given, **options):
            asked.append(given[3])
            super().__init__(*given, **options)

    monkeypatch.setattr("streammem.engine.watch.CaptionQueue", Noted)
    assert set(watched(Live("camera"))[2]) == {1}
    watched(FILM)
    assert asked == [1, MAX_BATCH]


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


@pytest.mark.parametrize(("gains", "most"), [(True, 3 * 3), (False, 4)])
def test_perception_of_a_file_runs_ahead_of_captions_so_far_and_no_farther(
    monkeypatch, gains, most
):
    monkeypatch.setattr("streammem.engine.watch.MAX_BATCH", 3)
    far, lead, leads = threading.Event(), 0, []
    language = Gated(threading.Event(), on_step=lambda: language.counts[-1] > 1 and far.wait(120))
    language.speaks_together = gains
    session = Session(tiny_model(open_language=lambda: language), CONFIG)

    class Awaited(CaptionQueue):
        def results(self, max_pending):
            for result in super().results(max_pending):
                if result is None:  # perception waits
                    language._event.set()
                    if lead > 5:  # at 5 the scheduler does not know yet that it gains
                        far.set()
                yield result

    monkeypatch.setattr("streammem.engine.watch.CaptionQueue", Awaited)
    longer = film(*((c, 5) for c in ("red", "blue", "green", "white", "red", "black") * 3))
    for event in watch(session, longer):
        lead += 1 if isinstance(event, Segment) else -1
        leads.append(lead)
    assert max(leads) == most + 1  # one more closes before no frame is taken


def test_what_waits_is_done_while_perception_waits_for_captions():
    gate = threading.Event()
    model = tiny_model(open_language=lambda: Gated(gate))
    session = Session(model, SessionConfig(caption=SHORT))

    def on_idle():
        if session.next_segment > SEGMENTS_AHEAD:  # so many may wait, and then it does
            gate.set()

    callbacks = WatchCallbacks(on_idle=on_idle)
    watching = threading.Thread(target=lambda: list(watch(session, FILM, callbacks=callbacks)))
    watching.start()
    taken = gate.wait(60)
    gate.set()
    watching.join(120)
    assert taken and session.next_segment > SEGMENTS_AHEAD + 1


def test_a_model_that_could_not_be_opened_is_opened_for_the_next_caption():
    tries = []

    def open_language():
        tries.append(0)
        if len(tries) == 1:
            raise OSError("no space left")
        return talkative_language()

    model = tiny_model(open_language=open_language)
    scheduler = LanguageScheduler(model)
    captions = CaptionQueue(scheduler, Captioner(model, CaptionConfig(decoding=SHORT)))
    first, second = requests(model, 2)
    captions.submit(CaptionJob(first, 0.0))
    with pytest.raises(OSError, match="no space left"):
        results_of(captions)
    captions.submit(CaptionJob(second, 0.0))
    (result,) = results_of(captions)
    scheduler.close()
    assert result.job.request == second and len(tries) == 2
