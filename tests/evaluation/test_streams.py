import json
import os
from collections import Counter
from pathlib import Path

import pytest

from streammem.errors import DatasetError
from streammem.evaluation import streams
from streammem.evaluation.streams import compose, words_of

from .conftest import scene_captions


def farm(horses=0):
    """The forty scenes, and photos of horses."""
    ridden = [
        (f"A man number {n} rides a horse past a barn .", f"A horse goes past a barn {n} .")
        for n in range(horses)
    ]
    return [*scene_captions(), *ridden]


def of_kind(stream, kind):
    return [question for question in stream.questions if question.kind == kind]


def test_equal_seeds_make_equal_streams_and_others_do_not():
    one, same, other = (compose(farm(2), 30, 40, asked=42, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_a_present_question_is_gold_wherever_its_photo_comes_again():
    captions = farm(2)
    stream = compose(captions, 60, 80, asked=42, seed=0)
    asked = of_kind(stream, "present")
    assert asked
    for question in asked:
        shown = [scene for scene, photo in enumerate(stream.scenes) if photo == question.photo]
        assert set(shown) <= set(question.gold) and shown
        for scene in question.gold:
            told = [set(words_of(text)) for text in captions[stream.scenes[scene]]]
            assert any(set(words_of(question.text)) <= words for words in told)
    assert any(len(question.gold) > 1 for question in asked), "some photos come again"


def test_what_no_question_may_find_is_in_no_scene(monkeypatch):
    monkeypatch.setattr(streams, "MOST_SHARE", 0.2)
    captions = farm(6)
    stream = compose(captions, 20, 120, asked=46, seed=3)
    shown = [set().union(*map(words_of, captions[photo])) for photo in stream.scenes]
    assert of_kind(stream, "absent")
    for question in of_kind(stream, "absent"):
        assert question.gold == () and "horse" in question.text
        assert not any("hors" in words for words in shown)
    for question in (*of_kind(stream, "near"), *of_kind(stream, "swapped")):
        words = set(words_of(question.text))
        assert question.gold == () and not any(words <= each for each in shown), question.text
    for question in of_kind(stream, "near"):
        assert words_of(question.text) and question.photo not in stream.scenes


def test_a_swapped_question_is_one_scenes_caption_but_for_one_colour():
    colours = ("red", "blue", "green", "white")
    gates = [f"{a}{b}k" for a in "bcdfg" for b in "aeiou"]  # a word of its own for each
    captions = [
        (f"A {colours[n % 4]} ball lies near the {gate} gate .", f"A ball , some {gate} .")
        for n, gate in enumerate(gates)
    ]
    asked = of_kind(compose(captions, 20, 60, asked=25, seed=5), "swapped")
    assert asked
    for question in asked:
        told = captions[question.photo][question.caption].lower().split()
        differing = [(a, b) for a, b in zip(told, question.text.split(), strict=False) if a != b]
        assert len(differing) == 1 and set(differing[0]) <= set(streams.ATTRIBUTES[0])
        assert differing[0][1] not in streams.CONFUSED[differing[0][0]]


@pytest.mark.parametrize(
    ("scenes", "near"),
    [
        (["red", "barn", "hill", "pond"], False),  # a quarter each: like nothing
        (["red barn", "hill", "pond"], True),
        (["red barn hill", "pond"], False),  # most of it in one scene: perhaps it is that one
        (["red barn", "hill"], False),  # a word that fits no scene
    ],
)
def test_a_near_question_is_somewhat_like_a_scene_and_each_word_fits_one(scenes, near):
    captions = [(text,) for text in scenes]
    words = [frozenset(words_of(text)) for text in scenes]
    maker = streams._QuestionMaker(captions, words, range(len(scenes)), frozenset(), None)
    assert maker._near(set(words_of("red barn hill pond"))) == near


def test_streams_longer_than_the_photos_repeat_those_that_only_crowd():
    stream = compose(farm(2), 500, 10, asked=25, seed=0)
    counts = Counter(stream.scenes)
    assert len(stream.scenes) == 500 and max(stream.scenes) < 42
    assert all(count == 1 for photo, count in counts.items() if photo < 25)


@pytest.mark.parametrize(
    ("left", "right"),
    [("Two dogs running .", "two dog runs"), ("A man rides bikes", "guys riding a bicycle")],
)
def test_words_are_one_in_every_form(left, right):
    assert set(words_of(left)) == set(words_of(right))


@pytest.mark.parametrize(("asked", "scenes"), [(10, 30), (43, 30), (42, 1)])
def test_too_few_photos_are_an_error(asked, scenes):
    with pytest.raises(DatasetError, match="streams"):
        compose(farm(2), scenes, 10, asked=asked, seed=0)


@pytest.mark.skipif("STREAMMEM_DATA" not in os.environ, reason="STREAMMEM_DATA is not set")
def test_real_captions_give_questions_of_every_kind():
    table = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k" / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    captions = [row["captions"] for row in rows if row["split"] == "val"]
    stream = compose(captions, 500, 300, asked=len(captions), seed=0)
    assert {kind: len(of_kind(stream, kind)) for kind in streams.NEEDLE_KINDS} == {
        "present": 150, "absent": 50, "near": 50, "swapped": 50,
    }  # fmt: skip
