"""The SQLite file of a durable memory: opened, upgraded, asked, written in transactions.

What its rows mean is `rows.py`'s business; its errors are ours.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from streammem.errors import StoreError
from streammem.memory import rows
from streammem.memory.folder import DATABASE, FORMAT, HEADER, writable
from streammem.memory.timeline import Mending

Mode = Literal["rw", "r"]

_BUSY_S = 10.0
_READ_ROWS = 64


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
                for sql in rows.migrations(version, FORMAT):
                    self.query(sql)
                if version < rows.ONE_TIMELINE:
                    for row in self._on_one_timeline():
                        self.query(rows.UPDATE, *row, row[0])
        elif version < rows.ONE_TIMELINE:
            self._show_as_upgraded()

    def _on_one_timeline(self) -> list[rows.Row]:
        """Return the rows whose times change, so that each live source has one timeline."""
        mending, changed, last = Mending(), [], -1
        while found := self.query(
            f"{rows.SELECT} WHERE segment > ? ORDER BY segment LIMIT ?", last, _READ_ROWS
        ):
            for row in filter(rows.is_sound, found):  # a damaged one stays as `verify` finds it
                names = ("start", "end", "source", "wall_start")
                offset = mending.shift(*(rows.column(row, name) for name in names))
                if offset:
                    changed.append(rows.shifted(row, offset))
            last = found[-1][0]
        return changed

    def _show_as_upgraded(self) -> None:
        """Let queries see what an upgrade would write; the file stays as it is."""
        # A name in `temp` hides the same one in `main`. Columns are named one by one: a writer may
        # upgrade the file while it is open here.
        self.query("PRAGMA temp_store = MEMORY")
        names = ", ".join(f'"{name}"' for name in rows.COLUMNS if name != "sureness")
        old = f"SELECT {names}, NULL AS sureness FROM main.segments"
        self.query(f"CREATE TEMP VIEW segments AS {old}")
        with self.snapshot():
            changed = self._on_one_timeline()
        if not changed:
            return
        self.query("DROP VIEW temp.segments")
        self.query(f"CREATE TEMP TABLE mended AS {old} WHERE 0")
        for row in changed:
            self.query(rows.INSERT.replace("INTO segments", "INTO mended"), *row)
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
            database.executescript(f"BEGIN; {rows.SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
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
    return found[0][0] if found and rows.checksum(found[0][0]) == found[0][1] else None


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


def _explained(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
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
