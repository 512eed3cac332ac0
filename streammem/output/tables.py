"""A memory as a table of Parquet or Lance, one row a segment, for pandas, DuckDB and others.

    write_parquet(Path("trips.parquet"), store.export(), memory="trips", fingerprint="0f3c...")

Needs streammem[parquet], or [lance]. The memory itself stays the truth; nothing reads tables back.
"""

import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from streammem.errors import BackboneError, StoreError, install_command
from streammem.memory.entry import Entry

ROWS = 256  # written at a time, so that memory does not grow with the table: about 10 MB


def write_parquet(
    path: Path, entries: Iterable[Entry], *, memory: str, fingerprint: str, key_dim: int
) -> int:
    """Write a table; the file has its name once it is whole.

    Columns: ``memory``, ``source``, ``segment``, ``last`` (the newest of those merged in it),
    ``start`` and ``end`` (seconds of the source's clock), ``wall_start`` (UTC, where it is known),
    ``frames``, ``caption``, ``confidence`` (of each of its lines, where it is known), ``speech``,
    ``vector`` ([D_key] float32, the unit key of the widest cluster of its pictures), ``keys``,
    ``caption_keys`` and ``speech_keys`` (lists of such), ``keyframe`` (JPEG). The table's metadata
    name the model's fingerprint: vectors of others cannot be compared.

    Args:
        path: of the file; an existing one is replaced.
        entries: whole rows.
        memory: its name, the same in each row.
        fingerprint: of the model whose keys they are.
        key_dim: D_key.

    Returns:
        The number of rows.

    Raises:
        BackboneError: pyarrow is not installed.
        StoreError: the file cannot be written.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        run = install_command("parquet")
        raise BackboneError(f"pyarrow is not installed; run: {run}") from error
    partial, num_rows = path.with_name(f"{path.name}.partial"), 0
    schema = _schema(fingerprint, key_dim)
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in _batches(entries, schema, memory):
                writer.write_batch(batch)
                num_rows += batch.num_rows
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return num_rows


def write_lance(
    path: Path, entries: Iterable[Entry], *, memory: str, fingerprint: str, key_dim: int
) -> int:
    """Write a Lance dataset, a folder, of the same columns; otherwise as ``write_parquet``.

    Raises:
        BackboneError: pylance is not installed.
        StoreError: the folder exists, or cannot be written.
    """
    try:
        import lance
        import pyarrow as pa
    except ImportError as error:
        run = install_command("lance")
        raise BackboneError(f"pylance is not installed; run: {run}") from error
    if path.exists():
        raise StoreError(f"{path}: exists; remove it first, or give another folder")
    partial, schema = path.with_name(f"{path.name}.partial"), _schema(fingerprint, key_dim)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        reader = pa.RecordBatchReader.from_batches(schema, _batches(entries, schema, memory))
        num_rows: int = lance.write_dataset(reader, str(partial)).count_rows()
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return num_rows


def _schema(fingerprint: str, key_dim: int) -> Any:
    import pyarrow as pa

    key = pa.list_(pa.float32(), key_dim)
    fields = {
        "memory": pa.string(), "source": pa.string(), "segment": pa.int64(), "last": pa.int64(),
        "start": pa.float64(), "end": pa.float64(), "wall_start": pa.timestamp("us", tz="UTC"),
        "frames": pa.int64(), "caption": pa.string(), "confidence": pa.list_(pa.float32()),
        "speech": pa.string(), "vector": key, "keys": pa.list_(key), "caption_keys": pa.list_(key),
        "speech_keys": pa.list_(key), "keyframe": pa.binary(),
    }  # fmt: skip
    return pa.schema(fields, metadata={"streammem.fingerprint": fingerprint})


def _batches(entries: Iterable[Entry], schema: Any, memory: str) -> Iterator[Any]:
    import pyarrow as pa

    left = iter(entries)
    while rows := [_row(entry) | {"memory": memory} for entry in islice(left, ROWS)]:
        yield pa.RecordBatch.from_pylist(rows, schema)


def _row(entry: Entry) -> dict[str, Any]:
    wall = entry.wall_start
    return {
        "source": entry.source,
        "segment": entry.segment,
        "last": entry.last,
        "start": entry.start,
        "end": entry.end,
        "wall_start": None if wall is None else datetime.fromtimestamp(wall, UTC),
        "frames": entry.frames,
        "caption": entry.caption,
        "confidence": [sure.confidence for sure in entry.sureness] or None,
        "speech": " ".join(note.shown for note in entry.notes) or None,
        "vector": entry.visual_keys[0],
        "keys": list(entry.visual_keys),
        "caption_keys": list(entry.caption_keys),
        "speech_keys": list(entry.note_keys),
        "keyframe": entry.keyframe,
    }
