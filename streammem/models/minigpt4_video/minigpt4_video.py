"""MiniGPT4-Video behind our sessions: weights only, no stream state.

Its tower, projection and language model are its own. It has no memory and no key space: scenes and
keys are lent by one of our models, and what a memory keeps of a segment are its frames as the
language model takes them. Where weights come from is ``published.py``'s business, and which
subtitle stands beside which frame ``interleaving.py``'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from streammem.models.backbones.eva import EvaConfig, EvaTower, normed
from streammem.models.backbones.language import Prompt
from streammem.models.minigpt4_video.interleaving import moved, placed, shortened, texts
from streammem.models.minigpt4_video.options import MiniGPT4Options
from streammem.models.protocols import EncodedSegment, EvidenceItem
from streammem.models.published import CAPTION_REQUEST, PublishedModel
from streammem.perception.frames import SegmentFrames, resize, spread

# Legend: T frames, S side in pixels, N patches a frame, D width of the tower, P = N / 4 tokens a
# frame, L width of the language model.

JOINED = 4  # neighbouring patches that make one token
FRAMING = 8  # tokens of text around a frame, about


class FrameEncoder(nn.Module):
    """Frames to tokens of the language model; modules bear the parent's names.

    Source: MiniGPT4-Video (arXiv 2404.03413), section 3.
    """

    def __init__(self, config: EvaConfig, width: int) -> None:
        super().__init__()
        self.visual_encoder = EvaTower(config)
        self.ln_vision = nn.LayerNorm(config.width)
        self.llama_proj = nn.Linear(JOINED * config.width, width)

    @property
    def per_frame(self) -> int:
        """P, tokens of a frame."""
        config = self.visual_encoder.config
        return (config.side // config.patch) ** 2 // JOINED

    def features(self, pixels: Tensor) -> Tensor:
        """Encode frames [T, S, S, 3], levels of 255: [T, P, 4 D], four patches of a row a token."""
        dtype = self.llama_proj.weight.dtype
        parts = normed(self.visual_encoder, self.ln_vision, pixels)
        patches = torch.cat([part[:, 1:].to(dtype) for part in parts])  # without the class token
        return patches.reshape(len(patches), self.per_frame, -1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames [T, S, S, 3], levels of 255: [T, P, L]."""
        return self.llama_proj(self.features(pixels))


@dataclass(frozen=True, eq=False, kw_only=True)
class MiniGPT4Video(PublishedModel):
    """A MiniGPT4-Video checkpoint.

    Attributes:
        kind: of the language model, ``llama`` or ``mistral``.
        encoder: its own tower and projection.
        lora: what was added to the language model, by module; for the fingerprint and training.
    """

    whole = "clips"

    options: MiniGPT4Options
    kind: str
    encoder: FrameEncoder
    lora: Mapping[str, Tensor]

    def identity(self) -> tuple[str, Iterable[tuple[str, Tensor]]]:
        """Return the frames kept of a segment, and weights of projection, tower and LoRA."""
        weights = {
            "weight": self.encoder.llama_proj.weight, "bias": self.encoder.llama_proj.bias,
            "patches": self.encoder.visual_encoder.patch_embed.proj.weight, **self.lora,
        }  # fmt: skip
        return str(self.kept_frames), sorted(weights.items())

    @property
    def limits(self) -> tuple[int, int, int]:
        """Frames, words of subtitles and embeddings of one prompt, at most."""
        return self.options.limits(self.kind)

    @property
    def kept_frames(self) -> int:
        """Frames of a segment that are encoded and kept."""
        return self.options.kept_frames if self.options.cuts == "streaming" else self.limits[0]

    @property
    def token_shape(self) -> tuple[int, int]:
        """Rows and width of what a memory keeps of a segment: its frames, zeros at the end."""
        width = self.encoder.llama_proj.out_features
        return self.kept_frames * self.encoder.per_frame, width

    # -- the frame-rate path --

    def pixels(self, picture: np.ndarray) -> Tensor:
        """Squash a picture to the tower's square, [S, S, 3] of its own memory."""
        side = self.encoder.visual_encoder.config.side
        squashed = resize(picture, (side, side), "bicubic")
        return torch.from_numpy(squashed.copy() if squashed is picture else squashed)

    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Encode the frames of a segment; more than ``kept_frames`` are thinned evenly.

        Args:
            frames: their patches are pixels [S, S, 3].
            memory: [0, 0].
            related: not read.
        """
        chosen = spread(len(frames.patches), self.kept_frames)
        return EncodedSegment(self.pack([frames.patches[i] for i in chosen]), memory)

    @torch.inference_mode()
    def pack(self, pixels: Sequence[Tensor]) -> Tensor:
        """Encode frames, [S, S, 3] each, as a memory keeps them: ``token_shape``, on the CPU."""
        tokens = self.encoder(torch.stack(list(pixels))).flatten(0, 1).float().cpu()  # [T P, L]
        count, width = self.token_shape
        return torch.cat([tokens, tokens.new_zeros(count - len(tokens), width)])

    # -- the slow path --

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment from its frames and what is said in it."""
        return self.answer_prompt([item], instruction or CAPTION_REQUEST)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order.

        Frames of all items stand in one row, each with its subtitles, as in training. Captions are
        read of items without frames only: the model was not trained to read them beside.
        """
        frames, captions, lines, as_placed = list[Tensor](), list[str](), list[str](), True
        for item in items:
            own = self._frames(item)
            if own is None:
                lines += [line for line in (item.caption, item.speech) if line]
                continue
            frames.append(own)
            # With times each note begins at a frame: it was placed, and shortened, when these were
            # chosen, see `ClipSession`.
            times = item.times or _even(item.start, item.end, len(own))
            captions += placed(times, item.notes)
            as_placed &= bool(item.times)
        if not as_placed:
            captions = shortened(captions, self.limits[1])
        request = "\n".join([*lines, question])
        return self.prompt(torch.cat(frames) if frames else None, captions, request)

    def prompt(self, frames: Tensor | None, captions: Sequence[str], request: str) -> Prompt:
        """Interleave frames with their captions, within the limits of frames and tokens.

        Args:
            frames: [T, P, L], or None.
            captions: of each frame; what stands beside a frame that is left out moves on.
            request: of the user.
        """
        most, _, room = self.limits
        chosen = spread(len(captions), most)
        while True:
            pieces = texts(moved(captions, chosen), request, self.options.prompt)
            length = self.begins + sum(len(self._ids(piece)) for piece in pieces)
            over = length + len(chosen) * self.encoder.per_frame - room
            if over <= 0 or not chosen or self.options.fit == "front":
                break
            # With a frame goes the text around it, so this many are too few rather than too many.
            fewer = max(1, over // (self.encoder.per_frame + FRAMING))
            chosen = spread(len(captions), max(0, len(chosen) - fewer))
        parts: list[str | Tensor] = [self.begin(), pieces[0]]
        for place, piece in zip(chosen, pieces[1:], strict=True):
            assert frames is not None
            parts += [frames[place], piece]
        if self.options.typed == "token":
            parts = [
                self.language.vectors(self._ids(part)) if isinstance(part, str) else part
                for part in parts
            ]
        if over > 0 and self.options.fit == "front":
            return [self.language.embed(parts)[-room:]]
        return parts

    def _ids(self, piece: str) -> list[int]:
        language = self.language
        return language.ids(piece) if self.options.typed == "token" else language.text_ids(piece)

    def _frames(self, item: EvidenceItem) -> Tensor | None:
        """Return the frames [T, P, L] that a memory kept of an item; None where it has none."""
        if item.tokens is None or not item.tokens.any():
            return None
        each = item.tokens.unflatten(0, (-1, self.encoder.per_frame))
        return each[each.flatten(1).any(dim=1)]

    @property
    def begins(self) -> int:
        """Beginnings of sequence before a prompt; the parent's inference has two."""
        return 2 if self.options.prompt == "plain" else 1


def _even(start: float, end: float, count: int) -> list[float]:
    """Lay ``count`` frames evenly over a segment, the first and the last at its ends."""
    return np.linspace(start, end, count).tolist() if count > 1 else [end] * count
