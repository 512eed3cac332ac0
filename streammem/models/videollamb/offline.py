"""A whole video at once, cut after all of it was seen: what VideoLLaMB's own code does.

    chosen = choose(model, len(frames))
    reading = read(model, frames[chosen])

``engine/whole_video.py`` makes a session of it for sources that end; a plain session takes scenes
in one by one. No files and no memory here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from streammem.models.videollamb.bridge import pool
from streammem.models.videollamb.videollamb import Rows, VideoLLaMB
from streammem.perception.frames import spread
from streammem.perception.scenetilling import SceneTilling, tile

GROUP = 8  # frames that the parent's videos are a multiple of
TOP = 3
BATCH = 64  # frames that a tower reads at a time; groups of frames do not see each other
FEW = 3  # frames of which the variant for needles reads each by itself


class Reading(NamedTuple):
    """What was made of a video.

    Attributes:
        starts: number of each segment's first frame; the first is 0.
        shown: of each segment, [tokens, L] its frames as the language model takes them.
        recalled: [segments, M, D] the memory after each, which has read the cache.
        rows: of each segment, as a memory keeps it, not rounded.
    """

    starts: list[int]
    shown: list[Tensor]
    recalled: Tensor
    rows: list[Tensor]


def choose(model: VideoLLaMB, count: int) -> list[int]:
    """Choose the frames of a video that are read, at most ``frames``, evenly; some may repeat.

    Where the tower reads groups of the whole stream they are a multiple of eight, by ``to_groups``.
    One frame is a still picture.
    """
    most = min(count, model.options.frames)
    if count > 1 and _reads_stream(model) and model.video_tower.config.group:
        return np.linspace(0, count - 1, len(to_groups(most))).astype(int).tolist()
    return np.linspace(0, count - 1, most).astype(int).tolist()


def to_groups(count: int) -> list[int]:
    """Choose as many of ``count`` frames as make up groups of eight, evenly; some may repeat.

    Fewer than eight become eight; beyond, what is over is left out.
    """
    return np.linspace(0, count - 1, max(GROUP, count // GROUP * GROUP)).astype(int).tolist()


class Segments(NamedTuple):
    """A video that is encoded and cut.

    Attributes:
        starts: number of each segment's first frame; the first is 0.
        pooled: of each, [S, D] the pooled patches of its frames.
        alone: whether each is read by itself, without position or past.
    """

    starts: list[int]
    pooled: list[Tensor]
    alone: bool


@torch.inference_mode()
def segments_of(model: VideoLLaMB, frames: Tensor, starts: Sequence[int] | None = None) -> Segments:
    """Encode and cut a video, by the model's options.

    Args:
        model: with ``groups="stream"`` and ``cuts="top3"`` it does what its parent does.
        frames: [T, S, S, 3] levels of 255; for ``groups="stream"`` and a tower of groups T is a
            multiple of eight, or 1: a still picture, which goes through the image tower.
        starts: where segments begin, ascending from 0; None lets ``cuts`` decide.
    """
    # 1. Features of all frames, unless each segment is encoded by itself.
    features = None
    still = len(frames) == 1
    if still or _reads_stream(model):
        tower = model.image_tower if still else model.video_tower
        features = torch.cat([tower(part) for part in frames.split(BATCH)])
    # 2. Where segments begin.
    alone = model.bridge.config.positions > 0 and len(frames) <= FEW
    if starts is None and (alone or still):
        starts = range(len(frames))
    elif starts is None:
        seen = features
        if seen is None:
            parts = (model.image_tower(part)[:, :1] for part in frames.split(BATCH))
            seen = torch.cat([part.clone() for part in parts])  # frees the patches
        starts = starts_of(model, seen[:, 0].float().cpu().numpy())
    # 3. Of each at most eight frames.
    each = []
    for start, end in zip(starts, [*starts[1:], len(frames)], strict=True):
        count = min(model.options.segment_frames, end - start)
        # Truncated as the parent does it, not rounded.
        chosen = torch.linspace(start, end - 1, count, dtype=torch.int).tolist()
        own = features[chosen] if features is not None else model.encode(list(frames[chosen]))
        each.append(pool(own, model.options.pool).flatten(0, 1))
    return Segments(list(starts), each, alone)


@torch.inference_mode()
def read(model: VideoLLaMB, frames: Tensor, starts: Sequence[int] | None = None) -> Reading:
    """Encode, cut and bridge a video; the arguments are those of ``segments_of``."""
    video = segments_of(model, frames, starts)
    memory, cache = model.bridge.initial_memory(), list[Tensor]()
    shown, recalled, rows = [], [], []
    for number, pooled in enumerate(video.pooled):
        if video.alone:
            memory, cache = model.bridge.initial_memory(), []
        segment = model.bridge.read(pooled[None], memory, None if video.alone else number)
        cache.append(segment.memory if model.options.cache == "memory" else segment.hidden)
        memory = segment.memory
        if video.alone or len(frames) > 1:  # the parent's still pictures recall nothing
            memory = model.bridge.recall(segment.memory, torch.cat(cache, dim=1))
        shown.append(model.bridge.to_language(segment.hidden[0]))
        recalled.append(memory[0])
        rows.append(model.pack(Rows(memory[0], segment.memory[0], segment.hidden[0])))
    return Reading(video.starts, shown, torch.stack(recalled), rows)


def starts_of(model: VideoLLaMB, embeddings: np.ndarray) -> list[int]:
    """Cut a video by its frames' embeddings [T, D]; return where segments begin."""
    options = model.options
    if options.cuts == "streaming":
        tilling = SceneTilling(model.scenes)
        boundaries = tilling.push(embeddings).boundaries + tilling.flush().boundaries
        return [0, *(boundary.index for boundary in boundaries)]
    top, most = TOP if options.cuts == "top3" else None, options.max_segments
    return [0, *tile(embeddings, alpha=0.5, num_boundaries=top, max_segments=most)]


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


def _reads_stream(model: VideoLLaMB) -> bool:
    return model.options.groups == "stream"
