"""Films of joined clips, and questions about them; no clip is decoded."""

import numpy as np
import pytest

from streammem.evaluation.answers import Outcome
from streammem.evaluation.films import (
    SCENE_S,
    Clip,
    ask_about,
    plan,
    scenes_cited,
    table,
    things_of,
)
from streammem.evaluation.timelines import TimedQuestion

SENTENCES = (
    "a camel walks in a fenced pen",
    "a silver car turns on a city street",
    "a taxi and bicycles on city streets",
    "two men ride a blue soapbox cart down a ramp",
    "a black swan swims in a pond",
)
CLIPS = [Clip(f"{i}.mp4", text, 4.0 + 3 * i) for i, text in enumerate(SENTENCES)]


@pytest.mark.parametrize("seed", range(5))
def test_a_film_shows_every_clip_within_it_and_never_one_twice_in_a_row(seed):
    film = plan(CLIPS, 120.0, seed=seed)
    assert film == plan(CLIPS, 120.0, seed=seed)
    assert {scene.clip for scene in film.scenes} == set(range(len(CLIPS)))
    assert all(a.clip != b.clip for a, b in zip(film.scenes, film.scenes[1:], strict=False))
    for scene in film.scenes:
        assert 0 <= scene.start < scene.end <= CLIPS[scene.clip].seconds
        assert SCENE_S[0] <= scene.end - scene.start <= SCENE_S[1]
    assert film.edges[-2] < 120.0 <= film.edges[-1]


@pytest.mark.parametrize(
    ("sentence", "things"),
    [
        (SENTENCES[0], ("a camel", "a camel walking in a fenced pen")),
        (SENTENCES[3], ("a cart", "two men riding a blue soapbox cart down a ramp")),
        (SENTENCES[4], ("a swan", "a black swan swimming in a pond")),
        ("a yellow dog walks on dry grass", ("a dog", "a yellow dog walking on dry grass")),
    ],
)
def test_a_sentence_gives_its_things_and_a_description(sentence, things):
    assert things_of(sentence) == things


def test_questions_know_their_scenes_and_a_third_are_about_what_never_comes():
    film = plan(CLIPS, 120.0, seed=0)
    shown = [SENTENCES[scene.clip] for scene in film.scenes]
    questions = ask_about(film, SENTENCES, seed=0)
    absent = [question for question in questions if not question.gold]
    assert len(absent) == pytest.approx(len(questions) / 3, abs=1)
    (camel,) = (q for q in questions if q.operator == "when" and "a camel?" in q.text)
    assert camel.gold == tuple(i for i, text in enumerate(shown) if "camel" in text)
    (car,) = (q for q in questions if q.operator == "when" and "a car?" in q.text)
    kin = [i for i, text in enumerate(shown) if "car " in text or "taxi" in text]
    assert car.gold == tuple(kin), "a taxi is a car"
    (often,) = (q for q in questions if q.operator == "how often" and "a car?" in q.text)
    assert often.gold == tuple(i for i in kin if i - 1 not in kin), "neighbours are one"


def test_evidence_shows_a_scene_that_it_covers_for_the_most_part():
    edges = np.array([0.0, 4.0, 10.0, 12.0])
    assert scenes_cited(edges, [(3.8, 10.4)]) == [1]
    assert scenes_cited(edges, [(10.0, 12.0), (0.0, 10.0)]) == [2, 0, 1]
    assert scenes_cited(edges, [(5.0, 6.0)]) == [1], "a part of a scene shows it"
    assert scenes_cited(edges, [(20.0, 21.0)]) == []


def test_the_table_tells_refusals_of_what_is_there_from_claims_of_what_is_not():
    there, absent = TimedQuestion("?", "when", (3,)), TimedQuestion("?", "when", ())
    outcomes = [
        Outcome(there, True, True, True, (3,), False, ""),
        Outcome(there, True, False, False, (1, 3), False, ""),
        Outcome(absent, True, False, True, (2,), False, ""),
        Outcome(absent, True, True, False, (2,), False, ""),
    ]
    figures = table(outcomes)
    assert figures["when"] == figures["all"]
    assert figures["all"] == {
        "questions": 4, "right": 0.5, "right, present": 0.5, "refused": 0.5, "claimed": 0.5,
        "evidence": 1.0,
    }  # fmt: skip
