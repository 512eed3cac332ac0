"""Answer stage: the LoRA learns to answer from passages, asked three ways.

A prompt is what ``VideoModel.answer_prompt`` makes: passages in time order, each a stamp, a
picture's tokens and perhaps a caption, then the question. The bridge stays, so that memories stay
readable; captions stay too, because the stage also repeats what the model said of some pictures
before it began.
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
    Packed,
    caption_row,
    has_bfloat16,
    packed_losses,
    said_losses,
    speaking_parts,
    takes_mask,
)
from streammem.training.pictures import PictureSet, sample_views
from streammem.training.reward import greedy_figures, say
from streammem.training.trials import Quiz, Trial
from streammem.types import clock

SEEN = -1  # stands for a visual token
WIDTH = 512  # columns of a row that several prompts share
KEPT = 192  # pictures whose captions are repeated
KEPT_A_STEP = 6
EVALUATED = 24  # trials on validation pictures
CAPTIONED = 0.5  # of the trials show a caption beside each passage
WAYS = ("true", "swapped", "missing")
SCENE_S = (3.0, 40.0)
LAST_S = 4 * 3600.0  # of the stream that passages come from


class Line(NamedTuple):
    """One prompt with its reply.

    Attributes:
        asked: token ids, ``SEEN`` where a visual token stands.
        said: token ids with the stop token.
    """

    asked: list[int]
    said: list[int]


def lay_out(lines: Sequence[Line], width: int) -> Packed:
    """Lay lines side by side, each blind to the others and counting its own positions.

    Args:
        lines: at least one.
        width: columns up to which lines share a row; 0 gives each its own, which needs no mask.
    """
    # The last token is predicted, never read.
    lengths = [len(line.asked) + len(line.said) - 1 for line in lines]
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
        tokens = torch.tensor([*line.asked, *line.said[:-1]])
        span = slice(at, at + len(tokens))
        ids[row, span], visual[row, span] = tokens.clamp(min=0), tokens == SEEN
        positions[row, span], owner[row, span] = torch.arange(len(tokens)), number
        labels[row, at + len(line.asked) - 1 : at + len(tokens)] = torch.tensor(line.said)
    mask = (owner[:, :, None] == owner[:, None, :]) & torch.ones(shape[1], shape[1]).tril().bool()
    return Packed(ids, visual, positions, mask[:, None], labels)


class AnswerStage:
    """Questions with their evidence, with another answer's, and with none, in equal parts.

    Args:
        bridge: frozen.
        language: its LoRA, already added, is trained in place.
        pictures: captioned training pictures.
        validation: likewise, for the figures.
        batch: questions a step, each asked three ways.

    Raises:
        DatasetError: the captions answer no question in two ways.
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
        self.quiz, self._measured = Quiz(pictures.captions), Quiz(validation.captions)
        bridge.eval()
        ids = language.ids
        self._prefix, self._suffix = ids(language.chat_prefix), ids(language.chat_suffix)
        self._instruction = ids(CAPTION_INSTRUCTION + language.chat_suffix)
        self.module = nn.ModuleDict({"lora": speaking_parts(bridge, language)["lora"]})
        self._kept = self._say_of(np.random.default_rng(0))

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        trials = [self.quiz.draw(rng) for _ in range(self.batch)]
        self.language.model.train(self.module.training)  # the adapter's dropout
        lines, shown = self._lines(self.pictures, trials, rng)
        seen = self._visual(*sample_views(self.pictures, shown, rng)) if shown else self._nothing
        answers = self._losses(lines, seen).mean()
        chosen = rng.choice(len(self._kept), min(KEPT_A_STEP, len(self._kept)), replace=False)
        kept = [self._kept[int(i)] for i in chosen]
        visual = self._visual(*sample_views(self.pictures, [picture for picture, _ in kept], rng))
        rows = [caption_row(self._instruction, [said]) for _, said in kept]
        return answers + said_losses(self.language, rows, visual, prefix=self._prefix).mean()

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of answers, by way of asking, and CIDEr-D of captions as in ``reward``."""
        self.language.model.eval()
        rng = np.random.default_rng(0)
        trials = [self._measured.draw(rng) for _ in range(EVALUATED)]
        figures = {}
        for way in WAYS:
            lines, shown = self._lines(self.validation, trials, rng, [way])
            seen = self._visual(*self.validation.whole(shown)) if shown else self._nothing
            figures[way] = round(self._losses(lines, seen).mean().item(), 4)

        def sample(visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
            return say(self.language, visual, count, temperature=temperature)

        return figures | greedy_figures(self.language, self.validation, self._visual, sample)

    def _lines(
        self,
        pictures: PictureSet,
        trials: Sequence[Trial],
        rng: np.random.Generator,
        ways: Sequence[str] = WAYS,
    ) -> tuple[list[Line], list[int]]:
        """Word trials; return the lines, and the pictures shown in them, in order."""
        lines, shown = [], list[int]()
        for trial in trials:
            captioned = rng.random() < CAPTIONED
            for way in ways:
                told = trial.ways[way]
                captions = [
                    str(rng.choice(pictures.captions[i])) if captioned else None
                    for i in told.pictures
                ]
                asked = self.asked(_times(len(captions), rng), captions, trial.question)
                lines.append(Line(asked, [*self.language.ids(told.answer), self.language.stop_id]))
                shown += told.pictures
        return lines, shown

    def _losses(self, lines: Sequence[Line], visual: Tensor) -> Tensor:
        """Cross-entropy [N] of every token of the answers, from pictures' tokens [B, M, L]."""
        packs = takes_mask(self.language)
        packed = lay_out(lines, WIDTH if packs else 0)
        device = visual.device.type
        fast = torch.autocast(device, torch.bfloat16) if has_bfloat16(device) else nullcontext()
        with fast:
            return packed_losses(self.language, packed, visual, masked=packs)

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros(0, self.language.width, device=self.pictures.device)

    def asked(
        self,
        times: Sequence[tuple[float, float]],
        captions: Sequence[str | None],
        question: str,
    ) -> list[int]:
        """Return a prompt's token ids, ``SEEN`` in the place of each visual token."""
        ids = list(self._prefix)
        for (start, end), caption in zip(times, captions, strict=True):
            ids += self._text(f"[{clock(start)}-{clock(end)}] ")
            ids += [SEEN] * self.bridge.config.memory_tokens
            ids += self._text(f" {caption}\n" if caption else "\n")
        return [*ids, *self._text(question), *self._suffix]

    def _text(self, text: str) -> list[int]:
        # People's text: a special token that is spelled out in it is only letters.
        return self.language.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        ).input_ids

    @torch.no_grad()
    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.look(patches, times, mask))

    def _say_of(self, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
        """Let the model caption some pictures as it does at the start: (picture, token ids)."""
        chosen = self.pictures.draw(rng, KEPT)
        said = []
        for block in np.array_split(chosen, max(1, len(chosen) // 16)):
            visual = self._visual(*self.pictures.whole(block))
            replies = say(self.language, visual, 1, temperature=0.0)
            said += [(int(i), ids) for i, (ids,) in zip(block, replies, strict=True)]
        return said


def _times(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw spans of seconds in order, as passages of a stream have them."""
    starts = np.sort(rng.uniform(0, rng.uniform(60, LAST_S), count))
    return [(float(start), float(start + rng.uniform(*SCENE_S))) for start in starts]
