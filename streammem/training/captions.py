"""Caption stage: the bridge and a LoRA on the language model learn to say what is seen.

A picture's visual prefix is computed once and shared by all of its captions in one packed row: a
block mask keeps the captions apart, and each counts its positions from the prefix's end. Flash
attention reads no such mask, so there every caption has a row of its own.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.backbones.language import CausalLanguageModel
from streammem.memory.bridge import MemoryBridge
from streammem.prompts import CAPTION_INSTRUCTION
from streammem.training.pictures import PictureSet, sample_views
from streammem.training.questions import turns_from_captions

IGNORE = -100
MAX_CAPTIONS = 5  # of one picture in a step
QUESTION_SHARE = 0.15  # of the pictures are asked about instead of described
BRIDGE_FACTOR = 0.3  # of the learning rate; the LoRA starts from nothing and takes all of it


@dataclass(frozen=True, slots=True)
class Row:
    """One picture's packed row.

    Attributes:
        shared: token ids between the visual tokens and the branches.
        branches: (asked, said) token ids; loss is on ``said`` only.
    """

    shared: list[int]
    branches: list[tuple[list[int], list[int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A batch of packed rows, ready for the language model, on the CPU.

    Attributes:
        ids: [B, S] token ids; 0 where a visual token or padding stands.
        visual_start: column of the first visual token, the same in every row.
        positions: [B, S].
        mask: [B, 1, S, S] bool, True where a column may be read.
        labels: [B, S] the next token, or IGNORE.
    """

    ids: Tensor
    visual_start: int
    positions: Tensor
    mask: Tensor
    labels: Tensor


def pack(rows: Sequence[Row], *, prefix: Sequence[int], num_visual: int) -> Packed:
    """Pack rows of [prefix, visual tokens, shared, branch, branch, ...].

    Args:
        rows: at least one.
        prefix: token ids before the visual tokens.
        num_visual: visual tokens a row.
    """
    head = len(prefix) + num_visual
    lengths = [head + len(r.shared) + sum(len(a) + len(s) for a, s in r.branches) for r in rows]
    shape = (len(rows), max(lengths))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    positions, block = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for i, row in enumerate(rows):
        trunk = head + len(row.shared)
        ids[i, : len(prefix)] = torch.tensor(prefix)
        ids[i, head:trunk] = torch.tensor(row.shared, dtype=torch.long)
        positions[i, :trunk] = torch.arange(trunk)
        block[i, :trunk] = 0
        at = trunk
        for number, (asked, said) in enumerate(row.branches, start=1):
            # The last token is predicted, never read.
            tokens = torch.tensor(asked + said[:-1])
            span = slice(at, at + len(tokens))
            ids[i, span] = tokens
            positions[i, span] = torch.arange(trunk, trunk + len(tokens))
            block[i, span] = number
            labels[i, at + len(asked) - 1 : at + len(tokens)] = torch.tensor(said)
            at += len(tokens)
    longest = int((block >= 0).sum(1).max())
    ids, labels, positions, block = (t[:, :longest] for t in (ids, labels, positions, block))
    reader, read = block[:, :, None], block[:, None, :]
    allowed = ((read == 0) | (reader == read)) & torch.ones(longest, longest).tril().bool()
    # Padding reads itself, so that its softmax is not over nothing.
    allowed |= torch.eye(longest).bool()
    return Packed(ids, len(prefix), positions, allowed[:, None], labels)


def caption_row(instruction: Sequence[int], captions: Sequence[Sequence[int]]) -> Row:
    """Let each caption's token ids answer the instruction, in a branch of its own."""
    # The prompt's last token opens every branch: it predicts each caption's first word.
    shared, last = list(instruction[:-1]), list(instruction[-1:])
    return Row(shared, [(last, list(caption)) for caption in captions])


def said_losses(
    language: CausalLanguageModel, rows: Sequence[Row], visual: Tensor, *, prefix: Sequence[int]
) -> Tensor:
    """Cross-entropy [N] of every token that is said, in order; in bfloat16 where that is fast.

    Args:
        language: takes the rows packed if its attention takes a mask, else branch by branch.
        rows: of the pictures.
        visual: [B, M, L] tokens of the pictures, on the language model's device.
        prefix: token ids before the visual tokens.
    """
    device = visual.device.type
    fast = torch.autocast(device, torch.bfloat16) if has_bfloat16(device) else nullcontext()
    with fast:
        if takes_mask(language):
            packed = pack(rows, prefix=prefix, num_visual=visual.shape[1])
            return packed_losses(language, packed, visual)
        alone = [Row(row.shared, [branch]) for row in rows for branch in row.branches]
        counts = torch.tensor([len(row.branches) for row in rows], device=visual.device)
        packed = pack(alone, prefix=prefix, num_visual=visual.shape[1])
        # Padding stands at the end, where a causal model needs no mask to leave it out.
        own = visual.repeat_interleave(counts, 0, output_size=len(alone))
        return packed_losses(language, packed, own, masked=False)


def takes_mask(language: CausalLanguageModel) -> bool:
    """Tell whether the language model's attention reads a mask of any form; flash-attn does not."""
    return "flash" not in str(language.model.config._attn_implementation)


def packed_losses(
    language: CausalLanguageModel, packed: Packed, visual: Tensor, *, masked: bool = True
) -> Tensor:
    """Cross-entropy [N] of every token that is said, in order, given visual tokens [B, M, L].

    ``masked=False`` is for rows of one branch each: it leaves mask and positions to the model.
    """
    model: Any = language.model
    device = visual.device
    embedded = model.get_input_embeddings()(packed.ids.to(device))
    start = packed.visual_start
    embedded = torch.cat(
        [embedded[:, :start], visual.to(embedded.dtype), embedded[:, start + visual.shape[1] :]], 1
    )
    hidden = _decoder_of(model)(
        inputs_embeds=embedded,
        position_ids=packed.positions.to(device) if masked else None,
        attention_mask=packed.mask.to(device) if masked else None,
        use_cache=False,
    ).last_hidden_state
    # Found on the CPU: there a device need not be waited for.
    spoken = (packed.labels != IGNORE).flatten().nonzero()[:, 0]
    said = packed.labels.flatten()[spoken].to(device)
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[spoken.to(device)])
    return F.cross_entropy(logits.float(), said, reduction="none")


def _decoder_of(model: nn.Module) -> nn.Module:
    """Return the stack without the vocabulary head, whether a LoRA wraps the model or not."""
    plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return plain.model


def has_bfloat16(device: str) -> bool:
    """Tell whether bfloat16 products are fast: they halve a step, or, emulated, take five times it.

    Args:
        device: torch's device type.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # AVX-512 BF16 or AMX; torch computes bfloat16 without them too, but in float32 steps.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def speaking_parts(bridge: MemoryBridge, language: CausalLanguageModel) -> nn.ModuleDict:
    """Join what learns to speak: the bridge, and the LoRA that the language model already has."""
    trained = [(n, p) for n, p in language.model.named_parameters() if p.requires_grad]
    lora = {name.replace(".", "/"): parameter for name, parameter in trained}
    return nn.ModuleDict({"bridge": bridge, "lora": nn.ParameterDict(lora)})


def speaking_groups(parts: nn.ModuleDict) -> list[tuple[list[nn.Parameter], float]]:
    """Return (parameters, factor on the learning rate) of ``speaking_parts``."""
    return [
        (list(parts["bridge"].parameters()), BRIDGE_FACTOR),
        (list(parts["lora"].parameters()), 1.0),
    ]


class CaptionStage:
    """Captions and, for a share of the pictures, questions about them.

    Args:
        bridge: trained in place.
        language: its LoRA, already added, is trained in place.
        pictures: training set; one without captions is only asked about.
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
        self.module = speaking_parts(bridge, language)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return speaking_groups(self.module)

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = self.pictures.draw(rng, self.batch)
        patches, times, mask = sample_views(self.pictures, chosen, rng)
        rows = [self._row(int(i), rng) for i in chosen]
        return self._loss(patches, times, mask, rows)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Cross-entropy of human captions, with own and with another picture's features."""
        chosen = np.arange(min(48, len(self.validation)))
        own, other = [], []
        for begin in range(0, len(chosen), 16):
            batch = chosen[begin : begin + 16]
            rows = [self._caption_row(self.validation.captions[i]) for i in batch]
            patches, times = self.validation.whole(batch)
            own.append(self._loss(patches, times, None, rows).item())
            other.append(self._loss(patches.roll(1, 0), times, None, rows).item())
        return {
            "val_loss": round(float(np.mean(own)), 4),
            "val_loss_other_picture": round(float(np.mean(other)), 4),
        }

    def _loss(self, patches: Tensor, times: Tensor, mask: Tensor | None, rows: list[Row]) -> Tensor:
        self.language.model.train(self.module.training)  # the adapter's dropout
        visual = self.bridge.to_language(self.bridge.look(patches, times, mask))
        return said_losses(self.language, rows, visual, prefix=self._prefix).mean()

    def _row(self, picture: int, rng: np.random.Generator) -> Row:
        captions = self.pictures.captions[picture]
        if rng.random() < QUESTION_SHARE or not captions:
            turns = self.pictures.turns[picture] or turns_from_captions(captions, rng)
            ids = self.language.ids
            return Row([], [(ids(t.question) + self._suffix, self._said(t.answer)) for t in turns])
        order = rng.permutation(len(captions))[:MAX_CAPTIONS]
        return self._caption_row([captions[i] for i in order])

    def _caption_row(self, captions: Sequence[str]) -> Row:
        return caption_row(self._instruction, [self._said(caption) for caption in captions])

    def _said(self, text: str) -> list[int]:
        return [*self.language.ids(text), self.language.stop_id]
