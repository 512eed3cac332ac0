"""Backbones small enough to train beside in a test: same protocols, almost no arithmetic."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F

from streammem.backbones.text import TEXT_DIM
from streammem.backbones.vision import VisionFeatures, squash
from streammem.training.learner import Backbones
from tests.tiny import tiny_language

SIDE = 2  # cells
RECIPE = """
name = "tiny"
data = ["generated:30"]
crops = 1
key_dim = 16
[bridge]
dim = 16
memory_tokens = 4
layers = 1
heads = 2
[lora]
rank = 2
alpha = 4.0
[[stages]]
kind = "words"
steps = 4
lr = 4e-3
batch = 8
[[stages]]
kind = "keys"
steps = 4
lr = 4e-3
batch = 8
[[stages]]
kind = "captions"
steps = 3
lr = 4e-3
batch = 2
[[stages]]
kind = "memory"
steps = 3
lr = 4e-3
batch = 2
"""


class TinyVision:
    """Mean colours of 4x4 fields in each of 2x2 cells."""

    patches = SIDE * SIDE
    patch_dim = frame_dim = 48

    def __init__(self, gain: float = 1.0) -> None:
        self.gain, self.encoded = gain, 0

    def encode(self, frames):
        self.encoded += len(frames)
        small = np.stack([squash(frame, 8 * SIDE) for frame in frames])
        x = torch.from_numpy(small).float() / 255 * self.gain
        fields = F.avg_pool2d(x.permute(0, 3, 1, 2), 2)  # [B, 3, 8, 8]
        cells = fields.unfold(2, 4, 4).unfold(3, 4, 4)  # [B, 3, 2, 2, 4, 4]
        patches = cells.permute(0, 2, 3, 1, 4, 5).reshape(len(frames), SIDE * SIDE, -1)
        return VisionFeatures(patches.mean(1), patches)


class TinySentences:
    """A bag of hashed words."""

    def encode(self, sentences):
        rows = torch.zeros(len(sentences), TEXT_DIM)
        for row, text in zip(rows, sentences, strict=True):
            for word in text.lower().rstrip(".").split():
                row[zlib.crc32(word.encode()) % TEXT_DIM] += 1
        return F.normalize(rows, dim=-1)


def tiny_backbones() -> Backbones:
    return Backbones(TinyVision, tiny_language, TinySentences)
