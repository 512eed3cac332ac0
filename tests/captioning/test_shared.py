"""One model for many threads: its parts behind locks, its language model behind a scheduler."""

import dataclasses
import threading

import numpy as np
import pytest

from streammem.captioning.shared import share_model
from streammem.models.protocols import ComposedModel, EvidenceItem
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import BatchPerceiver
from tests.sessions import SHORT
from tests.tiny import tiny_model


@pytest.fixture
def shared():
    model = tiny_model()
    composed, scheduler = share_model(model)
    yield model, composed
    scheduler.close()


def test_what_does_not_compute_is_the_models_own(shared):
    model, composed = shared
    assert (composed.name, composed.fingerprint) == (model.name, model.fingerprint)
    assert composed.text_encoder.background is model.background
    assert composed.text_encoder.null is model.null
    assert composed.perceiver.scenes is model.scenes
    assert composed.segment_encoder.token_shape == model.token_shape
    assert composed.segment_encoder.reads_related == model.reads_related
    assert (composed.generator.reads, composed.generator.decoding) == (model.reads, model.decoding)


def test_a_shared_model_keeps_what_its_sessions_begin_with():
    model = dataclasses.replace(ComposedModel.of(tiny_model()), session_options={"candidates": 1})
    kept = share_model(model)
    try:
        assert kept.model.session_options == {"candidates": 1}
    finally:
        kept.scheduler.close()


def test_every_part_computes_what_the_model_computes(shared):
    model, composed = shared
    assert (composed.text_encoder.sentence_keys(["a dog"]) == model.sentence_keys(["a dog"])).all()
    reading = composed.text_encoder.read_question("When does a dog run?")
    assert reading == model.read_question("When does a dog run?")
    tokens = model.bridge.queries.detach()
    prompts = [composed.generator.caption_prompt(EvidenceItem(0, 0, tokens))]
    told = [replies for replies in composed.generator.replies(prompts, SHORT) if replies]
    own = model.replies([model.caption_prompt(EvidenceItem(0, 0, tokens))], SHORT)
    assert told == [replies for replies in own if replies]


class ManyAtOnce(VideoModel):
    """Perceives up to four frames together, as on a GPU; notes how many."""

    most_together = 4

    def perceive_many(self, pictures):
        sizes.append(len(pictures))
        return super().perceive_many(pictures)


sizes: list[int] = []
MODEL = tiny_model()
PICTURES = [
    np.random.default_rng(seed).integers(0, 255, (48 + seed, 64, 3), np.uint8) for seed in range(6)
]


def perceived_by_threads(pictures):
    """What each of as many threads sees of its picture, all of which wait for the first."""
    made = ManyAtOnce(**{f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL)})
    composed, scheduler = share_model(made)
    found = [None] * len(pictures)
    sizes.clear()

    def run(number):
        try:
            found[number] = composed.perceiver.perceive(pictures[number])
        except (AttributeError, TypeError) as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(pictures))]
    with composed.perceiver.lock:
        for number, thread in enumerate(threads):
            thread.start()
            for _ in range(2000):  # 20 s at most
                if len(composed.perceiver.waiting) > number:
                    break
                threading.Event().wait(0.01)
    for thread in threads:
        thread.join(60)
    scheduler.close()
    return found


def test_frames_that_wait_together_are_perceived_together_and_as_each_alone():
    assert isinstance(MODEL, BatchPerceiver) and MODEL.most_together == 1  # on the CPU
    found = perceived_by_threads(PICTURES)
    assert sizes == [4, 2]
    for seen, picture in zip(found, PICTURES, strict=True):
        for own, alone in zip(seen, MODEL.perceive(picture), strict=True):
            assert np.allclose(own, alone, atol=1e-6)


def test_a_frame_that_cannot_be_perceived_fails_for_its_own_stream():
    found = perceived_by_threads([*PICTURES[:2], None, PICTURES[3]])
    assert [type(seen).__name__ for seen in found] == [*["Perceived"] * 2, "TypeError", "Perceived"]
    assert sizes == [4, 1, 1, 1, 1]


def test_two_threads_never_compute_perception_at_a_time(monkeypatch):
    busy, both = threading.Lock(), threading.Barrier(4)
    model = tiny_model()

    def alone(self, sentences):
        assert busy.acquire(blocking=False), "two at a time"
        threading.Event().wait(0.01)
        busy.release()

    monkeypatch.setattr(type(model), "sentence_keys", alone)
    composed, scheduler = share_model(model)
    wrong = []

    def run():
        both.wait(60)
        try:
            for _ in range(5):
                composed.text_encoder.sentence_keys(["a"])
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    scheduler.close()
    assert not wrong
