"""ImageBind's branches of sound, pictures and text: vectors of a space of all senses.

    clips = [sound[start : start + 2 * RATE] for start in clip_starts(len(sound))]
    vectors = ears(torch.stack([spectrogram(clip) for clip in clips]))     # [8, 1024]
    vectors = eyes(pixels)                                                 # [T, 1024]
    vectors = text(ids)                                                    # [B, 1024]

Modules bear the published names. Sound is decoded elsewhere, and no weights are looked for here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.languagebind import PIXEL_MEAN, PIXEL_STD
from streammem.models.backbones.torch_files import layers_of, size_of

# Legend: B clips, F frames of a spectrogram, N = 1 + P tokens a clip, D width.

RATE = 16_000  # samples a second
CLIP_S = 2.0
CLIPS = 8
BINS, FRAMES = 128, 204
MEAN, STD = -4.268, 9.138  # of the filter bank's values, over AudioSet
_WINDOW, _SHIFT, _FFT = 400, 160, 512  # samples: 25 ms every 10 ms, padded to a power of two
_LOWEST_HZ, _PREEMPHASIS = 20.0, 0.97
# Of the file of all modalities, what is not of sound.
IMAGEBIND_UNREAD = r"modality_\w+\.(vision|text|depth|thermal|imu)\..*"


def filter_bank(sound: Tensor, bins: int = BINS) -> Tensor:
    """Compute Kaldi's filter bank: log energies every 10 ms, of frames that lie inside.

    Args:
        sound: [N] samples at RATE, float32 or float64.
        bins: energies a frame. Of 128 the lowest few fall between two bins of the transform and
            hold nothing, as in the published code.

    Returns:
        [F, bins], F = 1 + (N - 400) // 160; [0, bins] of less than 25 ms.

    Source: Kaldi, ``compute-fbank-feats``, with a Hann window, no dither and no energy.
    """
    if len(sound) < _WINDOW:
        return sound.new_zeros(0, bins)
    frames = sound.unfold(0, _WINDOW, _SHIFT).clone()  # [F, 400]
    frames -= frames.mean(dim=1, keepdim=True)
    before = frames[:, :-1] * _PREEMPHASIS
    frames[:, 1:] -= before
    frames[:, 0] *= 1 - _PREEMPHASIS  # nothing stands before the first sample but itself
    frames *= torch.hann_window(_WINDOW, periodic=False, dtype=torch.float64).to(frames)
    transform = torch.view_as_real(torch.fft.rfft(frames, n=_FFT))
    power = transform.square_().sum(-1)  # [F, 257]
    energies = power[:, : _FFT // 2] @ _mel_filters(bins).to(frames).T
    return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()


@cache
def _mel_filters(bins: int) -> Tensor:
    """Triangles [bins, 256] float64 over the bins of the transform, evenly on the mel scale."""
    lowest, highest = (1127.0 * math.log1p(hz / 700.0) for hz in (_LOWEST_HZ, RATE / 2))
    corners = torch.linspace(lowest, highest, bins + 2, dtype=torch.float64)[:, None]
    hz = torch.arange(_FFT // 2, dtype=torch.float64) * RATE / _FFT
    mel = 1127.0 * torch.log1p(hz / 700.0)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (mel - left) / (middle - left), (right - mel) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0)


def spectrogram(clip: Tensor, mean: float | None = None) -> Tensor:
    """Turn a clip of at most two seconds into what ``ImageBindAudio`` reads.

    Args:
        clip: [N] samples at RATE.
        mean: that is subtracted from the samples; None takes the clip's own.

    Returns:
        [1, 128, 204] float32; what a shorter clip lacks is zeros before the values are normalised.
    """
    centred = clip.float() - (clip.mean() if mean is None and len(clip) else mean or 0.0)
    bank = filter_bank(centred)[:FRAMES].T  # [128, F]
    padded = F.pad(bank, (0, FRAMES - bank.shape[1]))
    return ((padded - MEAN) / STD)[None]


def clip_starts(samples: int, *, to_end: bool = True, count: int = CLIPS) -> list[int]:
    """Place clips evenly over a sound.

    Args:
        samples: of the sound.
        to_end: the last clip ends with the sound. Without it the sound is divided into ``count``
            parts, each clip begins with one, and the end is not reached, as in the published code.
        count: of clips, >= 1.

    Returns:
        The sample at which each begins; all are 0 where the sound is no longer than a clip.
    """
    room = max(samples - round(CLIP_S * RATE), 0)
    parts = max(1, count - 1) if to_end else count
    return [i * room // parts for i in range(count)]


@dataclass(frozen=True, slots=True)
class ImageBindConfig:
    """Sizes of the audio branch.

    Attributes:
        width: D.
        layers: blocks.
        heads: attention heads; they divide D.
        mlp: width between the two products of an MLP.
        out: width of the shared space.
        kernel: a patch, this many bins by as many frames.
        stride: bins and frames from one patch to the next.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    out: int = 1024
    kernel: int = 16
    stride: int = 10

    @property
    def patches(self) -> int:
        """P."""
        down, along = ((size - self.kernel) // self.stride + 1 for size in (BINS, FRAMES))
        return down * along


class Stem(nn.Module):
    """Overlapping patches through one convolution, then a norm; a container for their names."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, config.width, config.kernel, config.stride, bias=False)
        self.norm_layer = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_layer(self.proj(x).flatten(2).transpose(1, 2))


class Positions(nn.Module):
    """A container for the published name of the position table."""

    def __init__(self, config: "ImageBindConfig | ImageBindVisionConfig") -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))


class Preprocessor(nn.Module):
    """A spectrogram to tokens, the class token first, positions added."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.rgbt_stem = Stem(config)
        self.pos_embedding_helper = Positions(config)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.rgbt_stem(x)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Mlp(nn.Module):
    """Two products with an exact GELU between them."""

    def __init__(self, config: "Sizes") -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block; of sound, keys and values get one more row, which is learned."""

    def __init__(self, config: "Sizes") -> None:
        super().__init__()
        more = isinstance(config, ImageBindConfig)
        self.attn = nn.MultiheadAttention(
            config.width, config.heads, add_bias_kv=more, batch_first=True
        )
        self.norm_1 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config)
        self.norm_2 = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """The blocks; a container for their published names."""

    def __init__(self, config: "ImageBindConfig | ImageBindTextConfig") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return x


class FirstToken(nn.Module):
    """The class token."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class LearnedScale(nn.Module):
    """Multiplies unit vectors by a learned number, at most 100."""

    log_logit_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(math.log(20.0)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.exp().clamp(max=100)


class ImageBindAudio(nn.Module):
    """Spectrograms to vectors of the space that pictures and sentences share.

    Source: ImageBind (arXiv 2305.05665), section 3; audio as in AST (arXiv 2104.01778).
    """

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        head = nn.Sequential(
            nn.LayerNorm(config.width, eps=1e-6),
            FirstToken(),
            nn.Linear(config.width, config.out, bias=False),
        )
        self.modality_preprocessors = nn.ModuleDict({"audio": Preprocessor(config)})
        self.modality_trunks = nn.ModuleDict({"audio": Trunk(config)})
        self.modality_heads = nn.ModuleDict({"audio": head})
        self.modality_postprocessors = nn.ModuleDict(
            {"audio": nn.Sequential(nn.Identity(), LearnedScale())}
        )

    def forward(self, spectrograms: Tensor, *, scaled: bool = True) -> Tensor:
        """Map spectrograms [B, 1, 128, 204] to [B, out].

        Args:
            spectrograms: of ``spectrogram``.
            scaled: multiply by the learned scale (20 as published); else vectors have length 1, as
                those of pictures.
        """
        x = self.modality_preprocessors["audio"](spectrograms)
        x = self.modality_heads["audio"](self.modality_trunks["audio"](x))
        unit = F.normalize(x, dim=-1)
        return self.scale(unit) if scaled else unit

    def scale(self, unit: Tensor) -> Tensor:
        """Multiply vectors by the scale that is stored for sound."""
        scaled: Tensor = self.modality_postprocessors["audio"](unit)
        return scaled


@dataclass(frozen=True, slots=True)
class ImageBindVisionConfig:
    """Sizes of the pictures' branch.

    Attributes:
        width: D.
        layers: blocks.
        heads: attention heads; they divide D.
        mlp: width between the two products of an MLP.
        out: width of the shared space.
        side: pixels of the square input.
        patch: pixels of a square patch; divides ``side``.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    out: int = 1024
    side: int = 224
    patch: int = 14

    @property
    def patches(self) -> int:
        """P."""
        return (self.side // self.patch) ** 2


class PictureStem(nn.Module):
    """Patches of two equal frames through one convolution; a container for its name."""

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        size = (2, config.patch, config.patch)
        self.proj = nn.Sequential(nn.Identity(), nn.Conv3d(3, config.width, size, size, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.unsqueeze(2).expand(-1, -1, 2, -1, -1)).flatten(2).transpose(1, 2)


class PicturePreprocessor(nn.Module):
    """Pixels to tokens, the class token first, positions added."""

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.rgbt_stem = PictureStem(config)
        self.pos_embedding_helper = Positions(config)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.rgbt_stem(x)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class PictureTrunk(nn.Module):
    """A norm, then the blocks; a container for their published names."""

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(config.width, eps=1e-6))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x)
        return x


class ImageBindVision(nn.Module):
    """Pictures to vectors of length 1, in the space that sound shares.

    Source: ImageBind (arXiv 2305.05665), section 3.
    """

    def __init__(self, config: ImageBindVisionConfig) -> None:
        super().__init__()
        self.config = config
        head = nn.Sequential(
            nn.LayerNorm(config.width, eps=1e-6),
            FirstToken(),
            nn.Linear(config.width, config.out, bias=False),
        )
        self.modality_preprocessors = nn.ModuleDict({"vision": PicturePreprocessor(config)})
        self.modality_trunks = nn.ModuleDict({"vision": PictureTrunk(config)})
        self.modality_heads = nn.ModuleDict({"vision": head})

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [T, side, side, 3], levels of 255, to [T, out]."""
        weight = next(self.parameters())
        mean, std = (
            torch.tensor(values, device=weight.device) for values in (PIXEL_MEAN, PIXEL_STD)
        )
        x = ((pixels.to(weight.device) / 255 - mean) / std).permute(0, 3, 1, 2).to(weight.dtype)
        x = self.modality_preprocessors["vision"](x)
        x = self.modality_heads["vision"](self.modality_trunks["vision"](x))
        return F.normalize(x, dim=-1)


@dataclass(frozen=True, slots=True)
class ImageBindTextConfig:
    """Sizes of the text's branch.

    Attributes:
        width: D.
        layers: blocks.
        heads: attention heads; they divide D.
        mlp: width between the two products of an MLP.
        out: width of the shared space.
        words: of the vocabulary; the last two ids begin and end a text.
        length: ids of a text, with both.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    out: int = 1024
    words: int = 49_408
    length: int = 77


Sizes = ImageBindConfig | ImageBindVisionConfig | ImageBindTextConfig


class TextPreprocessor(nn.Module):
    """Ids to tokens, positions added."""

    mask: Tensor

    def __init__(self, config: ImageBindTextConfig) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, config.length, config.width))
        self.token_embedding = nn.Embedding(config.words, config.width)
        ahead = torch.full((config.length, config.length), -math.inf).triu(1)
        self.register_buffer("mask", ahead)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.pos_embed


class LastToken(nn.Module):
    """A norm and a product; of a text, of its last token; a container for their names."""

    def __init__(self, config: ImageBindTextConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(config.width, eps=1e-6), nn.Linear(config.width, config.out, bias=False)
        )

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.proj(x[torch.arange(len(x)), ids.argmax(dim=-1)])


class ImageBindText(nn.Module):
    """Texts to vectors of length 1, in the space that sound shares.

    Source: ImageBind (arXiv 2305.05665), section 3; the tower is CLIP's (arXiv 2103.00020), whose
    tokens see those before them only.
    """

    def __init__(self, config: ImageBindTextConfig) -> None:
        super().__init__()
        self.config = config
        scale = nn.Module()
        scale.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.modality_preprocessors = nn.ModuleDict({"text": TextPreprocessor(config)})
        self.modality_trunks = nn.ModuleDict({"text": Trunk(config)})
        self.modality_heads = nn.ModuleDict({"text": LastToken(config)})
        self.modality_postprocessors = nn.ModuleDict({"text": nn.Sequential(nn.Identity(), scale)})

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, length] to [B, out]; the greatest id of a text ends it."""
        before = self.modality_preprocessors["text"]
        x = self.modality_trunks["text"](before(ids), before.mask)
        return F.normalize(self.modality_heads["text"](x, ids), dim=-1)

    @property
    def scale(self) -> float:
        """Factor of cosines that was learned, at most 100."""
        learned = self.get_parameter("modality_postprocessors.text.1.log_logit_scale")
        return min(100.0, float(learned.exp()))


def audio_config(tensors: Mapping[str, Tensor], heads: int = 0) -> ImageBindConfig:
    """Read sizes off the sound branch's tensors; what is missing has the published size.

    Args:
        tensors: by the published names.
        heads: which no file gives; 0 takes one for every 64 of the width.
    """
    published, stem = ImageBindConfig(), "modality_preprocessors.audio."
    width = size_of(tensors, f"{stem}cls_token", 2, published.width)
    kernel = size_of(tensors, f"{stem}rgbt_stem.proj.weight", 2, published.kernel)
    places = size_of(tensors, f"{stem}pos_embedding_helper.pos_embed", 1, 1 + published.patches)
    trunk = "modality_trunks.audio.blocks."
    return ImageBindConfig(
        width=width,
        layers=layers_of(tensors, trunk, published.layers),
        heads=heads or max(1, width // 64),
        mlp=size_of(tensors, f"{trunk}0.mlp.fc1.weight", 0, published.mlp),
        out=size_of(tensors, "modality_heads.audio.2.weight", 0, published.out),
        kernel=kernel,
        stride=_stride(kernel, places - 1, published.stride),
    )


def text_config(tensors: Mapping[str, Tensor]) -> ImageBindTextConfig:
    """Read sizes off the text branch's tensors; what is missing has the published size."""
    published, stem = ImageBindTextConfig(), "modality_preprocessors.text."
    width = size_of(tensors, f"{stem}pos_embed", 2, published.width)
    trunk = "modality_trunks.text.blocks."
    return ImageBindTextConfig(
        width=width,
        layers=layers_of(tensors, trunk, published.layers),
        heads=max(1, width // 64),
        mlp=size_of(tensors, f"{trunk}0.mlp.fc1.weight", 0, published.mlp),
        out=size_of(tensors, "modality_heads.text.proj.1.weight", 0, published.out),
        words=size_of(tensors, f"{stem}token_embedding.weight", 0, published.words),
        length=size_of(tensors, f"{stem}pos_embed", 1, published.length),
    )


def _stride(kernel: int, patches: int, default: int) -> int:
    """Find the step of patches that gives as many of them; that of the published file if none."""
    for stride in range(1, BINS):
        down, along = ((max(0, size - kernel)) // stride + 1 for size in (BINS, FRAMES))
        if down * along == patches:
            return stride
    return default
