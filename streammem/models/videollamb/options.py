"""How a VideoLLaMB checkpoint is run: every fault of the parent that we mend is an option here.

The defaults mend. ``PUBLISHED`` is the parent as its code runs, but for the random mirroring of
its pictures, which are of no use.
"""

from dataclasses import dataclass
from typing import Literal, get_type_hints

from streammem.config import check_choices
from streammem.errors import ConfigError
from streammem.models.backbones.languagebind import Activation, Shrink
from streammem.models.backbones.transformers_files import Quantize

Cache = Literal["memory", "hidden"]
Sees = Literal["all", "last", "memory"]
PromptStyle = Literal["vicuna_v1", "llava_v1"]
Cuts = Literal["streaming", "threshold", "top3"]
Groups = Literal["segment", "stream"]
SceneFeatures = Literal["keys", "tower"]


@dataclass(frozen=True, slots=True)
class ParentOptions:
    """Options of a VideoLLaMB model.

    Attributes:
        pool: side of the grid that a frame's patches are averaged over; 12 in the published
            model, 14 in its variant for needles.
        segment_frames: frames of a segment that the bridge reads, at most; >= 1.
        kept_frames: of those, how many a memory keeps for the language model; each takes
            2 x pool^2 x width bytes (295 kB in the published model). Lowering it makes
            memories smaller and captions coarser.
        cache: what retrieval reads of past segments: their ``memory`` tokens (the published code)
            or the ``hidden`` states of their frames (the code when the weights were published).
        sees: what the language model is shown for an answer: the frames of ``all`` segments that
            the question found and of now; of the ``last`` segment only, as the published model;
            or the ``memory`` tokens of all, as its variant for needles.
        max_visual_tokens: of one prompt; beyond it each segment shows fewer frames.
        prompt: ``vicuna_v1`` is what the model was trained with; ``llava_v1``, of which the parent
            makes use, says "human" for "user".
        cuts: where a video is cut. ``streaming``: by SceneTilling, while it comes, as every
            source can be. The others need the whole video, so captions come after its end, and a
            source that does not end is refused: by a ``threshold`` over all its gaps, or always
            at the ``top3`` gaps, into four segments. ``SessionConfig.cuts`` overrides it.
        frames: of a whole video that is read at once, at most, evenly; the published model was
            trained with 16. More find short scenes and cost time and memory.
        max_segments: of a video that is cut by a ``threshold``; the shallowest cuts go.
        groups: which frames attend to each other in the video tower: those of a ``segment``, or
            eight in a row of the whole ``stream``, across scenes; the latter only where ``cuts``
            is not ``streaming``.
        scene_features: what a stream is cut by: the embeddings of the model that lends its
            ``keys``, for which SceneTilling was fitted, or those of the image ``tower``.
        shrink: of frames, see ``languagebind.crop``; with ``bicubic``, CLIP's own way, still
            pictures are cropped too and not padded.
        activation: of the towers' MLPs, which no published file tells.
        heads: of the towers, likewise.
        dtype: of all weights; ``auto`` is float32 on a CPU and bfloat16 elsewhere.
        quantize: of the language model, through bitsandbytes; on CUDA or the CPU.
        device_map: ``auto`` spreads the language model over all GPUs; ``single`` does not.
    """

    pool: int = 12
    segment_frames: int = 8
    kept_frames: int = 8
    cache: Cache = "memory"
    sees: Sees = "all"
    max_visual_tokens: int = 1440
    prompt: PromptStyle = "vicuna_v1"
    cuts: Cuts = "streaming"
    frames: int = 512
    max_segments: int = 16
    groups: Groups = "segment"
    scene_features: SceneFeatures = "keys"
    shrink: Shrink = "antialias"
    activation: Activation = "gelu"
    heads: int = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Quantize = "none"
    device_map: Literal["single", "auto"] = "single"

    def __post_init__(self) -> None:
        check_choices(self)
        for name, hint in get_type_hints(type(self)).items():
            if hint is int and getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number >= 1")
        if self.kept_frames > self.segment_frames:
            raise ConfigError(f"kept_frames={self.kept_frames}: at most segment_frames")


PUBLISHED = ParentOptions(
    sees="last", prompt="llava_v1", cuts="top3", frames=16, groups="stream",
    scene_features="tower", shrink="plain",
)  # fmt: skip
