"""MiniGPT4-Video behind our sessions: weights only, no stream state.

Its tower, projection and language model are its own. It has no memory and no key space: scenes and
keys are lent by one of our models, and what a memory keeps of a segment are its frames as the
language model takes them. Where weights come from is ``published.py``'s business, and which
subtitle stands beside which frame ``interleaving.py``'s.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.eva import EvaConfig, EvaTower
from streammem.models.backbones.language import (
    CausalLanguageModel,
    GenerationConfig,
    Prompt,
    Replies,
)
from streammem.models.caption_scores import ConfidenceModel
from streammem.models.minigpt4_video.interleaving import moved, placed, shortened, texts
from streammem.models.minigpt4_video.options import MiniGPT4Options, SessionDefaults
from streammem.models.once import once
from streammem.models.protocols import (
    EncodedSegment,
    EvidenceItem,
    Reads,
    SegmentFrames,
    spread,
)
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import Perceived
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.video.pixels import resize

# Legend: T frames, S side in pixels, N patches a frame, D width of the tower, P = N / 4 tokens a
# frame, L width of the language model.

JOINED = 4  # neighbouring patches that make one token
FRAMING = 8  # tokens of text around a frame, about
BATCH = 8  # frames that the tower reads at a time
CAPTION_REQUEST = "Describe what happens in this video in one sentence."
DECODING = GenerationConfig(max_new_tokens=64)
SESSION = SessionDefaults()


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
        hidden = torch.cat([self.visual_encoder(part) for part in pixels.split(BATCH)])
        norm = self.ln_vision
        normed = F.layer_norm(
            hidden.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
        patches = normed[:, 1:].to(hidden.dtype)  # without the class token
        return patches.reshape(len(patches), self.per_frame, -1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames [T, S, S, 3], levels of 255: [T, P, L]."""
        return self.llama_proj(self.features(pixels))


@dataclass(frozen=True, eq=False)
class MiniGPT4Video:
    """A MiniGPT4-Video checkpoint, in evaluation mode.

    Attributes:
        name: the preset or file it was loaded from.
        options: how it is run.
        kind: of the language model, ``llama`` or ``mistral``.
        keys: lends its key space and what scenes are cut by.
        encoder: its own tower and projection.
        lora: what was added to the language model, by module; for the fingerprint and training.
        open_language: opens the language model; called at most once, when first needed.
        decoding: how captions are decoded unless a session says otherwise.
        session: what its sessions do otherwise than those of other models.
    """

    name: str
    options: MiniGPT4Options
    kind: str
    keys: VideoModel
    encoder: FrameEncoder
    lora: Mapping[str, Tensor]
    open_language: Callable[[], CausalLanguageModel]
    decoding: GenerationConfig = DECODING
    session: SessionDefaults = SESSION

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "open_language", once(self.open_language, f"{self.name}: language model")
        )

    @property
    def perceiver(self) -> Self:
        """Itself."""
        return self

    segment_encoder = generator = answer_generator = perceiver

    @property
    def text_encoder(self) -> VideoModel:
        """The model that lends its key space."""
        return self.keys

    @property
    def scenes(self) -> SceneTillingConfig:
        """Those of the model that lends its keys."""
        return self.keys.scenes

    @property
    def language(self) -> CausalLanguageModel:
        """The language model, opened when first used."""
        return self.open_language()

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the weights and options that decide what a stored memory means."""
        digest = hashlib.sha256(f"{self.keys.fingerprint} {self.kept_frames}".encode())
        weights = {
            "weight": self.encoder.llama_proj.weight, "bias": self.encoder.llama_proj.bias,
            "patches": self.encoder.visual_encoder.patch_embed.proj.weight, **self.lora,
        }  # fmt: skip
        for name, value in sorted(weights.items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def session_options(self) -> dict[str, Any]:
        """Options of ``SessionConfig`` that it has otherwise."""
        return {name: value for name, value in asdict(self.session).items() if value is not None}

    @property
    def reranker(self) -> None:
        """None: the parent says what is likeliest."""
        return None

    @property
    def confidence_model(self) -> ConfidenceModel | None:
        """None: that of ``keys`` was fitted to words of another model."""
        return None

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

    @property
    def reads(self) -> Reads:
        """Tokens of its own frames; no pictures."""
        return Reads(tokens=True)

    @property
    def batches(self) -> bool:
        """False: of so many tokens a scene, a batch would save little and hold gigabytes."""
        return False

    @property
    def reads_related(self) -> bool:
        """False: each segment is read by itself."""
        return False

    def initial_memory(self) -> Tensor:
        """Return [0, 0]: nothing is carried from segment to segment."""
        return torch.zeros(0, 0)

    # -- the frame-rate path --

    @torch.inference_mode()
    def perceive(self, picture: np.ndarray) -> Perceived:
        """See one frame, [H, W, 3] uint8 RGB; its patches are pixels, squashed to a square.

        ``encode_segment`` encodes them: most frames of a scene never pass the tower.
        """
        lent = self.keys.perceive(picture)
        return Perceived(lent.embedding, self.squashed(picture), lent.key)

    def squashed(self, picture: np.ndarray) -> Tensor:
        """Resize a picture [H, W, 3] uint8 to the tower's square, [S, S, 3] of its own memory."""
        side = self.encoder.visual_encoder.config.side
        pixels = resize(picture, (side, side), "bicubic")
        return torch.from_numpy(pixels.copy() if pixels is picture else pixels)

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
            length = self._begin_ids().numel() + sum(len(self.language.ids(p)) for p in pieces)
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
        if over > 0 and self.options.fit == "front":
            return [self.language.embed(parts)[-room:]]
        return parts

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield replies in order, None after other steps; see ``protocols.Generator``."""
        return self.language.replies(prompts, decoding, candidates)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece, with beams as one piece."""
        return self.language.pieces(prompt, decoding)

    def _frames(self, item: EvidenceItem) -> Tensor | None:
        """Return the frames [T, P, L] that a memory kept of an item; None where it has none."""
        if item.tokens is None or not item.tokens.any():
            return None
        each = item.tokens.unflatten(0, (-1, self.encoder.per_frame))
        return each[each.flatten(1).any(dim=1)]

    def begin(self) -> Tensor:
        """Return what a prompt begins with: beginnings of sequence, [1 or 2, L]."""
        embed = self.language.model.get_input_embeddings()
        return embed(self._begin_ids().to(embed.weight.device))

    def _begin_ids(self) -> Tensor:
        begin = self.language.tokenizer.bos_token_id
        return torch.tensor([begin] * (2 if self.options.prompt == "plain" else 1))


def _even(start: float, end: float, count: int) -> list[float]:
    """Lay ``count`` frames evenly over a segment, the first and the last at its ends."""
    return np.linspace(start, end, count).tolist() if count > 1 else [end] * count
