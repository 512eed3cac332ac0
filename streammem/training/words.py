"""Word stage: the bridge learns tokens that are close to the embeddings of a picture's words.

    stage = WordStage(bridge, WordSpace(pictures.captions, language), pictures, validation)

Only the language model's embedding table is used, so that a step is cheap.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.errors import DatasetError
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.pictures import PictureSet, sample_views

STOP_WORDS = frozenset(
    "a an and are as at be being by for from has have her him his in into is it its of off "  # noqa: SIM905
    "on onto or out over s she he some that the their them there they this to up very was were "
    "while who with which through another other one two three several".split()
)
MIN_COUNT = 5
LOSS_SCALE = 100.0  # most of ~2,600 words are absent; the mean alone would be tiny
TOP = 5


def plain_words(text: str) -> set[str]:
    """Return the lower-cased words of a caption without stop words."""
    return set(re.findall(r"[a-z]+", text.lower())) - STOP_WORDS


class WordSpace:
    """The content words of a training set, with their embeddings in a language model.

    Args:
        captions: of the training pictures.
        language: model whose embedding table is used.

    Raises:
        DatasetError: no word occurs often enough.
    """

    def __init__(self, captions: Sequence[Sequence[str]], language: CausalLanguageModel) -> None:
        of_pictures = (set().union(*map(plain_words, row)) for row in captions)
        counts = Counter(word for words in of_pictures for word in words)
        self.words = sorted(word for word, count in counts.items() if count >= MIN_COUNT)
        if not self.words:
            raise DatasetError(f"no word occurs in the captions of {MIN_COUNT} pictures; add data")
        self._index = {word: i for i, word in enumerate(self.words)}
        model: Any = language.model
        embeddings = model.get_input_embeddings().weight.detach()
        self._center = embeddings.float().mean(0)
        table = [embeddings[language.ids(f" {word}")].float().mean(0) for word in self.words]
        self._table = F.normalize(torch.stack(table) - self._center, dim=-1)
        self.prior = self.shares(captions).mean(0)  # [W]

    def shares(self, captions: Sequence[Sequence[str]]) -> Tensor:
        """Return the share of each picture's captions that contain each word, [N, W]."""
        shares = torch.zeros(len(captions), len(self.words))
        for row, texts in enumerate(captions):
            for text in texts:
                for word in plain_words(text):
                    if word in self._index:
                        shares[row, self._index[word]] += 1 / len(texts)
        return shares

    def cosines(self, visual: Tensor) -> Tensor:
        """Compare visual tokens [..., L] with every word: [..., W]."""
        return F.normalize(visual - self._center, dim=-1) @ self._table.T


class WordHead(nn.Module):
    """Scores each word by the token nearest to it.

    score(word) = logsumexp over tokens of scale * cos(token, word) + bias.

    Args:
        prior: [W] shares in the training set, from which the scores start.
    """

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.logit(prior.clamp(1e-5, 1 - 1e-5)) - 4.0)

    def forward(self, cosines: Tensor) -> Tensor:
        """Map cosines [B, M, W] to logits [B, W]."""
        return torch.logsumexp(self.scale * cosines, dim=1) + self.bias


def word_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B, W] against shares [B, W], scaled to be of order 1.

    Shares may be on the CPU.
    """
    return F.binary_cross_entropy_with_logits(logits, shares.to(logits.device)) * LOSS_SCALE


class WordStage:
    """Trains the bridge so that for each word of a caption some token is close to its embedding.

    Args:
        bridge: trained in place.
        space: words to learn.
        pictures: training set, with captions.
        validation: captioned pictures for ``evaluate``.
        batch: pictures a step.
    """

    name = "words"

    def __init__(
        self,
        bridge: MemoryBridge,
        space: WordSpace,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        batch: int = 32,
    ) -> None:
        self.bridge, self.space, self.batch = bridge, space, batch
        self.pictures, self.validation = pictures, validation
        self._targets = space.shares(pictures.captions)
        self._validation_targets = space.shares(validation.captions)
        self.head = WordHead(space.prior).to(pictures.device)
        self.module = nn.ModuleDict({"bridge": bridge, "head": self.head})

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def scores(self, tokens: Tensor) -> Tensor:
        """Score every word: tokens [B, M, D] -> logits [B, W]."""
        return self.head(self.space.cosines(self.bridge.to_language(tokens)))

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        return word_loss(
            self.scores(self.bridge.encode(patches, times, mask)), self._targets[chosen]
        )

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the share of the five best words that captions have, and the same of the prior."""
        hits = prior_hits = 0.0
        top = min(TOP, len(self.space.words))
        prior_best = self.space.prior.topk(top).indices
        for begin in range(0, len(self.validation), 64):
            chosen = np.arange(begin, min(begin + 64, len(self.validation)))
            patches, times = self.validation.whole(chosen)
            best = self.scores(self.bridge.encode(patches, times)).topk(top).indices.cpu()
            truth = self._validation_targets[chosen] > 0
            hits += truth.gather(1, best).float().mean(1).sum().item()
            prior_hits += truth[:, prior_best].float().mean(1).sum().item()
        total = len(self.validation)
        return {"top5": round(hits / total, 4), "top5_prior": round(prior_hits / total, 4)}
