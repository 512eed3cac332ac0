"""Caption stage: the bridge and a LoRA of the language model learn to caption pictures.

    stage = CaptionStage(bridge, language, pictures, validation)
    train_stage(stage, Schedule(steps=100, lr=1e-4), Path("out"))

A picture's visual tokens are computed once and shared by all of its captions in one packed row::

    [prefix | visual tokens | instruction | caption 1 | caption 2 | ...]

A block mask hides the captions from each other, and each counts its positions from the end of what
they share. Several pictures may share a row and its prefix in the same manner. Flash attention
takes no such mask; with it every caption has a row of its own.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.decoding import without_lora
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.products import has_bfloat16
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.model import CAPTION_INSTRUCTION
from streammem.training.lora import lora_parameters
from streammem.training.pictures import PictureSet, sample_views
from streammem.training.questions import questions_from_captions

IGNORE = -100
VISUAL_TOKEN = -1  # placeholder in token ids
MAX_CAPTIONS = 5  # of one picture in a step
QUESTION_SHARE = 0.15  # of the pictures, which get questions instead of captions
BRIDGE_FACTOR = 0.3  # of the learning rate; the LoRA, which starts from zero, takes all of it


@dataclass(frozen=True, slots=True)
class BranchedPrompt:
    """A picture's prompts and replies, which share their beginning.

    Attributes:
        shared: token ids between the visual tokens and the branches; ``VISUAL_TOKEN`` in the
            places of visual tokens that stand among them.
        branches: (prompt, reply) token ids; the loss is on the reply only.
    """

    shared: list[int]
    branches: list[tuple[list[int], list[int]]]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """A batch of packed rows, ready for the language model, on the CPU.

    Attributes:
        ids: [B, S] token ids; 0 for visual tokens and padding.
        visual: [B, S] bool, True for visual tokens, in the order of the pictures.
        positions: [B, S].
        mask: [B, 1, S, S] bool, True where a position may attend.
        labels: [B, S] the next token, or IGNORE; in the order of the pictures and branches.
    """

    ids: Tensor
    visual: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor


def pack(
    rows: Sequence[BranchedPrompt], *, prefix: Sequence[int], num_visual: int, width: int = 0
) -> PackedBatch:
    """Pack [prefix, picture, picture, ...], each [visual tokens, shared, branch, branch, ...].

    Args:
        rows: at least one, one a picture.
        prefix: token ids before the visual tokens.
        num_visual: visual tokens before each picture's shared ids; 0 where they stand among these.
        width: columns up to which pictures share a prefix; 0 gives each its own.
    """
    trunks = [num_visual + len(row.shared) for row in rows]
    # A branch's last token is predicted but never an input.
    lengths = [
        trunk + sum(len(prompt) + len(reply) - 1 for prompt, reply in row.branches)
        for trunk, row in zip(trunks, rows, strict=True)
    ]
    head = len(prefix)
    groups = _groups(lengths, width - head)
    shape = len(groups), head + max(sum(lengths[i] for i in group) for group in groups)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    positions, visual = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    # Of each column: its picture, from 1, with 0 for the prefix and -1 for padding; and its branch,
    # from 1, with 0 for what all branches of the picture share.
    owner, branch = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    ids[:, :head], positions[:, :head], owner[:, :head] = (
        torch.tensor(prefix),
        torch.arange(head),
        0,
    )
    for line, group in enumerate(groups):
        at = head
        for i in group:
            trunk, owner[line, at : at + lengths[i]] = head + trunks[i], i + 1
            visual[line, at : at + num_visual] = True
            shared = torch.tensor(rows[i].shared, dtype=torch.long)
            ids[line, at + num_visual : at + trunks[i]] = shared.clamp(min=0)
            visual[line, at + num_visual : at + trunks[i]] = shared == VISUAL_TOKEN
            positions[line, at : at + trunks[i]] = torch.arange(head, trunk)
            at += trunks[i]
            for number, (prompt, reply) in enumerate(rows[i].branches, start=1):
                tokens = torch.tensor(prompt + reply[:-1])
                span = slice(at, at + len(tokens))
                ids[line, span], branch[line, span] = tokens, number
                positions[line, span] = torch.arange(trunk, trunk + len(tokens))
                labels[line, at + len(prompt) - 1 : at + len(tokens)] = torch.tensor(reply)
                at += len(tokens)
    mask = _readable(owner, branch) & torch.ones(shape[1], shape[1]).tril().bool()
    return PackedBatch(ids, visual, positions, mask[:, None], labels)


def _groups(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Group consecutive pictures so that each group fits ``width`` columns or has one picture."""
    groups: list[list[int]] = []
    left = 0
    for i, length in enumerate(lengths):
        if not groups or length > left:
            groups.append([])
            left = width
        groups[-1].append(i)
        left -= length
    return groups


def _readable(owner: Tensor, branch: Tensor) -> Tensor:
    """Return which columns a column may attend to, causality aside: [B, S] twice -> [B, S, S]."""
    reader, read = owner[:, :, None], owner[:, None, :]
    own_branch = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (read == 0) | ((reader == read) & own_branch)


def caption_prompt(instruction: Sequence[int], captions: Sequence[Sequence[int]]) -> BranchedPrompt:
    """Make the instruction's prompt with each caption's token ids as the reply of a branch."""
    # The prompt's last token opens every branch: it predicts each caption's first word.
    shared, last = list(instruction[:-1]), list(instruction[-1:])
    return BranchedPrompt(shared, [(last, list(caption)) for caption in captions])


def reply_losses(
    language: CausalLanguageModel,
    rows: Sequence[BranchedPrompt],
    visual: Tensor,
    *,
    prefix: Sequence[int],
    width: int = 0,
) -> Tensor:
    """Cross-entropy [N] of every token of the replies, in order; in bfloat16 where that is fast.

    Args:
        language: gets packed rows if its attention takes a mask, else one branch a row.
        rows: one a picture.
        visual: [B, M, L] tokens of the pictures, on the language model's device.
        prefix: token ids before the visual tokens.
        width: see ``pack``; without masks every caption has a row of its own.
    """
    device = visual.device.type
    fast = torch.autocast(device, torch.bfloat16) if has_fast_bfloat16(device) else nullcontext()
    with fast:
        if takes_mask(language):
            packed = pack(rows, prefix=prefix, num_visual=visual.shape[1], width=width)
            return packed_losses(language, packed, visual)
        single = [BranchedPrompt(row.shared, [branch]) for row in rows for branch in row.branches]
        counts = torch.tensor([len(row.branches) for row in rows], device=visual.device)
        packed = pack(single, prefix=prefix, num_visual=visual.shape[1])
        # Padding is at the end, where a causal model needs no mask to ignore it.
        own = visual.repeat_interleave(counts, 0, output_size=len(single))
        return packed_losses(language, packed, own, masked=False)


def takes_mask(language: CausalLanguageModel) -> bool:
    """Return whether the language model's attention takes any mask; flash-attn does not."""
    return "flash" not in str(language.model.config._attn_implementation)


def packed_losses(
    language: CausalLanguageModel, packed: PackedBatch, visual: Tensor, *, masked: bool = True
) -> Tensor:
    """Cross-entropy [N] of every token of the replies, in order, given visual tokens [B, M, L].

    ``masked=False`` is for rows of one branch each: it leaves mask and positions to the model.
    """
    model: Any = language.model
    device = visual.device
    embedded = model.get_input_embeddings()(packed.ids.to(device))
    shown = packed.visual.to(device)[..., None]
    embedded = embedded.masked_scatter(shown, visual.to(embedded.dtype))
    hidden = _decoder_of(model)(
        inputs_embeds=embedded,
        position_ids=packed.positions.to(device) if masked else None,
        attention_mask=packed.mask.to(device) if masked else None,
        use_cache=False,
    ).last_hidden_state
    # On the CPU, so that no device has to be waited for.
    predicted = (packed.labels != IGNORE).flatten().nonzero()[:, 0]
    labels = packed.labels.flatten()[predicted].to(device)
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[predicted.to(device)])
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _decoder_of(model: nn.Module) -> nn.Module:
    """Return the layers without the vocabulary head, of a plain model or one with a LoRA."""
    return without_lora(model).model


def has_fast_bfloat16(device: str) -> bool:
    """Return whether bfloat16 is fast: it halves a step, or, emulated, takes five times as long.

    Args:
        device: torch's device type.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and has_bfloat16()  # else torch emulates it in float32


def captioning_modules(bridge: MemoryBridge, language: CausalLanguageModel) -> nn.ModuleDict:
    """Return the trained modules of captioning: the bridge, and the language model's LoRA."""
    return nn.ModuleDict({"bridge": bridge, "lora": lora_parameters(language)})


def captioning_groups(parts: nn.ModuleDict) -> list[tuple[list[nn.Parameter], float]]:
    """Return (parameters, factor on the learning rate) of ``speaking_parts``."""
    return [
        (list(parts["bridge"].parameters()), BRIDGE_FACTOR),
        (list(parts["lora"].parameters()), 1.0),
    ]


def caption_tokens(
    language: CausalLanguageModel, captions: Sequence[str], known: Tensor | None = None
) -> Tensor:
    """Return the tokens of captions, those that end a reply, and the known ones: [N], in order."""
    found = {*language.stop_ids, *(() if known is None else known.tolist())}
    for caption in captions:
        found.update(language.ids(caption))
    return torch.tensor(sorted(found))


class CaptionStage:
    """Trains captions and, for ``QUESTION_SHARE`` of the pictures, answers to questions about them.

    Args:
        bridge: trained in place.
        language: its LoRA, already added, is trained in place.
        pictures: training set; those without captions are used for questions only.
        validation: measured by cross-entropy of its captions.
        batch: pictures a step.
    """

    name = "captions"

    def __init__(
        self,
        bridge: MemoryBridge,
        language: CausalLanguageModel,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        batch: int = 16,
    ) -> None:
        self.bridge, self.language, self.pictures = bridge, language, pictures
        self.validation = validation
        self.batch = batch
        self._prefix = language.ids(language.chat_prefix)
        self._suffix = language.ids(language.chat_suffix)
        self._instruction = language.ids(CAPTION_INSTRUCTION + language.chat_suffix)
        self.module = captioning_modules(bridge, language)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return captioning_groups(self.module)

    def loss(self, rng: np.random.Generator) -> Tensor:
        return self._loss(*self.draw(rng))

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, list[BranchedPrompt]]:
        """Draw a batch: pictures' visual tokens [B, M, L], and their prompts and replies."""
        chosen = self.pictures.draw(rng, self.batch)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        rows = [self._row(int(i), rng) for i in chosen]
        return self._visual(patches, times, mask), rows

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of human captions, with own and with another picture's features."""
        chosen = np.arange(min(48, len(self.validation)))
        own, other = [], []
        for begin in range(0, len(chosen), 16):
            batch = chosen[begin : begin + 16]
            rows = [self._caption_prompt(self.validation.captions[i]) for i in batch]
            visual = self._visual(*self.validation.whole(batch))
            own.append(self._loss(visual, rows).item())
            other.append(self._loss(visual.roll(1, 0), rows).item())
        return {
            "val_loss": round(float(np.mean(own)), 4),
            "val_loss_other_picture": round(float(np.mean(other)), 4),
        }

    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.encode(patches, times, mask))

    def _loss(self, visual: Tensor, rows: list[BranchedPrompt]) -> Tensor:
        self.language.model.train(self.module.training)  # the adapter's dropout
        return reply_losses(self.language, rows, visual, prefix=self._prefix).mean()

    def _row(self, picture: int, rng: np.random.Generator) -> BranchedPrompt:
        captions = self.pictures.captions[picture]
        if rng.random() < QUESTION_SHARE or not captions:
            questions = self.pictures.questions[picture] or questions_from_captions(captions, rng)
            ids = self.language.ids
            return BranchedPrompt(
                [], [(ids(t.question) + self._suffix, self._reply(t.answer)) for t in questions]
            )
        order = rng.permutation(len(captions))[:MAX_CAPTIONS]
        return self._caption_prompt([captions[i] for i in order])

    def _caption_prompt(self, captions: Sequence[str]) -> BranchedPrompt:
        return caption_prompt(self._instruction, [self._reply(caption) for caption in captions])

    def _reply(self, text: str) -> list[int]:
        return [*self.language.ids(text), self.language.stop_id]
