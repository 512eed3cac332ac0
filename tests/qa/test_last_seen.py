"""Where something was seen last, and whether something was done: the last sighting answers."""

import numpy as np
import pytest

from streammem.memory.retrieval import EVERYTHING
from streammem.qa.question import LastSeenQuestion, read_last_seen
from tests.qa.test_answerer import asked_of, reader, spans  # noqa: F401, fixtures
from tests.sessions import session_of
from tests.tiny import film


@pytest.mark.parametrize(
    ("question", "thing", "action"),
    [
        ("Where did I put my cup?", "my cup", ""),
        ("where have you last seen the keys", "the keys", ""),
        ("Where's my phone?", "my phone", ""),
        ("Where is the dog?", "the dog", ""),
        ("Where was my red jacket last seen?", "my red jacket", ""),
        ("What did I do with the scissors?", "the scissors", ""),
        ("Where did we park the car last?", "the car", ""),
        ("Did I turn off the stove?", "the stove", "turn off the stove"),
        ("Did I turn the stove off?", "the stove", "turn the stove off"),
        ("Have I taken the pills?", "the pills", "take the pills"),
        ("Have I already fed Rex?", "Rex", "feed Rex"),
        ("Do I still have to water the plants?", "the plants", "water the plants"),
    ],
)
def test_a_question_is_read(question, thing, action):
    assert read_last_seen(question) == LastSeenQuestion(thing, action)


@pytest.mark.parametrize(
    "question",
    [
        "Where is it?",
        "Where is the man standing?",
        "Where is the dog now?",
        "Did I see a dog?",
        "Have you seen a dog?",
        "Did they mention the harbour?",
        "Did the dog run?",
        "When does the dog swim?",
        "Where can I buy a ticket for the train to the city of Hamburg?",
        "",
    ],
)
def test_other_questions_are_left_to_other_readings(question):
    assert read_last_seen(question) is None


def test_the_last_sighting_is_told_with_what_came_after(asked_of):  # noqa: F811
    session = asked_of()
    answer = session.ask("Where is red?")
    caption, after = session.memory.get(3).caption, session.memory.get(4).caption
    first, *rest = answer.text.splitlines()
    assert first == (
        f"last seen 00:14.0-00:18.0, 3 s before the end, not seen since (2 times in all): {caption}"
    )
    assert rest == ["then:", f"[00:18.0-00:21.0] {after}".rstrip()]
    assert (answer.seen, answer.method) == (True, "computed")
    assert spans(answer) == [(14.0, 18.0), (18.0, 21.0)]
    assert "in the newest scene" in session.ask("Where is white?").text


def test_what_was_never_seen_is_told_with_the_nearest_scenes(asked_of):  # noqa: F811
    answer = asked_of().ask("Where did I put black?")
    assert (answer.text, answer.seen) == ("not seen: black", False)
    assert answer.evidence


def test_a_time_without_a_sighting_falls_back_to_the_one_before_and_not_to_a_later_one(asked_of):  # noqa: F811
    session = asked_of()
    answer = session.ask("Where is blue after 0:10?")
    assert answer.text.startswith("not seen then; before that last seen 00:04.5-00:08.0, ")
    assert not answer.seen and answer.looked_at
    early = session.ask("Where is green in the first 5 seconds?")
    assert (early.text, early.seen) == ("not seen: green", False)


def test_an_action_that_was_not_seen_gives_the_thing_and_is_not_seen(asked_of):  # noqa: F811
    answer = asked_of().ask("Did I close blue?")
    assert answer.text.startswith("not seen: close blue; blue: last seen 00:04.5-00:08.0, ")
    assert not answer.seen and answer.evidence[0].segment == 1


@pytest.mark.parametrize(("action", "is_seen"), [(0.6, False), (0.9, True)])
def test_a_scene_shows_an_action_where_it_fits_that_as_well_as_the_thing_alone(
    asked_of,  # noqa: F811
    monkeypatch,
    action,
    is_seen,
):
    session = asked_of()
    thing = session.answerer._query("blue", session.memory.now(0.0), EVERYTHING).key

    def scored(answerer, query, window):
        score = 0.9 if np.array_equal(query.key, thing) else action
        return {row.segment: score if row.segment == 1 else 0.0 for row in rows}

    rows = session.memory.entries()
    monkeypatch.setattr("streammem.qa.answerer.Answerer._scores", scored)
    answer = session.ask("Did I close blue?")
    assert answer.seen is is_seen
    assert answer.text.startswith("last seen " if is_seen else "not seen: close blue; blue: ")


def test_an_action_that_a_caption_names_is_seen(reader):  # noqa: F811
    session = session_of(reader, min_confidence=0.0)
    for frame in film(("red", 4), ("blue", 4)):
        session.push(frame)
    session.flush()
    key = np.eye(1, len(session.memory.get(0).visual_keys[0]), dtype=np.float32)[0]
    session.memory.set_caption(0, "A person locks the door.", key)
    answer = session.ask("Have I locked the door?")
    assert answer.seen and answer.text.startswith("last seen 00:00.0-00:02.0, ")


def test_the_wall_clock_and_how_long_ago_are_told_where_they_are_known(asked_of, reader):  # noqa: F811
    asked_of()  # which says what is seen
    session = session_of(reader, timezone="UTC")
    session.wall_zero = 1_000_000.0
    for frame in film(("red", 4), ("blue", 4), ("green", 4)):
        session.push(frame)
    session.flush()
    session.answerer.wall_clock = lambda: 1_000_000.0 + 4.0 + 60.0
    answer = session.ask("Where is blue?")
    told = "last seen 00:02.0-00:04.0 (1970-01-12 13:46:42+00:00), 1 min ago, not seen since"
    assert answer.text.startswith(told)
