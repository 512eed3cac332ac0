"""The model: encoder, bridge, key heads and language model; weights only, no stream state."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from streammem.memory.retrieval import DEFAULT_NULL, GumbelNull
from streammem.models.backbones.language import CausalLanguageModel, GenerationConfig, Replies
from streammem.models.backbones.text import SentenceEncoder
from streammem.models.backbones.vision import VisionEncoder
from streammem.models.confidence import Certainty
from streammem.models.prompts import CAPTION_INSTRUCTION
from streammem.models.reranking import Choice, merits
from streammem.models.tiny import recurrent
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.models.tiny.questions import QuestionHead, Reading
from streammem.perception.perceiver import Perceived
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import clock

CAPTION_DECODING = GenerationConfig(max_new_tokens=32)
ANSWER_DECODING = GenerationConfig(max_new_tokens=64)


class Scene(NamedTuple):
    """The frames of a closing segment, as a model takes them in.

    Attributes:
        number: of the segment in its stream, from 0.
        patches: of each frame, as ``perceive`` gave them.
        places: of each frame, in [0, 1] between the first and the last.
    """

    number: int
    patches: Sequence[Tensor]
    places: Sequence[float]


class TakenIn(NamedTuple):
    """What a segment leaves behind.

    Attributes:
        tokens: of the model's ``token_shape``; for the cache, captions and answers.
        memory: the recurrent memory after it, shaped as ``initial_memory``.
    """

    tokens: Tensor
    memory: Tensor


class Passage(NamedTuple):
    """A stretch of the past as it is shown to the language model.

    Attributes:
        start: seconds.
        end: seconds.
        tokens: [M, D] the bridge's tokens of it.
        caption: what was said of it, if anything.
    """

    start: float
    end: float
    tokens: Tensor
    caption: str | None


class StreamModel(Protocol):
    """What a session needs of a model; ``VideoModel`` says what each member means."""

    @property
    def name(self) -> str: ...
    @property
    def scenes(self) -> SceneTillingConfig: ...
    @property
    def decoding(self) -> GenerationConfig: ...
    @property
    def background(self) -> Tensor: ...
    @property
    def certainty(self) -> Certainty | None: ...
    @property
    def choice(self) -> Choice | None: ...
    @property
    def chance(self) -> GumbelNull: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def token_shape(self) -> tuple[int, int]: ...
    @property
    def reads_related(self) -> bool: ...
    @property
    def speaks_together(self) -> bool: ...
    def initial_memory(self) -> Tensor: ...
    def perceive(self, picture: np.ndarray) -> Perceived: ...
    def take_in(self, scene: Scene, memory: Tensor, related: Tensor | None) -> TakenIn: ...
    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray: ...
    def read_question(self, question: str) -> Reading: ...
    def caption_prompt(
        self, tokens: Tensor, instruction: str | None = None
    ) -> list[str | Tensor]: ...
    def answer_prompt(self, passages: Sequence[Passage], question: str) -> list[str | Tensor]: ...
    def captions(
        self,
        tokens: Sequence[Tensor],
        decoding: GenerationConfig | None = None,
        instruction: str | None = None,
        candidates: int = 1,
    ) -> list[Replies]: ...
    def captions_stepwise(
        self,
        tokens: Sequence[Tensor],
        decoding: GenerationConfig | None = None,
        instruction: str | None = None,
        candidates: int = 1,
    ) -> Iterator[Replies | None]: ...
    def stream(self, prompt: list[str | Tensor], decoding: GenerationConfig) -> Iterator[str]: ...


class Speaker(Protocol):
    """What ``describe`` and ``reply`` need of a model: its words, and how it asks for them."""

    @property
    def language(self) -> CausalLanguageModel: ...
    @property
    def decoding(self) -> GenerationConfig: ...
    def caption_prompt(
        self, tokens: Tensor, instruction: str | None = None
    ) -> list[str | Tensor]: ...


class Chooser(Protocol):
    """What ``chosen`` needs of a model."""

    @property
    def choice(self) -> Choice | None: ...
    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray: ...


def describe(
    model: Speaker,
    tokens: Sequence[Tensor],
    decoding: GenerationConfig | None = None,
    instruction: str | None = None,
    candidates: int = 1,
) -> list[Replies]:
    """Describe segments in one batch, each from its own tokens; every model's ``captions``.

    Args:
        model: what speaks.
        tokens: of each segment.
        decoding: None takes the model's.
        instruction: what a description is asked by; None takes what the model was trained with.
        candidates: descriptions a segment; see ``CausalLanguageModel.candidates``.
    """
    prompts = [model.caption_prompt(each, instruction) for each in tokens]
    return model.language.candidates(prompts, decoding or model.decoding, candidates)


def describe_stepwise(
    model: Speaker,
    tokens: Sequence[Tensor],
    decoding: GenerationConfig | None = None,
    instruction: str | None = None,
    candidates: int = 1,
) -> Iterator[Replies | None]:
    """Yield descriptions in order, None between words; every model's ``captions_stepwise``.

    Args as ``describe``; each is to the letter what is said of that segment alone.
    """
    prompts = [model.caption_prompt(each, instruction) for each in tokens]
    return model.language.replies(prompts, decoding or model.decoding, candidates)


def reply(model: Speaker, prompt: list[str | Tensor], decoding: GenerationConfig) -> Iterator[str]:
    """Yield a reply piece by piece, with beams as one piece; every model's ``stream``."""
    if decoding.num_beams > 1:
        return iter(model.language.generate([prompt], decoding))
    return model.language.stream(prompt, decoding)


def chosen(model: Chooser, replies: Replies, pictures: np.ndarray) -> str:
    """Return the text of the reply that fits best; the first where there is no choice.

    Args:
        model: whose words they are.
        replies: at least one.
        pictures: [V, K] unit keys of what they describe, V >= 1.
    """
    if len(replies) == 1 or model.choice is None:
        return replies[0].text
    texts = [reply.text for reply in replies]
    log_probs = [float(np.mean(reply.log_probs)) for reply in replies]
    return texts[model.choice(merits(log_probs, model.sentence_keys(texts), pictures))]


@dataclass(frozen=True, eq=False)
class VideoModel:
    """Everything learned, in evaluation mode.

    Attributes:
        name: the preset or folder it was loaded from.
        vision: the frame encoder.
        center: [D] mean frame embedding over photos; subtracting it lowers the cosine of unlike
            frames, which is high for non-negative features.
        bridge: segment patches to memory tokens.
        picture_key: patches to the key space.
        text_key: sentence embeddings to the key space.
        background: [B, K] unit keys of unrelated pictures, the scale of "not seen".
        open_sentences: opens the sentence encoder; called at most once, when first needed.
        open_language: opens the language model; likewise, so that ``scenes`` never waits for it.
        scenes: SceneTilling's options, fitted to this encoder.
        decoding: how captions are decoded unless a session says otherwise.
        certainty: how confidence in a caption comes from keys; None where it was not fitted.
        choice: how the best of several captions is chosen; likewise.
        chance: how far the best of many unrelated pictures' keys reaches; for "not seen".
        questions: reads operator and anchor off a question; without it, every one is free.
    """

    name: str
    vision: VisionEncoder
    center: Tensor
    bridge: MemoryBridge
    picture_key: PictureKey
    text_key: TextKey
    background: Tensor
    open_sentences: Callable[[], SentenceEncoder]
    open_language: Callable[[], CausalLanguageModel]
    scenes: SceneTillingConfig = field(default_factory=SceneTillingConfig)
    decoding: GenerationConfig = CAPTION_DECODING
    certainty: Certainty | None = None
    choice: Choice | None = None
    chance: GumbelNull = DEFAULT_NULL
    questions: QuestionHead | None = None

    @cached_property
    def language(self) -> CausalLanguageModel:
        """The language model, opened when first used."""
        return self.open_language()

    @cached_property
    def sentences(self) -> SentenceEncoder:
        """The sentence encoder, opened when first used."""
        return self.open_sentences()

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the weights that decide what a stored memory means."""
        digest = hashlib.sha256()
        learned = [m.state_dict() for m in (self.bridge, self.picture_key, self.text_key)]
        for tensors in (*learned, getattr(self.vision, "changes", {})):
            for name, value in sorted(tensors.items()):
                digest.update(name.encode() + value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def perceive(self, picture: np.ndarray) -> Perceived:
        """Encode one frame, [H, W, 3] uint8 RGB.

        One at a time on purpose: on a CPU a batch is no faster, and batches of other sizes round
        differently, which could move a boundary.
        """
        features = self.vision.encode([picture])
        embedding = (features.frame[0] - self.center).float().cpu().numpy()
        key = self.picture_key(features.patches)[0].float().cpu().numpy()
        return Perceived(embedding, features.patches[0].half(), key)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(M, D) of a segment's tokens."""
        return self.bridge.config.memory_tokens, self.bridge.config.dim

    @property
    def reads_related(self) -> bool:
        """Whether ``take_in`` reads tokens of related past segments."""
        return False

    @property
    def speaks_together(self) -> bool:
        """Whether segments take less time together than one by one in ``captions_stepwise``."""
        return self.language.speaks_together

    def initial_memory(self) -> Tensor:
        """Return the memory before the first segment, [M, D + 1]; see ``recurrent.fold``."""
        return recurrent.empty(*self.token_shape)

    def take_in(self, scene: Scene, memory: Tensor, related: Tensor | None) -> TakenIn:
        """Read a segment, then fold it into the memory [M, D + 1], which reads no related ones."""
        tokens = self.look(scene.patches, scene.places)
        return TakenIn(tokens, self.remember(memory, tokens))

    @torch.inference_mode()
    def look(self, patches: Sequence[Tensor], times: Sequence[float]) -> Tensor:
        """Read a segment's frames: T patches [P, V], T places in [0, 1] -> tokens [M, D]."""
        stacked = torch.stack(list(patches)).float()[None]
        return self.bridge.look(stacked, torch.tensor([list(times)]))[0]

    @torch.inference_mode()
    def remember(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Fold a segment's tokens [M, D] into the memory [M, D + 1]."""
        return recurrent.fold(memory, tokens)

    @torch.inference_mode()
    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit keys [N, K] float32."""
        return self.text_key(self.sentences.encode(sentences)).cpu().numpy()

    def read_question(self, question: str) -> Reading:
        """Read what is asked for, and of what."""
        return self.read_questions([question])[0]

    def read_questions(self, questions: Sequence[str]) -> list[Reading]:
        """Read questions in one batch, which takes less time than one after another."""
        if self.questions is None:
            return [Reading()] * len(questions)
        states = self.sentences.token_states(questions)
        return [self.questions.read(q, *read) for q, read in zip(questions, states, strict=True)]

    def caption_prompt(self, tokens: Tensor, instruction: str | None = None) -> list[str | Tensor]:
        """Build the prompt that describes a segment from its tokens [M, D]."""
        visual = self._visual(tokens)
        return self.language.chat([visual, instruction or CAPTION_INSTRUCTION])

    def answer_prompt(self, passages: Sequence[Passage], question: str) -> list[str | Tensor]:
        """Build the prompt that answers from passages, which come in time order."""
        content: list[str | Tensor] = []
        for passage in passages:
            content.append(f"[{clock(passage.start)}-{clock(passage.end)}] ")
            content.append(self._visual(passage.tokens))
            content.append(f" {passage.caption}\n" if passage.caption else "\n")
        return self.language.chat([*content, question])

    captions = describe
    captions_stepwise = describe_stepwise
    stream = reply

    # What the evaluation suites ask of a model (see evaluation/).

    def caption_pictures(
        self, pictures: Sequence[np.ndarray], *, features: str = "own"
    ) -> list[str]:
        """Describe still pictures; the controls see blank features, or another picture's."""
        seen = [self.perceive(picture) for picture in pictures]
        if features == "blank":
            mean = self.bridge.patch_mean
            blank = mean.expand(self.vision.patches, -1)
            key = self.picture_key(blank[None])[0].numpy()
            seen = [Perceived(each.embedding, blank.half(), key) for each in seen]
        elif features == "other":
            seen = seen[1:] + seen[:1]
        greedy = self.decoding.num_beams == 1 and self.decoding.temperature == 0
        count = self.choice.candidates if self.choice and greedy else 1
        tokens = [self.look([each.patches], [0.5]) for each in seen]
        said = self.captions(tokens, candidates=count)
        return [chosen(self, r, each.key[None]) for r, each in zip(said, seen, strict=True)]

    def picture_keys(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Map still pictures to unit keys [N, K] float32."""
        return np.stack([self.perceive(picture).key for picture in pictures])

    @torch.inference_mode()
    def _visual(self, tokens: Tensor) -> Tensor:
        return self.bridge.to_language(tokens.float())


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` frames, evenly, first and last too; one: the middle."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count // 2]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
