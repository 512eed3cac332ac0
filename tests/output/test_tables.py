"""The table of a memory holds what the memory holds."""

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs streammem[parquet]")

import pyarrow.parquet as pq

from streammem.errors import StoreError
from streammem.memory.store import Store
from streammem.output import tables
from streammem.output.tables import write_parquet


def test_the_table_holds_every_row_with_its_keys_and_its_picture(run, memories, tmp_path):
    path = tmp_path / "trips.parquet"
    code, out, err = run("memory", "export", memories / "trips", "--format", "parquet", "-o", path)
    assert (code, out) == (0, "") and "wrote" in err
    with Store.open(memories / "trips", None, "r") as store:
        entries, fingerprint = list(store.export()), store.header.fingerprint
    table = pq.read_table(path)
    assert table.schema.metadata[b"streammem.fingerprint"].decode() == fingerprint
    rows = table.to_pylist()
    assert len(rows) == len(entries) == 5
    for row, entry in zip(rows, entries, strict=True):
        assert row["memory"] == "trips"
        for name in ("segment", "last", "start", "end", "source", "frames", "caption", "keyframe"):
            assert row[name] == getattr(entry, name), name
        assert np.array_equal(np.array(row["vector"], np.float32), entry.visual_keys[0])
        assert np.array_equal(np.array(row["keys"], np.float32), entry.visual_keys)
        assert len(row["caption_keys"]) == len(entry.caption_keys)


def test_few_rows_are_held_at_a_time_and_a_file_is_whole_or_not_there(
    memories, tmp_path, monkeypatch
):
    monkeypatch.setattr(tables, "ROWS", 2)
    with Store.open(memories / "trips", None, "r") as store:
        header, entries = store.header, list(store.export())
    about = {"memory": "m", "fingerprint": header.fingerprint, "key_dim": header.key_dim}
    assert write_parquet(tmp_path / "a.parquet", iter(entries), **about) == 5
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3

    def breaks():
        yield from entries[:3]
        raise StoreError("a row is damaged")

    with pytest.raises(StoreError, match="damaged"):
        write_parquet(tmp_path / "b.parquet", breaks(), **about)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "memories"]


@pytest.mark.parametrize(
    ("more", "wanted"), [((), "give -o FILE"), (("-o", "x.parquet", "--wall-clock"), "leave them")]
)
def test_what_has_no_place_in_a_table_is_refused(run, memories, more, wanted):
    code, _, err = run("memory", "export", memories / "trips", "--format", "parquet", *more)
    assert code == 2 and wanted in err


@pytest.mark.heavy
def test_a_lance_dataset_holds_the_same_rows_and_no_part_is_left(run, memories, tmp_path):
    lance = pytest.importorskip("lance", reason="needs streammem[lance]")
    command = ("memory", "export", memories / "trips", "--format")
    assert run(*command, "lance", "-o", tmp_path / "trips.lance")[0] == 0
    assert run(*command, "parquet", "-o", tmp_path / "trips.parquet")[0] == 0
    rows = lance.dataset(str(tmp_path / "trips.lance")).to_table()
    assert rows.to_pylist() == pq.read_table(tmp_path / "trips.parquet").to_pylist()
    code, _, err = run(*command, "lance", "-o", tmp_path / "trips.lance")
    assert code != 0 and "trips.lance" in err
    assert not list(tmp_path.glob("*.partial"))
