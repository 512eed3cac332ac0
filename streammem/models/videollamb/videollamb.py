"""VideoLLaMB behind our sessions: weights only, no stream state.

Its towers, bridge and language model are its own. What it has none of, a key space in which a
question finds a picture, is lent by one of our models; SceneTilling is ours. Where its weights
come from is ``published.py``'s business, and reading a whole video at once ``offline.py``'s.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streammem.models.backbones.language import Prompt
from streammem.models.backbones.languagebind import Tower, crop, pad
from streammem.models.protocols import EncodedSegment, EvidenceItem
from streammem.models.published import CAPTION_REQUEST, PublishedModel
from streammem.models.videollamb.bridge import ParentBridge, pool
from streammem.models.videollamb.options import ParentOptions
from streammem.perception.frames import Perceived, SegmentFrames, spread
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import clock

# Legend: T frames, S side in pixels, P = pool^2 tokens a frame, M memory tokens, D width.

PERSON = {"vicuna_v1": "user", "llava_v1": "human"}


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


# The parent's scene threshold, for embeddings whose base was not measured: no floor.
TOWER_SCENES = SceneTillingConfig(alpha=0.5, floor=0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoLLaMB(PublishedModel):
    """A VideoLLaMB checkpoint; its scenes are cut by ``options.scene_features``.

    Attributes:
        image_tower: of still pictures, and of scenes.
        video_tower: of a segment's frames.
        bridge: its own.
    """

    whole = "segments"

    options: ParentOptions
    image_tower: Tower
    video_tower: Tower
    bridge: ParentBridge

    @property
    def scenes(self) -> SceneTillingConfig:
        """Those fitted to what scenes are cut by."""
        return self.keys.scenes if self.options.scene_features == "keys" else TOWER_SCENES

    def identity(self) -> tuple[str, Iterable[tuple[str, Tensor]]]:
        """Return all options, and the bridge's weights."""
        return str(self.options), sorted(self.bridge.state_dict().items())

    @property
    def token_shape(self) -> tuple[int, int]:
        """Rows and width of what a memory keeps of a segment, see ``Rows``."""
        sizes = self.bridge.config
        frames = self.options.kept_frames if self.keeps_hidden else 0
        return 2 * sizes.memory_tokens + frames * self.options.pool**2, sizes.width

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
    def perceive_many(self, pictures: Sequence[np.ndarray]) -> list[Perceived]:
        """See frames; see ``PublishedModel``."""
        seen = super().perceive_many(pictures)
        if self.options.scene_features == "keys":
            return seen
        shown = torch.stack([each.patches for each in seen])
        embeddings = self.image_tower(shown)[:, 0].float().cpu().numpy()
        return [
            each._replace(embedding=embedding)
            for each, embedding in zip(seen, embeddings, strict=True)
        ]

    def pixels(self, picture: np.ndarray) -> Tensor:
        """Crop a picture as ``options.shrink`` says."""
        return torch.from_numpy(crop(picture, self.side, self.options.shrink))

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
        opening = opening_of(PERSON[self.options.prompt])
        return [self.begin(), opening, *content, f"\n{request} ASSISTANT:"]

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
