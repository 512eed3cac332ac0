import numpy as np
import pytest
import torch

from streammem.memory.memory import CacheConfig, Memory
from streammem.memory.retrieval import Query
from streammem.types import Note
from tests.memory.entries import DIM, TOKENS, make, unit

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


def test_the_present_is_where_each_source_was_left(remember):
    memory = remember(TOKENS)
    assert memory.now(5.0) == (5.0, {}) and memory.num_keys == 0
    for segment, source in enumerate("aab"):
        memory.append(make(segment, source=source), STATE)
    assert memory.now(5.0) == (5.0, {"a": 2.0, "b": 3.0}) and memory.num_keys == 3
