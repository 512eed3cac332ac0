"""Caption stage: the bridge and a LoRA on the language model learn to say what is seen.

A picture's visual prefix is computed once and shared by all of its captions in one packed row: a
block mask keeps the captions apart, and each counts its positions from the prefix's end. Several
pictures may share a row in the same manner. Flash attention reads no such mask, so there every
caption has a row of its own.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.prompts import CAPTION_INSTRUCTION
from streammem.models.tiny.bridge import MemoryBridge
from streammem.training.pictures import PictureSet, sample_views
from streammem.training.questions import turns_from_captions

IGNORE = -100
MAX_CAPTIONS = 5  # of one picture in a step
QUESTION_SHARE = 0.15  # of the pictures are asked about instead of described
BRIDGE_FACTOR = 0.3  # of the learning rate; the LoRA starts from nothing and takes all of it


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked and said of one picture.

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
        visual: [B, S] bool, where the visual tokens stand, in the order of the pictures.
        positions: [B, S].
        mask: [B, 1, S, S] bool, True where a column may be read.
        labels: [B, S] the next token, or IGNORE; in the order of the pictures and branches.
    """

    ids: Tensor
    visual: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor


def pack(rows: Sequence[Row], *, prefix: Sequence[int], num_visual: int, width: int = 0) -> Packed:
    """Pack [prefix, picture, picture, ...], each [visual tokens, shared, branch, branch, ...].

    Args:
        rows: at least one, each a picture's.
        prefix: token ids before the visual tokens.
        num_visual: visual tokens a picture.
        width: columns up to which pictures share a prefix; 0 gives each its own.
    """
    trunks = [num_visual + len(row.shared) for row in rows]
    # A branch's last token is predicted, never read.
    lengths = [
        trunk + sum(len(asked) + len(said) - 1 for asked, said in row.branches)
        for trunk, row in zip(trunks, rows, strict=True)
    ]
    head = len(prefix)
    groups = _groups(lengths, width - head)
    shape = len(groups), head + max(sum(lengths[i] for i in group) for group in groups)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    positions, visual = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    # Whose a column is: 0 all pictures', -1 nobody's; and its branch, 0 for all of the picture's.
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
            ids[line, at + num_visual : at + trunks[i]] = shared
            positions[line, at : at + trunks[i]] = torch.arange(head, trunk)
            at += trunks[i]
            for number, (asked, said) in enumerate(rows[i].branches, start=1):
                tokens = torch.tensor(asked + said[:-1])
                span = slice(at, at + len(tokens))
                ids[line, span], branch[line, span] = tokens, number
                positions[line, span] = torch.arange(trunk, trunk + len(tokens))
                labels[line, at + len(asked) - 1 : at + len(tokens)] = torch.tensor(said)
                at += len(tokens)
    mask = _readable(owner, branch) & torch.ones(shape[1], shape[1]).tril().bool()
    return Packed(ids, visual, positions, mask[:, None], labels)


def _groups(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Fill rows with neighbours while they have room; at least one each."""
    groups: list[list[int]] = []
    left = 0
    for i, length in enumerate(lengths):
        if not groups or length > left:
            groups.append([])
            left = room
        groups[-1].append(i)
        left -= length
    return groups


def _readable(owner: Tensor, branch: Tensor) -> Tensor:
    """Tell which columns a column may read, causality aside: [B, S] twice -> [B, S, S]."""
    reader, read = owner[:, :, None], owner[:, None, :]
    own_branch = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (read == 0) | ((reader == read) & own_branch)


def caption_row(instruction: Sequence[int], captions: Sequence[Sequence[int]]) -> Row:
    """Let each caption's token ids answer the instruction, in a branch of its own."""
    # The prompt's last token opens every branch: it predicts each caption's first word.
    shared, last = list(instruction[:-1]), list(instruction[-1:])
    return Row(shared, [(last, list(caption)) for caption in captions])


def said_losses(
    language: CausalLanguageModel,
    rows: Sequence[Row],
    visual: Tensor,
    *,
    prefix: Sequence[int],
    width: int = 0,
) -> Tensor:
    """Cross-entropy [N] of every token that is said, in order; in bfloat16 where that is fast.

    Args:
        language: takes the rows packed if its attention takes a mask, else branch by branch.
        rows: of the pictures.
        visual: [B, M, L] tokens of the pictures, on the language model's device.
        prefix: token ids before the visual tokens.
        width: see ``pack``; without masks every caption has a row of its own.
    """
    device = visual.device.type
    fast = torch.autocast(device, torch.bfloat16) if has_bfloat16(device) else nullcontext()
    with fast:
        if takes_mask(language):
            packed = pack(rows, prefix=prefix, num_visual=visual.shape[1], width=width)
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
    """Cross-entropy [N] of every token that is said, in order, given pictures' tokens [B, M, L].

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
        return self._loss(*self.draw(rng))

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, list[Row]]:
        """Draw a batch: what is seen of pictures, [B, M, L], and what is asked and said of them."""
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
            rows = [self._caption_row(self.validation.captions[i]) for i in batch]
            visual = self._visual(*self.validation.whole(batch))
            own.append(self._loss(visual, rows).item())
            other.append(self._loss(visual.roll(1, 0), rows).item())
        return {
            "val_loss": round(float(np.mean(own)), 4),
            "val_loss_other_picture": round(float(np.mean(other)), 4),
        }

    def _visual(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge.to_language(self.bridge.look(patches, times, mask))

    def _loss(self, visual: Tensor, rows: list[Row]) -> Tensor:
        self.language.model.train(self.module.training)  # the adapter's dropout
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
