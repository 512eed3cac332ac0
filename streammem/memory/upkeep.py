"""Care of a durable memory: look, check, export, make smaller, forget.

What is written while a stream runs is `store.py`'s business.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from streammem.errors import StoreError
from streammem.memory.database import SELECT, UPDATE, Row, column, to_entry, with_columns
from streammem.memory.entry import Entry, caption_of
from streammem.memory.folder import remove_keyframes
from streammem.memory.named import remove_taught_from
from streammem.memory.store import Store
from streammem.types import Event, Segment, TimeSpan

_EXPORT_ROWS = 64
_TOUCHING_S = 1e-3


@dataclass(frozen=True, slots=True)
class MemorySummary:
    """What `streammem memory info` tells.

    Attributes:
        start: seconds; None in an empty memory.
        wall_start: Unix seconds at the begin of the first row that knows them; None without one.
        wall_end: Unix seconds at the end of the last such row.
        database_bytes: in use; freed pages that await reuse do not count.
    """

    format: int
    fingerprint: str
    created: str
    segments: int
    frames: int
    captions: int
    sources: tuple[str, ...]
    start: float | None
    end: float | None
    wall_start: float | None
    wall_end: float | None
    database_bytes: int
    keyframes: int
    keyframe_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that `verify` found; `segment` is None where it is not one segment's."""

    segment: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed, or would remove.

    Attributes:
        keyframes: number of keyframes.
        tokens: number of token blocks.
        segments: ids of the rows that are gone, for the cache to drop.
        bytes: in use afterwards.
    """

    keyframes: int
    tokens: int
    segments: tuple[int, ...]
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.keyframes} keyframes, {self.tokens} token blocks and {len(self.segments)} "
            f"segments; {self.bytes / 1e6:.2f} MB are left"
        )


def info(store: Store) -> MemorySummary:
    """Describe a memory.

    Raises:
        StoreError: it cannot be read.
    """
    found = store.database.query(
        'SELECT count(*), total(frames), count(caption), min(start), max("end"), '
        'min(wall_start), max(wall_start + "end" - start), '
        "count(keyframe), total(keyframe_bytes) FROM segments"
    )[0]
    segments, frames, captions, start, end, wall_start, wall_end, keyframes, size = found
    sources = store.database.query(
        "SELECT source FROM segments GROUP BY source ORDER BY min(segment)"
    )
    return MemorySummary(
        format=store.header.format,
        fingerprint=store.header.fingerprint,
        created=store.header.created,
        segments=segments,
        frames=int(frames),
        captions=captions,
        sources=tuple(source for (source,) in sources),
        start=start,
        end=end,
        wall_start=wall_start,
        wall_end=wall_end,
        database_bytes=store.database.used_bytes(),
        keyframes=keyframes,
        keyframe_bytes=int(size),
    )


def verify(store: Store) -> tuple[Fault, ...]:
    """Read everything and check it against its checksums; a writer may go on writing.

    Returns:
        What is wrong; empty where all is well. Changes nothing.
    """
    faults: list[Fault] = []

    def attempt(segment: int | None, action: Callable[[], object]) -> None:
        try:
            action()
        except (StoreError, ValueError) as error:
            faults.append(Fault(segment, str(error)))

    def pages() -> None:
        found = store.database.query("PRAGMA integrity_check(20)")
        faults.extend(Fault(None, text) for (text,) in found if text != "ok")

    def every_row() -> None:
        for segment in store.segments():
            attempt(segment, partial(store.read_unless_gone, segment))

    def count() -> None:
        if missing := store.missing_rows():
            faults.append(Fault(None, f"{missing} rows are missing"))

    for action in (pages, count, every_row, store.recurrent_state):
        attempt(None, action)
    return tuple(faults)


def entries(store: Store, *, source: str | None = None) -> Iterator[Entry]:
    """Yield what is kept, oldest first, without tokens and keyframes; a writer may go on writing.

    Args:
        store: open in any mode.
        source: only what was seen there.

    Raises:
        StoreError: a row is damaged.
    """
    last = -1
    while found := store.database.query(
        f"{SELECT} WHERE segment > ? AND (? IS NULL OR source = ?) ORDER BY segment LIMIT ?",
        last, source, source, _EXPORT_ROWS,
    ):  # fmt: skip
        for row in found:
            yield to_entry(row, store.header.key_dim)
        last = found[-1][0]


def times(store: Store) -> np.ndarray:
    """Return [N, 4] float64 of every row by segment: segment, start, end (s), wall start.

    The last is Unix seconds, NaN where it is unknown. Keys and pictures are not read.
    """
    found = store.database.query(
        'SELECT segment, start, "end", wall_start FROM segments ORDER BY segment'
    )
    return np.array(found, np.float64).reshape(-1, 4)  # None becomes NaN


def caption_at(store: Store, segment: int) -> str | None:
    """Return the caption of a row; None where it has none, or there is no such row."""
    found = store.database.query("SELECT caption FROM segments WHERE segment = ?", segment)
    return found[0][0] if found else None


def events_of(entry: Entry) -> tuple[Event, ...]:
    """Return the events that an entry keeps: its segment, its caption, its notes.

    A memory keeps neither a segment's depth nor the reason why it ended: both are None. Segments
    that were merged are one, and the lines of their captions one caption, which is as sure as the
    least sure line.
    """
    events: list[Event] = [Segment(entry.segment, entry.start, entry.end, None, None)]
    if entry.caption or entry.sureness:
        events.append(caption_of(entry))
    return (*events, *entry.notes)


def compact(store: Store) -> None:
    """Give unused space back to the file system and drop traces of crashes.

    Raises:
        StoreError: the disk is too full for a second copy of the database, or a reader holds an
            old state: close it and try again.
    """
    store.sweep_keyframes()
    store.database.query("VACUUM")
    if not store.database.checkpoint():
        raise StoreError(f"{store.path}: a reader holds an old state; close it, then compact again")


def overlapping(
    store: Store, between: TimeSpan, *, source: str | None = None, wall: bool = False
) -> tuple[int, ...]:
    """Return the ids of the rows that `forget` would remove; otherwise as there."""
    start, end = between
    begins = "wall_start" if wall else "start"
    ends = 'wall_start + "end" - start' if wall else '"end"'
    found = store.database.query(
        f'SELECT segment FROM segments WHERE {begins} < ? AND {ends} > ? '
        "AND (? IS NULL OR source = ?) ORDER BY segment",
        end, start, source, source,
    )  # fmt: skip
    return tuple(segment for (segment,) in found)


@dataclass(frozen=True, slots=True)
class RowRun:
    """Neighbouring rows of one source that touch in time.

    Attributes:
        start: seconds of the source's clock.
        end: likewise.
        wall_start: Unix seconds at ``start``; None where they are not known.
        segments: rows in it.
    """

    source: str
    start: float
    end: float
    wall_start: float | None
    segments: int


def runs(store: Store, segments: Sequence[int]) -> tuple[RowRun, ...]:
    """Return what these rows cover, as few spans as there are, in the order of their ids."""
    wanted = set(segments)
    found: list[RowRun] = []
    query = 'SELECT segment, source, start, "end", wall_start FROM segments ORDER BY segment'
    for segment, source, start, end, wall_start in store.database.query(query):
        if segment not in wanted:
            continue
        last = found[-1] if found else None
        if last and last.source == source and abs(start - last.end) <= _TOUCHING_S:
            found[-1] = replace(last, end=end, segments=last.segments + 1)
        else:
            found.append(RowRun(source, start, end, wall_start, 1))
    return tuple(found)


def forget(
    store: Store, between: TimeSpan, *, source: str | None = None, wall: bool = False
) -> tuple[int, ...]:
    """Remove every row that overlaps a window, for good.

    Rows, captions, tokens and keyframes are overwritten or unlinked, and the recurrent state,
    which has seen them too, is deleted: a session starts with fresh memory tokens then. A row that
    reaches into the window goes as a whole. What a file system keeps of unlinked files is not
    ours to erase. Load the cache anew afterwards.

    Args:
        store: open for writing.
        between: seconds of each source's clock.
        source: only this source's rows.
        wall: ``between`` is Unix seconds; rows that do not know their wall clock stay.

    Returns:
        Ids of the rows that are gone.

    Raises:
        StoreError: as for `compact`; the rows are gone from every later reading even then.
    """
    with store.database.transaction():
        gone = overlapping(store, between, source=source, wall=wall)
        names = {name for segment in gone if (name := _keyframe(store, segment))}
        if gone:
            store.database.query("DELETE FROM state WHERE name = 'recurrent'")
            remove_taught_from(store.database, gone)
            _delete(store, gone)
    if gone:
        remove_keyframes(store.path, names)
        try:
            compact(store)
        except StoreError as error:
            told = f"{len(gone)} segments are forgotten, but traces of them stay on disk"
            raise StoreError(f"{told}: {error}") from error
    return gone


def prune(
    store: Store,
    *,
    budget_bytes: int | None = None,
    keep_s: float | None = None,
    now: float | None = None,
) -> Pruned:
    """Keep a memory within its budget and its time.

    Too old rows go first. Then, while the budget is exceeded: keyframes, thinned evenly over the
    whole time (every second, then every fourth, ...); tokens likewise; rows with their captions
    last, oldest first.

    Args:
        store: open for writing.
        budget_bytes: bytes of database and keyframes together, >= 0; an empty database needs
            about 40 KB.
        keep_s: rows written longer ago than this go.
        now: Unix seconds; the clock by default.

    Raises:
        StoreError: the disk fails.
    """
    pruned = _Pruning(store).run(budget_bytes, _oldest(keep_s, now))
    store.database.shrink()
    store.database.checkpoint()
    return pruned


def would_prune(
    store: Store,
    *,
    budget_bytes: int | None = None,
    keep_s: float | None = None,
    now: float | None = None,
) -> Pruned:
    """Return what `prune` would remove, and remove nothing; otherwise as there."""
    store.database.require_writing()
    with store.database.snapshot():  # which is rolled back
        return _Pruning(store, rehearses=True).run(budget_bytes, _oldest(keep_s, now))


class _Pruning:
    """One pruning of a memory; one that rehearses touches no file, and its caller rolls back."""

    def __init__(self, store: Store, *, rehearses: bool = False) -> None:
        self._store, self._rehearses = store, rehearses

    def run(self, budget: int | None, oldest: float | None) -> Pruned:
        """Remove what was written before `oldest`, then what exceeds the budget."""
        segments: list[int] = []
        if oldest is not None:
            old = f"{SELECT} WHERE written < ? ORDER BY segment"
            segments += self._drop_rows(self._store.database.query(old, oldest))
        keyframes = tokens = 0
        if budget is not None:
            keyframes = self._until(budget, self._thin_keyframes)
            tokens = self._until(budget, self._thin_tokens)
            while (excess := _bytes(self._store) - budget) > 0:
                found = self._store.database.query(f"{SELECT} ORDER BY segment LIMIT 256")
                if not found:
                    break
                segments += self._drop_rows(_enough(found, _row_bytes, excess))
        return Pruned(keyframes, tokens, tuple(segments), _bytes(self._store))

    def _until(self, budget: int, thin: Callable[[int], int]) -> int:
        """Thin until the budget is kept or nothing is left; return how many went."""
        total = 0
        while (excess := _bytes(self._store) - budget) > 0 and (count := thin(excess)):
            total += count
        return total

    def _thin_keyframes(self, excess: int) -> int:
        found = self._store.database.query(f"{SELECT} WHERE keyframe IS NOT NULL")
        chosen = _enough(
            sorted(found, key=_thinning), lambda row: column(row, "keyframe_bytes"), excess
        )
        with self._transaction():
            for row in chosen:
                thin = with_columns(row, keyframe=None, keyframe_bytes=0)
                self._store.database.query(UPDATE, *thin, row[0])
        self._remove_keyframes(chosen)
        return len(chosen)

    def _thin_tokens(self, excess: int) -> int:
        found = self._store.database.query(f"{SELECT} WHERE has_tokens")
        sizes = dict(self._store.database.query("SELECT segment, length(block) FROM tokens"))
        chosen = _enough(sorted(found, key=_thinning), lambda row: sizes.get(row[0], 0), excess)
        with self._transaction():
            for row in chosen:
                thin = with_columns(row, has_tokens=0)
                self._store.database.query(UPDATE, *thin, row[0])
                self._store.database.query("DELETE FROM tokens WHERE segment = ?", row[0])
        return len(chosen)

    def _drop_rows(self, found: list[Row]) -> list[int]:
        segments = [row[0] for row in found]
        with self._transaction():
            _delete(self._store, segments)
        self._remove_keyframes(found)
        return segments

    def _transaction(self) -> AbstractContextManager[None]:
        return nullcontext() if self._rehearses else self._store.database.transaction()

    def _remove_keyframes(self, found: list[Row]) -> None:
        if not self._rehearses:
            names = {name for row in found if (name := column(row, "keyframe"))}
            remove_keyframes(self._store.path, names)


def _oldest(keep_s: float | None, now: float | None) -> float | None:
    if keep_s is None:
        return None
    return (time.time() if now is None else now) - keep_s


def _keyframe(store: Store, segment: int) -> str | None:
    query = "SELECT keyframe FROM segments WHERE segment = ?"
    return store.database.query(query, segment)[0][0]


def _delete(store: Store, segments: Sequence[int]) -> None:
    store.keep_ids_given()  # no later segment takes the name of one that is gone
    if store.database.query("SELECT 1 FROM sqlite_master WHERE name = 'rekeyed'"):
        for segment in segments:  # new keys that a reindex has made so far
            store.database.query("DELETE FROM rekeyed WHERE segment = ?", segment)
    for segment in segments:
        store.database.query("DELETE FROM tokens WHERE segment = ?", segment)
        store.database.query("DELETE FROM segments WHERE segment = ?", segment)


def _thinning(row: Row) -> tuple[int, int]:
    """Order in which rows lose something: odd ids, then odd multiples of 2, of 4, ..."""
    segment = row[0]
    zeros = (segment & -segment).bit_length() if segment else 64
    return zeros, segment


def _enough(found: list[Row], size: Callable[[Row], int], excess: int) -> list[Row]:
    """Return the first rows that together have `excess` bytes."""
    chosen, total = [], 0
    for row in found:
        if total >= excess:
            break
        chosen.append(row)
        total += size(row)
    return chosen


def _row_bytes(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes)) + 100


def _bytes(store: Store) -> int:
    (size,) = store.database.query("SELECT total(keyframe_bytes) FROM segments")[0]
    return store.database.used_bytes() + int(size)
