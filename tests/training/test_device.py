"""Every stage learns where its parts are: on ``meta``, which stands for a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from streammem.models.tiny.bridge import BridgeConfig, MemoryBridge
from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.models.tiny.questions import QuestionHead
from streammem.training import captions
from streammem.training.captions import BranchedPrompt, CaptionStage, reply_losses
from streammem.training.features import cache_features, patch_statistics
from streammem.training.generated import make_pictures
from streammem.training.keys import Embedded, KeyStage
from streammem.training.learner import Learner
from streammem.training.lora import add_lora
from streammem.training.operators import OperatorStage
from streammem.training.recipe import LoraOptions, parse_recipe
from streammem.training.records import read_source
from streammem.training.reward import RewardStage
from streammem.training.words import WordSpace, WordStage
from tests.tiny import TinySentences, TinyVision, tiny_language
from tests.training.one_device import META, OneDevice
from tests.training.tiny_backbones import tiny_backbones

COPIED_OUT = (NotImplementedError, RuntimeError)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 20))
    return cache_features(source, TinyVision(), folder)


@pytest.fixture
def pictures(shapes):
    return [replace(shapes.split(split), device="meta") for split in ("train", "val")]


@pytest.fixture
def language():
    language = tiny_language()
    add_lora(language, LoraOptions(rank=2), seed=0)
    language.model.to("meta")
    language._embed = language.model.get_input_embeddings()  # a model is opened where it stays
    return language


@pytest.fixture
def bridge():
    config = BridgeConfig(patch_dim=8, patches=9, language_dim=32, dim=16, memory_tokens=4, heads=2)
    return MemoryBridge(config).to("meta")


def embedded(pictures):
    return Embedded(pictures, [TinySentences().encode(said) for said in pictures.captions])


def loss_of(stage):
    with OneDevice():
        loss = stage.loss(np.random.default_rng(0))
    assert loss.device.type == "meta"
    return loss


def test_the_word_stage_learns_on_its_device(pictures, bridge, language):
    space = WordSpace(pictures[0].captions, language)
    stage = WordStage(bridge, space, *pictures, batch=4)
    loss_of(stage).backward()
    with OneDevice(), pytest.raises(COPIED_OUT, **META):
        stage.evaluate()


def test_the_key_stage_learns_on_its_device(pictures):
    keys = PictureKey(8, 16).to("meta"), TextKey(384, 16).to("meta")
    stage = KeyStage(*keys, *map(embedded, pictures), batch=4)
    loss_of(stage).backward()
    with OneDevice(), pytest.raises(COPIED_OUT, **META):
        stage.evaluate()


@pytest.mark.parametrize("masked", [True, False])
def test_the_caption_stage_learns_on_its_device(pictures, bridge, language, monkeypatch, masked):
    monkeypatch.setattr(captions, "takes_mask", lambda language: masked)
    # Without a mask transformers looks into the positions, which have no values here.
    find = "transformers.masking_utils.find_packed_sequence_indices"
    monkeypatch.setattr(find, lambda position_ids: None)
    stage = CaptionStage(bridge, language, *pictures, batch=3)
    loss_of(stage)
    with OneDevice(), pytest.raises(COPIED_OUT, **META):
        stage.evaluate()


def test_the_reward_stage_learns_on_its_device(pictures, bridge, language, monkeypatch):
    stage = RewardStage(bridge, language, *pictures, batch=3)
    said = [[[*language.ids("A circle."), 2]] * 2]
    monkeypatch.setattr(stage, "_sample", lambda visual, *_, **__: said * len(visual))
    loss_of(stage)


def test_the_questions_stage_learns_on_its_device(shapes):
    said = [text for captions in shapes.split("train").captions for text in captions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streammem.training.operators.NUM_TRAINING", 20)
        patch.setattr("streammem.training.operators.NUM_VALIDATION", 5)
        stage = OperatorStage(QuestionHead().to("meta"), TinySentences(), (said, said), batch=4)
    loss_of(stage)
    with OneDevice(), pytest.raises(COPIED_OUT, **META):
        stage.evaluate()


def test_learned_parts_are_made_where_they_are_trained(shapes):
    tables = {"data": ["x"], "stages": [{"kind": "words", "steps": 1, "lr": 1.0, "batch": 1}]}
    learner = Learner(parse_recipe(tables, ""), tiny_backbones(), device="meta")
    learner.measure(patch_statistics(shapes.split("train"), 0))
    for part in (learner.bridge, learner.picture_key, learner.text_key, learner.questions):
        assert {tensor.device.type for tensor in part.state_dict().values()} == {"meta"}


def test_captions_lose_the_same_branch_by_branch_without_a_mask(monkeypatch):
    language = tiny_language()
    rows = [
        BranchedPrompt([7, 8], [([9], [10, 11, 2]), ([9], [12, 2]), ([13, 14], [15, 16, 17, 2])]),
        BranchedPrompt([], [([20, 21], [22, 2])]),
    ]
    visual = torch.randn(2, 3, language.width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(captions, "has_fast_bfloat16", lambda device: False)
    packed = reply_losses(language, rows, visual, prefix=[5, 6])
    monkeypatch.setattr(captions, "takes_mask", lambda language: False)
    alone = reply_losses(language, rows, visual, prefix=[5, 6])
    # float32, another order of the same sums
    assert torch.allclose(packed, alone, atol=1e-5)
    assert len(packed) == 11
