"""The key space that pictures and sentences share: one unit vector each, near where they agree.

Two judges are joined in it. One was trained by contrast: pictures against their sentences. The
other knows words: how likely a picture would be told with each, and which words a sentence would
be told with. Their errors differ, and the sum of their scores is an inner product again, so that
one vector and one search serve both (``training/evidence.py`` finds it).

No index lives here (see ``index.py``) and no sentence encoder (see ``backbones/text.py``).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.tiny.bridge import Attention

WORD_SCALE = 4.0


class WordsOfCells(nn.Module):
    """Scores words by the cells that show them: logsumexp over cells, from the prior up.

    Args:
        cell_dim: C, channels of a cell; the first C of a patch are read.
        words: W.
        rank: of the map from a cell to the words.
    """

    def __init__(self, cell_dim: int, words: int, rank: int = 256) -> None:
        super().__init__()
        self.down = nn.Linear(cell_dim, rank, bias=False)
        self.up = nn.Linear(rank, words)

    def start(self, prior: Tensor) -> None:
        """Begin at the words' shares [W] in a training set."""
        nn.init.normal_(self.up.weight, std=0.01)
        self.up.bias.data = _logits(prior)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to the logits [B, W] that a person would use each word."""
        cells = self.down(patches[..., : self.down.in_features])
        scores = torch.logsumexp(WORD_SCALE * F.linear(cells, self.up.weight), 1)
        return scores - math.log(patches.shape[1]) + self.up.bias


class WordsOfSentence(nn.Module):
    """The words that a sentence would be told with, learned from sentences alone."""

    def __init__(self, text_dim: int, words: int, hidden: int = 256) -> None:
        super().__init__()
        self.down = nn.Linear(text_dim, hidden)
        self.drop = nn.Dropout(0.1)
        self.up = nn.Linear(hidden, words)
        with torch.no_grad():
            self.down.weight.mul_(10)  # the entries of a unit vector are small

    def start(self, prior: Tensor) -> None:
        """Begin at the words' shares [W] in a training set."""
        self.up.bias.data = _logits(prior)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [B, E] to logits [B, W]."""
        return self.up(self.drop(F.gelu(self.down(embeddings))))


def _logits(shares: Tensor) -> Tensor:
    return torch.logit(shares.clamp(1e-5, 1 - 1e-5))


class EvidenceSizes(NamedTuple):
    """Sizes of what joins words to keys.

    Attributes:
        cell_dim: C of ``WordsOfCells``.
        words: W.
        rank: of the map from a cell to the words.
    """

    cell_dim: int
    words: int
    rank: int


class PictureEvidence(nn.Module):
    """Joins a picture's key and its words into one key: K - 1 linear dimensions, then the rest.

    The last dimension makes the row a unit vector; sentences have 0 there, so the inner product
    is that of the others.

    Args:
        key_dim: K, of the key that is joined and of the result.
        sizes: of the words.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, key_dim: int, sizes: EvidenceSizes) -> None:
        super().__init__()
        self.words = WordsOfCells(*sizes)
        self.register_buffer("center", torch.zeros(sizes.words + 1))
        self.register_buffer("scale", torch.ones(sizes.words + 1))
        self.of_key = nn.Linear(key_dim, key_dim - 1)
        self.of_words = nn.Linear(sizes.words + 1, key_dim - 1, bias=False)

    @property
    def sizes(self) -> EvidenceSizes:
        """What it was made with."""
        return EvidenceSizes(
            self.words.down.in_features, self.words.up.out_features, self.words.up.in_features
        )

    def word_scores(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to words' logits and the log-probability of none, [B, W + 1]."""
        words = self.words(patches)
        return torch.cat([words, F.logsigmoid(-words).sum(1, keepdim=True)], dim=1)

    def forward(self, own: Tensor, patches: Tensor) -> Tensor:
        """Map keys [B, K] and patches [B, P, V] to unit keys [B, K]."""
        words = (self.word_scores(patches) - self.center) / self.scale
        x = self.of_key(own) + self.of_words(words)
        rest = (1 - x.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        return F.normalize(torch.cat([x, rest], dim=1), dim=-1)


class SentenceEvidence(nn.Module):
    """Joins a sentence's key and its words, as ``PictureEvidence`` does a picture's."""

    def __init__(self, text_dim: int, key_dim: int, words: int) -> None:
        super().__init__()
        self.words = WordsOfSentence(text_dim, words)
        self.of_key = nn.Linear(key_dim, key_dim - 1)
        self.of_words = nn.Linear(words, key_dim - 1, bias=False)

    def forward(self, own: Tensor, embeddings: Tensor) -> Tensor:
        """Map keys [B, K] and sentence embeddings [B, E] to unit keys [B, K]."""
        y = self.of_key(own) + self.of_words(self.words(embeddings).sigmoid())
        return F.pad(F.normalize(y, dim=-1), (0, 1))


class PictureKey(nn.Module):
    """A picture's key from its patches: learned queries attend to them, an MLP maps the rest.

    Attributes:
        evidence: joins the words of the picture; None before that was learned.
    """

    patch_mean: Tensor
    patch_std: Tensor

    def __init__(
        self, patch_dim: int, key_dim: int = 256, *, dim: int = 256, queries: int = 4
    ) -> None:
        super().__init__()
        self.evidence: PictureEvidence | None = None
        self.register_buffer("patch_mean", torch.zeros(patch_dim))
        self.register_buffer("patch_std", torch.ones(patch_dim))
        self.patch_in = nn.Linear(patch_dim, dim)
        self.drop = nn.Dropout(0.2)
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.attention = Attention(dim, 4, 0.1)
        self.out = nn.Sequential(
            nn.LayerNorm((queries + 1) * dim),
            nn.Dropout(0.3),
            nn.Linear((queries + 1) * dim, 2 * dim),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(2 * dim, key_dim),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to unit keys [B, K]."""
        own = self.own(patches)
        return own if self.evidence is None else self.evidence(own, patches)

    def own(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to unit keys [B, K] without the evidence of words."""
        x = self.patch_in(self.drop((patches - self.patch_mean) / self.patch_std))
        x = F.gelu(self.norm(x))
        pooled = self.attention(self.queries.expand(len(x), -1, -1), x)
        joined = torch.cat([pooled.flatten(1), x.mean(1)], dim=1)
        return F.normalize(self.out(joined), dim=-1)


class TextKey(nn.Module):
    """A sentence's key from its frozen sentence embedding: a linear map and a small correction.

    Attributes:
        evidence: joins the words of the sentence; None before that was learned.
    """

    def __init__(self, text_dim: int = 384, key_dim: int = 256) -> None:
        super().__init__()
        self.evidence: SentenceEvidence | None = None
        self.linear = nn.Linear(text_dim, key_dim)
        self.correction = nn.Sequential(
            nn.Linear(text_dim, 2 * key_dim),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(2 * key_dim, key_dim),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map sentence embeddings [B, E], unit rows, to unit keys [B, K]."""
        own = self.own(embeddings)
        return own if self.evidence is None else self.evidence(own, embeddings)

    def own(self, embeddings: Tensor) -> Tensor:
        """Map embeddings [B, E] to unit keys [B, K] without the evidence of words."""
        return F.normalize(self.linear(embeddings) + 0.5 * self.correction(embeddings), dim=-1)
