"""First stage: the bridge learns to point into the language model's own word space.

The language model itself is not in the loop, only its embedding table, so a step is cheap.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.memory.bridge import MemoryBridge
from streammem.training.pictures import PictureSet, sample_views

STOP_WORDS = frozenset(
    "a an and are as at be being by for from has have her him his in into is it its of off on onto "
    "or out over s she he some that the their them there they this to up very was were while who "
    "with which through another other one two three several".split()
)
MIN_COUNT = 5


def content_words(text: str) -> set[str]:
    """Return the lower-cased words of a caption that carry meaning."""
    return set(re.findall(r"[a-z]+", text.lower())) - STOP_WORDS


class WordStage:
    """Each token of the bridge is scored against word embeddings; the best token counts.

    score(word) = logsumexp over tokens of scale * cos(token, word) + bias, trained by binary
    cross-entropy against the share of the picture's captions that contain the word.

    Args:
        bridge: trained in place.
        pictures: training set.
        validation: pictures that are scored by ``evaluate``.
        tokenizer: of the language model.
        embeddings: [vocabulary, L] the language model's embedding table.
        batch: pictures a step.
    """

    name = "words"

    def __init__(
        self,
        bridge: MemoryBridge,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        tokenizer: object,
        embeddings: Tensor,
        batch: int = 32,
    ) -> None:
        self.bridge, self.pictures, self.validation, self.batch = (
            bridge,
            pictures,
            validation,
            batch,
        )
        counts = Counter(w for row in pictures.captions for w in set().union(*map(content_words, row)))
        self.words = sorted(w for w, n in counts.items() if n >= MIN_COUNT)
        self._index = {w: i for i, w in enumerate(self.words)}
        ids = [tokenizer(f" {w}", add_special_tokens=False).input_ids for w in self.words]  # type: ignore[operator]
        table = torch.stack([embeddings[i].float().mean(0) for i in ids])
        self._table = F.normalize(table - embeddings.float().mean(0), dim=-1)
        self._center = embeddings.float().mean(0)
        self._targets = self._word_shares(pictures.captions)
        self._validation_targets = self._word_shares(validation.captions)
        prior = self._targets.mean(0).clamp(1e-5, 1 - 1e-5)
        head = nn.ParameterDict({"scale": torch.tensor(8.0), "bias": torch.logit(prior) - 4.0})
        self.module = nn.ModuleDict({"bridge": bridge, "head": head})

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def scores(self, tokens: Tensor) -> Tensor:
        """Score every word: tokens [B, M, D] -> logits [B, W]."""
        language = self.bridge.to_language(tokens) - self._center
        head = self.module["head"]
        cosine = F.normalize(language, dim=-1) @ self._table.T  # [B, M, W]
        return torch.logsumexp(head["scale"] * cosine, dim=1) + head["bias"]  # type: ignore[index]

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = rng.choice(len(self.pictures), self.batch, replace=False)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        logits = self.scores(self.bridge.look(patches, times, mask))
        return F.binary_cross_entropy_with_logits(logits, self._targets[chosen]) * 100

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Share of the five best words that stand in the picture's captions, and the prior's."""
        hits = prior_hits = 0.0
        prior_best = self._targets.mean(0).topk(5).indices
        for begin in range(0, len(self.validation), 64):
            chosen = np.arange(begin, min(begin + 64, len(self.validation)))
            patches, times = self.validation.whole(chosen)
            best = self.scores(self.bridge.look(patches, times)).topk(5).indices
            truth = self._validation_targets[chosen] > 0
            hits += truth.gather(1, best).float().mean(1).sum().item()
            prior_hits += truth[:, prior_best].float().mean(1).sum().item()
        total = len(self.validation)
        return {"top5": round(hits / total, 4), "top5_prior": round(prior_hits / total, 4)}

    def _word_shares(self, captions: Sequence[Sequence[str]]) -> Tensor:
        shares = torch.zeros(len(captions), len(self.words))
        for row, texts in enumerate(captions):
            for text in texts:
                for word in content_words(text):
                    if word in self._index:
                        shares[row, self._index[word]] += 1 / len(texts)
        return shares
