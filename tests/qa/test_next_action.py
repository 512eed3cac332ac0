"""What comes next from past actions: counts, the past itself, an adapter beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.models.tiny.planning import ActionWords, PlanningAdapter
from streammem.qa.next_action import (
    MAX_PAST,
    MAX_SHOWN,
    Ngram,
    PastFollower,
    cache,
    own_past,
    read_phrase,
)
from streammem.types import Note
from tests.memory.entries import make

WORDS = ActionWords(
    {"take": ["take", "pick-up"], "cut": ["cut"], "wash": ["wash"]},
    {"cup": ["cup"], "onion": ["onion", "onion:red"], "pan": ["pan"]},
)


@pytest.fixture(scope="module")
def adapter():
    torch.manual_seed(0)
    return PlanningAdapter(WORDS, dim=8, hidden=8).eval()


def row(number, caption, notes=()):
    return make(number, caption=caption, notes=tuple(notes))


def follow(captions, adapter=None):
    follower = PastFollower("make coffee", adapter)
    return [follower.push(row(number, caption)) for number, caption in enumerate(captions)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5), st.floats(0.2, 3))
def test_probabilities_sum_to_one_whatever_was_seen(history, order, scale):
    model, base = Ngram(order, scale), cache(history, 6, 0.9)
    for at, action in enumerate(history):
        model.push(history[:at], action)
    found = model.probabilities(history, base)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()


def test_an_ngram_expects_what_followed_and_the_longest_context_counts_most():
    model, base = Ngram(3), np.full(4, 0.25)
    for history, action in (([0, 1], 2), ([0, 1], 2), ([3, 1], 3)):
        model.push(history, action)
    assert model.probabilities([0, 1], base).argmax() == 2
    assert model.probabilities([3, 1], base).argmax() == 3
    assert model.probabilities([2], base)[2] > 0.25  # the commonest of all


def test_the_cache_counts_what_was_lately_most():
    found = cache([0, 0, 1], 3, 0.5)
    assert found == pytest.approx([0.75 / 1.75, 1 / 1.75, 0])
    assert cache([], 4, 0.5) == pytest.approx([0.25] * 4)


def test_the_past_counts_whole_only_what_it_holds():
    found = own_past([0, 1, 2, 0, 1, 2, 0, 1], 5)
    assert found.argmax() == 2 and found[3] == found[4] == 0


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("A man is cutting the red onion on a board.", "cutting onion"),
        ("A dog is running.", "running"),
        ("In the morning a woman is washing a cup", "washing cup"),
        ("A building next to a king", ""),
        ("", ""),
    ],
)
def test_a_phrase_is_the_form_in_ing_and_its_noun(text, phrase):
    assert read_phrase(text) == phrase


def test_a_repeated_past_is_expected_again_and_named_as_a_guess_from_it():
    captions = ["A man is taking a cup", "He is cutting an onion", "He is washing a pan"] * 3
    plan = follow(captions[:-1])[-1]
    assert plan.next[0].name == "washing pan"
    assert {each.name for each in plan.next} == {"washing pan", "taking cup"}
    assert sum(each.probability for each in plan.next) == pytest.approx(1)
    assert (plan.progress, plan.next_from, plan.alerts) == (None, "past", ())
    # Each action stands where it was last done, with all its times.
    assert [(step.name, step.state) for step in plan.steps] == [
        ("washing pan", "done"), ("taking cup", "done"), ("cutting onion", "doing"),
    ]  # fmt: skip
    assert plan.steps[2].spans == ((1.0, 2.0), (4.0, 5.0), (7.0, 8.0))
    assert "next, guessed from past actions: washing pan" in str(plan)


def test_nothing_is_next_where_one_action_alone_is_known_and_neighbours_are_one():
    plan = follow(["A man is cutting an onion", "He is cutting an onion", "A wall"])[-1]
    assert plan.next == () and plan.time == 3.0
    assert [step.spans for step in plan.steps] == [((0.0, 2.0),)]


def test_a_scene_that_goes_on_or_is_captioned_anew_replaces_itself():
    follower = PastFollower("cook")
    follower.push(row(0, "A man is taking a cup"))
    plan = follower.push(make(0, caption="A man is washing a cup", end=9.0))
    assert [step.name for step in plan.steps] == ["washing cup"]
    assert plan.steps[0].spans == ((0.0, 9.0),)


def test_an_adapter_names_actions_that_were_never_done_and_what_is_said_counts_first(adapter):
    plans = follow(["A man is picking up a cup", "She cuts the red onion"], adapter)
    assert [step.name for step in plans[-1].steps] == ["take cup", "cut onion"]
    known = {each.name for each in plans[-1].next}
    assert len(known) == 5 and known - {"take cup"} and "cut onion" not in known
    assert plans[-1].next_from == "past and adapter"
    follower = PastFollower("cook", adapter)
    said = row(0, "A man is taking a cup", [Note(0.0, 1.0, "Now I wash the pan.")])
    assert follower.push(said).steps[0].name == "wash pan"


def test_the_past_is_bounded():
    follower = PastFollower("cook")
    verbs = ("cutting", "taking", "washing")
    plan = follower.push_all(
        row(number, f"A man is {verbs[number % 3]} a {chr(97 + number % 26)}thing")
        for number in range(MAX_PAST + 50)
    )
    assert len(follower._past) == MAX_PAST and len(plan.steps) == MAX_SHOWN
    assert len(plan.next) == 5


@pytest.mark.parametrize("goal", ["", "  \n", "x" * 501])
def test_a_goal_that_says_nothing_is_refused(goal):
    with pytest.raises(ConfigError, match="goal"):
        PastFollower(goal)
