import numpy as np
import pytest

from streammem.errors import StoreError
from streammem.memory.database import token_block
from streammem.memory.folder import DATABASE, FORMAT, KEYFRAMES
from streammem.memory.store import Store
from streammem.memory.upkeep import (
    compact,
    entries,
    events_of,
    forget,
    info,
    overlapping,
    prune,
    verify,
    would_prune,
)
from streammem.types import Caption, Note, Segment
from tests.memory.entries import DIM, make, unit

TOKENS = (16, 64)
TOKEN_BYTES = 1 + 16 * 64 * 34 // 32


def tokens(segment):
    return np.random.default_rng(segment).normal(size=TOKENS).astype(np.float16)


@pytest.fixture
def memory(tmp_path):
    """32 segments with captions, tokens of 1 KB and keyframes of 3 KB."""
    with Store.create(tmp_path / "a.mem", "tiny-1", key_dim=DIM, token_shape=TOKENS) as memory:
        for segment in range(32):
            entry = make(
                segment,
                tokens=tokens(segment),
                keyframe=b"%3000d" % segment,
                caption=f"secret-{segment:02d}",
                caption_keys=unit(1, seed=-segment % 97),
                source=f"camera {segment // 16}",
            )
            memory.append(entry, b"state that saw it all")
        yield memory


def folder_bytes(memory):
    return b"".join(file.read_bytes() for file in memory.path.rglob("*") if file.is_file())


def num_keyframes(memory):
    return len(list((memory.path / KEYFRAMES).iterdir()))


def test_info_counts_what_is_there(memory):
    summary = info(memory)
    assert (summary.segments, summary.captions, summary.keyframes) == (32, 32, 32)
    assert (summary.start, summary.end, summary.frames) == (0.0, 32.0, 32)
    assert summary.keyframe_bytes == 32 * 3000 and summary.sources == ("camera 0", "camera 1")
    assert summary.database_bytes > 32 * TOKEN_BYTES
    assert (summary.format, summary.fingerprint) == (FORMAT, "tiny-1")


def test_info_of_an_empty_memory(tmp_path):
    with Store.create(tmp_path / "b.mem", "tiny-1") as memory:
        assert info(memory).segments == 0 and info(memory).start is None
        assert verify(memory) == () and memory.load_entries() == ()
        assert memory.recurrent_state() is None


# -- exporting --


def test_entries_come_in_order_and_by_source(memory, monkeypatch):
    monkeypatch.setattr("streammem.memory.upkeep._EXPORT_ROWS", 5)
    assert [entry.segment for entry in entries(memory)] == list(range(32))
    seen = entries(memory, source="camera 1")
    assert [(e.segment, e.caption) for e in seen] == [(n, f"secret-{n}") for n in range(16, 32)]


def test_entries_need_no_keyframes(memory):
    for file in (memory.path / KEYFRAMES).iterdir():
        file.unlink()
    assert len(list(entries(memory))) == 32


def test_an_entry_is_its_segment_its_caption_and_its_notes():
    notes = (Note(3.0, 3.2, "a"), Note(3.1, 3.4, "b"))
    segment = Segment(3, 3.0, 4.0, None, None)
    assert events_of(make(3)) == (segment,)
    told = events_of(make(3, caption="A dog.", notes=notes))
    assert told == (segment, Caption(3, 3.0, 4.0, "A dog."), *notes)
    assert str(segment) == "[00:03.0-00:04.0] scene 3"


# -- forgetting --


def test_what_is_forgotten_is_in_no_file_any_more(memory):
    traces = [
        b"secret-07",
        b"%3000d" % 7,
        token_block(memory.tokens(7))[0],
        b"state that saw it all",
    ]
    traces.append(memory.read(7).visual_keys.astype("<f2").tobytes())
    memory.database.checkpoint()
    assert all(trace in folder_bytes(memory) for trace in traces)
    assert forget(memory, (6.5, 9.0)) == (6, 7, 8)
    assert not any(trace in folder_bytes(memory) for trace in traces)
    assert b"secret-09" in folder_bytes(memory)
    assert num_keyframes(memory) == 29 and len(memory.load_entries()) == 29
    assert memory.recurrent_state() is None and verify(memory) == ()
    with pytest.raises(StoreError, match="no segment 7"):
        memory.read(7)


def test_forgetting_keeps_other_sources_and_other_times(memory):
    assert forget(memory, (0.0, 99.0), source="camera 1") == tuple(range(16, 32))
    assert forget(memory, (50.0, 99.0)) == ()
    assert [entry.segment for entry in memory.load_entries()] == list(range(16))


@pytest.mark.parametrize(
    ("between", "source"),
    [((6.5, 9.0), None), ((15.5, 17.5), "camera 1"), ((7.0, 8.0), "camera 1"), ((40, 50), None)],
)
def test_what_would_be_forgotten_is_what_is_forgotten(memory, between, source):
    told = overlapping(memory, between, source=source)
    assert len(memory.load_entries()) == 32
    assert forget(memory, between, source=source) == told


def test_forgetting_nothing_keeps_the_recurrent_state(memory):
    forget(memory, (50.0, 99.0))
    assert memory.recurrent_state() == b"state that saw it all"


def test_forgetting_while_a_reader_holds_the_old_state_says_so(memory, monkeypatch):
    memory.database.query("PRAGMA busy_timeout = 1")
    with Store.open(memory.path, None, "r") as reader, reader.database.snapshot():
        assert reader.database.query("SELECT count(*) FROM segments") == [(32,)]
        with pytest.raises(StoreError, match=r"3 segments are forgotten, but .* reader"):
            forget(memory, (6.5, 9.0))
    assert len(memory.load_entries()) == 29
    compact(memory)
    assert b"secret-07" not in folder_bytes(memory)


# -- pruning --


def test_pruning_keeps_the_budget_and_thins_keyframes_evenly_first(memory):
    budget = info(memory).database_bytes + 16 * 3000
    pruned = prune(memory, budget_bytes=budget)
    assert (pruned.keyframes, pruned.tokens, pruned.segments) == (16, 0, ())
    assert pruned.bytes <= budget and num_keyframes(memory) == 16
    kept = [s for s in range(32) if memory.keyframe_path(s) is not None]
    assert kept == list(range(0, 32, 2))
    assert verify(memory) == ()


def test_pruning_takes_tokens_next_and_captions_last(memory):
    budget = info(memory).database_bytes - 8 * TOKEN_BYTES
    pruned = prune(memory, budget_bytes=budget)
    assert pruned.keyframes == 32 and num_keyframes(memory) == 0
    assert 8 <= pruned.tokens < 32 and pruned.segments == ()
    assert pruned.bytes <= budget
    assert len([e for e in memory.load_entries() if e.caption]) == 32
    assert memory.tokens(1).size == 0 and memory.tokens(16).size
    smaller = prune(memory, budget_bytes=pruned.bytes - 8 * TOKEN_BYTES)
    assert smaller.tokens >= 8 and smaller.segments == ()
    assert verify(memory) == ()


def test_pruning_to_nothing_leaves_an_empty_sound_memory(memory):
    pruned = prune(memory, budget_bytes=0)
    assert pruned.segments == tuple(range(32)) and memory.load_entries() == ()
    assert verify(memory) == ()
    memory.append(make(99, tokens=tokens(99)), b"")


def test_rows_go_from_the_oldest(memory):
    without_payload = prune(memory, budget_bytes=36_864)
    assert without_payload.tokens == 32 and without_payload.segments == ()
    pruned = prune(memory, budget_bytes=36_864 - 4_096)
    left = [entry.segment for entry in memory.load_entries()]
    assert pruned.segments and left == list(range(len(pruned.segments), 32))


def test_pruned_bytes_go_back_to_the_file_system(memory):
    memory.database.checkpoint()
    before = (memory.path / DATABASE).stat().st_size
    prune(memory, budget_bytes=info(memory).database_bytes - 16 * TOKEN_BYTES)
    assert (memory.path / DATABASE).stat().st_size <= before - 16 * TOKEN_BYTES


@pytest.mark.parametrize(
    ("budget", "keep_s"),
    [(0, None), (36_864, None), (60_000, 100.0), (10**9, None), (None, 0.0), (None, 100.0)],
)
def test_what_would_be_pruned_is_what_is_pruned(memory, budget, keep_s):
    (now,) = memory.database.query("SELECT max(written) FROM segments")[0]
    limits = {"budget_bytes": budget, "keep_s": keep_s, "now": now + 50}
    before, keyframes = list(memory.export()), num_keyframes(memory)
    told = would_prune(memory, **limits)
    assert [e.segment for e in memory.export()] == [e.segment for e in before]
    assert num_keyframes(memory) == keyframes and verify(memory) == ()
    pruned = prune(memory, **limits)
    assert (pruned.keyframes, pruned.tokens) == (told.keyframes, told.tokens)
    assert pruned.segments == told.segments and pruned.bytes == told.bytes


def test_within_its_budget_nothing_is_pruned(memory):
    pruned = prune(memory, budget_bytes=10**9, keep_s=3600)
    assert (pruned.keyframes, pruned.tokens, pruned.segments) == (0, 0, ())


def test_rows_written_too_long_ago_go(memory, monkeypatch):
    (written,) = memory.database.query("SELECT max(written) FROM segments")[0]
    monkeypatch.setattr("streammem.memory.store.time.time", lambda: written + 500)
    memory.append(make(40, tokens=tokens(40)), b"")
    pruned = prune(memory, keep_s=100, now=written + 500)
    assert pruned.segments == tuple(range(32))
    assert [entry.segment for entry in memory.load_entries()] == [40]
    assert num_keyframes(memory) == 1


def test_compacting_changes_nothing_that_is_read(memory):
    before = [entry.caption for entry in memory.export()]
    compact(memory)
    assert [entry.caption for entry in memory.export()] == before and verify(memory) == ()


@pytest.mark.parametrize(
    "change",
    [
        compact,
        lambda m: forget(m, (0, 5)),
        lambda m: prune(m, budget_bytes=0),
        lambda m: would_prune(m, budget_bytes=0),
    ],
)
def test_a_reader_cannot_change_a_memory(memory, change):
    with Store.open(memory.path, None, "r") as reader, pytest.raises(StoreError, match="reading"):
        change(reader)
    assert len(memory.load_entries()) == 32 and num_keyframes(memory) == 32
