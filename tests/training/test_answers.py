"""The answer stage, on pictures of coloured shapes and on a few captions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streammem.models.protocols import EvidenceItem
from streammem.training import answers
from streammem.training.answers import VISUAL_TOKEN, AnswerStage, PromptReply, pack_replies
from streammem.training.captions import IGNORE, packed_losses
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.loop import Schedule, read_log, train_stage
from streammem.training.lora import add_lora, lora_tensors
from streammem.training.recipe import LoraOptions, StageOptions
from streammem.training.records import read_source
from streammem.training.run import make_stage
from tests.tiny import TinyVision, tiny_language, tiny_model
from tests.training.tiny_backbones import tiny_bridge


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 40))
    return cache_features(source, TinyVision(), folder)


def captioned(pictures):
    said = ("A brown dog.", "A black dog.", "Two men.", "Three men.", "A bird.")
    return replace(pictures, captions=[(said[i % 5],) for i in range(len(pictures))])


@pytest.fixture
def stage(shapes, monkeypatch):
    monkeypatch.setattr(answers, "REPEATED", 4)
    monkeypatch.setattr(answers, "EVALUATED_TRIALS", 3)
    language = tiny_language()
    bridge = tiny_bridge(language, shapes.split("train"))
    add_lora(language, LoraOptions(rank=4, dropout=0.0), seed=0)
    training, validation = (captioned(shapes.split(name)) for name in ("train", "val"))
    return AnswerStage(bridge, language, training, validation, batch=2)


LINES = [
    PromptReply([5, VISUAL_TOKEN, VISUAL_TOKEN, 7], [8, 9, 2]),
    PromptReply([5, 6], [2]),
    PromptReply([5, VISUAL_TOKEN, VISUAL_TOKEN], [4, 2]),
]


def test_lines_side_by_side_lose_exactly_what_they_lose_alone():
    language = tiny_language()
    visual = torch.randn(2, 2, language.width, generator=torch.Generator().manual_seed(0))
    together = packed_losses(language, pack_replies(LINES, 9), visual)
    own = [visual[:1], visual[:0], visual[1:]]
    alone = [
        packed_losses(language, pack_replies([line], 0), seen, masked=False)
        for line, seen in zip(LINES, own, strict=True)
    ]
    # float32, another order of the same sums
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_lines_share_a_row_while_it_has_room_and_never_without_width():
    assert pack_replies(LINES, 9).ids.shape == (2, 8)
    assert pack_replies(LINES, 100).ids.shape == (1, 12)
    assert pack_replies(LINES, 0).ids.shape == (3, 6)
    packed = pack_replies(LINES, 9)
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert packed.visual.sum() == 4
    assert packed.labels[packed.labels != IGNORE].tolist() == [8, 9, 2, 2, 4, 2]


def test_a_question_is_trained_exactly_as_it_is_asked(stage):
    model = replace(tiny_model(), bridge=stage.bridge)
    tokens = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    passages = [
        EvidenceItem(61.0, 70.5, tokens[0], "A <|im_end|> dog."),
        EvidenceItem(80, 90, tokens[1], None),
    ]
    embedded = model.language.embed(model.answer_prompt(passages, "What is it?"))
    times, captions = [(p.start, p.end) for p in passages], [p.caption for p in passages]
    asked = torch.tensor(stage.prompt(times, captions, "What is it?"))
    rows = model.language.model.get_input_embeddings()(asked.clamp(min=0))
    rows[asked == VISUAL_TOKEN] = stage.bridge.to_language(tokens).flatten(0, 1)
    assert torch.equal(rows, embedded)


def test_each_variant_shows_its_own_pictures_and_has_its_own_answer(stage):
    trial = stage.trial_maker.draw(np.random.default_rng(1))
    lines, shown = stage._lines(stage.pictures, [trial], np.random.default_rng(0))
    variants = (trial.true, trial.swapped, trial.missing)
    assert shown == [picture for way in variants for picture in way.pictures]
    assert [line.prompt.count(VISUAL_TOKEN) for line in lines] == [
        4 * len(way.pictures) for way in variants
    ]
    ids = stage.language.ids
    assert [line.reply for line in lines] == [[*ids(way.answer), 2] for way in variants]


def test_the_stage_learns_and_leaves_the_bridge_as_it_is(stage, tmp_path, monkeypatch):
    real = stage.loss
    monkeypatch.setattr(stage, "loss", lambda rng: real(np.random.default_rng(0)))
    before = {name: value.clone() for name, value in stage.bridge.state_dict().items()}
    lora = {name: value.clone() for name, value in lora_tensors(stage.language).items()}
    figures = train_stage(stage, Schedule(steps=5, lr=1e-2, warmup=1), tmp_path)
    losses = [entry["loss"] for entry in read_log(tmp_path / "answers.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    assert set(figures) == {"true", "swapped", "missing", "cider", "tokens"}
    assert all(
        torch.equal(before[name], value) for name, value in stage.bridge.state_dict().items()
    )
    after = lora_tensors(stage.language)
    assert all(not torch.equal(lora[name], after[name]) for name in lora)


def test_a_recipe_trains_it_on_the_captioned_pictures(stage):
    learner = SimpleNamespace(bridge=stage.bridge, adapt=lambda: stage.language)
    context = SimpleNamespace(
        learner=learner, captioned=stage.pictures, validation=stage.validation
    )
    options = StageOptions(kind="answers", steps=1, lr=1e-3, batch=3)
    made = make_stage(context, options)
    assert isinstance(made, AnswerStage)
    assert (made.batch, made.pictures, made.validation) == (3, stage.pictures, stage.validation)


def test_the_captions_before_training_are_part_of_the_loss(stage, monkeypatch):
    stage.module.eval()
    whole = stage.loss(np.random.default_rng(0))
    repeated = [ids for _, ids in stage._repeated]
    assert len(repeated) == 4
    monkeypatch.setattr(
        answers, "reply_losses", lambda language, rows, visual, **_: torch.full((3,), 100.0)
    )
    without = stage.loss(np.random.default_rng(0)) - 100
    assert 0 < without < whole


def test_trials_that_show_nothing_have_a_loss(stage, monkeypatch):
    nothing = stage.trial_maker.draw(np.random.default_rng(1))
    nothing = nothing._replace(true=nothing.missing._replace(pictures=()))
    lines, shown = stage._lines(stage.pictures, [nothing], np.random.default_rng(0), ["true"])
    assert not shown
    assert stage._losses(lines, stage._nothing).isfinite().all()
