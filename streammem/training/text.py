"""Captions without pictures: sentences teach the language model through pseudo visual tokens.

A small map from a sentence's frozen embedding to the tokens that the bridge would give is fitted on
captioned pictures (``PrefixStage``). Then the language model's LoRA learns to say a sentence from
its pseudo tokens, while pictures' own captions keep it on real ones (``TextStage``). The map is for
training only; no checkpoint holds it.

Source: CapDec (Nukrai et al. 2022, arXiv 2211.00575), section 3: noise of the measured gap bridges
what an embedding of a sentence and of its picture differ by; DeCap (Li et al. 2023,
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
from streammem.models.prompts import CAPTION_INSTRUCTION as INSTRUCTION
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.captions import CaptionStage, Row, caption_row, said_losses
from streammem.training.keys import Embedded
from streammem.training.pictures import PictureSet
from streammem.training.reward import greedy_figures, say
from streammem.training.sentences import Sentences

HIDDEN = 768
SAMPLE = 256  # pictures whose tokens the map begins at the mean of
EVALUATED = 256  # validation pictures of the map
EVALUATED_SAID = 48  # validation captions that are said from their own pseudo tokens
WIDTH = 384  # columns of a packed row; attention grows with its square, padding shrinks
CAPTIONS_A_PICTURE = 5


class SentencePrefix(nn.Module):
    """Maps sentence embeddings to what the bridge would make of a picture of it.

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
        nn.init.zeros_(last.weight)  # begins at the mean
        nn.init.zeros_(last.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map unit embeddings [B, E] to tokens [B, M, D]."""
        return self.mean + self.net(embeddings).unflatten(1, self.mean.shape)

    def blurred(self, embeddings: Tensor) -> Tensor:
        """Add noise of the gap's size to unit embeddings [B, E], and make them unit again."""
        noise = self.gap * torch.randn_like(embeddings)
        return F.normalize(embeddings + noise, dim=-1)


def caption_gap(sentences: Sequence[Tensor]) -> float:
    """Measure by how much a caption's embedding departs from its picture's, a dimension.

    What a picture says is taken as the mean of its captions.

    Args:
        sentences: [captions, E] of each picture; one with a single caption tells nothing.

    Returns:
        Standard deviation; 0 where no picture has two captions.
    """
    several = [rows.float() for rows in sentences if len(rows) > 1]
    if not several:
        return 0.0
    return float(torch.stack([rows.var(0).mean() for rows in several]).mean().sqrt())


@torch.no_grad()
def look_tokens(bridge: MemoryBridge, pictures: PictureSet) -> Tensor:
    """Return every picture's tokens [N, M, D] float16 on the CPU, each a one-frame segment."""
    batches = []
    for begin in tqdm(range(0, len(pictures), 64), desc="looking", unit="batch", leave=False):
        chosen = range(begin, min(begin + 64, len(pictures)))
        batches.append(bridge.look(*pictures.whole(chosen)).half().cpu())
    return torch.cat(batches)


class PrefixStage:
    """The map learns the bridge's own tokens from a picture's captions; the bridge stays.

    Args:
        prefix: trained in place.
        bridge: frozen; says what a picture's tokens are.
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
        step = 1 + len(self.pictures) // SAMPLE
        sample = self._look(self.pictures.select(range(0, len(self.pictures), step)))
        prefix.mean.copy_(sample.mean(0))
        prefix.gap.fill_(caption_gap(self._text))

    @cached_property
    def _tokens(self) -> Tensor:
        return look_tokens(self.bridge, self.pictures)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        drawn = torch.stack([self._text[i][rng.integers(len(self._text[i]))] for i in chosen])
        sentences = self.module.blurred(drawn.to(self.pictures.device))
        return 1 - self._likeness(sentences, self._tokens[chosen])

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cosine of the visual tokens and those made of a caption; of another picture's caption.

        Beside it the noise that stands for the gap.
        """
        count = min(EVALUATED, len(self.validation))
        tokens = self._look(self.validation.select(range(count)))
        first = torch.stack([rows[0] for rows in self._validation_text[:count]])
        first = first.to(tokens.device)
        return {
            "cosine": round(self._likeness(first, tokens).item(), 4),
            "cosine_other": round(self._likeness(first.roll(1, 0), tokens).item(), 4),
            "gap": round(self.module.gap.item(), 4),
        }

    def _look(self, pictures: PictureSet) -> Tensor:
        return look_tokens(self.bridge, pictures).float().to(pictures.device)

    def _likeness(self, sentences: Tensor, tokens: Tensor) -> Tensor:
        """Compare in the language model's space: sentences [B, E] and tokens [B, M, D]."""
        wanted = self.bridge.to_language(tokens.to(sentences.device).float())
        found = self.bridge.to_language(self.module(sentences))
        return F.cosine_similarity(found, wanted, dim=-1).mean()


class TextStage:
    """The LoRA learns to say sentences from their pseudo tokens, and pictures' captions beside.

    The bridge stays as it is: the map is fitted to it.

    Args:
        photos: draws pictures with their captions; its batch is set here.
        prefix: the map, fitted; frozen.
        sentences: what is said without a picture.
        validation: captioned pictures with their captions' embeddings.
        batch: captions a step, of both kinds.
        share: of these, pictures' own.
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
        photos.module = self.module  # it evaluates as this stage does

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        with torch.no_grad():
            shown, rows = self.photos.draw(rng)
            count = min(self.num_sentences, len(self.sentences.texts))
            chosen = np.sort(rng.choice(len(self.sentences.texts), count, replace=False))
            drawn = torch.from_numpy(self.sentences.embeddings[chosen]).float().to(shown.device)
            pseudo = self.bridge.to_language(self.prefix(self.prefix.blurred(drawn)))
        told = [self._row(self.sentences.texts[i]) for i in chosen]
        return self._loss([*rows, *told], torch.cat([shown, pseudo]))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """The photos' figures as in ``captions`` and ``reward``, and the sentences' loss.

        ``sentence_loss`` is of validation captions, each from its own pseudo tokens.
        """
        count = min(EVALUATED_SAID, len(self.validation))
        rows = [self._row(self.validation.captions[i][0]) for i in range(count)]
        first = torch.stack([text[0] for text in self._validation_text[:count]])
        pseudo = self.bridge.to_language(self.prefix(first.to(self.validation.device)))
        told = {"sentence_loss": round(self._loss(rows, pseudo).item(), 4)}
        return self.photos.evaluate() | told | self._cider()

    def _cider(self) -> dict[str, float]:
        def look(patches: Tensor, times: Tensor) -> Tensor:
            return self.bridge.to_language(self.bridge.look(patches, times))

        def sample(visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
            return say(self.language, visual, count, temperature=temperature)

        return greedy_figures(self.language, self.validation, look, sample)

    def _loss(self, rows: list[Row], visual: Tensor) -> Tensor:
        self.language.model.train(self.module.training)  # the adapter's dropout
        return said_losses(self.language, rows, visual, prefix=self._prefix, width=WIDTH).mean()

    def _row(self, text: str) -> Row:
        # Text of anybody's: a special token that is spelled out in it is only letters.
        tokenised = self.language.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        )
        return caption_row(self._instruction, [[*tokenised.input_ids, self.language.stop_id]])
