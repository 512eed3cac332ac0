import pytest
import torch

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models import checkpoint
from streammem.models.published import find
from streammem.models.video_llama.branches import (
    BranchSizes,
    PictureBranch,
    SoundBranch,
    SoundSizes,
)
from streammem.models.video_llama.published import VideoLlamaFile, open_model
from tests.models.video_llama import published
from tests.models.video_llama.published import POSITIONS, Q, W
from tests.models.videollamb.published import L


def test_every_tensor_ends_up_where_its_name_says(model, w):
    for branch in (model.pictures, model.sound):
        state, names = branch.state_dict(), branch.published()
        assert sorted(names.values()) == sorted(state)
        for name, own in names.items():
            assert torch.equal(state[own].double(), torch.from_numpy(w[name])), name


def test_sizes_come_from_the_files(model):
    assert model.pictures.sizes.positions == POSITIONS
    assert model.token_shape == (8 * Q + 1 + 8 * published.OUT // W, W)
    assert model.language.width == L
    assert model.sound.sizes.ears.stride == published.STRIDE


def test_without_the_second_checkpoint_it_does_not_listen(opened):
    deaf = opened(listens=False)
    assert deaf.sound is None and "sound" not in deaf.session_options
    assert deaf.token_shape == (8 * Q + 1, W)


def test_the_second_checkpoint_goes_over_the_first(files, keys, tmp_path):
    changed = files["sound.pth"] | {"llama_proj.bias": torch.full((L,), 7.0)}
    folder = published.write(tmp_path, files | {"sound.pth": changed})
    said = find(published.toml(folder), checkpoint.CONFIGS)
    assert (open_model("x", said, keys).pictures.projection.bias == 7).all()


def test_one_error_names_all_that_is_missing_unknown_or_of_another_shape(files, keys, tmp_path):
    changed = {file: dict(tensors) for file, tensors in files.items()}
    del changed["pictures.pth"]["llama_proj.bias"]
    del changed["eva_vit_g.pth"]["blocks.1.norm2.weight"]
    changed["blip2_pretrained_flant5xxl.pth"]["ln_vision.bias"] = torch.zeros(3)
    changed["sound.pth"]["audio_surprise"] = torch.zeros(2)
    del changed["imagebind_huge.pth"]["modality_heads.audio.0.bias"]
    said = find(published.toml(published.write(tmp_path, changed)), checkpoint.CONFIGS)
    with pytest.raises(CheckpointError) as error:
        open_model("x", said, keys)
    text = str(error.value)
    assert (
        "3 missing: audio_encoder.modality_heads.audio.0.bias, llama_proj.bias, "
        "visual_encoder.blocks.1.norm2.weight; "
        "1 of another shape: ln_vision.bias (3,) for (32,); 1 unknown: audio_surprise" in text
    )
    assert "\n" not in text and all(file in text for file in list(files)[:4])


@pytest.mark.heavy
def test_what_is_not_whole_opens_in_part_where_asked_and_a_warning_lists_it(
    files, keys, tmp_path, caplog
):
    lost = "video_Qformer.bert.encoder.layer.0.attention.self.query.weight"
    part = {name: value for name, value in files["pictures.pth"].items() if name != lost}
    place = published.write(tmp_path, files | {"pictures.pth": part | {"more": torch.ones(1)}})
    said = find(published.toml(place), checkpoint.CONFIGS)
    with pytest.raises(CheckpointError, match=f"1 missing: {lost}; 1 unknown: more"):
        open_model("x", said, keys)
    said = find(published.toml(place, weights="partial"), checkpoint.CONFIGS)
    model = open_model("x", said, keys)
    assert f"1 tensors are untrained ({lost}), 1 are not read (more)" in caplog.text
    assert torch.equal(model.pictures.projection.weight, part["llama_proj.weight"])
    made = model.pictures.state_dict()[model.pictures.published()[lost]]
    assert made.any() and float(made.abs().max()) < 0.2


def test_a_missing_file_and_a_file_without_weights_are_named(folder, keys, tmp_path):
    said = find(published.toml(folder, tmp_path / "a.toml"), checkpoint.CONFIGS)
    with pytest.raises(BackboneError, match=r"gone\.pth: no such file"):
        open_model("x", VideoLlamaFile(pictures=str(tmp_path / "gone.pth"), tower=said.tower,
                                       reader=said.reader), keys)  # fmt: skip
    bare = tmp_path / "bare.toml"
    bare.write_text('family = "video-llama"\n')
    with pytest.raises(ConfigError, match="name pictures"):
        find(bare, checkpoint.CONFIGS)


@pytest.mark.parametrize(
    ("preset", "chat", "listens"),
    [("video-llama-7b", "llama2", True), ("video-llama-7b-vicuna", "vicuna", True)],
)
def test_presets_name_their_files(preset, chat, listens):
    said = find(preset, checkpoint.CONFIGS)
    assert said.options.chat == chat and bool(said.sound) == listens
    assert said.pictures and said.language


def test_at_full_size_names_and_parameters_are_those_of_the_published_files():
    with torch.device("meta"):
        pictures, sound = PictureBranch(BranchSizes()), SoundBranch(SoundSizes())
    counts = {}
    for branch in (pictures, sound):
        state = branch.state_dict()
        for name, own in branch.published().items():
            first = name.partition(".")[0]
            tensors, values = counts.get(first, (0, 0))
            counts[first] = tensors + 1, values + state[own].numel()
    assert counts == {
        "visual_encoder": (511, 985_894_528),
        "ln_vision": (2, 2816),
        "Qformer": (254, 105_137_664),  # beside a buffer
        "query_tokens": (1, 32 * 768),
        "video_Qformer": (54, 18_905_088),
        "video_query_tokens": (1, 32 * 768),
        "video_frame_position_embedding": (1, 32 * 768),
        "llama_proj": (2, 768 * 4096 + 4096),
        "audio_encoder": (177, 86_235_649),
        "audio_Qformer": (54, 19_691_520),
        "audio_query_tokens": (1, 8 * 768),
        "audio_position_embedding": (1, 8 * 1024),
        "audio_llama_proj": (2, 768 * 4096 + 4096),
    }


def test_a_language_model_of_another_width_is_refused(folder, keys, tmp_path, files):
    narrow = {**files["pictures.pth"], "llama_proj.weight": torch.zeros(20, W)}
    narrow["llama_proj.bias"] = torch.zeros(20)
    part = published.write(tmp_path, files | {"pictures.pth": narrow})
    said = find(published.toml(part, listens=False), checkpoint.CONFIGS)
    with pytest.raises(CheckpointError, match="have width 20"):
        _ = open_model("x", said, keys).language
