"""The SQLite file of a durable memory: how an entry lies in it, and its transactions.

First its rows: tables, migrations, rows to entries and back, checksums. Then `Database`, which
opens, upgrades, asks and writes the file, and whose errors are ours. What is written when is
`store.py`'s business.
"""

import json
import shutil
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streammem.errors import StoreError
from streammem.memory.entry import Entry, Sureness, from_eight_bits, num_groups, to_eight_bits
from streammem.memory.folder import DATABASE, FORMAT, HEADER, writable
from streammem.memory.timeline import Mending
from streammem.types import Note

Mode = Literal["rw", "r"]

_BUSY_S = 10.0
_READ_ROWS = 64
_LOG_STEP_BYTES = 32 << 10  # by which SQLite's shared memory beside the log grows

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
        if value is None:
            content = b""
        elif isinstance(value, bytes):
            content = value
        else:
            is_float = isinstance(value, float)
            content = struct.pack("<d", value) if is_float else str(value).encode()
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


def with_columns(row: Row, **columns: Value) -> Row:
    """Return a row with these columns changed and its checksum renewed."""
    return _checked(tuple(columns.get(name, row[i]) for i, name in enumerate(COLUMNS[:-1])))


def is_sound(row: Row) -> bool:
    """Tell whether a row's checksum fits."""
    return bool(_checked(row[:-1])[-1] == row[-1])


def shifted(row: Row, offset: float) -> Row:
    """Return a row whose times are later by so many seconds; its wall clock stays."""
    notes = [note.shifted(offset) for note in _notes(column(row, "notes"))]
    return with_columns(
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


class Database:
    """A connection that survives what SQLite survives and says what went wrong.

    Used by one thread at a time.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        """Open the database of a memory's folder; ``rw`` brings it to the current format.

        ``r`` shows one of an older format as ``rw`` would leave it.

        Raises:
            StoreError: damaged, of a newer format, or not readable.
        """
        self.path, self.mode = path, mode
        self._connection: sqlite3.Connection | None = None
        with _translated(path):
            self._connection = _connect(path, mode)
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close; idempotent."""
        if self._connection is None:
            return
        if self.mode == "rw":
            # Only tidiness: what is in the WAL is safe there.
            with suppress(StoreError):
                self.checkpoint()
        self._connection.close()
        self._connection = None

    def query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return all its rows.

        Raises:
            StoreError: SQLite's complaint in our words.
        """
        with _translated(self.path):
            return self._open().execute(sql, arguments).fetchall()

    def rows(self, sql: str, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        """Yield what `query` returns row by row, for more rows than are wanted in RAM at once.

        They are of one state; within a `snapshot`, of that of its other queries.
        """
        with _translated(self.path):
            yield from self._open().execute(sql, arguments)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let the queries of the block see one state, whatever a writer does meanwhile."""
        self.query("BEGIN")
        try:
            yield
        finally:
            self.query("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all of the block or none of it, and have it on disk at the end.

        Raises:
            StoreError: the memory is read-only, or the disk is full or fails.
        """
        self.require_writing()
        self.query("BEGIN IMMEDIATE")
        try:
            yield
            self.query("COMMIT")
        finally:
            if self._open().in_transaction:
                self.query("ROLLBACK")

    def require_writing(self) -> None:
        """Refuse to go on without the writer's place.

        Raises:
            StoreError: opened for reading.
        """
        if self.mode != "rw":
            raise StoreError(f"{self.path} is open for reading only; open it with mode rw")

    def checkpoint(self) -> bool:
        """Move everything from the WAL to the database; False where a reader prevents it."""
        return self.query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0

    def shrink(self) -> None:
        """Give free pages back to the file system."""
        with _translated(self.path):
            # A script, because `execute` takes one step of it, which frees one page.
            self._open().executescript("PRAGMA incremental_vacuum")

    def used_bytes(self) -> int:
        """Return the bytes of pages in use; freed ones await the next rows."""
        page = self.query("PRAGMA page_size")[0][0]
        pages = self.query("PRAGMA page_count")[0][0]
        return page * (pages - self.query("PRAGMA freelist_count")[0][0])

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is closed")
        return self._connection

    def _upgrade(self) -> None:
        version = self.query("PRAGMA user_version")[0][0]
        if version > FORMAT:
            raise StoreError(
                f"{self.path} has format {version}, newer than {FORMAT}; update streammem"
            )
        if version < 1:
            raise StoreError(f"{self.path} is damaged: no format in {DATABASE}")
        if version < FORMAT and self.mode == "rw":
            with self.transaction():
                for sql in migrations(version, FORMAT):
                    self.query(sql)
                if version < ONE_TIMELINE:
                    for row in self._on_one_timeline():
                        self.query(UPDATE, *row, row[0])
        elif version < ONE_TIMELINE:
            self._show_as_upgraded()

    def _on_one_timeline(self) -> list[Row]:
        """Return the rows whose times change, so that each live source has one timeline."""
        mending, changed, last = Mending(), [], -1
        while found := self.query(
            f"{SELECT} WHERE segment > ? ORDER BY segment LIMIT ?", last, _READ_ROWS
        ):
            for row in filter(is_sound, found):  # a damaged one stays as `verify` finds it
                names = ("start", "end", "source", "wall_start")
                offset = mending.shift(*(column(row, name) for name in names))
                if offset:
                    changed.append(shifted(row, offset))
            last = found[-1][0]
        return changed

    def _show_as_upgraded(self) -> None:
        """Let queries see what an upgrade would write; the file stays as it is."""
        # A name in `temp` hides the same one in `main`. Columns are named one by one: a writer may
        # upgrade the file while it is open here.
        self.query("PRAGMA temp_store = MEMORY")
        names = ", ".join(f'"{name}"' for name in COLUMNS if name != "sureness")
        old = f"SELECT {names}, NULL AS sureness FROM main.segments"
        self.query(f"CREATE TEMP VIEW segments AS {old}")
        with self.snapshot():
            changed = self._on_one_timeline()
        if not changed:
            return
        self.query("DROP VIEW temp.segments")
        self.query(f"CREATE TEMP TABLE mended AS {old} WHERE 0")
        for row in changed:
            self.query(INSERT.replace("INTO segments", "INTO mended"), *row)
        self.query(
            "CREATE TEMP VIEW segments AS SELECT * FROM mended UNION ALL "
            f"{old} WHERE segment NOT IN (SELECT segment FROM mended)"
        )


def create_database(path: Path) -> None:
    """Make the tables, unless a creation that was cut off has done so already.

    Raises:
        StoreError: rows are there already, or the disk fails.
    """
    with _translated(path):
        database = sqlite3.connect(path / DATABASE, isolation_level=None)
        try:
            if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                if database.execute("SELECT count(*) FROM segments").fetchone()[0]:
                    raise StoreError(f"{path} has lost its {HEADER}; restore it from a backup")
                return
            # Pruned pages go back to the file system; to be chosen before the first table.
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        finally:
            database.close()


def left_in_state(path: Path, name: str) -> bytes | None:
    """Return a block of `state` before a memory is opened; None where it is not there.

    What is wrong with the database is told by opening it.
    """
    if not (path / DATABASE).is_file():
        return None
    connection = None
    try:
        connection = _connect(path, "r")
        query = "SELECT block, checksum FROM state WHERE name = ?"
        found = connection.execute(query, (name,)).fetchall()
    except sqlite3.Error:
        return None
    finally:
        if connection is not None:
            connection.close()
    return found[0][0] if found and checksum(found[0][0]) == found[0][1] else None


def _connect(path: Path, mode: Mode) -> sqlite3.Connection:
    options = f"mode={'rw' if mode == 'rw' else 'ro'}"
    wal = path / f"{DATABASE}-wal"
    # Without a WAL no process writes, and a folder that cannot be written has no room for SQLite's
    # own bookkeeping either.
    if mode == "r" and not writable(path) and not (wal.exists() and wal.stat().st_size):
        options = "immutable=1"
    connection = sqlite3.connect(
        f"{(path / DATABASE).resolve().as_uri()}?{options}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_S,
        check_same_thread=False,
    )
    if mode == "rw":
        # FULL syncs the WAL at every commit; NORMAL would lose acknowledged rows in a power cut.
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "fullfsync = ON",
            "secure_delete = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_explained(path, error)) from error


def _is_full(path: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(path).free < _LOG_STEP_BYTES
    return False


def _explained(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "disk I/O" in text and _is_full(path):  # what SQLite calls it where its log finds no room
        text = "the disk is full"
    if "full" in text:
        return f"{path} cannot grow: {text}; free space, then go on"
    if "UNIQUE" in text:
        return f"{path} has that segment already"
    if "unable to open" in text:
        return (
            f"{path} cannot be opened: {text}; if its last writer was killed, open it once for "
            "writing, or copy it to a folder that can be written"
        )
    if isinstance(error, sqlite3.OperationalError) and "decode" not in text:
        return f"{path} fails: {text}; check the disk"
    return f"{path} is damaged: {text}; see `streammem memory verify`"
