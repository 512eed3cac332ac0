"""How an entry lies in SQLite: tables, migrations, rows to entries and back, checksums.

Opening, writing and closing are `store.py`'s business.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from streammem.errors import StoreError
from streammem.memory.entry import Entry, Sureness, from_eight_bits, num_groups, to_eight_bits
from streammem.types import Note

SCHEMA = """
CREATE TABLE segments (
  segment INTEGER PRIMARY KEY,
  last INTEGER NOT NULL, start REAL NOT NULL, "end" REAL NOT NULL,
  frames INTEGER NOT NULL, merged INTEGER NOT NULL,
  source TEXT NOT NULL, wall_start REAL, caption TEXT, notes TEXT NOT NULL,
  visual_keys BLOB NOT NULL, text_keys BLOB NOT NULL,
  keyframe TEXT, keyframe_bytes INTEGER NOT NULL, has_tokens INTEGER NOT NULL,
  written REAL NOT NULL, checksum BLOB NOT NULL, sureness TEXT
);
CREATE TABLE tokens (segment INTEGER PRIMARY KEY, block BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, block BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE counted (segments INTEGER NOT NULL);
INSERT INTO counted VALUES (0);
CREATE TRIGGER count_in AFTER INSERT ON segments BEGIN
  UPDATE counted SET segments = segments + 1;
END;
CREATE TRIGGER count_out AFTER DELETE ON segments BEGIN
  UPDATE counted SET segments = segments - 1;
END;
"""
# `counted` tells when a damaged page makes rows disappear without an error.

COLUMNS = (
    "segment", "last", "start", "end", "frames", "merged", "source", "wall_start", "caption",
    "notes", "visual_keys", "text_keys", "keyframe", "keyframe_bytes", "has_tokens", "written",
    "sureness", "checksum",
)  # fmt: skip
_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)  # END is a keyword
_MARKS = ", ".join("?" * len(COLUMNS))
SELECT = f"SELECT {_NAMES} FROM segments"
INSERT = f"INSERT INTO segments ({_NAMES}) VALUES ({_MARKS})"
UPDATE = f"UPDATE segments SET ({_NAMES}) = ({_MARKS}) WHERE segment = ?"

MIGRATIONS: dict[int, str] = {
    1: "", 2: "", 3: "ALTER TABLE segments ADD COLUMN sureness TEXT", 4: "",
}  # fmt: skip
"""SQL that turns a database of format N into one of format N + 1. Format 1 is the first.

Since format 2 token blocks have 8 bits a value; those of format 1 stay as they are, and `to_tokens`
tells them by their length. Since format 3 keys of notes stand before those of captions in
`text_keys`, told by the length too; before, no keys of notes were written. Since format 4 a live
source has one timeline; before, each of its runs began at 0, see `timeline.py` and `Database`. And
rows have `sureness`: JSON, [confidence, unsure] for each line of the caption, with its likelihood
behind them where that is known; NULL where it is not known, which checksums leave out, so that
those of older rows hold. Since format 5 a note may have a fourth value, the times at which its
words begin.
"""

ONE_TIMELINE = 4
"""The first format in which a live source has one timeline."""

_PLAIN = COLUMNS[:9]  # as they are in an Entry
_HALF = np.dtype("<f2")

Value = int | float | str | bytes | None
Row = tuple[Any, ...]
"""The values of COLUMNS, in their order."""


def checksum(*values: Value) -> bytes:
    """Return 8 bytes that change with any of the values or their types."""
    digest = blake2b(digest_size=8)
    for value in values:
        content = _content(value)
        digest.update(struct.pack("<cq", type(value).__name__[:1].encode(), len(content)))
        digest.update(content)
    return digest.digest()


def to_row(entry: Entry, *, keyframe: str | None, keyframe_bytes: int, written: float) -> Row:
    """Return an entry's row without its tokens, in the order of COLUMNS.

    Args:
        entry: what to keep.
        keyframe: name of its keyframe's file.
        keyframe_bytes: size of that file.
        written: Unix seconds when the entry was first kept.
    """
    values: Row = (
        entry.segment, entry.last, float(entry.start), float(entry.end),
        entry.frames, entry.merged, entry.source,
        None if entry.wall_start is None else float(entry.wall_start),
        entry.caption, _notes_text(entry.notes),
        _bytes(entry.visual_keys), _text_block(entry),
        keyframe, keyframe_bytes, int(entry.tokens.size > 0), written,
        _sureness(entry),
    )  # fmt: skip
    return _checked(values)


def changed(row: Row, **columns: Value) -> Row:
    """Return a row with these columns changed and its checksum renewed."""
    return _checked(tuple(columns.get(name, row[i]) for i, name in enumerate(COLUMNS[:-1])))


def is_sound(row: Row) -> bool:
    """Tell whether a row's checksum fits."""
    return bool(_checked(row[:-1])[-1] == row[-1])


def shifted(row: Row, offset: float) -> Row:
    """Return a row whose times are later by so many seconds; its wall clock stays."""
    notes = [note.shifted(offset) for note in _notes(column(row, "notes"))]
    return changed(
        row,
        start=column(row, "start") + offset,
        end=column(row, "end") + offset,
        notes=_notes_text(notes),
    )


def to_entry(row: Row, key_dim: int) -> Entry:
    """Return the entry of a row, without tokens and keyframe.

    Raises:
        StoreError: the checksum does not fit.
    """
    if not is_sound(row):
        raise StoreError(f"segment {row[0]} is damaged; see `streammem memory verify`")
    field = dict(zip(COLUMNS, row, strict=True))
    note_keys, caption_keys = _text_keys(field["text_keys"], key_dim)
    return Entry(
        **{name: field[name] for name in _PLAIN},
        notes=_notes(field["notes"]),
        sureness=tuple(Sureness(*each) for each in json.loads(field["sureness"] or "[]")),
        visual_keys=_array(field["visual_keys"], key_dim),
        caption_keys=caption_keys,
        note_keys=note_keys,
        tokens=np.empty((0, 0), np.float16),
    )


def column(row: Row, name: str) -> Any:
    """Return one column of a row."""
    return row[COLUMNS.index(name)]


def token_block(tokens: np.ndarray) -> tuple[bytes, bytes]:
    """Return a token block [M, D] as bytes, and their checksum.

    A byte that says 8, then a scale in half precision for every 32 values, then the values.
    """
    largest, levels = to_eight_bits(tokens)
    block = bytes([8]) + _bytes(largest) + levels.tobytes()
    return block, checksum(block)


def to_tokens(segment: int, block: bytes, check: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Return the tokens [M, D] float16 of a block.

    Raises:
        StoreError: the checksum does not fit.
    """
    if checksum(block) != check:
        raise StoreError(f"tokens of segment {segment} are damaged; see `streammem memory verify`")
    if len(block) % 2 == 0:  # of format 1, in half precision; the first byte makes the others odd
        return np.frombuffer(block, _HALF).reshape(shape)
    scales, values = block[1 : 1 + 2 * num_groups(shape)], block[1 + 2 * num_groups(shape) :]
    levels = np.frombuffer(values, np.int8).reshape(num_groups(shape), -1)
    return from_eight_bits(np.frombuffer(scales, _HALF), levels, shape)


def migrations(old: int, new: int) -> Iterator[str]:
    """Yield the statements that bring a database from one format to a newer one."""
    for version in range(old, new):
        yield from filter(None, map(str.strip, MIGRATIONS[version].split(";")))
    yield f"PRAGMA user_version = {new}"


def _sureness(entry: Entry) -> str | None:
    lines = [sure[:2] if sure.likelihood is None else sure for sure in entry.sureness]
    return json.dumps(lines) if lines else None


def _checked(values: Row) -> Row:
    """Return values with their checksum; the last of them is the sureness."""
    kept = values if values[-1] is not None else values[:-1]
    return (*values, checksum(*kept))


def _notes_text(notes: Iterable[Note]) -> str:
    """Return notes as JSON: [start, end, text], then the times of words, then the kind.

    The last two stand only where times are known, or the kind is not ``speech``.
    """
    rows = []
    for note in notes:
        kind = [note.kind] if note.kind != "speech" else []
        times = [note.word_starts] if note.word_starts or kind else []
        rows.append([note.start, note.end, note.text, *times, *kind])
    return json.dumps(rows, ensure_ascii=False)


def _notes(text: str) -> tuple[Note, ...]:
    return tuple(
        Note(start, end, said, *(tuple(more[0]), *more[1:]) if more else ())
        for start, end, said, *more in json.loads(text)
    )


def _text_block(entry: Entry) -> bytes:
    """Return the keys of captions; before them, if there are any, those of notes and their number.

    That number's byte makes the length odd.
    """
    captions, notes = _bytes(entry.caption_keys), _bytes(entry.note_keys)
    return bytes([len(entry.note_keys)]) + notes + captions if notes else captions


def _text_keys(block: bytes, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of notes and of captions out of a block."""
    if len(block) % 2 == 0:
        return _array(b"", width), _array(block, width)
    keys = _array(block[1:], width)
    return keys[: block[0]], keys[block[0] :]


def _bytes(values: np.ndarray) -> bytes:
    return values.astype(_HALF).tobytes()


def _array(block: bytes, width: int) -> np.ndarray:
    return np.frombuffer(block, _HALF).reshape(-1, width)


def _content(value: Value) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    return struct.pack("<d", value) if isinstance(value, float) else str(value).encode()
