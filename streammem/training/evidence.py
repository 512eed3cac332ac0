"""Evidence stage: the likely caption words of a picture become part of its key.

    stage = EvidenceStage(keys, space, EvidenceData(training, validation), cells)
    train_stage(stage, schedule, out)
    stage.attach(seed=0)  # both keys now include the evidence of words

A picture's key is trained by contrast, which soon memorises a small training set. The words of a
picture make other errors. For a sentence q and a picture x the sum of both scores,

    key(q) . key(x) + WEIGHT (sum_w p(w | q) logit p(w | x) + sum_w log(1 - p(w | x))),

is an inner product of two long vectors; its best approximation in K - 1 dimensions is found in
closed form and becomes the key.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.tiny.keys import (
    EvidenceSizes,
    PictureEvidence,
    PictureKey,
    SentenceEvidence,
    TextKey,
    WordsOfCells,
    WordsOfSentence,
)
from streammem.training.keys import Embedded
from streammem.training.sentences import Sentences
from streammem.training.words import TOP, WordSpace, word_loss

WEIGHT = 0.03  # of the words beside the key; best of 0.01 to 0.06, which differ little
EVIDENCE_RANK = 256  # of the map from a cell to the words
WORD_DROPOUT = 0.3
WORD_NOISE = 0.01  # on a sentence's embedding
FITTED_SENTENCES = 32768  # sentences, and 16384 pictures, that the common space is fitted to
CHUNK = 256


class EvidenceData(NamedTuple):
    """Captioned pictures for training and validation, and sentences that belong to no picture."""

    training: Embedded
    validation: Embedded
    sentences: Sentences | None = None


class EvidenceStage:
    """Trains the words of pictures (unless known) and of sentences; ``attach`` joins them to keys.

    Args:
        keys: changed in place by ``attach``.
        space: words to predict.
        data: for training and validation.
        cells: words of pictures, trained in place if ``learn_cells``; else the vision stage's.
        batch: pictures and sentences a step.
    """

    name = "evidence"

    def __init__(
        self,
        keys: tuple[PictureKey, TextKey],
        space: WordSpace,
        data: EvidenceData,
        cells: WordsOfCells,
        *,
        learn_cells: bool = True,
        batch: int = 256,
    ) -> None:
        self.picture_key, self.text_key = keys
        self.space, self.batch, self._learn_cells = space, batch, learn_cells
        self.training, self.validation, self._sentences = data
        device = self.training.pictures.device
        self._targets = space.shares(self.training.pictures.captions)
        self._words_of_cells = cells.to(device)
        self._words_of_sentence = WordsOfSentence(
            self.training.sentences[0].shape[1], len(space.words)
        )
        self._words_of_sentence.start(space.prior)
        parts = {"sentences": self._words_of_sentence}
        self.module = nn.ModuleDict(parts | ({"cells": cells} if learn_cells else {})).to(device)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        embeddings, shares = self._some_sentences(rng)
        noisy = F.normalize(embeddings + WORD_NOISE * torch.randn_like(embeddings), dim=-1)
        loss = word_loss(self._words_of_sentence(noisy), shares)
        if not self._learn_cells:
            return loss
        pictures = self.training.pictures
        chosen = pictures.draw(rng, self.batch)
        views = [int(rng.integers(pictures.num_views(int(i)))) for i in chosen]
        patches = F.dropout(pictures.views(chosen, views), WORD_DROPOUT, self.module.training)
        return loss + word_loss(self._words_of_cells(patches), self._targets[chosen])

    def _some_sentences(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw sentences: embeddings [B, E] and words, [B, W] of 0 and 1."""
        pictures, text = self.training
        chosen = [
            (int(i), int(rng.integers(len(text[i]))))
            for i in rng.choice(len(text), min(self.batch, len(text)), replace=False)
        ]
        rows = [text[i][j] for i, j in chosen]
        texts = [pictures.captions[i][j] for i, j in chosen]
        if self._sentences:
            others = rng.integers(len(self._sentences.texts), size=3 * self.batch)
            rows += [torch.from_numpy(np.array(self._sentences.embeddings[i])) for i in others]
            texts += [self._sentences.texts[i] for i in others]
        embeddings = torch.stack([row.float() for row in rows]).to(pictures.device)
        return embeddings, self.space.shares([[sentence] for sentence in texts])

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Share of a picture's five likeliest words in its captions; loss of sentences' words."""
        pictures, text = self.validation
        truth = self.space.shares(pictures.captions) > 0
        hits = 0.0
        for begin in range(0, len(pictures), CHUNK):
            chosen = range(begin, min(begin + CHUNK, len(pictures)))
            scores = self._words_of_cells(pictures.whole(chosen)[0][:, 0])
            best = scores.topk(min(TOP, scores.shape[1])).indices.cpu()
            hits += truth[begin : chosen.stop].gather(1, best).float().mean(1).sum().item()
        shares = self.space.shares([[captions[0]] for captions in pictures.captions])
        first = torch.stack([rows[0].float() for rows in text]).to(pictures.device)
        loss = word_loss(self._words_of_sentence(first), shares).item()
        return {"top5": round(hits / len(pictures), 4), "sentences": round(loss, 4)}

    @torch.no_grad()
    def attach(self, seed: int) -> None:
        """Attach evidence to both keys, fitted to a seeded sample of training data."""
        rng = np.random.default_rng(seed)
        pictures, text = self.training
        chosen = rng.permutation(len(pictures))[: FITTED_SENTENCES // 2]
        patches = (pictures.whole(part)[0][:, 0] for part in _parts(chosen))
        sentences = torch.cat([rows.float() for rows in text])
        sentences = sentences[torch.from_numpy(rng.permutation(len(sentences))[:FITTED_SENTENCES])]
        self.module.eval()
        attach_evidence(
            (self.picture_key.eval(), self.text_key.eval()),
            (self._words_of_cells, self._words_of_sentence),
            patches,
            sentences.to(pictures.device).split(CHUNK),
        )


class CommonSpace(NamedTuple):
    """Maps two kinds of rows to D dimensions: (row - mean) @ matrix each."""

    left_mean: Tensor
    left: Tensor
    right_mean: Tensor
    right: Tensor


def common_space(left: Tensor, right: Tensor, dim: int) -> CommonSpace:
    """Find the maps that best preserve the centred rows' inner products, in mean square.

    Args:
        left: [N, P]; the covariances of both kinds of rows decide which dimensions are kept.
        right: [M, P].
        dim: D, at most P.
    """
    (left_mean, left_root, left_inverse) = _whitening(left)
    (right_mean, right_root, right_inverse) = _whitening(right)
    u, s, v = torch.linalg.svd(left_root @ right_root)
    root = s[:dim].sqrt()
    return CommonSpace(
        left_mean, left_inverse @ u[:, :dim] * root, right_mean, right_inverse @ v[:dim].T * root
    )


def _whitening(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows' mean, and the root of their covariance and its inverse."""
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values = values.clamp(min=1e-7 * values.max().item())
    return mean, vectors * values.sqrt() @ vectors.T, vectors * values.rsqrt() @ vectors.T


@torch.no_grad()
def attach_evidence(
    keys: tuple[PictureKey, TextKey],
    words: tuple[WordsOfCells, WordsOfSentence],
    patches: Iterable[Tensor],
    embeddings: Iterable[Tensor],
) -> None:
    """Attach evidence to keys.

    Args:
        keys: changed in place.
        words: of pictures and of sentences; they become part of the keys.
        patches: of training pictures, [B, P, V] at a time.
        embeddings: of sentences, [B, E] at a time.
    """
    picture_key, text_key = keys
    cells, sentences = words
    count, device = cells.up.out_features, cells.up.weight.device
    key_dim = text_key.linear.out_features
    sizes = EvidenceSizes(cells.down.in_features, count, cells.up.in_features)
    of_picture = PictureEvidence(key_dim, sizes).to(device)
    of_picture.words = cells
    of_sentence = SentenceEvidence(text_key.linear.in_features, key_dim, count).to(device)
    of_sentence.words = sentences
    shown = [(picture_key.own(part), of_picture.word_scores(part)) for part in patches]
    own, evidence = (torch.cat(column).double() for column in zip(*shown, strict=True))
    of_picture.center.copy_(evidence.mean(0))
    of_picture.scale.copy_(evidence.std(0) + 1e-6)
    of_queries = [(text_key.own(part), sentences(part).sigmoid()) for part in embeddings]
    own_query, query_words = (
        torch.cat(column).double() for column in zip(*of_queries, strict=True)
    )
    absence = torch.ones(len(own_query), 1, dtype=torch.float64, device=device)
    right = torch.cat([own, evidence - evidence.mean(0)], dim=1)
    left = torch.cat([own_query, WEIGHT * query_words, WEIGHT * absence], dim=1)
    space = common_space(left, right, key_dim - 2)
    # A picture's score for the mean sentence is one more dimension, the same for every sentence.
    x = (right - space.right_mean) @ space.right
    mean_score = (right - space.right_mean) @ space.left_mean
    balance = mean_score.std() / x.std()
    to_x = torch.cat([space.right, space.left_mean[:, None] / balance], dim=1)
    largest = torch.cat([x, mean_score[:, None] / balance], dim=1).norm(dim=1).max()
    to_x /= largest
    to_y = F.pad(space.left, (0, 1))
    _set(of_picture.of_key, to_x[:key_dim], -(space.right_mean @ to_x))
    _set(of_picture.of_words, to_x[key_dim:] * of_picture.scale[:, None])
    constant = F.pad(-(space.left_mean @ space.left), (0, 1), value=balance.item())
    constant += WEIGHT * to_y[-1]  # the term of absent words is the same for every sentence
    _set(of_sentence.of_key, to_y[:key_dim], constant)
    _set(of_sentence.of_words, WEIGHT * to_y[key_dim:-1])
    picture_key.evidence, text_key.evidence = of_picture, of_sentence


def reduce_rank(
    weight: Tensor, bias: Tensor, cells: Tensor, rank: int = EVIDENCE_RANK
) -> WordsOfCells:
    """Reduce the map from cells to words to ``rank``, with the least mean square error on cells.

    Args:
        weight: [W, C].
        bias: [W].
        cells: [N, C], a sample.
        rank: at most.
    """
    rank = min(rank, *weight.shape)
    values, vectors = torch.linalg.eigh(cells.double().T @ cells.double() / len(cells))
    values = values.clamp(min=1e-6 * values.max().item())
    root, inverse = (vectors * v @ vectors.T for v in (values.sqrt(), values.rsqrt()))
    u, s, v = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    words = WordsOfCells(weight.shape[1], len(weight), rank)
    scale = s[:rank].sqrt()
    _set(words.down, (scale[:, None] * v[:rank] @ inverse).T)
    _set(words.up, (u[:, :rank] * scale).T, bias)
    return words


@torch.no_grad()
def _set(linear: nn.Linear, matrix: Tensor, bias: Tensor | None = None) -> None:
    """Fill a linear map with ``matrix`` [in, out]."""
    linear.weight.copy_(matrix.T)
    if bias is not None:
        linear.bias.copy_(bias)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
