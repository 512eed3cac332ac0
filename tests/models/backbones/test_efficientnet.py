import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from streammem.errors import BackboneError
from streammem.models.backbones.efficientnet import (
    EfficientNetEncoder,
    EfficientNetLite,
    fold_published,
    squash,
)
from streammem.models.backbones.weights import is_pulled, weights_path
from tests.models.backbones.published import blocks_of, published_state


def reference(state, variant, x):
    """The published network in float64, step by step, with its batch norms."""
    state = {key: value.double() for key, value in state.items()}
    x = x.double()

    def conv(x, name, norm, *, kernel=1, stride=1, groups=1):
        # SAME: as many outputs as ceil(size / stride); the odd pixel goes right and below.
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, groups=groups)
        statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        scale = state[f"{norm}.weight"], state[f"{norm}.bias"]
        return F.batch_norm(x, *statistics, *scale, eps=1e-3)

    x = conv(x, "_conv_stem", "_bn0", kernel=3, stride=2).clamp(0, 6)
    middle = None
    for number, (inside, out, kernel, stride, expansion, stage) in enumerate(blocks_of(variant)):
        name, h = f"_blocks.{number}", x
        if expansion > 1:
            h = conv(h, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        h = conv(
            h, f"{name}._depthwise_conv", f"{name}._bn1",
            kernel=kernel, stride=stride, groups=inside * expansion,
        ).clamp(0, 6)  # fmt: skip
        h = conv(h, f"{name}._project_conv", f"{name}._bn2")
        x = x + h if stride == 1 and inside == out else h
        if stage == 4:
            middle = x
    return conv(x, "_conv_head", "_bn1").clamp(0, 6), middle


@pytest.mark.parametrize(("variant", "size"), [("lite0", (64, 64)), ("lite2", (64, 75))])
def test_features_equal_the_published_network_in_float64(variant, size):
    state = published_state(variant)
    net = EfficientNetLite(variant)
    net.load_state_dict(fold_published(state, variant))
    x = 2 * torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) - 1
    head, middle = reference(state, variant, x)
    with torch.inference_mode():
        features = net.eval()(x)
        exact = net.double()(x.double())
    assert features.head.shape == (2, 1280, 2, -(-size[1] // 32))
    assert 0.1 < head.std() < 10 and 0.1 < middle.std() < 10  # nothing died, nothing grew
    for ours, theirs in zip(features, (head, middle), strict=True):
        assert (ours - theirs).abs().max() < 1e-4  # float32 over some 60 convolutions
    for ours, theirs in zip(exact, (head, middle), strict=True):
        assert (ours - theirs).abs().max() < 1e-5  # only the folding is float32


def test_a_published_key_that_is_missing_is_named():
    state = published_state("lite0")
    del state["_blocks.3._bn1.running_var"]
    with pytest.raises(KeyError, match=r"_blocks\.3\._bn1\.running_var"):
        fold_published(state, "lite0")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite2")
    save_file(fold_published(published_state("lite2"), "lite2"), folder / "model.safetensors")
    made = EfficientNetEncoder(folder)
    made.folder = folder
    return made


def test_a_patch_sees_its_own_cell(encoder):
    """The 48 colour values of a cell are its 4x4 mean colours, row by row."""
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    features = encoder.encode([picture])
    assert features.patches.shape == (1, 49, encoder.patch_dim) == (1, 49, 1280 + 480 + 48)
    assert features.frame.shape == (1, encoder.frame_dim)
    cell = (picture[32:64, 64:96].astype(np.float64) - 127) / 128  # row 1, column 2
    means = cell.reshape(4, 8, 4, 8, 3).mean((1, 3)).ravel()
    assert np.allclose(features.patches[0, 1 * 7 + 2, -48:].numpy(), means, atol=1e-5)
    # The frame embedding is the mean of the head over the cells.
    assert torch.allclose(features.patches[0, :, :1280].mean(0), features.frame[0], atol=1e-5)


def test_frames_encoded_together_as_on_a_gpu_are_as_each_alone(encoder):
    generator = np.random.default_rng(1)
    pictures = [
        generator.integers(0, 256, size, np.uint8) for size in ((224, 224, 3), (90, 160, 3))
    ]
    together = EfficientNetEncoder(encoder.folder, runtime="torch")
    together._together = True
    for found, wanted in zip(together.encode(pictures), encoder.encode(pictures), strict=True):
        # By OpenVINO one by one; float32 sums of thousands of products.
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_missing_and_corrupt_weights_are_told(tmp_path):
    with pytest.raises(BackboneError, match="pull again"):
        EfficientNetEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(BackboneError, match="pull again"):
        EfficientNetEncoder(tmp_path)
    save_file({"stem.conv.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="pull again"):
        EfficientNetEncoder(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (224, 224), (48, 64)])
def test_any_picture_is_squashed_whole(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    square = squash(picture, 224)
    assert square.shape == (224, 224, 3) and square.dtype == np.uint8
    assert np.abs(square.mean((0, 1)) - picture.mean((0, 1))).max() < 25
    pillow = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC))
    # 1 in photos; rows are rounded before columns are made, which shows most in slivers
    assert np.abs(square.astype(int) - pillow).max() <= 20
    assert np.abs(square.astype(int) - pillow).mean() < 1


def test_a_photo_sized_picture_is_shrunk_as_pillow_does():
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    photo = np.asarray(Image.fromarray(coarse).resize((640, 360), Image.Resampling.BICUBIC))
    pillow = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(squash(photo, 224).astype(int) - pillow).max() <= 1


DATA = os.environ.get("STREAMMEM_DATA")


@pytest.mark.skipif(not is_pulled("efficientnet-lite2"), reason="efficientnet-lite2 is not pulled")
@pytest.mark.skipif(not DATA, reason="STREAMMEM_DATA is not set")
def test_real_weights_know_a_photo_from_another():
    folder = Path(DATA) / "flickr8k"
    if not folder.is_dir():
        pytest.skip("STREAMMEM_DATA has no flickr8k")
    with open(folder / "captions.jsonl", encoding="utf-8") as lines:
        names = [json.loads(next(lines))["image"] for _ in range(3)]
    pictures = [np.asarray(Image.open(folder / "images" / n).convert("RGB")) for n in names]
    encoder = EfficientNetEncoder(weights_path("efficientnet-lite2"))
    mirrored = [picture[:, ::-1] for picture in pictures]
    features = encoder.encode([*pictures, *mirrored]).frame
    assert features.min() >= 0 and features.isfinite().all()
    centred = F.normalize(features - features[:3].mean(0), dim=-1)
    cosines = centred[:3] @ centred[3:].T
    assert torch.equal(cosines.argmax(1), torch.arange(3))
    assert cosines.diagonal().min() > 0.6
