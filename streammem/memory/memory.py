"""What a session remembers: the cache that finds segments and, if it is to last, the store behind.

In RAM alone the cache holds everything; with a store it holds keys and text, the disk the rest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streammem.errors import StoreError
from streammem.memory.cache import CacheConfig, MemoryCache
from streammem.memory.database import Mode
from streammem.memory.entry import Entry
from streammem.memory.folder import is_memory
from streammem.memory.store import Store


class Memory:
    """Writes go to the store first, then to the cache: what can be found is safe already.

    Args:
        config: of the cache; ``keys_only`` if there is a store.
        store: open, or None to keep everything in RAM.
    """

    def __init__(self, config: CacheConfig, store: Store | None = None) -> None:
        self.cache = MemoryCache(config)
        self.store = store
        if store is not None:
            self.cache.load(store.load_entries())

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprint: str,
        *,
        key_dim: int,
        token_shape: tuple[int, int],
        max_segments: int,
        mode: Mode = "rw",
    ) -> Self:
        """Open a memory on disk; with ``rw`` a new one is made where none is.

        Raises:
            StoreError: see ``Store.open``.
        """
        config = CacheConfig(key_dim, token_shape, max_segments, keys_only=True)
        if is_memory(path) or mode == "r":
            store = Store.open(path, fingerprint, mode)
        else:
            store = Store.create(path, fingerprint, key_dim=key_dim, token_shape=token_shape)
        try:
            return cls(config, store)
        except BaseException:
            store.close()
            raise

    @property
    def next_segment(self) -> int:
        """The id after the newest segment's."""
        entries = self.cache.entries()
        return entries[-1].last + 1 if entries else 0

    def recurrent(self, initial: Tensor) -> Tensor:
        """Return the recurrent memory as it was left, or ``initial``."""
        state = self.store.recurrent_state() if self.store else None
        if state is None:
            return initial
        return torch.from_numpy(np.frombuffer(state, np.float32).reshape(initial.shape).copy())

    def append(self, entry: Entry, recurrent: Tensor) -> Entry:
        """Keep a closed segment and the recurrent memory after it; return the row it is in."""
        change = self.cache.append(entry)
        if self.store:
            state = recurrent.cpu().numpy().astype(np.float32).tobytes()
            write = self.store.append if change.action == "appended" else self.store.extend
            write(change.entry, state)
        return change.entry

    def set_caption(self, segment: int, text: str, key: np.ndarray) -> Entry:
        """Give a segment a caption; a memory that is only read keeps it until it is closed."""
        if self.store and self.store.mode == "rw":
            self.store.set_caption(segment, text, key)
        return self.cache.set_caption(segment, text, key)

    def tokens(self, segment: int) -> Tensor:
        """Return a segment's tokens [M, D] float32; [0, D] where they were pruned.

        Raises:
            KeyError: no such segment.
        """
        entry = self._known(segment)
        tokens = self.store.tokens(segment) if self.store else entry.tokens
        width = self.cache.config.token_shape[1]
        return torch.from_numpy(tokens.reshape(len(tokens), width).astype(np.float32))

    def keyframe(self, segment: int) -> bytes | None:
        """Return a segment's keyframe as a JPEG, if it has one.

        Raises:
            KeyError: no such segment.
        """
        entry = self._known(segment)
        return self.store.read(segment).keyframe if self.store else entry.keyframe

    def keyframe_path(self, segment: int) -> str | None:
        """Return where a segment's keyframe lies on disk, if it does."""
        path = self.store.keyframe_path(segment) if self.store else None
        return str(path) if path else None

    def related_tokens(self, key: np.ndarray, count: int) -> Tensor | None:
        """Return the tokens [R, D] of the entries that look most like a segment's key."""
        if not count or not len(self.cache):
            return None
        found: Sequence[int] = [hit.entry.segment for hit in self.cache.related(key, count)]
        return torch.cat([self.tokens(segment) for segment in found])

    def close(self) -> None:
        """Release the store; idempotent."""
        if self.store:
            self.store.close()

    def _known(self, segment: int) -> Entry:
        entry = self.cache.get(segment)
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
