import numpy as np
import pytest
import torch
from PIL import Image

from streammem.models.backbones.languagebind import Tower, TowerConfig, crop, pad
from tests.models.videollamb import reference
from tests.models.videollamb.published import GROUP, LAYERS, MLP, PATCH, SIDE, D, weights

EXACT = 1e-4  # pixels are normalised in float32
IMAGE, VIDEO = "model.image_tower.image_tower.", "model.video_tower.video_tower."


@pytest.fixture(scope="module")
def tensors():
    return weights()


def tower_of(tensors, prefix, **changes):
    group = GROUP if prefix == VIDEO else 0
    sizes = TowerConfig(D, LAYERS, 16, MLP, SIDE, PATCH, group, **changes)
    tower = Tower(sizes).double().eval()
    tower.load_state_dict({k: tensors[prefix + k].double() for k in tower.state_dict()})
    return tower


def pictures(count, seed=0):
    shape = (count, SIDE, SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@torch.inference_mode()
def encoded(tower, frames):
    return tower(torch.from_numpy(frames)).numpy()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_image_tower_equals_the_reference(tensors, activation):
    w = {k: v.numpy().astype(np.float64) for k, v in tensors.items()}
    frames = pictures(2)
    function = getattr(reference, activation)
    expected = reference.tower(frames, w, IMAGE, layers=LAYERS, activation=function)
    tower = tower_of(tensors, IMAGE, activation=activation)
    np.testing.assert_allclose(encoded(tower, frames), expected, atol=EXACT)


def test_the_video_tower_equals_the_reference_in_groups_of_eight(tensors):
    w = {k: v.numpy().astype(np.float64) for k, v in tensors.items()}
    frames = pictures(2 * GROUP)
    expected = reference.tower(frames, w, VIDEO, layers=LAYERS, group=GROUP)
    np.testing.assert_allclose(encoded(tower_of(tensors, VIDEO), frames), expected, atol=EXACT)


def test_frames_of_one_group_know_each_other_and_their_order_and_no_other_group(tensors):
    tower, frames = tower_of(tensors, VIDEO), pictures(2 * GROUP)
    plain = encoded(tower, frames)
    turned = frames.copy()
    turned[1] = 255 - turned[1]
    changed = np.abs(encoded(tower, turned) - plain).max((1, 2)) > 1e-6
    assert changed.tolist() == [True] * GROUP + [False] * GROUP
    swapped = encoded(tower, frames[[1, 0, *range(2, 2 * GROUP)]])
    assert np.abs(swapped[0] - plain[1]).max() > 1e-3


def test_part_of_a_group_is_refused(tensors):
    with pytest.raises(ValueError, match="5 frames: a video tower takes groups of 8"):
        tower_of(tensors, VIDEO)(torch.from_numpy(pictures(5)))


def test_what_comes_after_the_hidden_layer_before_the_last_is_not_built(tensors):
    names = tower_of(tensors, IMAGE).state_dict()
    assert not any(f"layers.{LAYERS - 1}." in name or "post" in name for name in names)
    assert any(f"layers.{LAYERS - 2}." in name for name in names)


@pytest.mark.parametrize("shrink", ["antialias", "plain", "bicubic"])
@pytest.mark.parametrize("size", [(30, 61), (61, 30), (14, 14), (200, 300)])
def test_a_crop_is_the_middle_of_the_picture(size, shrink):
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, size[1])
    picture[..., 1] = np.linspace(0, 255, size[0])[:, None]
    cut = crop(picture, 14, shrink).astype(float)
    assert cut.shape == (14, 14, 3) and crop(picture, 14, shrink).dtype == np.uint8
    assert abs(cut[..., 0].mean() - 127.5) < 8 and abs(cut[..., 1].mean() - 127.5) < 8


def test_plain_shrinking_aliases_and_ours_does_not():
    stripes = np.zeros((56, 56, 3), np.uint8)
    stripes[:, ::4] = 255  # a fourth of the light, in lines that fall between the samples
    assert (crop(stripes, 14)[:, 1:-1] == 64).all()
    assert abs(crop(stripes, 14, "plain").mean() - 64) > 30


def test_padding_keeps_the_whole_picture_on_the_mean_colour():
    picture = np.full((10, 40, 3), 255, np.uint8)
    padded = pad(picture, 40)
    assert padded.shape == (40, 40, 3)
    assert (padded[15:25] == 255).all()
    assert (padded[0, 0] == [122, 116, 104]).all() and (padded[-1, -1] == [122, 116, 104]).all()


def bicubic(picture, side):
    """Shrink a square picture by the cubic kernel of a = -1/2, stretched to take in all pixels."""
    scale = len(picture) / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    x = np.abs(np.arange(len(picture)) - centres[:, None]) / max(scale, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("iy,jx,yxc->ijc", weights, weights, picture.astype(float))


def test_padding_neither_rounds_nor_clips():
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[:, 30:] = 255
    padded = pad(picture, 14)
    np.testing.assert_allclose(padded, bicubic(picture, 14), atol=1e-3)
    assert padded.min() < -2 and padded.max() > 257
    assert (padded != padded.round()).any()


def test_clips_own_crop_is_pillows_to_the_level():
    picture = np.random.default_rng(0).integers(0, 256, (61, 90, 3)).astype(np.uint8)
    shrunk = Image.fromarray(picture).resize((20, 14), Image.Resampling.BICUBIC)
    assert np.array_equal(crop(picture, 14, "bicubic"), np.asarray(shrunk)[:, 3:17])


def test_a_tower_takes_levels_beyond_those_of_bytes(tensors):
    tower = tower_of(tensors, IMAGE)
    levels = torch.zeros(1, tower.config.side, tower.config.side, 3)
    assert torch.equal(tower(levels), tower(levels.byte()))
    assert not torch.equal(tower(levels - 9.5), tower(levels))
