import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.models.tiny.questions import (
    OPERATORS,
    QuestionHead,
    QuestionReading,
    best_pair,
    best_run,
)

GAINS = st.lists(st.integers(-5, 5).map(float), max_size=7)


@settings(max_examples=80, deadline=None)
@given(GAINS)
def test_the_best_run_has_the_greatest_sum_of_all(gains):
    begin, end = best_run(gains)
    sums = [sum(gains[a:b]) for a in range(len(gains)) for b in range(a + 1, len(gains) + 1)]
    assert sum(gains[begin:end]) == max([0.0, *sums])


@settings(max_examples=80, deadline=None)
@given(
    st.data(), st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=6)
)
def test_the_best_pair_has_the_greatest_sum_of_two_runs_around_a_joint(data, gains):
    first, second = ([float(pair[i]) for pair in gains] for i in (0, 1))
    size = len(first)
    joints = data.draw(st.lists(st.integers(1, size - 2), min_size=1, unique=True))
    (a, b), (c, d) = best_pair(first, second, joints)
    assert a < b <= c < d and any(b <= joint < c for joint in joints)
    every = [
        sum(first[a:b]) + sum(second[c:d])
        for joint in joints
        for a in range(joint)
        for b in range(a + 1, joint + 1)
        for c in range(joint + 1, size)
        for d in range(c + 1, size + 1)
    ]
    assert sum(first[a:b]) + sum(second[c:d]) == max(every)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return QuestionHead(8).eval()


def test_padding_changes_nothing(head):
    states = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    real = torch.ones(1, 5, dtype=torch.bool)
    scores, tags = head(states, real)
    padded = torch.cat([states, torch.full((1, 3, 8), 9.0)], dim=1)
    longer = torch.cat([real, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    more_scores, more_tags = head(padded, longer)
    assert torch.allclose(scores, more_scores, atol=1e-5)
    assert torch.allclose(tags, more_tags[:, :5], atol=1e-5)


def test_an_anchor_is_whole_words_of_the_question(head):
    question, spans = "did handstands end?", ((0, 3), (4, 8), (8, 14), (15, 18), (18, 19))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.tag.weight[1, 0, 1] = 1.0
        head.tag.bias[0] = 0.5
        head.whole.bias[OPERATORS.index("exists")] = 1.0
    states = torch.zeros(5, 8)
    states[2, 0] = 9.0  # the piece "stands"
    assert head.read(question, states, spans) == QuestionReading("exists", "handstands", "")


def test_the_first_of_two_anchors_ends_before_the_and(head):
    question = "between a dog and a cat?"
    spans = ((0, 7), (8, 9), (10, 13), (14, 17), (18, 19), (20, 23), (23, 24))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.tag.weight[1, 0, 1] = head.tag.weight[2, 1, 1] = 1.0
        head.tag.bias[0] = 0.5
        head.whole.bias[OPERATORS.index("between")] = 1.0
    states = torch.zeros(7, 8)
    states[1:4, 0] = states[4:6, 1] = 9.0
    assert head.read(question, states, spans) == QuestionReading("between", "a dog", "a cat")


def test_a_question_without_words_is_free(head):
    assert head.read("", torch.zeros(0, 8), ()) == QuestionReading("describe", "", "")


def _reads_everything(head, operator):
    """Make a head that takes every piece for an anchor, the first as well as the second."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.tag.bias[1] = head.tag.bias[2] = 1.0
        head.whole.bias[OPERATORS.index(operator)] = 1.0
        head.whole.bias[OPERATORS.index("when")] = 0.5


def _read(head, question):
    spans = [found.span() for found in re.finditer(r"\w+|\S", question)]
    return head.read(question, torch.zeros(len(spans), 8), spans)


@pytest.mark.parametrize(
    ("question", "anchor"),
    [
        ("Did the camera ever catch a dog?", "a dog"),
        ("the video shows boxing gloves", "boxing gloves"),
        ("has the film ever shown a brown dog", "a brown dog"),
        ("Was there a swing", "a swing"),
        ("has there ever been snow", "snow"),
        ("an owl came into view", "an owl"),
        ("a woman to be seen", "a woman"),
        ("the camera shows up", "the camera shows up"),
        ("a man filming a dog", "a man filming a dog"),
        ("does a boy catch a ball", "does a boy catch a ball"),
        ("who was there?", "who was there"),
    ],
)
def test_words_that_only_ask_are_in_no_anchor(head, question, anchor):
    _reads_everything(head, "exists")
    assert _read(head, question).anchor == anchor


def test_each_of_two_anchors_lies_on_its_side_of_an_and(head):
    _reads_everything(head, "between")
    for joint in ("and", "&"):
        assert _read(head, f"a suit {joint} boxing gloves")[1:] == ("a suit", "boxing gloves")
    assert _read(head, "to be seen and a dog").second == "a dog", "where the first has no words"


def test_nothing_lies_between_one_thing(head):
    _reads_everything(head, "between")
    assert _read(head, "a bike between markers") == QuestionReading(
        "when", "a bike between markers"
    )
    assert _read(head, "And between husbands") == QuestionReading("when", "And between husbands")
