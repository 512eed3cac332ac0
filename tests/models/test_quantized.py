"""4 and 8 bits: what reaches transformers, and what bitsandbytes makes of tiny models."""

import logging

import pytest
import torch
import transformers.utils
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig
from transformers.models.llama import LlamaForCausalLM

from streammem.errors import BackboneError, ConfigError
from streammem.models import checkpoint
from streammem.models.backbones.decoding import is_plain_llama
from streammem.models.backbones.language import GenerationConfig
from streammem.models.backbones.transformers_files import quantization
from streammem.models.minigpt4_video.language import LoraLinear, open_language
from streammem.models.minigpt4_video.options import MiniGPT4Options
from streammem.models.minigpt4_video.published import open_model as open_minigpt4
from streammem.models.protocols import EvidenceItem
from streammem.models.published import find
from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published import ParentFile, _language
from streammem.models.videollamb.published import open_model as open_videollamb
from streammem.models.videollamb.shards import open_shards
from streammem.models.vlm.transformers_model import TransformersOptions, open_transformers
from streammem.models.vlm.transformers_model import _open_model as open_vlm
from tests.models.minigpt4_video import published as minigpt4
from tests.models.videollamb import published as videollamb
from tests.models.vlm import tiny_checkpoints
from tests.tiny import film

LAYERS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
BITS = tuple(LAYERS)
# Spread of a product's errors over that of the product, for random weights and inputs: 8 bits for
# both, a scale a row; 4 bits for weights alone, 64 of them a scale.
ERRORS = {"8bit": 0.02, "4bit": 0.12}
SHORT = GenerationConfig(max_new_tokens=5)


def language_of_videollamb(folder, kind, device):
    videollamb.write(folder, videollamb.weights())
    config = LlamaConfig(hidden_size=videollamb.L, num_attention_heads=4)
    options = ParentOptions(quantize=kind, **videollamb.OPTIONS)
    return _language(open_shards(folder), config, {"lm_head.weight"}, options, device)


def language_of_minigpt4(folder, kind, device):
    minigpt4.write(folder)
    options = MiniGPT4Options(quantize=kind, lora="attached")
    return open_language(folder / "language", {}, 1.0, options, device)


def vision_language_model(folder, kind, device):
    chat = open_transformers(str(tiny_checkpoints.save("llava", folder)))._chat
    return open_vlm("llava", folder, device, TransformersOptions(quantize=kind), chat)


OPENED = {
    "videollamb": (language_of_videollamb, LlamaForCausalLM),
    "minigpt4-video": (language_of_minigpt4, AutoModelForCausalLM),
    "llava": (vision_language_model, AutoModelForImageTextToText),
}


@pytest.mark.parametrize(
    "family",
    [
        each if each == "videollamb" else pytest.param(each, marks=pytest.mark.heavy)
        for each in OPENED
    ],
)
def test_bits_type_and_place_of_quantised_weights_reach_transformers(family, tmp_path, monkeypatch):
    given = []

    def from_pretrained(*_, **arguments):
        given.append(arguments)
        raise OSError("recorded")

    open_it, kind_of_model = OPENED[family]
    monkeypatch.setattr(kind_of_model, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: True)
    for kind, device, computed in (
        ("8bit", "cuda:1", torch.bfloat16),
        ("4bit", "cuda:1", torch.bfloat16),
        ("4bit", "cpu", torch.float32),
    ):
        with pytest.raises(BackboneError, match="recorded"):
            open_it(tmp_path, kind, device)
        arguments = given.pop()
        config = arguments["quantization_config"]
        assert (config.load_in_8bit, config.load_in_4bit) == (kind == "8bit", kind == "4bit")
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", computed)
        assert arguments["device_map"] == {"": device} and arguments["dtype"] == computed
    with pytest.raises(BackboneError, match="recorded"):
        open_it(tmp_path, "none", "cpu")
    assert not given.pop().get("quantization_config")


def test_bits_without_bitsandbytes_or_on_another_device_are_refused(monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    for device in ("cpu", "cuda", "cuda:1"):
        with pytest.raises(BackboneError, match="quantize=4bit: pip install bitsandbytes"):
            quantization("4bit", device)
    with pytest.raises(ConfigError, match="quantize=8bit: needs CUDA or the CPU, not mps"):
        quantization("8bit", "mps")
    assert quantization("none", "mps") is None


# -- with bitsandbytes, on a CPU: pip install bitsandbytes --


@pytest.fixture
def wide(monkeypatch):
    """Tiny weights of 64 rows and columns, as 4-bit products on CPUs need multiples of these."""
    pytest.importorskip("bitsandbytes")
    for files in (videollamb, minigpt4):
        monkeypatch.setattr(files, "L", 64)
    monkeypatch.setitem(videollamb.CONFIG, "hidden_size", 64)
    monkeypatch.setitem(tiny_checkpoints.TEXT, "num_key_value_heads", 4)
    for sizes in (tiny_checkpoints.TEXT, tiny_checkpoints.VISION):
        monkeypatch.setitem(sizes, "hidden_size", 64)


@torch.no_grad()
def check_products(kind, plain, quantised):
    """Compare each product of quantised weights with the same one of the plain weights."""
    count = 0
    for name, layer in quantised.named_modules():
        if type(layer).__name__ in LAYERS.values():
            assert type(layer).__name__ == LAYERS[kind]
            x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(count))
            wanted = plain.get_submodule(name)(x)
            assert 0 < (layer(x) - wanted).std() / wanted.std() < ERRORS[kind]
            count += 1
    assert count >= 14  # all products of two layers


@pytest.mark.heavy
@pytest.mark.parametrize("kind", BITS)
def test_a_quantised_videollamb_replies_within_the_stated_error(keys, kind, tmp_path, wide):
    folder = videollamb.write(tmp_path, videollamb.weights())
    prompt = [torch.randn(6, 64, generator=torch.Generator().manual_seed(0)), "What?"]
    models = []
    for quantize in ("none", kind):
        options = ParentOptions(quantize=quantize, **videollamb.OPTIONS)
        opened = open_videollamb("x", ParentFile(weights=str(folder), options=options), keys)
        language = opened.language
        (text,) = language.generate([prompt], SHORT)
        assert text == "".join(language.stream(prompt, SHORT)).strip()
        assert is_plain_llama(language.model) == (quantize == "none")
        models.append(language.model)
    check_products(kind, *models)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", BITS)
def test_a_quantised_minigpt4_video_has_its_lora_beside_it_within_the_stated_error(
    keys, kind, tmp_path, wide
):
    path = minigpt4.write(tmp_path)
    models = []
    for quantize in ("none", kind):
        said = find(path, checkpoint.CONFIGS)
        for name, value in {"quantize": quantize, "lora": "attached"}.items():
            object.__setattr__(said.options, name, value)
        model = open_minigpt4("x", said, keys)
        shown = [model.perceive(frame.pixels).patches for frame in film(("red", 4))]
        prompt = model.caption_prompt(EvidenceItem(0.0, 2.0, model.pack(shown)))
        assert model.language.generate([prompt], SHORT)
        models.append(model.language.model)
    lora = models[1].get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(lora, LoraLinear) and type(lora.base_layer).__name__ == LAYERS[kind]
    check_products(kind, *models)
    # Else it writes a line for each product.
    assert not logging.getLogger("bitsandbytes.autograd._functions").isEnabledFor(logging.WARNING)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", BITS)
def test_a_quantised_vision_language_model_replies_within_the_stated_error(kind, tmp_path, wide):
    folder, pixels = tiny_checkpoints.save("llava", tmp_path), film(("red", 1))[0].pixels
    models = []
    for options in ({}, {"quantize": kind}):
        generator = open_transformers(str(folder), options=options)
        prompt = generator.caption_prompt(EvidenceItem(0, 1, keyframes=(pixels,)))
        assert "".join(generator.stream(prompt, SHORT))
        models.append(generator._open_model().model)
    check_products(kind, *models)
