import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammem.errors import ConfigError
from streammem.memory.chapters import CENTRAL, MAX_CHAPTERS, default_count, divide
from tests.memory.entries import make, unit


def scenes(kinds, source="film"):
    """Rows of a second whose key is near that of their kind."""
    rng = np.random.default_rng(0)
    rows = []
    for number, kind in enumerate(kinds):
        key = unit(1, seed=kind) + 0.05 * rng.normal(size=(1, 16))
        key = key / np.linalg.norm(key)
        rows.append(make(number, key, source=source, caption=f"kind {kind}"))
    return rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 6))
def test_chapters_keep_every_row_once_in_order_and_are_few(kinds, count):
    rows = scenes(kinds)
    parts = divide(rows, count)
    assert [row for part in parts for row in part.rows] == rows
    assert len(parts) == min(count, len(rows))
    for part in parts:
        assert 1 <= len(part.central) <= CENTRAL
        assert set(map(id, part.central)) <= set(map(id, part.rows))


def test_chapters_end_where_the_pictures_change():
    parts = divide(scenes([1] * 5 + [2] * 3 + [3] * 6), 3)
    assert [len(part.rows) for part in parts] == [5, 3, 6]
    assert [[row.caption for row in part.central] for part in parts] == [
        ["kind 1"], ["kind 2"], ["kind 3"]
    ]  # fmt: skip


def test_sources_never_share_a_chapter():
    rows = [*scenes([1, 1], "a"), *(make(i, source="b") for i in (5, 6))]
    assert [part.rows[0].source for part in divide(rows, 1)] == ["a", "b"]


def test_there_are_as_many_as_the_square_root_and_never_too_many():
    assert [default_count(n) for n in (0, 1, 20, 10_000)] == [1, 1, 5, MAX_CHAPTERS]
    assert divide([], 3) == ()
    with pytest.raises(ConfigError, match="at least 1"):
        divide(scenes([1]), 0)


def test_talk_over_one_picture_is_divided_where_its_topic_changes():
    topics = [unit(1, seed=1)] * 3 + [unit(1, seed=2)] * 4
    rows = [make(i, unit(1), note_keys=topic) for i, topic in enumerate(topics)]
    assert [[row.segment for row in part.rows] for part in divide(rows, 2)] == [
        [0, 1, 2],
        [3, 4, 5, 6],
    ]
    # What is said in a part of it alone divides nothing.
    some = [make(0, unit(1), note_keys=topics[0]), make(1, unit(1)), make(2, unit(1, seed=5))]
    assert [len(part.rows) for part in divide(some, 2)] == [2, 1]


def test_a_pause_parts_chapters_however_few_are_asked_for():
    rows = [make(at, unit(1)) for at in (0, 1, 2, 700, 701, 5000)]
    assert [len(part.rows) for part in divide(rows, 1, gap_s=600)] == [3, 2, 1]
    assert [len(part.rows) for part in divide(rows, 1)] == [6]
