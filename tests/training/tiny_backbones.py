"""A recipe that runs in a second, and the backbones it runs on."""

import torch

from streammem.models.tiny.bridge import BridgeConfig, MemoryBridge
from streammem.training.features import patch_statistics
from streammem.training.learner import Backbones
from tests.tiny import TinySentences, TinyVision, tiny_language

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
kind = "evidence"
steps = 3
lr = 4e-3
batch = 8
[[stages]]
kind = "captions"
steps = 3
lr = 4e-3
batch = 2
[[stages]]
kind = "prefix"
steps = 3
lr = 4e-3
batch = 8
[[stages]]
kind = "text"
steps = 3
lr = 4e-3
batch = 8
[[stages]]
kind = "reward"
steps = 2
lr = 4e-3
batch = 2
[[stages]]
kind = "operators"
steps = 2
lr = 4e-3
batch = 8
"""


class CountingVision(TinyVision):
    """Counts the pictures that it encodes; a gain other than 1 makes it another encoder."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self._patch *= gain
        self.encoded = 0

    def encode(self, frames):
        self.encoded += len(frames)
        return super().encode(frames)


def tiny_backbones() -> Backbones:
    return Backbones(TinyVision, _language, TinySentences)


def _language():
    language = tiny_language()
    torch.seed()  # a real model leaves the generator in any state
    return language


def tiny_bridge(language, pictures, *, dropout=0.0):
    """Make a bridge from ``TinyVision`` to a language model, scaled to the pictures."""
    torch.manual_seed(0)
    config = BridgeConfig(
        patch_dim=8, patches=9, language_dim=language.width, dim=32, memory_tokens=4, layers=1,
        heads=2, dropout=dropout, language_norm=language.embedding_norm,
    )  # fmt: skip
    bridge = MemoryBridge(config)
    statistics = patch_statistics(pictures, 0)
    bridge.patch_mean.copy_(statistics.mean)
    bridge.patch_std.copy_(statistics.std)
    return bridge
