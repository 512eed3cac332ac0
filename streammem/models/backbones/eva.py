"""EVA-CLIP's ViT-G/14 as BLIP-2 cut it: the picture tower of Video-LLaMA and MiniGPT4-Video.

Modules bear the published names, so that a state dict fits as it is. Where the weights come from
is not known here, nor what is done with the features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streammem.errors import ConfigError
from streammem.models.backbones.languagebind import PIXEL_MEAN, PIXEL_STD
from streammem.models.backbones.torch_files import layers_of, size_of

# Legend: B frames, N = 1 + P tokens a frame, D width, H heads.

# What the published file holds beyond the 39 blocks that BLIP-2 kept.
EVA_UNREAD = r"(blocks\.39|norm|fc_norm|head)\..*"
BATCH = 8  # frames that the tower reads at a time


@dataclass(frozen=True, slots=True)
class EvaConfig:
    """Sizes of the tower.

    Attributes:
        width: D.
        layers: blocks that run; the 40th of the published tower is dropped.
        heads: H; they divide D.
        mlp: width between the two products of an MLP.
        side: pixels of the square input.
        patch: pixels of a square patch; divides ``side``.
    """

    width: int = 1408
    layers: int = 39
    heads: int = 16
    mlp: int = 6144
    side: int = 224
    patch: int = 14


class Attention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        joint = F.linear(x, self.qkv.weight, bias.to(x.dtype))
        q, k, v = rearrange(joint, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Two products with an exact GELU between them."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Patches through one convolution; a container for its published name."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d y x -> b (y x) d")


class EvaTower(nn.Module):
    """Pictures to the hidden states after the last block; no norm follows in the tower.

    Source: EVA (arXiv 2211.07636); BLIP-2 (arXiv 2301.12597), section 3.1, drops the last block.
    """

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.config = config
        places = 1 + (config.side // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames.

        Args:
            pixels: [B, side, side, 3] levels of 255, uint8 or float.

        Returns:
            [B, N, D], the class token first, in the dtype of the weights.
        """
        weight = self.patch_embed.proj.weight
        mean, std = (
            torch.tensor(values, device=weight.device) for values in (PIXEL_MEAN, PIXEL_STD)
        )
        x = (pixels.to(weight.device) / 255 - mean) / std
        x = self.patch_embed(x.permute(0, 3, 1, 2).to(weight.dtype))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def normed(tower: EvaTower, norm: nn.LayerNorm, pixels: Tensor) -> Iterator[Tensor]:
    """Encode frames, some at a time, and normalise them in float32, as BLIP-2 does.

    Args:
        tower: of the frames.
        norm: ``ln_vision``.
        pixels: [T, side, side, 3] levels of 255.

    Yields:
        [B, N, D] float32, of all T frames together.
    """
    for part in pixels.split(BATCH):
        hidden = tower(part).float()
        weight, bias = norm.weight.float(), norm.bias.float()
        yield F.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)


def config_of(tensors: Mapping[str, Tensor], heads: int) -> EvaConfig:
    """Read sizes off a tower's tensors; what is missing has the published size.

    Args:
        tensors: by the names of ``EvaTower``.
        heads: which no file gives.

    Raises:
        ConfigError: heads that do not divide the width.
    """
    published = EvaConfig()
    size = partial(size_of, tensors)
    width = size("pos_embed", 2, published.width)
    patch = size("patch_embed.proj.weight", 2, published.patch)
    places = size("pos_embed", 1, 1 + (published.side // published.patch) ** 2)
    layers = layers_of(tensors, "blocks.", published.layers)
    if width == published.width:  # the published file's 40th block is dropped
        layers = published.layers
    if width % heads:
        raise ConfigError(f"heads={heads}: do not divide a width of {width}")
    return EvaConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp=size("blocks.0.mlp.fc1.weight", 0, published.mlp),
        side=patch * round(max(1, places - 1) ** 0.5),
        patch=patch,
    )
