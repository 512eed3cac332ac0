"""The parent's files: what opens, what is refused, and what the tensors do."""

import hashlib
import math

import numpy as np
import pytest
import torch
import transformers.utils
from transformers import AutoConfig

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models import checkpoint
from streammem.models.backbones.eva import EvaConfig
from streammem.models.minigpt4_video import published as loader
from streammem.models.minigpt4_video.minigpt4_video import FrameEncoder, MiniGPT4Video
from streammem.models.minigpt4_video.options import GOLDFISH, PUBLISHED, MiniGPT4Options
from streammem.models.minigpt4_video.published import open_model
from streammem.models.published import find
from tests.models.backbones.test_eva_and_qformer import eva
from tests.models.minigpt4_video import published
from tests.models.minigpt4_video.published import LORA, RANK, D, L
from tests.models.videollamb.reference import layer_norm, linear


def pictures(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, published.SIDE, published.SIDE, 3)).astype(np.uint8)


def logits_of(model):
    x = torch.randn(1, 5, L, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.language.model(inputs_embeds=x).logits


# -- what is computed --


def test_a_frame_becomes_tokens_of_four_neighbours_projected(model):
    """Against float64: the tower, a norm without weights, four patches of a row, a product."""
    w = {k: v.double().numpy() for k, v in published.random(published.vision()).items()}
    own = {k: v.double().numpy() for k, v in published.random(published.own(), seed=1).items()}
    sizes = EvaConfig(D, published.BLOCKS, 4, published.MLP, published.SIDE, published.PATCH)
    plain = {"n.weight": np.ones(D), "n.bias": np.zeros(D)}
    tokens = model.encoder(torch.from_numpy(pictures())).numpy()
    for picture, read in zip(pictures(), tokens, strict=True):
        x = layer_norm(eva(picture, w, sizes), plain, "n", 1e-5)[1:]
        joined = [np.concatenate(x[4 * j : 4 * j + 4]) for j in range(len(x) // 4)]
        np.testing.assert_allclose(read, linear(np.stack(joined), own, "llama_proj"), atol=1e-4)


def test_a_norm_in_the_files_is_used(keys, tmp_path):
    norm = {"ln_vision.weight": torch.full((D,), 2.0), "ln_vision.bias": torch.full((D,), 0.5)}
    seen = published.random(published.vision()) | norm
    one = open_model("x", find(published.write(tmp_path, vision_tensors=seen), tmp_path), keys)
    assert torch.equal(one.encoder.ln_vision.weight, norm["ln_vision.weight"])


def test_lora_merged_attached_and_by_hand_are_one(opened):
    """y = W x + (alpha / r) B A x, in float64."""
    merged, attached = opened(lora="merged"), opened(lora="attached")
    own, layer = published.random(published.own(), seed=1), "model.layers.0.self_attn.q_proj"
    at = f"{LORA}0.self_attn.q_proj.lora_"
    base = attached.language.model.get_submodule(layer).base_layer.weight.double()
    added = own[f"{at}B.weight"].double() @ own[f"{at}A.weight"].double() * 16 / RANK
    assert added.abs().max() > 0.1
    weight = merged.language.model.get_submodule(layer).weight
    torch.testing.assert_close(weight.double(), base + added, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_of(merged), logits_of(attached), atol=1e-4, rtol=1e-4)
    prompt = merged.prompt(None, [], "Hello.")
    assert merged.language.generate([prompt], merged.decoding) == attached.language.generate(
        [prompt], attached.decoding
    )


def test_a_mistral_base_has_narrow_values_and_twice_the_limits(keys, tmp_path):
    path = published.write(tmp_path, "mistral")
    model = open_model("x", find(path, tmp_path), keys)
    assert (model.kind, model.limits) == ("mistral", (90, 800, 7500))
    value = model.language.model.get_submodule("model.layers.1.self_attn.v_proj").weight
    assert value.shape == (L // 2, L)
    assert model.language.generate([model.prompt(None, [], "Hello.")], model.decoding)[0]


# -- what opens --


def test_a_checkpoint_of_a_later_peft_is_the_same(keys, files, tmp_path, opened):
    later = {
        name.replace(".weight", ".default.weight") if "lora" in name else name: value
        for name, value in published.random(published.own(), seed=1).items()
    }
    again = open_model("x", find(published.write(tmp_path, own_tensors=later), tmp_path), keys)
    assert again.lora.keys() == opened().lora.keys() and len(again.lora) == 8
    assert again.fingerprint == opened().fingerprint


def test_one_error_names_all_that_is_missing_unknown_or_of_another_shape(keys, tmp_path):
    own, seen = published.random(published.own()), published.random(published.vision())
    del own["llama_proj.bias"], own[f"{LORA}0.self_attn.q_proj.lora_A.weight"]
    own["surprise"] = torch.zeros(1)
    own[f"{LORA}1.self_attn.v_proj.lora_B.weight"] = torch.zeros(7, RANK)
    seen["blocks.1.attn.qkv.weight"] = torch.zeros(3, 3)
    del seen["cls_token"]
    path = published.write(tmp_path, own_tensors=own, vision_tensors=seen)
    with pytest.raises(CheckpointError) as error:
        open_model("x", find(path, tmp_path), keys)
    text = str(error.value)
    assert f"2 missing: {LORA}0.self_attn.q_proj.lora_A.weight, llama_proj.bias" in text
    assert f"{LORA}1.self_attn.v_proj.lora_B.weight (7, 4) for (48, 4)" in text
    assert "1 unknown: surprise" in text and "1 missing: cls_token" in text
    assert "blocks.1.attn.qkv.weight (3, 3) for (72, 24)" in text and "\n" not in text


def test_what_is_not_whole_opens_in_part_where_asked_and_a_warning_lists_it(keys, tmp_path, caplog):
    own, seen = published.random(published.own(), seed=1), published.random(published.vision())
    lost = f"{LORA}1.self_attn.q_proj.lora_B.weight"
    own = {name: value for name, value in own.items() if name != lost} | {"more": torch.ones(1)}
    seen.pop("blocks.0.norm1.weight")
    path = published.write(tmp_path, own_tensors=own, vision_tensors=seen)
    with pytest.raises(CheckpointError, match=r"1 missing: .*lora_B.*1 unknown: more"):
        open_model("x", find(path, tmp_path), keys)
    path.write_text(path.read_text() + "weights = 'partial'\n")
    model = open_model("x", find(path, tmp_path), keys)
    assert "1 tensors are untrained" in caplog.text and lost in caplog.text
    assert "blocks.0.norm1.weight" in caplog.text and "(more)" in caplog.text
    assert "inv_freq" not in caplog.text  # a known buffer
    assert torch.equal(model.encoder.llama_proj.weight, own["llama_proj.weight"])
    assert not model.lora["model.layers.1.self_attn.q_proj.B"].any()
    assert model.encoder.visual_encoder.blocks[0].norm1.weight.eq(1).all()
    own["llama_proj.weight"] = own["llama_proj.weight"][:, :4].clone()
    part = published.write(tmp_path / "part", own_tensors=own, options="weights = 'partial'\n")
    with pytest.raises(CheckpointError, match=r"of another shape: llama_proj\.weight"):
        open_model("x", find(part, tmp_path), keys)


def test_a_checkpoint_on_another_base_is_refused(keys, tmp_path):
    path = published.write(tmp_path, "mistral", own_tensors=published.random(published.own()))
    with pytest.raises(CheckpointError, match=r"v_proj.lora_B.weight \(48, 4\) for \(24, 4\)"):
        open_model("x", find(path, tmp_path), keys)


class Bomb:
    def __reduce__(self):
        return (print, ("!",))


def test_a_pickle_that_could_run_code_is_refused_unrun(keys, tmp_path, capsys):
    path = published.write(tmp_path, bomb=Bomb())
    with pytest.raises(CheckpointError, match="can run code"):
        open_model("x", find(path, tmp_path), keys)
    assert "!" not in capsys.readouterr().out


def test_missing_files_are_named_with_the_command_that_gets_them(keys, files, tmp_path):
    text = files.read_text()
    path = tmp_path / "m.toml"
    for old, new, message in (
        (f"{files.parent}/eva_vit_g.pth", "gone/eva_vit_g.pth", "curl -O https://storage"),
        (
            f"{files.parent}/video_checkpoint_last.pth",
            "hf:Vision-CAIR/MiniGPT4-Video/checkpoints/a.pth",
            "hf download Vision-CAIR/MiniGPT4-Video checkpoints/a.pth",
        ),
        (f"{files.parent}/language", "hf:meta-llama/x", "pull hf:meta-llama/x"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(BackboneError, match=message):
            open_model("x", find(path, tmp_path), keys)


def test_quantized_bases_need_bitsandbytes_and_attached_lora(opened, monkeypatch):
    with pytest.raises(ConfigError, match="lora=attached"):
        MiniGPT4Options(quantize="8bit")
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(BackboneError, match="quantize=8bit: pip install bitsandbytes"):
        opened(quantize="8bit", lora="attached")


@pytest.mark.parametrize(
    "wrong",
    [{"cuts": "top3"}, {"frames": -1}, {"clip_s": 0.0}, {"prompt": "x"}, {"kept_frames": 0}],
)
def test_options_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MiniGPT4Options(**wrong)


def test_every_preset_is_meant(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = ("minigpt4-video-7b", "minigpt4-video-7b-mistral")
    for name, options in (
        *((name, MiniGPT4Options()) for name in names),
        ("minigpt4-video-7b-published", PUBLISHED),
        ("goldfish-7b", GOLDFISH),
    ):
        assert find(name, checkpoint.CONFIGS).options == options
        with pytest.raises(BackboneError, match="pull hf:"):
            checkpoint.load_checkpoint(name)


def test_a_toml_file_is_a_model_for_load(files, tiny):
    assert isinstance(checkpoint.load_checkpoint(files), MiniGPT4Video)


def test_goldfishs_request_comes_from_the_users_file_and_is_never_run(
    keys, files, tmp_path, monkeypatch, capsys
):
    theirs = tmp_path / "goldfish_lv.py"
    theirs.write_text('print("ran")\nclass A:\n    x = "other"\n    y = "Say all."\n')
    path = tmp_path / "m.toml"
    path.write_text(f"prompts = '{theirs}'\n{files.read_text()}")
    with pytest.raises(CheckpointError, match="is not in it"):
        open_model("x", find(path, tmp_path), keys)
    digest = hashlib.sha256(b"Say all.").hexdigest()
    monkeypatch.setattr(loader, "SUMMARY_SHA256", digest[:16])
    assert open_model("x", find(path, tmp_path), keys).session_options == {
        "instruction": "Say all."
    }
    assert "ran" not in capsys.readouterr().out


# -- at full size --


def full_size(kind):
    """Names and shapes of all that a checkpoint of 7 billion parameters must hold."""
    config = AutoConfig.for_model(
        kind, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32 if kind == "llama" else 8,
    )  # fmt: skip
    with torch.device("meta"):
        encoder = FrameEncoder(EvaConfig(), 4096)
    return config, {name: tuple(v.shape) for name, v in encoder.state_dict().items()}


@pytest.mark.parametrize(("kind", "lora"), [("llama", 33_554_432), ("mistral", 27_262_976)])
def test_the_layout_at_full_size_is_the_published_one(kind, lora, monkeypatch):
    config, encoder = full_size(kind)
    tower = {name: shape for name, shape in encoder.items() if name.startswith("visual_encoder.")}
    assert len(tower) == 511
    assert sum(map(math.prod, tower.values())) == 985_894_528
    proj = [shape for name, shape in encoder.items() if name.startswith("llama_proj.")]
    assert sum(map(math.prod, proj)) == 23_072_768
    monkeypatch.setattr(loader, "local_folder", lambda name: name)
    monkeypatch.setattr(loader.AutoConfig, "from_pretrained", lambda *_, **__: config)
    base = loader._base("x")
    pairs = [(64 * (out + into)) for out, into in base.shapes.values()]
    assert len(base.shapes) == 64 and sum(pairs) == lora


def test_the_fingerprint_is_of_projection_lora_and_kept_frames(opened, keys, tmp_path):
    one = opened()
    assert one.fingerprint == opened(prompt="plain").fingerprint
    assert one.fingerprint != opened(kept_frames=3).fingerprint
    for name in ("llama_proj.bias", f"{LORA}0.self_attn.q_proj.lora_B.weight"):
        own = published.random(published.own(), seed=1)
        own[name] += 1
        path = published.write(tmp_path / name, own_tensors=own)
        assert open_model("x", find(path, tmp_path), keys).fingerprint != one.fingerprint
