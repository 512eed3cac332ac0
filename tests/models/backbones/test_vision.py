import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from streammem.errors import BackboneError
from streammem.models.backbones.vision import TransformersVisionEncoder

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = {"height": 32, "width": 32}


def clip():
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIZE, image_mean=MEAN, image_std=STD
    )
    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)), processor


def clip_vision_only():
    return CLIPVisionModel(CLIPVisionConfig(**VISION)), clip()[1]


def siglip():
    processor = SiglipImageProcessorPil(size=SIZE, image_mean=MEAN, image_std=STD)
    return SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)), processor


KINDS = {"clip": clip, "clip vision only": clip_vision_only, "siglip": siglip}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model, processor = KINDS[request.param]()
    folder = tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, model.eval(), folder


def test_a_tower_equals_a_direct_forward_pass(saved):
    name, model, folder = saved
    encoder = TransformersVisionEncoder(folder)
    pictures = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in (0, 1)]
    features = encoder.encode(pictures)
    # 32 x 32 pictures are neither resized nor cropped: only scaled and normalised.
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        hidden = tower(pixel_values=pixels).last_hidden_state
    patches = hidden if name == "siglip" else hidden[:, 1:]
    frame = hidden.mean(1) if name == "siglip" else hidden[:, 0]
    assert (encoder.frame_dim, encoder.patches, encoder.patch_dim) == (16, 16, 16)
    assert features.patches.shape == (2, 16, 16)
    # float32; the processor normalises in another order
    assert torch.allclose(features.patches, patches, atol=1e-5)
    assert torch.allclose(features.frame, frame, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (48, 64), (1, 1)])
def test_any_shape_of_picture_is_read_as_rows_columns_channels(saved, shape):
    encoder = TransformersVisionEncoder(saved[2])
    picture = np.full((*shape, 3), (200, 100, 0), np.uint8)
    same = np.full((32, 32, 3), (200, 100, 0), np.uint8)
    features, expected = encoder.encode([picture]), encoder.encode([same])
    assert features.patches.shape == (1, 16, 16)
    assert torch.allclose(features.frame, expected.frame, atol=1e-4)


def test_what_is_no_vision_encoder_is_told(saved, tmp_path):
    with pytest.raises(BackboneError, match="not a usable vision encoder") as missing:
        TransformersVisionEncoder(tmp_path)
    assert "\n" not in str(missing.value)
    for file in saved[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(BackboneError, match="not a usable vision encoder"):
        TransformersVisionEncoder(tmp_path)


def test_a_tower_that_lacks_weights_is_refused_not_made_up(saved, tmp_path):
    for file in saved[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in sorted(tensors) if "mlp" in name)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="1 weights are missing"):
        TransformersVisionEncoder(tmp_path)
