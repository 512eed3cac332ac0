"""The vision stage, on a random EfficientNet-Lite2 and pictures of coloured shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from streammem.models.backbones.efficientnet import EfficientNetEncoder, EfficientNetLite, open_net
from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.training import loop
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.keys import Embedded
from streammem.training.loop import Schedule, train_stage
from streammem.training.records import read_source
from streammem.training.vision import EarlyEncoder, VisionStage
from streammem.training.words import WordSpace
from tests.tiny import tiny_language
from tests.training.one_device import META, OneDevice

SENTENCE_DIM = 12


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lite2")
    net = EfficientNetLite("lite2")
    with torch.no_grad():  # random nets of this depth fade out
        for name, parameter in net.named_parameters():
            parameter.mul_(2.0 if name.endswith("weight") else 1.0)
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def early(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    source = read_source(make_pictures(folder / "shapes", 24))
    return cache_features(source, EarlyEncoder(open_net(published, {})), folder, crops=0)


def make_stage(published, early):
    def embedded(split):
        pictures = early.split(split)
        generator = torch.Generator().manual_seed(0)
        shapes = [(len(captions), SENTENCE_DIM) for captions in pictures.captions]
        return Embedded(pictures, [torch.randn(s, generator=generator) for s in shapes])

    torch.manual_seed(0)
    net = open_net(published, {})
    keys = PictureKey(1808, 16, dim=16), TextKey(SENTENCE_DIM, 16)
    space = WordSpace(early.split("train").captions, tiny_language())
    return VisionStage(net, keys, space, embedded("train"), embedded("val"), batch=4)


@pytest.fixture
def stage(published, early):
    return make_stage(published, early)


def test_cached_early_patches_are_finished_as_the_encoder_does(stage, early, published):
    stage.module.eval()
    pictures = early.split("train")
    record = next(r for r in early.source.records if f"shapes/{r.name}" == pictures.names[0])
    whole = np.asarray(Image.open(record.path).convert("RGB"))
    expected = EfficientNetEncoder(published, runtime="torch").encode([whole]).patches
    with torch.no_grad():
        finished = stage.patches(pictures.whole([0])[0][:, 0])
    scale = expected.abs().max()
    assert scale > 0
    assert (finished - expected).abs().max() < 0.01 * scale  # cached as float16


def test_what_is_tuned_is_the_late_half_without_depthwise_kernels(stage, published, tmp_path):
    before = {name: p.detach().clone() for name, p in stage.net.named_parameters()}
    train_stage(stage, Schedule(steps=2, lr=1e-2, warmup=1), tmp_path)
    after = dict(stage.net.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(stage.tuned())
    assert all(name.startswith(("stages.4", "stages.5", "stages.6", "head")) for name in changed)
    assert not any("depthwise" in name for name in changed)
    changes = {name: value - before[name] for name, value in stage.tuned().items()}
    reopened = dict(open_net(published, changes).named_parameters())
    assert all(torch.allclose(reopened[n], after[n], atol=1e-6) for n in reopened)


def test_the_words_of_training_pictures_are_learned(stage, tmp_path):
    stage.module.eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        before = stage.loss(rng).item()
    figures = train_stage(stage, Schedule(steps=6, lr=1e-3, warmup=1), tmp_path)
    with torch.no_grad():
        assert stage.loss(np.random.default_rng(0)).item() < before
    assert {"top5", "recall@1", "median_rank"} <= set(figures)


@pytest.mark.heavy
def test_a_killed_and_resumed_stage_ends_with_the_weights_of_an_uninterrupted_one(
    published, early, tmp_path, monkeypatch
):
    schedule = Schedule(steps=3, lr=1e-3, warmup=1)
    whole, killed, resumed = (make_stage(published, early) for _ in range(3))
    train_stage(whole, schedule, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    real = VisionStage.loss
    losses = iter([real, real])
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(VisionStage, "loss", lambda stage, rng: next(losses)(stage, rng))
        train_stage(killed, schedule, tmp_path / "killed")
    train_stage(resumed, schedule, tmp_path / "killed")
    left, right = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_vision_stage_learns_on_its_device(published, early):
    pictures = [replace(early.split(split), device="meta") for split in ("train", "val")]
    said = [[torch.zeros(len(c), SENTENCE_DIM) for c in p.captions] for p in pictures]
    keys = PictureKey(1808, 16, dim=16).to("meta"), TextKey(SENTENCE_DIM, 16).to("meta")
    space = WordSpace(pictures[0].captions, tiny_language())
    net = open_net(published, {}).to("meta")
    stage = VisionStage(net, keys, space, *map(Embedded, pictures, said), batch=4)
    with OneDevice():
        assert stage.loss(np.random.default_rng(0)).device.type == "meta"
        with pytest.raises((NotImplementedError, RuntimeError), **META):
            stage.evaluate()
