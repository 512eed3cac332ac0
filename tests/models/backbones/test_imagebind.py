"""ImageBind's audio branch against float64 formulas, Kaldi's own filter bank and known counts."""

import math

import numpy as np
import pytest
import torch

from streammem.models.backbones.imagebind import (
    BINS,
    FRAMES,
    RATE,
    ImageBindAudio,
    ImageBindConfig,
    ImageBindText,
    ImageBindTextConfig,
    ImageBindVision,
    ImageBindVisionConfig,
    clip_starts,
    filter_bank,
    spectrogram,
)
from tests.models.backbones.test_eva_and_qformer import attended, filled
from tests.models.videollamb.reference import MEAN as MEAN_OF_PIXELS
from tests.models.videollamb.reference import STD as STD_OF_PIXELS
from tests.models.videollamb.reference import gelu, layer_norm, linear

TINY = ImageBindConfig(width=24, layers=2, heads=2, mlp=32, out=12, kernel=40, stride=30)


def sound(seconds, seed=0):
    """Noise and two tones: every band holds something."""
    count = round(seconds * RATE)
    time = np.arange(count) / RATE
    noise = np.random.default_rng(seed).standard_normal(count) * 0.05
    tones = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time)
    return torch.from_numpy(noise + tones + 0.01)


def mel(hz):
    return 1127 * math.log(1 + hz / 700)


def fbank(samples):
    """Kaldi's filter bank, frame by frame and filter by filter, in float64."""
    rows = []
    corners = np.linspace(mel(20), mel(8000), BINS + 2)
    for start in range(0, len(samples) - 400 + 1, 160):
        frame = samples[start : start + 400] - samples[start : start + 400].mean()
        frame = np.array([frame[i] - 0.97 * frame[max(0, i - 1)] for i in range(400)])
        frame *= [0.5 - 0.5 * math.cos(2 * math.pi * i / 399) for i in range(400)]
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        energies = np.zeros(BINS)
        for number in range(256):
            at = mel(number * RATE / 512)
            for band in range(BINS):
                left, middle, right = corners[band : band + 3]
                if left < at <= middle:
                    energies[band] += power[number] * (at - left) / (middle - left)
                elif middle < at < right:
                    energies[band] += power[number] * (right - at) / (right - middle)
        rows.append(np.log(np.maximum(energies, np.finfo(np.float32).eps)))
    return np.array(rows)


def test_the_filter_bank_is_the_formula():
    samples = sound(0.06)
    np.testing.assert_allclose(filter_bank(samples), fbank(samples.numpy()), atol=1e-9)


def test_the_filter_bank_is_kaldis():  # of 128 bins some are empty, which this one refuses
    kaldi = pytest.importorskip("kaldi_native_fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = RATE, 0.0
    options.frame_opts.window_type, options.frame_opts.snip_edges = "hanning", True
    options.mel_opts.num_bins, options.use_energy, options.htk_compat = 80, False, True
    for seconds in (0.5, 2.0):
        samples = sound(seconds).float()
        bank = kaldi.OnlineFbank(options)
        bank.accept_waveform(RATE, samples.tolist())
        bank.input_finished()
        theirs = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
        ours = filter_bank(samples, 80).numpy()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-3)  # both are float32


def test_the_filter_bank_is_that_of_torchaudio():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    samples = sound(2.0).float()
    theirs = kaldi.fbank(
        samples[None], htk_compat=True, sample_frequency=RATE, use_energy=False,
        window_type="hanning", num_mel_bins=BINS, dither=0.0, frame_length=25, frame_shift=10,
    )  # fmt: skip
    torch.testing.assert_close(filter_bank(samples), theirs, atol=2e-3, rtol=0)


def test_two_seconds_are_198_frames_and_zeros_before_they_are_normalised():
    clip = sound(2.0).float()
    bank = filter_bank(clip - clip.mean())
    made = spectrogram(clip)
    assert bank.shape == (198, BINS) and made.shape == (1, BINS, FRAMES)
    torch.testing.assert_close(made[0, :, :198], (bank.T + 4.268) / 9.138)
    torch.testing.assert_close(made[0, :, 198:], torch.full((BINS, 6), 4.268 / 9.138))


@pytest.mark.parametrize("count", [0, 1, 399, 400, RATE])
def test_a_clip_of_any_length_makes_a_finite_spectrogram(count):
    made = spectrogram(sound(1.0)[:count])
    assert made.shape == (1, BINS, FRAMES) and made.isfinite().all()
    frames = max(0, 1 + (count - 400) // 160)
    torch.testing.assert_close(
        made[0, :, frames:], torch.full((BINS, FRAMES - frames), 4.268 / 9.138)
    )


def test_silence_is_finite_and_a_constant_is_silence():
    quiet = spectrogram(torch.zeros(2 * RATE))
    assert quiet.isfinite().all()
    torch.testing.assert_close(spectrogram(torch.full((2 * RATE,), 0.25)), quiet)


def test_clips_reach_the_end_or_as_published_do_not():
    ten = 10 * RATE
    assert clip_starts(ten)[0] == 0 and clip_starts(ten)[-1] == 8 * RATE
    assert clip_starts(ten, to_end=False) == [i * RATE for i in range(8)]
    assert clip_starts(RATE) == clip_starts(RATE, to_end=False) == [0] * 8


def audio(made, w, config=TINY):
    """One spectrogram through the branch, by the formula."""
    kernel = w["modality_preprocessors.audio.rgbt_stem.proj.weight"][:, 0]
    size, step = config.kernel, config.stride
    patches = [
        made[y : y + size, x : x + size]
        for y in range(0, BINS - size + 1, step)
        for x in range(0, FRAMES - size + 1, step)
    ]
    at = "modality_preprocessors.audio."
    tokens = np.stack([np.einsum("yx,dyx->d", patch, kernel) for patch in patches])
    tokens = layer_norm(tokens, w, f"{at}rgbt_stem.norm_layer", 1e-5)
    x = np.concatenate([w[f"{at}cls_token"][0], tokens])
    x = x + w[f"{at}pos_embedding_helper.pos_embed"][0]
    for number in range(config.layers):
        at = f"modality_trunks.audio.blocks.{number}."
        normed = layer_norm(x, w, f"{at}norm_1", 1e-6)
        joint = normed @ w[f"{at}attn.in_proj_weight"].T + w[f"{at}attn.in_proj_bias"]
        q, k, v = np.split(joint, 3, axis=1)
        k = np.concatenate([k, w[f"{at}attn.bias_k"][0]])
        v = np.concatenate([v, w[f"{at}attn.bias_v"][0]])
        x = x + linear(attended(q, k, v, config.heads), w, f"{at}attn.out_proj")
        inner = gelu(linear(layer_norm(x, w, f"{at}norm_2", 1e-6), w, f"{at}mlp.fc1"))
        x = x + linear(inner, w, f"{at}mlp.fc2")
    first = layer_norm(x[:1], w, "modality_heads.audio.0", 1e-6)[0]
    vector = w["modality_heads.audio.2.weight"] @ first
    return vector / np.linalg.norm(vector)


def test_the_audio_branch_is_the_formula_scaled_by_20():
    ears, w = filled(ImageBindAudio(TINY))
    scale = "modality_postprocessors.audio.1.log_logit_scale"
    ears.state_dict()[scale].fill_(math.log(20))
    made = torch.stack([spectrogram(sound(2.0, seed)) for seed in range(2)]).double()
    read = ears.double()(made)
    expected = np.stack([audio(each[0].numpy(), w) for each in made])
    np.testing.assert_allclose(read.numpy(), 20 * expected, atol=1e-4)
    np.testing.assert_allclose(ears(made, scaled=False).numpy(), expected, atol=1e-5)
    ears.state_dict()[scale].fill_(9.0)  # e^9 is beyond the cap
    np.testing.assert_allclose(ears(made).numpy(), 100 * expected, atol=1e-4)


def test_at_full_size_names_and_values_are_as_many_as_published():
    with torch.device("meta"):
        state = ImageBindAudio(ImageBindConfig()).state_dict()
    assert (len(state), sum(v.numel() for v in state.values())) == (177, 86_235_649)
    assert state["modality_preprocessors.audio.pos_embedding_helper.pos_embed"].shape == (
        1, 229, 768,
    )  # fmt: skip


EYES = ImageBindVisionConfig(width=24, layers=2, heads=2, mlp=32, out=12, side=28, patch=14)


def vision(picture, w, config=EYES):
    """One picture through the branch, by the formula."""
    at, size = "modality_preprocessors.vision.", config.patch
    kernel = w[f"{at}rgbt_stem.proj.1.weight"].sum(2)  # both frames are the picture
    pixels = (picture / 255 - MEAN_OF_PIXELS) / STD_OF_PIXELS
    rows = range(0, config.side, size)
    patches = [pixels[y : y + size, x : x + size] for y in rows for x in rows]
    tokens = np.stack([np.einsum("yxc,dcyx->d", patch, kernel) for patch in patches])
    x = np.concatenate([w[f"{at}cls_token"][0], tokens])
    x = x + w[f"{at}pos_embedding_helper.pos_embed"][0]
    x = layer_norm(x, w, "modality_trunks.vision.pre_transformer_layer.0", 1e-6)
    for number in range(config.layers):
        at = f"modality_trunks.vision.blocks.{number}."
        normed = layer_norm(x, w, f"{at}norm_1", 1e-6)
        joint = normed @ w[f"{at}attn.in_proj_weight"].T + w[f"{at}attn.in_proj_bias"]
        added = attended(*np.split(joint, 3, axis=1), config.heads)
        x = x + linear(added, w, f"{at}attn.out_proj")
        inner = gelu(linear(layer_norm(x, w, f"{at}norm_2", 1e-6), w, f"{at}mlp.fc1"))
        x = x + linear(inner, w, f"{at}mlp.fc2")
    first = layer_norm(x[:1], w, "modality_heads.vision.0", 1e-6)[0]
    vector = w["modality_heads.vision.2.weight"] @ first
    return vector / np.linalg.norm(vector)


def test_the_pictures_branch_is_the_formula():
    eyes, w = filled(ImageBindVision(EYES))
    pictures = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)
    read = eyes.double()(torch.from_numpy(pictures))
    expected = np.stack([vision(picture, w) for picture in pictures])
    np.testing.assert_allclose(read.numpy(), expected, atol=1e-5)


def test_at_full_size_the_pictures_branch_has_a_huge_vits_parameters():
    with torch.device("meta"):
        state = ImageBindVision(ImageBindVisionConfig()).state_dict()
    assert state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].shape == (
        1280, 3, 2, 14, 14,
    )  # fmt: skip
    assert sum(name.count("in_proj_weight") for name in state) == 32


# -- text --

TEXT = ImageBindTextConfig(width=24, layers=2, heads=2, mlp=32, out=12, words=50, length=9)
IDS = torch.tensor([[48, 3, 17, 49, 0, 0, 0, 0, 0], [48, 5, 5, 9, 30, 2, 1, 7, 49]])


def text(ids, w, config=TEXT):
    """One text through the branch, by the formula; tokens see themselves and those before."""
    at = "modality_preprocessors.text."
    x = w[f"{at}token_embedding.weight"][ids] + w[f"{at}pos_embed"][0]
    size = config.width // config.heads
    for number in range(config.layers):
        at = f"modality_trunks.text.blocks.{number}."
        normed = layer_norm(x, w, f"{at}norm_1", 1e-6)
        joint = normed @ w[f"{at}attn.in_proj_weight"].T + w[f"{at}attn.in_proj_bias"]
        read = np.zeros_like(x)
        for head in range(config.heads):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in np.split(joint, 3, 1))
            for place in range(len(x)):
                scores = np.exp(k[: place + 1] @ q[place] / math.sqrt(size))
                seen = scores @ v[: place + 1] / scores.sum()
                read[place, head * size : (head + 1) * size] = seen
        x = x + linear(read, w, f"{at}attn.out_proj")
        inner = gelu(linear(layer_norm(x, w, f"{at}norm_2", 1e-6), w, f"{at}mlp.fc1"))
        x = x + linear(inner, w, f"{at}mlp.fc2")
    last = layer_norm(x[[int(ids.argmax())]], w, "modality_heads.text.proj.0", 1e-6)[0]
    vector = w["modality_heads.text.proj.1.weight"] @ last
    return vector / np.linalg.norm(vector)


def text_branch():
    """A tiny branch of random weights, with the mask that the published file holds."""
    branch = ImageBindText(TEXT)
    mask = branch.modality_preprocessors["text"].mask.clone()
    branch, _ = filled(branch)
    branch.state_dict()["modality_preprocessors.text.mask"].copy_(mask)
    w = {name: value.double().numpy() for name, value in branch.state_dict().items()}
    return branch, w


@torch.no_grad()
def test_the_text_branch_is_the_formula():
    branch, w = text_branch()
    expected = np.stack([text(ids.numpy(), w) for ids in IDS])
    np.testing.assert_allclose(branch(IDS).numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_the_text_branch_is_that_of_transformers_clip():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    branch, _ = text_branch()
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, projection_dim=12,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=9,
        hidden_act="gelu", layer_norm_eps=1e-6, eos_token_id=49,
    )  # fmt: skip
    clip, own = CLIPTextModelWithProjection(config).eval(), branch.state_dict()
    stem, heads = "modality_preprocessors.text.", "modality_heads.text.proj."
    named = {
        "text_model.embeddings.token_embedding.weight": own[f"{stem}token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": own[f"{stem}pos_embed"][0],
        "text_model.final_layer_norm.weight": own[f"{heads}0.weight"],
        "text_model.final_layer_norm.bias": own[f"{heads}0.bias"],
        "text_projection.weight": own[f"{heads}1.weight"],
    }
    pairs = {
        "norm_1": "layer_norm1", "norm_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    for number in range(2):
        at, to = f"modality_trunks.text.blocks.{number}.", f"text_model.encoder.layers.{number}."
        for part in ("weight", "bias"):
            joint = own[f"{at}attn.in_proj_{part}"].chunk(3)
            for letter, value in zip("qkv", joint, strict=True):
                named[f"{to}self_attn.{letter}_proj.{part}"] = value
            named |= {f"{to}{b}.{part}": own[f"{at}{a}.{part}"] for a, b in pairs.items()}
    missing, unknown = clip.load_state_dict(named, strict=False)
    assert not unknown and all("position_ids" in name for name in missing)
    theirs = torch.nn.functional.normalize(clip(input_ids=IDS).text_embeds, dim=-1)
    torch.testing.assert_close(branch(IDS), theirs, atol=1e-5, rtol=1e-4)


def test_at_full_size_the_text_branch_has_as_many_parameters_as_clips_of_its_size():
    with torch.device("meta"):
        branch = ImageBindText(ImageBindTextConfig())
    count, width = sum(p.numel() for p in branch.parameters()), 1024
    block = 12 * width**2 + (3 + 1 + 4 + 1 + 4) * width
    assert count == (49_408 + 77) * width + 24 * block + 2 * width + width**2 + 1
    assert branch.state_dict()["modality_preprocessors.text.mask"].shape == (77, 77)
    assert {name.partition(".text.")[0] for name in branch.state_dict()} == {
        "modality_preprocessors", "modality_trunks", "modality_heads", "modality_postprocessors"
    }  # fmt: skip
