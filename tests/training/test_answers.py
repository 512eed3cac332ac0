"""The answer stage, on pictures of coloured shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.models.protocols import EvidenceItem
from streammem.models.tiny.words import WordsOfTokens
from streammem.training import answers
from streammem.training.answers import (
    KIND_SHARES,
    NOT_SEEN,
    VISUAL_TOKEN,
    AnswerStage,
    QuestionsPrompt,
    own_captions,
)
from streammem.training.captions import BranchedPrompt
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.loop import Schedule, read_log, train_stage
from streammem.training.lora import add_lora, lora_tensors
from streammem.training.questions import QuestionRecord
from streammem.training.recipe import LoraOptions
from streammem.training.records import read_source
from tests.tiny import TinyVision, tiny_language, tiny_model
from tests.training.tiny_backbones import tiny_bridge

ABOUT = (
    (QuestionRecord("What colour is the cat?", "Red."), QuestionRecord("Is it a cat?", "Yes.")),
    (QuestionRecord("How many dogs are there?", "Two."),),
    (),
)
SHOWN = ((("cat", 0.9),), (("dog", 0.9), ("dog", 0.7)), (("cup", 0.9),))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 30))
    return cache_features(source, TinyVision(), folder, crops=0)


def asked_about(pictures):
    count = range(len(pictures))
    questions, things = [ABOUT[i % 3] for i in count], [SHOWN[i % 3] for i in count]
    return replace(pictures, questions=questions, things=things)


def stage_of(shapes, change=lambda pictures: pictures):
    language = tiny_language()
    bridge = tiny_bridge(language, shapes.split("train"))
    add_lora(language, LoraOptions(rank=4, dropout=0.0), seed=0)
    training, validation = (change(asked_about(shapes.split(name))) for name in ("train", "val"))
    captions = dict.fromkeys(training.names[::2], "A shape.")
    named = {name: ["cat", "dog"] for name in training.names}
    return AnswerStage(
        bridge, language, training, validation, captions=captions, named=named, batch=4
    )


@pytest.fixture
def stage(shapes):
    return stage_of(shapes)


def test_a_question_is_trained_exactly_as_it_is_asked(stage):
    words = WordsOfTokens(4, 32, ("cup", "pan"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    words.up.bias.data = torch.tensor([9.0, -9.0])
    model = replace(tiny_model(), bridge=stage.bridge, words=words)
    tokens = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    items = [
        EvidenceItem(61.0, 70.5, tokens[0], "A <|im_end|> dog."),
        EvidenceItem(80, 90, tokens[1], None),
    ]
    embedded = model.language.embed(model.answer_prompt(items, "What is it?"))
    passages = [stage.passage(i.start, i.end, i.caption, ["cup"]) for i in items]
    ids = torch.tensor([*stage._prefix, *passages[0], *passages[1],
                        *model.language.text_ids("What is it?"), *stage._suffix])  # fmt: skip
    rows = model.language.model.get_input_embeddings()(ids.clamp(min=0))
    rows[ids == VISUAL_TOKEN] = stage.bridge.to_language(tokens).flatten(0, 1)
    assert torch.equal(rows, embedded)


def test_prompts_side_by_side_lose_exactly_what_they_lose_alone(stage, monkeypatch):
    rng = np.random.default_rng(0)
    question = QuestionRecord("What is it?", "A cat.")
    asked = [QuestionsPrompt((0, 3), (question, ABOUT[0][0])), QuestionsPrompt((1,), ABOUT[1])]
    rows = [stage._row(stage.pictures, one, rng, whole=True) for one in asked]
    tokens = stage._tokens[[0, 3, 1], 0]
    together = stage._losses(rows, tokens, [2, 1])
    alone = []
    for row, shown in zip(rows, (tokens[:2], tokens[2:]), strict=True):
        for branch in row.branches:
            single = BranchedPrompt(row.shared, [branch])
            alone.append(stage._losses([single], shown, [len(shown)]))
    # bfloat16 products, where they are fast
    assert torch.allclose(together, torch.cat(alone), atol=0.05)
    monkeypatch.setattr(answers, "takes_mask", lambda language: False)
    assert torch.allclose(stage._losses(rows, tokens, [2, 1]), together, atol=0.05)


def test_every_kind_is_drawn_and_asks_what_its_pictures_answer(stage):
    rng = np.random.default_rng(0)
    drawn = [one for _ in range(800) if (one := stage.draw(rng))]
    questions = {q for one in drawn for q in one.questions}
    assert {*ABOUT[0], *ABOUT[1]} <= questions
    assert QuestionRecord("Is there a dog?", "Yes.") in questions
    assert QuestionRecord("Is there a cup?", "No.") in questions
    assert QuestionRecord("How many dogs are there?", "Two.") in questions
    assert any(answer == "A shape." for _, answer in questions)
    assert len({len(one.pictures) for one in drawn}) == 4, "alone and among others"
    for one in drawn:
        shows = [{name for name, _ in stage.pictures.things[i]} for i in one.pictures]
        for question, answer in one.questions:
            if answer == NOT_SEEN:
                assert question == "What colour is the cat?"
                assert "cat" not in shows[0]
            if question == "Is there a cup?":
                assert (answer == "Yes.") == ("cup" in shows[0])
    refused = sum(q.answer == NOT_SEEN for one in drawn for q in one.questions)
    assert 0 < refused < 1.5 * KIND_SHARES["unseen"] * len(drawn), "what is shown is seldom refused"


def test_several_things_are_counted_by_their_plural(stage):
    things = [(("knife", 0.9), ("knife", 0.9))] * len(stage.pictures)
    stage.pictures = replace(stage.pictures, things=things)
    made = stage._questions("things", 0, np.random.default_rng(0))
    assert QuestionRecord("How many knives are there?", "Two.") in made


def test_rare_answers_are_drawn_more_often_than_their_share(stage):
    rng = np.random.default_rng(0)
    questions = [*stage.pictures.questions]
    questions = [(QuestionRecord("Is it?", "Yes."),) if q else () for q in questions]
    questions[0] = (QuestionRecord("Is it?", "Mauve."),)
    pictures = replace(stage.pictures, questions=questions)
    other = AnswerStage(
        stage.bridge, stage.language, pictures, pictures, captions={}, named={}, batch=4
    )
    drawn = [q.answer for _ in range(2000) if (one := other.draw(rng)) for q in one.questions]
    share = drawn.count("Mauve.") / (drawn.count("Mauve.") + drawn.count("Yes."))
    assert share > 1.3 / sum(map(bool, questions))


def test_a_batch_without_a_question_is_drawn_again_but_not_for_ever(stage, monkeypatch):
    draw, drawn = stage.draw, []
    monkeypatch.setattr(
        stage, "draw", lambda rng: drawn.append(1) or (None if len(drawn) < 20 else draw(rng))
    )
    assert stage.loss(np.random.default_rng(0)).isfinite()
    assert len(drawn) >= 20
    monkeypatch.setattr(stage, "draw", lambda rng: None)
    with pytest.raises(DatasetError, match="hardly any picture"):
        stage.loss(np.random.default_rng(0))


def test_the_stage_learns_and_leaves_the_bridge_as_it_is(stage, tmp_path, monkeypatch):
    real = stage.loss
    monkeypatch.setattr(stage, "loss", lambda rng: real(np.random.default_rng(0)))
    before = {name: value.clone() for name, value in stage.bridge.state_dict().items()}
    lora = {name: value.clone() for name, value in lora_tensors(stage.language).items()}
    figures = train_stage(stage, Schedule(steps=5, lr=1e-2, warmup=1), tmp_path)
    losses = [entry["loss"] for entry in read_log(tmp_path / "answers.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    assert set(figures) == {"val_loss", "val_loss_other_picture"}
    assert all(
        torch.equal(before[name], value) for name, value in stage.bridge.state_dict().items()
    )
    after = lora_tensors(stage.language)
    assert all(not torch.equal(lora[name], after[name]) for name in lora)


def test_data_without_any_question_are_refused(shapes):
    def bare(pictures):
        nothing = [()] * len(pictures)
        return replace(pictures, questions=nothing, captions=nothing, things=nothing)

    with pytest.raises(DatasetError, match="no picture of the data has questions"):
        stage_of(shapes, bare)


def test_the_pictures_that_people_ask_about_are_captioned(stage):
    captions = own_captions(stage.bridge, stage.language, stage.pictures)
    asked = [i for i, questions in enumerate(stage.pictures.questions) if questions]
    assert captions.keys() == {stage.pictures.names[i] for i in asked}
