"""The memory of a session: what was seen, found again, in RAM or on disk.

    memory = Memory.open("trips.mem", fingerprint, key_dim=256, token_shape=(16, 384), ...)
    row = memory.append(entry, recurrent)         # safe on disk when it returns
    memory.set_caption(row.segment, "A dog swims.", key)
    hits = memory.search(Query(key), k=4)         # see `retrieval.py`
    tokens, jpeg = memory.tokens(hits[0].entry.segment), memory.keyframe(hits[0].entry.segment)

In RAM alone the cache holds everything; with a store it holds keys and text, the disk the rest.
Cache and store are private to this module: a session, answers and commands use `Memory` alone.
How hits are ranked stands in `retrieval.py`.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from streammem.errors import ConfigError, StoreError
from streammem.memory import upkeep
from streammem.memory.database import Mode
from streammem.memory.entry import (
    KEY_KINDS,
    MAX_KEYFRAME_BYTES,
    MAX_KEYS,
    MAX_NOTES_BYTES,
    MAX_TEXT_BYTES,
    UNKNOWN,
    Entry,
    MergeQueue,
    Now,
    Sureness,
    continues,
    extended,
    merged,
    with_text,
    word_bytes,
)
from streammem.memory.folder import is_memory, remove_empty
from streammem.memory.index import index_for
from streammem.memory.named import (
    MAX_NAMES,
    Taught,
    read_taught,
    remove_taught,
    with_pictures,
    write_taught,
)
from streammem.memory.retrieval import (
    DEFAULT_RANKERS,
    EVERYTHING,
    Hit,
    Hits,
    Query,
    Window,
    retrieve,
)
from streammem.memory.store import Store
from streammem.types import Note

_log = logging.getLogger(__name__)

EPSILON = 0.02
_KEY_OVERHEAD_BYTES = 200  # a key's place in the index: ids, a dictionary slot, two integers
_ROW_OVERHEAD_BYTES = 3_000  # an entry's objects, its places in the dictionary and the heap


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Sizes of the cache.

    Attributes:
        key_dim: D_key, width of the keys.
        token_shape: (M, D) of an entry's memory tokens; (0, 0) for a model without.
        max_segments: rows kept, >= 4; beyond it neighbours merge.
        epsilon: in [0, 1); a closing segment whose keys are this close (1 - cosine) to the row
            before it extends that row; with 0 none does. Raising it makes still scenes cheaper and
            small events easier to lose.
        keys_only: keep neither tokens nor keyframes, for a session whose store has them.
    """

    key_dim: int = 256
    token_shape: tuple[int, int] = (16, 384)
    max_segments: int = 10_000
    epsilon: float = EPSILON
    keys_only: bool = False

    def __post_init__(self) -> None:
        if self.key_dim < 1 or min(self.token_shape) < 0:
            raise ConfigError(f"cache: key_dim {self.key_dim}, token_shape {self.token_shape}")
        if self.max_segments < 4:
            raise ConfigError(f"cache: max_segments is {self.max_segments}; give at least 4")
        if not 0 <= self.epsilon < 1:
            raise ConfigError(f"cache: epsilon is {self.epsilon}; give a value in [0, 1)")

    def bytes_bound(self) -> int:
        """Return the most bytes that a cache can hold.

        (max_segments + 1) x (12 keys x (4 D_key in the entry + 4 D_key in the index, whose arrays
        double as they grow, + 200) + 2 M D tokens + 32 KiB keyframe + 26,000 text + 3,000), the
        tokens and keyframe only without `keys_only`.
        """
        payload = 0 if self.keys_only else 2 * int(np.prod(self.token_shape)) + MAX_KEYFRAME_BYTES
        keys = len(KEY_KINDS) * MAX_KEYS * (8 * self.key_dim + _KEY_OVERHEAD_BYTES)
        text = MAX_TEXT_BYTES + MAX_NOTES_BYTES
        return (self.max_segments + 1) * (keys + payload + text + _ROW_OVERHEAD_BYTES)


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
        return self._cache.num_keys

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
            StoreError: the disk fails, see ``Store.append``; nothing has changed, so that the
                same entry may be given again.
            ValueError: an entry that does not fit; see ``MemoryCache.append``.
        """
        change = self._cache.planned(entry)
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
        self._cache.apply(change)  # last: what the disk refuses is not found either
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
        before = self._store.segments()
        try:
            pruned = upkeep.prune(self._store, budget_bytes=budget_bytes, keep_s=keep_s, now=now)
        finally:  # also what went before the disk failed
            self._cache.drop(sorted(set(before) - set(self._store.segments())))
            self._newest = None  # its payload may be gone
        _log.info("%s: removed %s", self._store.path, pruned)
        return pruned

    def refresh(self) -> bool:
        """Take over what another process has written since; for a memory that is only read.

        Rows that have not changed are not read again, and keep what was set here alone.

        Returns:
            False where the memory must be opened anew; nothing has changed then.

        Raises:
            StoreError: a row is damaged or missing; close the memory.
        """
        if self._store is None or self._store.mode != "r" or self._cache.has_merged:
            return False
        changes = self._store.load_changes()
        if changes is None or not self._cache.follow(*changes):
            return False
        self._taught = read_taught(self._store.database)
        return True

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


@dataclass(frozen=True, slots=True, eq=False)
class Appended:
    """What an append did.

    Attributes:
        action: ``appended`` a row, or ``extended`` the newest one.
        entry: that row as it is now, tokens and keyframe included.
        made_room: the row that two older neighbours became; None where there was room.
    """

    action: Literal["appended", "extended"]
    entry: Entry
    made_room: Entry | None = None


class MemoryCache:
    """Keeps what was seen, finds it again, and stays within its bound.

    Holds at most ``config.max_segments`` rows and ``config.bytes_bound()`` bytes. Costs of an
    append depend on max_segments, not on the stream's length. Nothing is considered for a merge
    before there is no room: then all neighbours once (0.2 s of 10,000), from then on the new ones;
    what a merge of each pair costs waits in a queue. Deterministic: equal calls give equal caches
    and equal hits.

    The newest row never merges, because it may still be extended. Rows of different sources never
    merge, because their times would mean nothing; where nothing else is left (more sources than
    rows), the oldest row goes.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self._rows: dict[int, Entry] = {}
        self._ids: list[int] = []  # ids of the rows, rising
        self._queue = MergeQueue()
        self._merges = False  # whether neighbours are in the queue: since there was no room
        self._indexes = {
            kind: index_for(config.key_dim, config.max_segments * MAX_KEYS) for kind in KEY_KINDS
        }

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_keys(self) -> int:
        """How many visual keys its rows have."""
        return len(self._indexes["visual_keys"])

    # -- writing --

    def append(self, entry: Entry) -> Appended:
        """Add a closed segment.

        Args:
            entry: newer than everything here; keys [*, config.key_dim], tokens of
                config.token_shape or [0, 0].

        Returns:
            What was done.

        Raises:
            ValueError: an id that is not newer, or keys or tokens of another shape.
        """
        change = self.planned(entry)
        return replace(change, made_room=self.apply(change))

    def planned(self, entry: Entry) -> Appended:
        """Return what `append` would do, and do nothing; it does not tell what makes room."""
        self._check(entry)
        newest = self._rows[self._ids[-1]] if self._ids else None
        if newest is not None and continues(newest, entry, self.config.epsilon):
            return Appended("extended", extended(newest, entry))
        return Appended("appended", entry)

    def apply(self, change: Appended) -> Entry | None:
        """Do what was planned last; return the row that two neighbours became to make room."""
        if change.action == "appended":
            return self._insert(change.entry)
        self._set(self._kept(change.entry))
        return None

    def load(self, entries: Iterable[Entry]) -> None:
        """Add rows as a store kept them: as `append`, but none extends another.

        Raises:
            ValueError: as for `append`.
        """
        rows = tuple(entries)
        if self._ids or len(rows) > self.config.max_segments:
            for entry in rows:
                self._check(entry)
                self._insert(entry)
            return
        # Where all fit, the index takes them at once: a question to many memories opens them all.
        for entry in rows:
            self._check(entry)
            self._ids.append(entry.segment)
            self._rows[entry.segment] = self._kept(entry)
        for kind, index in self._indexes.items():
            keys = [(row, of_row) for row in rows if len(of_row := getattr(row, kind))]
            if keys:
                labels = [_labels(row)[: len(of_row)] for row, of_row in keys]
                index.add(np.concatenate(labels), np.concatenate([of_row for _, of_row in keys]))

    @property
    def has_merged(self) -> bool:
        """Whether rows may have merged, so that they are not those of a store any more."""
        return self._merges

    def follow(self, gone: Iterable[int], rows: Sequence[Entry]) -> bool:
        """Bring loaded rows to what a store holds now; none of them has merged.

        Args:
            gone: ids of rows to remove.
            rows: changed ones and new ones, oldest first.

        Returns:
            False, and nothing is done, where a new row is not the newest, or there is no room.
        """
        removed = set(gone)
        stay = [id_ for id_ in self._ids if id_ not in removed]
        new = [row.segment for row in rows if row.segment not in self._rows]
        in_order = not new or not stay or new[0] > stay[-1]
        if not in_order or len(stay) + len(new) > self.config.max_segments:
            return False
        self.drop(removed)
        for row in rows:
            if row.segment not in self._rows:
                self._check(row)
                self._ids.append(row.segment)
            self._set(self._kept(row))
        return True

    def set_caption(
        self, segment: int, text: str, key: np.ndarray | None, sureness: Sureness = UNKNOWN
    ) -> Entry:
        """Give a row in RAM a caption; see ``Memory.set_caption``."""
        row = self._known(segment)
        return self._set(with_text(row, caption=text, sureness=sureness, caption_key=key))

    def add_notes(self, segment: int, notes: tuple[Note, ...], key: np.ndarray | None) -> Entry:
        """Give a row in RAM speech or subtitles; see ``Memory.add_notes``."""
        return self._set(with_text(self._known(segment), notes=notes, note_key=key))

    def drop(self, segments: Iterable[int]) -> None:
        """Remove the rows that stand for these ids, neighbours merged into them included."""
        for segment in segments:
            row = self.get(segment)
            if row is None:
                continue
            at = bisect_right(self._ids, row.segment) - 1
            del self._ids[at], self._rows[row.segment]
            self._unindex(row)
            self._consider(at - 1)

    # -- reading --

    def get(self, segment: int) -> Entry | None:
        """Return the row that stands for a segment, merged or not; None where it is unknown."""
        at = bisect_right(self._ids, segment) - 1
        row = self._rows[self._ids[at]] if at >= 0 else None
        return row if row is not None and segment <= row.last else None

    def entries(self) -> tuple[Entry, ...]:
        """Return every row, oldest first."""
        return tuple(self._rows[id_] for id_ in self._ids)

    def related(self, key: np.ndarray, k: int) -> tuple[Hit, ...]:
        """Find the entries that look most like a segment: the bridge's retrieval.

        Args:
            key: [D_key] unit visual key.
            k: >= 1.

        Returns:
            At most k hits, best visual key first.
        """
        ranked = self._ranked("visual_keys", key, k)
        return tuple(
            Hit(self._rows[id_], 0.0, score, score, None, score, "picture") for score, id_ in ranked
        )

    def nearest(
        self, key: np.ndarray, k: int, among: Sequence[Entry] | None = None
    ) -> tuple[Entry, ...]:
        """Find, for every kind of key, the k rows whose keys are nearest, in no order.

        Args:
            key: [D_key] unit row.
            k: >= 1.
            among: rows to choose from; None for all.
        """
        allowed = None
        if among is not None:
            firsts = np.array([row.segment for row in among], np.int64)
            allowed = (firsts[:, None] * MAX_KEYS + np.arange(MAX_KEYS)).ravel()
        found = {id_ for kind in KEY_KINDS for _, id_ in self._ranked(kind, key, k, allowed)}
        return tuple(self._rows[id_] for id_ in sorted(found))

    def num_bytes(self) -> int:
        """Return the bytes of keys, tokens, keyframes, text and index held now."""
        arrays: int = sum(
            sum(getattr(row, kind).nbytes for kind in KEY_KINDS) + row.tokens.nbytes
            + len(row.keyframe or b"") + len((row.caption or "").encode())
            + sum(len(note.text.encode()) + word_bytes(note) for note in row.notes)
            for row in self._rows.values()
        )  # fmt: skip
        return arrays + sum(index.num_bytes() for index in self._indexes.values())

    # -- rows --

    def _check(self, entry: Entry) -> None:
        if self._ids and entry.segment <= self._rows[self._ids[-1]].last:
            raise ValueError(f"cache: segment {entry.segment} is not newer than the last one")
        if entry.visual_keys.shape[1] != self.config.key_dim:
            raise ValueError(
                f"cache: keys are {entry.visual_keys.shape[1]} wide, not {self.config.key_dim}"
            )
        if entry.tokens.size and entry.tokens.shape != self.config.token_shape:
            raise ValueError(
                f"cache: tokens are {entry.tokens.shape}, not {self.config.token_shape}"
            )

    def _insert(self, entry: Entry) -> Entry | None:
        self._ids.append(entry.segment)
        self._set(self._kept(entry))
        is_full = len(self._ids) > self.config.max_segments
        if self._merges:
            # The row before is final now: it and its predecessor may merge.
            self._consider(len(self._ids) - 3)
        elif is_full:
            self._merges = True
            for at in range(len(self._ids) - 2):
                self._consider(at)
        return self._make_room() if is_full else None

    def _kept(self, entry: Entry) -> Entry:
        """Return a row as it is held: as much text as fits, and no payload that a store has."""
        if entry.caption or entry.notes or entry.sureness:
            entry = with_text(entry)
        if self.config.keys_only and (entry.tokens.size or entry.keyframe is not None):
            entry = replace(entry, tokens=entry.tokens[:0, :0], keyframe=None)
        return entry

    def _set(self, row: Entry) -> Entry:
        before, self._rows[row.segment] = self._rows.get(row.segment), row
        labels = _labels(row)
        for kind, index in self._indexes.items():
            keys = getattr(row, kind)
            if len(keys):
                index.add(labels[: len(keys)], keys)
            if before is not None and len(getattr(before, kind)) > len(keys):
                index.remove(labels[len(keys) :])
        return row

    def _unindex(self, row: Entry) -> None:
        for index in self._indexes.values():
            index.remove(_labels(row))

    def _known(self, segment: int) -> Entry:
        row = self.get(segment)
        if row is None:
            raise KeyError(f"cache: no segment {segment}")
        return row

    # -- making room --

    def _consider(self, at: int) -> None:
        """Put the rows at `at` and `at + 1` forward for a merge, the newest row excepted."""
        if self._merges and 0 <= at < len(self._ids) - 2:
            left, right = self._rows[self._ids[at]], self._rows[self._ids[at + 1]]
            if left.source == right.source:
                self._queue.offer(left, right, self._rows)

    def _make_room(self) -> Entry | None:
        pair = self._queue.pop(self._rows)
        if pair is None:
            self.drop(self._ids[:1])
            return None
        left, right = pair
        at = bisect_right(self._ids, left) - 1
        gone = self._rows.pop(right)
        del self._ids[at + 1]
        self._unindex(gone)
        row = self._set(merged(self._rows[left], gone))
        self._consider(at - 1)
        self._consider(at)
        return row

    # -- finding --

    def _ranked(
        self, kind: str, key: np.ndarray, depth: int, allowed: np.ndarray | None = None
    ) -> list[tuple[float, int]]:
        """Return (cosine, id) of the best rows; their best key decides."""
        ids, scores = self._indexes[kind].search(key, depth, allowed=allowed, group=MAX_KEYS)
        # Half precision makes some rows a little longer than 1.
        return [
            (min(score, 1.0), id_) for score, id_ in zip(scores.tolist(), ids.tolist(), strict=True)
        ]


def _labels(row: Entry) -> np.ndarray:
    """Return the index ids of a row's keys, of either kind."""
    return row.segment * MAX_KEYS + np.arange(MAX_KEYS)
