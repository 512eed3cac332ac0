"""The model: encoder, bridge, key heads and language model; weights only, no stream state."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from streammem.memory.retrieval import DEFAULT_NULL, GumbelNull, NameReadout
from streammem.models.backbones.language import (
    Beginnings,
    CausalLanguageModel,
    GenerationConfig,
    Prompt,
    Replies,
)
from streammem.models.backbones.text import SentenceEncoder
from streammem.models.backbones.vision import VisionEncoder
from streammem.models.caption_scores import ConfidenceModel, Reranker
from streammem.models.once import once
from streammem.models.protocols import EncodedSegment, EvidenceItem, Reads
from streammem.models.tiny.bridge import MemoryBridge, empty_memory, update_memory
from streammem.models.tiny.keys import PictureKey, TextKey
from streammem.models.tiny.questions import QuestionHead, QuestionReading
from streammem.models.tiny.words import (
    LEAST_SHOWN,
    SHOWN,
    NamesOfKeys,
    WordsOfTokens,
    caption_beginnings,
)
from streammem.perception.frames import Perceived, SegmentFrames
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import clock

CAPTION_DECODING = GenerationConfig(max_new_tokens=32, vocabulary="captions")
CAPTION_INSTRUCTION = "Describe this scene."  # training and inference share it to the letter
MAX_SPEECH = 300  # characters of what was said in a scene that a prompt shows
ANSWER_DECODING = GenerationConfig(max_new_tokens=64)
FRAMES_TOGETHER = 32  # on a GPU, whose memory then holds some hundred MB of activations


@dataclass(frozen=True, eq=False)
class VideoModel:
    """Everything learned, in evaluation mode.

    Attributes:
        name: the preset or folder it was loaded from.
        vision: the frame encoder.
        center: [D] mean frame embedding over photos; subtracting it lowers the cosine of unlike
            frames, which is high for non-negative features. On the device of encoder, bridge and
            picture keys; what they make comes back to the CPU.
        bridge: segment patches to memory tokens.
        picture_key: patches to the key space.
        text_key: sentence embeddings to the key space.
        background: [B, K] unit keys of unrelated pictures, the scale of "not seen".
        open_sentences: opens the sentence encoder; called at most once, when first needed.
        open_language: opens the language model; likewise, so that ``scenes`` never waits for it.
        scenes: SceneTilling's options, fitted to this encoder.
        decoding: how captions are decoded unless a session says otherwise.
        confidence_model: how confidence in a caption comes from keys; None where it was not fitted.
        reranker: how the best of several captions is chosen; likewise.
        null: how far the best of many unrelated pictures' keys reaches; for "not seen".
        questions: reads operator and anchor off a question; without it, every one is free.
        caption_tokens: tokens of the captions that the language model learned from, [N] int64 in
            order, to which its captions are held; None holds them to none.
        words: names things that a segment's tokens show; prompts that answer have them, captions
            begin with them and are chosen by them. It stays on the CPU, like ``names``.
        names: reads names of things off visual keys; searches for single things use them.
        open_answers: opens the language model that has learned to answer; called at most once,
            when first asked. Without it the one that captions answers too.
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
    confidence_model: ConfidenceModel | None = None
    reranker: Reranker | None = None
    null: GumbelNull = DEFAULT_NULL
    questions: QuestionHead | None = None
    caption_tokens: Tensor | None = None
    words: WordsOfTokens | None = None
    names: NamesOfKeys | None = None
    open_answers: Callable[[], CausalLanguageModel] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "open_sentences", once(self.open_sentences, f"{self.name}: sentence encoder")
        )
        object.__setattr__(
            self, "open_language", once(self.open_language, f"{self.name}: language model")
        )
        if self.open_answers is not None:
            # Copies share it: the lock of `cached_property` is gone in Python 3.12.
            answers = once(self.open_answers, f"{self.name}: language model of answers")
            object.__setattr__(self, "open_answers", answers)

    # It plays all four parts itself, see models/protocols.py.

    @property
    def perceiver(self) -> Self:
        """Itself."""
        return self

    segment_encoder = text_encoder = generator = perceiver

    @cached_property
    def answer_generator(self) -> "VideoModel":
        """Itself, with the language model that has learned to answer if there is one."""
        if self.open_answers is None:
            return self
        return replace(self, open_language=self.open_answers, open_answers=None)

    @property
    def session_options(self) -> dict[str, Any]:
        """Nothing: sessions are made for it as they are."""
        return {}

    @property
    def language(self) -> CausalLanguageModel:
        """The language model, opened when first used."""
        return self.open_language()

    @property
    def sentences(self) -> SentenceEncoder:
        """The sentence encoder, opened when first used."""
        return self.open_sentences()

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the weights that decide what a stored memory means."""
        digest = hashlib.sha256()
        learned = [m.state_dict() for m in (self.bridge, self.picture_key, self.text_key)]
        for tensors in (*learned, self.vision.changes):
            for name, value in sorted(tensors.items()):
                digest.update(name.encode() + value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def perceive(self, picture: np.ndarray) -> Perceived:
        """Encode one frame, [H, W, 3] uint8 RGB."""
        return self.perceive_many([picture])[0]

    @property
    def most_together(self) -> int:
        """Frames to be encoded together: many on a GPU, one on the CPU.

        There a batch is no faster, and batches of other sizes round differently, which could move
        a boundary.
        """
        return 1 if self.center.device.type == "cpu" else FRAMES_TOGETHER

    @torch.inference_mode()
    def perceive_many(self, pictures: Sequence[np.ndarray]) -> list[Perceived]:
        """Encode frames of any streams together; see ``BatchPerceiver``."""
        features = self.vision.encode(pictures)
        embeddings = (features.frame - self.center).float().cpu().numpy()
        keys = self.picture_key(features.patches.to(self.center.device)).float().cpu().numpy()
        patches = features.patches.half().cpu()
        return [Perceived(*each) for each in zip(embeddings, patches, keys, strict=True)]

    def likely_words(self, tokens: Tensor, count: int, least: float = 0.0) -> list[str]:
        """Name what a segment's tokens [M, D] show; see ``WordsOfTokens``. [] where none can be."""
        if self.words is None or not tokens.numel():
            return []
        return self.words.likely(tokens, count, least)

    def naming(self, tokens: Tensor, texts: Sequence[str]) -> np.ndarray:
        """Tell how many of the things that texts name are there; see ``NamingEncoder``.

        Zeros where nothing can be told: without ``words``, and of tokens that were pruned, [0, D].
        """
        if self.words is None or not tokens.numel():
            return np.zeros(len(texts))
        return self.words.naming(tokens, texts)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(M, D) of a segment's tokens."""
        return self.bridge.config.memory_tokens, self.bridge.config.dim

    reads_related = False  # a segment is read by itself

    def initial_memory(self) -> Tensor:
        """Return the memory before the first segment, [M, D + 1]; see ``update_memory``."""
        return empty_memory(*self.token_shape)

    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Read a segment, then fold it into the memory [M, D + 1], which reads no related ones."""
        tokens = self.encode_frames(frames.patches, frames.places)
        return EncodedSegment(tokens, self.update_memory(memory, tokens))

    @torch.inference_mode()
    def encode_frames(self, patches: Sequence[Tensor], times: Sequence[float]) -> Tensor:
        """Read a segment's frames: T patches [P, V], T places in [0, 1] -> tokens [M, D]."""
        device = self.center.device
        stacked = torch.stack(list(patches)).to(device).float()[None]
        places = torch.tensor([list(times)], dtype=torch.float32, device=device)
        return self.bridge.encode(stacked, places)[0].cpu()

    @torch.inference_mode()
    def update_memory(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Fold a segment's tokens [M, D] into the memory [M, D + 1]."""
        return update_memory(memory, tokens)

    @torch.inference_mode()
    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit keys [N, K] float32."""
        return self.text_key(self.sentences.encode(sentences)).cpu().numpy()

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to the sentence encoder's own unit rows [N, M] float32."""
        return self.sentences.encode(sentences).cpu().numpy()

    def name_readout(self, description: str) -> NameReadout | None:
        """Return what reads the thing that a description names off keys; None where none does."""
        return self.names.readout(description) if self.names else None

    def read_question(self, question: str) -> QuestionReading:
        """Read what is asked for, and of what."""
        return self.read_questions([question])[0]

    def read_questions(self, questions: Sequence[str]) -> list[QuestionReading]:
        """Read questions in one batch, which takes less time than one after another."""
        if self.questions is None:
            return [QuestionReading()] * len(questions)
        states = self.sentences.token_states(questions)
        return [self.questions.read(q, *read) for q, read in zip(questions, states, strict=True)]

    # -- the generator --

    reads = Reads(tokens=True)  # of its own bridge; no pictures

    @property
    def batches(self) -> bool:
        """Whether prompts are continued together in less time than one by one."""
        return self.language.speaks_together

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a segment from its tokens [M, D]."""
        assert item.tokens is not None
        content: list[str | Tensor | Beginnings] = [
            self._visual(item.tokens),
            instruction or CAPTION_INSTRUCTION,
        ]
        if instruction is None and self.words is not None:
            # What the tokens show is often not what the language model would begin with.
            names = self.likely_words(item.tokens, SHOWN, LEAST_SHOWN)
            content.append(caption_beginnings(names))
        return self.language.chat(content)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        content: list[str | Tensor] = []
        for item in items:
            content.append(f"[{clock(item.start)}-{clock(item.end)}] ")
            if item.tokens is not None:
                content.append(self._visual(item.tokens))
            words = [item.caption] if item.caption else []
            # Who captions beside one that answers has not learned to read names.
            if item.tokens is not None and self.open_answers is None:
                likely = self.likely_words(item.tokens, SHOWN, LEAST_SHOWN)
                words += [f"({', '.join(likely)})"] if likely else []
            words += [f"“{item.speech[:MAX_SPEECH]}”"] if item.speech else []
            content.append(f" {' '.join(words)}\n" if words else "\n")
        return self.language.chat([*content, question])

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield replies in order, None after other steps; see ``protocols.Generator``."""
        return self.language.replies(prompts, decoding, candidates)

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece, with beams as one piece."""
        return self.language.pieces(prompt, decoding)

    def log_probs(self, prompt: Prompt, texts: Sequence[str]) -> list[list[float]]:
        """Return how likely each text is as a reply; see ``protocols.LikelihoodGenerator``."""
        return self.language.log_probs(prompt, texts)

    @torch.inference_mode()
    def _visual(self, tokens: Tensor) -> Tensor:
        return self.bridge.to_language(tokens.to(self.center.device).float())
