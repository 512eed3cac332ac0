"""Answer stage: the LoRA learns to answer from passages, asked in three variants.

    stage = AnswerStage(bridge, language, pictures, validation)

A prompt is what ``VideoModel.answer_prompt`` makes: passages in time order, each a stamp, a
picture's tokens and perhaps a caption, then the question. The bridge is frozen, so that memories
stay readable. To keep captions as they are, the stage also repeats the captions that the model gave
some pictures before it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.prompts import CAPTION_INSTRUCTION
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.captions import (
    IGNORE,
    PackedBatch,
    caption_prompt,
    captioning_modules,
    has_fast_bfloat16,
    packed_losses,
    reply_losses,
    takes_mask,
)
from streammem.training.pictures import PictureSet, sample_views
from streammem.training.questions import Trial, TrialMaker
from streammem.training.reward import greedy_caption_figures, sample_captions
from streammem.types import clock

VISUAL_TOKEN = -1  # placeholder in token ids
ROW_WIDTH = 512  # columns of a row that several prompts share
REPEATED = 192  # pictures whose earlier captions are repeated
REPEATED_A_STEP = 6
EVALUATED_TRIALS = 24  # on validation pictures
CAPTIONED_SHARE = 0.5  # of the trials, in which each passage has a caption
VARIANTS = ("true", "swapped", "missing")
SCENE_S = (3.0, 40.0)
STREAM_S = 4 * 3600.0  # longest stream that passages come from


class PromptReply(NamedTuple):
    """One prompt with its reply.

    Attributes:
        prompt: token ids, ``VISUAL_TOKEN`` in the place of each visual token.
        reply: token ids with the stop token.
    """

    prompt: list[int]
    reply: list[int]


def pack_replies(lines: Sequence[PromptReply], width: int) -> PackedBatch:
    """Pack prompts side by side, each with its own positions and hidden from the others.

    Args:
        lines: prompts with replies, at least one.
        width: columns up to which prompts share a row; 0 gives each its own, which needs no mask.
    """
    # The last token is predicted but never an input.
    lengths = [len(line.prompt) + len(line.reply) - 1 for line in lines]
    places, ends = list[tuple[int, int]](), list[int]()
    for length in lengths:
        if not ends or ends[-1] + length > width:
            ends.append(0)
        places.append((len(ends) - 1, ends[-1]))
        ends[-1] += length
    shape = len(ends), max(ends)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    positions, visual = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    owner = torch.full(shape, -1)
    for number, (line, (row, at)) in enumerate(zip(lines, places, strict=True)):
        tokens = torch.tensor([*line.prompt, *line.reply[:-1]])
        span = slice(at, at + len(tokens))
        ids[row, span], visual[row, span] = tokens.clamp(min=0), tokens == VISUAL_TOKEN
        positions[row, span], owner[row, span] = torch.arange(len(tokens)), number
        labels[row, at + len(line.prompt) - 1 : at + len(tokens)] = torch.tensor(line.reply)
    mask = (owner[:, :, None] == owner[:, None, :]) & torch.ones(shape[1], shape[1]).tril().bool()
    return PackedBatch(ids, visual, positions, mask[:, None], labels)


class AnswerStage:
    """Trains answers with true evidence, with evidence of another answer, and with none, equally.

    Args:
        bridge: frozen.
        language: its LoRA, already added, is trained in place.
        pictures: captioned training pictures.
        validation: likewise, for the figures.
        batch: questions a step, each in three variants.

    Raises:
        DatasetError: the captions have no question with two different answers.
    """

    name = "answers"

    def __init__(
        self,
        bridge: MemoryBridge,
        language: CausalLanguageModel,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        batch: int = 6,
    ) -> None:
        self.bridge, self.language, self.batch = bridge, language, batch
        self.pictures, self.validation = pictures, validation
        self.trial_maker, self._measured = (
            TrialMaker(pictures.captions),
            TrialMaker(validation.captions),
        )
        bridge.eval()
        ids = language.ids
        self._prefix, self._suffix = ids(language.chat_prefix), ids(language.chat_suffix)
        self._instruction = ids(CAPTION_INSTRUCTION + language.chat_suffix)
        self.module = nn.ModuleDict({"lora": captioning_modules(bridge, language)["lora"]})
        self._repeated = self._own_captions(np.random.default_rng(0))

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        trials = [self.trial_maker.draw(rng) for _ in range(self.batch)]
        self.language.model.train(self.module.training)  # the adapter's dropout
        lines, shown = self._lines(self.pictures, trials, rng)
        seen = self._visual(*sample_views(self.pictures, shown, rng)) if shown else self._nothing
        answers = self._losses(lines, seen).mean()
        chosen = rng.choice(
            len(self._repeated), min(REPEATED_A_STEP, len(self._repeated)), replace=False
        )
        repeated = [self._repeated[int(i)] for i in chosen]
        visual = self._visual(
            *sample_views(self.pictures, [picture for picture, _ in repeated], rng)
        )
        rows = [caption_prompt(self._instruction, [ids]) for _, ids in repeated]
        return answers + reply_losses(self.language, rows, visual, prefix=self._prefix).mean()

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of answers by variant, and CIDEr-D of captions as in ``reward``."""
        self.language.model.eval()
        rng = np.random.default_rng(0)
        trials = [self._measured.draw(rng) for _ in range(EVALUATED_TRIALS)]
        figures = {}
        for name in VARIANTS:
            lines, shown = self._lines(self.validation, trials, rng, [name])
            seen = self._visual(*self.validation.whole(shown)) if shown else self._nothing
            figures[name] = round(self._losses(lines, seen).mean().item(), 4)

        def sample(visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
            return sample_captions(self.language, visual, count, temperature=temperature)

        return figures | greedy_caption_figures(
            self.language, self.validation, self._visual, sample
        )

    def _lines(
        self,
        pictures: PictureSet,
        trials: Sequence[Trial],
        rng: np.random.Generator,
        names: Sequence[str] = VARIANTS,
    ) -> tuple[list[PromptReply], list[int]]:
        """Make the prompts and replies of trials; return them and the pictures shown, in order."""
        lines, shown = [], list[int]()
        for trial in trials:
            captioned = rng.random() < CAPTIONED_SHARE
            for name in names:
                variant = trial.variants[name]
                captions = [
                    str(rng.choice(pictures.captions[i])) if captioned else None
                    for i in variant.pictures
                ]
                prompt = self.prompt(_times(len(captions), rng), captions, trial.question)
                lines.append(
                    PromptReply(prompt, [*self.language.ids(variant.answer), self.language.stop_id])
                )
                shown += variant.pictures
        return lines, shown

    def _losses(self, lines: Sequence[PromptReply], visual: Tensor) -> Tensor:
        """Cross-entropy [N] of every token of the answers, given visual tokens [B, M, L]."""
        packs = takes_mask(self.language)
        packed = pack_replies(lines, ROW_WIDTH if packs else 0)
        device = visual.device.type
        fast = (
            torch.autocast(device, torch.bfloat16) if has_fast_bfloat16(device) else nullcontext()
        )
        with fast:
            return packed_losses(self.language, packed, visual, masked=packs)

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros(0, self.language.width, device=self.pictures.device)

    def prompt(
        self,
        times: Sequence[tuple[float, float]],
        captions: Sequence[str | None],
        question: str,
    ) -> list[int]:
        """Return a prompt's token ids, ``SEEN`` in the place of each visual token."""
        ids = list(self._prefix)
        for (start, end), caption in zip(times, captions, strict=True):
            ids += self._text(f"[{clock(start)}-{clock(end)}] ")
            ids += [VISUAL_TOKEN] * self.bridge.config.memory_tokens
            ids += self._text(f" {caption}\n" if caption else "\n")
        return [*ids, *self._text(question), *self._suffix]

    def _text(self, text: str) -> list[int]:
        # Untrusted text: a special token spelled out in it stays letters.
        return self.language.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        ).input_ids

    @torch.no_grad()
    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.encode(patches, times, mask))

    def _own_captions(self, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
        """Caption some pictures with the untrained LoRA: (picture, token ids)."""
        chosen = self.pictures.draw(rng, REPEATED)
        captions = []
        for block in np.array_split(chosen, max(1, len(chosen) // 16)):
            visual = self._visual(*self.pictures.whole(block))
            replies = sample_captions(self.language, visual, 1, temperature=0.0)
            captions += [(int(i), ids) for i, (ids,) in zip(block, replies, strict=True)]
        return captions


def _times(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw passages' spans of seconds, in order."""
    starts = np.sort(rng.uniform(0, rng.uniform(60, STREAM_S), count))
    return [(float(start), float(start + rng.uniform(*SCENE_S))) for start in starts]
