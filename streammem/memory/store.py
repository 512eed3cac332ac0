"""The durable memory: a folder with one SQLite file and its keyframes.

Written by one process, read by many. Checking, pruning and forgetting are in `upkeep.py`; what is
in RAM and how it is found, in `memory.py`.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from streammem.errors import StoreError
from streammem.memory.database import (
    INSERT,
    SELECT,
    UPDATE,
    Database,
    Mode,
    Row,
    checksum,
    column,
    create_database,
    left_in_state,
    to_entry,
    to_row,
    to_tokens,
    token_block,
    with_columns,
)
from streammem.memory.entry import UNKNOWN, Entry, Sureness, with_text
from streammem.memory.folder import (
    DATABASE,
    FORMAT,
    KEYFRAMES,
    LOCK,
    OLDEST_READ,
    Header,
    WriterLock,
    intact,
    is_keyframe_name,
    is_memory,
    kept_keyframe,
    keyframe_names,
    now_text,
    read_header,
    remove_keyframes,
    sync_folder,
    writable,
    write_header,
)
from streammem.types import Note

_log = logging.getLogger(__name__)

T = TypeVar("T")

_OURS = {
    DATABASE,
    f"{DATABASE}-wal",
    f"{DATABASE}-shm",
    KEYFRAMES,
    LOCK,
    "memory.partial",
    "lost+found",
}


# In `state`: the header since keys were made anew, for a crash before its file says the same.
HEADER_STATE = "header"


def current_header(path: Path) -> Header:
    """Read a memory's header.

    New keys come into force with the transaction that writes them, which brings the header that
    goes with them: what it left in the database goes before the file.

    Raises:
        StoreError: see ``read_header``.
    """
    header = read_header(path)
    left = left_in_state(path, HEADER_STATE)
    if left is None:
        return header
    fields = json.loads(left)
    return replace(header, fingerprint=fields["fingerprint"], key_dim=fields["key_dim"])


def _other(made_by: str, wanted: str) -> str:
    """Say why a memory is refused: whose it is, and what helps."""
    base, _, keys = made_by.partition("+")
    if base != wanted.partition("+")[0]:
        return (
            f"was made by another model ({made_by}, not {wanted}); use that model, or index the "
            "source again into a new memory"
        )
    theirs = (
        f"keys of {keys}: give the same --keys"
        if keys
        else "its model's own keys: leave --keys out"
    )
    return f"has {theirs}; or make new ones with streammem memory reindex"


class Store:
    """Keeps entries for good: what a call has returned from survives a kill and a power cut.

    A keyframe is synced to disk first, then one transaction brings the row, its tokens and the
    recurrent state, synced as it commits (WAL, ``synchronous=FULL``). So kill -9 loses the open
    segment at most. Every row, token block and keyframe has a checksum. Used by one thread at a
    time; its owner closes it.
    """

    def __init__(self, path: Path, header: Header, mode: Mode) -> None:
        """Open what `open` has checked."""
        self.path, self.header, self.mode = path, header, mode
        self._loaded: dict[int, bytes] = {}  # checksums of the rows as they were last read, by id
        self._lock = WriterLock(path) if mode == "rw" else None
        try:
            self.database = Database(path, mode)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        try:
            if mode == "rw":
                self._recover()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        fingerprint: str,
        *,
        key_dim: int = 256,
        token_shape: tuple[int, int] = (16, 384),
    ) -> Self:
        """Make a new memory and open it for writing.

        Args:
            path: a folder that does not exist or is empty.
            fingerprint: of the model whose keys and tokens it will hold.
            key_dim: D_key.
            token_shape: (M, D).

        Raises:
            StoreError: something else is there, or the folder is not writable.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, not a memory; give a folder")
        if is_memory(path):
            raise StoreError(f"{path} is a memory already; open it")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if {file.name for file in path.iterdir()} - _OURS:
                raise StoreError(f"{path} is not empty and not a memory; give another folder")
            with WriterLock(path):
                create_database(path)
                (path / KEYFRAMES).mkdir(exist_ok=True)
                # The header comes last: without it a folder is no memory.
                write_header(path, Header(FORMAT, fingerprint, key_dim, token_shape, now_text()))
                sync_folder(path.resolve().parent)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{path} cannot be made: {error.strerror}") from error
        return cls.open(path, fingerprint)

    @classmethod
    def open(cls, path: str | Path, fingerprint: str | None = None, mode: Mode = "rw") -> Self:
        """Open a memory.

        Args:
            path: its folder.
            fingerprint: of the model that will use it; None to look without a model.
            mode: ``rw`` takes the one writer's place; ``r`` reads, also while another writes and
                on read-only media.

        Raises:
            StoreError: no memory, damaged, of a newer format, made by another model, or (``rw``)
                being written by another process or not writable.
        """
        path = Path(path)
        header = current_header(path)
        if fingerprint is not None and fingerprint != header.fingerprint:
            raise StoreError(f"{path} {_other(header.fingerprint, fingerprint)}")
        if not (path / DATABASE).is_file():
            raise StoreError(f"{path} lacks {DATABASE}; restore it from a backup")
        if header.format < OLDEST_READ and mode == "r":
            raise StoreError(f"{path} has the older format {header.format}; open it for writing")
        return cls(path, header, mode)

    def close(self) -> None:
        """Close the memory; idempotent."""
        self.database.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing --

    def append(self, entry: Entry, recurrent_state: bytes) -> None:
        """Keep a closed segment together with the recurrent state after it.

        Args:
            entry: of an id that is not there, keys and tokens as the header says.
            recurrent_state: whatever continues the stream after this segment.

        Raises:
            StoreError: the disk is full or fails, the id is taken, or the memory is read-only;
                nothing has changed then.
            ValueError: keys or tokens of another shape.
        """
        self._check(entry)
        with (
            kept_keyframe(self.path, entry.segment, entry.keyframe) as name,
            self.database.transaction(),
        ):
            size = len(entry.keyframe or b"")
            row = to_row(entry, keyframe=name, keyframe_bytes=size, written=time.time())
            self.database.query(INSERT, *row)
            if entry.tokens.size:
                block = token_block(entry.tokens)
                self.database.query("INSERT INTO tokens VALUES (?, ?, ?)", entry.segment, *block)
            self._put_state(recurrent_state)

    def extend(self, entry: Entry, recurrent_state: bytes) -> None:
        """Keep the newest row as the cache has extended it; its tokens stay.

        Args:
            entry: the row as it is now; a keyframe, if it has one, takes the old one's place.
            recurrent_state: as for `append`.

        Raises:
            StoreError: as for `append`, or there is no such row.
        """
        self._check(entry)
        old = self._row(entry.segment)
        with (
            kept_keyframe(self.path, entry.segment, entry.keyframe) as name,
            self.database.transaction(),
        ):
            row = self._renewed(old, entry)
            if name is not None:
                size = len(entry.keyframe or b"")
                row = with_columns(row, keyframe=name, keyframe_bytes=size)
            self._update(with_columns(row, written=time.time()))
            self._put_state(recurrent_state)
        stale = column(old, "keyframe")
        if name and stale and stale != name:
            remove_keyframes(self.path, {stale})

    def set_caption(
        self, segment: int, text: str, key: np.ndarray | None, sureness: Sureness = UNKNOWN
    ) -> None:
        """Give a segment a caption; a row that has one gets a further line.

        Args:
            segment: any id that a row stands for.
            text: one line; empty where it was withheld.
            key: [D_key] unit row, or None.
            sureness: of the text.

        Raises:
            StoreError: no such segment; otherwise as `append`.
        """
        row = self._row(segment)
        entry = to_entry(row, self.header.key_dim)
        entry = with_text(entry, caption=text, sureness=sureness, caption_key=key)
        with self.database.transaction():
            self._update(self._renewed(row, entry))

    def add_notes(self, segment: int, notes: tuple[Note, ...], key: np.ndarray | None) -> None:
        """Give a segment speech or subtitles; otherwise as `set_caption`."""
        row = self._row(segment)
        entry = with_text(to_entry(row, self.header.key_dim), notes=notes, note_key=key)
        with self.database.transaction():
            self._update(self._renewed(row, entry))

    # -- reading --

    def load_entries(self) -> tuple[Entry, ...]:
        """Return every entry without tokens and keyframe, oldest first: what the cache holds.

        Raises:
            StoreError: a row is damaged or missing.
        """
        entries, checksums = list[Entry](), dict[int, bytes]()
        with self.database.snapshot():
            if missing := self.missing_rows():
                raise StoreError(f"{self.path} lacks {missing} rows; see `streammem memory verify`")
            # One by one: beside the entries, all rows at once would take half as much RAM again.
            for row in self.database.rows(f"{SELECT} ORDER BY segment"):
                checksums[column(row, "segment")] = column(row, "checksum")
                entries.append(to_entry(row, self.header.key_dim))
        if self.mode == "r":
            self._loaded = checksums
        return tuple(entries)

    def load_changes(self) -> tuple[set[int], tuple[Entry, ...]] | None:
        """Return what another process has changed since the entries were last loaded.

        Returns:
            Ids of rows that are gone; rows that are new or changed, as `load_entries` gives them.
            None where the memory must be opened anew: keys of another model have taken the place
            of these, it has an older format, or lies on read-only media.

        Raises:
            StoreError: as for `load_entries`.
        """
        if self.header.format < FORMAT or not writable(self.path):
            return None
        with self.database.snapshot():
            checksums = dict(self.database.query("SELECT segment, checksum FROM segments"))
            missing = self._num_written() - len(checksums)
            changed = [n for n, check in checksums.items() if self._loaded.get(n) != check]
            query = f"{SELECT} WHERE segment = ?"
            found = [row for n in sorted(changed) for row in self.database.query(query, n)]
            # Asked last: it is as new as the rows, or newer.
            if current_header(self.path) != self.header:
                return None
        if missing:
            raise StoreError(f"{self.path} lacks {missing} rows; see `streammem memory verify`")
        gone, self._loaded = self._loaded.keys() - checksums.keys(), checksums
        return gone, tuple(to_entry(row, self.header.key_dim) for row in found)

    def missing_rows(self) -> int:
        """Return how many rows were written and are not found: a damaged page can hide some."""
        # One statement sees one state, whatever a writer does meanwhile.
        query = "SELECT (SELECT segments FROM counted) - count(segment) FROM segments"
        return int(self.database.query(query)[0][0])

    def read(self, segment: int) -> Entry:
        """Return the whole entry that stands for a segment.

        Raises:
            StoreError: no such segment, or it or its keyframe is damaged or missing.
        """
        return self._as_it_is(segment, self._whole)

    def read_unless_gone(self, segment: int) -> Entry | None:
        """Return what `read` does; None where a writer has removed the row meanwhile."""
        try:
            return self.read(segment)
        except StoreError:
            if self.database.query("SELECT 1 FROM segments WHERE segment = ?", segment):
                raise
            return None

    def tokens(self, segment: int) -> np.ndarray:
        """Return the tokens [M, D] float16 of a segment; [0, 0] where they were pruned.

        Raises:
            StoreError: no such segment, or its tokens are damaged or missing.
        """
        return self._as_it_is(segment, self._tokens)

    def keyframe(self, segment: int) -> bytes | None:
        """Return the keyframe of a segment as a JPEG; None where it has none.

        Raises:
            StoreError: no such segment, or its keyframe is damaged or missing.
        """
        return self._as_it_is(segment, self._keyframe)

    def keyframe_path(self, segment: int) -> Path | None:
        """Return where the keyframe of a segment lies; None where it has none.

        Raises:
            StoreError: no such segment.
        """
        name = column(self._row(segment), "keyframe")
        return None if name is None else self.path / KEYFRAMES / name

    def export(self) -> Iterator[Entry]:
        """Yield whole entries, oldest first, without standing in the writer's way.

        Each is as the writer has it when it is read; what it removes meanwhile is left out.

        Raises:
            StoreError: as for `read`.
        """
        for segment in self.segments():
            if (entry := self.read_unless_gone(segment)) is not None:
                yield entry

    def segments(self) -> tuple[int, ...]:
        """Return the ids of all rows, oldest first."""
        found = self.database.query("SELECT segment FROM segments ORDER BY segment")
        return tuple(segment for (segment,) in found)

    def recurrent_state(self) -> bytes | None:
        """Return the state after the newest segment; None before the first, or once forgotten.

        Raises:
            StoreError: it is damaged.
        """
        found = self.database.query("SELECT block, checksum FROM state WHERE name = 'recurrent'")
        if not found:
            return None
        if checksum(found[0][0]) != found[0][1]:
            raise StoreError(f"{self.path}: the recurrent state is damaged")
        return found[0][0]

    def next_segment(self) -> int:
        """Return the id after the newest that was ever given, of rows that are gone, too."""
        given = self.database.query("SELECT block FROM state WHERE name = 'given'")
        (last,) = self.database.query("SELECT max(last) FROM segments")[0]
        return max(-1 if last is None else last, int(given[0][0]) if given else -1) + 1

    def keep_ids_given(self) -> None:
        """Remember the newest id, before rows go; within a transaction."""
        newest = str(self.next_segment() - 1).encode()
        self.database.query(
            "INSERT OR REPLACE INTO state VALUES ('given', ?, ?)", newest, checksum(newest)
        )

    def sweep_keyframes(self) -> None:
        """Remove keyframe files that no row names: traces of a crash.

        Raises:
            StoreError: the memory is read-only, or a row is damaged: then a keyframe could look
                like a trace, and none is removed.
        """
        self.database.require_writing()
        named = {name for (name,) in self.database.query("SELECT keyframe FROM segments")}
        traces = keyframe_names(self.path) - named
        if traces:
            self.load_entries()
            remove_keyframes(self.path, traces)

    # -- private --

    def _recover(self) -> None:
        if self.header.format < FORMAT or self.header != read_header(self.path):
            self.header = replace(self.header, format=FORMAT)
            write_header(self.path, self.header)
        self.database.checkpoint()
        try:
            self.sweep_keyframes()
        except StoreError as error:
            _log.warning("%s; traces of a crash stay", error)

    def _check(self, entry: Entry) -> None:
        width, shape = entry.visual_keys.shape[1], entry.tokens.shape
        if width != self.header.key_dim:
            raise ValueError(f"store: keys are {width} wide, not {self.header.key_dim}")
        if entry.tokens.size and shape != self.header.token_shape:
            raise ValueError(f"store: tokens are {shape}, not {self.header.token_shape}")

    def _row(self, segment: int) -> Row:
        found = self.database.query(
            f"{SELECT} WHERE segment <= ? ORDER BY segment DESC LIMIT 1", segment
        )
        if not found or column(found[0], "last") < segment:
            raise StoreError(f"{self.path} has no segment {segment}")
        return found[0]

    def _as_it_is(self, segment: int, read: Callable[[Row], T]) -> T:
        """Read from a segment's row what lies beside it; again where a writer changed the row.

        Raises:
            StoreError: no such segment, or what `read` raises.
        """
        row = self._row(segment)
        while True:
            try:
                return read(row)
            except StoreError:
                renewed = self._row(segment)
                if renewed == row:
                    raise
                row = renewed

    def _num_written(self) -> int:
        return int(self.database.query("SELECT segments FROM counted")[0][0])

    def _renewed(self, old: Row, entry: Entry) -> Row:
        """Return an entry's row with what only its old row knows: payload and age."""
        row = to_row(entry, keyframe=None, keyframe_bytes=0, written=0.0)
        kept = ("keyframe", "keyframe_bytes", "has_tokens", "written")
        return with_columns(row, **{name: column(old, name) for name in kept})

    def _update(self, row: Row) -> None:
        self.database.query(UPDATE, *row, column(row, "segment"))

    def _put_state(self, state: bytes) -> None:
        self.database.query(
            "INSERT OR REPLACE INTO state VALUES ('recurrent', ?, ?)", state, checksum(state)
        )

    def _whole(self, row: Row) -> Entry:
        entry = to_entry(row, self.header.key_dim)
        return replace(entry, tokens=self._tokens(row), keyframe=self._keyframe(row))

    def _tokens(self, row: Row) -> np.ndarray:
        segment = column(row, "segment")
        if not column(row, "has_tokens"):
            return np.empty((0, 0), np.float16)
        found = self.database.query("SELECT block, checksum FROM tokens WHERE segment = ?", segment)
        if not found:
            raise StoreError(f"tokens of segment {segment} are missing")
        return to_tokens(segment, found[0][0], found[0][1], self.header.token_shape)

    def _keyframe(self, row: Row) -> bytes | None:
        segment, name = column(row, "segment"), column(row, "keyframe")
        if name is None:
            return None
        if not is_keyframe_name(name):  # before it is read: it could lead out of the folder
            raise StoreError(f"segment {segment}: {name!r} is no keyframe's name")
        try:
            jpeg = (self.path / KEYFRAMES / name).read_bytes()
        except OSError as error:
            raise StoreError(f"keyframe {name} cannot be read: {error.strerror}") from error
        if not intact(name, jpeg):
            raise StoreError(f"keyframe {name} is damaged")
        return jpeg
