import re

import pytest

from streammem.evaluation.streams import ComposedStream, StreamQuestion
from streammem.evaluation.timelines import PHRASINGS, ask_by_operator, thing_of
from streammem.training.phrasings import HELD_OUT
from streammem.training.phrasings import PHRASINGS as TRAINED

SCENES = (0, 1, 2, 0, 3, 4, 5, 5, 6, 1)
THINGS = ("a dog running", "two men is rowing", "a cat sleeping", "a boy eating", "a cow chewing",
          "a girl is singing", "a goat standing")  # fmt: skip


def stream():
    golds = [tuple(s for s, photo in enumerate(SCENES) if photo == p) for p in range(len(THINGS))]
    present = [
        StreamQuestion(t, "present", g, n, 0)
        for n, (t, g) in enumerate(zip(THINGS, golds, strict=True))
    ]
    absent = StreamQuestion("a horse jumping", "absent", (), 9, 0)
    near = StreamQuestion("a dog sleeping", "near", (), 8, 0)
    return ComposedStream(SCENES, (*present, absent, near))


def asked(operator, most=99):
    questions = ask_by_operator(stream(), most, seed=0)
    return [question for question in questions if question.operator == operator]


def golds(operator):
    return {question.gold for question in asked(operator)}


def test_no_phrasing_is_one_that_the_question_head_was_trained_or_tested_on():
    known = {
        re.sub(r"\[?\{\w+\}\]?", "{}", text)
        for grammar in (TRAINED, HELD_OUT)
        for texts in grammar.values()
        for text in texts
    }
    ours = [text for texts in PHRASINGS.values() for text in texts]
    assert len(set(ours)) == len(ours) and not known & set(ours)
    assert set(PHRASINGS) == set(TRAINED) - {"describe"}


def test_the_truth_of_every_operator_follows_from_the_scenes():
    everywhere = {(0, 3), (1, 9), (2,), (4,), (5,), (8,)}  # scenes 6 and 7 are one event or two
    for operator in ("when", "how often", "how long"):
        assert golds(operator) == everywhere
    assert golds("exists") == everywhere | {()}
    assert golds("first") == {(0,), (1,)} and golds("last") == {(3,), (9,)}
    assert golds("before") == {(1, 2), (3, 4), (4, 5), (7, 8)}
    assert golds("after") == {(2, 3), (4, 5), (5, 6), (8, 9)}
    assert golds("now") == {()}


def test_nothing_is_asked_for_before_the_first_scene_or_after_the_last():
    present = [StreamQuestion(thing, "present", (n,), n, 0) for n, thing in enumerate(THINGS[:2])]
    questions = ask_by_operator(ComposedStream((0, 1), tuple(present)), 9, seed=0)
    around = {(q.operator, q.gold) for q in questions if q.operator in ("before", "after")}
    assert around == {("before", (0, 1)), ("after", (0, 1))}


def test_between_names_the_earlier_first_and_something_lies_between():
    for question in asked("between"):
        left, right = question.gold
        assert right - left > 1
        at = [question.text.index(thing_of(THINGS[SCENES[scene]])) for scene in question.gold]
        assert at == sorted(at)


def test_only_what_the_stream_lacks_is_asked_for_in_vain():
    assert [q.text for q in asked("exists") if not q.gold] == [
        PHRASINGS["exists"][len("a horse jumping") % 3].format("a horse jumping")
    ]


def test_at_most_so_many_are_asked_but_when():
    assert len(asked("how often", most=2)) == 2
    assert len(asked("when", most=2)) == 6


@pytest.mark.parametrize(
    ("description", "thing"),
    [
        ("a dog is running on a beach", "a dog running on a beach"),
        ("two dogs running", "two dogs running"),
        ("the dog runs", None),
        ("dogs running", None),
        ("a dog is running while a man sits", None),
        ("a dog, wet, running", None),
        ("a man running has a hat", None),
    ],
)
def test_a_thing_doing_something_is_taken_from_a_caption(description, thing):
    assert thing_of(description) == thing
