import json
import math
import pickle

import numpy as np
import pytest
import torch
import transformers.utils
from safetensors.torch import save_file

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.evaluation.pictures import PictureModel
from streammem.models import checkpoint
from streammem.models.published import find
from streammem.models.videollamb.options import PUBLISHED, ParentOptions
from streammem.models.videollamb.published import ParentFile, open_model
from streammem.models.videollamb.shards import Shards
from streammem.models.videollamb.videollamb import VideoLLaMB
from tests.models.videollamb import published
from tests.models.videollamb.published import D, L, M

PROJECTOR = "model.mm_projector.projector."
LAST = f"encoder.layers.{published.LAYERS - 1}."


def options_of(folder, **options):
    return ParentFile(weights=str(folder), options=ParentOptions(**published.OPTIONS | options))


def answer_to(model, seed=0):
    """What bridge, image tower and language model make of a picture: its tokens and its words."""
    shape = (40, 60, 3)
    picture = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return model.see(picture), PictureModel(model).caption_pictures([picture])


def test_every_tensor_ends_up_where_its_name_says(model, tensors):
    for module, prefix in (
        (model.bridge, "model.mm_projector."),
        (model.image_tower, "model.image_tower.image_tower."),
        (model.video_tower, "model.video_tower.video_tower."),
        (model.language.model, ""),
    ):
        for name, value in module.state_dict().items():
            assert torch.equal(value, tensors[prefix + name]), name


def test_sizes_come_from_the_files(model):
    assert model.token_shape == (2 * M + 8 * 9, D)
    assert model.language.width == L
    assert (model.video_tower.config.group, model.image_tower.config.group) == (8, 0)
    assert model.side == published.SIDE


def test_one_file_loads_as_shards_do(tensors, keys, model, tmp_path):
    published.write(tmp_path, tensors)
    for path in tmp_path.glob("model*"):
        path.unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    single = open_model("x", options_of(tmp_path), keys)
    torch.testing.assert_close(answer_to(single)[0], answer_to(model)[0])


def dead(name):
    return (
        name in ("memory", f"{PROJECTOR}memory_tokens")
        or f"{PROJECTOR}layers.0.crossattention" in name
        or "retrieval.layers.0.selfattention" in name
        or "post_layernorm" in name
        or ("tower" in name and LAST in name)
    )


def test_dead_parameters_may_be_anything_or_nothing(tensors, keys, model, tmp_path):
    expected = answer_to(model)
    assert sum(map(dead, tensors)) > 40
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    others = {name: 7 + value if dead(name) else value for name, value in tensors.items()}
    none = {name: value for name, value in tensors.items() if not dead(name)}
    # What stands in a tower's last layer is not read, but that the layer is there is counted.
    none |= {name: tensors[name] for name in tensors if name.endswith(f"{LAST}layer_norm1.bias")}
    for number, changed in enumerate((others | {old: torch.ones(3)}, none)):
        again = open_model("x", options_of(published.write(tmp_path / str(number), changed)), keys)
        tokens, said = answer_to(again)
        assert torch.equal(tokens, expected[0]) and said == expected[1]


def test_live_parameters_count(tensors, keys, model, tmp_path):
    expected = answer_to(model)[0]
    for name in (f"{PROJECTOR}read_memory_emb", f"{PROJECTOR}layers.0.mlp.0.bias"):
        changed = tensors | {name: 1 - tensors[name]}
        again = open_model("x", options_of(published.write(tmp_path / name, changed)), keys)
        assert not torch.allclose(answer_to(again)[0], expected, atol=1e-3)


def test_one_error_names_all_that_is_missing_unknown_or_of_another_shape(tensors, keys, tmp_path):
    changed = dict(tensors)
    del changed["model.norm.weight"], changed[f"{PROJECTOR}proj.0.bias"]
    changed["model.mm_projector.surprise"] = torch.zeros(3)
    changed["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, L)
    published.write(tmp_path, changed)
    with pytest.raises(CheckpointError) as error:
        open_model("x", options_of(tmp_path), keys)
    text = str(error.value)
    assert f"2 missing: {PROJECTOR}proj.0.bias, model.norm.weight" in text
    assert "1 of another shape: model.layers.1.mlp.up_proj.weight (5, 48) for (64, 48)" in text
    assert "1 unknown: model.mm_projector.surprise" in text
    assert "\n" not in text


def test_a_list_that_would_fill_the_screen_is_cut_and_counted(tensors, keys, tmp_path):
    few = {name: value for name, value in tensors.items() if not name.startswith("model.layers")}
    published.write(tmp_path, few)
    with pytest.raises(CheckpointError, match=r"18 missing: .* and 6 more"):
        open_model("x", options_of(tmp_path), keys)


def test_what_the_index_promises_and_no_file_holds_is_missing(tensors, keys, tmp_path):
    published.write(tmp_path, tensors)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = index["weight_map"]["model.norm.weight"]
    rest = {n: v for n, v in tensors.items() if index["weight_map"][n] == file}
    del rest["model.norm.weight"]
    save_file(rest, tmp_path / file)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.norm\.weight"):
        open_model("x", options_of(tmp_path), keys)


def test_pickled_weights_are_refused_unopened_with_the_way_out(keys, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("boom").write_text, ("!",))

    published.write(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"pickled.*save_file\(torch.load\('pytorch_model"):
        open_model("x", options_of(tmp_path), keys)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.joinpath("model-00002-of-00003.safetensors").unlink(), "missing or corrupt"),
        (
            lambda f: f.joinpath("model-00002-of-00003.safetensors").write_bytes(b"x" * 99),
            "missing or corrupt",
        ),
        (lambda f: f.joinpath("model.safetensors.index.json").write_text("{"), "not an index"),
        (
            lambda f: f.joinpath("model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../../secret.safetensors"}}'
            ),
            "do not lie beside it",
        ),
        (lambda f: f.joinpath("config.json").write_text("[]"), "not a VideoLLaMB's"),
        (
            lambda f: f.joinpath("config.json").write_text(
                json.dumps(published.CONFIG | {"mm_projector_type": "qformer"})
            ),
            "'qformer' is none of ours",
        ),
        (
            lambda f: f.joinpath("config.json").write_text(
                json.dumps(published.CONFIG | {"mm_hidden_size": "wide"})
            ),
            "not a bridge's",
        ),
    ],
)
def test_damaged_files_are_told_in_one_line(keys, tmp_path, damage, message):
    published.write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        open_model("x", options_of(tmp_path), keys)
    assert "\n" not in str(error.value)


def test_weights_are_bfloat16_where_asked_and_float32_on_a_cpu(opened, model):
    assert model.bridge.projector.read_memory_emb.dtype == torch.float32
    half = opened(dtype="bfloat16")
    for part in (half.bridge, half.video_tower, half.image_tower, half.language.model):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    tokens, said = answer_to(half)
    assert said[0]
    torch.testing.assert_close(tokens.float(), answer_to(model)[0], atol=0.2, rtol=0.1)


def test_a_published_tokenizer_names_the_packages_that_it_needs(
    tensors, keys, tmp_path, monkeypatch
):
    published.write(tmp_path, tensors)
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    for missing in ("sentencepiece", "google", "google.protobuf"):
        monkeypatch.setattr(
            "streammem.models.backbones.transformers_files.find_spec",
            lambda name, m=missing: name != m,
        )
        model = open_model("x", options_of(tmp_path), keys)
        with pytest.raises(BackboneError, match=r"protobuf; run: pip install 'streammem\[parents"):
            _ = model.language


def test_quantized_weights_need_bitsandbytes(opened, monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(BackboneError, match="quantize=4bit: pip install bitsandbytes"):
        opened(quantize="4bit")


@pytest.mark.parametrize(
    "options",
    [{"pool": 0}, {"sees": "nothing"}, {"kept_frames": 9}, {"cache": "both"}, {"heads": -1}],
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ParentOptions(**options)


def test_heads_that_do_not_divide_the_width_are_refused(opened):
    with pytest.raises(ConfigError, match="heads=5"):
        opened(heads=5)


def test_the_layout_at_full_size_is_the_published_one(keys, monkeypatch, tmp_path):
    sizes = {
        "D": 1024, "M": 32, "L": 4096, "MLP": 4096, "LAYERS": 24, "SIDE": 224,
        "LM_MLP": 11008, "LM_LAYERS": 32, "WORDS": 32000,
    }  # fmt: skip
    for name, value in sizes.items():
        monkeypatch.setattr(published, name, value)
    shapes = {name: shape for name, shape in published.shapes().items() if name != "memory"}
    # Both counts are those of the files on the model hub: 14.95 GB of bfloat16.
    assert len(shapes) == 1387
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_475_244_032

    def without_values(self, names, dtype):
        return {c: torch.empty(shapes[n], dtype=dtype, device="meta") for n, c in names.items()}

    monkeypatch.setattr(Shards, "tensors", without_values)
    files = dict.fromkeys(shapes, "model.safetensors")
    monkeypatch.setattr(
        "streammem.models.videollamb.published.open_shards",
        lambda folder: Shards(folder, files, shapes),
    )
    config = published.CONFIG | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "mm_hidden_size": 1024,
        "mm_intermediate_size": 4096, "vocab_size": 32000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = open_model("x", ParentFile(weights=str(tmp_path)), keys, device="meta")
    assert model.token_shape == (64 + 8 * 144, 1024)
    assert (model.video_tower.config.heads, model.video_tower.config.group) == (16, 8)


# -- config.json --


def llama_of(folder, keys, **changes):
    published.write(folder, config=published.CONFIG | changes)
    return open_model("x", options_of(folder), keys).language.model


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1 / 10000 ** (np.arange(6) / 6)),
        ({"rope_theta": 500.0}, 1 / 500.0 ** (np.arange(6) / 6)),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            1 / 500.0 ** (np.arange(6) / 6) / 4,
        ),
    ],
    ids=["default", "theta", "scaling"],
)
def test_positions_turn_as_the_configuration_says(keys, tmp_path, changes, expected):
    model = llama_of(tmp_path, keys, **changes)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq, expected, rtol=1e-5)


def test_the_bridge_takes_both_dropouts(keys, tmp_path):
    changes = {"mm_hidden_dropout_prob": 0.3, "mm_attention_probs_dropout_prob": 0.2}
    published.write(tmp_path, config=published.CONFIG | changes)
    bridge = open_model("x", options_of(tmp_path), keys).bridge
    layer = bridge.projector.layers[0]
    assert (layer.residual.drop.p, layer.selfattention.dropout) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1, "another": None}, "another, surprise: not known here"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1, and only -2 is built"),
        ({"mm_hidden_act": "relu"}, "mm_hidden_act is 'relu'"),
        ({"mm_use_x_start_end": True}, "mm_use_x_start_end is True"),
        ({"model_type": "llava_mistral"}, "model_type is 'llava_mistral'"),
        ({"quantization_config": {}}, "quantization_config: not known"),
        ({"rope_scaling": {"type": "magic", "factor": 2.0}}, "rope_scaling 'magic' is none of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_key_that_is_not_understood_refuses_the_checkpoint(keys, tmp_path, changes, message):
    published.write(tmp_path, config=published.CONFIG | changes)
    with pytest.raises(CheckpointError, match=message) as error:
        open_model("x", options_of(tmp_path), keys)
    assert "\n" not in str(error.value)


def test_keys_that_do_not_matter_can_be_named(keys, tmp_path):
    published.write(tmp_path, config=published.CONFIG | {"surprise": 1})
    path = tmp_path / "mine.toml"
    path.write_text(f"weights = '{tmp_path}'\nignored_keys = ['surprise']\n[options]\npool = 3\n")
    assert open_model("x", find(path, checkpoint.CONFIGS), keys).token_shape


def test_every_key_that_the_published_configuration_was_seen_to_have_is_understood(keys, tmp_path):
    seen = {
        "X": ["VIDEO", "IMAGE"], "_name_or_path": "./checkpoints/llava-v1.5-7b",
        "attention_dropout": 0.0, "freeze_mm_mlp_adapter": False, "max_length": 4096,
        "freeze_mm_vision_resampler": False, "image_aspect_ratio": "pad", "pretraining_tp": 1,
        "initializer_range": 0.02, "mm_patch_merge_type": "flat", "mm_projector_lr": None,
        "mm_resampler_type": None, "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_use_x_patch_token": False, "mm_use_x_start_end": False, "rope_scaling": None,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "use_mm_proj": True,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "rope_theta": 10000.0,
        "tokenizer_model_max_length": 2048, "tokenizer_padding_side": "right", "use_cache": True,
        "transformers_version": "4.39.1", "tune_mm_mlp_adapter": False,
    }  # fmt: skip
    assert llama_of(tmp_path, keys, **seen)


# -- through streammem.load --


def test_a_folder_in_the_published_layout_is_a_model(folder, keys, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_own", lambda name, **_: keys)
    model = checkpoint.load_checkpoint(folder)
    assert isinstance(model, VideoLLaMB) and model.options == ParentOptions()


def test_a_toml_file_names_weights_and_options(folder, keys, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "load_own", lambda name, **_: keys)
    path = tmp_path / "mine.toml"
    path.write_text(f"weights = {str(folder)!r}\n[options]\npool = 3\nsees = 'last'\n")
    model = checkpoint.load_checkpoint(path)
    assert model.options == ParentOptions(pool=3, sees="last")
    path.write_text("weights = 'x'\n[options]\npol = 3\n")
    with pytest.raises(ConfigError, match=r"mine.toml: options.pol: no such option"):
        checkpoint.load_checkpoint(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="name weights, a folder"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in checkpoint.CONFIGS.glob("videollamb*.toml"))
)
def test_every_preset_is_meant_and_says_how_to_get_its_weights(name, keys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = find(name, checkpoint.CONFIGS)
    assert said and said.weights.startswith("hf:ColorfulAI/")
    with pytest.raises(BackboneError, match="hf download ColorfulAI"):
        open_model(name, said, keys)


def test_the_published_preset_is_the_parent_with_all_its_faults():
    assert find("videollamb-7b-published", checkpoint.CONFIGS).options == PUBLISHED
    assert find("videollamb-7b", checkpoint.CONFIGS).options == ParentOptions()


def test_other_names_and_folders_are_none_of_ours(tmp_path):
    assert find("streammem-tiny", checkpoint.CONFIGS) is None
    assert find(tmp_path, checkpoint.CONFIGS) is None
    (tmp_path / "config.json").write_text('{"format": 1}')
    assert find(tmp_path, checkpoint.CONFIGS) is None
