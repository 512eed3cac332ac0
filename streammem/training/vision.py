"""Vision stage: the late half of the frame encoder learns the words of captions.

    early = cache_features(source, EarlyEncoder(net), folder)
    stage = VisionStage(net, keys, space, training, validation)

ImageNet's classes are not the words of captions. The early half stays as published, so that its
output is computed once; the learned changes are small enough for a checkpoint.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streammem.models.backbones.efficientnet import (
    COLOR_CELLS,
    GRID,
    EfficientNetLite,
    color_cells,
    join_cells,
    pixels,
)
from streammem.models.backbones.vision import VisionFeatures
from streammem.models.tiny.keys import WORD_SCALE, PictureKey, TextKey, WordsOfCells
from streammem.training.evidence import reduce_rank
from streammem.training.features import STATISTICS_PICTURES, PatchStatistics, statistics_of
from streammem.training.keys import Embedded, contrastive_loss, retrieval_figures
from streammem.training.words import TOP, WordSpace, word_loss

ENCODER_FACTOR = 1 / 3  # of the learning rate; the heads start from nothing
DROP_PATH = 0.1  # of the late blocks' residual branches
WORD_DROPOUT = 0.3
COLOR_CHANNELS = 3 * COLOR_CELLS**2


class EarlyEncoder:
    """The frozen half of EfficientNet-Lite2 as an encoder, so that its output can be cached.

    A patch is one cell of the 7x7 grid: its 2x2 positions of the early map, then its colours.

    Args:
        net: to run the early half of.
    """

    patches = GRID * GRID

    def __init__(self, net: EfficientNetLite) -> None:
        self._net = net
        self.changes: Mapping[str, Tensor] = {}
        self.frame_dim = net.early_channels
        self.patch_dim = 4 * net.early_channels + COLOR_CHANNELS

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        x = pixels(frames, 32 * GRID)
        early = self._net.early(x)
        cells = rearrange(early, "b c (y i) (x j) -> b (y x) (c i j)", i=2, j=2)
        return VisionFeatures(early.mean((2, 3)), torch.cat([cells, color_cells(x)], -1))


class WordHeadOfCells(nn.Module):
    """Scores words by the cells that show them: logsumexp over cells, from the prior up.

    Args:
        dim: channels of a cell.
        prior: [W] shares of the words in the training set.
    """

    def __init__(self, dim: int, prior: Tensor) -> None:
        super().__init__()
        self.drop = nn.Dropout(WORD_DROPOUT)
        self.weight = nn.Parameter(torch.randn(len(prior), dim) * 0.01)
        self.bias = nn.Parameter(torch.logit(prior.clamp(1e-5, 1 - 1e-5)))

    def forward(self, cells: Tensor) -> Tensor:
        """Map cells [B, P, C] to logits [B, W]."""
        scores = WORD_SCALE * F.linear(self.drop(cells), self.weight)
        return torch.logsumexp(scores, 1) - math.log(cells.shape[1]) + self.bias


class VisionStage:
    """Trains the encoder's late half by the words of captions and by contrast with captions.

    Args:
        net: its late half is trained in place, except depthwise kernels: their gradients cost
            half of a step on a CPU, and they are 4% of the parameters.
        keys: trained in place.
        space: words to name.
        training: early patches of every picture with captions.
        validation: measured in ``evaluate``.
        batch: pictures a step, which are each other's negatives.
    """

    name = "vision"

    def __init__(
        self,
        net: EfficientNetLite,
        keys: tuple[PictureKey, TextKey],
        space: WordSpace,
        training: Embedded,
        validation: Embedded,
        *,
        batch: int = 128,
    ) -> None:
        self.net, self.space, self.batch = net, space, batch
        self.training, self.validation = training, validation
        self._targets = space.shares(training.pictures.captions)
        self._tuned = {
            name: parameter.requires_grad_("depthwise" not in name)
            for name, parameter in net.named_late()
        }
        self._picture_key, self._text_key = keys
        self.module = nn.ModuleDict(
            {
                "encoder": nn.ParameterDict(
                    {n.replace(".", "/"): p for n, p in self._tuned.items() if p.requires_grad}
                ),
                "words": WordHeadOfCells(net.head_channels, space.prior),
                "picture": keys[0],
                "text": keys[1],
                "head": nn.ParameterDict({"log_scale": torch.tensor(2.9)}),
            }
        ).to(training.pictures.device)

    def tuned(self) -> dict[str, Tensor]:
        """Return the trained parameters by their names in ``EfficientNetLite``."""
        return {n: p.detach().cpu() for n, p in self._tuned.items() if p.requires_grad}

    @torch.no_grad()
    def words(self, seed: int) -> WordsOfCells:
        """Return the words of cells as keys hold them, of lower rank."""
        self.module.eval()
        chosen = self.training.pictures.draw(np.random.default_rng(seed), STATISTICS_PICTURES)
        early = self.training.pictures.whole(chosen)[0][:, 0]
        width = self.net.head_channels
        cells = torch.cat([self.patches(part)[..., :width] for part in early.split(64)])
        full: WordHeadOfCells = self.module["words"]  # type: ignore[assignment]
        return reduce_rank(full.weight, full.bias, cells.flatten(0, 1))

    @torch.no_grad()
    def statistics(self, seed: int) -> PatchStatistics:
        """Measure the patches of a seeded sample of whole pictures, as they are before training."""
        self.module.eval()
        chosen = self.training.pictures.draw(np.random.default_rng(seed), STATISTICS_PICTURES)
        early = self.training.pictures.whole(chosen)[0][:, 0]
        return statistics_of(torch.cat([self.patches(part) for part in early.split(64)]))

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        heads = [
            p
            for name in ("words", "picture", "text", "head")
            for p in self.module[name].parameters()
        ]
        return [(list(self.module["encoder"].parameters()), ENCODER_FACTOR), (heads, 1.0)]

    def patches(self, early: Tensor) -> Tensor:
        """Finish cached early patches [B, P, V] into the patches that the bridge reads."""
        cells, colors = early.split([early.shape[-1] - COLOR_CHANNELS, COLOR_CHANNELS], -1)
        x = rearrange(cells, "b (y x) (c i j) -> b c (y i) (x j)", y=GRID, i=2, j=2)
        drop = DROP_PATH if self.module.training else 0.0
        features = self.net.late(x.contiguous(memory_format=torch.channels_last), drop)
        return join_cells(features, colors)

    def loss(self, rng: np.random.Generator) -> Tensor:
        pictures, text = self.training
        chosen = pictures.draw(rng, self.batch)
        views = [int(rng.integers(pictures.num_views(int(i)))) for i in chosen]
        patches = self.patches(pictures.views(chosen, views))
        sentences = torch.stack([text[i][rng.integers(len(text[i]))] for i in chosen])
        named = self.module["words"](patches[..., : self.net.head_channels])
        scale = self.module["head"]["log_scale"]  # type: ignore[index]
        return word_loss(named, self._targets[chosen]) + contrastive_loss(
            self._picture_key.own(patches), self._text_key.own, sentences, scale
        )

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the figures of the word stage and of the key stage."""
        pictures, text = self.validation
        truth = self.space.shares(pictures.captions) > 0
        keys, hits = [], 0.0
        for begin in range(0, len(pictures), 64):
            chosen = range(begin, min(begin + 64, len(pictures)))
            patches = self.patches(pictures.whole(chosen)[0][:, 0])
            keys.append(self._picture_key.own(patches))
            scores = self.module["words"](patches[..., : self.net.head_channels])
            best = scores.topk(min(TOP, scores.shape[1])).indices.cpu()
            hits += truth[begin : chosen.stop].gather(1, best).float().mean(1).sum().item()
        named = {"top5": round(hits / len(pictures), 4)}
        return named | retrieval_figures(torch.cat(keys), self._text_key.own, text)
