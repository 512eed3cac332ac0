"""One model for many sessions, each in a thread of its own.

One batch of frames is computed at a time, on a CPU of one frame; what the language model computes
goes through its scheduler.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from streammem.captioning.scheduler import FairLock, LanguageScheduler, ScheduledGenerator
from streammem.captioning.shared_tilling import SharedTilling
from streammem.memory.retrieval import GumbelNull, NameReadout
from streammem.models.backbones.language import GenerationConfig, Prompt, Replies
from streammem.models.protocols import (
    ComposedModel,
    EncodedSegment,
    EvidenceItem,
    Generator,
    Reads,
    SegmentEncoder,
    StreamModel,
    TextEncoder,
    Tool,
    ToolCall,
    ToolGenerator,
    ToolTurn,
)
from streammem.models.tiny.questions import QuestionReading
from streammem.perception.frames import BatchPerceiver, Perceived, Perceiver, SegmentFrames
from streammem.perception.scenetilling import SceneTillingConfig, Tilling

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _WaitingFrame:
    picture: np.ndarray
    seen: Perceived | BaseException | None = None


@dataclass(frozen=True, eq=False)
class _SharedPerceiver:
    """Perceives the frames of all threads; what waits for the lock together is one batch."""

    inner: Perceiver
    lock: threading.Lock
    tillings: SharedTilling
    waiting: deque[_WaitingFrame] = field(default_factory=deque)

    @property
    def scenes(self) -> SceneTillingConfig:
        return self.inner.scenes

    def perceive(self, picture: np.ndarray) -> Perceived:
        inner = self.inner
        if not isinstance(inner, BatchPerceiver) or inner.most_together == 1:
            with self.lock:
                return inner.perceive(picture)
        frame = _WaitingFrame(picture)
        self.waiting.append(frame)
        with self.lock:
            while frame.seen is None:  # it is still waiting: perceive what came before it, too
                count = min(len(self.waiting), inner.most_together)
                self._perceive(inner, [self.waiting.popleft() for _ in range(count)])
        if isinstance(frame.seen, BaseException):
            raise frame.seen
        return frame.seen

    def tilling(self, config: SceneTillingConfig) -> Tilling:
        return self.tillings.open(config)

    def _perceive(self, inner: BatchPerceiver, batch: list[_WaitingFrame]) -> None:
        try:
            for frame, seen in zip(
                batch, inner.perceive_many([frame.picture for frame in batch]), strict=True
            ):
                frame.seen = seen
        except BaseException as error:  # noqa: BLE001, carried to the thread whose frame it is
            if len(batch) == 1:
                batch[0].seen = error
                return
            for frame in batch:  # what fails, fails for one stream alone
                self._perceive(inner, [frame])


@dataclass(frozen=True, eq=False)
class _LockedSegmentEncoder:
    inner: SegmentEncoder
    lock: threading.Lock

    @property
    def token_shape(self) -> tuple[int, int]:
        return self.inner.token_shape

    @property
    def reads_related(self) -> bool:
        return self.inner.reads_related

    def initial_memory(self) -> Tensor:
        return self.inner.initial_memory()

    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        with self.lock:
            return self.inner.encode_segment(frames, memory, related)


@dataclass(frozen=True, eq=False)
class _LockedTextEncoder:
    inner: TextEncoder
    lock: threading.Lock

    @property
    def background(self) -> Tensor:
        return self.inner.background

    @property
    def null(self) -> GumbelNull:
        return self.inner.null

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        with self.lock:
            return self.inner.sentence_keys(sentences)

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        with self.lock:
            return self.inner.sentence_meanings(sentences)

    def name_readout(self, description: str) -> NameReadout | None:
        return self.inner.name_readout(description)

    def read_question(self, question: str) -> QuestionReading:
        with self.lock:
            return self.inner.read_question(question)


@dataclass(frozen=True, eq=False)
class _LockedGenerator:
    """Writes answers beside the generator of captions, so its steps have a lock of their own."""

    inner: Generator
    lock: FairLock = field(default_factory=FairLock)
    batches = False

    @property
    def reads(self) -> Reads:
        return self.inner.reads

    @property
    def decoding(self) -> GenerationConfig:
        return self.inner.decoding

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        with self.lock:
            return self.inner.caption_prompt(item, instruction)

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        with self.lock:
            return self.inner.answer_prompt(items, question)

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        return self._steps(self.inner.replies(prompts, decoding, candidates))

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        return self._steps(self.inner.stream(prompt, decoding))

    def converse(
        self,
        prompt: Prompt,
        turns: Sequence[ToolTurn],
        tools: Sequence[Tool],
        decoding: GenerationConfig,
    ) -> Iterator[str | ToolCall | None]:
        caller = cast(ToolGenerator, self.inner)
        return self._steps(caller.converse(prompt, turns, tools, decoding))

    def _steps(self, steps: Iterator[T]) -> Iterator[T]:
        ended = object()
        while True:
            with self.lock:
                step = next(steps, ended)
            if step is ended:
                return
            yield cast(T, step)


class SharedModel(NamedTuple):
    """A model that many threads may use, and the scheduler of its language model.

    Attributes:
        model: for the sessions.
        scheduler: for ``watch``; to be closed after the last session.
    """

    model: ComposedModel
    scheduler: LanguageScheduler


def share_model(model: StreamModel, on_batch: Callable[[int], None] | None = None) -> SharedModel:
    """Let many threads use a model.

    Args:
        model: not used by anything else meanwhile.
        on_batch: called with the size of each batch of captions.
    """
    vision_lock = threading.Lock()
    scheduler = LanguageScheduler(model.generator, on_batch)
    encoder, answers = model.segment_encoder, model.answer_generator
    shared = ComposedModel.of(
        model,
        perceiver=_SharedPerceiver(model.perceiver, vision_lock, SharedTilling(_device(model))),
        text_encoder=_LockedTextEncoder(model.text_encoder, vision_lock),
        generator=ScheduledGenerator(model.generator, scheduler),
        segment_encoder=_LockedSegmentEncoder(encoder, vision_lock) if encoder else None,
        answer_generator=(_LockedGenerator(answers) if answers is not model.generator else None),
    )
    return SharedModel(shared, scheduler)


def _device(model: StreamModel) -> str:
    """Return where the states of streams lie: beside a perceiver that encodes many frames."""
    perceiver = model.perceiver
    is_elsewhere = isinstance(perceiver, BatchPerceiver) and perceiver.most_together > 1
    return "cuda" if is_elsewhere and torch.cuda.is_available() else "cpu"
