"""Reward stage: the model's own sampled captions are scored, and the better ones made likelier.

    stage = RewardStage(bridge, language, pictures, validation)

Cross-entropy trains one word after the other; this trains whole captions by the metric.

Source: self-critical sequence training (arXiv 1612.00563), section 3, with the mean of a picture's
other samples as the baseline.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from streammem.evaluation.metrics import CiderD, Tokens, tokenise
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.sampling import GenerationConfig
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.model import CAPTION_INSTRUCTION
from streammem.training.captions import (
    BranchedPrompt,
    caption_prompt,
    captioning_groups,
    captioning_modules,
    reply_losses,
)
from streammem.training.pictures import PictureSet, sample_views

SAMPLES = 5  # captions of a picture in a step
MAX_TOKENS = 24  # of a sampled caption
HUMAN_WEIGHT = 0.2  # of one human caption's cross-entropy: it keeps sentences grammatical
GENERATED_CAPTIONS = 3  # of a picture that has only such, with the same weight and no reward
END = "</s>"  # counted as a word, so that an unfinished caption scores less
EVALUATED_PICTURES = 96


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
        self.module = captioning_modules(bridge, language)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return captioning_groups(self.module)

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        visual = self._visual(patches, times, mask)
        worded = [row for row, i in enumerate(chosen) if not self.pictures.made[i]]
        sampled = self._sample(visual.detach()[worded], SAMPLES, temperature=1.0)
        samples_of = dict(zip(worded, sampled, strict=True))
        rows, weights = [], []
        for row, picture in enumerate(chosen):
            samples = samples_of.get(row, [])
            # Captions generated from a list name what is there but are no model of style, so they
            # give no reward.
            count = 1 if samples else GENERATED_CAPTIONS
            texts = rng.permutation(self.pictures.captions[int(picture)])[:count]
            human = [self._ids(text) for text in texts]
            rows.append(caption_prompt(self._instruction, [*samples, *human]))
            worth = [*self._advantages(samples, int(picture)), *[HUMAN_WEIGHT] * len(human)]
            for ids, weight in zip([*samples, *human], worth, strict=True):
                weights += [weight] * len(ids)
        worths = torch.tensor(weights, device=visual.device)
        return (worths * self._losses(rows, visual)).mean()

    def _advantages(self, samples: list[list[int]], picture: int) -> list[float]:
        """Return each caption's reward minus the mean reward of the others."""
        rewards = np.array([self._reward(ids, picture) for ids in samples])
        others = (rewards.sum() - rewards) / max(1, len(samples) - 1)
        return (rewards - others).tolist()

    def evaluate(self) -> dict[str, float]:
        """CIDEr-D of greedy captions against the validation pictures' own."""
        return greedy_caption_figures(self.language, self.validation, self._visual, self._sample)

    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.encode(patches, times, mask))

    def _losses(self, rows: Sequence[BranchedPrompt], visual: Tensor) -> Tensor:
        # Without the adapter's dropout, as in sampling: the loss is of the same distribution.
        self.language.model.eval()
        return reply_losses(self.language, rows, visual, prefix=self._prefix)

    def _reward(self, ids: list[int], picture: int) -> float:
        return self._cider.score(caption_words(self.language, ids), self._references[picture])

    def _ids(self, text: str) -> list[int]:
        return [*self.language.ids(text), self.language.stop_id]

    def _sample(self, visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
        return sample_captions(self.language, visual, count, temperature=temperature)


@torch.no_grad()
def sample_captions(
    language: CausalLanguageModel, visual: Tensor, count: int, *, temperature: float
) -> list[list[list[int]]]:
    """Sample ``count`` captions of each picture [B, M, L], as token ids with the stop token."""
    language.model.eval()  # without the adapter's dropout
    prompts = [language.chat([tokens, CAPTION_INSTRUCTION]) for tokens in visual]
    seed = int(torch.randint(1 << 62, ()))
    decoding = GenerationConfig(MAX_TOKENS, temperature=temperature, seed=seed)
    replies = language.sample(prompts, decoding, count=count)
    return [[reply.ids for reply in of_picture] for of_picture in replies]


@torch.inference_mode()
def greedy_caption_figures(
    language: CausalLanguageModel,
    validation: PictureSet,
    encode: Callable[[Tensor, Tensor], Tensor],
    sample: Callable[..., list[list[list[int]]]],
) -> dict[str, float]:
    """Measure greedy captions of the first ``EVALUATED_PICTURES`` pictures against their own.

    Args:
        language: decodes the token ids.
        validation: with captions.
        encode: maps patches and times to visual tokens.
        sample: as ``sample_captions``, without the language model.
    """
    references = [_with_end(captions) for captions in validation.captions]
    cider = CiderD(references)
    scores, lengths = [], []
    for begin in range(0, min(EVALUATED_PICTURES, len(validation)), 16):
        chosen = np.arange(begin, min(begin + 16, EVALUATED_PICTURES, len(validation)))
        visual = encode(*validation.whole(chosen))
        for index, (ids,) in zip(chosen, sample(visual, 1, temperature=0.0), strict=True):
            scores.append(cider.score(caption_words(language, ids), references[index]))
            lengths.append(len(ids))
    return {
        "cider": round(float(np.mean(scores)), 4),
        "tokens": round(float(np.mean(lengths)), 2),
    }


def caption_words(language: CausalLanguageModel, ids: list[int]) -> Tokens:
    """Split a reply's token ids into words, with ``END`` if the reply is complete."""
    ended = ids[-1] == language.stop_id
    words = tokenise(language.tokenizer.decode(ids, skip_special_tokens=True))
    return [*words, END] if ended else words


def _with_end(captions: Sequence[str]) -> list[Tokens]:
    return [[*tokenise(caption), END] for caption in captions]
