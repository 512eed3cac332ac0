"""Many memories asked at once: they are read, never written, and share one model.

    with open_all("archive", model, config) as memories:
        found = find_all(memories, "a red car", 5)      # [(name, Moment)], best first
        answers = ask_all(memories, "When does a red car pass?")

A description is compared with the keys of all memories together, so that a chance likeness in one
of many is not taken for a sighting: scores are those of one memory that holds everything.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError, StoreError, StreammemError
from streammem.memory.folder import WriteStamp, is_memory, last_written
from streammem.memory.retrieval import SEEN, GumbelNull, NameReadout, Window
from streammem.models.protocols import ComposedModel, StreamModel, TextEncoder
from streammem.types import Answer, Moment

MAX_ANSWERS = 5
ENCODED = 64  # sentences, and questions, of which the encoding is kept


class EncodedOnce:
    """A text encoder that encodes a sentence once, however many memories are asked about it.

    Args:
        inner: encodes what is new.
    """

    def __init__(self, inner: TextEncoder) -> None:
        self._inner = inner
        self._key = lru_cache(ENCODED)(lambda sentence: inner.sentence_keys([sentence])[0])
        self.read_question = lru_cache(ENCODED)(inner.read_question)

    @property
    def background(self) -> Tensor:
        """See ``TextEncoder``."""
        return self._inner.background

    @property
    def null(self) -> GumbelNull:
        """See ``TextEncoder``."""
        return self._inner.null

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """See ``TextEncoder``."""
        if len(sentences) != 1:
            return self._inner.sentence_keys(sentences)
        return self._key(sentences[0])[None].copy()

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        """See ``TextEncoder``."""
        return self._inner.sentence_meanings(sentences)

    def name_readout(self, description: str) -> NameReadout | None:
        """See ``TextEncoder``."""
        return self._inner.name_readout(description)


def encoding_once(model: StreamModel) -> ComposedModel:
    """Return a model like this one that encodes each sentence once."""
    return ComposedModel.of(model, text_encoder=EncodedOnce(model.text_encoder))


class Memories:
    """The memories of a folder, open for reading; `refresh` opens them.

    Args:
        folder: holds memories, each a folder of its own.
        model: asked about all of them.
        config: of each session.

    Attributes:
        sessions: by name.
        failed: those that could not be opened, with the reason.
    """

    def __init__(self, folder: str | Path, model: StreamModel, config: SessionConfig) -> None:
        self._folder, self._model, self._config = folder, encoding_once(model), config
        self.sessions: dict[str, Session] = {}
        self.failed: dict[str, str] = {}
        self._stamps: dict[str, WriteStamp] = {}

    def refresh(self) -> None:
        """Open what is new, read what was written since, and close what is gone."""
        paths = {path.name: path for path in memories_in(self._folder)}
        for name in self.sessions.keys() - paths.keys():
            self.sessions.pop(name).close()
        self.failed = {}
        for name, path in paths.items():
            stamp, session = last_written(path), self.sessions.get(name)
            if session and self._stamps[name] == stamp:
                continue
            try:
                if session is None or not self._is_refreshed(name, stamp):
                    opened = Session(self._model, self._config, memory=path, read_only=True)
                    if session:
                        session.close()
                    self.sessions[name] = opened
                self._stamps[name] = stamp
            except StreammemError as error:
                self.failed[name] = str(error)
        for name in self.failed.keys() & self.sessions.keys():  # what it was is gone
            self.sessions.pop(name).close()
        self.sessions = dict(sorted(self.sessions.items()))
        total = sum(session.memory.num_keys for session in self.sessions.values())
        for session in self.sessions.values():
            session.answerer.keys_elsewhere = total - session.memory.num_keys

    def _is_refreshed(self, name: str, stamp: WriteStamp) -> bool:
        """Read what is new of an open memory, unless its database is another file by now."""
        before = self._stamps[name]
        is_same_file = stamp[:1] and before[:1] and stamp[0][0] == before[0][0]
        return bool(is_same_file) and self.sessions[name].refresh()

    def close(self) -> None:
        """Close all of them; idempotent."""
        for session in self.sessions.values():
            session.close()
        self.sessions = {}


@contextmanager
def open_all(folder: str | Path, model: StreamModel, config: SessionConfig) -> Iterator[Memories]:
    """Open each memory of a folder for reading.

    Args:
        folder: holds memories, each a folder of its own.
        model: asked about all of them.
        config: of each session.

    Raises:
        ConfigError: there is none in it.
        StoreError: none can be opened; the message is the first one's.
    """
    with closing(Memories(folder, model, config)) as memories:
        memories.refresh()
        if memories.failed and not memories.sessions:
            reason = next(iter(memories.failed.values()))
            raise StoreError(f"{folder}: none can be opened; {reason}")
        if not memories.sessions:
            raise ConfigError(f"{folder}: holds no memories; streammem index makes some of videos")
        yield memories


def memories_in(folder: str | Path) -> list[Path]:
    """Return the memories of a folder, by name; one that is being made is none yet.

    A name that cannot be printed is none that could be asked for.
    """
    path = Path(folder)
    if not path.is_dir():
        return []
    named = (p for p in path.iterdir() if p.name.isprintable() and not p.name.startswith("."))
    return sorted(filter(is_memory, named))


def find_all(
    memories: Memories, query: str, count: int, between: Window | None = None
) -> list[tuple[str, Moment]]:
    """Return the moments that a description fits best, with their memories' names, best first.

    Args:
        memories: open.
        query: for example ``a man in a red hat``.
        count: moments at most, over all.
        between: what overlaps it; of a wall-clock window where each memory knows its clock.
    """
    found = [
        (name, moment)
        for name, session in memories.sessions.items()
        for moment in session.find(query, count, between)
    ]
    found.sort(key=lambda each: -each[1].score)
    return [(name, replace(m, rank=rank)) for rank, (name, m) in enumerate(found[:count], 1)]


def ask_all(
    memories: Memories, question: str, between: Window | None = None
) -> list[tuple[str, Answer]]:
    """Answer a question from each memory in which something is seen that fits it, best first.

    Args:
        memories: open.
        question: as for one memory.
        between: see ``find_all``.

    Returns:
        Names and answers, ``MAX_ANSWERS`` at most. Where nothing is seen in any, the answer of
        the memory that comes nearest.
    """
    nearest = list[tuple[float, str]]()
    thing = next(iter(memories.sessions.values())).answerer.thing_of(question)
    for name, session in memories.sessions.items():
        best = session.find(thing, 1, between)
        nearest.append((best[0].score if best else -1.0, name))
    nearest.sort(key=lambda each: -each[0])
    asked = [name for score, name in nearest if score >= SEEN] or [nearest[0][1]]
    answers = [
        (name, memories.sessions[name].ask(question, between=between))
        for name in asked[:MAX_ANSWERS]
    ]
    seen = [(name, answer) for name, answer in answers if answer.seen]
    return seen or answers[:1]
