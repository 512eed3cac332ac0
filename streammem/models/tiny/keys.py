"""The key space that pictures and sentences share, and the names of things that are read off it.

    picture_key(patches) @ text_key(embeddings).T     # unit rows: 1 where they agree
    names = NamesOfKeys(256, ("cup", "knife"), 1000, {"dog": NameMeaning("", range(151, 269))})
    names.readout("a dog").odds(entry.visual_keys)    # for searches of single things
    words = WordsOfTokens(16, 384, ("cup", "knife"))
    words.likely(tokens, 5)                           # ["knife"], for prompts that answer

Two judges are joined in a key. One was trained by contrast: pictures against their sentences. The
other knows words: how likely a picture would be told with each, and which words a sentence would
be told with. Their errors differ, and the sum of their scores is an inner product again, so that
one vector and one search serve both (``training/evidence.py`` finds it). Names are read off what
the memory keeps of a segment, its keys and its tokens, so that memories of before show them, too.

No index lives here (see ``memory/index.py``) and no sentence encoder (see ``backbones/text.py``).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.memory.retrieval import STOP_WORDS, NameReadout, content_words
from streammem.models.tiny.bridge import Attention

WORD_SCALE = 4.0
SHOWN = 5  # words of a segment that a prompt shows, at most
LEAST_SHOWN = 0.25  # probability of a word that a prompt shows
DROPOUT = 0.4  # of ``WordsOfTokens``


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

    def said(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to logits and the log-probability that no word is said [B, W+1]."""
        words = self.words(patches)
        return torch.cat([words, F.logsigmoid(-words).sum(1, keepdim=True)], dim=1)

    def forward(self, own: Tensor, patches: Tensor) -> Tensor:
        """Map keys [B, K] and patches [B, P, V] to unit keys [B, K]."""
        said = (self.said(patches) - self.center) / self.scale
        x = self.of_key(own) + self.of_words(said)
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
        evidence: joins what the words of the picture say; None before that was learned.
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


# -- names of things --


class WordsOfTokens(nn.Module):
    """Scores each name by a two-layer perceptron over all tokens of a segment.

    Args:
        tokens: M, tokens of a segment.
        dim: D, their width.
        names: of the things, in the order of their scores, each once.
        hidden: width of the hidden layer.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, tokens: int, dim: int, names: Sequence[str], hidden: int = 256) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.down = nn.Linear(tokens * dim, hidden)
        self.drop = nn.Dropout(DROPOUT)
        self.up = nn.Linear(hidden, len(self.names))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, M, D] to logits [B, W], each that the thing is there."""
        x = ((tokens - self.center) / self.scale).flatten(1)
        return self.up(self.drop(F.gelu(self.down(x))))

    @torch.inference_mode()
    def likely(self, tokens: Tensor, count: int, least: float = 0.0) -> list[str]:
        """Name what a segment most likely shows, the likeliest first.

        Args:
            tokens: [M, D] of one segment.
            count: names at most.
            least: probability of a name that is given, in [0, 1].
        """
        shares = self(tokens[None].float())[0].sigmoid()
        best = shares.topk(min(count, len(shares)))
        return [
            self.names[i]
            for share, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if share >= least
        ]


class NameMeaning(NamedTuple):
    """What stands for a name.

    Attributes:
        word: one of the names of ``WordsOfTokens``; empty without.
        classes: numbers of the classifier's classes that are such a thing.
    """

    word: str
    classes: Sequence[int]


class NamesOfKeys(nn.Module):
    """Reads names of things off visual keys, linearly.

    What it tells of a picture is what two judges would: ``WordsOfTokens``, and the classifier of
    ImageNet that the frame encoder was made for. It was fitted to their verdicts on photos.

    Args:
        key_dim: D_key.
        words: names of ``WordsOfTokens``, in the order of their scores.
        classes: of the classifier.
        lexicon: further names, and others for the same; a word is a name without standing here.

    Raises:
        ValueError: a meaning that there is not.
    """

    def __init__(
        self, key_dim: int, words: Sequence[str], classes: int, lexicon: Mapping[str, NameMeaning]
    ) -> None:
        super().__init__()
        self.lexicon = dict(lexicon)
        self.words = nn.Linear(key_dim, len(words))
        self.classes = nn.Linear(key_dim, classes)
        place = {word: i for i, word in reversed(list(enumerate(words)))}
        # By how a name is spelled, and by its stems, where one that came before has not taken them:
        # glasses are no glass, and a moped is no mop.
        self._spelled: dict[str, tuple[int | None, np.ndarray]] = {
            _spelled(word): (i, np.empty(0, np.intp)) for word, i in place.items()
        }
        self._meanings = {content_words(word): self._spelled[_spelled(word)] for word in place}
        by_word, taken = dict(self._meanings), set[frozenset[str]]()
        for name, (word, chosen) in self.lexicon.items():
            if (word and word not in place) or not all(0 <= i < classes for i in chosen):
                raise ValueError(f"{name}: {word or list(chosen)} is not known")
            key = content_words(name)
            number = place[word] if word else by_word.get(key, (None,))[0]
            self._spelled[_spelled(name)] = meaning = number, np.array(chosen, np.intp)
            if key not in taken:
                taken.add(key)
                self._meanings[key] = meaning
        self._meanings.pop(frozenset(), None)
        self._spelled.pop("", None)

    def readout(self, description: str) -> NameReadout | None:
        """Return what reads the thing that a description names off keys.

        None where it names none that is known, or tells more of it.
        """
        spelled = _spelled(description)
        meaning = self._spelled.get(spelled)
        if meaning is None and not spelled.endswith(("ing", "ed")):  # who is fishing is no fish
            meaning = self._meanings.get(content_words(description))
        if meaning is None:
            return None
        number, chosen = meaning
        word: tuple[np.ndarray, float] | None = None
        if number is not None:
            word = (
                self.words.weight.detach()[number].numpy(),
                float(self.words.bias.detach()[number]),
            )
        classes, offsets = self.classes.weight.detach().numpy(), self.classes.bias.detach().numpy()
        return NameReadout(word, classes, offsets, chosen)

    @torch.no_grad()
    def fit(self, keys: Tensor, words: Tensor, classes: Tensor, ridge: float = 0.1) -> None:
        """Fit both judges in closed form, by ridge regression.

        Args:
            keys: [N, D_key] of pictures.
            words: [N, W] logits of their tokens.
            classes: [N, C] logits of the classifier.
            ridge: added to the squares of the centred keys.
        """
        keys = keys.double()
        centred = keys - keys.mean(0)
        square = centred.T @ centred + ridge * torch.eye(keys.shape[1], dtype=torch.float64)
        for readout, logits in ((self.words, words.double()), (self.classes, classes.double())):
            weight = torch.linalg.solve(square, centred.T @ (logits - logits.mean(0))).T
            readout.weight.copy_(weight)
            readout.bias.copy_(logits.mean(0) - weight @ keys.mean(0))


def _spelled(text: str) -> str:
    """Return the words of a text, small, without those that carry no content."""
    words = re.findall(r"[^\W_]+(?:'s)?", text.lower())
    return " ".join(word for word in words if word not in STOP_WORDS)
