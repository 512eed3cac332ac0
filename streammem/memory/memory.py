"""The memory of a session: what was seen, found again, in RAM or on disk.

    memory = Memory.open("trips.mem", fingerprint, key_dim=256, token_shape=(16, 384), ...)
    row = memory.append(entry, recurrent)         # safe on disk when it returns
    memory.set_caption(row.segment, "A dog swims.", key)
    hits = memory.search(Query(key), k=4)         # see `retrieval.py`
    tokens, jpeg = memory.tokens(hits[0].entry.segment), memory.keyframe(hits[0].entry.segment)

In RAM alone the cache holds everything; with a store it holds keys and text, the disk the rest.
Cache and store are private to this module: a session, answers and commands use `Memory` alone.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streammem.errors import ConfigError, StoreError
from streammem.memory import upkeep
from streammem.memory.cache import EPSILON, CacheConfig, MemoryCache
from streammem.memory.database import Mode
from streammem.memory.entry import UNKNOWN, Entry, Now, Sureness
from streammem.memory.folder import is_memory, remove_empty
from streammem.memory.named import (
    MAX_NAMES,
    Taught,
    read_taught,
    remove_taught,
    with_pictures,
    write_taught,
)
from streammem.memory.retrieval import DEFAULT_RANKERS, EVERYTHING, Hits, Query, Window, retrieve
from streammem.memory.store import Store
from streammem.types import Note

_log = logging.getLogger(__name__)


class Memory:
    """Keeps entries and finds them; with a store, what a call has returned from is safe on disk.

    Args:
        config: of the cache; ``keys_only`` if there is a store.
        store: open, or None to keep everything in RAM.

    Attributes:
        config: of the cache.
    """

    def __init__(self, config: CacheConfig, store: Store | None = None) -> None:
        self.config = config
        self._cache = MemoryCache(config)
        self._store = store
        self._is_new = self._has_folder = False  # made here; in a folder that was there before
        self._newest: Entry | None = None  # the newest row with its payload, which may go on
        self._taught = read_taught(store.database) if store else ()
        if store is not None:
            self._cache.load(store.load_entries())
            _log.info("%s: opened (%s), %d rows", store.path, store.mode, len(self._cache))

    def __len__(self) -> int:
        return len(self._cache)

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprint: str,
        *,
        key_dim: int,
        token_shape: tuple[int, int],
        max_segments: int,
        epsilon: float = EPSILON,
        mode: Mode = "rw",
    ) -> Self:
        """Open a memory on disk; with ``rw`` a new one is made where none is.

        Raises:
            StoreError: see ``Store.open``.
        """
        config = CacheConfig(key_dim, token_shape, max_segments, epsilon, keys_only=True)
        is_new = not is_memory(path) and mode == "rw"
        has_folder = Path(path).exists()
        if not is_new:
            store = Store.open(path, fingerprint, mode)
        else:
            store = Store.create(path, fingerprint, key_dim=key_dim, token_shape=token_shape)
        try:
            memory = cls(config, store)
        except BaseException:
            store.close()
            raise
        memory._is_new, memory._has_folder = is_new, has_folder
        return memory

    @property
    def path(self) -> Path | None:
        """Its folder; None in RAM."""
        return self._store.path if self._store else None

    @property
    def next_segment(self) -> int:
        """The id after the newest segment's, which may be gone."""
        if self._store:
            return self._store.next_segment()
        entries = self._cache.entries()
        return entries[-1].last + 1 if entries else 0

    @property
    def num_keys(self) -> int:
        """How many visual keys a query is compared with."""
        return sum(len(entry.visual_keys) for entry in self._cache.entries())

    def num_bytes(self) -> int:
        """Return the bytes held in RAM now; at most ``config.bytes_bound()``."""
        return self._cache.num_bytes()

    def now(self, wall: float) -> Now:
        """Return the present: Unix seconds, and where each source's newest row ends."""
        return Now(wall, {entry.source: entry.end for entry in self._cache.entries()})

    def newest(self, source: str) -> Entry | None:
        """Return the row that was seen last of a source; None if there is none."""
        rows = reversed(self._cache.entries())
        return next((entry for entry in rows if entry.source == source), None)

    def recurrent(self, initial: Tensor) -> Tensor:
        """Return the recurrent memory as it was left, or ``initial``."""
        state = self._store.recurrent_state() if self._store else None
        if state is None:
            return initial
        return torch.from_numpy(np.frombuffer(state, np.float32).reshape(initial.shape).copy())

    # -- writing --

    def append(self, entry: Entry, recurrent: Tensor) -> Entry:
        """Keep a closed segment and the recurrent memory after it.

        Returns:
            The row that stands for the segment, as ``get`` would return it, with the tokens and
            the keyframe that ``tokens`` and ``keyframe`` would: the segment itself, or the still
            scene before it that goes on. Nothing need be read back from disk.

        Raises:
            StoreError: the disk fails; see ``Store.append``.
            ValueError: an entry that does not fit; see ``MemoryCache.append``.
        """
        change = self._cache.append(entry)
        row = change.entry
        if self._store:
            state = recurrent.cpu().numpy().astype(np.float32).tobytes()
            if change.action == "appended":
                self._store.append(row, state)
            else:
                # The cache holds keys only: the payload of the row that goes on is kept here.
                before = self._newest or self._store.read(row.segment)
                self._store.extend(row, state)
                row = replace(row, tokens=before.tokens, keyframe=row.keyframe or before.keyframe)
            self._newest = row
        return row

    def set_caption(
        self, segment: int, text: str, key: np.ndarray | None, sureness: Sureness = UNKNOWN
    ) -> Entry:
        """Give a segment a caption, which is found from then on by its words too.

        A memory that is only read keeps it until it is closed.

        Args:
            segment: any id that a row stands for.
            text: one line; a row that has a caption gets a further line. Empty where the caption
                was withheld, which is remembered where there is no other.
            key: [D_key] unit row; None where there is no text encoder.
            sureness: of the text.

        Returns:
            The row as it is now.

        Raises:
            KeyError, StoreError: no such segment.
        """
        if self._store and self._store.mode == "rw":
            self._store.set_caption(segment, text, key, sureness)
        return self._cache.set_caption(segment, text, key, sureness)

    def add_notes(self, segment: int, notes: tuple[Note, ...], key: np.ndarray | None) -> Entry:
        """Give a segment speech or subtitles that came after it; otherwise as `set_caption`."""
        if self._store and self._store.mode == "rw":
            self._store.add_notes(segment, notes, key)
        return self._cache.add_notes(segment, notes, key)

    def prune(
        self,
        *,
        budget_bytes: int | None = None,
        keep_s: float | None = None,
        now: float | None = None,
    ) -> upkeep.Pruned | None:
        """Keep a memory on disk within its budget and its time; see ``upkeep.prune``.

        Returns:
            What was removed, and is not found any more; None in RAM, whose rows are bounded.

        Raises:
            StoreError: the disk fails.
        """
        if self._store is None:
            return None
        pruned = upkeep.prune(self._store, budget_bytes=budget_bytes, keep_s=keep_s, now=now)
        self._cache.drop(pruned.segments)
        self._newest = None  # its payload may be gone
        _log.info("%s: removed %s", self._store.path, pruned)
        return pruned

    # -- named things --

    def taught(self) -> tuple[Taught, ...]:
        """Return every thing that was taught, by name; the same tuple until that changes."""
        return self._taught

    def teach(self, taught: Taught, *, renew: bool = False) -> Taught:
        """Keep a thing's name and pictures; those that it was taught before stay.

        A memory that is only read keeps them until it is closed.

        Args:
            taught: the thing.
            renew: let these pictures take the place of all earlier ones.

        Returns:
            The thing with all its pictures.

        Raises:
            ConfigError: too many names, or one that was taught as something else.
            StoreError: the disk is full or fails.
        """
        others = [each for each in self._taught if each.name.casefold() != taught.name.casefold()]
        before = next((each for each in self._taught if each not in others), None)
        if before is None and len(others) >= MAX_NAMES:
            raise ConfigError(f"{MAX_NAMES} names are taught; forget one first")
        whole = with_pictures(None if renew else before, taught)
        if self._store and self._store.mode == "rw":
            write_taught(self._store.database, whole)
        self._taught = tuple(sorted([*others, whole], key=lambda each: each.name.casefold()))
        return whole

    def forget_name(self, name: str) -> None:
        """Forget a thing's name and its pictures, for good; rows never held either.

        Raises:
            KeyError: no such name.
            StoreError: the memory is read-only, or the disk fails.
        """
        known = next((e for e in self._taught if e.name.casefold() == name.casefold()), None)
        if known is None:
            raise KeyError(f"nothing was taught by the name {name!r}")
        if self._store:
            remove_taught(self._store.database, known.name)
        self._taught = tuple(each for each in self._taught if each is not known)

    # -- reading --

    def get(self, segment: int) -> Entry | None:
        """Return the row that stands for a segment, merged or not; None where it is unknown.

        With a store its tokens and keyframe lie on disk: see ``tokens`` and ``keyframe``.
        """
        return self._cache.get(segment)

    def entries(self) -> tuple[Entry, ...]:
        """Return every row, oldest first; payloads as for ``get``."""
        return self._cache.entries()

    def search(
        self,
        query: Query,
        window: Window = EVERYTHING,
        k: int | None = None,
        rankers: Sequence[str] = DEFAULT_RANKERS,
    ) -> Hits:
        """Find the rows that a query is about, best first; see ``retrieval.retrieve``."""
        return retrieve(self._cache, query, window, k, rankers)

    def tokens(self, segment: int) -> Tensor:
        """Return a segment's tokens [M, D] float32; [0, D] where they were pruned.

        Raises:
            KeyError: no such segment.
        """
        entry = self._known(segment)
        tokens = self._store.tokens(segment) if self._store else entry.tokens
        width = self._cache.config.token_shape[1]
        return torch.from_numpy(tokens.reshape(len(tokens), width).astype(np.float32))

    def keyframe(self, segment: int) -> bytes | None:
        """Return a segment's keyframe as a JPEG, if it has one.

        Raises:
            KeyError: no such segment.
        """
        entry = self._known(segment)
        return self._store.read(segment).keyframe if self._store else entry.keyframe

    def keyframe_path(self, segment: int) -> str | None:
        """Return where a segment's keyframe lies on disk, if it does."""
        path = self._store.keyframe_path(segment) if self._store else None
        return str(path) if path else None

    def related_tokens(self, key: np.ndarray, count: int) -> Tensor | None:
        """Return the tokens [R, D] of the entries that look most like a segment's key."""
        if not count or not len(self._cache):
            return None
        found: Sequence[int] = [hit.entry.segment for hit in self._cache.related(key, count)]
        return torch.cat([self.tokens(segment) for segment in found])

    def close(self) -> None:
        """Release the store; idempotent."""
        if self._store:
            self._store.close()

    def close_in_vain(self) -> None:
        """Release the store after a failure; remove one that was made here and holds nothing."""
        self.close()
        path = self.path
        if path is None or not self._is_new or len(self._cache):
            return
        remove_empty(path)
        if not self._has_folder:
            with suppress(OSError):  # what others have put there stays
                path.rmdir()

    def _known(self, segment: int) -> Entry:
        entry = self._cache.get(segment)
        if entry is None:
            raise KeyError(f"no segment {segment} in this memory")
        return entry


def check_path(path: Path) -> None:
    """Refuse a path that can hold no memory, before anything else is opened.

    Raises:
        StoreError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, not a memory; give a folder")
