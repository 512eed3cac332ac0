import errno
import os
from contextlib import closing
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from streammem.errors import StoreError
from streammem.memory import store
from streammem.memory.folder import write_header
from streammem.memory.memory import CacheConfig, Memory
from streammem.memory.retrieval import Query
from streammem.memory.store import Store
from streammem.types import Note
from tests.memory.entries import DIM, TOKENS, make, same, unit

NONE = np.empty((0, 0))


@pytest.fixture(params=["ram", "disk"])
def remember(request, tmp_path):
    """A memory for tokens of a shape."""
    opened = []

    def of(shape):
        if request.param == "ram":
            opened.append(Memory(CacheConfig(DIM, shape)))
        else:
            opened.append(
                Memory.open(
                    tmp_path / "a.mem", "tiny-1", key_dim=DIM, token_shape=shape, max_segments=10
                )
            )
        return opened[-1]

    yield of
    for memory in opened:
        memory.close()


@pytest.mark.parametrize("shape", [(0, 0), (0, 6), TOKENS])
def test_a_segment_without_tokens_has_none_of_their_width(remember, shape):
    memory = remember(shape)
    memory.append(make(0, tokens=NONE), torch.zeros(1, 1))
    assert memory.tokens(0).shape == (0, shape[1])
    assert memory.related_tokens(unit(1)[0], 4).shape == (0, shape[1])


def test_tokens_are_the_same_in_ram_and_on_disk(remember):
    memory = remember(TOKENS)
    tokens = np.random.default_rng(0).normal(size=TOKENS)
    memory.append(make(0, tokens=tokens), torch.zeros(1, 1))
    assert memory.tokens(0).dtype == torch.float32
    np.testing.assert_array_equal(memory.tokens(0).numpy(), make(0, tokens=tokens).tokens)


STATE = torch.zeros(1, 1)


def test_append_returns_what_reading_it_back_gives(remember):
    memory = remember(TOKENS)
    rng = np.random.default_rng(0)
    still = unit(1, seed=5)
    for segment, keys in ((0, None), (1, still), (2, still), (3, still), (4, None)):
        entry = make(segment, keys, tokens=rng.normal(size=TOKENS))
        row = memory.append(entry, STATE)
        found = memory.get(segment)
        assert (row.segment, row.last, row.frames) == (found.segment, found.last, found.frames)
        np.testing.assert_array_equal(row.visual_keys, found.visual_keys)
        np.testing.assert_array_equal(row.tokens, memory.tokens(segment).numpy())
        assert row.keyframe == memory.keyframe(segment) == b"jpeg %d" % segment
    assert [row.last for row in memory.entries()] == [0, 3, 4]


def test_append_reads_nothing_back_from_disk(remember, monkeypatch):
    memory = remember(TOKENS)
    memory.append(make(0), STATE)
    for name in ("read", "tokens", "load_entries"):
        monkeypatch.setattr(f"streammem.memory.store.Store.{name}", None)
    for segment, seed in ((1, 0), (2, 2), (3, 2)):  # goes on, new, goes on
        assert memory.append(make(segment, unit(1, seed=seed)), STATE).tokens.shape == TOKENS


def test_a_scene_that_goes_on_in_a_memory_opened_again_keeps_its_tokens(tmp_path):
    options = {"key_dim": DIM, "token_shape": TOKENS, "max_segments": 10}
    whole = []
    for segment in (0, 1):
        memory = Memory.open(tmp_path / "a.mem", "tiny-1", **options)
        tokens = np.full(TOKENS, segment + 1.0)
        whole.append(memory.append(make(segment, unit(1), tokens=tokens), STATE))
        memory.close()
    assert (whole[1].segment, whole[1].last) == (0, 1)
    np.testing.assert_array_equal(whole[1].tokens, whole[0].tokens)


def test_text_that_comes_later_is_found(remember):
    memory = remember(TOKENS)
    for segment in range(3):
        memory.append(make(segment), STATE)
    caption, note = unit(2, seed=77)
    memory.set_caption(1, "a dog", caption)
    row = memory.add_notes(2, (Note(2.0, 3.0, "good dog"),), note)
    assert row.notes[0].text == "good dog"
    for key, segment in ((caption, 1), (note, 2)):
        assert memory.search(Query(key), k=1, rankers=())[0].entry.segment == segment


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("fails", ["a full disk", "a locked database", "a full keyframe disk"])
def test_a_segment_that_the_disk_refuses_is_nowhere_until_it_is_given_again(
    tmp_path, monkeypatch, goes_on, fails
):
    memory = opened(tmp_path / "a.mem")
    for segment in range(3):
        memory.append(make(segment), STATE)
    refused = make(3, unit(1, seed=2 if goes_on else 3))
    key = refused.visual_keys[0]

    def found():
        hits = memory.search(Query(key))
        return [(hit.entry.segment, hit.entry.last, hit.ranked) for hit in hits]

    before, rows = found(), memory.entries()
    database = memory._store.database
    with monkeypatch.context() as patch:
        if fails == "a full keyframe disk":
            patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
        else:
            patch.setattr(database, "query", failing(database.query, fails))
        with pytest.raises(StoreError):
            memory.append(refused, STATE)
    assert found() == before and memory.entries() == rows and memory.next_segment == 3
    row = memory.append(refused, STATE)
    assert (row.segment, row.last) == ((2, 3) if goes_on else (3, 3))
    memory.close()
    with closing(opened(tmp_path / "a.mem", "r")) as again:
        assert all(map(same, again.entries(), memory.entries()))
        assert len(again) == len(memory) == (3 if goes_on else 4)


def failing(query, fails):
    """A query that fails as the disk does: in the transaction, or before it begins."""

    def failed(sql, *arguments):
        if sql.startswith("BEGIN IMMEDIATE" if "locked" in fails else "COMMIT"):
            raise StoreError(fails)
        return query(sql, *arguments)

    return failed


def test_what_is_pruned_is_not_found_and_a_memory_in_ram_has_nothing_to_prune(remember):
    memory = remember(TOKENS)
    for segment in range(3):
        memory.append(make(segment), STATE)
    pruned = memory.prune(keep_s=0.0, now=1e12)
    if memory.path is None:
        assert pruned is None and len(memory) == 3
    else:
        assert pruned.segments == (0, 1, 2) and len(memory) == 0
        assert memory.search(Query(unit(1)[0]), k=3) == ()
        assert memory.append(make(3), STATE).tokens.shape == TOKENS


def test_what_was_pruned_before_the_disk_failed_is_not_found(tmp_path, monkeypatch):
    memory = opened(tmp_path / "a.mem")
    for segment in range(3):
        memory.append(make(segment), STATE)
    with monkeypatch.context() as patch:
        patch.setattr(memory._store.database, "shrink", mock.Mock(side_effect=StoreError("full")))
        with pytest.raises(StoreError, match="full"):
            memory.prune(keep_s=0.0, now=1e12)
    assert len(memory) == 0 and memory.search(Query(unit(1)[0]), k=3) == ()
    assert memory.append(make(3), STATE).segment == 3
    memory.close()


def test_the_present_is_where_each_source_was_left(remember):
    memory = remember(TOKENS)
    assert memory.now(5.0) == (5.0, {}) and memory.num_keys == 0
    for segment, source in enumerate("aab"):
        memory.append(make(segment, source=source), STATE)
    assert memory.now(5.0) == (5.0, {"a": 2.0, "b": 3.0}) and memory.num_keys == 3


def opened(path, mode="rw", most=60):
    options = {"key_dim": DIM, "token_shape": TOKENS, "max_segments": most}
    return Memory.open(path, "tiny-1", mode=mode, **options)


def test_a_reader_that_follows_its_writer_holds_what_one_that_opens_anew_holds(
    tmp_path, monkeypatch
):
    read = []
    to_entry = store.to_entry
    monkeypatch.setattr(
        store, "to_entry", lambda row, dim: read.append(row[0]) or to_entry(row, dim)
    )
    rng, path = np.random.default_rng(3), tmp_path / "a.mem"
    writer = opened(path)
    reader = opened(path, "r")
    for round_ in range(30):
        first, touched = writer.next_segment, set()
        for segment in range(first, first + int(rng.integers(0, 4))):  # some go on
            touched.add(writer.append(make(segment, unit(1, seed=segment // 2)), STATE).segment)
        rows = [row.segment for row in writer.entries()]
        if rows and round_ % 3 == 0:
            touched.add(captioned := int(rng.choice(rows)))
            writer.set_caption(captioned, f"round {round_}", unit(1, seed=round_)[0])
        if rows and round_ % 4 == 1:
            touched.add(spoken := int(rng.choice(rows)))
            writer.add_notes(spoken, (Note(0.0, 1.0, "a word"),), unit(1, seed=round_)[0])
        if rows and round_ % 5 == 2:
            with Store.open(path, None, "r") as other:
                gone = other.load_entries()[0].segment
            writer._store.database.query("DELETE FROM segments WHERE segment = ?", gone)
            writer._cache.drop([gone])
            touched.discard(gone)
        read.clear()
        assert reader.refresh()
        assert set(read) == touched, "only rows that have changed are read"
        anew = opened(path, "r")
        assert len(reader) == len(anew) == len(writer) and reader.num_keys == anew.num_keys
        assert all(map(same, reader.entries(), anew.entries()))
        query = Query(unit(1, seed=round_)[0])
        found = [[(h.entry.segment, h.score) for h in m.search(query, k=5)] for m in (reader, anew)]
        assert found[0] == found[1]
        assert reader.next_segment == anew.next_segment
        anew.close()
    writer.close()
    reader.close()


def test_a_reader_that_cannot_follow_row_by_row_says_so(tmp_path):
    path = tmp_path / "a.mem"
    with closing(opened(path)) as writer:
        assert not writer.refresh()  # it is what others follow
        for segment in range(4):
            writer.append(make(segment), STATE)
        with closing(opened(path, "r", most=4)) as reader:
            writer.append(make(4), STATE)
            assert not reader.refresh() and len(reader) == 4  # there is no room: rows must merge
        with closing(opened(path, "r", most=4)) as reader:
            assert not reader.refresh()  # rows have merged
        with closing(opened(path, "r")) as reader:
            header = writer._store.header
            write_header(path, replace(header, fingerprint="tiny-2"))
            assert not reader.refresh()  # keys of another model
            write_header(path, header)
            assert reader.refresh()
            writer._store.database.query("UPDATE segments SET caption = 'x' WHERE segment = 2")
            reader._store._loaded.pop(2)
            with pytest.raises(StoreError, match="segment 2 is damaged"):
                reader.refresh()
