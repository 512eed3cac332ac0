"""A source is perceived on while a model server fails or lets it wait."""

import time

import pytest

from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import ServedModelError
from streammem.models.backbones.language import GenerationConfig, GrowingReply
from streammem.models.protocols import ComposedModel, Reads
from streammem.types import Answer, Caption, Notice, Segment, Stats
from tests.engine.test_watch_camera import Camera
from tests.tiny import film, tiny_model

SCENES = film(("red", 8), ("blue", 8), ("green", 8), ("white", 8))


class Served:
    """A generator that fails as a server does, in captions of these numbers and in answers."""

    reads, batches, decoding = Reads(pictures=4), False, GenerationConfig()

    def __init__(self, failing=(), answers=True):
        self._failing, self._answers, self._number = failing, answers, -2  # the first warms up
        self.waits_for = lambda: True

    def caption_prompt(self, item, instruction=None):
        return ["Describe."]

    def answer_prompt(self, items, question):
        return [question]

    def replies(self, prompts, decoding, candidates=1):
        for _ in prompts:
            self._number += 1
            yield None
            if self._number in self._failing:
                raise ServedModelError("the server: HTTP 500")
            yield (GrowingReply("A scene.", [], []),)

    def stream(self, prompt, decoding):
        until = time.monotonic() + 60
        while not self.waits_for() and time.monotonic() < until:
            yield ""
        if not self._answers:
            raise ServedModelError("the server: lost pictures")
        yield "An answer."


def composed(served):
    keys = tiny_model()
    return ComposedModel("served", "served-1", keys, keys, served)


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("failing", [(1,), (0, 1, 2)])
def test_a_live_source_loses_captions_to_a_server_that_fails_and_goes_on(failing):
    with Session(composed(Served(failing))) as session:
        events = list(watch(session, Camera(SCENES), WatchOptions(drop="never", stats_s=3600)))
    assert len(of(Segment, events)) == 4
    stats = of(Stats, events)[-1]
    assert stats.captions == len(of(Caption, events))
    assert stats.captions + stats.captions_skipped == 4
    assert [str(notice) for notice in of(Notice, events)][:1] == ["warning: the server: HTTP 500"]
    assert len(of(Notice, events)) <= 2, "the same failure is told of once in a row"


def test_of_a_file_a_failing_server_is_an_error():
    with Session(composed(Served((1,)))) as session, pytest.raises(ServedModelError):
        list(watch(session, SCENES))


def test_a_question_that_a_server_fails_on_ends_nothing():
    questions = iter(["What is this?"])
    callbacks = WatchCallbacks(question=lambda: next(questions, None))
    with Session(composed(Served(answers=False))) as session:
        events = list(watch(session, SCENES, callbacks=callbacks))
    assert of(Answer, events) == []
    assert "lost pictures" in str(of(Notice, events)[0])
    assert len(of(Segment, events)) == 4


@pytest.mark.parametrize("asked_by", ["watch", "the server's session"])
def test_frames_are_perceived_while_an_answer_is_waited_for(asked_by):
    served, perceived = Served(), []
    with Session(composed(served)) as session:
        served.waits_for = lambda: session.num_frames == len(SCENES)
        asked = iter([None, "What is this?"])

        def question():
            return next(asked, None)

        def on_idle():
            if question():
                perceived.append((session.ask("What is this?").text, session.num_frames))

        callbacks = WatchCallbacks(
            question=question,
            on_answer=lambda piece: perceived.append((piece, session.num_frames)),
        )
        if asked_by != "watch":
            callbacks = WatchCallbacks(on_idle=on_idle)
        options = WatchOptions(drop="never")
        events = list(watch(session, Camera(SCENES), options, callbacks=callbacks))
    assert perceived == [("An answer.", len(SCENES))], "no empty piece is shown"
    assert [segment.id for segment in of(Segment, events)] == [0, 1, 2, 3]
