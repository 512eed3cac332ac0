"""Reward stage: the model's own captions are scored, and the better ones made likelier.

Cross-entropy teaches to follow people's words one by one; this teaches whole captions, as they are
judged. Source: self-critical sequence training (arXiv 1612.00563), section 3, with the mean of a
picture's other samples as the baseline.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from streammem.evaluation.metrics import CiderD, Tokens, tokenise
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.sampling import GenerationConfig
from streammem.models.prompts import CAPTION_INSTRUCTION
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.captions import (
    Row,
    caption_row,
    said_losses,
    speaking_groups,
    speaking_parts,
)
from streammem.training.pictures import PictureSet, sample_views

SAMPLES = 5  # captions of a picture in a step
MAX_TOKENS = 24  # of a sampled caption
HUMAN_WEIGHT = 0.2  # of one human caption's cross-entropy: it keeps the sentences whole
MADE_READ = 3  # made sentences of a picture that is not rewarded, with the same weight
END = "</s>"  # counted as a word, so that a caption that breaks off half-way loses
EVALUATED = 96  # validation pictures


class RewardStage:
    """Self-critical training on CIDEr-D.

    Args:
        bridge: trained in place.
        language: its LoRA, already added, is trained in place.
        pictures: training set, every picture with captions.
        validation: captioned greedily in ``evaluate``.
        batch: pictures a step.
    """

    name = "reward"

    def __init__(
        self,
        bridge: MemoryBridge,
        language: CausalLanguageModel,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        batch: int = 12,
    ) -> None:
        self.bridge, self.language, self.batch = bridge, language, batch
        self.pictures, self.validation = pictures, validation
        self._prefix = language.ids(language.chat_prefix)
        self._instruction = language.ids(CAPTION_INSTRUCTION + language.chat_suffix)
        self._references = [_with_end(captions) for captions in pictures.captions]
        self._cider = CiderD(self._references)
        self.module = speaking_parts(bridge, language)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return speaking_groups(self.module)

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        visual = self._visual(patches, times, mask)
        worded = [row for row, i in enumerate(chosen) if not self.pictures.made[i]]
        sampled = self._sample(visual.detach()[worded], SAMPLES, temperature=1.0)
        said_of = dict(zip(worded, sampled, strict=True))
        rows, weights = [], []
        for row, picture in enumerate(chosen):
            said = said_of.get(row, [])
            # Sentences made from a list say what is there, not how to say it: they are only read.
            count = 1 if said else MADE_READ
            texts = rng.permutation(self.pictures.captions[int(picture)])[:count]
            human = [self._ids(text) for text in texts]
            rows.append(caption_row(self._instruction, [*said, *human]))
            worth = [*self._advantages(said, int(picture)), *[HUMAN_WEIGHT] * len(human)]
            for ids, weight in zip([*said, *human], worth, strict=True):
                weights += [weight] * len(ids)
        worths = torch.tensor(weights, device=visual.device)
        return (worths * self._losses(rows, visual)).mean()

    def _advantages(self, said: list[list[int]], picture: int) -> list[float]:
        """By how much each caption's reward exceeds the mean of the others'."""
        rewards = np.array([self._reward(ids, picture) for ids in said])
        others = (rewards.sum() - rewards) / max(1, len(said) - 1)
        return (rewards - others).tolist()

    def evaluate(self) -> dict[str, float]:
        """CIDEr-D of greedy captions against the validation pictures' own."""
        return greedy_figures(self.language, self.validation, self._visual, self._sample)

    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.look(patches, times, mask))

    def _losses(self, rows: Sequence[Row], visual: Tensor) -> Tensor:
        # Without the adapter's dropout: what was sampled is what is made likelier.
        self.language.model.eval()
        return said_losses(self.language, rows, visual, prefix=self._prefix)

    def _reward(self, ids: list[int], picture: int) -> float:
        return self._cider.score(words(self.language, ids), self._references[picture])

    def _ids(self, text: str) -> list[int]:
        return [*self.language.ids(text), self.language.stop_id]

    def _sample(self, visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
        return say(self.language, visual, count, temperature=temperature)


@torch.no_grad()
def say(
    language: CausalLanguageModel, visual: Tensor, count: int, *, temperature: float
) -> list[list[list[int]]]:
    """Say ``count`` captions of each picture [B, M, L], as token ids with the stop token."""
    language.model.eval()  # without the adapter's dropout
    prompts = [language.chat([tokens, CAPTION_INSTRUCTION]) for tokens in visual]
    seed = int(torch.randint(1 << 62, ()))
    decoding = GenerationConfig(MAX_TOKENS, temperature=temperature, seed=seed)
    replies = language.sample(prompts, decoding, count=count)
    return [[reply.ids for reply in said] for said in replies]


@torch.inference_mode()
def greedy_figures(
    language: CausalLanguageModel,
    validation: PictureSet,
    look: Callable[[Tensor, Tensor], Tensor],
    sample: Callable[..., list[list[list[int]]]],
) -> dict[str, float]:
    """Measure greedy captions of the first ``EVALUATED`` pictures against their own.

    Args:
        language: whose words they are.
        validation: with captions.
        look: maps patches and times to visual tokens.
        sample: as ``say``, the language model aside.
    """
    references = [_with_end(captions) for captions in validation.captions]
    cider = CiderD(references)
    scores, lengths = [], []
    for begin in range(0, min(EVALUATED, len(validation)), 16):
        chosen = np.arange(begin, min(begin + 16, EVALUATED, len(validation)))
        visual = look(*validation.whole(chosen))
        for index, (ids,) in zip(chosen, sample(visual, 1, temperature=0.0), strict=True):
            scores.append(cider.score(words(language, ids), references[index]))
            lengths.append(len(ids))
    return {
        "cider": round(float(np.mean(scores)), 4),
        "tokens": round(float(np.mean(lengths)), 2),
    }


def words(language: CausalLanguageModel, ids: list[int]) -> Tokens:
    """Split a reply's token ids into words, its end among them if it has one."""
    ended = ids[-1] == language.stop_id
    said = tokenise(language.tokenizer.decode(ids, skip_special_tokens=True))
    return [*said, END] if ended else said


def _with_end(captions: Sequence[str]) -> list[Tokens]:
    return [[*tokenise(caption), END] for caption in captions]
