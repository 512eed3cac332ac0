import json
import re
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from streammem.errors import DatasetError
from streammem.evaluation import answers, timelines
from streammem.evaluation.answers import evaluate_answers, is_right
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.timelines import PHRASINGS, TimedQuestion
from streammem.models.tiny.questions import QuestionReading
from streammem.types import Answer

from .test_memory import Oracle as Rememberer

EDGES = np.arange(11.0) * 10
# The longest first: "when did ... for the first time" begins as "when did ...".
PATTERNS = [
    (operator, re.compile(re.escape(phrasing).replace(r"\{\}", "(.+)") + "$"))
    for phrasing, operator in sorted(
        ((text, operator) for operator, texts in PHRASINGS.items() for text in texts),
        key=lambda pair: -len(pair[0]),
    )
]


class Oracle(Rememberer):
    """Its keys are of the human captions, and it reads every phrasing."""

    def read_questions(self, questions):
        return [read(question) for question in questions]

    def name_readout(self, description):
        return None


def read(question):
    for operator, pattern in PATTERNS:
        if found := pattern.match(question):
            return QuestionReading(operator, *found.groups())
    raise AssertionError(question)


@pytest.fixture
def doing_folder(farm_folder):
    """The forty photos with captions that one can ask for."""
    table = farm_folder / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows:
        row["captions"] = [re.sub(r"eats|chews", "eating", text) for text in row["captions"]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return farm_folder


@pytest.fixture
def exact(monkeypatch):
    """Only a scene that shows every word is seen: keys of words need another scale than photos."""
    seen = "streammem.memory.retrieval.Scale.probability"
    monkeypatch.setattr(seen, lambda scale, cosines: 1.0 * (np.asarray(cosines) > 0.99))
    monkeypatch.setattr(timelines, "OLD_S", 60.0)
    monkeypatch.setattr(timelines, "ROUNDS", 1)


def test_a_model_that_sees_and_reads_answers_every_operator_right(doing_folder, exact, tmp_path):
    path = tmp_path / "answers.jsonl"
    report = evaluate_answers(doing_folder, Oracle(), EvaluationOptions(predictions=path)).to_json()
    figures = report["operators"]
    assert set(figures) == {*PHRASINGS, "all"}  # farms lack nothing
    wrong = [row for row in map(json.loads, path.read_text().splitlines()) if not row["right"]]
    assert not wrong
    assert all(row["questions"] and row["read"] == row["right"] == 1 for row in figures.values())
    assert figures["when"]["cited"] == figures["between"]["cited"] == 1
    assert list(report["old"]) == ["memory"]


def test_what_is_old_is_found_in_the_memory_and_in_no_control(doing_folder, exact):
    old = evaluate_answers(doing_folder, Oracle(), EvaluationOptions(controls=True)).old
    assert old["memory"]["found@1"] == 1
    assert old["last 4"]["found@4"] == 0, "it looks at what is new only"
    assert len({row["questions"] for row in old.values()}) == 1, "the same questions for all"
    others = {"captions, BM25", "captions, sentences", "another stream's memory", "blind"}
    assert {"memory", "last 4", "uniform 32", *others} == set(old)
    assert max(old[name]["found@1"] for name in others) < 0.3


def test_a_question_is_read_once_however_many_memories_it_is_put_to(
    doing_folder, exact, monkeypatch
):
    monkeypatch.setattr(answers, "QUESTIONS_AT_ONCE", 7)
    model, texts, sizes = Oracle(), [], []
    answer = model.read_questions

    def count(questions):
        texts.extend(questions)
        sizes.append(len(questions))
        return answer(questions)

    model.read_questions = count
    whole = evaluate_answers(doing_folder, Oracle(), EvaluationOptions(controls=True))
    assert evaluate_answers(doing_folder, model, EvaluationOptions(controls=True)) == whole
    assert len(texts) == len(set(texts)) > 7 and max(sizes) == 7


@pytest.mark.parametrize(
    ("operator", "gold", "text", "cited", "right"),
    [
        ("when", (2, 5), "", {2, 5}, True),
        ("when", (2, 5), "", {2}, False),
        ("when", (2, 5), "", {2, 3, 5}, False),
        ("first", (2,), "", {5}, False),
        ("how often", (2, 5), "2 times: 00:20.0", {2, 5}, True),
        ("how often", (2, 5), "3 times: 00:20.0", {2, 5}, False),
        ("how often", (2,), "once: 00:20.0", {2}, True),
        ("how often", tuple(range(0, 10, 2)), "15 times: 00:20.0", {2}, False),
        ("how long", (1, 3, 5, 7, 9), "", {0, 2, 4, 6}, True),
        ("how long", (1, 3), "", {1}, False),
        ("before", (4, 5), "", {2, 3, 4, 5}, True),
        ("before", (4, 5), "", {4, 5, 6}, False),
        ("after", (5, 6), "", {5, 6, 7}, True),
        ("after", (5, 6), "", {5, 7}, False),
        ("between", (2, 6), "", {2, 3, 4, 6}, True),
        ("between", (2, 6), "", {2, 3, 4, 5}, False),
        ("exists", (2,), "", {7}, True),
    ],
)
def test_an_answer_is_right_only_if_it_agrees_with_the_truth(operator, gold, text, cited, right):
    answer = Answer("?", text, True, "computed")
    assert is_right(TimedQuestion("?", operator, gold), answer, cited, EDGES) == right
    unseen = Answer("?", "not seen", False, "computed")
    assert not is_right(TimedQuestion("?", operator, gold), unseen, cited, EDGES)


def test_what_is_absent_must_not_be_seen_and_now_must_not_look_back():
    absent, now = TimedQuestion("?", "exists", ()), TimedQuestion("?", "now", ())
    assert is_right(absent, Answer("?", "", False, "computed"), {3}, EDGES)
    assert not is_right(absent, Answer("?", "", True, "computed"), {3}, EDGES)
    assert is_right(now, Answer("?", "", True, "model"), set(), EDGES)
    assert not is_right(now, Answer("?", "", True, "model"), {3}, EDGES)
    assert not is_right(now, Answer("?", "", False, "computed"), set(), EDGES)


def test_words_of_the_models_own_are_no_computed_answer():
    answer = Answer("?", "2 times", True, "model")
    assert not is_right(TimedQuestion("?", "how often", (2, 5)), answer, {2, 5}, EDGES)


def test_each_question_stands_alone():
    turns = deque(["a question before"])

    def ask(text, present):
        assert not turns, "it would be read as a second turn"
        return Answer(text, "", False, "computed")

    encoder = SimpleNamespace(background=np.zeros((1, 8)), read_question=read)
    model = SimpleNamespace(text_encoder=encoder)
    asked = TimedQuestion(PHRASINGS["now"][0].format("a dog"), "now", ())
    timeline = timelines.Timeline(tuple(range(10)), EDGES, (asked,))
    assert answers._outcome(
        SimpleNamespace(turns=turns, model=model, ask=ask), asked, timeline
    ).read


def test_too_few_photos_are_an_error(photo_folder):
    with pytest.raises(DatasetError, match="at least 20"):
        evaluate_answers(photo_folder, Oracle(), EvaluationOptions())
