"""New keys for a memory that lasts, from its keyframes and its words, by another model of keys.

    with Store.open("trips", None, "rw") as store:
        done = reindex(store, fingerprint, key_dim=513, picture_key=..., sentence_keys=...)

The old keys stay in force until all new ones are there; then one transaction replaces them. What
was made before a kill is kept, and the next call goes on from it. No neural network lives here.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from streammem.errors import StoreError
from streammem.memory.database import SELECT, UPDATE, checksum, column, to_row, with_columns
from streammem.memory.entry import MAX_KEYS, Entry, decode_keyframe
from streammem.memory.folder import write_header
from streammem.memory.store import HEADER_STATE, Store

AT_ONCE = 16  # rows a transaction; a kill loses at most these
TARGET_STATE = "rekeying"  # in `state`: for which keys `rekeyed` is


class Reindexed(NamedTuple):
    """What was done.

    Attributes:
        rows: with new keys.
        resumed: of those, how many had them from an earlier call.
        without_picture: whose keyframe is gone: they are found by their words alone.
    """

    rows: int
    resumed: int
    without_picture: int


def reindex(
    store: Store,
    fingerprint: str,
    key_dim: int,
    picture_key: Callable[[np.ndarray], np.ndarray],
    sentence_keys: Callable[[Sequence[str]], np.ndarray],
    progress: Callable[[Iterable[tuple[int, bytes]]], Iterable[tuple[int, bytes]]] = iter,
) -> Reindexed:
    """Give every row new keys.

    Args:
        store: open for writing, by no model.
        fingerprint: of the model with the new keys; what tokens mean must not change.
        key_dim: of the new keys, whose last place says that nothing is known of a picture.
        picture_key: maps a picture [H, W, 3] uint8 RGB to a unit key [K].
        sentence_keys: maps sentences to unit keys [N, K].
        progress: passes on the rows that are still to do, to show how it goes.

    Raises:
        StoreError: the memory is another model's, a row or keyframe is damaged, or the disk fails;
            the old keys are in force then.
    """
    made_by = store.header.fingerprint
    if made_by.partition("+")[0] != fingerprint.partition("+")[0]:
        raise StoreError(
            f"{store.path} was made by another model ({made_by}); new keys do not make its tokens "
            "readable: use that model, or index the source again into a new memory"
        )
    query = store.database.query
    # 1. What an earlier call made for the same keys stays; for others it goes.
    target = json.dumps({"fingerprint": fingerprint, "key_dim": key_dim}).encode()
    with store.database.transaction():
        if query("SELECT block FROM state WHERE name = ?", TARGET_STATE) != [(target,)]:
            query("DROP TABLE IF EXISTS rekeyed")
        query(
            "CREATE TABLE IF NOT EXISTS rekeyed (segment INTEGER PRIMARY KEY, "
            "visual_keys BLOB NOT NULL, text_keys BLOB NOT NULL, of BLOB NOT NULL)"
        )
        _put(store, TARGET_STATE, target)
    # 2. Keys of the rows that have none yet, or that have changed since, as their checksum tells.
    missing = (
        "SELECT segment, checksum FROM segments WHERE NOT EXISTS "
        "(SELECT 1 FROM rekeyed WHERE rekeyed.segment = segments.segment "
        "AND rekeyed.of = segments.checksum) ORDER BY segment"
    )
    wanted = query(missing)
    resumed = query("SELECT count(*) FROM segments")[0][0] - len(wanted)
    pending: list[tuple[int, bytes, bytes, bytes]] = []
    for number, (segment, check) in enumerate(progress(wanted), start=1):
        entry = _with_keys(store.read(segment), key_dim, picture_key, sentence_keys)
        row = to_row(entry, keyframe=None, keyframe_bytes=0, written=0.0)
        keys = (column(row, name) for name in ("visual_keys", "text_keys"))
        pending.append((segment, *keys, check))
        if number % AT_ONCE == 0:
            _keep(store, pending)
    _keep(store, pending)
    # 3. All at once: the keys, and the header that goes with them.
    header = replace(store.header, fingerprint=fingerprint, key_dim=key_dim)
    with store.database.transaction():
        count = without = 0
        last = -1
        while found := query(
            f"{SELECT} WHERE segment > ? ORDER BY segment LIMIT ?", last, 4 * AT_ONCE
        ):
            for row in found:
                last = column(row, "segment")
                select = "SELECT visual_keys, text_keys FROM rekeyed WHERE segment = ?"
                ((visual, text),) = query(select, last)
                changed = with_columns(row, visual_keys=visual, text_keys=text)
                query(UPDATE, *changed, last)
                count += 1
                without += column(row, "keyframe") is None
        query("DROP TABLE rekeyed")
        query("DELETE FROM state WHERE name = ?", TARGET_STATE)
        _put(store, HEADER_STATE, target)
    write_header(store.path, header)
    store.header = header
    store.database.shrink()
    return Reindexed(count, resumed, without)


def _with_keys(
    entry: Entry,
    key_dim: int,
    picture_key: Callable[[np.ndarray], np.ndarray],
    sentence_keys: Callable[[Sequence[str]], np.ndarray],
) -> Entry:
    """Return an entry with the keys of its keyframe, of its captions and of its speech."""
    visual = np.zeros((1, key_dim), np.float32)
    if entry.keyframe:
        visual[0] = picture_key(decode_keyframe(entry.keyframe))
    else:
        visual[0, -1] = 1.0  # like no picture and no sentence
    captions = list(filter(None, (entry.caption or "").split("\n")))[-MAX_KEYS:]
    speech = " ".join(note.text for note in entry.notes)
    none = np.empty((0, key_dim), np.float32)
    return replace(
        entry,
        visual_keys=visual,
        caption_keys=sentence_keys(captions) if captions and len(entry.caption_keys) else none,
        note_keys=sentence_keys([speech]) if speech and len(entry.note_keys) else none,
    )


def _keep(store: Store, pending: list[tuple[int, bytes, bytes, bytes]]) -> None:
    with store.database.transaction():
        for row in pending:
            store.database.query("INSERT OR REPLACE INTO rekeyed VALUES (?, ?, ?, ?)", *row)
    pending.clear()


def _put(store: Store, name: str, block: bytes) -> None:
    query = "INSERT OR REPLACE INTO state VALUES (?, ?, ?)"
    store.database.query(query, name, block, checksum(block))
