import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from streammem.errors import StoreError
from streammem.memory import database, folder, store
from streammem.memory.entry import Sureness
from streammem.memory.folder import DATABASE, FORMAT, HEADER, KEYFRAMES
from streammem.memory.memory import CacheConfig, MemoryCache
from streammem.memory.store import Store
from streammem.memory.upkeep import _Pruning, compact, prune, verify
from streammem.types import Note
from tests.memory.entries import DIM, TOKENS, make, same, search, unit

MODEL = "tiny-1"
HEAVY = pytest.mark.heavy


def create(path):
    return Store.create(path, MODEL, key_dim=DIM, token_shape=TOKENS)


def fill(path, num):
    """A closed memory of `num` segments, and what went in."""
    entries = [
        make(i, caption_keys=unit(1, seed=-i % 97), caption=f"scene {i}") for i in range(num)
    ]
    with create(path) as memory:
        for entry in entries:
            memory.append(entry, b"state %d" % entry.segment)
    return entries


def equal(left, right):
    left, right = list(left), list(right)
    return len(left) == len(right) and all(map(same, left, right))


# -- what goes in comes out --


def test_a_reopened_memory_holds_what_was_appended(tmp_path):
    entry = make(
        3,
        unit(3, seed=1),
        caption_keys=unit(2, seed=2),
        note_keys=unit(1, seed=3),
        caption="Zwei Hunde\nlaufen „davon“",
        notes=(Note(3.1, 3.5, "hallo ☃"),),
        source="rtsp://camera/1",
        wall_start=1_700_000_000.25,
        merged=2,
        last=4,
    )
    with create(tmp_path / "a.mem") as memory:
        memory.append(entry, b"\x00state")
    with Store.open(tmp_path / "a.mem", MODEL, "r") as memory:
        assert equal(memory.export(), [entry])
        assert same(memory.read(4), entry)
        assert memory.recurrent_state() == b"\x00state"
        assert memory.keyframe_path(3).read_bytes() == entry.keyframe
        np.testing.assert_array_equal(memory.tokens(3), entry.tokens)
        (loaded,) = memory.load_entries()
    assert loaded.tokens.size == 0 and loaded.keyframe is None
    np.testing.assert_array_equal(loaded.visual_keys, entry.visual_keys)


def test_tokens_on_disk_have_8_bits_and_are_those_in_ram(tmp_path):
    shape = (16, 384)
    entry = make(0, tokens=np.random.default_rng(0).normal(size=shape))
    with Store.create(tmp_path / "a.mem", MODEL, key_dim=DIM, token_shape=shape) as memory:
        memory.append(entry, b"")
        np.testing.assert_array_equal(memory.tokens(0), entry.tokens)
        ((size,),) = memory.database.query("SELECT length(block) FROM tokens")
    assert size == 1 + shape[0] * shape[1] * 34 // 32


def test_loading_takes_hardly_more_ram_than_what_it_returns(tmp_path):
    with create(tmp_path / "a.mem") as memory:
        for segment in range(40):
            caption = chr(ord("a") + segment % 26) * 2000
            memory.append(make(segment, caption=caption, notes=(Note(0, 1, caption * 9),)), b"")
        tracemalloc.start()
        try:
            entries = memory.load_entries()
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(entries) == 40 and kept > 40 * 20_000
    assert peak < 1.15 * kept  # all rows at once beside the entries: 1.9


def test_a_cache_loaded_from_the_store_equals_the_one_that_wrote_it(tmp_path):
    config = CacheConfig(key_dim=DIM, token_shape=TOKENS, max_segments=10, keys_only=True)
    cache = MemoryCache(config)
    with create(tmp_path / "a.mem") as memory:
        for segment in range(40):
            entry = make(segment, unit(1, seed=segment // 3))
            change = cache.append(entry)
            if change.action == "appended":
                memory.append(entry, b"")
            else:
                memory.extend(change.entry, b"")
            key = unit(1, seed=segment % 5)[0]
            cache.set_caption(segment, f"caption {segment}", key)
            memory.set_caption(segment, f"caption {segment}", key)
    copy = MemoryCache(config)
    with Store.open(tmp_path / "a.mem", MODEL) as memory:
        copy.load(memory.load_entries())
        assert verify(memory) == ()
        assert memory.tokens(39).size, "extending keeps the tokens of the row"
    for segment in range(40, 70):
        for each in (cache, copy):
            each.append(make(segment))
    # Captions of rows merged meanwhile were condensed in another order: only keys are compared.
    for ours, theirs in zip(cache.entries(), copy.entries(), strict=True):
        assert (ours.segment, ours.last, ours.end) == (theirs.segment, theirs.last, theirs.end)
        np.testing.assert_array_equal(ours.visual_keys, theirs.visual_keys)


def test_extending_changes_the_end_and_the_keyframe_and_removes_the_old_one(tmp_path):
    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"1")
        memory.extend(make(0, end=9.0, last=5, frames=7, keyframe=b"new"), b"2")
        entry = memory.read(5)
        assert (entry.end, entry.frames, entry.keyframe) == (9.0, 7, b"new")
        assert len(list((tmp_path / "a.mem" / KEYFRAMES).iterdir())) == 1
        assert memory.recurrent_state() == b"2"
        memory.extend(make(0, end=10.0, last=6, keyframe=None, tokens=np.empty((0, 0))), b"3")
        assert memory.read(6).keyframe == b"new" and memory.read(6).tokens.size


def test_text_that_comes_later_is_kept(tmp_path):
    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"")
        memory.set_caption(0, "a dog", unit(1)[0])
        memory.add_notes(0, (Note(0, 1, "woof"),), unit(1, seed=7)[0])
    with Store.open(tmp_path / "a.mem") as memory:
        entry = memory.read(0)
    assert (entry.caption, entry.notes) == ("a dog", (Note(0, 1, "woof"),))
    keys = {"caption_keys": unit(1), "note_keys": unit(1, seed=7)}
    assert same(entry, make(0, caption=entry.caption, notes=entry.notes, **keys))


def test_a_reader_sees_each_segment_while_the_writer_goes_on(tmp_path):
    path = tmp_path / "a.mem"
    with create(path) as writer, Store.open(path, MODEL, "r") as reader:
        for segment in range(5):
            writer.append(make(segment), b"")
            assert len(reader.load_entries()) == segment + 1
        exported = reader.export()
        next(exported)
        writer.append(make(5), b"")
        assert len(list(exported)) in (4, 5)
        with pytest.raises(StoreError, match="reading only"):
            reader.append(make(6), b"")


# -- what must not be opened --


WRITES = {
    "append": lambda writer: writer.append(make(writer.next_segment()), b""),
    "go on": lambda writer: writer.extend(make(4, keyframe=os.urandom(8)), b""),
    "caption": lambda writer: writer.set_caption(3, os.urandom(8).hex(), None),
    "drop keyframes": lambda writer: _Pruning(writer)._thin_keyframes(1),
    "drop tokens": lambda writer: _Pruning(writer)._thin_tokens(1),
    "drop rows": lambda writer: prune(writer, keep_s=0.0, now=1e12),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("at", [2, 3, 5, None])
def test_checking_and_exporting_find_no_fault_in_what_is_being_written(tmp_path, write, at):
    """A writer writes before the reader's query of that number; with None before the first 20."""
    path, number = tmp_path / "a.mem", 0
    fill(path, 5)
    with Store.open(path, MODEL) as writer, Store.open(path, MODEL, "r") as reader:
        query = reader.database.query

        def overtaken(*arguments):
            nonlocal number
            number += 1
            if number == at or (at is None and number <= 20):
                WRITES[write](writer)
            return query(*arguments)

        reader.database.query = overtaken
        assert verify(reader) == ()
        number = 0
        exported = [entry.segment for entry in reader.export()]
        kept = [] if write == "drop rows" else [0, 1, 2, 3, 4]
        assert exported == sorted(exported) and set(exported) >= set(kept)
        for segment in kept:
            number = 0
            reader.tokens(segment)
            number = 0
            reader.keyframe(segment)


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    who = rf"process {os.getpid()} on \S+ since 20\d\d-"
    with create(tmp_path / "a.mem"), pytest.raises(StoreError, match=who):
        Store.open(tmp_path / "a.mem", MODEL)
    Store.open(tmp_path / "a.mem", MODEL).close()


def test_another_models_memory_is_refused_and_can_be_looked_at_without_a_model(tmp_path):
    fill(tmp_path / "a.mem", 2)
    with pytest.raises(StoreError, match="another model"):
        Store.open(tmp_path / "a.mem", "tiny-2")
    with Store.open(tmp_path / "a.mem", None, "r") as memory:
        assert len(memory.load_entries()) == 2


@pytest.mark.parametrize("mode", ["rw", "r"])
def test_a_path_that_is_no_memory_is_refused(tmp_path, mode):
    file = tmp_path / "film.mp4"
    file.write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path, reason in [
        (file, "is a file"),
        (tmp_path / "folder", "not a memory"),
        (tmp_path / "absent", "not a memory"),
    ]:
        with pytest.raises(StoreError, match=reason):
            Store.open(path, MODEL, mode)
    assert not (tmp_path / "absent").exists()


def test_creating_never_touches_what_is_there(tmp_path):
    (tmp_path / "file").write_bytes(b"film")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("dear")
    fill(tmp_path / "a.mem", 1)
    for name, reason in [("file", "is a file"), ("folder", "not empty"), ("a.mem", "already")]:
        with pytest.raises(StoreError, match=reason):
            create(tmp_path / name)
    assert os.listdir(tmp_path / "folder") == ["letter.txt"]


def test_a_creation_that_was_cut_off_can_be_repeated_and_a_lost_header_is_no_such_case(tmp_path):
    create(tmp_path / "a.mem").close()
    (tmp_path / "a.mem" / HEADER).unlink()
    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"")
    (tmp_path / "a.mem" / HEADER).unlink()
    with pytest.raises(StoreError, match=r"lost its memory\.json"):
        create(tmp_path / "a.mem")


def test_how_sure_a_caption_is_survives_and_is_under_the_checksum(tmp_path):
    path = tmp_path / "a.mem"
    lines = (("a dog", Sureness(0.123456789, False)), ("a cat", Sureness(None, True)))
    lines += (("a bird", Sureness(0.5, False, 0.75)),)
    with create(path) as memory:
        for segment in range(2):
            memory.append(make(segment), b"")
        for text, sureness in lines:
            memory.set_caption(0, text, None, sureness)
        memory.set_caption(1, "", None, Sureness(0.1, True))
    with Store.open(path, MODEL, "r") as memory:
        assert memory.read(0).sureness == tuple(sureness for _, sureness in lines)
        assert (memory.read(1).caption, memory.read(1).sureness) == (None, (Sureness(0.1, True),))
    connection = sqlite3.connect(path / DATABASE)
    with connection:
        connection.execute("UPDATE segments SET sureness = NULL WHERE segment = 0")
    connection.close()
    with Store.open(path, MODEL, "r") as memory:
        assert [fault.segment for fault in verify(memory)] == [0]


def test_a_newer_format_is_refused(tmp_path):
    fill(tmp_path / "a.mem", 1)
    header = tmp_path / "a.mem" / HEADER
    text = header.read_text()
    header.write_text(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(StoreError, match=f"newer than {FORMAT}"):
        Store.open(tmp_path / "a.mem", MODEL)
    header.write_text(text)
    connection = sqlite3.connect(tmp_path / "a.mem" / DATABASE)
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"newer than {FORMAT}"):
        Store.open(tmp_path / "a.mem", MODEL, "r")


def test_an_older_format_is_brought_up_to_date_by_its_writer(tmp_path, monkeypatch):
    entries = fill(tmp_path / "a.mem", 3)
    for module in (folder, database, store):
        monkeypatch.setattr(module, "FORMAT", FORMAT + 1)
    monkeypatch.setattr(store, "OLDEST_READ", FORMAT + 1)
    later = "CREATE TABLE later (a); CREATE INDEX it ON later (a)"
    monkeypatch.setitem(database.MIGRATIONS, FORMAT, later)
    with pytest.raises(StoreError, match=f"older format {FORMAT}"):
        Store.open(tmp_path / "a.mem", MODEL, "r")
    for _ in range(2):
        with Store.open(tmp_path / "a.mem", MODEL) as memory:
            assert memory.header.format == FORMAT + 1 and equal(memory.export(), entries)
            assert memory.database.query("SELECT count(*) FROM later") == [(0,)]


def of_format_1(path, tokens):
    """Make a closed memory what the first format left behind: tokens in half precision."""
    connection = sqlite3.connect(path / DATABASE)
    with connection:
        for segment, block in enumerate(tokens):
            half = block.astype("<f2").tobytes()
            connection.execute(
                "UPDATE tokens SET block = ?, checksum = ? WHERE segment = ?",
                (half, database.checksum(half), segment),
            )
    connection.execute("ALTER TABLE segments DROP COLUMN sureness")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    header = path / HEADER
    header.write_text(header.read_text().replace(f'"format": {FORMAT}', '"format": 1'))


def test_a_memory_of_format_1_is_read_written_checked_and_compacted(tmp_path):
    path = tmp_path / "a.mem"
    entries = fill(path, 3)
    old = [unit(*TOKENS[:1], seed=i, dim=TOKENS[1]).astype(np.float16) for i in range(3)]
    of_format_1(path, old)
    for mode in ("r", "rw", "r"):
        with Store.open(path, MODEL, mode) as memory:
            for segment, tokens in enumerate(old):
                np.testing.assert_array_equal(memory.tokens(segment), tokens)
            exported = list(memory.export())
            for entry, wanted, tokens in zip(exported, entries, old, strict=False):
                assert same(entry, make(wanted.segment, caption_keys=wanted.caption_keys,
                                        caption=wanted.caption, tokens=tokens))  # fmt: skip
            assert verify(memory) == ()
            if mode == "rw":
                memory.append(make(3), b"")
                compact(memory)
    with Store.open(path, MODEL, "r") as memory:
        assert memory.header.format == FORMAT
        assert same(memory.read(3), make(3))


def test_times_of_words_are_kept_to_the_bit_and_a_memory_of_format_4_gains_them(tmp_path):
    path, plain = tmp_path / "a.mem", Note(0.0, 0.9, "good dog")
    timed = Note(0.1, 1.0 / 3, "gute Katze", (0.1, 0.123456))
    with create(path) as memory:
        memory.append(make(0, notes=(plain,)), b"")
    connection = sqlite3.connect(path / DATABASE)
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    (path / HEADER).write_text((path / HEADER).read_text().replace(
        f'"format": {FORMAT}', '"format": 4'))  # fmt: skip
    with Store.open(path, MODEL, "r") as memory:
        assert memory.read(0).notes == (plain,)
    with Store.open(path, MODEL, "rw") as memory:
        memory.add_notes(0, (timed,), None)
    with Store.open(path, MODEL, "r") as memory:
        assert memory.read(0).notes == (plain, timed) and verify(memory) == ()


def test_an_upgrade_that_was_cut_off_before_the_header_is_finished(tmp_path):
    path = tmp_path / "a.mem"
    entries = fill(path, 2)
    of_format_1(path, [entry.tokens for entry in entries])
    connection = sqlite3.connect(path / DATABASE)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    for mode in ("r", "rw", "r"):
        with Store.open(path, MODEL, mode) as memory:
            assert equal(memory.export(), entries)
    assert memory.header.format == FORMAT


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": "x"}', b"\xff\xfe"]
)
def test_a_damaged_header_is_told(tmp_path, content):
    fill(tmp_path / "a.mem", 1)
    (tmp_path / "a.mem" / HEADER).write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "a.mem", MODEL)


def test_a_missing_database_is_told_and_not_made_anew(tmp_path):
    fill(tmp_path / "a.mem", 1)
    (tmp_path / "a.mem" / DATABASE).unlink()
    for mode in ("rw", "r"):
        with pytest.raises(StoreError, match=r"lacks memory\.sqlite"):
            Store.open(tmp_path / "a.mem", MODEL, mode)
    assert not (tmp_path / "a.mem" / DATABASE).exists()


# -- damage --


def outcome(path):
    """What a reader gets: all entries; None where something tells of damage."""
    try:
        with Store.open(path, MODEL, "r") as memory:
            entries = [*memory.load_entries(), *memory.export()]
            return None if verify(memory) else entries
    except StoreError:
        return None


@pytest.mark.parametrize(("flips", "least"), [(20, 3), pytest.param(400, 60, marks=HEAVY)])
def test_a_flipped_byte_is_told_or_harmless(tmp_path, flips, least):
    fill(tmp_path / "a.mem", 40)
    path = tmp_path / "a.mem"
    with Store.open(path, MODEL, "r") as memory:
        good = [*memory.load_entries(), *memory.export()]
    content = (path / DATABASE).read_bytes()
    rng = random.Random(0)
    told = 0
    for _ in range(flips):
        at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        flipped = bytearray(content)
        flipped[at] ^= bit
        (path / DATABASE).write_bytes(flipped)
        found = outcome(path)
        told += found is None
        assert found is None or equal(found, good), f"byte {at} changed the memory unnoticed"
    assert told >= least


def test_damage_names_the_segment_and_leaves_the_others_readable(tmp_path):
    entries = fill(tmp_path / "a.mem", 5)
    database_file = tmp_path / "a.mem" / DATABASE
    content = database_file.read_bytes()
    assert content.count(b"scene 3") == 1
    database_file.write_bytes(content.replace(b"scene 3", b"scene 8"))
    with Store.open(tmp_path / "a.mem", MODEL) as memory:
        assert [fault.segment for fault in verify(memory)] == [3]
        for read in (memory.load_entries, lambda: memory.read(3)):
            with pytest.raises(StoreError, match="segment 3 is damaged"):
                read()
        assert same(memory.read(4), entries[4])


def test_damaged_or_missing_tokens_are_told_and_the_keys_stay(tmp_path):
    fill(tmp_path / "a.mem", 4)
    connection = sqlite3.connect(tmp_path / "a.mem" / DATABASE)
    with connection:
        connection.execute("UPDATE tokens SET block = zeroblob(24) WHERE segment = 1")
        connection.execute("DELETE FROM tokens WHERE segment = 2")
    connection.close()
    with Store.open(tmp_path / "a.mem", MODEL) as memory:
        with pytest.raises(StoreError, match="tokens of segment 1 are damaged"):
            memory.tokens(1)
        with pytest.raises(StoreError, match="tokens of segment 2 are missing"):
            memory.read(2)
        assert [fault.segment for fault in verify(memory)] == [1, 2]
        assert len(memory.load_entries()) == 4


def test_a_row_that_vanished_is_told(tmp_path):
    fill(tmp_path / "a.mem", 4)
    connection = sqlite3.connect(tmp_path / "a.mem" / DATABASE)
    with connection:
        connection.execute("DELETE FROM segments WHERE segment = 2")
        connection.execute("UPDATE counted SET segments = 4")
    connection.close()
    with Store.open(tmp_path / "a.mem", MODEL, "r") as memory:
        with pytest.raises(StoreError, match="lacks 1 rows"):
            memory.load_entries()
        assert [fault.what for fault in verify(memory)] == ["1 rows are missing"]


def test_the_index_is_made_of_the_rows_so_none_can_be_missing(tmp_path):
    entries = fill(tmp_path / "a.mem", 5)
    named = {DATABASE, HEADER, KEYFRAMES, folder.LOCK}
    assert set(os.listdir(tmp_path / "a.mem")) == named, "no file of an index"
    cache = MemoryCache(CacheConfig(DIM, TOKENS, keys_only=True))
    with Store.open(tmp_path / "a.mem", MODEL, "r") as memory:
        cache.load(memory.load_entries())
    for entry in entries:
        assert search(cache, entry.visual_keys[0], 1)[0].entry.segment == entry.segment


def test_a_missing_folder_of_keyframes_is_told_and_costs_only_itself(tmp_path):
    fill(tmp_path / "a.mem", 2)
    shutil.rmtree(tmp_path / "a.mem" / KEYFRAMES)
    with Store.open(tmp_path / "a.mem", MODEL) as memory:
        assert [fault.segment for fault in verify(memory)] == [0, 1]
        with pytest.raises(StoreError, match="cannot be written"):
            memory.append(make(2), b"")
        assert len(memory.load_entries()) == 2 and memory.tokens(1).size


def test_a_keyframe_missing_or_damaged_is_told_and_costs_only_itself(tmp_path):
    fill(tmp_path / "a.mem", 4)
    with Store.open(tmp_path / "a.mem", MODEL) as memory:
        memory.keyframe_path(1).unlink()
        memory.keyframe_path(2).write_bytes(b"other")
        with pytest.raises(StoreError, match="cannot be read"):
            memory.read(1)
        with pytest.raises(StoreError, match=r"keyframe .* is damaged"):
            memory.read(2)
        assert [fault.segment for fault in verify(memory)] == [1, 2]
        assert len(memory.load_entries()) == 4 and memory.tokens(1).size


def test_traces_of_a_crash_go_but_a_keyframe_is_never_taken_for_one(tmp_path):
    fill(tmp_path / "a.mem", 4)
    frames = tmp_path / "a.mem" / KEYFRAMES
    (frames / "000000009-0000000000000000.jpg").write_bytes(b"trace")
    (frames / "000000009.partial").write_bytes(b"half")
    Store.open(tmp_path / "a.mem", MODEL).close()
    assert len(list(frames.iterdir())) == 4
    content = (tmp_path / "a.mem" / DATABASE).read_bytes()
    name = next(frames.iterdir()).name.encode()
    (tmp_path / "a.mem" / DATABASE).write_bytes(content.replace(name, name[::-1]))
    Store.open(tmp_path / "a.mem", MODEL).close()
    assert len(list(frames.iterdir())) == 4, "its row is damaged: it is not known whose it is"


# -- full and read-only disks --


def test_a_full_database_disk_loses_nothing_and_goes_on_when_there_is_space(tmp_path):
    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"0")
        pages = memory.database.query("PRAGMA page_count")[0][0]
        memory.database.query(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full; free space"):
            for segment in range(1, 200):
                memory.append(make(segment, notes=(Note(0, 1, "x" * 900),)), b"")
        kept = [entry.segment for entry in memory.load_entries()]
        assert verify(memory) == ()
        assert len(list((tmp_path / "a.mem" / KEYFRAMES).iterdir())) == len(kept)
        memory.database.query("PRAGMA max_page_count = 100000")
        memory.append(make(kept[-1] + 1), b"")
        assert [entry.segment for entry in memory.load_entries()] == [*kept, kept[-1] + 1]


def test_a_full_keyframe_disk_loses_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"0")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="No space left"):
                memory.append(make(1), b"1")
        assert len(memory.load_entries()) == 1 and memory.recurrent_state() == b"0"
        assert len(list((tmp_path / "a.mem" / KEYFRAMES).iterdir())) == 1
        memory.append(make(1), b"1")


def test_an_id_that_is_taken_is_refused_and_nothing_changes(tmp_path):
    with create(tmp_path / "a.mem") as memory:
        memory.append(make(0), b"0")
        with pytest.raises(StoreError, match="already"):
            memory.append(make(0, keyframe=b"other"), b"1")
        assert memory.read(0).keyframe == b"jpeg 0" and memory.recurrent_state() == b"0"
        assert verify(memory) == ()


@pytest.fixture
def unprivileged():
    """A folder that everybody may enter, and a switch to a user without rights."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    root = os.geteuid() == 0

    def switch():
        if root:
            os.seteuid(65534)

    yield parent, switch
    if root:
        os.seteuid(0)
    for each in [parent, *parent.rglob("*")]:
        if each.is_dir():
            each.chmod(0o755)
    shutil.rmtree(parent)


def lock_down(path):
    for each in [path, *path.rglob("*")]:
        each.chmod(0o555 if each.is_dir() else 0o444)


def test_a_read_only_folder_is_read_and_not_written(unprivileged):
    parent, switch = unprivileged
    entries = fill(parent / "a.mem", 3)
    files = set(os.listdir(parent / "a.mem"))
    lock_down(parent)
    switch()
    with Store.open(parent / "a.mem", MODEL, "r") as memory:
        assert equal(memory.export(), entries) and verify(memory) == ()
    with pytest.raises(StoreError, match="cannot be written"):
        Store.open(parent / "a.mem", MODEL)
    with pytest.raises(StoreError, match="cannot be made"):
        create(parent / "new.mem")
    assert set(os.listdir(parent / "a.mem")) == files


def test_a_killed_writers_memory_on_read_only_media_is_read_whole_or_refused(unprivileged):
    parent, switch = unprivileged
    with create(parent / "open.mem") as memory:
        for segment in range(3):
            memory.append(make(segment), b"")
        shutil.copytree(parent / "open.mem", parent / "a.mem")
    (parent / "a.mem" / f"{DATABASE}-shm").unlink()
    lock_down(parent / "a.mem")
    switch()
    try:
        with Store.open(parent / "a.mem", MODEL, "r") as memory:
            assert len(memory.load_entries()) == 3
    except StoreError as error:
        assert "copy it to a folder that can be written" in str(error)


# -- kills and power cuts --

WRITER = """
import sys
from streammem.memory.store import Store
from tests.memory.entries import make, search, unit
with Store.open(sys.argv[1], "tiny-1") as memory:
    first = max((entry.last + 1 for entry in memory.load_entries()), default=0)
    print("ready", flush=True)
    for segment in range(first, first + 100_000):
        memory.append(make(segment, keyframe=b"j" * 3000), b"state %d" % segment)
        print(segment, flush=True)
        if segment % 3 == 0:
            memory.set_caption(segment, f"caption {segment}", unit(1)[0])
        if segment % 7 == 0:
            longer = make(segment, end=segment + 2.0, keyframe=b"k" * 3000)
            memory.extend(longer, b"state %d" % segment)
"""


def kill_a_writer(path, rng):
    """Kill a writer at a random moment; return the last segment that it acknowledged."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    acknowledged = -1
    wanted = rng.randrange(1, 30)
    for _ in range(wanted + 1):
        line = writer.stdout.readline().strip()
        if line.isdigit():
            acknowledged = int(line)
    for _ in range(rng.randrange(20_000)):  # somewhere inside the next one
        pass
    writer.kill()
    rest = writer.communicate()[0].split()
    return max([acknowledged, *map(int, rest)])


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=HEAVY)])
def test_killing_the_writer_loses_no_acknowledged_segment(tmp_path, kills):
    create(tmp_path / "a.mem").close()
    rng = random.Random(kills)
    for _ in range(kills):
        acknowledged = kill_a_writer(tmp_path / "a.mem", rng)
        with Store.open(tmp_path / "a.mem", MODEL, "r") as memory:
            assert verify(memory) == ()
        with Store.open(tmp_path / "a.mem", MODEL) as memory:
            segments = [entry.segment for entry in memory.load_entries()]
            assert segments == list(range(len(segments))) and segments[-1] >= acknowledged
            assert memory.recurrent_state() == b"state %d" % segments[-1]
            assert verify(memory) == ()
            assert len(list((tmp_path / "a.mem" / KEYFRAMES).iterdir())) == len(segments)


@pytest.mark.parametrize("images", [10, pytest.param(500, marks=HEAVY)])
def test_a_power_cut_that_tears_unsynced_writes_loses_no_acknowledged_segment(tmp_path, images):
    path, image = tmp_path / "a.mem", tmp_path / "image.mem"
    sizes = []
    with create(path) as memory:
        for segment in range(30):
            memory.append(make(segment), b"state %d" % segment)
            sizes.append((path / f"{DATABASE}-wal").stat().st_size)
        shutil.copytree(path, image)
    wal = (image / f"{DATABASE}-wal").read_bytes()
    base = (image / DATABASE).read_bytes()
    rng = random.Random(0)
    for _ in range(images):
        synced = rng.randrange(len(sizes) - 1)
        # Of what was written after the last sync, any part may be missing, zero or rubbish.
        torn = bytearray(wal[: rng.randrange(sizes[synced], len(wal))])
        for _ in range(rng.randrange(3)):
            at = rng.randrange(sizes[synced], len(torn) + 1)
            torn[at : at + 512] = bytes(512) if rng.random() < 0.5 else rng.randbytes(512)
        (image / f"{DATABASE}-wal").write_bytes(torn)
        (image / f"{DATABASE}-shm").unlink(missing_ok=True)
        (image / DATABASE).write_bytes(base)
        with Store.open(image, MODEL) as memory:
            segments = [entry.segment for entry in memory.load_entries()]
            assert segments == list(range(len(segments))) and len(segments) > synced
            assert memory.recurrent_state() == b"state %d" % segments[-1]
            assert verify(memory) == ()
        for segment in range(30):  # the sweep took the pictures of lost rows
            if not list((image / KEYFRAMES).glob(f"{segment:09d}-*")):
                frame = b"jpeg %d" % segment
                (image / KEYFRAMES / folder.keyframe_name(segment, frame)).write_bytes(frame)


def test_everything_is_synced_before_append_returns_the_row_last(tmp_path, monkeypatch):
    events = []
    fsync, query = os.fsync, database.Database.query

    def record_fsync(file):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
        fsync(file)

    def record_query(self, sql, *arguments):
        events.append(sql.split()[0])
        return query(self, sql, *arguments)

    with create(tmp_path / "a.mem") as memory:
        assert memory.database.query("PRAGMA synchronous") == [(2,)]
        assert memory.database.query("PRAGMA journal_mode") == [("wal",)]
        assert memory.database.query("PRAGMA secure_delete") == [(1,)]
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(database.Database, "query", record_query)
        memory.append(make(0), b"")
    assert events[:7] == ["file", "folder", "BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]
