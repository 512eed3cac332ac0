"""Vector databases that hold a copy of memories' keys: Qdrant, and PostgreSQL with pgvector.

    with open_sink("qdrant://127.0.0.1:6333/house", key_dim, fingerprint) as sink:
        copy(store, "door", sink)                       # a second time: what has changed
        for match in sink.search(key, 5):               # over all memories that are there
            print(match.memory, match.segment, match.score)
        index = sink.index("door", "visual_keys")       # a VectorIndex of one memory's keys

A sink is never read by streammem itself: the SQLite memory stays the truth, and a copy that is lost
is made anew. Rows are written whole; one whose checksum is there already is left alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import numpy as np

from streammem.errors import BackboneError, ConfigError, StoreError, install_command
from streammem.memory.entry import KEY_KINDS, MAX_KEYS, Entry
from streammem.memory.index import VectorIndex, _best_first, _checked, _checked_query
from streammem.memory.store import Store
from streammem.memory.upkeep import entries

ROWS = 64  # segments that are written at a time: 64 to 768 keys
TIMEOUT_S = 60
DEFAULT_NAME = "streammem"
FORMS = (
    "qdrant://HOST[:PORT]/COLLECTION, qdrants://... (https), qdrant:FOLDER (without a server), or "
    "postgresql://[USER@]HOST/DATABASE[?table=NAME]"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,50}")
_POINTS = UUID("6f0a1f0e-9c0a-4b7e-8f57-0a6b1f6d2c31")  # of the ids of points


@dataclass(frozen=True, slots=True)
class SinkRecord:
    """What is kept of a segment beside its keys.

    Attributes:
        segment, last: ids that it stands for.
        start, end: seconds of the source's clock.
        wall_start: Unix seconds at ``start``; None where they are unknown.
        speech: what is said in it.
        checksum: of all of it and its keys.
    """

    segment: int
    last: int
    source: str
    start: float
    end: float
    wall_start: float | None
    caption: str | None
    speech: str | None
    checksum: str

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Return the record of an entry."""
        speech = " ".join(note.shown for note in entry.notes) or None
        digest = blake2b(digest_size=16)
        values = (
            entry.last, entry.source, entry.start, entry.end, entry.wall_start, entry.caption,
            speech,
        )  # fmt: skip
        digest.update(repr(values).encode("utf-8", "backslashreplace"))
        for kind in KEY_KINDS:
            keys = _keys(entry, kind)
            digest.update(f"{kind} {keys.shape}".encode() + keys.tobytes())
        return cls(entry.segment, *values, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Match:
    """A segment that a search found, by its best key."""

    memory: str
    segment: int
    score: float


@dataclass(frozen=True, slots=True)
class Copied:
    """What `copy` did: rows written, left alone since they were there, removed."""

    written: int
    unchanged: int
    removed: int


class Sink(Protocol):
    """A database that holds keys of many memories, all made by one model."""

    def checksums(self, memory: str) -> dict[int, str]:
        """Return the checksum of each segment of a memory that is there as a whole."""
        ...

    def put(self, memory: str, rows: Sequence[Entry]) -> None:
        """Write segments; all keys of each take the place of those that it had."""
        ...

    def remove(self, memory: str, segments: Sequence[int]) -> None:
        """Remove segments with their keys."""
        ...

    def search(
        self, query: np.ndarray, k: int, *, kind: str = KEY_KINDS[0], memory: str | None = None
    ) -> list[Match]:
        """Find the segments whose keys have the greatest inner product, each by its best.

        Args:
            query: [D_key] float32.
            k: >= 1.
            kind: of keys, one of ``KEY_KINDS``.
            memory: only in it.
        """
        ...

    def index(self, memory: str, kind: str = KEY_KINDS[0]) -> VectorIndex:
        """Return the keys of one memory as an index; ids are segment x MAX_KEYS + number."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_sink(address: str, key_dim: int, fingerprint: str) -> Sink:
    """Open a database, and make its tables where there are none.

    Args:
        address: see ``FORMS``. The key of a Qdrant server is read from ``QDRANT_API_KEY``, a
            password of PostgreSQL from ``PGPASSWORD`` where the address has none.
        key_dim: D_key.
        fingerprint: of the model whose keys it holds.

    Raises:
        ConfigError: no such form.
        BackboneError: the client's package is not installed.
        StoreError: it does not answer, or holds keys of another model.
    """
    scheme = address.partition(":")[0]
    if scheme in ("qdrant", "qdrants"):
        return QdrantSink.open(address, key_dim, fingerprint)
    if scheme in ("postgresql", "postgres"):
        return PgvectorSink.open(address, key_dim, fingerprint)
    raise ConfigError(f"no address of a database; give {FORMS}")


def copy(
    store: Store,
    memory: str,
    sink: Sink,
    progress: Callable[[Iterable[Entry]], Iterable[Entry]] = iter,
) -> Copied:
    """Bring a database's copy of a memory up to date; what is interrupted is gone on with.

    Args:
        store: open in any mode.
        memory: its name there.
        sink: open.
        progress: passes the rows on, and shows how far it is.

    Raises:
        StoreError: a row is damaged, or the database fails.
    """
    known, seen, written = sink.checksums(memory), set[int](), 0
    rows_left = iter(progress(entries(store)))
    while rows := list(islice(rows_left, ROWS)):
        seen |= {entry.segment for entry in rows}
        changed = [e for e in rows if known.get(e.segment) != SinkRecord.of(e).checksum]
        if changed:
            sink.put(memory, changed)
            written += len(changed)
    gone = sorted(known.keys() - seen)
    for begin in range(0, len(gone), ROWS):
        sink.remove(memory, gone[begin : begin + ROWS])
    return Copied(written, len(seen) - written, len(gone))


def _keys(entry: Entry, kind: str) -> np.ndarray:
    keys: np.ndarray = getattr(entry, kind)
    return np.ascontiguousarray(keys, np.float32)


def _ids(entry: Entry, kind: str) -> range:
    return range(entry.segment * MAX_KEYS, entry.segment * MAX_KEYS + len(_keys(entry, kind)))


def _matches(found: Iterable[tuple[str, int, float]], k: int) -> list[Match]:
    """Return the best of each segment, best first; equal scores by memory and segment."""
    best = dict[tuple[str, int], float]()
    for memory, segment, score in found:
        best[memory, segment] = max(score, best.get((memory, segment), -np.inf))
    ordered = sorted(best.items(), key=lambda each: (-each[1], each[0]))
    return [Match(*place, score) for place, score in ordered[:k]]


class _Closing:
    """A sink as a context manager."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- Qdrant --


class QdrantSink(_Closing):
    """A collection of Qdrant: one point a key, each with its segment's record as payload.

    Searches are exact. The first visual key of a segment is written last, and its checksum counts.

    Args:
        client: of ``qdrant_client``.
        collection: its name; made where there is none.
        key_dim: D_key.
        fingerprint: of the model.
    """

    def __init__(self, client: Any, collection: str, key_dim: int, fingerprint: str) -> None:
        from qdrant_client import models

        self.client, self.collection, self.dim = client, collection, key_dim
        self._models, self._fingerprint = models, fingerprint
        with _of_qdrant():
            if not client.collection_exists(collection):
                vectors = models.VectorParams(size=key_dim, distance=models.Distance.DOT)
                client.create_collection(collection, vectors_config=vectors)
            others = models.Filter(
                must_not=[self._is("model", fingerprint)],
            )
            found, _ = client.scroll(collection, scroll_filter=others, limit=1)
        if found:
            model = (found[0].payload or {}).get("model")
            raise StoreError(
                f"{collection}: holds keys of {f'another model ({model})' if model else 'others'}; "
                "give another collection"
            )

    @classmethod
    def open(cls, address: str, key_dim: int, fingerprint: str) -> Self:
        """Open a server's collection, or a folder; see ``open_sink``."""
        import os

        try:
            from qdrant_client import QdrantClient
        except ImportError as error:
            run = install_command("qdrant")
            raise BackboneError(f"qdrant-client is not installed; run: {run}") from error
        scheme, _, rest = address.partition(":")
        with _of_qdrant():
            if not rest.startswith("//"):
                if not rest:
                    raise ConfigError(f"{address}: names no folder; give {FORMS}")
                Path(rest).mkdir(parents=True, exist_ok=True)
                return cls(QdrantClient(path=rest), DEFAULT_NAME, key_dim, fingerprint)
            parts = urlsplit(address)
            name = parts.path.strip("/") or DEFAULT_NAME
            if not parts.hostname or not _NAME.fullmatch(name) or parts.password:
                raise ConfigError(
                    "qdrant://: give HOST and a COLLECTION of letters, digits and _; a key is read "
                    "from QDRANT_API_KEY"
                )
            client = QdrantClient(
                host=parts.hostname,
                port=parts.port or 6333,
                https=scheme == "qdrants",
                api_key=os.environ.get("QDRANT_API_KEY") or None,
                timeout=TIMEOUT_S,
                check_compatibility=False,  # which would print
            )
            return cls(client, name, key_dim, fingerprint)

    def checksums(self, memory: str) -> dict[int, str]:
        first = [self._is("memory", memory), self._is("kind", KEY_KINDS[0]), self._is("number", 0)]
        points = self._scroll(first, ["segment", "checksum"])
        return {
            p.payload["segment"]: p.payload["checksum"] for p in points if "checksum" in p.payload
        }

    def put(self, memory: str, rows: Sequence[Entry]) -> None:
        self.remove(memory, [entry.segment for entry in rows])
        others, firsts = list[Any](), list[Any]()
        for entry in rows:
            record = asdict(SinkRecord.of(entry))
            for kind in KEY_KINDS:
                for id_, key in zip(_ids(entry, kind), _keys(entry, kind), strict=True):
                    is_first = kind == KEY_KINDS[0] and id_ % MAX_KEYS == 0
                    point = self.point(memory, kind, id_, key, record)
                    (firsts if is_first else others).append(point)
        for points in (others, firsts):
            self.upsert(points)

    def remove(self, memory: str, segments: Sequence[int]) -> None:
        numbers = range(MAX_KEYS)
        ids = [
            _point_id(memory, kind, segment * MAX_KEYS + number)
            for segment in segments
            for kind in KEY_KINDS
            for number in numbers
        ]
        self.delete(ids)

    def search(
        self, query: np.ndarray, k: int, *, kind: str = KEY_KINDS[0], memory: str | None = None
    ) -> list[Match]:
        wanted = [self._is("kind", kind)]
        wanted += [self._is("memory", memory)] if memory is not None else []
        points = self.nearest(_checked_query(query, self.dim), k * MAX_KEYS, wanted)
        return _matches(((p.payload["memory"], p.payload["segment"], p.score) for p in points), k)

    def index(self, memory: str, kind: str = KEY_KINDS[0]) -> "QdrantIndex":
        return QdrantIndex(self, memory, kind)

    def close(self) -> None:
        self.client.close()

    # -- for the index --

    def point(
        self, memory: str, kind: str, id_: int, key: np.ndarray, record: dict[str, Any]
    ) -> Any:
        """Return the point of a key."""
        payload = {
            **record, "memory": memory, "kind": kind, "key": id_, "segment": id_ // MAX_KEYS,
            "number": id_ % MAX_KEYS, "model": self._fingerprint,
        }  # fmt: skip
        return self._models.PointStruct(
            id=_point_id(memory, kind, id_), vector=key.tolist(), payload=payload
        )

    def upsert(self, points: Sequence[Any]) -> None:
        """Write points."""
        if points:
            with _of_qdrant():
                self.client.upsert(self.collection, points, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; missing ones are no error."""
        if ids:
            with _of_qdrant():
                self.client.delete(
                    self.collection, self._models.PointIdsList(points=list(ids)), wait=True
                )

    def nearest(self, query: np.ndarray, limit: int, wanted: list[Any]) -> list[Any]:
        """Return the points of greatest inner product that fit conditions, with payloads."""
        with _of_qdrant():
            found = self.client.query_points(
                self.collection,
                query=query.tolist(),
                query_filter=self._models.Filter(must=wanted),
                search_params=self._models.SearchParams(exact=True),
                limit=limit,
                with_payload=["memory", "segment", "key"],
            )
        return list(found.points)

    def conditions(self, memory: str, kind: str, allowed: np.ndarray | None = None) -> list[Any]:
        """Return the conditions of the keys of one kind of a memory."""
        wanted = [self._is("memory", memory), self._is("kind", kind)]
        if allowed is not None:
            ids = (_point_id(memory, kind, int(id_)) for id_ in allowed)
            wanted.append(self._models.HasIdCondition(has_id=[*ids]))
        return wanted

    def count(self, wanted: list[Any]) -> int:
        """Return how many points fit conditions."""
        with _of_qdrant():
            chosen = self._models.Filter(must=wanted)
            return int(self.client.count(self.collection, chosen, exact=True).count)

    def _scroll(
        self, wanted: list[Any], payload: list[str], *, vectors: bool = False
    ) -> Iterator[Any]:
        offset = None
        while True:
            with _of_qdrant():
                points, offset = self.client.scroll(
                    self.collection,
                    scroll_filter=self._models.Filter(must=wanted),
                    limit=1000,
                    offset=offset,
                    with_payload=payload,
                    with_vectors=vectors,
                )
            yield from points
            if offset is None:
                return

    def vectors(self, wanted: list[Any]) -> Iterator[tuple[int, list[float]]]:
        """Yield the keys' ids and vectors that fit conditions, in no order."""
        return ((p.payload["key"], p.vector) for p in self._scroll(wanted, ["key"], vectors=True))

    def _is(self, field: str, value: str | int) -> Any:
        match = self._models.MatchValue(value=value)
        return self._models.FieldCondition(key=field, match=match)


class QdrantIndex:
    """The keys of one kind of one memory in a Qdrant collection, as a ``VectorIndex``."""

    def __init__(self, sink: QdrantSink, memory: str, kind: str) -> None:
        self._sink, self._memory, self._kind = sink, memory, kind

    def __len__(self) -> int:
        return self._sink.count(self._sink.conditions(self._memory, self._kind))

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        ids, vectors = _checked(ids, vectors, self._sink.dim)
        pairs = zip(ids.tolist(), vectors, strict=True)
        self._sink.upsert(
            [self._sink.point(self._memory, self._kind, id_, vector, {}) for id_, vector in pairs]
        )

    def remove(self, ids: np.ndarray) -> None:
        self._sink.delete([_point_id(self._memory, self._kind, i) for i in ids.tolist()])

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        query = _checked_query(query, self._sink.dim)
        if allowed is not None and not len(allowed):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = self._sink.conditions(self._memory, self._kind, allowed)
        points = self._sink.nearest(query, k * group, wanted)
        ids = np.array([point.payload["key"] for point in points], np.int64)
        return _best_first(ids // group, np.array([p.score for p in points], np.float32), k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        wanted = self._sink.conditions(self._memory, self._kind)
        return _arrays(sorted(self._sink.vectors(wanted)), self._sink.dim)

    def num_bytes(self) -> int:
        return 0  # all are with the database


def _point_id(memory: str, kind: str, id_: int) -> str:
    return str(uuid5(_POINTS, f"{memory}\n{kind}\n{id_}"))


@contextmanager
def _of_qdrant() -> Iterator[None]:
    """Turn what Qdrant's client raises into one line of ours."""
    try:
        yield
    except (ConfigError, StoreError):
        raise
    except Exception as error:  # its client raises those of four packages
        first = next(iter(str(error).strip().splitlines()), "")
        raise StoreError(f"Qdrant: {first or type(error).__name__}") from error


# -- PostgreSQL --


class PgvectorSink(_Closing):
    """Two tables of PostgreSQL: NAME, one row a segment, and NAME_keys, one row a key.

    Searches are exact unless an index is made on ``NAME_keys.embedding`` (``vector_ip_ops``).
    Segments are written in transactions.

    Args:
        connection: of ``psycopg``, with autocommit; closed with the sink.
        table: NAME.
        key_dim: D_key.
        fingerprint: of the model.
    """

    def __init__(self, connection: Any, table: str, key_dim: int, fingerprint: str) -> None:
        from psycopg import sql

        self._connection, self.dim, self._fingerprint = connection, key_dim, fingerprint
        self._names = {
            "rows": sql.Identifier(table), "keys": sql.Identifier(f"{table}_keys"),
            "dim": sql.Literal(key_dim), "each": sql.Literal(MAX_KEYS),
        }  # fmt: skip
        self._sql = sql.SQL
        for statement in _TABLES:
            self.query(statement)
        found = self.query("SELECT model FROM {rows} WHERE model <> %s LIMIT 1", fingerprint)
        if found:
            raise StoreError(
                f"{table}: holds keys of another model ({found[0][0]}); give another ?table=NAME"
            )

    @classmethod
    def open(cls, address: str, key_dim: int, fingerprint: str) -> Self:
        """Open a database; see ``open_sink``."""
        try:
            import psycopg
        except ImportError as error:
            run = install_command("postgres")
            raise BackboneError(f"psycopg is not installed; run: {run}") from error
        # Only ``table`` is ours; all else is PostgreSQL's, as it was given.
        url, _, given = address.partition("?")
        fields = [field for field in given.split("&") if field]
        tables = [f.removeprefix("table=") for f in fields if f.startswith("table=")]
        table = tables[-1] if tables else DEFAULT_NAME
        if not _NAME.fullmatch(table):
            raise ConfigError(f"?table={table}: give letters, digits and _")
        if rest := "&".join(f for f in fields if not f.startswith("table=")):
            url = f"{url}?{rest}"
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its message repeats a part, which may be the password
            advice = "write % as %25, @ as %40 and : as %3A in a password"
            raise ConfigError(f"the address of the database cannot be read; {advice}") from None
        with _of_postgres():
            connection = psycopg.connect(
                url,
                autocommit=True,
                client_encoding="utf8",  # a database of no encoding would give bytes
                connect_timeout=10,
            )
            connection.execute(f"SET statement_timeout = {TIMEOUT_S * 1000}")
        try:
            return cls(connection, table, key_dim, fingerprint)
        except BaseException:
            connection.close()
            raise

    def checksums(self, memory: str) -> dict[int, str]:
        return dict(self.query("SELECT segment, checksum FROM {rows} WHERE memory = %s", memory))

    def put(self, memory: str, rows: Sequence[Entry]) -> None:
        with _of_postgres(), self._connection.transaction():
            self.remove(memory, [entry.segment for entry in rows])
            self._each(
                "INSERT INTO {rows} (memory, model, segment, last, source, start_s, end_s, "
                "wall_start, caption, speech, checksum) VALUES "
                "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [(memory, self._fingerprint, *_columns(SinkRecord.of(entry))) for entry in rows],
            )
            self.add(
                (memory, kind, id_, key)
                for entry in rows
                for kind in KEY_KINDS
                for id_, key in zip(_ids(entry, kind), _keys(entry, kind), strict=True)
            )

    def remove(self, memory: str, segments: Sequence[int]) -> None:
        for table in ("{rows}", "{keys}"):
            self.query(
                f"DELETE FROM {table} WHERE memory = %s AND segment = ANY(%s)",
                memory, list(segments),
            )  # fmt: skip

    def search(
        self, query: np.ndarray, k: int, *, kind: str = KEY_KINDS[0], memory: str | None = None
    ) -> list[Match]:
        found = self.query(
            "SELECT memory, segment, embedding <#> %s::vector FROM {keys} WHERE kind = %s "
            "AND (%s::text IS NULL OR memory = %s) ORDER BY 3, 1, 2 LIMIT %s",
            _text(_checked_query(query, self.dim)), kind, memory, memory, k * MAX_KEYS,
        )  # fmt: skip
        return _matches(((name, segment, -score) for name, segment, score in found), k)

    def index(self, memory: str, kind: str = KEY_KINDS[0]) -> "PgvectorIndex":
        return PgvectorIndex(self, memory, kind)

    def close(self) -> None:
        self._connection.close()

    # -- for the index --

    def query(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement; ``{rows}`` and ``{keys}`` are the tables. Return its rows."""
        with _of_postgres():
            cursor = self._connection.execute(self._sql(text).format(**self._names), values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, keys: Iterable[tuple[str, str, int, np.ndarray]]) -> None:
        """Write (memory, kind, id, key); one that is there is replaced."""
        self._each(
            "INSERT INTO {keys} (memory, kind, key, embedding) VALUES (%s, %s, %s, %s::vector) "
            "ON CONFLICT (memory, kind, key) DO UPDATE SET embedding = EXCLUDED.embedding",
            [(memory, kind, id_, _text(key)) for memory, kind, id_, key in keys],
        )

    def _each(self, text: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            with _of_postgres(), self._connection.cursor() as cursor:
                cursor.executemany(self._sql(text).format(**self._names), rows)


_TABLES = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE IF NOT EXISTS {rows} (memory text, segment bigint, last bigint NOT NULL, "
    "source text NOT NULL, start_s float8 NOT NULL, end_s float8 NOT NULL, wall_start timestamptz, "
    "caption text, speech text, model text NOT NULL, checksum text NOT NULL, "
    "PRIMARY KEY (memory, segment))",
    "CREATE TABLE IF NOT EXISTS {keys} (memory text, kind text, key bigint, "
    "segment bigint GENERATED ALWAYS AS (key / {each}) STORED, "
    "embedding vector({dim}) NOT NULL, PRIMARY KEY (memory, kind, key))",
)


class PgvectorIndex:
    """The keys of one kind of one memory in a table of pgvector, as a ``VectorIndex``."""

    def __init__(self, sink: PgvectorSink, memory: str, kind: str) -> None:
        self._sink, self._memory, self._kind = sink, memory, kind

    def __len__(self) -> int:
        return int(self._query("SELECT count(*) FROM {keys} WHERE {mine}")[0][0])

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        ids, vectors = _checked(ids, vectors, self._sink.dim)
        pairs = zip(ids.tolist(), vectors, strict=True)
        self._sink.add((self._memory, self._kind, id_, vector) for id_, vector in pairs)

    def remove(self, ids: np.ndarray) -> None:
        self._query("DELETE FROM {keys} WHERE {mine} AND key = ANY(%s)", ids.tolist())

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = None if allowed is None else np.asarray(allowed).tolist()
        found = self._query(
            "SELECT key, embedding <#> %s::vector FROM {keys} WHERE {mine} "
            "AND (%s::bigint[] IS NULL OR key = ANY(%s::bigint[])) ORDER BY 2, 1 LIMIT %s",
            chosen, chosen, k * group, first=_text(_checked_query(query, self._sink.dim)),
        )  # fmt: skip
        ids = np.array([id_ for id_, _ in found], np.int64)
        return _best_first(ids // group, np.array([-d for _, d in found], np.float32), k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        found = self._query("SELECT key, embedding::text FROM {keys} WHERE {mine} ORDER BY key")
        pairs = [(id_, [float(x) for x in text.strip("[]").split(",")]) for id_, text in found]
        return _arrays(pairs, self._sink.dim)

    def num_bytes(self) -> int:
        return 0  # all are with the database

    def _query(self, text: str, *values: object, first: str | None = None) -> list[tuple[Any, ...]]:
        text = text.replace("{mine}", "memory = %s AND kind = %s")
        before = () if first is None else (first,)
        return self._sink.query(text, *before, self._memory, self._kind, *values)


def _columns(record: SinkRecord) -> tuple[Any, ...]:
    """Return the values of a record for PostgreSQL, which keeps no NUL in texts."""
    wall, shown = record.wall_start, None
    with suppress(ValueError, OverflowError, OSError):  # a time that no calendar has
        shown = None if wall is None else datetime.fromtimestamp(wall, UTC)
    values = asdict(record) | {"wall_start": shown}
    return tuple(v.replace("\0", "") if isinstance(v, str) else v for v in values.values())


def _text(vector: np.ndarray) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _arrays(
    pairs: Sequence[tuple[int, Sequence[float]]], dim: int
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([id_ for id_, _ in pairs], np.int64)
    vectors = np.fromiter(chain.from_iterable(v for _, v in pairs), np.float32)
    return ids, vectors.reshape(len(ids), dim)


@contextmanager
def _of_postgres() -> Iterator[None]:
    """Turn what PostgreSQL's client raises into one line of ours."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise StoreError(f"PostgreSQL: {first or type(error).__name__}") from error
