import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.memory.entry import KINDS, MAX_KEYFRAME_BYTES, MAX_TEXT_BYTES, Entry, MergeQueue
from streammem.memory.memory import MemoryCache
from streammem.types import Note
from tests.memory.entries import DIM, config, filled, make, near, same, search, unit

# -- still scenes --


def test_a_segment_within_epsilon_extends_the_row_before_it():
    cache = filled(2)
    cache.append(make(2, **told(2)))
    still = near(unit(1, seed=2)[0], 0.99)[None]
    change = cache.append(make(3, still, frames=5, keyframe=b"last", **told(3)))
    assert change.action == "extended" and len(cache) == 3
    row = cache.get(3)
    assert row is cache.get(2)
    assert (row.segment, row.last, row.merged, row.frames) == (2, 3, 2, 6)
    assert (row.start, row.end, row.keyframe) == (2.0, 4.0, b"last")
    for kind in KINDS[1:]:
        both = np.concatenate([told(2)[kind], told(3)[kind]])
        np.testing.assert_allclose(getattr(row, kind), both, atol=1e-3)


def test_a_still_camera_writes_one_row_a_day():
    cache = MemoryCache(config())
    for segment in range(500):
        cache.append(make(segment, unit(1)))
    assert len(cache) == 1 and cache.get(499).frames == 500


@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        (near(unit(1, seed=2)[0], 0.97)[None], {}),
        (np.concatenate([unit(1, seed=2), unit(1, seed=99)]), {}),
        (unit(1, seed=2), {"source": "another"}),
        (unit(1, seed=2), {"start": 3.5}),
        (unit(1, seed=2), {"caption_keys": unit(4)}),
        (unit(1, seed=2), {"note_keys": unit(4)}),
    ],
    ids=["too far", "an event of its own", "another source", "after a gap", "captions", "notes"],
)
def test_a_segment_that_shows_anything_else_gets_its_own_row(keys, changes):
    cache = filled(2)
    cache.append(make(2, caption_keys=unit(1), note_keys=unit(1)))
    assert cache.append(make(3, keys, **changes)).action == "appended"
    assert len(cache) == 4


# -- the bound --


@pytest.mark.parametrize("num", [2_000, pytest.param(20_000, marks=pytest.mark.heavy)])
def test_twenty_thousand_segments_stay_within_the_bound(num):
    bounds = config(max_segments=256)
    cache = MemoryCache(bounds)
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(num, 2, DIM)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=2, keepdims=True)
    text = "x" * 300
    for segment in range(num):
        cache.append(make(segment, keys[segment], caption_keys=keys[segment, :1], caption=text))
        assert len(cache) <= 256
        if segment % 500 == 0:
            assert cache.num_bytes() <= bounds.bytes_bound()
    assert len(cache) == 256 and len(cache._queue) <= 4 * 256 + 64
    assert cache.num_bytes() <= bounds.bytes_bound()


def test_memory_of_the_process_stays_within_the_bound_when_every_field_is_full():
    bounds = config(max_segments=32)
    cache = MemoryCache(bounds)
    note = Note(0.0, 1.0, "n" * 100)
    tracemalloc.start()
    for segment in range(100):
        cache.append(
            make(
                segment,
                unit(4, seed=segment),
                caption_keys=unit(4, seed=-segment % 977),
                note_keys=unit(4, seed=-segment % 971),
                caption="c" * MAX_TEXT_BYTES,
                notes=(note,) * 20,
                keyframe=bytes(MAX_KEYFRAME_BYTES),
            )
        )
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= bounds.bytes_bound()


def test_keys_only_holds_neither_tokens_nor_keyframes_but_hands_them_on():
    cache = MemoryCache(config(keys_only=True))
    cache.append(make(0, unit(1)))
    change = cache.append(make(1, unit(1), keyframe=b"new"))
    assert change.action == "extended" and change.entry.keyframe == b"new"
    assert cache.get(0).tokens.size == 0 and cache.get(0).keyframe is None
    assert config(keys_only=True).bytes_bound() < config().bytes_bound()


def test_ids_of_merged_segments_resolve_to_the_merged_row():
    cache = filled(300)
    rows = cache.entries()
    assert len(rows) == 50 and sum(row.merged for row in rows) == 300
    for segment in range(300):
        row = cache.get(segment)
        assert row.segment <= segment <= row.last
        assert row.start <= segment and row.end >= segment + 1
    assert cache.get(300) is None and cache.get(-1) is None


def test_the_most_similar_neighbours_merge_first():
    cache = MemoryCache(config(max_segments=6))
    alike = near(unit(1, seed=2)[0], 0.9)[None]
    for segment in range(6):
        cache.append(make(segment, alike if segment == 3 else None))
    change = cache.append(make(6))
    assert (change.made_room.segment, change.made_room.last) == (2, 3)


def test_merging_keeps_the_resolution_even_over_time():
    rows = filled(2_000).entries()
    assert max(row.merged for row in rows) <= 8 * 2_000 / 50
    oldest, newest = rows[:10], rows[-11:-1]
    old, new = (np.mean([row.merged for row in part]) for part in (oldest, newest))
    assert new < 2_000 / 50 < 4 * old, "neither end pays for the other"


def told(segment):
    """The keys of a caption and a note that follow the segment's id."""
    return {kind: unit(1, seed=90 + segment + i) for i, kind in enumerate(KINDS[1:])}


def test_what_merges_keeps_its_keys_text_and_longer_keyframe():
    cache = MemoryCache(config(max_segments=4))
    for segment in range(5):
        frames = min(segment + 1, 4)
        cache.append(make(segment, frames=frames, caption=f"line {segment}", **told(segment)))
    row = next(row for row in cache.entries() if row.merged == 2)
    first, second = row.segment, row.last
    for segment in (first, second):
        assert (row.visual_keys @ unit(1, seed=segment)[0]).max() > 0.999
        for kind, key in told(segment).items():
            assert (getattr(row, kind) @ key[0]).max() > 0.999
    assert row.caption == f"line {first}\nline {second}"
    assert row.keyframe == b"jpeg %d" % second
    share = (first + 1) / (row.frames)
    np.testing.assert_allclose(row.tokens, share * first + (1 - share) * second, rtol=1e-3)


def test_rows_of_different_sources_never_merge_and_the_oldest_goes_instead():
    cache = MemoryCache(config(max_segments=8))
    for segment in range(20):
        cache.append(make(segment, source=f"film {segment}"))
    assert [row.segment for row in cache.entries()] == list(range(12, 20))
    assert cache.get(0) is None


# -- finding --


def test_related_finds_the_best_visual_key_of_each_entry():
    cache = MemoryCache(config())
    cache.append(make(0, unit(3, seed=50)))
    cache.append(make(1, near(unit(3, seed=50)[2], 0.8)[None]))
    cache.append(make(2, caption_keys=unit(3, seed=50)[2:]))
    hits = cache.related(unit(3, seed=50)[2], 2)
    assert [hit.entry.segment for hit in hits] == [0, 1], "text keys do not count"
    assert [hit.cosine for hit in hits] == pytest.approx([1, 0.8], abs=1e-3)


def test_a_key_is_at_most_wholly_like_itself():
    cache = filled(50)
    scores = [cache.related(entry.visual_keys[0], 1)[0].cosine for entry in cache.entries()]
    assert max(scores) <= 1.0
    assert min(scores) > 0.99


def test_an_empty_cache_finds_nothing():
    cache = MemoryCache(config())
    assert search(cache, unit(1)[0], 3) == cache.related(unit(1)[0], 3) == ()
    assert len(cache) == 0 and cache.get(0) is None


# -- text that comes later --


def test_a_second_caption_adds_a_line_and_the_same_one_does_not():
    cache = filled(2)
    for text in ("a dog", "a dog", "the dog runs"):
        row = cache.set_caption(1, text, None)
    assert row.caption == cache.get(1).caption == "a dog\nthe dog runs"


def test_text_is_cut_to_its_bound_and_keys_stay_four():
    cache = filled(2)
    for i in range(40):
        row = cache.set_caption(1, f"{i} " + "é" * 60, unit(1, seed=i)[0])
        row = cache.add_notes(1, (Note(i, i + 1.0, "word " * 10),), unit(1, seed=-i % 99)[0])
    assert len(row.caption.encode()) <= MAX_TEXT_BYTES
    assert row.caption.startswith("0 ") and "39 " in row.caption
    assert sum(len(note.text) for note in row.notes) <= MAX_TEXT_BYTES
    for kind in ("caption_keys", "note_keys"):
        assert len(getattr(row, kind)) == len(cache._indexes[kind]) == 4


def test_a_caption_for_an_unknown_segment_is_an_error():
    with pytest.raises(KeyError, match="no segment 9"):
        filled(2).set_caption(9, "a dog", None)


def test_keys_that_fall_together_leave_no_trace_in_the_index():
    cache, key = MemoryCache(config()), unit(1)
    cache.append(make(0, caption_keys=np.repeat(key, 3, axis=0)))
    assert len(cache.set_caption(0, "a dog", key[0]).caption_keys) == 1
    assert len(cache._indexes["caption_keys"]) == 1


def test_the_queue_of_merges_does_not_grow_with_what_happens_to_a_row():
    queue, right = MergeQueue(), make(1_000)
    for last in range(500):
        left = make(0, last=last)
        queue.offer(left, right, {0: left, 1_000: right})
    assert len(queue) <= 4 * 2 + 64
    assert queue.pop({0: left, 1_000: right}) == (0, 1_000)
    assert queue.pop({0: left, 1_000: right}) is None


def test_dropped_rows_are_gone_and_the_rest_is_found():
    cache = filled(10)
    cache.set_caption(3, "a dog", unit(1, seed=5)[0])
    cache.drop([3, 4, 9, 77])
    assert [row.segment for row in cache.entries()] == [0, 1, 2, 5, 6, 7, 8]
    assert cache.get(3) is None and cache.get(9) is None
    assert len(search(cache, unit(1, seed=5)[0], 20)) == 7
    assert 3 not in [hit.entry.segment for hit in cache.related(unit(1, seed=3)[0], 10)]
    for segment in range(10, 400):
        cache.append(make(segment))
    assert len(cache) == 50


# -- values --


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1_000), stop=st.integers(1, 120))
def test_a_restored_cache_continues_identically(seed, stop):
    rng = np.random.default_rng(seed)
    keys = [unit(int(rng.integers(1, 4)), seed=int(rng.integers(12))) for _ in range(160)]
    cache = MemoryCache(config(max_segments=12))
    for segment in range(stop):
        cache.append(make(segment, keys[segment]))
    copy = MemoryCache(config(max_segments=12))
    copy.load(cache.entries())
    for segment in range(stop, 160):
        for each in (cache, copy):
            each.append(make(segment, keys[segment]))
            each.set_caption(segment, f"caption {segment % 5}", unit(1, seed=segment % 5)[0])
    assert all(same(*pair) for pair in zip(cache.entries(), copy.entries(), strict=True))
    for seed_ in range(5):
        ours, theirs = (search(each, unit(1, seed_)[0], 5) for each in (cache, copy))
        assert [(hit.entry.segment, hit.score, hit.ranked) for hit in ours] == [
            (hit.entry.segment, hit.score, hit.ranked) for hit in theirs
        ]


def test_entries_taken_do_not_change_with_the_cache():
    cache = filled(5)
    taken = cache.entries()
    cache.append(make(5))
    cache.set_caption(0, "a dog", None)
    assert len(taken) == 5 and taken[0].caption is None


def test_loading_what_a_store_kept_row_by_row_gives_the_same_cache():
    cache, kept = MemoryCache(config(max_segments=12)), {}
    for segment in range(200):
        change = cache.append(make(segment, unit(1, seed=segment // 3 if segment % 5 else segment)))
        kept[change.entry.segment] = change.entry
    copy = MemoryCache(config(max_segments=12))
    copy.load(kept.values())
    assert all(same(*pair) for pair in zip(cache.entries(), copy.entries(), strict=True))


def test_a_cache_that_was_loaded_goes_on_as_one_that_was_filled():
    cache, copy = filled(12, max_segments=12), MemoryCache(config(max_segments=12))
    copy.load(cache.entries())
    for each in (cache, copy):
        each.drop([4])
        for segment in range(12, 40):
            each.append(make(segment, unit(2, seed=segment)))
    assert all(same(*pair) for pair in zip(cache.entries(), copy.entries(), strict=True))
    assert cache.num_keys == copy.num_keys == sum(len(e.visual_keys) for e in copy.entries())
    for seed in range(5):
        ours, theirs = (search(each, unit(1, seed)[0], 5) for each in (cache, copy))
        assert [(h.entry.segment, h.score) for h in ours] == [
            (h.entry.segment, h.score) for h in theirs
        ]


def test_entries_are_values():
    keys = unit(1)
    entry = make(0, keys)
    keys[:] = 0
    assert np.linalg.norm(entry.visual_keys) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="read-only"):
        entry.tokens[0] = 1


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_keys": np.zeros((1, DIM))},
        {"visual_keys": np.full((1, DIM), np.nan)},
        {"visual_keys": unit(5)},
        {"visual_keys": np.empty((0, DIM))},
        {"caption_keys": unit(1, dim=DIM + 1)},
        {"note_keys": unit(5)},
        {"tokens": np.zeros(3)},
        {"end": -1.0},
        {"frames": 0},
        {"last": 0},
        {"keyframe": bytes(MAX_KEYFRAME_BYTES + 1)},
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValueError, match="entry: "):
        make(1, **changes)


@pytest.mark.parametrize(
    "entry",
    [make(4), make(2), make(9, unit(1, dim=DIM + 1)), make(9, tokens=np.zeros((3, 3)))],
    ids=["again", "older", "other keys", "other tokens"],
)
def test_an_entry_that_does_not_fit_is_refused_and_nothing_changes(entry: Entry):
    cache = filled(5)
    with pytest.raises(ValueError, match="cache: "):
        cache.append(entry)
    assert len(cache) == 5


@pytest.mark.parametrize(
    "changes", [{"max_segments": 3}, {"epsilon": 1.0}, {"key_dim": 0}, {"token_shape": (-1, 2)}]
)
def test_a_configuration_that_cannot_be_meant_is_refused(changes):
    with pytest.raises(ConfigError, match="cache: "):
        config(**changes)
