"""Databases hold what memories hold: row by row, once, and a search there finds what ours finds."""

from itertools import count

import numpy as np
import pytest

from streammem.errors import ConfigError, StoreError
from streammem.memory import sinks
from streammem.memory.entry import KEY_KINDS, MAX_KEYS
from streammem.memory.index import FaissIndex
from streammem.memory.sinks import Copied, SinkRecord, copy, open_sink
from streammem.memory.store import Store
from streammem.memory.upkeep import entries
from streammem.types import Note
from tests.memory.entries import DIM, TOKENS, make, unit
from tests.postgres import postgres  # noqa: F401, a fixture

NUMBER = count()
FINGERPRINT = "a model"


@pytest.fixture(params=["qdrant", pytest.param("postgresql", marks=pytest.mark.heavy)])
def address(request, tmp_path):
    """An empty database: Qdrant's own, in a folder, or a server of PostgreSQL."""
    if request.param == "qdrant":
        pytest.importorskip("qdrant_client", reason="needs streammem[qdrant]")
        return f"qdrant:{tmp_path / 'qdrant'}"
    return f"{request.getfixturevalue('postgres')}&table=t{next(NUMBER)}"


@pytest.fixture
def store(tmp_path):
    """A memory of 12 segments, of which the first three have captions and speech."""
    made = Store.create(tmp_path / "door", FINGERPRINT, key_dim=DIM, token_shape=TOKENS)
    with made:
        for number in range(12):
            keys = unit(1 + number % 3, seed=number)
            said = {"caption": f"Scene {number}.", "caption_keys": unit(1, seed=100 + number)}
            spoken = unit(1, seed=200 + number)
            said |= {"notes": (Note(number, number + 1.0, "A word."),), "note_keys": spoken}
            made.append(make(number, keys, **(said if number < 3 else {})), b"")
        yield made


def opened(address, fingerprint=FINGERPRINT):
    return open_sink(address, DIM, fingerprint)


def test_a_copy_is_made_once_and_then_only_of_what_has_changed(address, store):
    with opened(address) as sink:
        assert copy(store, "door", sink) == Copied(12, 0, 0)
        assert copy(store, "door", sink) == Copied(0, 12, 0)
    store.set_caption(3, "A new caption.", None)
    store.database.query("DELETE FROM segments WHERE segment = 5")
    with opened(address) as sink:  # another process, another day
        assert copy(store, "hall", sink) == Copied(11, 0, 0)  # another memory of the same rows
        assert copy(store, "door", sink) == Copied(1, 10, 1)
        expected = {e.segment: SinkRecord.of(e).checksum for e in entries(store)}
        assert sink.checksums("door") == sink.checksums("hall") == expected
        sink.remove("door", list(expected))
        assert sink.checksums("door") == {} and len(sink.checksums("hall")) == 11
        assert len(sink.index("door")) == 0


def test_keys_are_searched_as_ours_are(address, store, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS", 5)
    with opened(address) as sink:
        for name in ("door", "hall"):
            copy(store, name, sink)
        for kind in KEY_KINDS:
            ours = FaissIndex(DIM)
            for row in entries(store):
                keys = getattr(row, kind)
                ours.add(row.segment * MAX_KEYS + np.arange(len(keys)), keys)
            theirs = sink.index("door", kind)
            assert len(theirs) == len(ours)
            query = np.random.default_rng(1).normal(size=DIM).astype(np.float32)
            query /= np.linalg.norm(query)
            expected = ours.search(query, 5, group=MAX_KEYS)
            found = theirs.search(query, 5, group=MAX_KEYS)
            assert found[0].tolist() == expected[0].tolist()
            np.testing.assert_allclose(found[1], expected[1], atol=2e-3)
            alone = sink.search(query, 5, kind=kind, memory="door")
            assert [m.segment for m in alone] == expected[0].tolist()
            both = sink.search(query, 4, kind=kind)
            first = expected[0].tolist()[:2]  # equal scores may differ by rounding
            assert sorted((m.segment, m.memory) for m in both) == sorted(
                (segment, name) for segment in first for name in ("door", "hall")
            )


def test_keys_of_another_model_are_not_mixed_in(address, store):
    with opened(address) as sink:
        copy(store, "door", sink)
    with pytest.raises(StoreError, match="another model"):
        opened(address, "another one")


def test_what_is_interrupted_is_gone_on_with(address, store, monkeypatch):
    monkeypatch.setattr(sinks, "ROWS", 4)
    with opened(address) as sink:
        put, calls = sink.put, []

        def breaks(memory, rows):
            calls.append(rows)
            if len(calls) == 2:
                raise KeyboardInterrupt
            put(memory, rows)

        sink.put = breaks
        with pytest.raises(KeyboardInterrupt):
            copy(store, "door", sink)
    with opened(address) as sink:
        assert copy(store, "door", sink) == Copied(8, 4, 0)


def test_text_of_any_kind_is_kept(address, store):
    caption = 'It\'s "quoted"; DROP TABLE \x00 %s {rows} ü 🙂'
    store.set_caption(1, caption, None)
    with opened(address) as sink:
        assert copy(store, "do'or \x1f%s", sink).written == 12
        assert copy(store, "do'or \x1f%s", sink).unchanged == 12


@pytest.mark.parametrize(
    "wrong",
    ["http://127.0.0.1/x", "qdrant:", "qdrant:///x", "qdrant://h/a-b", "qdrant://u:p@h/a", "door"],
)
def test_an_address_that_means_nothing_is_refused(wrong):
    pytest.importorskip("qdrant_client", reason="needs streammem[qdrant]")
    with pytest.raises(ConfigError, match=r"qdrant|COLLECTION"):
        opened(wrong)


def test_a_tables_name_is_no_sql():
    pytest.importorskip("psycopg", reason="needs streammem[postgres]")
    with pytest.raises(ConfigError, match="letters, digits"):
        opened("postgresql://127.0.0.1/db?table=a%3B%20drop")


@pytest.mark.parametrize("wrong", ["u:s3cret[w@127.0.0.1:9/db", "u:100%s3cret@127.0.0.1:9/db"])
def test_an_address_that_cannot_be_read_shows_no_password(wrong):
    pytest.importorskip("psycopg", reason="needs streammem[postgres]")
    with pytest.raises((ConfigError, StoreError)) as caught:
        opened(f"postgresql://{wrong}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "address"), [("qdrant_client", "qdrant://127.0.0.1:9"), ("psycopg", "postgresql:")]
)
def test_one_that_does_not_answer_is_named_in_one_line(package, address):
    pytest.importorskip(package)
    if package == "psycopg":
        address = "postgresql://u:secret@127.0.0.1:9/db"
    with pytest.raises(StoreError) as caught:
        opened(address)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
