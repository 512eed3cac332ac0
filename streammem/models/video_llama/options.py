"""How a Video-LLaMA checkpoint is run: every fault of the parent that we mend is an option here.

The defaults mend. ``published`` gives the parent as its demo runs.
"""

from dataclasses import dataclass
from typing import Literal, get_type_hints

from streammem.config import check_choices
from streammem.errors import ConfigError

Chat = Literal["llama2", "vicuna"]
Words = Literal["ours", "published"]
Reach = Literal["end", "floor"]


@dataclass(frozen=True, slots=True)
class VideoLlamaOptions:
    """Options of a Video-LLaMA model.

    Attributes:
        chat: how turns are written: ``llama2`` in ``[INST]``, ``vicuna`` after ``###``.
        words: of the system's sentence and of what stands around sound. ``ours`` has no such
            sentence and marks sound briefly; ``published`` takes both from ``parent``.
        parent: folder of the parent's source files, for ``words="published"``; none is run.
        frames: of a segment that are read, in [1, 8]; the parent reads 8 of a whole video.
        cuts: where a video is cut. ``streaming``: by SceneTilling, while it comes, as every source
            can be; ``whole``: nowhere, as the parent. ``SessionConfig.cuts`` overrides it.
        reach: which frames: ``end`` spreads them from the first to the last; with ``floor`` the
            video is divided into parts, each of which gives its first, so the last is never read.
        kept_frames: of those, how many a memory keeps for captions and answers; each takes
            queries x width bytes (25 kB as published).
        answers: ``reread`` puts frames of all segments that the question found through the video
            Q-Former together, as one video; ``apart`` shows each segment's own pass.
        clip_reach: of sound: the last clip ends with it (``end``), or as ``reach``.
        clip_means: the mean that is subtracted of each clip: its ``own``, or ``in_place``, so that
            a clip also loses what was subtracted from those that overlap it.
        sound_scale: length of the vectors that the audio Q-Former reads: ``trained`` is 1, that of
            the pictures it was trained on; ``used`` is 20, by the scale that is stored for sound.
        without_sound: what is reported where sound is missing or fails: a ``notice``, or nothing
            (``silent``).
        channels: of sound that are heard: all, ``mixed`` to one, or the ``first`` alone, as the
            parent; the latter not of live sources.
        max_tokens: embeddings of one prompt; the parent has 2000, of which 300 are for the reply.
        fit: of a prompt that is longer: with ``items`` the weakest evidence is left out until it
            fits; with ``front`` its beginning is cut off, as the parent does it, so that the
            system's sentence and the sound go first. A question is never cut by the former.
        weights: ``whole`` refuses files in which tensors are missing or unknown; ``partial`` takes
            what there is, as the parent: the rest is untrained, and a warning lists it.
        heads: of the picture tower, which no published file gives.
        reader_heads: of the Q-Formers, likewise.
        sound_heads: of the audio trunk, likewise.
        dtype: of both towers; ``auto`` is float32 on a CPU and bfloat16 elsewhere. Q-Formers and
            projections are float32.
    """

    chat: Chat = "llama2"
    words: Words = "ours"
    parent: str = ""
    frames: int = 8
    cuts: Literal["streaming", "whole"] = "streaming"
    reach: Reach = "end"
    kept_frames: int = 8
    answers: Literal["reread", "apart"] = "reread"
    clip_reach: Reach = "end"
    clip_means: Literal["own", "in_place"] = "own"
    sound_scale: Literal["trained", "used"] = "trained"
    without_sound: Literal["notice", "silent"] = "notice"
    channels: Literal["mixed", "first"] = "mixed"
    max_tokens: int = 1700
    fit: Literal["items", "front"] = "items"
    weights: Literal["whole", "partial"] = "whole"
    heads: int = 16
    reader_heads: int = 12
    sound_heads: int = 12
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        for name, hint in get_type_hints(type(self)).items():
            if hint is int and getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number >= 1")
        if self.kept_frames > self.frames or self.frames > 8:
            raise ConfigError("kept_frames is at most frames, which is at most 8")
        if self.words == "published" and not self.parent:
            raise ConfigError(
                "words=published: give parent, the folder of Video-LLaMA's source files"
            )


def published(parent: str, chat: Chat = "llama2") -> VideoLlamaOptions:
    """Return the options of the parent's demo; ``parent`` is the folder of its source files.

    Files that are not whole are refused all the same: nothing can be compared with them.
    """
    return VideoLlamaOptions(
        chat=chat, words="published", parent=parent, cuts="whole", reach="floor",
        clip_reach="floor", clip_means="in_place", sound_scale="used", without_sound="silent",
        channels="first", fit="front",
    )  # fmt: skip
