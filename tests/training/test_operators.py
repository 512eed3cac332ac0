import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from streammem.models.tiny.questions import OPERATORS, QuestionHead
from streammem.training import operators
from streammem.training.loop import Schedule, train_stage
from streammem.training.operators import OperatorStage, control, tags_of
from streammem.training.phrasings import HELD_OUT, PHRASINGS, anchors_of, draw_question
from streammem.training.run import run_recipe
from tests.tiny import TinySentences
from tests.training.tiny_backbones import RECIPE, tiny_backbones

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
ANIMALS = ("dog", "cat", "horse", "bird", "goat", "camel")
CAPTIONS = [
    text
    for colour in COLOURS
    for animal in ANIMALS
    for text in (f"A {colour} {animal} is running on grass .", f"The {animal} runs")
]


def test_no_phrasing_is_trained_and_tested():
    for operator in OPERATORS:
        assert not set(PHRASINGS[operator]) & set(HELD_OUT[operator])
        assert len(HELD_OUT[operator]) >= 5


@pytest.mark.parametrize("held_out", [False, True])
def test_anchors_lie_in_their_question_and_only_between_has_two(held_out):
    anchors, rng = anchors_of(CAPTIONS), np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        asked = draw_question(anchors, rng, held_out=held_out)
        seen.add(asked.operator)
        assert len(asked.anchors) <= 2 and (len(asked.anchors) == 2) == (
            asked.operator == "between"
        )
        for begin, end in asked.anchors:
            assert 0 <= begin < end <= len(asked.text)
            assert not set("[]{}") & set(asked.text)
    assert seen == set(OPERATORS)


def test_verbs_get_the_form_that_their_place_asks_for():
    captions = ["A man is riding a bike", "He rides", "A dog is running", "It runs", "she jogs"]
    anchors = anchors_of(captions)
    assert set(anchors.actions) == {
        ("a man", "ride", "riding", " a bike"),
        ("a dog", "run", "running", ""),
    }
    assert {"a man", "a dog"} <= set(anchors.things)


def test_captions_without_any_pattern_can_still_be_asked_about():
    anchors = anchors_of(["Grass.", "Sky"])
    for seed in range(30):
        assert draw_question(anchors, np.random.default_rng(seed)).text


def test_tags_follow_the_anchors_of_a_question():
    asked = operators.QuestionExample(
        "what was between a dog and b", "between", ((17, 22), (27, 28))
    )
    pieces = ((0, 4), (5, 8), (9, 16), (17, 18), (19, 22), (23, 26), (27, 28))
    assert tags_of(asked, pieces) == [0, 0, 0, 1, 1, 0, 2]


def test_the_control_reads_what_a_regular_expression_can():
    assert control("How often did I see a dog?").operator == "how often"
    assert control("What was between a dog and a cat?")[1:] == ("a dog", "a cat")
    assert control("").operator == "describe"


def test_the_stage_learns_to_read_what_it_was_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(operators, "NUM_TRAINING", 600)
    monkeypatch.setattr(operators, "NUM_VALIDATION", 100)
    torch.manual_seed(0)
    split = ([c for c in CAPTIONS if "camel" not in c], [c for c in CAPTIONS if "camel" in c])
    stage = OperatorStage(QuestionHead(), TinySentences(), split, batch=32)
    assert not any("camel" in q.text for q in stage.questions)
    before = stage.evaluate()
    figures = train_stage(stage, Schedule(steps=60, lr=3e-2, warmup=2), tmp_path)
    assert figures["operator"] > max(before["operator"], 2 * figures["operator_majority"])
    assert figures["anchor"] > before["anchor"]


def test_a_run_of_the_stage_alone_leaves_a_model_that_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(operators, "NUM_TRAINING", 60)
    monkeypatch.setattr(operators, "NUM_VALIDATION", 20)
    path = tmp_path / "recipe.toml"
    stage = '[[stages]]\nkind = "operators"\nsteps = 2\nlr = 1e-2\nbatch = 4\n'
    path.write_text(RECIPE[: RECIPE.index("[[stages]]")] + stage)
    figures = run_recipe(path, tmp_path / "out", backbones=tiny_backbones())
    assert {"operator", "anchor", "operator_regex"} <= set(figures["stages"]["operators"])
    tensors = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert {"questions.whole.weight", "questions.piece.weight", "questions.tag.weight"} <= set(
        tensors
    )
