"""Care of a durable memory: look, check, make smaller, forget.

What is written while a stream runs is `store.py`'s business.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from streammem.errors import StoreError
from streammem.memory import rows
from streammem.memory.folder import remove_keyframes
from streammem.memory.store import Store


@dataclass(frozen=True, slots=True)
class MemorySummary:
    """What `streammem memory info` tells.

    Attributes:
        start: seconds; None in an empty memory.
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
    """What `prune` removed.

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


def info(store: Store) -> MemorySummary:
    """Describe a memory.

    Raises:
        StoreError: it cannot be read.
    """
    found = store.database.query(
        'SELECT count(*), total(frames), count(caption), min(start), max("end"), '
        "count(keyframe), total(keyframe_bytes) FROM segments"
    )[0]
    segments, frames, captions, start, end, keyframes, size = found
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
        database_bytes=store.database.used_bytes(),
        keyframes=keyframes,
        keyframe_bytes=int(size),
    )


def verify(store: Store) -> tuple[Fault, ...]:
    """Read everything and check it against its checksums.

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
        for (segment,) in store.database.query("SELECT segment FROM segments ORDER BY segment"):
            attempt(segment, partial(store.read, segment))

    def count() -> None:
        if missing := store.missing_rows():
            faults.append(Fault(None, f"{missing} rows are missing"))

    for action in (pages, count, every_row, store.recurrent_state):
        attempt(None, action)
    return tuple(faults)


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


def forget(
    store: Store, between: tuple[float, float], *, source: str | None = None
) -> tuple[int, ...]:
    """Remove every row that overlaps a window, for good.

    Rows, captions, tokens and keyframes are overwritten or unlinked, and the recurrent state,
    which has seen them too, is deleted: a session starts with fresh memory tokens then. A row that
    reaches into the window goes as a whole. What a file system keeps of unlinked files is not
    ours to erase. Load the cache anew afterwards.

    Args:
        store: open for writing.
        between: (a, b) seconds.
        source: only this source's rows.

    Returns:
        Ids of the rows that are gone.

    Raises:
        StoreError: as for `compact`; the rows are gone from every later reading even then.
    """
    a, b = between
    condition = 'start < ? AND "end" > ? AND (? IS NULL OR source = ?)'
    with store.database.transaction():
        gone = store.database.query(
            f"SELECT segment, keyframe FROM segments WHERE {condition}", b, a, source, source
        )
        if gone:
            store.database.query("DELETE FROM state")
            _delete(store, [segment for segment, _ in gone])
    if gone:
        remove_keyframes(store.path, {name for _, name in gone if name})
        compact(store)
    return tuple(segment for segment, _ in gone)


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
    segments: list[int] = []
    if keep_s is not None:
        oldest = (time.time() if now is None else now) - keep_s
        old = store.database.query(f"{rows.SELECT} WHERE written < ? ORDER BY segment", oldest)
        segments += _drop_rows(store, old)
    keyframes = tokens = 0
    if budget_bytes is not None:
        keyframes = _until(store, budget_bytes, _thin_keyframes)
        tokens = _until(store, budget_bytes, _thin_tokens)
        while (excess := _bytes(store) - budget_bytes) > 0:
            oldest_rows = store.database.query(f"{rows.SELECT} ORDER BY segment LIMIT 256")
            if not oldest_rows:
                break
            segments += _drop_rows(store, _enough(oldest_rows, _row_bytes, excess))
    store.database.shrink()
    store.database.checkpoint()
    return Pruned(keyframes, tokens, tuple(segments), _bytes(store))


def _until(store: Store, budget: int, thin: Callable[[Store, int], int]) -> int:
    """Thin until the budget is kept or nothing is left; return how many went."""
    total = 0
    while (excess := _bytes(store) - budget) > 0 and (count := thin(store, excess)):
        total += count
    return total


def _thin_keyframes(store: Store, excess: int) -> int:
    found = store.database.query(f"{rows.SELECT} WHERE keyframe IS NOT NULL")
    chosen = _enough(
        sorted(found, key=_thinning), lambda row: rows.column(row, "keyframe_bytes"), excess
    )
    with store.database.transaction():
        for row in chosen:
            thin = rows.changed(row, keyframe=None, keyframe_bytes=0)
            store.database.query(rows.UPDATE, *thin, row[0])
    remove_keyframes(store.path, {rows.column(row, "keyframe") for row in chosen})
    return len(chosen)


def _thin_tokens(store: Store, excess: int) -> int:
    found = store.database.query(f"{rows.SELECT} WHERE has_tokens")
    shape = store.header.token_shape
    chosen = _enough(sorted(found, key=_thinning), lambda _: 2 * shape[0] * shape[1], excess)
    with store.database.transaction():
        for row in chosen:
            store.database.query(rows.UPDATE, *rows.changed(row, has_tokens=0), row[0])
            store.database.query("DELETE FROM tokens WHERE segment = ?", row[0])
    return len(chosen)


def _drop_rows(store: Store, found: list[rows.Row]) -> list[int]:
    segments = [row[0] for row in found]
    with store.database.transaction():
        _delete(store, segments)
    remove_keyframes(store.path, {name for row in found if (name := rows.column(row, "keyframe"))})
    return segments


def _delete(store: Store, segments: list[int]) -> None:
    for segment in segments:
        store.database.query("DELETE FROM tokens WHERE segment = ?", segment)
        store.database.query("DELETE FROM segments WHERE segment = ?", segment)


def _thinning(row: rows.Row) -> tuple[int, int]:
    """Order in which rows lose something: odd ids, then odd multiples of 2, of 4, ..."""
    segment = row[0]
    zeros = (segment & -segment).bit_length() if segment else 64
    return zeros, segment


def _enough(found: list[rows.Row], size: Callable[[rows.Row], int], excess: int) -> list[rows.Row]:
    """Return the first rows that together have `excess` bytes."""
    chosen, total = [], 0
    for row in found:
        if total >= excess:
            break
        chosen.append(row)
        total += size(row)
    return chosen


def _row_bytes(row: rows.Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes)) + 100


def _bytes(store: Store) -> int:
    (size,) = store.database.query("SELECT total(keyframe_bytes) FROM segments")[0]
    return store.database.used_bytes() + int(size)
