"""Whether looking again pays, on a small stream whose photos the teacher knows."""

import numpy as np
import pytest
from PIL import Image

from streammem.errors import DatasetError
from streammem.evaluation import rereading
from streammem.evaluation.datasets import EvaluationOptions, read_photos
from streammem.evaluation.rereading import (
    NOT_SEEN,
    PICTURES,
    SceneQuestion,
    Teacher,
    ask_about,
    evaluate_rereading,
    holds_answer,
)
from streammem.models.protocols import EvidenceItem
from tests.evaluation.conftest import write_rows
from tests.tiny import tiny_model

DOING = ("eating hay", "jumping over a fence", "sleeping in the sun", "drinking some water")


@pytest.fixture
def zoo(tmp_path):
    """Sixty photos of noise that differ, each of one animal that does something."""
    folder, rng = tmp_path / "zoo", np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(60):
        pixels = rng.integers(0, 256, (3, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        animal = f"striped animal{'abcdefghij'[number // 10]}{'klmnopqrst'[number % 10]}"
        captions = [f"A {animal} is {DOING[number % 4]}.", f"One {animal} on a field."]
        rows.append({"image": f"{number}.png", "split": "val", "captions": captions})
    write_rows(folder, rows)
    return folder


def test_questions_have_one_true_scene_or_none(zoo):
    photos = read_photos(zoo, "val")
    questions = ask_about(photos[:50], photos[50:])
    kinds = {question.kind for question in questions}
    assert kinds == {"old", "recent", "now", "absent"}
    for question in questions:
        assert (question.scene == -1) == (question.kind == "absent") == (not question.doing)
        if question.kind == "old":  # scenes last a minute
            assert question.scene < 50 - 10


def test_the_teacher_answers_from_what_it_is_shown_and_from_nothing_else(zoo):
    from streammem.evaluation.datasets import read_photo

    photos = read_photos(zoo, "val")[:9]
    pictures = [read_photo(photo.path) for photo in photos]
    teacher = Teacher(pictures, [photo.captions for photo in photos], PICTURES)
    question = next(q for q in ask_about(photos, photos[:0]) if q.scene == 4 and q.kind != "now")

    def reply(*shown):
        items = [EvidenceItem(0, 1, keyframes=(pictures[i],)) for i in shown]
        return "".join(
            teacher.stream(teacher.answer_prompt(items, question.text), teacher.decoding)
        )

    assert holds_answer(question, reply(3, 4, 5)) and reply(3, 5) == reply() == NOT_SEEN
    assert teacher.shown == [3, 2, 0]


def test_what_is_right():
    question = SceneQuestion("", "old", (frozenset({"eat", "hay"}),), 0)
    assert holds_answer(question, "It is eating.") and not holds_answer(question, "It sleeps.")
    absent = SceneQuestion("", "absent", (), -1)
    assert holds_answer(absent, "I do not see that.") and not holds_answer(absent, "It sleeps.")


def test_every_context_is_asked_the_same_with_no_more_pictures(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(rereading, "MOST_QUESTIONS", 5)
    options = EvaluationOptions(controls=True, predictions=tmp_path / "p", progress=False)
    report = evaluate_rereading(zoo, tiny_model(), None, options)
    assert list(report.rows) == [
        "memory", "now", "uniform", "captions", "goldfish", "goldfish-again", "memory, 8 steps"
    ]  # fmt: skip
    for name, row in report.rows.items():
        assert 0 <= row["pictures"] <= PICTURES
        assert row["absent"] == 1.0  # the teacher says nothing that it is not shown
        if name == "captions":
            assert row["pictures"] == 0
    assert report.rows["now"]["old"] == 0 and report.rows["now"]["now"] == 1.0
    assert report.rows["memory, 8 steps"]["old"] >= report.rows["memory"]["old"]
    assert str(report).splitlines()[1].startswith("memory ")
    asked = [line for line in (tmp_path / "p").read_text().splitlines() if '"memory"' in line]
    assert len(asked) == sum(report.questions.values())


def test_too_few_photos_are_refused(zoo):
    with pytest.raises(DatasetError, match="too few photos"):
        evaluate_rereading(zoo, tiny_model(), None, EvaluationOptions(limit=12))
