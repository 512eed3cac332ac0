"""Reward stage: the model's own captions are scored, and the better ones made likelier.

Cross-entropy teaches to follow people's words one by one; this teaches whole captions, as they are
judged. Source: self-critical sequence training (arXiv 1612.00563), section 3, with the mean of a
picture's other samples as the baseline.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.backbones.language import CausalLanguageModel
from streammem.memory.bridge import MemoryBridge
from streammem.metrics import CiderD, Tokens, tokenise
from streammem.prompts import CAPTION_INSTRUCTION
from streammem.training.captions import (
    Row,
    caption_row,
    decoder_of,
    has_bfloat16,
    pack,
    packed_losses,
    speaking_groups,
    speaking_parts,
)
from streammem.training.pictures import PictureSet, sample_views

SAMPLES = 5  # captions of a picture in a step
MAX_TOKENS = 24  # of a sampled caption
HUMAN_WEIGHT = 0.2  # of one human caption's cross-entropy: it keeps the sentences whole
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
        sampled = self._sample(visual.detach(), SAMPLES, temperature=1.0)
        rows, weights = [], []
        for picture, said in zip(chosen, sampled, strict=True):
            rewards = torch.tensor([self._reward(ids, int(picture)) for ids in said])
            others = (rewards.sum() - rewards) / (SAMPLES - 1)
            captions = self.pictures.captions[int(picture)]
            human = self._ids(captions[int(rng.integers(len(captions)))])
            rows.append(caption_row(self._instruction, [*said, human]))
            for ids, advantage in zip(
                [*said, human], [*(rewards - others).tolist(), HUMAN_WEIGHT], strict=True
            ):
                weights += [advantage] * len(ids)
        losses = self._losses(rows, visual)
        return (torch.tensor(weights) * losses).mean()

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """CIDEr-D of greedy captions against the validation pictures' own."""
        references = [_with_end(captions) for captions in self.validation.captions]
        cider = CiderD(references)
        scores, lengths = [], []
        for begin in range(0, min(EVALUATED, len(self.validation)), 16):
            chosen = np.arange(begin, min(begin + 16, EVALUATED, len(self.validation)))
            visual = self._visual(*self.validation.whole(chosen), None)
            for index, (ids,) in zip(chosen, self._sample(visual, 1, temperature=0.0), strict=True):
                scores.append(cider.score(self._words(ids), references[index]))
                lengths.append(len(ids))
        return {
            "cider": round(float(np.mean(scores)), 4),
            "tokens": round(float(np.mean(lengths)), 2),
        }

    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None) -> Tensor:
        return self.bridge.to_language(self.bridge.look(patches, times, mask))

    def _losses(self, rows: Sequence[Row], visual: Tensor) -> Tensor:
        # Without the adapter's dropout: what was sampled is what is made likelier.
        self.language.model.eval()
        packed = pack(rows, prefix=self._prefix, num_visual=visual.shape[1])
        device = visual.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=has_bfloat16(device)):
            return packed_losses(self.language, packed, visual)

    def _reward(self, ids: list[int], picture: int) -> float:
        return self._cider.score(self._words(ids), self._references[picture])

    def _words(self, ids: list[int]) -> Tokens:
        ended = ids[-1] == self.language.stop_id
        words = tokenise(self.language.tokenizer.decode(ids, skip_special_tokens=True))
        return [*words, END] if ended else words

    def _ids(self, text: str) -> list[int]:
        return [*self.language.ids(text), self.language.stop_id]

    @torch.no_grad()
    def _sample(self, visual: Tensor, count: int, *, temperature: float) -> list[list[list[int]]]:
        """Say ``count`` captions of each picture, as token ids with the stop token."""
        model: Any = self.language.model
        model.eval()
        embed, head = model.get_input_embeddings(), model.get_output_embeddings().weight
        batch, device = len(visual), visual.device.type
        reduced = has_bfloat16(device)
        head = head.bfloat16() if reduced else head
        before, after = (
            embed(torch.tensor(ids)).expand(batch, -1, -1)
            for ids in (self._prefix, self._instruction)
        )
        fed = torch.cat([before, visual.to(before.dtype), after], 1)
        position, past = fed.shape[1], None
        said = torch.zeros(batch * count, 0, dtype=torch.long)
        done = torch.zeros(batch * count, dtype=torch.bool)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=reduced):
            for step in range(MAX_TOKENS):
                positions = (
                    torch.arange(position) if step == 0 else torch.tensor([position + step - 1])
                )
                out = decoder_of(model)(
                    inputs_embeds=fed,
                    position_ids=positions[None],
                    past_key_values=past,
                    use_cache=True,
                )
                past, hidden = out.past_key_values, out.last_hidden_state[:, -1]
                if step == 0:
                    # The prompt is read once, whatever the number of captions.
                    past.batch_repeat_interleave(count)
                    hidden = hidden.repeat_interleave(count, 0)
                logits = F.linear(hidden.to(head.dtype), head).float()
                if temperature:
                    token = torch.multinomial((logits / temperature).softmax(-1), 1)
                else:
                    token = logits.argmax(-1, keepdim=True)
                token[done] = self.language.stop_id
                said = torch.cat([said, token], 1)
                done |= token[:, 0] == self.language.stop_id
                if done.all():
                    break
                fed = embed(token)
        captions = [_until_stop(row, self.language.stop_id) for row in said.tolist()]
        return [captions[i : i + count] for i in range(0, len(captions), count)]


def _until_stop(ids: list[int], stop: int) -> list[int]:
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def _with_end(captions: Sequence[str]) -> list[Tokens]:
    return [[*tokenise(caption), END] for caption in captions]
