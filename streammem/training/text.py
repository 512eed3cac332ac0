"""Training on captions without pictures, through pseudo visual tokens.

    prefix = PrefixStage(SentencePrefix(16, 384), bridge, training, validation)
    text = TextStage(photos, prefix.module, sentences, validation)

1. ``PrefixStage`` fits a small map from a sentence's frozen embedding to the tokens that the bridge
   would give, on captioned pictures.
2. ``TextStage`` trains the language model's LoRA to reproduce a sentence from its pseudo tokens,
   and beside it pictures' captions from real tokens.

The map is for training only; no checkpoint has it.

Source: CapDec (Nukrai et al. 2022, arXiv 2211.00575), section 3: noise of the measured size of the
gap between the embeddings of a sentence and of its picture; DeCap (Li et al. 2023,
arXiv 2303.03032) for a decoder that is trained on text alone.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from streammem.models.backbones.text import TEXT_DIM
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.model import CAPTION_INSTRUCTION as INSTRUCTION
from streammem.training.captions import BranchedPrompt, CaptionStage, caption_prompt, reply_losses
from streammem.training.keys import Embedded
from streammem.training.pictures import PictureSet
from streammem.training.reward import greedy_caption_figures, sample_captions
from streammem.training.sentences import Sentences

HIDDEN = 768
MEAN_PICTURES = 256  # at the mean of their tokens the map starts
EVALUATED_PREFIXES = 256  # validation pictures of ``PrefixStage``
EVALUATED_SENTENCES = 48  # validation captions of ``TextStage``
PACKED_WIDTH = 384  # columns of a row; attention grows with its square, padding shrinks
CAPTIONS_A_PICTURE = 5


class SentencePrefix(nn.Module):
    """Maps a sentence's embedding to the tokens that the bridge would give a picture of it.

    Args:
        tokens: M, of the bridge.
        dim: D, its width.
    """

    mean: Tensor
    gap: Tensor

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tokens, dim))
        self.register_buffer("gap", torch.zeros(()))
        self.net = nn.Sequential(
            nn.Linear(TEXT_DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, tokens * dim)
        )
        last: nn.Linear = self.net[2]  # type: ignore[assignment]
        nn.init.zeros_(last.weight)  # starts at the mean
        nn.init.zeros_(last.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map unit embeddings [B, E] to tokens [B, M, D]."""
        return self.mean + self.net(embeddings).unflatten(1, self.mean.shape)

    def blurred(self, embeddings: Tensor) -> Tensor:
        """Add noise of the gap's size to unit embeddings [B, E] and normalise them."""
        noise = self.gap * torch.randn_like(embeddings)
        return F.normalize(embeddings + noise, dim=-1)


def caption_gap(sentences: Sequence[Tensor]) -> float:
    """Measure the gap between captions' embeddings and their picture's, per dimension.

    A picture's embedding is taken as the mean of its captions'.

    Args:
        sentences: [captions, E] of each picture; those with a single caption are ignored.

    Returns:
        Standard deviation; 0 where no picture has two captions.
    """
    several = [rows.float() for rows in sentences if len(rows) > 1]
    if not several:
        return 0.0
    return float(torch.stack([rows.var(0).mean() for rows in several]).mean().sqrt())


@torch.no_grad()
def bridge_tokens(bridge: MemoryBridge, pictures: PictureSet) -> Tensor:
    """Return every picture's tokens [N, M, D] float16 on the CPU, each a one-frame segment."""
    batches = []
    for begin in tqdm(range(0, len(pictures), 64), desc="bridge", unit="batch", leave=False):
        chosen = range(begin, min(begin + 64, len(pictures)))
        batches.append(bridge.encode(*pictures.whole(chosen)).half().cpu())
    return torch.cat(batches)


class PrefixStage:
    """Trains the map from captions to the bridge's tokens; the bridge is frozen.

    Args:
        prefix: trained in place.
        bridge: frozen; gives a picture's tokens.
        training: captioned pictures, with their captions' embeddings.
        validation: likewise, for the figures.
        batch: pictures a step.
    """

    name = "prefix"

    def __init__(
        self,
        prefix: SentencePrefix,
        bridge: MemoryBridge,
        training: Embedded,
        validation: Embedded,
        *,
        batch: int = 128,
    ) -> None:
        self.module, self.bridge, self.batch = prefix, bridge, batch
        self.pictures, self._text = training
        self.validation, self._validation_text = validation
        bridge.eval().requires_grad_(False)
        step = 1 + len(self.pictures) // MEAN_PICTURES
        sample = self._bridge_tokens(self.pictures.select(range(0, len(self.pictures), step)))
        prefix.mean.copy_(sample.mean(0))
        prefix.gap.fill_(caption_gap(self._text))

    @cached_property
    def _tokens(self) -> Tensor:
        return bridge_tokens(self.bridge, self.pictures)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        drawn = torch.stack([self._text[i][rng.integers(len(self._text[i]))] for i in chosen])
        sentences = self.module.blurred(drawn.to(self.pictures.device))
        return 1 - self._similarity(sentences, self._tokens[chosen])

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cosine of the visual tokens with those of a caption and of another picture's; the gap."""
        count = min(EVALUATED_PREFIXES, len(self.validation))
        tokens = self._bridge_tokens(self.validation.select(range(count)))
        first = torch.stack([rows[0] for rows in self._validation_text[:count]])
        first = first.to(tokens.device)
        return {
            "cosine": round(self._similarity(first, tokens).item(), 4),
            "cosine_other": round(self._similarity(first.roll(1, 0), tokens).item(), 4),
            "gap": round(self.module.gap.item(), 4),
        }

    def _bridge_tokens(self, pictures: PictureSet) -> Tensor:
        return bridge_tokens(self.bridge, pictures).float().to(pictures.device)

    def _similarity(self, sentences: Tensor, tokens: Tensor) -> Tensor:
        """Cosine, in the language model's space, of sentences [B, E] with tokens [B, M, D]."""
        wanted = self.bridge.to_language(tokens.to(sentences.device).float())
        found = self.bridge.to_language(self.module(sentences))
        return F.cosine_similarity(found, wanted, dim=-1).mean()


class TextStage:
    """Trains the LoRA on sentences from their pseudo tokens, and on pictures' captions beside.

    The bridge is frozen, because the map is fitted to it.

    Args:
        photos: draws captioned pictures; its batch is set here.
        prefix: the map, fitted; frozen.
        sentences: without pictures.
        validation: captioned pictures with their captions' embeddings.
        batch: captions a step, of both kinds.
        share: of these, the part that are pictures' own.
    """

    name = "text"

    def __init__(
        self,
        photos: CaptionStage,
        prefix: SentencePrefix,
        sentences: Sentences,
        validation: Embedded,
        *,
        batch: int = 48,
        share: float = 0.4,
    ) -> None:
        self.photos, self.prefix, self.sentences = photos, prefix, sentences
        self.language, self.bridge = photos.language, photos.bridge
        self.validation, self._validation_text = validation
        for frozen in (self.bridge, prefix):
            frozen.eval().requires_grad_(False)
        photos.batch = max(1, round(batch * share / CAPTIONS_A_PICTURE))
        self.num_sentences = max(1, round(batch * (1 - share)))
        ids, suffix = self.language.ids, self.language.chat_suffix
        self._prefix, self._instruction = ids(self.language.chat_prefix), ids(INSTRUCTION + suffix)
        self.module = nn.ModuleDict({"lora": photos.module["lora"]})
        photos.module = self.module  # so that it evaluates in the same mode

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        with torch.no_grad():
            shown, rows = self.photos.draw(rng)
            count = min(self.num_sentences, len(self.sentences.texts))
            chosen = np.sort(rng.choice(len(self.sentences.texts), count, replace=False))
            drawn = torch.from_numpy(self.sentences.embeddings[chosen]).float().to(shown.device)
            pseudo = self.bridge.to_language(self.prefix(self.prefix.blurred(drawn)))
        sentences = [self._row(self.sentences.texts[i]) for i in chosen]
        return self._loss([*rows, *sentences], torch.cat([shown, pseudo]))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """The photos' figures as in ``captions`` and ``reward``, and the sentences' loss.

        ``sentence_loss`` is of validation captions, each from its own pseudo tokens.
        """
        count = min(EVALUATED_SENTENCES, len(self.validation))
        rows = [self._row(self.validation.captions[i][0]) for i in range(count)]
        first = torch.stack([text[0] for text in self._validation_text[:count]])
        pseudo = self.bridge.to_language(self.prefix(first.to(self.validation.device)))
        figures = {"sentence_loss": round(self._loss(rows, pseudo).item(), 4)}
        return self.photos.evaluate() | figures | self._cider()

    def _cider(self) -> dict[str, float]:
        def encode(patches: Tensor, times: Tensor) -> Tensor:
            return self.bridge.to_language(self.bridge.encode(patches, times))

        def sample(visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
            return sample_captions(self.language, visual, count, temperature=temperature)

        return greedy_caption_figures(self.language, self.validation, encode, sample)

    def _loss(self, rows: list[BranchedPrompt], visual: Tensor) -> Tensor:
        self.language.model.train(self.module.training)  # the adapter's dropout
        return reply_losses(
            self.language, rows, visual, prefix=self._prefix, width=PACKED_WIDTH
        ).mean()

    def _row(self, text: str) -> BranchedPrompt:
        told = [*self.language.text_ids(text), self.language.stop_id]
        return caption_prompt(self._instruction, [told])
