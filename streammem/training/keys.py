"""Key stage: contrastive learning of picture and sentence keys in one space.

    stage = KeyStage(picture_key, text_key, training, validation)

The sentence encoder is frozen and its output precomputed; no language model is used.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.training.pictures import PictureSet

LABEL_SMOOTHING = 0.05
SENTENCE_NOISE = 0.02


class Embedded(NamedTuple):
    """Pictures with their captions' sentence embeddings, [captions of picture i, E] each."""

    pictures: PictureSet
    sentences: Sequence[Tensor]


class KeyStage:
    """Symmetric InfoNCE over a batch, pictures against one random caption each.

    Args:
        picture_key: trained in place.
        text_key: trained in place, on top of frozen sentence embeddings.
        training: every picture with captions.
        validation: ranked in ``evaluate``.
        batch: pictures a step, which are each other's negatives.
    """

    name = "keys"

    def __init__(
        self,
        picture_key: PictureKey,
        text_key: TextKey,
        training: Embedded,
        validation: Embedded,
        *,
        batch: int = 256,
    ) -> None:
        self.pictures, self._text = training
        self.validation, self._validation_text = validation
        self.batch = batch
        head = nn.ParameterDict({"log_scale": torch.tensor(2.7)})
        self._picture_key, self._text_key = picture_key, text_key
        parts = {"picture": picture_key, "text": text_key, "head": head}
        self.module = nn.ModuleDict(parts).to(self.pictures.device)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        views = [int(rng.integers(self.pictures.num_views(i))) for i in chosen]
        sentences = torch.stack([self._text[i][rng.integers(len(self._text[i]))] for i in chosen])
        keys = self._picture_key.own(self.pictures.views(chosen, views))
        scale = self.module["head"]["log_scale"]  # type: ignore[index]
        return contrastive_loss(keys, self._text_key.own, sentences, scale)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Sentence to picture among the validation pictures, every caption a query."""
        pictures = []
        for begin in range(0, len(self.validation), 64):
            patches, _ = self.validation.whole(range(begin, min(begin + 64, len(self.validation))))
            pictures.append(self._picture_key.own(patches[:, 0]))
        return retrieval_figures(torch.cat(pictures), self._text_key.own, self._validation_text)


def contrastive_loss(
    keys: Tensor, text_key: Callable[[Tensor], Tensor], sentences: Tensor, log_scale: Tensor
) -> Tensor:
    """Symmetric InfoNCE of picture keys [B, K] and their sentences' embeddings [B, E]."""
    # Noise on the sentences keeps a small set from being memorised.
    sentences = sentences.to(keys.device)
    sentences = F.normalize(sentences + SENTENCE_NOISE * torch.randn_like(sentences), dim=-1)
    logits = log_scale.clamp(max=4.0).exp() * keys @ text_key(sentences).T
    labels = torch.arange(len(keys), device=keys.device)
    return (
        F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        + F.cross_entropy(logits.T, labels, label_smoothing=LABEL_SMOOTHING)
    ) / 2


def retrieval_figures(
    keys: Tensor, text_key: Callable[[Tensor], Tensor], sentences: Sequence[Tensor]
) -> dict[str, float]:
    """Rank picture keys [N, K] by every sentence [captions of picture i, E] of every picture."""
    found = []
    for index, embeddings in enumerate(sentences):
        scores = text_key(embeddings.to(keys.device)) @ keys.T
        found.append((scores >= scores[:, index : index + 1]).sum(1))
    rank = torch.cat(found).float().cpu()
    recall = {f"recall@{k}": round((rank <= k).float().mean().item(), 4) for k in (1, 5, 10)}
    return recall | {"median_rank": rank.median().item()}
