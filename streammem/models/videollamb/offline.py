"""VideoLLaMB's own way: a whole video at once, from nothing, for every question.

It is here to check the model against its parent, and to measure what streaming saves. A session
does not come by; it takes scenes in one by one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streammem.models.protocols import spread
from streammem.models.videollamb.bridge import pool
from streammem.models.videollamb.videollamb import VideoLLaMB
from streammem.perception.scenetilling import SceneTilling, tile

GROUP = 8  # frames that the parent's videos are a multiple of
TOP = 3


class Reading(NamedTuple):
    """What was made of a video.

    Attributes:
        starts: number of each segment's first frame; the first is 0.
        shown: of each segment, [tokens, L] its frames as the language model takes them.
        recalled: [segments, M, D] the memory after each, which has read the cache.
    """

    starts: list[int]
    shown: list[Tensor]
    recalled: Tensor


def to_groups(count: int) -> list[int]:
    """Choose as many of ``count`` frames as make up groups of eight, evenly; some may repeat.

    Fewer than eight become eight; beyond, what is over is left out.
    """
    return np.linspace(0, count - 1, max(GROUP, count // GROUP * GROUP)).astype(int).tolist()


@torch.inference_mode()
def read(model: VideoLLaMB, frames: Tensor, starts: Sequence[int] | None = None) -> Reading:
    """Encode, cut and bridge a video, by the model's options.

    Args:
        model: with ``groups="stream"`` and ``cuts="top3"`` it does what its parent does.
        frames: [T, S, S, 3] uint8; T is a multiple of eight for ``groups="stream"``.
        starts: where segments begin, ascending from 0; None lets ``cuts`` decide.
    """
    whole = model.options.groups == "stream"
    features = model.video_tower(frames) if whole else None
    if starts is None:
        seen = features if features is not None else model.image_tower(frames)
        starts = starts_of(model, seen[:, 0].float().cpu().numpy())
    memory, cache = model.bridge.initial_memory(), []
    shown, recalled = [], []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(frames)], strict=True)):
        count = min(model.options.segment_frames, end - start)
        # Truncated as the parent does it, not rounded.
        chosen = torch.linspace(start, end - 1, count, dtype=torch.int).tolist()
        own = features[chosen] if features is not None else model.encode(list(frames[chosen]))
        pooled = pool(own, model.options.pool)
        segment = model.bridge.read(pooled.flatten(0, 1)[None], memory, number)
        cache.append(segment.memory if model.options.cache == "memory" else segment.hidden)
        memory = model.bridge.recall(segment.memory, torch.cat(cache, dim=1))
        shown.append(model.bridge.to_language(segment.hidden[0]))
        recalled.append(memory[0])
    return Reading(list(starts), shown, torch.stack(recalled))


def starts_of(model: VideoLLaMB, embeddings: np.ndarray) -> list[int]:
    """Cut a video by its frames' embeddings [T, D]; return where segments begin."""
    if model.options.cuts == "streaming":
        tilling = SceneTilling(model.scenes)
        boundaries = tilling.push(embeddings).boundaries + tilling.flush().boundaries
        return [0, *(boundary.index for boundary in boundaries)]
    top = TOP if model.options.cuts == "top3" else None
    return [0, *tile(embeddings, alpha=0.5, num_boundaries=top)]


def content(model: VideoLLaMB, reading: Reading) -> list[str | Tensor]:
    """Choose what the language model sees of a video, by ``sees``."""
    if model.options.sees == "memory":
        return [model.bridge.to_language(reading.recalled.flatten(0, 1))]
    if model.options.sees == "last":
        return [reading.shown[-1]]
    per_frame = model.options.pool**2
    frames = max(1, model.options.max_visual_tokens // (per_frame * len(reading.shown)))
    each = [tokens.unflatten(0, (-1, per_frame)) for tokens in reading.shown]
    return [tokens[spread(len(tokens), frames)].flatten(0, 1) for tokens in each]
