"""LanguageBind's image and video towers: CLIP's vision transformer, with attention over time.

Modules bear the published names, so that a state dict fits as it is. Where the weights come from
is not known here, nor what is done with the features.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from streammem.perception.frames import resize

# Legend: B frames, G frames a group, N = 1 + P tokens a frame, D width, H heads.

Activation = Literal["gelu", "quick_gelu"]
Shrink = Literal["antialias", "plain", "bicubic"]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in [0, 1]
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of a tower.

    Attributes:
        width: D.
        layers: of the published tower; the last is never run, see ``Tower``.
        heads: H; they divide D.
        mlp: width between the two products of an MLP.
        side: pixels of the square input.
        patch: pixels of a square patch; divides ``side``.
        group: G, frames that attend to each other; 0 for an image tower.
        activation: of the MLPs; ``gelu`` in LanguageBind, ``quick_gelu`` in OpenAI's CLIP.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    side: int = 224
    patch: int = 14
    group: int = 0
    activation: Activation = "gelu"


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Two products with an activation between them."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Layer(nn.Module):
    """A pre-norm layer; in a video tower each place first attends along its group of frames.

    x = x + temporal_embedding, x + attention over time; then as in CLIP: x + attention over
    places, x + mlp. There is no MLP after attention over time.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.group = config.group
        self.self_attn = Attention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.width)
        if self.group:
            self.temporal_embedding = nn.Parameter(torch.zeros(1, self.group, config.width))
            self.temporal_attn = Attention(config.width, config.heads)
            self.temporal_layer_norm1 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.group:
            along = rearrange(x, "(b g) n d -> (b n) g d", g=self.group) + self.temporal_embedding
            along = along + self.temporal_attn(self.temporal_layer_norm1(along))
            x = rearrange(along, "(b n) g d -> (b g) n d", n=x.shape[1])
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Patches through one convolution, a class token before them, positions added."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        places = 1 + (config.side // config.patch) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(places, config.width)

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(self.patch_embedding(x), "b d y x -> b (y x) d")
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Encoder(nn.Module):
    """The layers that run; a container for their published names."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers - 1))


class Tower(nn.Module):
    """Pictures to the hidden states before the last layer, which VideoLLaMB reads.

    The last layer and the norm after it exist in the published weights and are never run, so they
    are not built.

    Source: LanguageBind (arXiv 2310.01852), section 3.1; CLIP (arXiv 2103.00020), section 2.4.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # spelt so in the published weights
        self.encoder = Encoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames.

        Args:
            pixels: [B, side, side, 3] levels of 255, uint8 or float; for a video tower B is a
                multiple of G.

        Returns:
            [B, N, D], the class token first.

        Raises:
            ValueError: a video tower is given part of a group.
        """
        group = self.config.group
        if group and len(pixels) % group:
            raise ValueError(f"{len(pixels)} frames: a video tower takes groups of {group}")
        weight = self.pre_layrnorm.weight
        mean, std = (
            torch.tensor(values, device=weight.device) for values in (PIXEL_MEAN, PIXEL_STD)
        )
        x = (pixels.to(weight.device) / 255 - mean) / std
        x = self.pre_layrnorm(self.embeddings(x.permute(0, 3, 1, 2).to(weight.dtype)))
        for layer in self.encoder.layers:
            x = layer(x)
        return x


def crop(picture: np.ndarray, side: int, shrink: Shrink = "antialias") -> np.ndarray:
    """Shrink the short side to ``side`` pixels and cut out the middle.

    Args:
        picture: [H, W, 3] uint8.
        side: pixels.
        shrink: ``antialias`` is bilinear over all pixels; ``plain`` samples between four, as the
            published code does, and aliases; ``bicubic`` is CLIP's own processor, by Pillow.

    Returns:
        [side, side, 3] uint8.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    size = (height * side // short, width * side // short)
    if shrink == "antialias":
        shrunk = resize(picture, size, "bilinear")
    elif shrink == "bicubic":
        shrunk = np.array(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    else:
        x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
        y = F.interpolate(x, size, mode="bilinear").round().byte()
        shrunk = y[0].permute(1, 2, 0).numpy()
    half = (lambda odd: odd // 2) if shrink == "bicubic" else (lambda odd: round(odd / 2))
    top, left = half(size[0] - side), half(size[1] - side)
    return np.ascontiguousarray(shrunk[top : top + side, left : left + side])


def pad(picture: np.ndarray, side: int) -> np.ndarray:
    """Pad a still picture to a square with the mean colour, then shrink it; nothing is cut off.

    Args:
        picture: [H, W, 3] uint8.
        side: pixels.

    Returns:
        [side, side, 3] float32 in levels of 255, neither rounded nor clipped: at edges they reach
        below 0 and above 255, as in the published code.
    """
    height, width = picture.shape[:2]
    longer = max(height, width)
    square = np.empty((longer, longer, 3), np.uint8)
    square[:] = [int(255 * mean) for mean in PIXEL_MEAN]
    top, left = (longer - height) // 2, (longer - width) // 2
    square[top : top + height, left : left + width] = picture
    x = torch.from_numpy(square).permute(2, 0, 1)[None].float()
    if longer != side:
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
    return x[0].permute(1, 2, 0).contiguous().numpy()
