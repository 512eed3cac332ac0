"""How a MiniGPT4-Video checkpoint is run: every fault of the parent that we mend is an option here.

The defaults mend. ``PUBLISHED`` is the parent's own inference, ``GOLDFISH`` what Goldfish makes of
each clip of a long video. Both refuse files that are not whole: nothing can be compared with them.
"""

from dataclasses import dataclass
from typing import Literal

from streammem.config import check_choices
from streammem.errors import ConfigError
from streammem.models.backbones.transformers_files import Quantize

FilmCuts = Literal["streaming", "whole", "clips"]
Subtitles = Literal["each", "plain", "goldfish"]
FrameChoice = Literal["even", "floor"]
SubtitleStyle = Literal["trained", "plain"]
Fit = Literal["frames", "front"]
Lora = Literal["merged", "attached"]
LIMITS = {"llama": (45, 400, 3700), "mistral": (90, 800, 7500)}
"""Frames, words of subtitles and embeddings of a prompt, by the kind of language model."""


@dataclass(frozen=True, slots=True)
class MiniGPT4Options:
    """Options of a MiniGPT4-Video model.

    Attributes:
        frames: of one prompt, at most; 0 takes 45 with a Llama, 90 with a Mistral. The parent
            decides by the letters "mistral" in the checkpoint's path.
        words: of subtitles in one prompt; 0 takes 400 or 800, likewise.
        max_tokens: embeddings of one prompt; 0 takes 3700 or 7500, likewise.
        cuts: where a video is cut. ``streaming``: by SceneTilling, while it comes, as every source
            can be. ``whole``: nowhere, as the parent; ``clips``: every ``clip_s`` seconds, as
            Goldfish. ``SessionConfig.cuts`` overrides it.
        clip_s: seconds of a clip.
        kept_frames: of a scene that was cut while it came, how many are encoded and kept; each
            takes 64 x 4096 numbers (262 kB on disk). Lowering it makes memories smaller and
            captions coarser. Of whole videos and clips ``frames`` are.
        sampling: which frames of a whole video or clip are read. ``even``: evenly from the first
            to the last; ``floor``: every int(count / frames)-th until there are enough, so that
            up to half of the video is never seen.
        subtitles: beside which frame a subtitle stands. ``each``: every one, in order, beside the
            first frame at or after its beginning, the last ones beside the last frame; where they
            have more than ``words``, the longest are shortened, wherever they stand. ``plain``:
            of subtitles that overlap one is found, equal texts count once, what begins after the
            last frame is lost, and after ``words`` all are left out. ``goldfish``: its other rules,
            which also repeat the last frame until there are ``frames``; see ``interleaving.py``.
            The last two are of whole videos and clips, and need ``sampling="floor"``.
        prompt: ``trained``: as in training, one beginning-of-sequence and no space before the end
            of the request; ``plain``: as the parent's inference, which reads ``<s>`` twice.
        fit: of a prompt that is longer than ``max_tokens``: ``frames``: as many frames as fit,
            evenly; ``front``: the beginning is cut off, as the parent does it, so that the frame
            of the request and the earliest pictures go first.
        typed: how a special token that is spelled out in a question or a subtitle is read: as
            ``text``, letter by letter, or as the ``token``, as the parent reads it: ``</s>`` ends
            the prompt.
        weights: ``whole`` refuses files in which tensors are missing or unknown; ``partial`` takes
            what there is, as the parent: the rest is untrained, and a warning lists it.
        lora: ``merged`` into the base, which then costs nothing; ``attached`` beside it, which is
            slower, and all that 8-bit weights allow.
        lora_alpha: the adapter's product is scaled by alpha / its rank; no file tells it.
        lora_rank: of a fresh adapter, for training; that of a checkpoint is its own.
        quantize: of the language model, through bitsandbytes; on CUDA or the CPU. The parent's
            inference always takes ``8bit``.
        heads: of the tower, which no file tells.
    """

    frames: int = 0
    words: int = 0
    max_tokens: int = 0
    cuts: FilmCuts = "streaming"
    clip_s: float = 80.0
    kept_frames: int = 8
    sampling: FrameChoice = "even"
    subtitles: Subtitles = "each"
    prompt: SubtitleStyle = "trained"
    fit: Fit = "frames"
    typed: Literal["text", "token"] = "text"
    weights: Literal["whole", "partial"] = "whole"
    lora: Lora = "merged"
    lora_alpha: float = 16.0
    lora_rank: int = 64
    quantize: Quantize = "none"
    heads: int = 16

    def __post_init__(self) -> None:
        check_choices(self)
        if min(self.frames, self.words, self.max_tokens) < 0:
            raise ConfigError("frames, words and max_tokens must be >= 0; 0 takes the parent's")
        if min(self.kept_frames, self.heads, self.lora_rank) < 1:
            raise ConfigError("kept_frames, heads and lora_rank must be >= 1")
        if not (0 < self.clip_s < float("inf") and 0 < self.lora_alpha < float("inf")):
            raise ConfigError("clip_s and lora_alpha must be numbers > 0")
        if self.subtitles != "each" and self.sampling != "floor":
            raise ConfigError(f"subtitles={self.subtitles}: give sampling=floor")
        if self.quantize != "none" and self.lora == "merged":
            raise ConfigError(f"quantize={self.quantize}: give lora=attached; nothing can be added")

    def limits(self, kind: str) -> tuple[int, int, int]:
        """Return frames, words and embeddings of a prompt, for a kind of language model."""
        own = LIMITS.get(kind, LIMITS["llama"])
        given = (self.frames, self.words, self.max_tokens)
        frames, words, tokens = (said or default for said, default in zip(given, own, strict=True))
        return frames, words, tokens


PUBLISHED = MiniGPT4Options(
    cuts="whole", sampling="floor", subtitles="plain", prompt="plain", fit="front", typed="token"
)
GOLDFISH = MiniGPT4Options(
    cuts="clips", sampling="floor", subtitles="goldfish", prompt="plain",
    fit="front", typed="token",
)  # fmt: skip
