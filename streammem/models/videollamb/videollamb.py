"""VideoLLaMB behind our sessions: weights only, no stream state.

Its towers, bridge and language model are its own. What it has none of, a key space in which a
question finds a picture, is lent by one of our models; SceneTilling is ours. Where its weights
come from is ``published.py``'s business, and reading a whole video at once ``offline.py``'s.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from streammem.models.backbones.language import (
    CausalLanguageModel,
    GenerationConfig,
    Prompt,
    Replies,
)
from streammem.models.backbones.languagebind import Tower, crop, pad
from streammem.models.caption_scores import ConfidenceModel
from streammem.models.once import once
from streammem.models.protocols import (
    EncodedSegment,
    EvidenceItem,
    Reads,
    SegmentFrames,
    spread,
)
from streammem.models.tiny.model import VideoModel
from streammem.models.videollamb.bridge import ParentBridge, pool
from streammem.models.videollamb.options import ParentOptions, SessionDefaults
from streammem.perception.frames import Perceived
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import clock

# Legend: T frames, S side in pixels, P = pool^2 tokens a frame, M memory tokens, D width.

CAPTION_REQUEST = "Describe what happens in this video in one sentence."
PERSON = {"vicuna_v1": "user", "llava_v1": "human"}
DECODING = GenerationConfig(max_new_tokens=64)
SESSION = SessionDefaults()


class Rows(NamedTuple):
    """What a memory keeps of a segment, [2 M + kept frames x P, D] in this order; zeros at the end.

    Attributes:
        recalled: [M, D] the memory after it, which has read the cache.
        memory: [M, D] the memory tokens as the bridge wrote them, which the cache keeps.
        hidden: [T P, D] the bridge's hidden states of its frames.
    """

    recalled: Tensor
    memory: Tensor
    hidden: Tensor


@dataclass(frozen=True, eq=False)
class VideoLLaMB:
    """A VideoLLaMB checkpoint, in evaluation mode.

    Attributes:
        name: the folder or preset it was loaded from.
        options: how it is run.
        keys: lends its key space and, if the options say so, what scenes are cut by.
        image_tower: of still pictures, and of scenes.
        video_tower: of a segment's frames.
        bridge: its own.
        open_language: opens the language model; called at most once, when first needed.
        scenes: SceneTilling's options.
        decoding: how captions are decoded unless a session says otherwise.
        session: what its sessions do otherwise than those of other models.
    """

    name: str
    options: ParentOptions
    keys: VideoModel
    image_tower: Tower
    video_tower: Tower
    bridge: ParentBridge
    open_language: Callable[[], CausalLanguageModel]
    scenes: SceneTillingConfig
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
    def language(self) -> CausalLanguageModel:
        """The language model, opened when first used."""
        return self.open_language()

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the weights and options that decide what a stored memory means."""
        digest = hashlib.sha256(f"{self.keys.fingerprint} {self.options}".encode())
        for name, value in sorted(self.bridge.state_dict().items()):
            digest.update(name.encode() + value.float().cpu().numpy().tobytes())
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
    def token_shape(self) -> tuple[int, int]:
        """Rows and width of what a memory keeps of a segment, see ``Rows``."""
        sizes = self.bridge.config
        frames = self.options.kept_frames if self.keeps_hidden else 0
        return 2 * sizes.memory_tokens + frames * self.options.pool**2, sizes.width

    @property
    def reads(self) -> Reads:
        """Rows of its own bridge; no pictures."""
        return Reads(tokens=True)

    @property
    def batches(self) -> bool:
        """False: of so many tokens a scene, a batch would save little and hold gigabytes."""
        return False

    @property
    def reads_related(self) -> bool:
        """True: the memory reads the cache."""
        return True

    @property
    def keeps_hidden(self) -> bool:
        """Whether anything reads the frames' hidden states later."""
        return self.options.sees != "memory" or self.options.cache == "hidden"

    def initial_memory(self) -> Tensor:
        """Return the memory before the first segment, [M, D] float32."""
        return self.bridge.initial_memory()[0].detach().float().cpu().clone()

    # -- the frame-rate path --

    @torch.inference_mode()
    def perceive(self, picture: np.ndarray) -> Perceived:
        """See one frame, [H, W, 3] uint8 RGB; its patches are pixels.

        ``encode_segment`` encodes them: the video tower wants a segment's frames together, and none
        is to be encoded twice.
        """
        lent = self.keys.perceive(picture)
        cropped = torch.from_numpy(crop(picture, self.side, self.options.shrink))
        embedding = lent.embedding
        if self.options.scene_features == "tower":
            embedding = self.image_tower(cropped[None])[0, 0].float().cpu().numpy()
        return Perceived(embedding, cropped, lent.key)

    @property
    def side(self) -> int:
        """Pixels a side of the towers' input."""
        return self.video_tower.config.side

    @torch.inference_mode()
    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Read a segment with the memory before it, then let the memory read the cache.

        Args:
            frames: their patches are pixels [S, S, 3]; more than ``segment_frames`` are thinned.
            memory: [M, D].
            related: rows of past segments, one below the other; with all of them it is the
                parent's cache.
        """
        chosen = spread(len(frames.patches), self.options.segment_frames)
        features = self.encode([frames.patches[i] for i in chosen])
        pooled = pool(features, self.options.pool)  # [T, P, D]
        read = self.bridge.read(pooled.flatten(0, 1)[None], memory.to(pooled)[None], frames.number)
        own = Rows(memory, read.memory[0], read.hidden[0])
        past = [] if related is None else [self._cached(r) for r in self._split(related)]
        cache = torch.cat([*(part.to(pooled) for part in past), self._cached(own)])
        recalled = self.bridge.recall(read.memory, cache[None])[0]
        rows = self.pack(Rows(recalled, own.memory, own.hidden))
        return EncodedSegment(rows, recalled.float().cpu())

    def encode(self, frames: Sequence[Tensor]) -> Tensor:
        """Encode frames of one segment, pixels [S, S, 3] each: [T, N, D].

        Frames that lack in the last group are repeated in their places, as the parent does for a
        short video; what the repetitions give is dropped, which it does not.
        """
        group = self.video_tower.config.group or 1
        count = -(-len(frames) // group) * group
        places = np.linspace(0, len(frames) - 1, count).astype(int)
        _, first = np.unique(places, return_index=True)
        return self.video_tower(torch.stack([frames[i] for i in places]))[torch.from_numpy(first)]

    # -- the slow path --

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment from its rows."""
        assert item.tokens is not None
        return self.prompt([self._shown(item.tokens)], instruction or CAPTION_REQUEST)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        if self.options.sees != "all":  # these were trained without words between the tokens
            shown = [i.tokens for i in items if i.tokens is not None and len(i.tokens)]
            shown = shown[-1:] if self.options.sees == "last" else shown
            return self.prompt([self._shown(tokens) for tokens in shown], question)
        frames = self.options.max_visual_tokens // (self.options.pool**2 * max(1, len(items)))
        content: list[str | Tensor] = []
        for item in items:
            content += [f"[{clock(item.start)}-{clock(item.end)}]"]
            if item.tokens is not None:
                content += [self._shown(item.tokens, max(1, frames))]
            content += [item.caption] if item.caption else []
        return self.prompt(content, question)

    def prompt(self, content: Sequence[str | Tensor], request: str) -> list[str | Tensor]:
        """Frame content as the model was trained: tokens first, then the request on a line.

        Each text is tokenised by itself, as the parent does with what stands around a video.
        """
        embed = self.language.model.get_input_embeddings()
        begin = torch.tensor([self.language.tokenizer.bos_token_id], device=embed.weight.device)
        opening = opening_of(PERSON[self.options.prompt])
        return [embed(begin), opening, *content, f"\n{request} ASSISTANT:"]

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield replies in order, None after other steps; see ``protocols.Generator``."""
        return self.language.replies(prompts, decoding, candidates)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece, with beams as one piece."""
        return self.language.pieces(prompt, decoding)

    @torch.inference_mode()
    def see(self, picture: np.ndarray) -> Tensor:
        """Read one still picture into tokens for the language model.

        Returns:
            [P, L], of the picture padded to a square; where memories are shown, [M, L]: the memory
            after it, which has read the picture's own hidden states.
        """
        side, shrink = self.image_tower.config.side, self.options.shrink
        whole = crop(picture, side, shrink) if shrink == "bicubic" else pad(picture, side)
        patches = pool(self.image_tower(torch.from_numpy(whole)[None]), self.options.pool)
        read = self.bridge.read(patches, self.bridge.initial_memory(), None)
        if self.options.sees == "memory":
            cached = self._cached(Rows(read.memory, read.memory, read.hidden))
            return self.bridge.to_language(self.bridge.recall(read.memory, cached)[0])
        return self.bridge.to_language(read.hidden[0])

    # -- rows --

    def pack(self, rows: Rows) -> Tensor:
        """Join what a memory keeps of a segment: ``token_shape``, float32, on the CPU."""
        per_frame, (count, width) = self.options.pool**2, self.token_shape
        frames = rows.hidden.unflatten(0, (-1, per_frame))
        kept = frames[spread(len(frames), self.options.kept_frames)] if self.keeps_hidden else ()
        joined = torch.cat([rows.recalled, rows.memory, *kept]).float().cpu()
        return torch.cat([joined, joined.new_zeros(count - len(joined), width)])

    def _split(self, rows: Tensor) -> Iterator[Rows]:
        """Take rows of segments apart; a segment whose rows were pruned leaves none."""
        memory_tokens = self.bridge.config.memory_tokens
        for one in rows.split(self.token_shape[0]):
            recalled, memory, hidden = one.tensor_split([memory_tokens, 2 * memory_tokens])
            yield Rows(recalled, memory, hidden[hidden.any(dim=1)])

    def _cached(self, rows: Rows) -> Tensor:
        return rows.memory if self.options.cache == "memory" else rows.hidden

    @torch.inference_mode()
    def _shown(self, tokens: Tensor, frames: int | None = None) -> Tensor:
        """Project what the language model sees of a segment: [tokens, L]."""
        weight = self.bridge.projector.read_memory_emb
        rows = next(self._split(tokens))
        if self.options.sees == "memory" or not self.keeps_hidden:
            return self.bridge.to_language(rows.recalled.to(weight))
        each = rows.hidden.reshape(-1, self.options.pool**2, weight.shape[1])  # [T, P, D]
        chosen = each[spread(len(each), frames or len(each))]
        return self.bridge.to_language(chosen.flatten(0, 1).to(weight))


def opening_of(person: str) -> str:
    """Return what stands before the first visual token, but for the beginning-of-sequence."""
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions. "
        "USER: "
    )
