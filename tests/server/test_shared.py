"""One model for many threads: captions in one batch, words in turn, errors to all they concern."""

import threading

import pytest

from streammem.models.backbones.language import GenerationConfig
from streammem.server.shared import MAX_BATCH, SharedModel, Turns
from tests.sessions import SHORT
from tests.tiny import tiny_model

TOKENS = (4, 32)


class Slow:
    """A model whose batches wait until they are let go."""

    def __init__(self, model, error=None):
        self._model, self._error = model, error
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.busy = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def captions(self, tokens, decoding=None, instruction=None, candidates=1):
        assert self.busy.acquire(blocking=False), "two batches at a time"
        self.begun.release()
        assert self.go.acquire(timeout=120)
        self.busy.release()
        if self._error:
            raise self._error
        return self._model.captions(tokens, decoding, instruction, candidates)

    def captions_stepwise(self, *args):
        yield from self.captions(*args)


def tokens(model, number):
    return model.bridge.queries.detach() * (number + 1)


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


def arrived(shared, count):
    while len(shared._due) < count:
        pass


def test_captions_that_wait_are_spoken_in_one_batch_and_each_gets_its_own(model):
    slow, sizes = Slow(model), []
    shared = SharedModel(slow, sizes.append)
    wanted = [tokens(model, i) for i in range(5)]
    first, one = start([lambda: shared.captions([wanted[0]], SHORT)])
    assert slow.begun.acquire(timeout=120)
    others, found = start([lambda t=t: shared.captions([t], SHORT) for t in wanted[1:]])
    arrived(shared, 4)
    slow.go.release(2)
    for thread in (*first, *others):
        thread.join(120)
    assert sizes == [1, 4]
    alone = [model.captions([t], SHORT) for t in wanted]
    assert [*one, *found] == alone


def test_captions_of_one_session_that_wait_go_into_the_common_batch(model):
    sizes = []
    shared = SharedModel(model, sizes.append)
    wanted = [tokens(model, i) for i in range(3)]
    assert list(shared.captions_stepwise(wanted, SHORT)) == model.captions(wanted, SHORT)
    assert sizes == [3]


def test_a_batch_is_bounded_and_alike(model):
    slow, sizes = Slow(model), []
    shared = SharedModel(slow, sizes.append)
    slow.go.release(9)
    shared.captions([tokens(model, 0)] * (MAX_BATCH + 2), SHORT)
    assert sizes == [MAX_BATCH, 2]
    sizes.clear()
    slow.go = threading.Semaphore(0)
    slow.begun = threading.Semaphore(0)
    first, _ = start([lambda: shared.captions([tokens(model, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    longer = GenerationConfig(max_new_tokens=7)
    others, _ = start([
        lambda d=d: shared.captions([tokens(model, 1)], d) for d in (SHORT, longer, SHORT)
    ])  # fmt: skip
    arrived(shared, 3)
    slow.go.release(3)
    for thread in (*first, *others):
        thread.join(120)
    assert sorted(sizes) == [1, 1, 2]


def test_what_an_answer_waits_for_is_spoken_before_what_streams_are_told(model):
    slow, order = Slow(model), []
    shared = SharedModel(slow)

    def said(name, number, captions):
        list(captions([tokens(model, number)] * MAX_BATCH, SHORT))
        order.append(name)

    first, _ = start([lambda: said("first", 0, shared.captions)])
    assert slow.begun.acquire(timeout=120)
    told, _ = start([lambda: said("stream", 1, shared.captions_stepwise)])
    arrived(shared, MAX_BATCH)
    asked, _ = start([lambda: said("answer", 2, shared.captions)])
    arrived(shared, 2 * MAX_BATCH)
    slow.go.release(1)
    first[0].join(120)
    slow.go.release(1)
    asked[0].join(120)
    slow.go.release(1)
    told[0].join(120)
    assert order == ["first", "answer", "stream"]


def test_an_error_reaches_all_that_waited_for_the_batch_and_no_other(model):
    slow = Slow(model, ValueError("broken"))
    shared = SharedModel(slow)
    first, one = start([lambda: shared.captions([tokens(model, 0)], SHORT)])
    assert slow.begun.acquire(timeout=120)
    others, found = start([lambda: shared.captions([tokens(model, 1)], SHORT)] * 2)
    arrived(shared, 2)
    slow.go.release()
    first[0].join(120)
    slow._error = None
    slow.go.release()
    for thread in others:
        thread.join(120)
    assert isinstance(one[0], ValueError)
    assert found == [model.captions([tokens(model, 1)], SHORT)] * 2


def test_a_caption_that_is_streamed_is_the_one_of_its_batch(model):
    shared = SharedModel(model)
    prompt = shared.caption_prompt(tokens(model, 3))
    said = "".join(shared.stream(prompt, SHORT))
    assert said == model.captions([tokens(model, 3)], SHORT)[0][0].text


def test_answers_of_many_threads_are_what_each_would_be_alone(model):
    shared = SharedModel(model)
    prompts = [model.answer_prompt([], f"What is {word}?") for word in ("red", "blue", "green")]
    threads, found = start([lambda p=p: list(shared.stream(p, SHORT)) for p in prompts])
    for thread in threads:
        thread.join(120)
    assert found == [list(model.stream(p, SHORT)) for p in prompts]


class Talking:
    """A model that describes in steps until it is told to end, and notes how it was asked to."""

    def __init__(self, *, together):
        self.speaks_together, self.asked = together, []
        self.begun, self.answered = threading.Event(), threading.Event()

    def captions(self, tokens, *_):
        self.asked.append("captions")
        return [()] * len(tokens)

    def captions_stepwise(self, tokens, *_):
        self.asked.append("steps")
        for _ in range(6_000):  # a minute; not for ever, so that a failure is one
            yield None
            self.begun.set()
            if self.answered.wait(0.01):
                break
        yield from [()] * len(tokens)

    def stream(self, prompt, decoding):
        yield from ("a", "b", "c")


def test_an_answer_goes_on_between_the_words_of_a_batch(model):
    talking = Talking(together=True)
    shared = SharedModel(talking)
    speaking, _ = start([lambda: shared.captions([tokens(model, 0)], SHORT)])
    assert talking.begun.wait(120)
    assert list(shared.stream(["?"], SHORT)) == ["a", "b", "c"]
    assert speaking[0].is_alive(), "the batch was whole before the answer"
    talking.answered.set()
    speaking[0].join(120)
    assert talking.asked == ["steps"]


def test_a_model_that_loses_by_steps_speaks_a_batch_at_once(model):
    talking = Talking(together=False)
    SharedModel(talking).captions([tokens(model, 0)] * 3, SHORT)
    assert talking.asked == ["captions"]


def test_whoever_is_done_goes_on_while_the_rest_is_spoken(model):
    slow = Slow(model)
    shared = SharedModel(slow)
    many = [tokens(model, 0)] * (2 * MAX_BATCH)
    told, _ = start([lambda: list(shared.captions_stepwise(many, SHORT))])
    assert slow.begun.acquire(timeout=120)
    asked, found = start([lambda: shared.captions([tokens(model, 1)], SHORT)])
    arrived(shared, MAX_BATCH + 1)
    slow.go.release(2)
    for _ in range(2):  # that with the answer's, and the last
        assert slow.begun.acquire(timeout=120)
    asked[0].join(30)
    assert not asked[0].is_alive() and told[0].is_alive()
    slow.go.release()
    told[0].join(120)
    assert found == [model.captions([tokens(model, 1)], SHORT)]


def test_turns_go_to_whoever_has_waited_longest():
    turns, order = Turns(), []

    def take(number):
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turns._waiting) <= number:
                pass
    for thread in threads:
        thread.join(120)
    assert order == [0, 1, 2, 3, 4]
    with turns:
        assert not turns._waiting


@pytest.mark.parametrize("name", ["fingerprint", "name", "background", "token_shape"])
def test_what_does_not_compute_is_the_models_own(name):
    model = tiny_model()
    assert getattr(SharedModel(model), name) is getattr(model, name) or name == "token_shape"
