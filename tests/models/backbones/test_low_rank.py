import copy
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from streammem.errors import CheckpointError
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig
from streammem.models.backbones.low_rank import (
    AdaptedLinear,
    differences,
    keeps_rows_apart,
    pairs,
)
from streammem.models.backbones.products import has_bfloat16, has_half
from streammem.models.checkpoint import merge_lora
from tests.models.backbones.test_decoding import NEEDS_HALF, forced, llama, prompts_of
from tests.tiny import tiny_tokenizer

GREEDY = GenerationConfig(max_new_tokens=12)
SCALE = 2.0
ROUTES = ["exact", *["half"] * has_half(), *["bfloat16"] * has_bfloat16()]
ALL = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def lora_of(model, parts, seed, rank=3):
    generator, lora = torch.Generator().manual_seed(seed), {}
    for number in range(len(model.model.model.layers)):
        for part in parts:
            name = f"model.layers.{number}.{part}"
            out, inside = model.model.get_submodule(name).weight.shape
            lora[f"{name}.A"] = 0.3 * torch.randn(rank, inside, generator=generator)
            lora[f"{name}.B"] = 0.3 * torch.randn(out, rank, generator=generator)
    return lora


def with_lora(route, lora):
    """A language model with unlike gains into which a LoRA is merged."""
    model, generator = llama(route), torch.Generator().manual_seed(7)
    for layer in model.model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    merge_lora(model.model, lora, SCALE)
    return model


@pytest.mark.parametrize("parts", [ALL, ("self_attn.v_proj", "mlp.up_proj")], ids=["all", "some"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_change_beside_the_weights_gives_the_logits_of_weights_with_it(route, parts):
    plain = llama("exact")
    merged, wanted = lora_of(plain, ALL[:2], 1), lora_of(plain, parts, 2)
    base, expected = with_lora(route, merged), with_lora("exact", wanted)
    rows = [expected.embed(prompt) for prompt in prompts_of(expected, 5)]
    ids = torch.randint(3, 200, (5, 6), generator=torch.Generator().manual_seed(0))
    heard = slice(3, None)  # logits of the other tokens are at -1000
    with torch.inference_mode():
        before = forced(base.decoder(), rows, ids)
        adapted = base.decoder().adapted(differences(wanted, merged, SCALE))
        found = forced(adapted, rows, ids)[..., heard]
        truth = forced(expected.decoder(), rows, ids)[..., heard]
        assert torch.equal(forced(base.decoder(), rows, ids), before)
    spoken = truth[0, 0] > -500
    assert (truth - before[..., heard])[..., spoken].abs().max() > 1
    bound = {"exact": 1e-3, "half": 0.6, "bfloat16": 2.5}[route]
    assert (truth - found)[..., spoken].abs().max() < bound


def test_what_no_change_touches_is_shared():
    base = llama("exact")
    changes = pairs(lora_of(base, ["self_attn.v_proj"], 1), SCALE)
    kept = {k: v for k, v in changes.items() if ".layers.1." not in k}
    first, second = base.decoder().adapted(kept)._layers
    own, other = base.decoder()._layers
    assert isinstance(first.qkv, AdaptedLinear) and first.qkv.base is own.qkv
    assert (first.out, first.gate_up, first.down) == (own.out, own.gate_up, own.down)
    assert (second.qkv, second.out, second.down) == (other.qkv, other.out, other.down)


@NEEDS_HALF
def test_prompts_are_continued_together_with_a_change_too():
    base = llama("half")
    adapted = base.decoder().adapted(pairs(lora_of(base, ALL, 1), SCALE))
    assert adapted.rows_apart
    product = adapted._layers[0].qkv
    assert keeps_rows_apart(product)
    for part in ("base", "down", "up"):
        assert not keeps_rows_apart(replace(product, **{part: torch.relu}))
    assert not llama("exact").decoder().adapted({}).rows_apart


@pytest.mark.parametrize(
    ("name", "a", "b", "told"),
    [
        ("model.layers.9.self_attn.q_proj", (2, 32), (32, 2), "no layer has model.layers.9"),
        ("lm_head", (2, 32), (99, 2), "no layer has lm_head"),
        ("model.layers.0.self_attn.q_proj", (2, 16), (32, 2), r"q_proj is not \(32, 32\)"),
        ("model.layers.0.mlp.down_proj", (2, 32), (32, 2), r"down_proj is not \(32, "),
    ],
)
def test_a_change_that_fits_no_layer_is_told(name, a, b, told):
    with pytest.raises(CheckpointError, match=told):
        llama("exact").decoder().adapted({name: (torch.ones(a), torch.ones(b))})


# -- language models that share weights --


def replies(model, prompts):
    return model.generate(prompts, GREEDY)


def test_two_language_models_share_weights_and_each_says_its_own():
    plain = llama("exact")
    merged, wanted = lora_of(plain, ALL[:2], 1), lora_of(plain, ALL, 2)
    base, expected = with_lora("exact", merged), with_lora("exact", wanted)
    prompts = prompts_of(base, 6)
    own, others = replies(base, prompts), replies(expected, prompts)
    changes = differences(wanted, merged, SCALE)
    answers = base.adapted(changes, lambda model: merge_lora(model, wanted, SCALE))
    assert replies(answers, prompts) == others != own
    assert replies(base, prompts) == own
    assert answers.decoder() is answers.decoder()
    assert answers.decoding == "exact"
    # What changes the weights of one changes those that both share.
    for model in (base, expected):
        model.edit(
            lambda llama: torch.nn.init.constant_(llama.model.layers[0].input_layernorm.weight, 3.0)
        )
    assert replies(answers, prompts) == replies(expected, prompts) != others


def test_beams_and_other_architectures_read_the_files_again(tmp_path):
    made = llama("exact")
    for name in ("llama", "gpt2"):
        tokenizer = tiny_tokenizer()
        if name == "llama":
            made.model.save_pretrained(tmp_path / name)
        else:
            torch.manual_seed(0)
            size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
            GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    beams = GenerationConfig(max_new_tokens=6, num_beams=3)

    base = CausalLanguageModel.open(tmp_path / "llama", decoding="exact")
    merged, wanted = lora_of(base, ALL[:2], 1), lora_of(base, ALL, 2)
    base.edit(lambda model: merge_lora(model, merged, SCALE))
    expected = CausalLanguageModel.open(tmp_path / "llama", decoding="exact")
    expected.edit(lambda model: merge_lora(model, wanted, SCALE))
    prompts = prompts_of(base, 2)
    changes = differences(wanted, merged, SCALE)
    answers = base.adapted(changes, lambda model: merge_lora(model, wanted, SCALE))
    assert answers.generate(prompts, beams) == expected.generate(prompts, beams)
    assert base.generate(prompts, beams) != answers.generate(prompts, beams)

    def edit(model):
        model.transformer.h[0].mlp.c_proj.weight.data.mul_(-9)

    base, expected = (CausalLanguageModel.open(tmp_path / "gpt2") for _ in range(2))
    expected.edit(edit)
    answers = base.adapted({}, edit)
    assert answers.decoding == "transformers"
    prompts = prompts_of(base, 2)
    assert replies(answers, prompts) == replies(expected, prompts) != replies(base, prompts)


# -- pairs --


def test_differences_take_one_lora_away_and_add_the_other():
    generator = torch.Generator().manual_seed(0)
    sizes = {"x.A": (2, 5), "x.B": (4, 2), "y.A": (2, 5), "y.B": (4, 2)}
    wanted = {key: torch.randn(size, generator=generator) for key, size in sizes.items()}
    merged = {f"z{key[1:]}": value for key, value in copy.deepcopy(wanted).items() if "x" in key}
    merged |= {key: wanted[key] + 1 for key in ("x.A", "x.B")}
    found = differences(wanted, merged, SCALE)
    product = {name: b @ a for name, (a, b) in found.items()}
    expected = SCALE * (wanted["x.B"] @ wanted["x.A"] - merged["x.B"] @ merged["x.A"])
    assert torch.allclose(product["x"], expected, atol=1e-5)
    assert torch.allclose(product["y"], SCALE * wanted["y.B"] @ wanted["y.A"], atol=1e-5)
    assert torch.allclose(product["z"], -SCALE * wanted["x.B"] @ wanted["x.A"], atol=1e-5)
