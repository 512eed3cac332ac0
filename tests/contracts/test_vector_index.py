"""One suite for every VectorIndex; a further implementation adds its name to INDEXES."""

from itertools import count

import numpy as np
import pytest
import torch
from streammem_kernels import ops

from streammem.errors import ConfigError
from streammem.memory.index import FaissIndex, NumpyIndex, TorchIndex, index_choice, index_for
from streammem.memory.sinks import QdrantSink, open_sink
from tests.postgres import postgres  # noqa: F401, a fixture

DIM = 24
INDEXES = {
    "NumpyIndex": NumpyIndex,
    "FaissIndex": FaissIndex,
    "TorchIndex": lambda dim: TorchIndex(dim, "cpu"),
}
DATABASES = [pytest.param(n, marks=pytest.mark.heavy) for n in ("QdrantIndex", "PgvectorIndex")]
NUMBER = count()
# Unit rows in half precision: 2^-11 relative a component.
TOLERANCE = 1e-3


def unit(num, seed=0, dim=DIM):
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(params=[*INDEXES, *DATABASES])
def make(request):
    if request.param in INDEXES:
        yield INDEXES[request.param]
        return
    if request.param == "QdrantIndex":
        qdrant = pytest.importorskip("qdrant_client", reason="needs streammem[qdrant]")
        sink = QdrantSink(qdrant.QdrantClient(":memory:"), "tests", DIM, "a model")
    else:
        address = f"{request.getfixturevalue('postgres')}&table=contract{next(NUMBER)}"
        sink = open_sink(address, DIM, "a model")
    with sink:  # the index of another memory each time
        yield lambda dim: sink.index(f"memory {next(NUMBER)}")


@pytest.fixture
def empty(make):
    return make(DIM)


@pytest.fixture
def full(empty):
    empty.add(np.arange(200) * 7, unit(200))
    return empty


def test_empty_index_finds_nothing(empty):
    ids, scores = empty.search(unit(1)[0], 5)
    assert len(empty) == len(ids) == len(scores) == 0


def test_search_gives_the_greatest_inner_products_best_first(full):
    query, exact = unit(1, seed=1)[0], unit(200) @ unit(1, seed=1)[0]
    ids, scores = full.search(query, 10)
    assert np.all(np.diff(scores) <= 0)
    np.testing.assert_allclose(scores, np.sort(exact)[::-1][:10], atol=TOLERANCE)
    np.testing.assert_allclose(scores, exact[ids // 7], atol=TOLERANCE)


def test_asking_for_more_than_there_is_gives_all(full):
    ids, _ = full.search(unit(1)[0], 1_000)
    assert sorted(ids) == [i * 7 for i in range(200)]


def test_removed_ids_are_never_found_and_the_rest_is(full):
    gone = np.arange(0, 200, 2) * 7
    full.remove(gone)
    ids, scores = full.search(unit(1, seed=1)[0], 1_000)
    assert sorted(ids) == [i * 7 for i in range(1, 200, 2)]
    np.testing.assert_allclose(scores, unit(200)[ids // 7] @ unit(1, seed=1)[0], atol=TOLERANCE)


def test_removing_all_gives_an_empty_index(full):
    full.remove(np.arange(200) * 7)
    assert len(full) == 0 and len(full.search(unit(1)[0], 3)[0]) == 0


def test_removing_what_is_not_there_changes_nothing(full):
    full.remove(np.array([1, 2, 10**12]))
    assert len(full) == 200


def test_adding_an_id_again_replaces_its_vector(full):
    new = unit(1, seed=9)
    full.add(np.array([70]), new)
    ids, scores = full.search(new[0], 1)
    assert len(full) == 200 and ids[0] == 70 and scores[0] == pytest.approx(1, abs=TOLERANCE)


def test_only_allowed_ids_are_found(full):
    allowed = np.array([7, 70, 700, 5])
    ids, _ = full.search(unit(1)[0], 10, allowed=allowed)
    assert sorted(ids) == [7, 70, 700]
    assert len(full.search(unit(1)[0], 10, allowed=np.array([], np.int64))[0]) == 0


def test_equal_scores_come_by_id(empty):
    empty.add(np.array([9, 3, 5]), np.repeat(unit(1), 3, axis=0))
    assert empty.search(unit(1)[0], 3)[0].tolist() == [3, 5, 9]


def test_of_one_thing_its_best_vector_counts(empty):
    vectors = unit(200)
    empty.add(np.arange(200), vectors)
    query = unit(1, seed=1)[0]
    allowed = np.arange(3, 190)
    things, scores = empty.search(query, 6, allowed=allowed, group=4)
    best = np.full(50, -np.inf)
    np.maximum.at(best, allowed // 4, (vectors @ query)[allowed])
    np.testing.assert_allclose(scores, np.sort(best)[::-1][:6], atol=TOLERANCE)
    np.testing.assert_allclose(scores, best[things], atol=TOLERANCE)
    assert len(set(things.tolist())) == 6
    assert len(empty.search(query, 1_000, group=4)[0]) == 50


def test_arrays_make_an_equal_index(make, full):
    full.remove(np.array([0, 77]))
    copy = make(DIM)
    copy.add(*full.to_arrays())
    for seed in range(5):
        ours, theirs = (index.search(unit(1, seed)[0], 9) for index in (full, copy))
        np.testing.assert_array_equal(ours[0], theirs[0])
        # Where a row lies may move the last bit of its product.
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


def test_an_index_keeps_no_reference_to_what_it_was_given(empty):
    rows = unit(3)
    empty.add(np.arange(3), rows)
    rows[:] = 0
    assert empty.search(unit(3)[1], 1)[0][0] == 1


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [
        ([1], unit(2)),
        ([1, 1], unit(2)),
        ([-1, 1], unit(2)),
        ([1, 2], unit(2, dim=DIM + 1)),
        ([1, 2], np.full((2, DIM), np.nan)),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(full, ids, vectors):
    with pytest.raises(ValueError, match="index:"):
        full.add(np.array(ids), vectors)
    assert len(full) == 200


@pytest.mark.parametrize("query", [np.zeros(DIM + 1), np.full(DIM, np.inf)])
def test_a_query_that_does_not_fit_is_refused(full, query):
    with pytest.raises(ValueError, match="query"):
        full.search(query, 1)


def test_an_index_agrees_with_the_reference_through_random_edits(make):
    rng = np.random.default_rng(4)
    reference, index = NumpyIndex(DIM), make(DIM)
    for _ in range(60):
        ids = rng.choice(300, size=12, replace=False)
        rows = unit(12, seed=int(rng.integers(1 << 30))).astype(np.float16).astype(np.float32)
        for each in (reference, index):
            each.add(ids, rows)
            each.remove(ids[:5] + 1)
        query = unit(1, seed=int(rng.integers(1 << 30)))[0]
        assert len(index) == len(reference)
        np.testing.assert_allclose(
            index.search(query, 8)[1], reference.search(query, 8)[1], atol=1e-5
        )


@pytest.mark.parametrize("name", ["FaissIndex", "TorchIndex"])
def test_bytes_stay_within_a_constant_of_the_vectors_through_endless_replacing(name):
    index = INDEXES[name](DIM)
    for turn in range(400):
        index.remove(np.arange(turn, turn + 10))
        index.add(np.arange(turn + 100, turn + 110), unit(10, seed=turn))
    assert index.num_bytes() <= len(index) * (2 * DIM + 8) * 2 + 10 * (2 * DIM + 16)


def test_many_keys_lie_on_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.delenv("STREAMMEM_KERNELS", raising=False)
    monkeypatch.setattr(ops, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert index_choice(10**6) == ("FAISS", "the tensors are on the CPU")
    assert isinstance(index_for(DIM, 10**6), FaissIndex)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert index_choice(10**6) == ("find_topk", "the tensors are on CUDA")
    assert index_choice(1000)[0] == "FAISS" and "fewer than" in index_choice(1000)[1]
    monkeypatch.setenv("STREAMMEM_KERNELS", "triton")
    assert index_choice(1000)[0] == "find_topk"
    monkeypatch.setenv("STREAMMEM_KERNELS", "torch")
    assert index_choice(10**6) == ("FAISS", "STREAMMEM_KERNELS=torch")
    monkeypatch.setenv("STREAMMEM_KERNELS", "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cannot run in Triton"):
        index_choice(10**6)
