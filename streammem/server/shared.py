"""One model for many sessions, each in a thread of its own.

One frame and one step of speech is computed at a time, as in ``live.py``. Captions that are due at
the same time, of whatever sessions, are spoken in one batch; answers go on between its words.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from streammem.engine.workers import most_together
from streammem.models.backbones.language import GenerationConfig, Replies
from streammem.models.tiny.model import Passage, Scene, StreamModel, TakenIn
from streammem.models.tiny.questions import Reading
from streammem.perception.perceiver import Perceived

MAX_BATCH = 8
T = TypeVar("T")


class Turns:
    """A lock that whoever has waited longest gets: nobody is overtaken by those that come again."""

    def __init__(self) -> None:
        self._lock, self._taken = threading.Lock(), False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # handed on, so it stays taken
            else:
                self._taken = False


@dataclass(eq=False)
class _Wish:
    """A caption that is due; ``said`` or ``error`` is set once it was attempted.

    ``urgent`` are those that an answer waits for.
    """

    tokens: Tensor
    decoding: GenerationConfig | None
    instruction: str | None
    candidates: int
    urgent: bool
    said: Replies | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.said is not None or self.error is not None

    @property
    def asked(self) -> tuple[GenerationConfig | None, str | None, int]:
        """What all wishes of a batch have in common."""
        return self.decoding, self.instruction, self.candidates


class _CaptionPrompt(list[str | Tensor]):
    """Stands for the prompt of a caption until it is known which batch it goes into."""

    def __init__(self, tokens: Tensor, instruction: str | None) -> None:
        super().__init__()
        self.tokens, self.instruction = tokens, instruction


class SharedModel:
    """A model that many threads may use; a ``StreamModel`` like the one it wraps.

    Args:
        model: not used by anything else meanwhile.
        on_batch: called with the size of each batch of captions.
    """

    def __init__(self, model: StreamModel, on_batch: Callable[[int], None] | None = None) -> None:
        self._model, self._on_batch = model, on_batch
        self._eye, self._mouth = threading.Lock(), Turns()
        self._changed, self._speaking = threading.Condition(), False
        self._due: list[_Wish] = []  # touched by whoever holds ``_changed``

    def __getattr__(self, name: str) -> Any:  # what does not compute needs no lock
        return getattr(self._model, name)

    def perceive(self, picture: np.ndarray) -> Perceived:
        with self._eye:
            return self._model.perceive(picture)

    def take_in(self, scene: Scene, memory: Tensor, related: Tensor | None) -> TakenIn:
        with self._eye:
            return self._model.take_in(scene, memory, related)

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        with self._eye:
            return self._model.sentence_keys(sentences)

    def read_question(self, question: str) -> Reading:
        with self._eye:
            return self._model.read_question(question)

    def answer_prompt(self, passages: Sequence[Passage], question: str) -> list[str | Tensor]:
        with self._mouth:
            return self._model.answer_prompt(passages, question)

    def caption_prompt(self, tokens: Tensor, instruction: str | None = None) -> list[str | Tensor]:
        """Note what is to be described; the prompt itself is made with its batch."""
        return _CaptionPrompt(tokens, instruction)

    def stream(self, prompt: list[str | Tensor], decoding: GenerationConfig) -> Iterator[str]:
        """Yield an answer word by word, between those of others; a caption as one piece."""
        if isinstance(prompt, _CaptionPrompt):
            said = self.captions_stepwise([prompt.tokens], decoding, prompt.instruction)
            yield from (replies[0].text for replies in said if replies)
            return
        with self._mouth:
            words = self._model.stream(prompt, decoding)
        yield from self._in_turns(words)

    def captions(
        self,
        tokens: Sequence[Tensor],
        decoding: GenerationConfig | None = None,
        instruction: str | None = None,
        candidates: int = 1,
    ) -> list[Replies]:
        """Describe segments, together with those that other threads ask for now.

        Whoever calls this waits to answer, so these go before what streams are to be told.
        """
        return self._spoken([_Wish(t, decoding, instruction, candidates, True) for t in tokens])

    def captions_stepwise(
        self,
        tokens: Sequence[Tensor],
        decoding: GenerationConfig | None = None,
        instruction: str | None = None,
        candidates: int = 1,
    ) -> Iterator[Replies | None]:
        """Describe segments in one step, as ``captions`` does, but after what answers wait for."""
        wishes = [_Wish(t, decoding, instruction, candidates, False) for t in tokens]
        yield from self._spoken(wishes)

    def _spoken(self, wishes: Sequence[_Wish]) -> list[Replies]:
        with self._changed:
            self._due.extend(wishes)
        while batch := self._batch_after(wishes):
            try:
                self._speak(batch)
            finally:
                with self._changed:
                    self._speaking = False
                    self._changed.notify_all()
        for wish in wishes:
            if wish.error:
                raise wish.error
        return [wish.said for wish in wishes if wish.said]

    def _batch_after(self, wishes: Sequence[_Wish]) -> list[_Wish]:
        """Wait until the wishes are done, or nobody speaks: then whoever asks speaks for all.

        Returns:
            What to speak: the urgent first, then the oldest, all of it decoded alike; nothing
            once the wishes are done.
        """

        def done() -> bool:
            return all(wish.done for wish in wishes)

        with self._changed:
            self._changed.wait_for(lambda: done() or not self._speaking)
            if done():
                return []
            self._due.sort(key=lambda wish: not wish.urgent)
            asked = self._due[0].asked
            alike = [wish for wish in self._due if wish.asked == asked]
            batch = alike[: most_together(MAX_BATCH, asked[-1])]
            self._due = [wish for wish in self._due if wish not in batch]
            self._speaking = True
            return batch

    def _speak(self, batch: Sequence[_Wish]) -> None:
        try:
            said = list(self._said([wish.tokens for wish in batch], *batch[0].asked))
        except BaseException as error:  # noqa: BLE001, carried to all that wait for it
            for wish in batch:
                wish.error = error
            return
        for wish, replies in zip(batch, said, strict=True):
            wish.said = replies
        if self._on_batch:
            self._on_batch(len(batch))

    def _said(self, tokens: Sequence[Tensor], *asked: Any) -> Iterator[Replies]:
        """Describe segments, word by word where that takes no more time than all at once."""
        if self._model.speaks_together:
            with self._mouth:
                saying = self._model.captions_stepwise(tokens, *asked)
            yield from (said for said in self._in_turns(saying) if said is not None)
            return
        with self._mouth:
            whole = self._model.captions(tokens, *asked)
        yield from whole

    def _in_turns(self, speech: Iterator[T]) -> Iterator[T]:
        """Take a speech step by step, each in a turn of its own."""
        while True:
            with self._mouth:
                try:
                    step = next(speech)
                except StopIteration:
                    return
            yield step
