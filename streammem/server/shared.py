"""One model for many sessions, each in a thread of its own.

One frame is computed at a time; what the language model computes goes through its scheduler.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from streammem.captioning.scheduler import LanguageScheduler, ScheduledGenerator
from streammem.memory.retrieval import GumbelNull
from streammem.models.protocols import (
    ComposedModel,
    EncodedSegment,
    SegmentEncoder,
    SegmentFrames,
    StreamModel,
    TextEncoder,
)
from streammem.models.tiny.questions import QuestionReading
from streammem.perception.perceiver import Perceived, Perceiver
from streammem.perception.scenetilling import SceneTillingConfig


@dataclass(frozen=True, eq=False)
class _LockedPerceiver:
    inner: Perceiver
    lock: threading.Lock

    @property
    def scenes(self) -> SceneTillingConfig:
        return self.inner.scenes

    def perceive(self, picture: np.ndarray) -> Perceived:
        with self.lock:
            return self.inner.perceive(picture)


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

    def read_question(self, question: str) -> QuestionReading:
        with self.lock:
            return self.inner.read_question(question)


class SharedModel(NamedTuple):
    """A model that many threads may use, and the scheduler of its language model.

    Attributes:
        model: for the sessions.
        scheduler: for ``watch``; to be closed after the last session.
    """

    model: ComposedModel
    scheduler: LanguageScheduler


def share(model: StreamModel, on_batch: Callable[[int], None] | None = None) -> SharedModel:
    """Let many threads use a model.

    Args:
        model: not used by anything else meanwhile.
        on_batch: called with the size of each batch of captions.
    """
    vision_lock = threading.Lock()
    scheduler = LanguageScheduler(model.generator, on_batch)
    encoder = model.segment_encoder
    shared = ComposedModel(
        name=model.name,
        fingerprint=model.fingerprint,
        perceiver=_LockedPerceiver(model.perceiver, vision_lock),
        text_encoder=_LockedTextEncoder(model.text_encoder, vision_lock),
        generator=ScheduledGenerator(model.generator, scheduler),
        segment_encoder=_LockedSegmentEncoder(encoder, vision_lock) if encoder else None,
        confidence_model=model.confidence_model,
        reranker=model.reranker,
    )
    return SharedModel(shared, scheduler)
