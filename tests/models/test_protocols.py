"""A session works with any generator that says what it reads; what it cannot read is left out."""

import numpy as np
import pytest
import torch

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.models.backbones.language import GenerationConfig, GrowingReply
from streammem.models.protocols import ComposedModel, EvidenceItem, Reads, readable
from streammem.perception.frames import spread
from streammem.types import Answer, Caption
from tests.tiny import COLOURS, film, tiny_model

FILM = film(("red", 6), ("blue", 6), ("green", 6))


class Looking:
    """A generator without tokens and log-probabilities: it names the colours of its pictures."""

    batches = False
    decoding = GenerationConfig(max_new_tokens=8)

    def __init__(self, pictures):
        self.reads, self.prompts = Reads(pictures=pictures), []

    def caption_prompt(self, item, instruction=None):
        return self._noted([item], instruction or "Describe.")

    def answer_prompt(self, items, question):
        return self._noted(items, question)

    def _noted(self, items, text):
        parts = []
        for item in items:
            parts += [f"[{item.start:.1f}]", *item.keyframes, item.caption or ""]
            assert item.tokens is None
        self.prompts.append([*parts, text])
        return self.prompts[-1]

    def replies(self, prompts, decoding, candidates=1):
        for prompt in prompts:
            yield tuple(GrowingReply(self._words(prompt), [], []) for _ in range(candidates))

    def stream(self, prompt, decoding):
        yield self._words(prompt)

    def _words(self, prompt):
        pictures = [part for part in prompt if not isinstance(part, str)]
        return " ".join(map(named, pictures)) or "nothing"


def named(picture):
    mean = np.median(picture.reshape(-1, 3), axis=0)
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def model_of(generator):
    """Keys and perception are lent by another model; there is no segment encoder."""
    keys = tiny_model()
    return ComposedModel("looking", "looking-1", keys, keys, generator)


def captions_of(events):
    return [event.text for event in events if isinstance(event, Caption)]


@pytest.mark.parametrize("durable", [False, True])
def test_a_model_that_reads_pictures_only_captions_answers_and_remembers(tmp_path, durable):
    generator = Looking(pictures=4)
    path = tmp_path / "looking.mem" if durable else None
    with Session(model_of(generator), memory=path) as session:
        captions = captions_of(watch(session, FILM))
        assert [set(text.split()) for text in captions] == [{"red"}, {"blue"}, {"green"}]
        answer = session.ask("What is there?")
        assert isinstance(answer, Answer)
        shown = [part for part in generator.prompts[-1] if not isinstance(part, str)]
        assert 1 <= len(shown) <= 4
        assert set(answer.text.split()) <= {"red", "blue", "green"}
    if durable:
        with Session(model_of(Looking(4)), memory=path) as later:
            assert [entry.caption for entry in later.memory.entries()] == captions
            assert later.ask("What is there?").text.split()


def test_a_model_that_reads_text_only_captions_nothing_and_is_shown_no_picture():
    generator = Looking(pictures=0)
    session = Session(model_of(generator), SessionConfig(passages=2))
    assert captions_of(watch(session, FILM)) == []  # it has seen nothing
    session.ask("What is there?")
    assert all(isinstance(part, str) for prompt in generator.prompts for part in prompt)


@pytest.mark.parametrize("pictures", range(8))
def test_pictures_beyond_what_is_read_are_left_out_fairly(pictures):
    keyframes = [tuple(np.full((1, 1, 3), 10 * i + j) for j in range(3)) for i in range(3)]
    items = [EvidenceItem(i, i + 1, torch.zeros(2, 4), "a", k) for i, k in enumerate(keyframes)]
    shown = readable(items, Reads(pictures=pictures))
    counts = [len(item.keyframes) for item in shown]
    assert sum(counts) == min(pictures, 9)
    assert max(counts) - min(counts) <= 1
    assert all(item.tokens is None and item.caption == "a" for item in shown)
    for item, whole in zip(shown, keyframes, strict=True):
        places = [next(i for i, one in enumerate(whole) if one is k) for k in item.keyframes]
        assert places == sorted(set(places))


def test_an_item_with_few_pictures_leaves_its_share_to_others():
    few, many = (tuple(np.zeros((1, 1, 3)) for _ in range(n)) for n in (1, 9))
    items = [EvidenceItem(0, 1, keyframes=few), EvidenceItem(1, 2, keyframes=many)]
    assert [len(i.keyframes) for i in readable(items, Reads(pictures=6))] == [1, 5]


def test_what_is_read_is_left_as_it_is():
    items = [EvidenceItem(0, 1, torch.zeros(2, 4), None, (np.zeros((1, 1, 3)),), "hello")]
    (item,) = readable(items, Reads(tokens=True, pictures=1))
    assert item is not None and item.tokens is items[0].tokens
    assert item.keyframes == items[0].keyframes and item.speech == "hello"


@pytest.mark.parametrize(("count", "most"), [(9, 0), (9, 1), (9, 4), (3, 4), (0, 2)])
def test_places_are_spread_evenly(count, most):
    places = spread(count, most)
    assert len(places) == min(count, most) == len(set(places))
    assert places == sorted(places) and all(0 <= place < count for place in places)
    if most > 1 and count:
        assert places[0] == 0 and places[-1] == count - 1
    assert most != 1 or places == [count // 2]
