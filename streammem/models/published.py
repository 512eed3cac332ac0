"""What published models have alike behind our sessions, and how a name finds one.

    said = find("video-llama-7b", CONFIGS)                # its TOML file, of any family
    model = open_published("video-llama-7b", said, keys)  # a PublishedModel

A family is a folder beside this file, named in ``FAMILIES``. Its ``published.py`` has ``FILE``,
what a TOML file of the family says, and ``open_model``; its training is a module of ``training/``
of the folder's name, which has ``STAGE``.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from streammem.config import override, read_toml
from streammem.errors import BackboneError, ConfigError
from streammem.models.backbones.language import (
    CausalLanguageModel,
    GenerationConfig,
    Prompt,
    Replies,
)
from streammem.models.caption_scores import ConfidenceModel
from streammem.models.once import once
from streammem.models.protocols import EncodedSegment, EvidenceItem, Reads
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import Perceived, SegmentFrames
from streammem.perception.scenetilling import SceneTillingConfig

FAMILIES = ("videollamb", "minigpt4-video", "video-llama")  # the first is meant by a file of none
FRESH = "fresh"  # in place of a checkpoint: untrained, to be trained
CAPTION_REQUEST = "Describe what happens in this video in one sentence."
DECODING = GenerationConfig(max_new_tokens=64)


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """Options of a session that a model needs otherwise than sessions have them; None leaves them.

    Attributes:
        retrieved, passages, now_frames, epsilon, still: see ``SessionConfig``.
        context, instruction: likewise.
    """

    retrieved: int | None = None
    passages: int | None = None
    now_frames: int | None = None
    epsilon: float | None = None
    still: float | None = None
    context: str | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """What a TOML file of a model says in any family.

    Paths are relative to where the program runs; ``hf:OWNER/NAME/FILE`` is a file of the local hub
    cache.

    Attributes:
        family: tells it from files of other families.
        keys: preset or folder of the model that lends its key space.
        about: one line for people.
        options: how the model is run.
        session: what sessions of it do otherwise unless they are told.
    """

    NEEDED: ClassVar[tuple[tuple[str, str], ...]]  # fields that it must have, and what each is

    family: str = ""
    keys: str = "streammem-tiny"
    about: str = ""
    options: Any = None
    session: SessionDefaults = field(default_factory=SessionDefaults)

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """Return what a bare folder of weights means; None where it is none of this family."""
        return None


def find(name: str | Path, presets: Path) -> Any:
    """Find the published model that a name means: a preset, a TOML file, or a folder of weights.

    Args:
        name: as ``--model`` takes it.
        presets: folder of the TOML files that come with streammem.

    Returns:
        The ``PublishedFile`` of its family; None for a model of another kind.

    Raises:
        ConfigError: a TOML file that cannot be meant.
    """
    path = Path(name)
    file = path if path.suffix == ".toml" else presets / f"{name}.toml"
    if not file.is_file():
        found = (_module(family).FILE.of_folder(path) for family in FAMILIES)
        return next((said for said in found if said), None)
    tables = read_toml(file)
    family = tables.get("family", FAMILIES[0])
    if family not in FAMILIES:
        raise ConfigError(f"{file}: family {family!r}: give one of {', '.join(FAMILIES)}")
    kind = _module(family).FILE
    said = override(kind(family=family), tables, f"{file}: ")
    if not all(getattr(said, needed) for needed, _ in kind.NEEDED):
        wanted = " and ".join(f"{needed}, {what}" for needed, what in kind.NEEDED)
        raise ConfigError(f"{file}: name {wanted}")
    return said


def open_published(
    name: str, said: PublishedFile, keys: VideoModel, *, device: str = "cpu"
) -> "PublishedModel":
    """Open a model; its language model follows when first needed.

    Args:
        name: of the model, for messages and memories.
        said: where its weights are, and how it is run.
        keys: lends its key space, and what scenes are cut by.
        device: where all of it runs.

    Raises:
        ConfigError: options that cannot be met here.
        CheckpointError: a file is corrupt, or tensors are missing, unknown or of another shape.
        BackboneError: a package or a file is not here.
    """
    opened: PublishedModel = _module(said.family).open_model(name, said, keys, device=device)
    return opened


def known_cuts() -> tuple[str, ...]:
    """Return where models of any family can cut a video, as ``SessionConfig.cuts`` says it."""
    return tuple(dict.fromkeys(c for family in FAMILIES for c in cuts_of(_module(family).FILE())))


def cuts_of(said: Any) -> tuple[str, ...]:
    """Return where a model can cut a video: the choices of ``cuts`` of its options."""
    return get_args(get_type_hints(type(said.options))["cuts"])


def _module(family: str) -> ModuleType:
    return import_module(f"streammem.models.{family.replace('-', '_')}.published")


def local_file(name: str, advice: str = "") -> Path:
    """Find a file that a ``PublishedFile`` names.

    Args:
        name: a path, or ``hf:OWNER/NAME/FILE`` of the local hub cache.
        advice: how a file that is missing is got.

    Raises:
        BackboneError: it is not there.
    """
    if not name.startswith("hf:"):
        if Path(name).is_file():
            return Path(name)
        raise BackboneError(f"{name}: no such file; {advice or 'get it, or name another'}")
    from huggingface_hub import try_to_load_from_cache

    owner, repository, file = (*name.removeprefix("hf:").split("/", 2), "", "")[:3]
    found = try_to_load_from_cache(f"{owner}/{repository}", file) if file else None
    if not isinstance(found, str):
        raise BackboneError(f"{name}: is not here; run: hf download {owner}/{repository} {file}")
    return Path(found)


def dtype_of(stated: str, device: str) -> torch.dtype:
    """Return the dtype of weights; ``auto`` is float32 on a CPU and bfloat16 elsewhere."""
    if stated != "auto":
        found: torch.dtype = getattr(torch, stated)
        return found
    return torch.float32 if device == "cpu" else torch.bfloat16


@dataclass(frozen=True, eq=False, kw_only=True)
class PublishedModel(ABC):
    """A published model, in evaluation mode: a ``StreamModel`` whose parts are its own.

    Attributes:
        name: the preset, file or folder it was loaded from.
        options: how it is run; ``cuts`` of them is where videos are cut.
        keys: lends its key space and, unless a family says otherwise, what scenes are cut by.
        open_language: opens the language model; called at most once, when first needed.
        decoding: how captions are decoded unless a session says otherwise.
        session: what its sessions do otherwise than those of other models.
    """

    # How a video that is not cut while it comes is read, see ``engine/whole_video.py``.
    whole: ClassVar[Literal["segments", "clips", "one"]]

    name: str
    options: Any
    keys: VideoModel
    open_language: Callable[[], CausalLanguageModel]
    decoding: GenerationConfig = DECODING
    session: SessionDefaults = SessionDefaults()

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
    def cuts(self) -> tuple[str, ...]:
        """Where it can cut a video, as ``options.cuts`` says it."""
        return cuts_of(self)

    @property
    def language(self) -> CausalLanguageModel:
        """The language model, opened when first used."""
        return self.open_language()

    @property
    def session_options(self) -> dict[str, Any]:
        """Options of ``SessionConfig`` that it has otherwise."""
        return {name: value for name, value in asdict(self.session).items() if value is not None}

    @property
    def reranker(self) -> None:
        """None: the likeliest caption is taken."""
        return None

    @property
    def confidence_model(self) -> ConfidenceModel | None:
        """None: that of ``keys`` was fitted to words of another model."""
        return None

    @property
    def reads(self) -> Reads:
        """Tokens of its own; no pictures."""
        return Reads(tokens=True)

    @property
    def batches(self) -> bool:
        """Whether captions share the steps of the language model: on a GPU.

        On a CPU, of so many tokens a scene, a batch would save little and hold gigabytes.
        """
        return self.language.is_on_gpu

    @property
    def reads_related(self) -> bool:
        """False: a segment is read by itself."""
        return False

    def initial_memory(self) -> Tensor:
        """Return [0, 0]: nothing is carried from segment to segment."""
        return torch.zeros(0, 0)

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the weights and options that decide what a stored memory means."""
        stated, weights = self.identity()
        digest = hashlib.sha256(f"{self.keys.fingerprint} {stated}".encode())
        for name, value in weights:
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @abstractmethod
    def identity(self) -> tuple[str, Iterable[tuple[str, Tensor]]]:
        """Return options and weights, by name, that decide what a stored memory means."""

    @property
    @abstractmethod
    def token_shape(self) -> tuple[int, int]:
        """Rows and width of what a memory keeps of a segment."""

    # -- the frame-rate path --

    def perceive(self, picture: np.ndarray) -> Perceived:
        """See one frame, [H, W, 3] uint8 RGB; its patches are pixels.

        ``encode_segment`` encodes them: most frames of a scene never pass the tower.
        """
        return self.perceive_many([picture])[0]

    @property
    def most_together(self) -> int:
        """As the model that lends its keys."""
        return self.keys.most_together

    def perceive_many(self, pictures: Sequence[np.ndarray]) -> list[Perceived]:
        """See frames of any streams together; see ``BatchPerceiver``."""
        return [
            seen._replace(patches=self.pixels(picture))
            for seen, picture in zip(self.keys.perceive_many(pictures), pictures, strict=True)
        ]

    @abstractmethod
    def pixels(self, picture: np.ndarray) -> Tensor:
        """Bring a picture [H, W, 3] uint8 RGB to the tower's square, [S, S, 3]."""

    @abstractmethod
    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Read the frames of a segment; see ``protocols.SegmentEncoder``."""

    # -- the slow path --

    @abstractmethod
    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment."""

    @abstractmethod
    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""

    @property
    def begins(self) -> int:
        """Beginnings of sequence before a prompt."""
        return 1

    def begin(self) -> Tensor:
        """Embed what a prompt begins with, [begins, L]."""
        return self.language.vectors([self.language.tokenizer.bos_token_id] * self.begins)

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield replies in order, None after other steps; see ``protocols.Generator``."""
        return self.language.replies(prompts, decoding, candidates)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece, with beams as one piece."""
        return self.language.pieces(prompt, decoding)
